// Deltas whose counters got different amounts: units burnt from grants, overage, priced and owed
// units. Whatever appends, takes back or seeds one moves each counter by its own amount.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsPartsTests {
  static let tokens = Catalog.name("tokens")
  static let monthly = Window.grant(Catalog.name("monthly"))
  static let promo = Window.grant(Catalog.name("promo"))
  static let over = Window.overage(.month)
  static let rate = Window.priced(by: Catalog.name("small"), from: WallTime(milliseconds: 0))
  static let forever = Period(
    start: WallTime(milliseconds: 0), end: WallTime(milliseconds: Quantity.maximum))

  private static func month(_ rig: StoreRig, ago: Int = 0) -> Period {
    var period = Window.month.period(containing: rig.now)
    for _ in 0..<ago { period = Window.month.period(containing: period.start + -1) }
    return period
  }

  private static func part(
    _ window: Window, _ amount: Int64, _ period: Period, level: Int = 1
  ) -> CountedPart {
    CountedPart(level: level, window: window, period: period, amount: amount)
  }

  /// 100 units of acme/ann: 60 of the monthly grant, 10 of a promotional one, 30 beyond them, of
  /// which a cap of hers counts too; all of them priced, 5 of what was owed paid.
  private static func body(_ rig: StoreRig, sign: Int64 = 1) throws -> UsageBody {
    let month = month(rig)
    return UsageBody(
      subject: try Subject("acme/ann"), feature: tokens, period: month,
      cells: [CellReference(level: 1, window: .month, period: month)], catalogVersion: 1,
      source: .redis,
      parts: [
        part(monthly, 60 * sign, month), part(promo, 15 * sign, forever),
        part(over, 30 * sign, month), part(over, 30 * sign, month, level: 2),
        part(rate, 100 * sign, month), part(.deficit, -5 * sign, forever),
      ])
  }

  private static func late(
    _ rig: StoreRig, _ kind: DeltaKind = .usage, index: UInt16 = 0, sign: Int64 = 1,
    beginnings: [Int: RepostCall.Beginning] = [:]
  ) throws -> RepostCall {
    let body = try body(rig, sign: sign)
    let entry = OutboxEntry(
      sequence: 0, kind: kind,
      id: DeltaID(operation: OperationID(time: rig.now, using: &rig.random), index: index),
      time: rig.now, actual: 100 * sign, charged: 100 * sign, absorbed: 0,
      body: Array("rich".utf8))
    return RepostCall(
      keySpace: rig.keySpace, fence: rig.fence, entry: entry, subject: body.subject,
      feature: body.feature, counts: body.counts(charged: entry.charged), beginnings: beginnings)
  }

  private func cell(
    _ rig: StoreRig, _ window: Window, _ subject: String = "acme"
  ) throws -> CounterCell? {
    try rig.counters(subject).cell(feature: Self.tokens, window: window)
  }

  /// Settled of every counter that the delta names.
  private func sums(_ rig: StoreRig) throws -> [Int64] {
    try [
      (Window.month, "acme"), (Self.monthly, "acme"), (Self.promo, "acme"), (Self.over, "acme"),
      (Self.over, "acme/ann"), (Self.rate, "acme"), (.deficit, "acme"),
    ].map { try cell(rig, $0.0, $0.1)?.settled ?? 0 }
  }

  private static let once: [Int64] = [100, 60, 15, 30, 30, 100, -5]

  // MARK: - Appended anew, and taken back

  @Test func whatIsAppendedAnewMovesEachCounterByItsOwnAmount() throws {
    let rig = try StoreRig.ready()
    #expect(try rig.run(try Self.late(rig)) == .done(.appended(sequence: 1)))
    #expect(try sums(rig) == Self.once)
    _ = try rig.run(try Self.late(rig))
    #expect(try sums(rig) == Self.once.map { $0 * 2 })
  }

  @Test func aDuplicateIsTakenBackFromEachCounterByItsOwnAmount() throws {
    let rig = try StoreRig.ready()
    let late = try Self.late(rig)
    for _ in 0..<2 { _ = try rig.run(late) }
    let reverse = ReverseCall(
      keySpace: rig.keySpace, fence: rig.fence,
      position: StreamPosition(epoch: 1, sequence: 2), subject: late.subject,
      feature: late.feature, counts: late.counts)
    #expect(try rig.run(reverse) == .done(.reversed))
    #expect(try sums(rig) == Self.once)
    #expect(try rig.run(reverse) == .done(.nothing))
    #expect(try sums(rig) == Self.once)
  }

  @Test(arguments: [DeltaKind.refund, .adjustment, .reversal])
  func whatIsGivenBackAnewTakesEachCounterBack(_ kind: DeltaKind) throws {
    let rig = try StoreRig.ready()
    for _ in 0..<2 { _ = try rig.run(try Self.late(rig)) }
    let back = try Self.late(rig, kind, index: 64, sign: -1)
    for sequence: Int64 in [3, 4] {
      #expect(try rig.run(back) == .done(.appended(sequence: sequence)))
    }
    #expect(try sums(rig) == Self.once.map { _ in 0 })
    #expect(try rig.outbox().map(\.kind) == [.usage, .usage, kind, kind])
    #expect(try rig.outbox().last?.charged == -100)
    // The ledger had it: its effect goes, and the units are used again.
    let reverse = ReverseCall(
      keySpace: rig.keySpace, fence: rig.fence,
      position: StreamPosition(epoch: 1, sequence: 4), subject: back.subject,
      feature: back.feature, counts: back.counts)
    #expect(try rig.run(reverse) == .done(.reversed))
    #expect(try sums(rig) == Self.once)
  }

  // MARK: - What came over into a grant

  private static func beginning(
    _ rig: StoreRig, amount: Int64 = 100, min: Int64 = 0, max: Int64 = 50
  ) -> RepostCall.Beginning {
    RepostCall.Beginning(
      amount: amount, rollover: Rollover(min: min, max: max), before: month(rig, ago: 1).start)
  }

  /// In `counts`: the cell, then the parts.
  private static let monthlyPlace = 1

  @Test func theFirstToCountInAnInstanceNotesWhatCameOver() throws {
    // Burnt in the instance before, what had come over into that one, and what comes over.
    for (burnt, had, carried): (Int64?, Int64, Int64) in [
      (70, 0, 30), (70, 15, 45), (20, 0, 50), (100, 0, 0), (160, 50, 0), (nil, 0, 50),
    ] {
      let rig = try StoreRig.ready()
      try rig.open(epoch: 2, hadPredecessor: true)
      let before = Self.month(rig, ago: 1)
      try rig.seed(
        cells: burnt.map {
          [
            SeedCell(
              subject: try Subject("acme"), feature: Self.tokens, window: Self.monthly,
              period: before, settled: $0, forgiven: had)
          ]
        } ?? [])
      let late = try Self.late(rig, beginnings: [Self.monthlyPlace: Self.beginning(rig)])
      #expect(try rig.run(late) == .done(.appended(sequence: 1)))
      let found = try #require(try cell(rig, Self.monthly))
      #expect(found.settled == 60 && found.forgiven == carried, "\(burnt ?? -1) burnt")
      #expect(found.previousSettled == burnt ?? 0)
      // Whoever comes next finds it noted.
      _ = try rig.run(try Self.late(rig, beginnings: [Self.monthlyPlace: Self.beginning(rig)]))
      #expect(try cell(rig, Self.monthly)?.forgiven == carried)
    }
  }

  @Test func aGrantThatIsNotInForceAnyMoreGetsNothingOver() throws {
    let rig = try StoreRig.ready()
    _ = try rig.run(try Self.late(rig))
    #expect(try cell(rig, Self.monthly)?.forgiven == 0)
  }

  /// In the place where other counters hold what was forgiven, of which there is never more than
  /// was counted.
  @Test func whatCameOverIsNotTakenForForgiven() throws {
    let rig = try StoreRig.ready()
    let late = try Self.late(rig, beginnings: [Self.monthlyPlace: Self.beginning(rig)])
    for _ in 0..<2 { _ = try rig.run(late) }
    #expect(try cell(rig, Self.monthly)?.forgiven == 50)
    for (sequence, reversal): (Int64, ReverseCall) in [
      (
        2,
        ReverseCall(
          keySpace: rig.keySpace, fence: rig.fence,
          position: StreamPosition(epoch: 1, sequence: 2), subject: late.subject,
          feature: late.feature, counts: late.counts)
      )
    ] {
      #expect(sequence == 2)
      #expect(try rig.run(reversal) == .done(.reversed))
    }
    _ = try rig.run(try Self.late(rig, .refund, index: 3, sign: -1))
    let found = try #require(try cell(rig, Self.monthly))
    #expect(found.settled == 0 && found.forgiven == 50)
  }

  @Test func nothingIsForgivenOfAGrant() throws {
    let rig = try StoreRig.ready()
    _ = try rig.run(try Self.late(rig, beginnings: [Self.monthlyPlace: Self.beginning(rig)]))
    let before = try rig.dump()
    let reset = ResetCall(
      keySpace: rig.keySpace, fence: rig.fence, change: rig.newChange(),
      subject: try Subject("acme"), feature: Self.tokens,
      target: .cell(Self.monthly, Self.month(rig), value: 0), body: [1], outboxEntriesMax: 100)
    guard case .error = try rig.run(reset) else {
      Issue.record("a grant was reset")
      return
    }
    #expect(try rig.dump() == before)
  }

  // MARK: - Seeds

  private func seed(_ rig: StoreRig, _ cells: [SeedCell], isLossy: Bool) throws {
    for call in SeedCall.chunks(
      keySpace: rig.keySpace, fence: rig.fence, account: try Subject("acme"), cells: cells,
      accountVersion: rig.account.version, accountConfig: "{}", isLossy: isLossy)
    {
      #expect(try rig.run(call) == .done(.seeded))
    }
  }

  @Test func aSeedBringsEveryKindOfCounter() throws {
    let rig = try StoreRig.ready()
    try rig.open(epoch: 2, hadPredecessor: true)
    let (month, before) = (Self.month(rig), Self.month(rig, ago: 1))
    let counts = try Self.body(rig).counts(charged: 100)
    let subject = try Subject("acme/ann")
    try seed(
      rig,
      counts.map {
        let isMonthly = $0.window == Self.monthly
        return SeedCell(
          subject: subject.prefix($0.level), feature: Self.tokens, window: $0.window,
          period: $0.period, settled: $0.amount, forgiven: isMonthly ? 40 : 0,
          previousStart: isMonthly ? before.start : nil, previousSettled: isMonthly ? 60 : 0)
      }, isLossy: false)
    #expect(try sums(rig) == Self.once)
    let found = try #require(try cell(rig, Self.monthly))
    #expect(found.start == month.start && found.forgiven == 40)
    #expect(found.previousStart == before.start && found.previousSettled == 60)
  }

  /// Under a ledger that lost entries Redis' own word of what came over may be the smaller.
  @Test func whereEntriesWereLostTheLesserCameOver() throws {
    for (kept, told, expected): (Int64, Int64, Int64) in [(20, 40, 20), (40, 20, 20), (30, 0, 0)] {
      let rig = try StoreRig.ready()
      try rig.open(epoch: 2, hadPredecessor: true)
      func cell(_ settled: Int64, _ carried: Int64) throws -> SeedCell {
        SeedCell(
          subject: try Subject("acme"), feature: Self.tokens, window: Self.monthly,
          period: Self.month(rig), settled: settled, forgiven: carried)
      }
      try seed(rig, [try cell(50, kept)], isLossy: false)
      try rig.open(epoch: 3, hadPredecessor: true)
      try seed(rig, [try cell(10, told)], isLossy: true)
      let found = try #require(try self.cell(rig, Self.monthly))
      #expect(found.settled == 50 && found.forgiven == expected)
      // What the ledger does not name at all is kept as it is.
      try rig.open(epoch: 4, hadPredecessor: true)
      try seed(rig, [], isLossy: true)
      #expect(try self.cell(rig, Self.monthly)?.forgiven == expected)
    }
  }

  // MARK: - Sliding limits of members

  /// A week is looked at until the next one is over, so the member's hash must live as long.
  @Test func aMembersCountersLiveAsLongAsASlidingLimitLooksAtThem() throws {
    let week = LimitKind.slidingMillisecondsMax
    var catalog = Catalog.example
    catalog.plans[Catalog.name("pro")]?.entitlements[Self.tokens] = [
      Catalog.limit(
        "tokens.smooth", .sliding(amount: 100, lengthMilliseconds: week), level: 2)
    ]
    let rig = try StoreRig.ready(catalog: catalog)
    #expect(try rig.consume("acme/ann", ("tokens", 5)).reason == .allowed)
    let period = Window.seconds(week / 1000).period(containing: rig.now)
    let end = period.end.milliseconds + week + 86_400_000
    let key = rig.keySpace.subject(0, try Subject("acme/ann"))
    #expect(try rig.redis.command("PEXPIRETIME", key).integer == end)
    // The same of a delta that is appended anew, and of a seed.
    _ = try rig.run(try ScriptsRepostTests.late(rig, "acme/bob", "tokens", 5).call)
    let other = rig.keySpace.subject(0, try Subject("acme/bob"))
    #expect(try rig.redis.command("PEXPIRETIME", other).integer == end)
    try rig.open(epoch: 2, hadPredecessor: true)
    try seed(
      rig,
      [
        SeedCell(
          subject: try Subject("acme/eve"), feature: Self.tokens, window: .seconds(week / 1000),
          period: period, settled: 3)
      ], isLossy: false)
    let third = rig.keySpace.subject(0, try Subject("acme/eve"))
    #expect(try rig.redis.command("PEXPIRETIME", third).integer == end)
  }
}
