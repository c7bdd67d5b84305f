// Ids whose time is not now: of callers whose clocks are ahead, and of what found no room. Nobody
// else is refused for them, and none of them is let through a second time.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct LeaseIdTests {
  private let redis = ModelRedis()

  init() { redis.amounts = ["acme": 1_000_000, "acme/ann": 1_000] }

  private func id(_ time: Int64, _ low: UInt64) -> OperationID {
    OperationID(high: UInt64(time) << 16, low: low &* 0x9E37_79B9_7F4A_7C15)
  }

  /// What was held has ended by then.
  private func leaseAnew(_ scene: LeaseScene, after milliseconds: Int64) {
    scene.pass(milliseconds)
    scene.table.subscribed(since: scene.monotonic)
    scene.begin(redis)
    scene.spend(.simple(), 1)
    scene.run(300, redis)
    scene.table.heard(at: scene.monotonic)
  }

  /// Operations arrive some milliseconds after they were minted.
  @Test(arguments: [Int64(500), 30_000, 31_536_000_000])
  func oneWhoseClockIsAheadRefusesNobody(lead: Int64) {
    let scene = LeaseScene().begin(redis)
    scene.table.subscribed(since: scene.monotonic)
    var refused = 0
    for round in 0..<200 as Range<UInt64> {
      for number in 0..<40 as Range<UInt64> {
        scene.spend(.simple(), 0, id: id(scene.wall + lead, round << 8 | number))
      }
      scene.table.heard(at: scene.monotonic)
      let outcome = scene.spend(.simple(), 1, id: id(scene.wall - 5, 1 << 60 | round))
      if outcome == .tooOld { refused += 1 }
      scene.run(10, redis)
    }
    #expect(refused == 0)
    #expect(redis.settled["acme"] ?? 0 > 150)
  }

  @Test func moreThatAreAheadThanAreKeptAreNotCountedAgain() {
    let scene = LeaseScene(LeaseMemory(LeaseScene.geometry(slots: 1_024))).begin(
      redis, demand: 1_000)
    scene.table.subscribed(since: scene.monotonic)
    let time = scene.wall + 800
    var allowed: Int64 = 0
    var full = 0
    let ids = (0..<6_000 as Range<UInt64>).map { id(time, $0) }
    for (index, id) in ids.enumerated() {
      scene.table.heard(at: scene.monotonic)
      switch scene.spend(.simple(), 1, id: id) {
      case .allowed: allowed += 1
      case .miss(.ringFull): full += 1
      default: break
      }
      if index % 500 == 499 { scene.run(10, redis) }
    }
    #expect(allowed > Int64(LeaseRing.earlyMax) && full > 0)
    for round in 0..<3 {
      scene.pass(100)
      scene.table.heard(at: scene.monotonic)
      let again = ids.count { scene.spend(.simple(), 1, id: $0).isAllowed }
      #expect(again == 0, "round \(round)")
      scene.run(10, redis)
    }
    // Its time has come: others have the room.
    scene.pass(1_000)
    for _ in 0..<20 {
      scene.table.heard(at: scene.monotonic)
      scene.spend(.simple(), 1)
      scene.run(20, redis)
    }
    #expect(scene.spend(.simple(), 1).isAllowed)
    #expect(ids.count { scene.spend(.simple(), 1, id: $0).isAllowed } == 0)
    scene.run(1_000, redis)
    #expect(redis.ledger["acme"] ?? 0 >= allowed && redis.ledger["acme"] ?? 0 <= allowed + 21)
  }

  /// While nothing can be settled there is no room for a marker either.
  @Test func aFullRingRefusesNobodyAndForgetsNobody() {
    let scene = LeaseScene().begin(redis, demand: 1_000)
    scene.table.subscribed(since: scene.monotonic)
    while scene.spend(.simple(), 1).isAllowed { scene.table.heard(at: scene.monotonic) }
    var left: [OperationID] = []
    for number in 0..<200 as Range<UInt64> {
      scene.pass(1)
      scene.table.heard(at: scene.monotonic)
      left.append(id(scene.wall, 1 << 50 | number))
      #expect(scene.spend(.simple(), 1, id: left[left.count - 1]) == .miss(.ringFull))
      #expect(
        scene.spend(.simple(), 1, id: id(scene.wall - 5, 1 << 51 | number)) == .miss(.ringFull))
    }
    // Redis decided those; it is asked again.
    scene.run(100, redis)
    scene.table.heard(at: scene.monotonic)
    #expect(scene.spend(.simple(), 1).isAllowed)
    #expect(left.count { scene.spend(.simple(), 1, id: $0).isAllowed } == 0)
  }

  @Test func aFilterKnowsAllOfItsOwnAndFewOthers() {
    var filter = LeaseFilter()
    var random = SeededRandom(seed: 7)
    #expect(!filter.isInUse(0))
    // More than two halves; the horizon follows.
    let hashes = (0..<3 * LeaseFilter.idsMax).map { _ in random.next() }
    for (time, hash) in hashes.enumerated() {
      let isTaken = filter.insert(
        hash, time: Int64(time), horizon: Int64(time - LeaseFilter.idsMax / 2))
      #expect(isTaken)
    }
    let horizon = Int64(hashes.count - LeaseFilter.idsMax / 2)
    #expect(filter.isInUse(horizon))
    #expect(hashes[Int(horizon)...].allSatisfy { filter.mayContain($0, horizon: horizon) })
    #expect((0..<10_000).count { _ in filter.mayContain(random.next(), horizon: horizon) } < 300)
    #expect(!filter.isInUse(Int64(hashes.count)))
    // A half that the horizon has passed is not asked, whatever is in the other one.
    _ = filter.insert(random.next(), time: Int64(hashes.count + 10), horizon: Int64(hashes.count))
    let late = hashes.suffix(100).count { filter.mayContain($0, horizon: Int64(hashes.count)) }
    #expect(filter.isInUse(Int64(hashes.count)) && late < 50)
  }

  /// So that it never takes everybody's for its own.
  @Test func aFilterThatIsFullTakesNoMore() {
    var filter = LeaseFilter()
    var random = SeededRandom(seed: 8)
    var taken = 0
    while taken < 100_000, filter.insert(random.next(), time: 1_000, horizon: 0) { taken += 1 }
    #expect(taken == 2 * LeaseFilter.idsMax)
    #expect((0..<10_000).count { _ in filter.mayContain(random.next(), horizon: 0) } < 300)
    let isTaken = filter.insert(random.next(), time: 3_000, horizon: 2_000)
    #expect(isTaken)
  }

  /// Whoever is started anew from the same memory does not let through what was left to Redis.
  @Test func whatWasLeftToRedisWithoutASlotIsNotLetThroughAfterARestart() {
    let memory = LeaseMemory(LeaseScene.geometry())
    let scene = LeaseScene(memory).begin(redis, demand: 1_000)
    scene.table.subscribed(since: scene.monotonic)
    while scene.spend(.simple(), 1).isAllowed { scene.table.heard(at: scene.monotonic) }
    // Some room is kept for markers.
    for _ in 0..<100 { scene.spend(.simple(), 1) }
    scene.pass(1)
    let left = id(scene.wall, 1 << 50)
    #expect(scene.spend(.simple(), 1, id: left) == .miss(.ringFull))
    scene.pass(50)
    let next = LeaseScene(memory, lessee: 2, now: scene.now, minted: 1 << 10)
    next.exchange(with: redis)
    next.begin(redis)
    #expect(next.spend(.simple(), 1).isAllowed)
    // It may have been counted there, or never have come: Redis knows.
    #expect(next.spend(.simple(), 1, id: left) == .miss(.future))
  }

  /// The same of ids ahead of the clock that the ring has forgotten: one that Redis decided, and one
  /// that was let through.
  @Test(arguments: [Int64(30_000), 700])
  func whatWasAheadAndForgottenIsNotLetThroughAfterARestart(lead: Int64) {
    let memory = LeaseMemory(LeaseScene.geometry())
    let scene = LeaseScene(memory).begin(redis)
    scene.table.subscribed(since: scene.monotonic)
    let ahead = id(scene.wall + lead, 77)
    #expect(scene.spend(.simple(), 1, id: ahead).isAllowed == (lead < 1_000))
    for _ in 0..<40 {
      scene.table.heard(at: scene.monotonic)
      for _ in 0..<10 { scene.spend(.simple(), 0) }
      scene.run(10, redis)
    }
    let next = LeaseScene(
      memory, lessee: 2, now: scene.now + (lead - 400) * 1_000_000, minted: 1 << 10)
    next.exchange(with: redis)
    next.begin(redis)
    #expect(!next.spend(.simple(), 1, id: ahead).isAllowed)
    next.pass(1_000)
    next.table.subscribed(since: next.monotonic)
    next.begin(redis)
    #expect(next.spend(.simple(), 1).isAllowed)
    #expect(!next.spend(.simple(), 1, id: ahead).isAllowed)
  }

  /// More of them than can be told from others make others' operations calls to Redis, and no more.
  @Test func manyWhoseClocksAreAheadRefuseNobody() {
    let scene = LeaseScene().begin(redis)
    scene.table.subscribed(since: scene.monotonic)
    let ahead = (0..<25_000 as Range<UInt64>).map { id(scene.wall + 30_000 + Int64($0), $0) }
    var refused = 0
    for (round, ids) in stride(from: 0, to: ahead.count, by: 100).enumerated() {
      for id in ahead[ids..<ids + 100] { scene.spend(.simple(), 1, id: id) }
      scene.table.heard(at: scene.monotonic)
      for late in 1...5 as ClosedRange<Int64> {
        let id = id(scene.wall - late, 1 << 60 | UInt64(round) << 4 | UInt64(late))
        let outcome = scene.spend(.simple(), 1, id: id)
        if outcome == .tooOld || outcome == .miss(.ringFull) { refused += 1 }
      }
      scene.run(10, redis)
    }
    #expect(refused == 0)
    #expect(ahead.count { scene.spend(.simple(), 1, id: $0).isAllowed } == 0)
    // Their time is over.
    leaseAnew(scene, after: 70_000)
    #expect(scene.spend(.simple(), 1).isAllowed)
    #expect(ahead.count { scene.spend(.simple(), 1, id: $0).isAllowed } == 0)
  }

  /// What Redis decided ahead of its time is Redis's when its time has come: one of a few, which is
  /// known by itself, and one of more than can be.
  @Test(arguments: [1, 20_000])
  func whatRedisDecidedAheadOfItsTimeIsNotLetThroughWhenItHasCome(count: UInt64) {
    let scene = LeaseScene().begin(redis)
    scene.table.subscribed(since: scene.monotonic)
    let ahead = (0..<count).map { id(scene.wall + 30_000, $0) }
    #expect(ahead.allSatisfy { scene.spend(.simple(), 1, id: $0) == .miss(.future) })
    // Their markers are gone.
    for _ in 0..<10 {
      for _ in 0..<50 { scene.spend(.simple(), 0) }
      scene.run(10, redis)
    }
    leaseAnew(scene, after: 29_000)
    let late = ahead.suffix(100)
    #expect(late.allSatisfy { Int64($0.high >> 16) < scene.wall + 1_000 })
    #expect(late.allSatisfy { Int64($0.high >> 16) > scene.table.gauges.horizon })
    #expect(late.allSatisfy { scene.spend(.simple(), 1, id: $0) == .miss(.future) })
  }

  /// It was not as far ahead as Redis allows when Redis let it through.
  @Test func aClockThatIsPutBackForgetsNobody() {
    let scene = LeaseScene().begin(redis)
    scene.table.subscribed(since: scene.monotonic)
    let ahead = id(scene.wall + 55_000, 77)
    #expect(scene.spend(.simple(), 1, id: ahead) == .miss(.future))
    scene.pass(-10_000)
    let others = (0..<400 as Range<UInt64>).map { id(scene.wall, $0) }
    #expect(others.allSatisfy { scene.cancel(.simple(), 1, id: $0) == .unknown })
    leaseAnew(scene, after: 64_100)
    #expect(scene.spend(.simple(), 1).isAllowed)
    #expect(scene.spend(.simple(), 1, id: ahead) == .miss(.future))
  }

  // MARK: - Where a table begins

  /// Whatever the machine's own clock says.
  @Test(arguments: [Int64(-3_000), 3_000])
  func aNewTableBeginsWhenRedisSaysSo(machine: Int64) {
    let now: Int64 = 10_000_000_000
    let wall = LeaseScene.wallStart + now / 1_000_000
    let scene = LeaseScene(now: now, horizon: wall + machine, isBegun: false)
    scene.begin(redis)
    scene.table.subscribed(since: scene.monotonic)
    // Nobody has said what time it is: leases answer nothing.
    let early = scene.spend(.simple(), 1, id: id(wall + 1, 1))
    #expect(early == (machine < 0 ? .miss(.future) : .tooOld))
    scene.table.begin(at: wall - 500, now: wall)
    scene.pass(1)
    #expect(scene.spend(.simple(), 1, id: id(wall - 500, 2)) == .tooOld)
    // Since the start only Redis can have decided it.
    #expect(scene.spend(.simple(), 1, id: id(wall - 499, 7)) == .miss(.future))
    #expect(scene.spend(.simple(), 1, id: id(wall, 8)) == .miss(.future))
    #expect(scene.spend(.simple(), 1, id: id(wall + 1, 3)).isAllowed)
    // It was that of the first time.
    scene.table.begin(at: wall + 60_000, now: wall + 60_000)
    #expect(scene.spend(.simple(), 1, id: id(wall + 1, 4)).isAllowed)
    #expect(scene.table.isOfUnknownPast(bucket: 0, id(wall - 500, 5)))
    #expect(!scene.table.isOfUnknownPast(bucket: 0, id(wall - 499, 6)))
  }

  /// What is forgotten before Redis has spoken was Redis's, by another clock: an hour ahead here.
  @Test func whatIsForgottenBeforeRedisHasSpokenIsNotByTheMachinesClock() {
    let memory = LeaseMemory(LeaseScene.geometry())
    let scene = LeaseScene(memory, horizon: LeaseScene.wallStart - 3_600_000, isBegun: false)
    scene.register()
    let ids = (0..<600 as Range<UInt64>).map { id(scene.wall - 60_000 + Int64($0), $0) }
    #expect(ids.allSatisfy { scene.cancel(.simple(), 1, id: $0) == .unknown })
    // Killed before it did.
    let next = LeaseScene(memory, lessee: 2, now: scene.now, isBegun: false, minted: 1 << 10)
    next.table.begin(at: scene.wall - 3_600_000, now: scene.wall - 3_590_000)
    #expect(next.table.gauges.horizon == scene.wall - 3_600_000)
  }

  /// An older release did not write down when its memory came into use.
  @Test func aJournalOfAnOlderReleaseIsNotANewOne() {
    let memory = LeaseMemory(LeaseScene.geometry())
    let scene = LeaseScene(memory, horizon: LeaseScene.wallStart).begin(redis)
    let known = scene.mint()
    scene.spend(.simple(), 1, id: known)
    for byte in 0..<8 {
      memory.tear(at: LeaseRegion.headerBytes + StripeRegion.Word.begun.rawValue * 8 + byte, 0)
    }
    scene.pass(5_000)
    let next = LeaseScene(
      memory, lessee: 2, now: scene.now, horizon: scene.wall, isBegun: false, minted: 1 << 10)
    next.table.begin(at: next.wall, now: next.wall)
    #expect(next.table.gauges.horizon == LeaseScene.wallStart)
    #expect(!next.table.isOfUnknownPast(bucket: 0, known))
  }

  @Test func whoIsStartedAgainBeginsWhereTheMemoryDid() {
    let memory = LeaseMemory(LeaseScene.geometry())
    let scene = LeaseScene(memory, horizon: LeaseScene.wallStart).begin(redis)
    scene.spend(.simple(), 1)
    scene.pass(5_000)
    let next = LeaseScene(
      memory, lessee: 2, now: scene.now, horizon: scene.wall, isBegun: false, minted: 1 << 10)
    next.table.begin(at: next.wall, now: next.wall)
    #expect(next.table.gauges.horizon == LeaseScene.wallStart)
    #expect(!next.table.isOfUnknownPast(bucket: 0, id(LeaseScene.wallStart + 1, 1)))
    #expect(next.table.isOfUnknownPast(bucket: 0, id(LeaseScene.wallStart, 1)))
  }

  /// What was let through ahead of the clock and forgotten before a restart makes too old what is
  /// minted until its time. What a client lets through then by itself was used, and counts.
  @Test func afterARestartTheTimesOfWhatWasAheadAreUnknown() {
    let memory = LeaseMemory(LeaseScene.geometry())
    let scene = LeaseScene(memory).begin(redis)
    scene.table.subscribed(since: scene.monotonic)
    let ahead = id(scene.wall + 900, 77)
    #expect(scene.spend(.simple(), 1, id: ahead).isAllowed)
    for _ in 0..<20 {
      scene.table.heard(at: scene.monotonic)
      for _ in 0..<20 { scene.spend(.simple(), 0) }
      scene.run(10, redis)
    }
    let next = LeaseScene(memory, lessee: 2, now: scene.now, minted: 1 << 10)
    next.pass(100)
    #expect(next.spend(.simple(), 1, id: id(next.wall, 1)) == .tooOld)
    #expect(next.table.isOfUnknownPast(bucket: 0, id(next.wall, 1)))
    #expect(next.table.isOfUnknownPast(bucket: 0, ahead))
    #expect(!next.table.isOfUnknownPast(bucket: 0, id(next.wall + 801, 1)))
    // This one was remembered for as long as it could be.
    #expect(!next.table.isOfUnknownPast(bucket: 0, id(scene.wall - 150, 1)))
  }

  /// The first call after a restart is a CANCEL, and what is forgotten for it was ahead.
  @Test func roomForACorrectionMakesNobodyTooOld() {
    let memory = LeaseMemory(LeaseScene.geometry())
    let scene = LeaseScene(memory).begin(redis, demand: 1_000)
    scene.table.subscribed(since: scene.monotonic)
    #expect(scene.spend(.simple(), 1, id: id(scene.wall + 60_000, 77)) == .miss(.future))
    let taken = scene.mint()
    #expect(scene.spend(.simple(), 1, id: taken).isAllowed)
    // Those two are in it, and the rest is filled to the brim.
    for number in 2..<256 {
      #expect(scene.cancel(.simple(), 1, id: id(scene.wall, 1 << 40 | UInt64(number))) == .unknown)
    }
    let next = LeaseScene(memory, lessee: 2, now: scene.now, minted: 1 << 10)
    next.register()
    #expect(next.cancel(.simple(), 1, id: taken) == .cancelled)
    #expect(next.table.gauges.horizon < next.wall)
  }

  /// Redis refuses them: nothing of them is remembered, however they come.
  @Test func idsOfNextYearLeaveNothingBehind() {
    let scene = LeaseScene().begin(redis)
    scene.table.subscribed(since: scene.monotonic)
    let year: Int64 = 31_536_000_000
    for round in 0..<100 as Range<UInt64> {
      for number in 0..<400 as Range<UInt64> {
        let id = id(scene.wall + year, round << 12 | number)
        #expect(scene.cancel(.simple(), 1, id: id) == .unknown)
        #expect(scene.spend(.simple(), 1, id: id) == .miss(.future))
      }
      scene.table.heard(at: scene.monotonic)
      #expect(scene.spend(.simple(), 1).isAllowed)
      scene.run(10, redis)
    }
    #expect(redis.settled["acme"] ?? 0 > 90)
  }

  /// A batch in which one of its counters cannot be counted further is not settled at all.
  @Test func aCounterNearTheEndOfItsRangeIsNotLeased() {
    redis.settled["acme.bill"] = LeaseConfiguration.settledMax + 1
    let scene = LeaseScene().begin(redis)
    #expect(scene.spend(.simple(), 1).isAllowed)
    scene.run(20, redis)
    #expect(scene.spend(.simple(), 1) == .miss(.outdated))
    redis.settled["acme.bill"] = LeaseConfiguration.settledMax - 1_000
    scene.begin(redis)
    #expect(scene.spend(.simple(), 1).isAllowed)
  }

  /// A limit that another version lowered is not acquired by the older one's amount.
  @Test func whatWasWantedBeforeAChangeIsNotAcquiredAfterIt() throws {
    let scene = LeaseScene()
    scene.register(.simple("acme", member: "ann"))
    scene.version = 2
    redis.version = 2
    scene.register(.simple())
    let exchange = try #require(scene.collect())
    for portion in exchange.accounts.flatMap(\.portions) {
      let name = ModelRedis.text(portion.key.name)
      #expect(portion.target <= 0 || name == "acme", "\(name): \(portion.target)")
    }
    scene.table.replied(exchange.token, redis.exchange(exchange), now: scene.monotonic)
    #expect(redis.held("acme/ann") == 0 && redis.held("acme") > 0)
    #expect(scene.spend(.simple(), 1).isAllowed)
  }
}
