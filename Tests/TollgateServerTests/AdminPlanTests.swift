// account.plan, account.past_due and the versions of outside systems, through JSON, over the fake
// backend, whose clock stands at 2025-11-21T04:40:00Z.

import Testing
import TollgateCore
import TollgateServer
import TollgateTesting
import TollgateWire

/// Plans with ranks and one without, with grants, prices and caps.
enum RichCatalog {
  static let yaml = """
    levels: [account, member]
    features:
      chat: {metered: true, unit: request}
      tokens: {metered: true, unit: token}
      spend: {metered: true, unit: micro-USD}
      agents: {metered: true, reservable: true}
      smooth: {metered: false}
    rates:
      - {id: tokens.small, feature: tokens, into: spend, when: {model: small}, price: 3, per: 2}
      - {id: tokens.other, feature: tokens, into: spend, price: 10, per: 1}
    ranks: {free: 1, pro: 2, ultra: 3}
    plans:
      free:
        chat:
          - {id: chat.month, quota: 100, per: month}
      pro:
        chat:
          - {id: chat.month, quota: 1000, per: month}
        tokens: []
        spend:
          - {id: spend.pro, credit: {amount: 500, every: month}, overage: allow}
          - {id: spend.cap, spend_cap: 300, per: month}
        agents:
          - {id: agents.live, concurrency: 4}
        smooth:
          - {id: smooth.hour, sliding: 60, per: hour}
      ultra:
        chat:
          - {id: chat.month, quota: 9000, per: month}
        spend:
          - {id: spend.ultra, credit: {amount: 5000, every: month}}
      pilot:
        chat:
          - {id: chat.month, quota: 50, per: month}
    """

  static func fixture(plan: String = "pro") throws -> AdminFixture {
    let fixture = try AdminFixture()
    let catalog = try AdminFixture.catalog(yaml)
    let acme = fixture.acme
    let account = AccountConfig(version: 1, plan: try Name(plan))
    fixture.backend.edit { state in
      state.global = GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: [])
      state.accounts[acme] = account
    }
    return fixture
  }
}

extension AdminFixture {
  /// What Redis would remember of a change that was made.
  func remember(
    _ action: String, _ request: some Encodable, _ operation: OperationID?
  ) throws {
    let entry = ChangeMemory.Entry(
      operation: try #require(operation),
      fingerprint: try AdminService<FakeBackend>.fingerprint(action, request), result: 2,
      time: backend.read(\.now))
    backend.edit { $0.memory = ChangeMemory(entries: [entry]) }
  }
}

@Suite(.blocking) struct AdminPlanTests {
  let fixture: AdminFixture

  init() throws { fixture = try RichCatalog.fixture() }

  private var now: WallTime { fixture.backend.read(\.now) }

  private func pass(_ milliseconds: Int64) {
    fixture.backend.edit { $0.now = $0.now + milliseconds }
  }

  private func plan(
    _ plan: String?, when: String? = nil, effective: WallTime? = nil, until: WallTime? = nil,
    then: String? = nil, none: Bool? = nil, withdraw: Bool? = nil, id: UInt64? = nil,
    dryRun: Bool = false
  ) throws -> AccountPlanRequest {
    AccountPlanRequest(
      account: fixture.acme, plan: try plan.map { try Name($0) }, when: when, effective: effective,
      until: until, then: try then.map { try Name($0) }, thenNone: none, withdraw: withdraw,
      change: AdminFixture.options(id, dryRun: dryRun))
  }

  private func send(_ request: AccountPlanRequest) async throws -> ChangeReply {
    try await fixture.send(.accountPlan, request)
  }

  private func show() async throws -> AccountReply {
    try await fixture.send(
      .accountShow, AccountRequest(account: fixture.acme), as: AccountReply.self)
  }

  static let december = WallTime(milliseconds: 1_764_547_200_000)

