// explain, usage, limit set and doctor for grants, prices, overage, caps, holds and sliding spans.

import Testing
import TollgateCore
import TollgateServer
import TollgateTesting
import TollgateWire

@Suite(.blocking) struct AdminRichTests {
  let fixture: AdminFixture

  init() throws { fixture = try RichCatalog.fixture() }

  private var now: WallTime { fixture.backend.read(\.now) }

  private func explain(
    _ items: [(String, Int64)], _ attributes: [String: String]? = nil
  ) async throws -> ExplainReply {
    try await fixture.send(
      .explain,
      ExplainRequest(
        subject: fixture.acme,
        items: try items.map { .init(feature: try Name($0.0), amount: $0.1) },
        attributes: attributes), as: ExplainReply.self)
  }

  private func burn(_ window: Window, _ units: Int64, in period: Period) throws {
    let reference = CounterReference(
      subject: fixture.acme, feature: try Name("spend"), window: window)
    fixture.backend.edit {
      $0.counters[reference] = CounterState(start: period.start, settled: units)
    }
  }

  private var month: Period { Window.month.period(containing: now) }

  @Test func explainShowsGrantsInTheOrderOfBurning() async throws {
    let acme = fixture.acme
    let promo = Grant(
      id: try Name("promo"), feature: try Name("spend"), amount: 40, kind: .promotional,
      priority: 1, effective: now, expires: now + 1000, created: now)
    fixture.backend.edit { $0.accounts[acme]?.grants = [promo] }
    try burn(.grant(promo.id), 30, in: Period(start: now, end: now + 1000))
    try burn(.grant(try Name("spend.pro")), 100, in: month)
    let reply = try await explain([("spend", 25)])
    #expect(reply.allowed)
    let step = try #require(reply.steps.first { $0.limit.text == "spend.pro" })
    let grants = try #require(step.grants)
    #expect(grants.map(\.grant.text) == ["promo", "spend.pro"])
    #expect(grants.map(\.burnt) == [30, 100])
    #expect(grants.map(\.left) == [10, 400])
    #expect(grants.map(\.burns) == [10, 15])
    #expect(grants.map(\.ends) == [now + 1000, month.end])
    #expect(step.overage == 0 && step.owed == 0)
  }

  /// The version of a rate and the sum it makes, as if the request came now.
  @Test func explainShowsWhatIsChargedByWhichRate() async throws {
    let reply = try await explain([("tokens", 5)], ["model": "small"])
    #expect(reply.prices.map(\.rate.text) == ["tokens.small"])
    let price = try #require(reply.prices.first)
    #expect(price.feature.text == "tokens" && price.into.text == "spend" && price.of == "all")
    #expect(price.price == 3 && price.per == 2 && price.units == 5 && price.charge == 7)
    // The feature that is charged is judged by its own limits.
    let step = try #require(reply.steps.first { $0.limit.text == "spend.pro" })
    #expect(step.feature.text == "spend" && step.grants?.map(\.burns) == [7])
    #expect(try await explain([("tokens", 5)]).prices.map(\.charge) == [50])
  }

  @Test func explainNamesTheCapThatBinds() async throws {
    try burn(.grant(try Name("spend.pro")), 500, in: month)
    try burn(.overage(.month), 290, in: month)
    let reply = try await explain([("tokens", 2)])
    #expect(!reply.allowed && reply.reason == "SPEND_CAP_REACHED")
    let binding = reply.steps.filter(\.binding)
    #expect(binding.map(\.limit.text) == ["spend.cap"])
    #expect(binding.first?.feature.text == "spend")
    #expect(reply.steps.first { $0.limit.text == "spend.pro" }?.overage == 20)
    #expect(try await explain([("tokens", 1)]).allowed)
  }

