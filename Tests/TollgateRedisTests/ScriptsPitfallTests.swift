// Lines of PITFALLS about time, names and reservations that the scripts alone can break, by number.

import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsPitfallTests {
  // MARK: - Reservations

  private static let tokens = Catalog.name("tokens")

  private static func rich() throws -> StoreRig {
    let rig = try StoreRig.ready()
    rig.useRich()
    return rig
  }

  /// Whoever held it is dead: when its time is over, the next to come gets all of it, though nobody
  /// swept meanwhile.
  @Test func pitfall09_leakedHoldsStarveNobodyWhenTheirTimeIsOver() throws {
    let rig = try Self.rich()
    let leaked = try (0..<2).map { _ in
      try rig.reserve("acme/ann", ("runs", 1), ("tokens", 10), ttl: 60_000)
    }
    func reason() throws -> Reason? {
      try rig.run(rig.transact("acme/bob", [("runs", 2), ("tokens", 20)])).answer.reason
    }
    #expect(try reason() == .concurrencyExceeded)
    try rig.advance(60_000 + HoldBounds.grace - 1)
    #expect(try reason() == .concurrencyExceeded)
    try rig.advance(1)
    // Told to expire them first: nothing is decided on what only seems to be held.
    let next = try rig.transact("acme/bob", [("runs", 2), ("tokens", 20)])
    #expect(try rig.run(next).answer == .holdsDue)
    #expect(try rig.run(rig.expire("acme/ann", leaked)) == .done(2))
    #expect(try rig.run(next).answer.reason == .allowed)
    #expect(try rig.counters("acme").cells.values.allSatisfy { $0.held == 0 })
    // Nothing of what leaked is billed: only bob's tokens, and what they cost.
    #expect(try rig.outbox().map(\.id.operation) == [next.operation, next.operation])
  }

  /// A stream tells what it used as it goes; when it is cut, that is billed, and what it told last
  /// even after its reservation is over.
  @Test func pitfall16_whatACutStreamToldIsBilled() throws {
    let rig = try Self.rich()
    let cut = try rig.reserve("acme/ann", ("tokens", 20), ttl: 60_000)
    func settle(_ amount: Int64, isFinal: Bool) throws -> Reason? {
      let used = [Item(feature: Self.tokens, amount: amount)]
      return try rig.run(
        rig.step(.settle(used, isFinal: isFinal), "acme/ann", cut, plan: StoreRig.start)
      ).answer.reason
    }
    #expect(try settle(4, isFinal: false) == .settled)
    #expect(try settle(5, isFinal: false) == .settled)
    try rig.advance(60_000 + HoldBounds.grace)
    #expect(try rig.run(rig.expire("acme/ann", [cut])) == .done(1))
    #expect(try settle(2, isFinal: true) == .settledLate)
    let told = try rig.outbox().filter { $0.body.count > 0 }.map {
      (feature: try UsageBody.decode($0.body).feature, charged: $0.charged)
    }
    #expect(told.filter { $0.feature == Self.tokens }.map(\.charged) == [4, 5, 2])
    // At 3 for 2, rounded down over all of them.
    let spend = told.filter { $0.feature == Catalog.name("spend") }.map(\.charged)
    #expect(spend == [6, 7, 3])
    #expect(try rig.settled("acme/ann", "tokens", .hour) == 11)
  }

  /// 30 tokens cost 45; 10 are included and 20 may come on top. The other 15 are absorbed, and said.
  @Test func pitfall19_aSettleAboveTheCapRecordsWhatWasUsed() throws {
    let rig = try Self.rich()
    let included = Credit.Included(amount: 10, every: .month, priority: 100)
    rig.global.catalog.plans[Catalog.name("pro")]?.entitlements[Catalog.name("spend")] = [
      Catalog.limit("included", .credit(Credit(included: included, allowsOverage: true))),
      Catalog.limit("cap", .spendCap(amount: 20, window: .month)),
    ]
    let hold = try rig.reserve("acme/ann", ("tokens", 20))
    let call = try rig.step(
      .settle([Item(feature: Self.tokens, amount: 30)], isFinal: true), "acme/ann", hold,
      plan: StoreRig.start)
    let settled = try #require(try rig.run(call).answer.decided)
    #expect(settled.decision.reason == .settledClamped)
    let spend = try #require(
      try rig.outbox().first {
        try UsageBody.decode($0.body).feature == Catalog.name("spend")
      })
    #expect(spend.actual == 45 && spend.charged == 30 && spend.absorbed == 15)
    #expect(try rig.settled("acme", "spend", .month) == 30)
    // The same when it is asked again.
    let again = try #require(try rig.run(call).answer.replayed)
    #expect(again.decision.settlements == settled.decision.settlements)
  }

  // MARK: - Time

  /// INCR and EXPIRE are one script here: no moment at which a key without an end can be left.
  @Test func pitfall29_everyKeyThatEndsHasItsEndFromTheCallThatMadeIt() throws {
    let rig = try StoreRig.ready()
    let lasting = Set(try rig.redis.command("KEYS", "*").strings)
    #expect(try rig.consume("acme/ann", ("chat", 1)).reason == .allowed)
    let made = try rig.redis.command("KEYS", "*").strings.filter { !lasting.contains($0) }
    #expect(made.contains(rig.keySpace.subject(0, try Subject("acme/ann"))))
    for key in made where key != rig.keySpace.outbox(0) {
      #expect(try rig.redis.command("PEXPIRETIME", key).integer ?? 0 > 0, "\(key)")
    }
  }

  /// Milliseconds where seconds are meant would keep a key for fifty thousand years, and the other
  /// way round would end it at once.
  @Test func pitfall29_anEndIsInMilliseconds() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 1))
    let late = rig.now.milliseconds + 40 * 86_400_000
    for key in try rig.redis.command("KEYS", "*").strings {
      let end = try rig.redis.command("PEXPIRETIME", key).integer ?? 0
      #expect(end == -1 || (rig.now.milliseconds...late).contains(end), "\(key) ends at \(end)")
    }
  }

  /// A counter named after its hour would find yesterday's.
  @Test func pitfall29_theSameHourOfTomorrowIsAnother() throws {
    let rig = try StoreRig.ready()
    #expect(try rig.consume("acme/ann", ("chat", 6)).reason == .allowed)
    #expect(try rig.consume("acme/ann", ("chat", 1)).reason == .quotaExceeded)
    try rig.advance(86_400_000)
    #expect(try rig.consume("acme/ann", ("chat", 6)).reason == .allowed)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 6)
  }

  /// A month of 31, 30, 29 and 28 days: full to its last millisecond, empty at the first of the
  /// next.
  @Test(arguments: ["2071-01", "2071-04", "2072-02", "2071-02", "2071-12"])
  func pitfall30_aMonthIsAsLongAsItIs(_ text: String) throws {
    let parts = text.split(separator: "-").compactMap { Int(String($0)) }
    let first = try #require(WallTime(year: parts[0], month: parts[1]))
    let month = Window.month.period(containing: first)
    #expect(month.start == first)
    let rig = try StoreRig.ready()
    try rig.setNow(month.start)
    #expect(try rig.consume("acme", ("tokens", 1000)).reason == .allowed)
    try rig.setNow(month.end + (-1))
    let last = try #require(try rig.consume("acme", ("tokens", 1)).decided).decision
    #expect(last.reason == .quotaExceeded && last.retryAfter == 1)
    try rig.setNow(month.end)
    #expect(try rig.consume("acme", ("tokens", 1000)).reason == .allowed)
  }
}

extension WallTime {
  /// Midnight, UTC, of the first of a month, by counting the days since 1970.
  fileprivate init?(year: Int, month: Int) {
    var days = 0
    for past in 1970..<year { days += Self.isLeap(past) ? 366 : 365 }
    let lengths = [31, Self.isLeap(year) ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    guard (1...12).contains(month) else { return nil }
    days += lengths.prefix(month - 1).reduce(0, +)
    self.init(milliseconds: Int64(days) * 86_400_000)
  }

  private static func isLeap(_ year: Int) -> Bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
  }
}
