// From the ledger's balances to the counters that Redis is seeded with: every kind of counter, and
// what came over into the instances of a grant, which no balance says.

import Testing
import TollgateCore
import TollgateRedis
import TollgateTesting
import TollgateWire

@testable import TollgateServer

@Suite(.blocking) struct SeedPartsTests {
  static let feature = constant("tokens")
  static let grant = Window.grant(constant("monthly"))

  static func constant(_ text: String) -> Name {
    do { return try Name(text) } catch { preconditionFailure("\(error)") }
  }

  private static let now = WallTime(milliseconds: 1_795_000_000_000)

  private static func month(ago: Int) -> Period {
    var period = Window.month.period(containing: now)
    for _ in 0..<ago { period = Window.month.period(containing: period.start + -1) }
    return period
  }

  /// 100 a month since long ago, of which at most 50 go over.
  private static func grants(
    effective: WallTime = WallTime(milliseconds: 0), rollover: Rollover = Rollover(min: 0, max: 50)
  ) throws -> GrantInstances {
    var config = AccountConfig(version: 1)
    config.plan = constant("pro")
    config.grants = [
      Grant(
        id: constant("monthly"), feature: feature, amount: 100, effective: effective,
        created: effective, every: .month, rollover: rollover)
    ]
    let catalog = Catalog(
      levels: [constant("account")], unknownAccount: .deny,
      features: [
        feature: Feature(name: feature, metered: true, importance: .volume, unit: "token")
      ],
      plans: [
        constant("pro"): Plan(
          name: constant("pro"),
          entitlements: [
            feature: [
              Limit(
                id: constant("tokens.credit"),
                kind: .credit(Credit(included: nil, allowsOverage: false)), level: 1,
                enforcement: .hard, failurePolicy: .closed)
            ]
          ])
      ])
    return GrantInstances(
      account: try Subject("acme"), config: config,
      global: GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: []), now: now)
  }

  private static func balance(
    ago: Int, _ settled: Int64, _ window: Window = grant
  ) throws -> BalancesReply.Balance {
    BalancesReply.Balance(
      subject: try Subject("acme"), feature: feature, window: window, period: month(ago: ago),
      settled: settled)
  }

  private static func cell(_ balances: [BalancesReply.Balance]) throws -> SeedCell {
    let cells = SeedCell.cells(balances, try grants())
    #expect(cells.count == 1)
    return try #require(cells.first)
  }

  @Test func whatCameOverIsWorkedOutFromTheInstanceBefore() throws {
    let cell = try Self.cell([try Self.balance(ago: 0, 30), try Self.balance(ago: 1, 80)])
    #expect(cell.period == Self.month(ago: 0) && cell.settled == 30)
    #expect(cell.previousStart == Self.month(ago: 1).start && cell.previousSettled == 80)
    // Into the one before came 50, from one that nobody touched.
    #expect(cell.forgiven == 50)
  }

  @Test func whatCameOverIntoThatOneCountsToo() throws {
    let cell = try Self.cell([
      try Self.balance(ago: 0, 1), try Self.balance(ago: 1, 110), try Self.balance(ago: 2, 130),
    ])
    // 100 + 50 − 130 = 20 came over into the last month, of which 120 − 110 = 10 were left.
    #expect(cell.forgiven == 10)
  }

  /// The current instance is untouched: its counter is made by whoever counts first, from this.
  @Test func anInstanceThatIsOverIsSeededWithWhatHadComeOverIntoIt() throws {
    let cell = try Self.cell([try Self.balance(ago: 1, 80), try Self.balance(ago: 2, 130)])
    #expect(cell.period == Self.month(ago: 1) && cell.settled == 80)
    #expect(cell.forgiven == 20)
  }

  @Test func beyondAFullAnswerNothingIsTakenForUntouched() throws {
    let instances = try (0..<BalancesReply.grantInstances).map { try Self.balance(ago: $0, 100) }
    // Were the oldest taken for one into which 50 came over, each would hand 50 on.
    #expect(try Self.cell(instances).forgiven == 0)
    // One less is all there is: before it nobody burnt anything.
    #expect(try Self.cell(Array(instances.dropLast())).forgiven == 50)
  }

  @Test func nothingComesOverIntoTheFirstInstance() throws {
    let grants = try Self.grants(effective: Self.month(ago: 0).start + 5000)
    let cells = SeedCell.cells([try Self.balance(ago: 0, 30)], grants)
    #expect(cells.map(\.forgiven) == [0])
  }

  @Test func withoutTheGrantNothingComesOver() throws {
    let cells = SeedCell.cells(
      [try Self.balance(ago: 0, 30), try Self.balance(ago: 1, 10)], nil)
    #expect(cells.map(\.forgiven) == [0])
  }

  @Test func everyKindOfCounterIsSeeded() throws {
    let windows: [Window] = [
      .month, .overage(.month), .priced(by: Self.constant("small"), from: Self.now), .deficit,
    ]
    let cells = SeedCell.cells(
      try windows.map { try Self.balance(ago: 0, 7, $0) }
        + [try Self.balance(ago: 0, 0, .inFlight)], try Self.grants())
    #expect(Set(cells.map(\.window)) == Set(windows))
    #expect(cells.allSatisfy { $0.settled == 7 && $0.forgiven == 0 })
  }

  @Test func aDeltaAppendedAnewSaysHowItsGrantsBegin() throws {
    let counts = [
      CountedPart(level: 1, window: .month, period: Self.month(ago: 0), amount: 9),
      CountedPart(level: 1, window: Self.grant, period: Self.month(ago: 0), amount: 9),
      CountedPart(level: 1, window: Self.grant, period: Self.month(ago: 3), amount: 9),
      CountedPart(
        level: 1, window: .grant(Self.constant("gone")), period: Self.month(ago: 0), amount: 9),
    ]
    let found = try Self.grants().beginnings(counts, of: Self.feature)
    #expect(Set(found.keys) == [1, 2])
    #expect(
      found[1]
        == .init(
          amount: 100, rollover: Rollover(min: 0, max: 50), before: Self.month(ago: 1).start))
    #expect(found[2]?.before == Self.month(ago: 4).start)
  }
}
