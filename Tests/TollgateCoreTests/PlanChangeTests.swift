// What a change of plan and a voided grant do to what is counted, put through the evaluator.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct PlanChangeTests {
  private static func catalog() throws -> Catalog {
    try TollgateCoreTests.catalog(
      """
      {"levels": ["account", "member"],
       "features": {"f": {"metered": true}, "spend": {"metered": true}},
       "plans": {
         "p": {"f": [{"id": "f.month", "quota": 100, "per": "month"}],
               "spend": [{"id": "spend.p", "credit": {"amount": 20, "every": "month"}}]},
         "up": {"f": [{"id": "f.month", "quota": 1000, "per": "month"}],
                "spend": [{"id": "spend.up", "credit": {"amount": 200, "every": "month"}}]},
         "same": {"f": [{"id": "f.month", "quota": 50, "per": "month"}],
                  "spend": [{"id": "spend.p", "credit": {"amount": 50, "every": "month"}}]},
         "open": {"spend": [{"id": "spend.p", "credit": {"amount": 20, "every": "month"},
                             "overage": "allow"}]}
       }}
      """)
  }

  private func bench() throws -> Bench {
    var bench = try Bench(Self.catalog())
    // Burnt after what the plan gives.
    bench.account.grants = [
      Grant(
        id: try name("topup"), feature: try name("spend"), amount: 100, priority: 200,
        effective: noon, created: noon)
    ]
    return bench
  }

  private func burnt(_ bench: Bench, _ grant: String) throws -> Int64 {
    try bench.settled("acme", "spend", .grant(name(grant))) ?? 0
  }

  private func owed(_ bench: Bench) throws -> Int64 {
    try bench.settled("acme", "spend", .deficit) ?? 0
  }

  private func left(_ bench: inout Bench) throws -> Int64? {
    try bench.ask([("spend", 0)], mode: .check).items.first?.remaining
  }

  @Test func pitfall37_aPlanChangeKeepsCountersAndOneTimeGrants() throws {
    var bench = try bench()
    #expect(try bench.ask([("f", 60), ("spend", 30)]).reason == .allowed)
    #expect(try burnt(bench, "spend.p") == 20)
    #expect(try burnt(bench, "topup") == 10)
    let before = bench.evaluator.state.counters
    bench.account.plan = try name("up")
    // The meter stands where it stood, and nothing was written by the change.
    #expect(bench.evaluator.state.counters == before)
    let meter = try bench.ask([("f", 0)], mode: .check).items.first
    #expect(meter?.settled == 60 && meter?.remaining == 940)
    // The new plan's own grant is whole, the one-time grant is as it was, the old plan's is gone.
    #expect(try left(&bench) == 200 + 90)
    #expect(try bench.ask([("spend", 210)]).reason == .allowed)
    #expect(try burnt(bench, "spend.up") == 200)
    #expect(try burnt(bench, "topup") == 20)
    #expect(try burnt(bench, "spend.p") == 20)
    // Back again within the period: what the first plan gave is not given twice.
    bench.account.plan = try name("p")
    #expect(try left(&bench) == 80)
    #expect(try bench.ask([("f", 41)]).reason == .quotaExceeded)
    #expect(try bench.ask([("f", 40)]).reason == .allowed)
  }

  /// Plans that name one rule share its counter: a bigger plan gives the difference.
  @Test func pitfall37_anIncludedGrantOfTheSameIDIsNotGivenAnew() throws {
    var bench = try bench()
    bench.account.grants = []
    #expect(try bench.ask([("spend", 15)]).reason == .allowed)
    bench.account.plan = try name("same")
    #expect(try left(&bench) == 35)
    bench.account.plan = try name("p")
    #expect(try left(&bench) == 5)
  }

  @Test func pitfall37_aSmallerPlanLeavesNothingAndOwesNothing() throws {
    var bench = try bench()
    bench.account.grants = []
    bench.account.plan = try name("same")
    #expect(try bench.ask([("f", 50), ("spend", 45)]).reason == .allowed)
    bench.account.plan = try name("p")
    // 45 are burnt of what is 20 now: nothing is left, and nothing is owed.
    let state = try bench.ask([("spend", 0)], mode: .check)
    #expect(state.isAllowed && state.items.first?.remaining == 0)
    #expect(try bench.ask([("spend", 1)]).reason == .creditExhausted)
    #expect(try owed(bench) == 0)
    bench.account.plan = try name("up")
    #expect(try left(&bench) == 200)
    #expect(try bench.ask([("f", 0)], mode: .check).items.first?.remaining == 950)
  }

  /// What comes again under one id keeps its window, or a change of plan would give it anew.
  @Test func pitfall37_anIncludedGrantKeepsItsWindowThroughoutACatalog() throws {
    let found = try problems(
      """
      {"levels": ["account"], "features": {"f": {"metered": true}},
       "plans": {"p": {"f": [{"id": "x", "credit": {"amount": 1, "every": "month"}}]},
                 "q": {"f": [{"id": "x", "credit": {"amount": 1, "every": "day"}}]}}}
      """)
    #expect(found.count == 1 && found[0].contains("this is a credit per day"))
  }

  @Test func pitfall38_aVoidedGrantLeavesNothingAndIsNotNegative() throws {
    var bench = try bench()
    #expect(try bench.ask([("spend", 80)]).reason == .allowed)
    #expect(try burnt(bench, "topup") == 60)
    bench.account.grants[0].voided = noon
    let state = try bench.ask([("spend", 0)], mode: .check)
    #expect(state.isAllowed && state.items.first?.remaining == 0)
    #expect(try bench.ask([("spend", 1)]).reason == .creditExhausted)
    // What was burnt stays so, and nothing is owed for it.
    #expect(try burnt(bench, "topup") == 60)
    #expect(try owed(bench) == 0)
    // Of the next grant every unit is there.
    bench.account.grants.append(
      Grant(
        id: try name("next"), feature: try name("spend"), amount: 5, effective: noon,
        created: noon))
    #expect(try left(&bench) == 5)
    #expect(try bench.ask([("spend", 5)]).reason == .allowed)
  }

  @Test func pitfall38_voidingTwiceOrWhatIsUsedUpChangesNothing() throws {
    var bench = try bench()
    #expect(try bench.ask([("spend", 120)]).reason == .allowed)
    bench.account.grants[0].voided = noon
    #expect(try left(&bench) == 0)
    bench.account.plan = try name("open")
    // With overage allowed the rest goes beyond the grants; the voided one stays as it was.
    #expect(try bench.ask([("spend", 3)]).reason == .allowed)
    #expect(try burnt(bench, "topup") == 100)
  }
}
