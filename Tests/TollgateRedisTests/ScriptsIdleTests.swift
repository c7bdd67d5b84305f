// Deeper subjects are made on the fly and gone when idle: one that counts without an end is kept for
// 30 days after the day of its last count, and one that only held something leaves nothing.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsIdleTests {
  static let day: Int64 = 86_400_000
  static let tokens = Catalog.name("tokens")

  /// tokens: 100 a lifetime of each member.
  static func catalog(_ base: Catalog) -> Catalog {
    var catalog = base
    catalog.plans[Catalog.name("pro")]?.entitlements[tokens] = [
      Catalog.limit("tokens.life", .quota(amount: 100, window: .lifetime), level: 2)
    ]
    return catalog
  }

  static func rig(rich: Bool = false) throws -> StoreRig {
    try StoreRig.ready(catalog: catalog(rich ? .rich : .example))
  }

  /// The end of the 30th day after today.
  static func end(_ rig: StoreRig) -> Int64 {
    rig.now.milliseconds / day * day + 31 * day
  }

  /// When the subject's hash goes: by Redis, by its own word and by the index, which agree.
  static func life(_ rig: StoreRig, _ path: String) throws -> Int64? {
    let key = rig.keySpace.subject(0, try Subject(path))
    let index = rig.keySpace.index(0, account: try Subject("acme"))
    let life = try rig.redis.command("PEXPIRETIME", key).integer
    let word = try rig.redis.command("HGET", key, "x").string.flatMap { Int64($0) }
    let score = try rig.redis.command("ZSCORE", index, path).string.flatMap { Double($0) }
    #expect(word == score.map { Int64($0) })
    #expect(life == word || (life == -2 && word == nil))
    #expect(try rig.redis.command("PEXPIRETIME", index).integer ?? 0 >= life ?? 0)
    return word
  }

  @Test(arguments: [false, true])
  func aLifetimeOfAMemberEndsThirtyDaysAfterItsLastDay(rich: Bool) throws {
    let rig = try Self.rig(rich: rich)
    func count() throws {
      if rich {
        #expect(
          try rig.run(rig.transact("acme/ann", [("tokens", 1)])).answer.decided?.decision.reason
            == .allowed)
      } else {
        #expect(try rig.consume("acme/ann", ("tokens", 1)).reason == .allowed)
      }
    }
    try count()
    let first = Self.end(rig)
    #expect(try Self.life(rig, "acme/ann") == first)
    // The account's own counters stay.
    let header = rig.keySpace.subject(0, try Subject("acme"))
    #expect(try rig.redis.command("PEXPIRETIME", header).integer == -1)
    // Once a day is enough.
    try rig.setNow(WallTime(milliseconds: first - 30 * Self.day - 1))
    try count()
    #expect(try Self.life(rig, "acme/ann") == first)
    try rig.advance(1)
    try count()
    #expect(try Self.life(rig, "acme/ann") == first + Self.day)
    #expect(try rig.settled("acme/ann", "tokens", .lifetime) == 3)
  }

  /// On Redis's own clock, which drops the key.
  @Test func whoWasIdleForLongerBeginsAnew() throws {
    let rig = try StoreRig(catalog: Self.catalog(.example))
    let seconds = try #require(try rig.redis.command("TIME").strings.first.flatMap { Int64($0) })
    let now = WallTime(milliseconds: seconds * 1000)
    try rig.setNow(now + -32 * Self.day)
    try rig.open()
    try rig.seed()
    #expect(try rig.consume("acme/ann", ("tokens", 100)).reason == .allowed)
    #expect(try Self.life(rig, "acme/ann") == nil)
    try rig.setNow(now)
    #expect(try rig.consume("acme/ann", ("tokens", 100)).reason == .allowed)
    #expect(try rig.consume("acme/ann", ("tokens", 1)).reason == .quotaExceeded)
  }

  @Test func allThatCountsThereGivesTheSameLife() throws {
    let rig = try Self.rig()
    _ = try rig.run(try ScriptsRepostTests.late(rig, "acme/bob", "tokens", 5).call)
    #expect(try Self.life(rig, "acme/bob") == Self.end(rig))
    _ = try rig.run(try Scenario.reset(rig, "acme/cid", "tokens", .lifetime))
    #expect(try Self.life(rig, "acme/cid") == Self.end(rig))
    // A loss does not make it live for ever either.
    try rig.open(epoch: 2, hadPredecessor: true)
    try rig.seed(cells: [
      SeedCell(
        subject: try Subject("acme/eve"), feature: Self.tokens, window: .lifetime,
        period: Window.lifetime.period(containing: rig.now), settled: 7)
    ])
    #expect(try rig.settled("acme/eve", "tokens", .lifetime) == 7)
    #expect(try Self.life(rig, "acme/eve") == Self.end(rig))
  }

  @Test func aHoldThatIsExtendedKeepsWhatItIsCountedIn() throws {
    let rig = try Self.rig(rich: true)
    let hold = try rig.reserve("acme/ann", ("tokens", 3), ttl: Self.day)
    for _ in 0..<40 {
      try rig.advance(Self.day - 1)
      _ = try rig.run(rig.step(.extend(ttlMilliseconds: Self.day), "acme/ann", hold))
    }
    #expect(try Self.life(rig, "acme/ann") == Self.end(rig))
  }

  // MARK: - What only held

  @Test func anEndedReservationOfWhichNothingWasUsedLeavesNothing() throws {
    let rig = try Self.rig(rich: true)
    let holds = try [
      rig.reserve("acme/ann", ("tokens", 3)), rig.reserve("acme/ann", ("tokens", 0)),
      rig.reserve("acme/bob", ("tokens", 3)), rig.reserve("acme/cid", ("tokens", 0)),
    ]
    #expect(try Self.life(rig, "acme/ann") != nil)
    // Nothing is counted of it in the first place.
    #expect(try Self.life(rig, "acme/cid") == nil)
    try rig.advance(70_000)
    _ = try rig.run(rig.expire("acme/ann", [holds[1]]))
    #expect(try Self.life(rig, "acme/ann") != nil)
    _ = try rig.run(rig.expire("acme/ann", [holds[0]]))
    #expect(try Self.life(rig, "acme/ann") == nil)
    _ = try rig.run(rig.expire("acme/bob", [holds[2]]))
    let index = rig.keySpace.index(0, account: try Subject("acme"))
    #expect(try rig.redis.command("EXISTS", index).integer == 0)
    // What was used of it after all is counted when it becomes known.
    _ = try rig.run(rig.expire("acme/cid", [holds[3]]))
    let late = try rig.step(
      .settle([Item(feature: Self.tokens, amount: 2)], isFinal: true), "acme/ann", holds[0],
      plan: StoreRig.start)
    #expect(try rig.run(late).answer.decided?.decision.reason == .settledLate)
    #expect(try rig.settled("acme/ann", "tokens", .lifetime) == 2)
  }

  /// Found by the oracle of leases, seed 16179687049522911189: nothing is lost with such a subject.
  @Test func anEndedLeaseOfWhichNothingWasUsedLeavesNothing() throws {
    let rig = try Self.rig()
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme/ann", "tokens", target: 40))
    try rig.advance(one.ttl + LeaseRules.graceMilliseconds)
    #expect(try rig.endLeases().ended == 1)
    // In doubt half of it may have been used.
    #expect(try rig.cell("acme/ann", "tokens", .lifetime)?.held == 20)
    #expect(try rig.endLeases(releases: [one.id]).released == 1)
    #expect(try Self.life(rig, "acme/ann") == nil)
    // What was used of it after all is counted when it becomes known, and limits see it.
    _ = try rig.run(one.exchange(rig, "acme/ann", "tokens", settle: 7))
    #expect(try rig.settled("acme/ann", "tokens", .lifetime) == 7)
    var two = TestLessee(2)
    _ = try rig.run(two.exchange(rig, "acme/ann", "tokens", target: 90))
    #expect(try rig.leftOfAll("acme/ann", "tokens|L") == 46)
  }

  @Test func anEndedLeaseBesideWhatIsCountedLeavesThat() throws {
    let rig = try Self.rig()
    var one = TestLessee(1)
    var two = TestLessee(2)
    _ = try rig.run(two.exchange(rig, "acme/bob", "tokens", target: 40))
    _ = try rig.run(one.exchange(rig, "acme/bob", "tokens", target: 10))
    _ = try rig.run(one.exchange(rig, "acme/ann", "tokens", settle: 1, target: 10))
    try rig.advance(one.ttl + LeaseRules.graceMilliseconds)
    #expect(try rig.endLeases().ended == 2)
    #expect(try rig.endLeases(releases: [one.id]).released == 1)
    #expect(try rig.settled("acme/ann", "tokens", .lifetime) == 1)
    // The doubt of another holds it still.
    #expect(try rig.cell("acme/bob", "tokens", .lifetime)?.held == 20)
  }

  /// Found by the oracle of leases, seed 14003888124843332797.
  @Test func aSubjectThatWasGoneComesBackWithWhatIsCountedNext() throws {
    let rig = try StoreRig.leased()
    let chat = Catalog.name("chat")
    rig.global.catalog.plans[Catalog.name("pro")]?.entitlements[chat] = [
      Catalog.limit("chat.member", .quota(amount: 100, window: .lifetime), level: 2)
    ]
    rig.global.catalog.plans[Catalog.name("pro")]?.entitlements[Self.tokens] = [
      Catalog.limit("tokens.rate", .rate(amount: 9, periodMilliseconds: 1000, burst: 9), level: 2)
    ]
    var one = TestLessee(1)
    func comesAndGoes() throws {
      _ = try rig.run(one.exchange(rig, "acme/ann", "chat", target: 40))
      #expect(try rig.leftOfAll("acme/ann", "chat|L") == 40)
      try rig.advance(one.ttl + LeaseRules.graceMilliseconds)
      #expect(try rig.endLeases().ended == 1)
      #expect(try rig.endLeases(releases: [one.id]).released == 1)
    }
    try comesAndGoes()
    #expect(try Self.life(rig, "acme/ann") == nil)
    #expect(try rig.consume("acme/ann", ("tokens", 9)).reason == .allowed)
    let back = try rig.counters("acme/ann")
    #expect(back.cells.isEmpty)
    #expect(back.rates.count == 1)
    // With a rate in it the subject does not go a second time, and what was drawn stays.
    try comesAndGoes()
    #expect(try rig.counters("acme/ann").rates == back.rates)
    #expect(try rig.cell("acme/ann", "chat", .lifetime)?.held == 0)
    _ = try rig.run(one.exchange(rig, "acme/ann", "chat", settle: 7))
    #expect(try rig.settled("acme/ann", "chat", .lifetime) == 7)
  }

  @Test func whatWasUsedOrIsCountedBesideStays() throws {
    let rig = try Self.rig(rich: true)
    let used = try rig.reserve("acme/ann", ("tokens", 3))
    _ = try rig.run(
      rig.step(.settle([Item(feature: Self.tokens, amount: 1)], isFinal: true), "acme/ann", used))
    #expect(try rig.settled("acme/ann", "tokens", .lifetime) == 1)
    // A field that the release does not look at is no less there.
    let beside = try rig.reserve("acme/bob", ("tokens", 3))
    let key = rig.keySpace.subject(0, try Subject("acme/bob"))
    try rig.redis.command("HSET", key, "other~rate", "1")
    _ = try rig.run(rig.step(.release, "acme/bob", beside))
    #expect(try rig.redis.command("HGET", key, "other~rate").string == "1")
  }
}