  @Test func anUpgradeIsNow() async throws {
    let reply = try await send(plan("ultra"))
    #expect(reply.changes == ["plan: pro → ultra"])
    #expect(fixture.account()?.plan?.text == "ultra")
    #expect(fixture.account()?.next == nil)
    #expect(fixture.account()?.planSince == now)
    // Another change of the account leaves that as it is.
    pass(60_000)
    let began = now + -60_000
    _ = try await send(plan("free"))
    #expect(fixture.account()?.planSince == began)
  }

  @Test func aDowngradeWaitsForTheEndOfThePeriod() async throws {
    let reply = try await send(plan("free"))
    #expect(reply.changes == ["plan: pro, then free from 2025-12-01T00:00:00Z on"])
    #expect(try await show().plan?.text == "pro")
    #expect(try await show().next?.plan?.text == "free")
    fixture.backend.edit { $0.now = Self.december + -1 }
    #expect(try await show().plan?.text == "pro")
    fixture.backend.edit { $0.now = Self.december }
    let after = try await show()
    #expect(after.plan?.text == "free" && after.next == nil)
    // Nobody wrote it.
    #expect(after.version == 2)
  }

  /// The billing period is the anchored month of the account's own calendar.
  @Test func thePeriodIsTheAccountsOwn() async throws {
    let acme = fixture.acme
    let anchor = WallTime(milliseconds: 1_769_846_400_000 - 365 * 86_400_000)
    fixture.backend.edit {
      $0.accounts[acme]?.calendar = [CalendarSetting(zone: "Europe/Berlin", anchor: anchor)]
    }
    _ = try await send(plan("free"))
    // The 31st, nine o'clock in Berlin; November has 30 days.
    let at = try #require(fixture.account()?.next?.at)
    #expect(CivilDate.text(at) == "2025-11-30T08:00:00Z")
  }

  @Test func toldOtherwiseADowngradeIsNowAndAnUpgradeLater() async throws {
    #expect(try await send(plan("free", when: "now")).changes == ["plan: pro → free"])
    _ = try await send(plan("pro", when: "period-end"))
    #expect(fixture.account()?.plan?.text == "free")
    #expect(fixture.account()?.next?.at == Self.december)
    let instant = now + 5000
    _ = try await send(plan("pro", effective: instant))
    #expect(fixture.account()?.next?.at == instant)
  }

  @Test func withoutRanksNobodyGuesses() async throws {
    let failure = try await fixture.refusal(.accountPlan, plan("pilot"))
    #expect(failure.code == .badRequest)
    #expect(failure.problems.map(\.path) == ["when"])
    #expect(failure.fix.contains("--at period-end"))
    #expect(try await send(plan("pilot", when: "now")).result == .applied)
  }

  @Test func anAccountWithoutAPlanGetsItNow() async throws {
    let acme = fixture.acme
    fixture.backend.edit { $0.accounts[acme] = nil }
    #expect(try await send(plan("pilot")).changes == ["plan: none → pilot"])
  }

