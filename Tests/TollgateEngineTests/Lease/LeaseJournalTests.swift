// What is found after a crash: nothing that was answered is forgotten, nothing is counted twice.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct LeaseJournalTests {
  private let redis = ModelRedis()
  private let memory = LeaseMemory(LeaseScene.geometry())

  init() { redis.amounts = ["acme": 1_000, "b": 1_000] }

  private func again(
    _ scene: LeaseScene, _ other: LeaseMemory? = nil, lessee: UInt64 = 2
  ) -> LeaseScene {
    LeaseScene(other ?? memory, lessee: lessee, now: scene.now + 1_000_000, minted: 1_000)
  }

  @Test func whatWasSpentIsSettledByTheNextIncarnationUnderTheOldLessee() throws {
    let scene = LeaseScene(memory).begin(redis)
    scene.spend(.simple(), 3)
    scene.spend(.simple(), 4)
    let next = again(scene)
    #expect(next.table.gauges.unsettledUnits == 7 && next.table.gauges.recovering == 1)
    let exchange = try #require(next.collect())
    #expect(exchange.accounts.map(\.lessee) == [1] && exchange.accounts[0].isWhole)
    #expect(exchange.deltas.map(\.amount) == [7])
    next.table.replied(exchange.token, redis.exchange(exchange), now: next.monotonic)
    #expect(redis.settled["acme"] == 7)
    #expect(next.table.finishedPredecessors == [1])
    redis.close(1)
    next.table.region.closed(1)
    #expect(redis.held("acme") == 0)
    #expect(next.table.finishedPredecessors.isEmpty)
  }

  /// Each call names one lessee: what both have of a counter would else be booked on one.
  @Test func anIncarnationAndItsPredecessorNeverShareACall() throws {
    let scene = LeaseScene(memory).begin(redis)
    scene.spend(.simple(), 3)
    let next = again(scene)
    #expect(next.register(amount: 1_000, demand: 10) == .ready)
    var lessees: [Set<UInt64>] = []
    while let exchange = next.collect() {
      lessees.append(Set(exchange.accounts.map(\.lessee)))
      next.table.replied(exchange.token, redis.exchange(exchange), now: next.monotonic)
    }
    #expect(lessees.allSatisfy { $0.count == 1 } && lessees.reduce([]) { $0.union($1) } == [1, 2])
    #expect(redis.settled["acme"] == 3)
  }

  @Test func aBatchInDoubtGoesOutAgainUnderItsId() throws {
    let scene = LeaseScene(memory).begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(10)
    let sent = try #require(scene.collect())
    scene.spend(.simple(), 5)
    _ = redis.exchange(sent)
    let next = again(scene)
    let first = try #require(next.collect())
    #expect(first.id == sent.id && first.isRepeat && first.deltas == sent.deltas)
    next.table.replied(first.token, redis.exchange(first), now: next.monotonic)
    next.exchange(with: redis)
    #expect(redis.settled["acme"] == 8 && redis.ledger["acme"] == 8)
  }

  @Test func aBatchThatWasDoneIsNotSettledAgain() {
    let scene = LeaseScene(memory).begin(redis)
    scene.spend(.simple(), 3)
    scene.run(10, redis)
    let next = again(scene)
    #expect(next.table.gauges.unsettledUnits == 0 && next.table.gauges.recovering == 0)
  }

  @Test func aRetryAfterTheCrashIsKnown() {
    let scene = LeaseScene(memory).begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    let next = again(scene)
    #expect(next.spend(.simple(), 3, id: id) == .known)
    #expect(next.spend(.simple(), 4, id: id) == .mismatch(item: 0, keyOffset: 0))
    #expect(next.spend(.simple("b"), 3, id: id) == .mismatch(item: nil, keyOffset: 0))
    next.begin(redis)
    #expect(next.spend(.simple(), 3, id: id).isReplayed)
  }

  @Test func aSecondCrashDuringTheRecoveryChangesNothing() {
    let scene = LeaseScene(memory).begin(redis)
    scene.spend(.simple(), 3)
    let second = again(scene)
    #expect(second.table.gauges.unsettledUnits == 3)
    let third = again(second, lessee: 3)
    #expect(third.table.region.predecessors == [1, 2])
    third.exchange(with: redis)
    #expect(redis.ledger["acme"] == 3)
    #expect(third.table.finishedPredecessors == [1, 2])
  }

  /// A process that dies over and over while Redis is away: each may hold something, and the oldest
  /// are let go only where there are very many.
  @Test func manyIncarnationsInARowAreRemembered() {
    var scene = LeaseScene(memory)
    for lessee in 2...UInt64(LeaseRegion.predecessorsMax + 1) {
      scene = again(scene, lessee: lessee)
    }
    let last = UInt64(LeaseRegion.predecessorsMax + 1)
    #expect(scene.table.region.predecessors == Array(1..<last))
    scene.table.region.closed(7)
    scene = again(scene, lessee: last + 1)
    #expect(scene.table.region.predecessors == (1...last).filter { $0 != 7 })
    scene = again(scene, lessee: last + 2)
    #expect(scene.table.region.predecessors == (2...last + 1).filter { $0 != 7 })
  }

  @Test func aCancelledOperationIsNotSettledAfterACrash() {
    let scene = LeaseScene(memory).begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    scene.spend(.simple(), 4)
    #expect(scene.cancel(.simple(), 3, id: id) == .cancelled)
    let next = again(scene)
    #expect(next.table.gauges.unsettledUnits == 4)
    #expect(next.cancel(.simple(), 3, id: id) == .already)
    #expect(next.spend(.simple(), 3, id: id) == .cancelled)
  }

  @Test func aCancelThatWasCutShortIsTakenUp() {
    let scene = LeaseScene(memory).begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    let before = (0..<32).map { memory.byte(at: slotOffset(1) + $0) }
    _ = scene.cancel(.simple(), 3, id: id)
    // The correction was written, and the operation not marked yet.
    for (index, byte) in before.enumerated() { memory.tear(at: slotOffset(1) + index, byte) }
    let next = again(scene)
    #expect(next.table.gauges.unsettledUnits == 0)
    #expect(next.cancel(.simple(), 3, id: id) == .already)
  }

  private func slotOffset(_ position: Int) -> Int {
    LeaseRegion.headerBytes + LeaseRegion.stripeHeaderBytes + (position & 255) * LeaseSlot.bytes
  }

  @Test func aTornLastSlotIsNotAnOperation() {
    let scene = LeaseScene(memory).begin(redis)
    scene.spend(.simple(), 3)
    scene.spend(.simple(), 4)
    for byte in 0..<32 {
      let old = memory.byte(at: slotOffset(2) + byte)
      memory.tear(at: slotOffset(2) + byte, ~old)
      #expect(again(scene).table.gauges.unsettledUnits == 3, "byte \(byte)")
      memory.tear(at: slotOffset(2) + byte, old)
    }
    #expect(again(scene).table.gauges.unsettledUnits == 7)
  }

  @Test func aSlotBehindTheWrittenHeadIsFound() {
    let scene = LeaseScene(memory).begin(redis)
    let stripe = LeaseRegion.headerBytes
    let head = (0..<8).map { memory.byte(at: stripe + $0) }
    scene.spend(.simple(), 3)
    for (index, byte) in head.enumerated() { memory.tear(at: stripe + index, byte) }
    #expect(again(scene).table.gauges.unsettledUnits == 3)
  }

  @Test func severalItemsAreRecoveredEach() throws {
    let scene = LeaseScene(memory)
    var shape = Shape.simple()
    shape.items = 6
    scene.begin(redis, shape)
    scene.spend(shape, 1, 2, 3, 4, 5, 6)
    scene.spend(shape, 1, 0, 0, 0, 0, 1)
    let next = again(scene)
    #expect(next.collect()?.deltas.map(\.amount) == [2, 2, 3, 4, 5, 7])
  }

  @Test func rubbleIsNotTakenForARegion() {
    let scene = LeaseScene(memory).begin(redis)
    scene.spend(.simple(), 3)
    memory.tear(at: 16, 0xFF)
    #expect(!memory.region(lessee: 2).isRecovered)
    #expect(again(scene).table.gauges.unsettledUnits == 0)
  }

  /// Pages reach the disk in any order: what a host that went down left says nothing for certain.
  @Test func whatAnEarlierStartOfTheHostWroteIsNotRead() {
    let scene = LeaseScene(memory).begin(redis)
    scene.spend(.simple(), 3)
    let same = memory.region(lessee: 2, host: 1)
    #expect(same.isRecovered && !same.isNotRead)
    let other = memory.region(lessee: 3, host: 2)
    #expect(!other.isRecovered && other.isNotRead && other.predecessors.isEmpty)
    let table = LeaseTable(LeaseConfiguration(), region: other, buckets: 1, begun: 0)
    #expect(table.gauges.unsettledUnits == 0 && table.gauges.recovering == 0)
    // Who does not know when the host started knows nothing of what was written before.
    #expect(memory.region(lessee: 4, host: 0).isNotRead)
    #expect(memory.region(lessee: 5, host: 0).isNotRead)
    // Of another format, and so.
    memory.tear(at: 8, 1)
    #expect(memory.region(lessee: 6, host: 0).isNotRead)
  }

  /// The log moves a definition while its batch is under way, behind the batch: then only `done` says
  /// what was settled, whatever of the three the log still has.
  @Test(arguments: [36, 44, 96], [0, 16, 32])
  func aDefinitionThatWasMovedUnderItsBatchIsNotSettledAgain(during: Int, later: Int) throws {
    let memory = LeaseMemory(
      LeaseGeometry(stripes: 1, slots: 512, logBytes: LeaseGeometry.logBytesMin))
    let redis = ModelRedis()
    redis.amounts = ["acme": 1_000]
    let scene = LeaseScene(memory, buckets: 2).begin(redis)
    scene.spend(.simple(), 3)
    var rounds = 0
    func pass(_ count: Int) {
      scene.bucket = 1
      for _ in 0..<count {
        // Its definition takes a hundredth of the log.
        rounds += 1
        let shape = Shape.simple("c\(rounds)", member: String(repeating: "m", count: 1_100))
        for cell in shape.cells { redis.amounts[cell] = 1_000 }
        scene.begin(redis, shape)
        #expect(scene.spend(shape, 1).isAllowed)
        scene.run(10, redis)
      }
      scene.run(1_000, redis, step: 100)
      scene.bucket = 0
    }
    pass(20)
    let slow = try #require(scene.collect())
    #expect(slow.deltas.map(\.amount) == [3])
    pass(during)
    scene.table.replied(slow.token, redis.exchange(slow), now: scene.monotonic)
    pass(later)
    #expect(!scene.isUnsettled)
    let next = again(scene, memory)
    #expect(next.table.gauges.unsettledUnits == 0 && next.table.gauges.recovering == 0)
  }

  /// The log wraps many times under a ring that wraps, too; at any moment a crash finds everything.
  @Test func aLogThatWrapsKeepsWhatIsNeeded() {
    let memory = LeaseMemory(
      LeaseGeometry(stripes: 1, slots: 512, logBytes: LeaseGeometry.logBytesMin))
    let redis = ModelRedis()
    var random = SeededRandom.fromEnvironment("aLogThatWrapsKeepsWhatIsNeeded")
    var scene = LeaseScene(memory)
    var lessee: UInt64 = 1
    var spent: Int64 = 0
    for account in 0..<40 { redis.amounts["c\(account)"] = 1 << 40 }
    for round in 0..<600 {
      let shape = Shape.simple("c\(Int.random(in: 0..<40, using: &random))")
      scene.begin(redis, shape)
      for _ in 0..<3 {
        let amount = Int64.random(in: 1...3, using: &random)
        if scene.spend(shape, amount).isAllowed { spent += amount }
      }
      if round % 3 == 0 { scene.run(10, redis) }
      if round % 50 == 49 {
        lessee += 1
        scene = LeaseScene(memory, lessee: lessee, now: scene.now, minted: UInt64(round) << 32)
      }
    }
    scene.run(100, redis)
    let counted = (0..<40).reduce(0) { $0 + (redis.ledger["c\($1)"] ?? 0) }
    #expect(counted == spent && spent > 1_000)
    #expect(redis.violations.isEmpty && !scene.isUnsettled)
  }

  // MARK: - Batches that stay open

  /// Only the ledger can say whether it was done, and the ledger is away.
  @Test func anOpenBatchStandsInTheWayFromHalfATurnOn() throws {
    let redis = ModelRedis()
    redis.amounts = ["acme": 1_000, "other": 1_000_000]
    let scene = LeaseScene().begin(redis)
    scene.begin(redis, .simple("other"), demand: 100_000)
    scene.spend(.simple(), 3)
    scene.pass(10)
    let open = try #require(scene.collect())
    /// How many of so many are let through.
    func others(_ count: Int) -> Int {
      (0..<count).count { number in
        let outcome = scene.spend(.simple("other"), 1)
        if number % 16 == 15 { scene.run(10, redis) }
        if case .allowed = outcome { return true }
        return false
      }
    }
    #expect(others(128) == 128)
    #expect(!scene.table.standsInTheWay(open.token))
    #expect(others(1) == 1)
    #expect(scene.table.standsInTheWay(open.token))
    // It is never forgotten: in the end there is no room for others.
    #expect(others(128) < 128)
    scene.table.lost(open.token)
    let again = try #require(scene.collect())
    scene.table.tooOld(again.token, wasDone: true, now: scene.monotonic)
    #expect(!scene.table.standsInTheWay(open.token))
    scene.pass(10)
    #expect(others(300) == 300)
  }

  @Test func manyOpenBatchesStandInTheWayBeforeTheLogIsFull() throws {
    let redis = ModelRedis()
    let scene = LeaseScene(LeaseMemory(LeaseScene.geometry(slots: 4096)))
    var open: [LeaseExchange.Token] = []
    while open.count < 1_000 {
      let shape = Shape.simple("a\(open.count)")
      redis.amounts["a\(open.count)"] = 1_000
      scene.begin(redis, shape)
      scene.spend(shape, 1)
      scene.pass(10)
      guard let exchange = scene.collect() else { break }
      #expect(exchange.deltas.count == 1)
      if let first = open.first, scene.table.standsInTheWay(first) { break }
      open.append(exchange.token)
    }
    #expect((10..<1_000).contains(open.count))
    let first = try #require(open.first)
    #expect(scene.table.standsInTheWay(first))
    scene.table.lost(first)
    let again = try #require(scene.collect())
    #expect(again.isRepeat)
    #expect(scene.table.tooOld(again.token, wasDone: true, now: scene.monotonic))
    #expect(!scene.table.standsInTheWay(open[1]))
  }

  /// The journal's other part: what operations mean. Where that is full of what is not settled, the
  /// rest is for Redis until something is, and nothing that was let through is lost by it.
  @Test func whereTheLogIsFullRedisDecides() {
    let scene = LeaseScene(
      LeaseMemory(LeaseScene.geometry(slots: 4_096, log: LeaseGeometry.logBytesMin)))
    let shapes = (0..<200).map { number in
      var shape = Shape.simple("a\(number)")
      shape.counted = (0..<10).map { "a\(number).\($0)" + String(repeating: "x", count: 200) }
      return shape
    }
    for shape in shapes {
      redis.amounts[shape.account] = 100
      scene.register(shape, amount: 100, demand: 10)
    }
    scene.exchange(with: redis)
    scene.table.heard(at: scene.monotonic)
    var outcomes: [LeaseOutcome] = []
    for shape in shapes { outcomes.append(scene.spend(shape, 1)) }
    let allowed = outcomes.count { $0.isAllowed }
    #expect(allowed > 20 && allowed < 180)
    #expect(outcomes.last == .miss(.logFull))
    // What holds it up is settled a tick later, and then there is room for more.
    scene.pass(20)
    scene.exchange(with: redis, settle: 3_000)
    scene.table.heard(at: scene.monotonic)
    #expect(scene.spend(shapes[199], 1).isAllowed)
    scene.run(200, redis)
    #expect(!scene.isUnsettled)
    #expect(shapes.reduce(0) { $0 + (redis.ledger[$1.account] ?? 0) } == Int64(allowed + 1))
  }
}