  @Test func explainShowsHoldsAndSpans() async throws {
    let reply = try await explain([("agents", 5), ("smooth", 61)])
    #expect(reply.reason == "QUOTA_EXCEEDED")
    #expect(reply.steps.map(\.verdict) == ["CONCURRENCY_EXCEEDED", "QUOTA_EXCEEDED"])
    #expect(
      reply.steps.map(\.why) == [
        "0 of 4 held; 5 asked, 4 left", "0 of 60 used in the last 1 h; 61 asked, 60 left",
      ])
  }

  @Test func usageCountsWhatIsChargedOnceAndUnderItsOwnFeature() async throws {
    try burn(.month, 12, in: month)
    let reply = try await fixture.send(
      .usage, UsageRequest(subject: fixture.acme), as: UsageReply.self)
    let bills = reply.usage.filter { $0.limit == nil && $0.window == "month" }
    #expect(bills.filter { $0.settled == 12 }.map(\.feature.text) == ["spend"])
    #expect(reply.usage.filter { $0.limit?.text == "spend.cap" }.count == 1)
  }

  // MARK: limit set

  private func set(_ limit: String, amount: Int64? = nil, unlimited: Bool? = nil) throws
    -> LimitSetRequest
  {
    LimitSetRequest(
      subject: fixture.acme, limit: try Name(limit), amount: amount, unlimited: unlimited,
      change: AdminFixture.options())
  }

  @Test(arguments: [
    ("smooth.hour", "5 in any 1 h"), ("agents.live", "5 at one moment"),
    ("spend.cap", "5 beyond grants per month"),
    ("spend.pro", "5 per month, then grants, then overage"),
  ])
  func anAmountOfEveryKindIsOverridden(_ limit: String, _ inForce: String) async throws {
    #expect(try await fixture.send(.limitSet, set(limit, amount: 5)).result == .applied)
    let reply = try await fixture.send(
      .limitList, LimitListRequest(subject: fixture.acme), as: LimitListReply.self)
    let row = try #require(reply.limits.first { $0.limit.text == limit })
    #expect(row.inForce == inForce && row.overridden)
  }

  @Test func whatAPlanGivesIsOverriddenInItsGrantToo() async throws {
    _ = try await fixture.send(.limitSet, set("spend.pro", amount: 5)) as ChangeReply
    let grants = try await fixture.send(
      .grantList, GrantListRequest(account: fixture.acme), as: GrantListReply.self
    ).grants
    #expect(grants.map(\.amount) == [5] && grants.map(\.left) == [5])
  }

  @Test func aCreditIsNotUnlimitedAndMayHaveNoAmount() async throws {
    let unlimited = try await fixture.refusal(.limitSet, set("spend.pro", unlimited: true))
    #expect(unlimited.problems.first?.reason.contains("grant.add") == true)
  }

  // MARK: doctor

  private func doctor(_ change: (inout Catalog) throws -> Void) throws -> [Finding] {
    var catalog = try AdminFixture.catalog(RichCatalog.yaml)
    try change(&catalog)
    return Doctor.findings(catalog)
  }

  @Test func doctorSaysWhatACatalogLacks() throws {
    let found = try doctor { _ in }
    #expect(found.map(\.check) == ["plan ranks"])
    #expect(found.first?.found == "pilot without a rank")
    #expect(try doctor { $0.plans[try Name("pilot")] = nil }.isEmpty)
  }

  @Test func doctorFindsOverageWithoutACap() throws {
    let found = try doctor {
      $0.plans[try Name("pro")]?.entitlements[try Name("spend")]?.removeLast()
    }
    #expect(found.first { $0.check == "overage" }?.severity == .warning)
  }

  @Test func doctorFindsAFeatureThatNobodyCanPay() throws {
    let found = try doctor { $0.plans[try Name("ultra")]?.entitlements[try Name("tokens")] = [] }
    #expect(!found.contains { $0.check == "rates" })
    let broken = try doctor { $0.plans[try Name("pro")]?.entitlements[try Name("spend")] = nil }
    #expect(broken.first { $0.check == "rates" }?.severity == .error)
  }

  @Test func doctorFindsHoldsThatCannotBe() throws {
    let found = try doctor { $0.features[try Name("agents")]?.reservable = false }
    #expect(found.first { $0.check == "concurrency" }?.fix.contains("reservable: true") == true)
  }

  @Test func doctorFindsRatesWithoutACeiling() throws {
    let found = try doctor { $0.rates = RateCard($0.rates.rates.filter { !$0.when.isEmpty }) }
    #expect(found.first { $0.check == "rates" }?.severity == .advice)
    #expect(found.filter { $0.check != "plan ranks" }.allSatisfy { !$0.fix.isEmpty })
  }
}