  @Test func aChangeToComeIsWithdrawnByAnotherAndByItself() async throws {
    _ = try await send(plan("free"))
    #expect(
      try await send(plan("pro")).changes == ["withdrawn: free from 2025-12-01T00:00:00Z on"])
    #expect(fixture.account()?.next == nil)
    _ = try await send(plan("free"))
    #expect(
      try await send(plan("ultra")).changes == [
        "plan: pro → ultra", "withdrawn: free from 2025-12-01T00:00:00Z on",
      ])
    _ = try await send(plan("free"))
    #expect(try await send(plan(nil, withdraw: true)).result == .applied)
    #expect(try await send(plan(nil, withdraw: true)).result == .unchanged)
    #expect(fixture.account()?.plan?.text == "ultra" && fixture.account()?.next == nil)
  }

  @Test func whatIsAskedTwiceIsUnchangedAndTheSameIDReplayed() async throws {
    let request = try plan("free", id: 1)
    #expect(try await send(request).result == .applied)
    try fixture.remember("account.plan", request, request.change.operation)
    #expect(try await send(request).result == .replayed)
    #expect(try await send(plan("free")).result == .unchanged)
    #expect(fixture.account()?.version == 2)
  }

  @Test func aPlanThatCameByTimeIsTheOneThatChanges() async throws {
    _ = try await send(plan("free"))
    fixture.backend.edit { $0.now = Self.december }
    // So long it is in force: nothing of its grants comes over from before.
    #expect(fixture.account()?.planSince(at: Self.december) == Self.december)
    let before = Self.december + -1
    #expect(fixture.account()?.plan(at: before, knownAt: Self.december).plan?.text == "pro")
    #expect(try await send(plan("ultra")).changes == ["plan: free → ultra"])
    _ = try await send(plan("pro"))
    let account = try #require(fixture.account())
    #expect(account.plan?.text == "ultra")
    #expect(account.next?.plan?.text == "pro")
  }

  @Test func aTrialEndsByItself() async throws {
    let end = now + 14 * 86_400_000
    let reply = try await send(plan("ultra", until: end, then: "free"))
    #expect(
      reply.changes == ["plan: pro → ultra", "trial: ultra; free from \(CivilDate.text(end)) on"])
    #expect(try await show().next?.endsTrial == true)
    pass(14 * 86_400_000)
    #expect(try await show().plan?.text == "free")
  }

  @Test func aTrialMayEndInNothing() async throws {
    _ = try await send(plan("ultra", until: now + 1000, none: true))
    pass(1000)
    #expect(try await show().plan == nil)
    let reply = try await explain()
    #expect(reply.reason == "UNKNOWN_ACCOUNT" && reply.planSource == "none")
  }

  @Test func aTrialThatIsPaidForGoesOn() async throws {
    _ = try await send(plan("ultra", until: now + 1000, none: true))
    #expect(try await send(plan("ultra")).result == .applied)
    pass(1000)
    #expect(try await show().plan?.text == "ultra")
  }

  @Test func whatDoesNotGoTogetherIsRefused() async throws {
    let past = now
    let later = now + 1000
    let wrong: [(AccountPlanRequest, String)] = [
      (try plan(nil), "plan"), (try plan("free", when: "soon"), "when"),
      (try plan("free", effective: past), "effective_ms"),
      (try plan("free", when: "now", effective: later), "effective_ms"),
      (try plan("free", then: "pro"), "then"), (try plan("free", until: later), "then"),
      (try plan("free", until: later, then: "pro", none: true), "then"),
      (try plan("free", until: past, none: true), "until_ms"),
      (try plan("free", when: "period-end", until: later, none: true), "until_ms"),
      (try plan("free", withdraw: true), "withdraw"),
      (try plan(nil, when: "now", withdraw: true), "withdraw"),
    ]
    for (request, path) in wrong {
      let failure = try await fixture.refusal(.accountPlan, request)
      #expect(failure.code == .badRequest && failure.problems.map(\.path) == [path])
    }
    #expect(try await fixture.refusal(.accountPlan, plan("gold", when: "now")).code == .notFound)
    let trial = try plan("free", until: later, then: "gold")
    #expect(try await fixture.refusal(.accountPlan, trial).code == .notFound)
    #expect(fixture.account()?.version == 1)
  }

  /// A dry run of a change to come tells what it would do with what is used now.
  @Test func aDryRunJudgesTheChangeAndNotTheMoment() async throws {
    try fixture.use(fixture.acme, "chat", .month, settled: 100)
    let reply = try await send(plan("free", dryRun: true))
    #expect(reply.result == .dryRun)
    #expect(reply.impact?.deniedAtOnce == 1)
    #expect(fixture.account()?.next == nil)
    #expect(try await send(plan("ultra", dryRun: true)).impact?.deniedAtOnce == 1)
  }

  @Test func accountSetKeepsWhatIsToComeUnlessItChangesThePlan() async throws {
    _ = try await send(plan("free"))
    func set(_ plan: String) async throws -> ChangeReply {
      try await fixture.send(
        .accountSet,
        AccountSetRequest(
          account: fixture.acme, plan: try Name(plan), change: AdminFixture.options()))
    }
    #expect(try await set("pro").result == .unchanged)
    #expect(fixture.account()?.next != nil)
    #expect(try await set("ultra").changes.count == 2)
    #expect(fixture.account()?.next == nil)
    #expect(fixture.account()?.planSince == now)
    // Another change of the account leaves that as it is.
    pass(60_000)
    let began = now + -60_000
    _ = try await send(plan("free"))
    #expect(fixture.account()?.planSince == began)
  }

  @Test func theListShowsThePlanInForce() async throws {
    _ = try await send(plan("free"))
    fixture.backend.edit { $0.now = Self.december }
    let reply = try await fixture.send(
      .accountList, AccountListRequest(plan: try Name("free")), as: AccountListReply.self)
    #expect(reply.accounts.map(\.plan?.text) == ["free"])
  }

  private func explain() async throws -> ExplainReply {
    try await fixture.send(
      .explain,
      ExplainRequest(
        subject: fixture.acme, items: [.init(feature: try Name("chat"), amount: 1)]),
      as: ExplainReply.self)
  }

  @Test func explainTellsWhatIsToComeAndUsesThePlanInForce() async throws {
    _ = try await send(plan("free"))
    let before = try await explain()
    #expect(before.plan?.text == "pro" && before.next?.at == Self.december)
    #expect(before.steps.first?.amount == 1000)
    fixture.backend.edit { $0.now = Self.december }
    let after = try await explain()
    #expect(after.plan?.text == "free" && after.next == nil)
    #expect(after.steps.first?.amount == 100)
  }

  // MARK: Past due

  private func pastDue(_ grace: Int64?, clear: Bool? = nil) -> AccountPastDueRequest {
    AccountPastDueRequest(
      account: fixture.acme, graceMilliseconds: grace, clear: clear,
      change: AdminFixture.options())
  }

  @Test func graceEndsByTimeAndEverythingIsDenied() async throws {
    let reply: ChangeReply = try await fixture.send(.accountPastDue, pastDue(3000))
    #expect(reply.result == .applied)
    #expect(try await explain().allowed)
    #expect(try await explain().pastDue?.denied == false)
    pass(3000)
    let late = try await explain()
    #expect(late.reason == "PAST_DUE" && late.pastDue?.denied == true)
    #expect(late.steps.map(\.verdict) == ["passes", "PAST_DUE"])
    #expect(try await show().pastDue?.denied == true)
    let cleared: ChangeReply = try await fixture.send(.accountPastDue, pastDue(nil, clear: true))
    #expect(cleared.changes == ["past due: cleared"])
    #expect(try await explain().allowed)
  }

  @Test func aReminderDoesNotBeginTheGraceAnew() async throws {
    let since = now
    let _: ChangeReply = try await fixture.send(.accountPastDue, pastDue(3000))
    pass(2000)
    let again: ChangeReply = try await fixture.send(.accountPastDue, pastDue(3000))
    #expect(again.result == .unchanged)
    let longer: ChangeReply = try await fixture.send(.accountPastDue, pastDue(9000))
    #expect(longer.result == .applied)
    #expect(fixture.account()?.pastDue == PastDue(since: since, graceEnds: since + 9000))
  }

  @Test func aDryRunOfAGraceTellsWhatItsEndDoes() async throws {
    let request = AccountPastDueRequest(
      account: fixture.acme, graceMilliseconds: 1000, change: AdminFixture.options(dryRun: true))
    let reply: ChangeReply = try await fixture.send(.accountPastDue, request)
    #expect(reply.impact?.deniedAtOnce == 1)
  }

  @Test func aGraceIsGivenOrClearedAndBounded() async throws {
    for request in [
      pastDue(nil), pastDue(1, clear: true), pastDue(-1), pastDue(367 * 86_400_000),
    ] {
      let failure = try await fixture.refusal(.accountPastDue, request)
      #expect(failure.problems.map(\.path) == ["grace_ms"])
    }
  }

  // MARK: Outside systems

  /// Every kind of change of an account, as an event of an outside system.
  private func event(_ kind: Int, _ source: String, _ version: Int64) async throws -> ChangeReply {
    let (acme, options) = (fixture.acme, AdminFixture.options())
    let spend = try Name("spend")
    switch kind {
    case 0:
      return try await fixture.send(
        .accountSet,
        AccountSetRequest(
          account: acme, plan: nil, frozen: version % 2 == 0, sourceID: source,
          sourceVersion: version, change: options))
    case 1:
      return try await fixture.send(
        .accountPlan,
        AccountPlanRequest(
          account: acme, plan: try Name(version % 2 == 0 ? "free" : "pro"), when: "now",
          sourceID: source, sourceVersion: version, change: options))
    case 2:
      return try await fixture.send(
        .accountPastDue,
        AccountPastDueRequest(
          account: acme, graceMilliseconds: version * 1000, sourceID: source,
          sourceVersion: version, change: options))
    case 3:
      return try await fixture.send(
        .grantAdd,
        GrantAddRequest(
          account: acme, feature: spend, amount: 5, sourceID: source, sourceVersion: version,
          change: options))
    case 4:
      return try await fixture.send(
        .limitSet,
        LimitSetRequest(
          subject: acme, limit: try Name("chat.month"), amount: version, sourceID: source,
          sourceVersion: version, change: options))
    case 5:
      return try await fixture.send(
        .limitUnset,
        LimitUnsetRequest(
          subject: acme, limit: try Name("chat.month"), sourceID: source, sourceVersion: version,
          change: options))
    default:
      return try await fixture.send(
        .grantVoid,
        GrantVoidRequest(
          account: acme, id: try Name("topup"), sourceID: source, sourceVersion: version,
          change: options))
    }
  }

  @Test(arguments: 0..<7)
  func anOlderOrEqualEventOfOneSystemChangesNothing(_ kind: Int) async throws {
    let acme = fixture.acme
    let topup = Grant(
      id: try Name("topup"), feature: try Name("spend"), amount: 9, effective: now, created: now)
    fixture.backend.edit { $0.accounts[acme]?.grants = [topup] }
    #expect(try await event(2, "stripe", 7).result == .applied)
    let before = try #require(fixture.account())
    #expect(try await event(kind, "stripe", 6).result == .ignored)
    #expect(try await event(kind, "stripe", 7).result == .ignored)
    #expect(fixture.account() == before)
    #expect(try await event(kind, "stripe", 8).result == .applied)
    #expect(fixture.account()?.sourceVersion == 8)
  }

  /// Another system in between does not make an old event new.
  @Test func eachSystemIsRememberedByItself() async throws {
    #expect(try await event(0, "stripe", 7).result == .applied)
    #expect(try await event(0, "crm", 2).result == .applied)
    #expect(try await event(1, "stripe", 6).result == .ignored)
    #expect(try await event(1, "crm", 1).result == .ignored)
    #expect(try await event(1, "stripe", 8).result == .applied)
    let reply = try await show()
    #expect(reply.sourceID == "stripe" && reply.sourceVersion == 8)
    #expect(reply.otherSources.map(\.id) == ["crm"] && reply.otherSources.map(\.version) == [2])
  }

  @Test func systemsBeyondTheBoundAreRefusedAndNoneIsForgotten() async throws {
    for index in 0..<AccountConfig.sourcesMax {
      #expect(try await event(2, "system\(index)", 5).result == .applied)
    }
    let request = AccountPastDueRequest(
      account: fixture.acme, graceMilliseconds: 1, sourceID: "one-more", sourceVersion: 1,
      change: AdminFixture.options())
    #expect(try await fixture.refusal(.accountPastDue, request).code == .conflict)
    #expect(try await event(2, "system0", 5).result == .ignored)
    #expect(try await event(2, "system0", 6).result == .applied)
    #expect(fixture.account()?.otherSources.count == AccountConfig.sourcesMax - 1)
  }

  @Test func anImportedRowIsAnEventLikeAnyOther() async throws {
    #expect(try await event(1, "stripe", 7).result == .applied)
    let rows = AccountImportRequest(
      rows: [.init(account: "acme", plan: "free", sourceVersion: 7)], firstRow: 1,
      sourceID: "stripe", change: AdminFixture.options(9))
    let reply = try await fixture.send(.accountImport, rows, as: AccountImportReply.self)
    #expect(reply.ignored == 1)
    #expect(fixture.account()?.plan?.text == "pro")
  }
}
