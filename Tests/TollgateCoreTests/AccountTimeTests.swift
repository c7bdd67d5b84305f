// Accounts over time: plans that change, trials and grace that end, payments that are owed. Nothing
// runs at those instants; a request that is resolved before is resolved otherwise than one after.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct AccountTimeTests {
  private static func catalog() throws -> Catalog {
    try TollgateCoreTests.catalog(
      """
      {"levels": ["account", "member"], "unknown_account": "deny",
       "features": {"calls": {"metered": true}, "spend": {"metered": true}},
       "ranks": {"free": 1, "pro": 2},
       "plans": {
         "free": {"calls": [{"id": "calls.month", "quota": 10, "per": "month"}]},
         "pro": {"calls": [{"id": "calls.month", "quota": 100, "per": "month"}],
                 "spend": [{"id": "spend.pro", "credit": {"amount": 20, "every": "anchored month"}}]}
       }}
      """)
  }

  private func resolve(
    _ account: AccountConfig, _ feature: String = "calls", at now: WallTime = noon,
    unknown: UnknownAccount = .deny, zones: ZoneBook = .utcOnly
  ) throws -> Resolution {
    var catalog = try Self.catalog()
    catalog.unknownAccount = unknown
    return Resolution.resolve(
      subject: try Subject("acme"), items: [Item(feature: try name(feature), amount: 1)],
      global: global(catalog), account: account, now: now, zones: zones)
  }

  private func quota(_ resolution: Resolution) -> Int64? {
    guard case .quota(_, let amount)? = resolution.limits.first?.rule else { return nil }
    return amount
  }

  private func denials(_ resolution: Resolution) -> [Reason] {
    resolution.limits.compactMap { if case .deny(let reason) = $0.rule { reason } else { nil } }
  }

  private func plan(_ now: String, then next: String?, at: WallTime, trial: Bool = false) throws
    -> AccountConfig
  {
    var config = try account(now)
    config.next = NextPlan(plan: try next.map { try name($0) }, at: at, endsTrial: trial)
    return config
  }

  @Test func theNextPlanHoldsFromItsInstantOn() throws {
    let change = noon + 5000
    let config = try plan("pro", then: "free", at: change)
    #expect(try quota(resolve(config, at: change + -1)) == 100)
    #expect(try quota(resolve(config, at: change)) == 10)
    #expect(try quota(resolve(config, at: change + 1)) == 10)
  }

  /// A cached resolution must not outlive the plan it was made from.
  @Test func aResolutionIsValidUntilThePlanChanges() throws {
    let config = try plan("pro", then: "free", at: noon + 5000)
    #expect(try resolve(config).validUntil == noon + 5000)
    // Afterwards the change bounds nothing.
    #expect(try resolve(config, at: noon + 5000).validUntil > noon + 5000)
  }

  @Test func theCounterIsTheSameBeforeAndAfter() throws {
    let config = try plan("pro", then: "free", at: noon + 5000)
    #expect(try resolve(config).cells == resolve(config, at: noon + 5000).cells)
  }

  @Test func aTrialThatEndsInNothingLeavesTheRuleForUnknownAccounts() throws {
    let config = try plan("pro", then: nil, at: noon, trial: true)
    #expect(try quota(resolve(config, at: noon + -1)) == 100)
    #expect(try denials(resolve(config)) == [.unknownAccount])
    #expect(try quota(resolve(config, unknown: .plan(try name("free")))) == 10)
  }

  @Test func aNextPlanThatLeftTheCatalogHasNoEntitlements() throws {
    let config = try plan("pro", then: "gone", at: noon)
    #expect(try quota(resolve(config, at: noon + -1)) == 100)
    #expect(try denials(resolve(config)) == [.featureNotInPlan])
  }

  /// The end of an anchored month, in a zone whose clocks change in between.
  @Test func aPlanEndsWithItsPeriodByTheAccountsCalendar() throws {
    let zones = try ZoneTable.loaded.get().zones
    let berlin = try #require(zones["Europe/Berlin"])
    let book = ZoneBook { zones[$0] }
    // 2026-01-31T09:00 in Berlin is 08:00 UTC; 2026-03-31T09:00 there is 07:00 UTC.
    let anchor = WallTime(milliseconds: 1_769_846_400_000)
    let calendar = AccountCalendar([CalendarRule(zone: berlin, anchor: anchor)])
    let inMarch = WallTime(milliseconds: 1_772_841_600_000)
    let end = calendar.period(of: Window(.month, .anchored), containing: inMarch).end
    #expect(CivilDate.text(end) == "2026-03-31T07:00:00Z")
    var config = try plan("pro", then: "free", at: end)
    config.calendar = [CalendarSetting(zone: "Europe/Berlin", anchor: anchor)]
    let last = try resolve(config, "spend", at: end + -1, zones: book)
    #expect(last.draws[0]?.map(\.grant.text) == ["spend.pro"])
    // What the plan gives ends with the plan, in the very instant its instance ends.
    let draw = try #require(last.draws[0]?.first)
    #expect(last.cells[draw.cell].period.end == end)
    #expect(try denials(resolve(config, "spend", at: end, zones: book)) == [.featureNotInPlan])
  }

  // MARK: Past due

  private func owing(_ grace: Int64, frozen: Bool = false) throws -> AccountConfig {
    var config = try account("pro", frozen: frozen)
    config.pastDue = PastDue(since: noon, graceEnds: noon + grace)
    return config
  }

  @Test func withinTheGraceEverythingWorksAndAfterItNothing() throws {
    let config = try owing(3000)
    #expect(try denials(resolve(config)).isEmpty)
    #expect(try denials(resolve(config, at: noon + 2999)).isEmpty)
    #expect(try denials(resolve(config, at: noon + 3000)) == [.pastDue])
    #expect(try resolve(config).validUntil == noon + 3000)
  }

  @Test func aGraceOfNothingDeniesAtOnce() throws {
    #expect(try denials(resolve(owing(0))) == [.pastDue])
  }

  @Test func otherReasonsComeFirstByTheirNumber() throws {
    #expect(try denials(resolve(owing(0, frozen: true))) == [.accountFrozen, .pastDue])
    #expect(try denials(resolve(owing(0), "nothing")) == [.unknownFeature, .pastDue])
  }

  @Test func theCountersOfWhatRunsAreStillNamed() throws {
    let (now, after) = (try resolve(owing(3000)), try resolve(owing(0)))
    #expect(now.cells == after.cells)
    #expect(Set(after.limits.map(\.id.text)) == ["calls.month", "calls"])
  }

  @Test func aRequestWithAllItsLimitsIsDeniedAndNotRefused() throws {
    let limits = (0..<8).map { #"{"id": "FEATURE.\#($0)", "quota": 1, "per": "day"}"# }
      .joined(separator: ",")
    let features = ["a", "b", "c", "d"]
    let catalog = try TollgateCoreTests.catalog(
      """
      {"levels": ["account"], "features": {\(features.map { "\"\($0)\": {\"metered\": true}" }
        .joined(separator: ","))},
       "plans": {"pro": {\(features.map {
         "\"\($0)\": [\(limits.replacing("FEATURE", with: $0))]" }.joined(separator: ","))}}}
      """)
    let resolution = Resolution.resolve(
      subject: try Subject("acme"),
      items: try features.map { Item(feature: try name($0), amount: 1) },
      global: global(catalog), account: try owing(0), now: noon, zones: .utcOnly)
    #expect(resolution.refusal == nil)
    #expect(denials(resolution) == [.pastDue])
  }

  // MARK: Grants

  private func granted(_ edit: (inout Grant) throws -> Void = { _ in }) throws -> AccountConfig {
    var grant = Grant(
      id: try name("promo"), feature: try name("spend"), amount: 7, effective: noon,
      expires: noon + 9000, created: noon)
    try edit(&grant)
    var config = try account("pro")
    config.grants = [grant]
    return config
  }

  @Test func aGrantComesAndGoesByTime() throws {
    let config = try granted()
    func drawn(_ now: WallTime) throws -> [String] {
      try (resolve(config, "spend", at: now).draws[0] ?? []).map(\.grant.text)
    }
    #expect(try drawn(noon + -1) == ["spend.pro"])
    #expect(try resolve(config, "spend", at: noon + -1).validUntil == noon)
    #expect(try drawn(noon) == ["promo", "spend.pro"])
    #expect(try resolve(config, "spend").validUntil == noon + 9000)
    #expect(try drawn(noon + 9000) == ["spend.pro"])
  }

  /// A hold that is settled late is resolved at the instant at which it was made.
  @Test func aVoidedGrantGivesNothingAtAnyInstant() throws {
    let config = try granted { $0.voided = noon + 100 }
    for now in [noon, noon + 99, noon + 100] {
      let draw = try #require(resolve(config, "spend", at: now).draws[0]?.first)
      #expect(draw.isVoided)
    }
  }

  @Test func aGrantNamedLikeThePlansOwnDoesNotShareItsCounter() throws {
    let config = try granted { $0.id = try name("spend.pro") }
    let draws = try #require(resolve(config, "spend").draws[0])
    #expect(draws.map(\.amount) == [20])
  }
}
