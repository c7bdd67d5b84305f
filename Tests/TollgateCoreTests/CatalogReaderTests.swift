// Reading catalogs: good ones survive the round trip, bad ones have every problem named at once,
// and the published schema says the same as the reader.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct CatalogReaderTests {
  static let good = """
    {"levels": ["account", "member", "run"], "unknown_account": {"plan": "free"},
     "features": {
       "chat.requests": {"metered": true, "importance": "volume", "unit": "request"},
       "tokens.total": {"metered": true}, "agents": {"metered": false}},
     "plans": {
       "free": {
         "chat.requests": [
           {"id": "chat.rpm", "rate": 10, "per": "minute", "burst": 12, "level": "member",
            "enforcement": "soft", "on_failure": "stale"},
           {"id": "chat.month", "quota": 500, "per": "month"}],
         "tokens.total": [{"id": "tokens.free", "unlimited": true, "on_failure": {"open": 5000}}],
         "agents": [{"id": "agents.gate", "gate": false}]},
       "pro": {
         "chat.requests": [{"id": "chat.month", "quota": 9007199254740991, "per": "month",
           "enforcement": "shadow"}, {"id": "chat.90", "quota": 0, "per": "90s"}],
         "tokens.total": []}}}
    """

  @Test func aGoodCatalogIsReadWithItsDefaults() throws {
    let catalog = try catalog(Self.good)
    #expect(catalog.levels.map(\.text) == ["account", "member", "run"])
    #expect(catalog.unknownAccount == .plan(try name("free")))
    let free = try #require(catalog.plans[name("free")]?.entitlements[name("chat.requests")])
    #expect(
      free == [
        Limit(
          id: try name("chat.rpm"), kind: .rate(amount: 10, periodMilliseconds: 60_000, burst: 12),
          level: 2, enforcement: .soft, failurePolicy: .stale),
        Limit(
          id: try name("chat.month"), kind: .quota(amount: 500, window: .month), level: 1,
          enforcement: .hard, failurePolicy: .closed),
      ])
    #expect(catalog.features[try name("tokens.total")]?.importance == .money)
    #expect(catalog.features[try name("tokens.total")]?.unit == "unit")
    #expect(catalog.meteredFeatures.map(\.text) == ["chat.requests", "tokens.total"])
    #expect(catalog.plans[try name("pro")]?.entitlements[try name("tokens.total")] == [])
    #expect(catalog.plans[try name("pro")]?.entitlements[try name("agents")] == nil)
  }

  @Test func aCatalogSurvivesTheRoundTrip() throws {
    let catalog = try catalog(Self.good)
    #expect(try Catalog(document: catalog.document) == catalog)
    #expect(try Catalog(document: Document(json: catalog.document.json())) == catalog)
    // Equal catalogs are equal texts.
    #expect(try Catalog(document: catalog.document).document.json() == catalog.document.json())
  }

  @Test func whatASidecarMayRememberByItselfIsReadAndWritten() throws {
    let text = """
      {"levels": ["a"], "features": {"f": {"metered": true, "importance": "volume",
       "idempotency": "sidecar"}}, "plans": {"p": {"f": [
         {"id": "x", "quota": 5, "per": "day", "precision": "exact"},
         {"id": "y", "quota": 9, "per": "month"}]}}}
      """
    let catalog = try catalog(text)
    #expect(catalog.features[try name("f")]?.idempotency == .sidecar)
    let limits = catalog.plans[try name("p")]?.entitlements[try name("f")]
    #expect(limits?.map(\.precision) == [.exact, nil])
    #expect(try Catalog(document: catalog.document) == catalog)
  }

  @Test(arguments: [
    (#""metered": true, "idempotency": "sidecar""#, "sidecar needs `importance: volume`"),
    (
      #""metered": true, "importance": "volume", "reservable": true, "idempotency": "sidecar""#,
      "sidecar is not for what is reservable"
    ),
  ])
  func moneyAndHoldsAreRememberedByRedis(_ fields: String, _ reason: String) throws {
    #expect(
      try problems(
        #"{"levels": ["a"], "features": {"f": {\#(fields)}}, "plans": {}}"#)
        == ["features/f/idempotency: \(reason)"])
  }

  @Test func theBurstIsTheRateWhereNotSaid() throws {
    let catalog = try catalog(f: #"[{"id": "r", "rate": 7, "per": "90s"}]"#)
    let limit = catalog.plans[try name("p")]?.entitlements[try name("f")]?.first
    #expect(limit?.kind == .rate(amount: 7, periodMilliseconds: 90_000, burst: 7))
    #expect(limit?.document(levels: catalog.levels)["per"] == "90s")
  }

  @Test func allProblemsAreNamedAtOnce() throws {
    let found = try problems(
      """
      {"levels": ["account", "account", ".x"], "unknown_account": {"plan": "gone"}, "color": 1,
       "features": {"f": {"metered": "yes", "size": 3}, "bad name": {"metered": true}, "h": {}},
       "plans": {"p": {"f": [
           {"id": "a", "quota": 1.5, "per": "month"},
           {"id": "b", "quota": -1, "per": "fortnight"},
           {"id": "c", "rate": 0, "per": "minute"},
           {"id": "d", "rate": 1, "per": "month"},
           {"id": "e", "rate": 1, "quota": 2, "per": "minute"},
           {"id": "g", "gate": 1, "per": "day", "burst": 2},
           {"quota": 1},
           {"id": "i", "unlimited": false, "level": "team", "enforcement": "firm",
            "on_failure": {"open": 0}}],
         "missing": []}}}
      """)
    let expected = [
      "color: unknown key", "levels/1: the level is named twice", "levels/2: must start",
      "unknown_account/plan: there is no such plan", "features/f/metered: must be true or false",
      "features/f/size: unknown key", "features/bad name: may hold only",
      "features/h/metered: is required",
      "plans/p/f/0/quota: must be a whole number", "plans/p/f/1/quota: must be from 0",
      "plans/p/f/1/per: must be minute", "plans/p/f/2/rate: must be from 1",
      "plans/p/f/3/per: a rate needs a window of fixed length",
      "plans/p/f/4: must have exactly one of", "plans/p/f/5/gate: must be true or false",
      "plans/p/f/5/per: does not belong", "plans/p/f/5/burst: belongs to a rate only",
      "plans/p/f/6/id: is required", "plans/p/f/6: needs `per`",
      "plans/p/f/7/unlimited: must be true", "plans/p/f/7/level: must be one of the levels",
      "plans/p/f/7/enforcement: must be one of hard, soft, shadow",
      "plans/p/f/7/on_failure/open: must be from 1", "plans/p/missing: the feature is not among",
    ]
    for problem in expected {
      #expect(found.contains { $0.hasPrefix(problem) }, "\(problem) is not among \(found)")
    }
    #expect(found.count == expected.count, "\(found)")
  }

  @Test func aProblemShowsTheValueCutShort() throws {
    let long = String(repeating: "x", count: 5_000)
    guard case .failure(let problems) = CatalogReader.read(["levels": .string(long)]) else {
      Issue.record("accepted")
      return
    }
    #expect(problems.allSatisfy { $0.value.count <= 81 })
  }

  @Test func theReportOfProblemsIsBounded() {
    let limits = (0..<8).map { _ in Document.object([]) }
    let plan = Document.object((0..<200).map { .init("f\($0)", .list(limits)) })
    guard
      case .failure(let problems) = CatalogReader.read([
        "levels": ["account"], "features": [:], "plans": ["p": plan],
      ])
    else {
      Issue.record("accepted")
      return
    }
    #expect(problems.count == ProblemList.problemsMax + 1)
    #expect(problems.last?.reason == "more problems")
  }

  @Test(arguments: [
    // One id, two features; two kinds; two windows; two levels; twice in one list.
    (
      #"[{"id": "x", "quota": 1, "per": "day"}]"#, #"[{"id": "x", "quota": 1, "per": "day"}]"#,
      "the id already names a limit of f"
    ),
    (
      #"[{"id": "x", "quota": 1, "per": "day"}, {"id": "x", "quota": 2, "per": "day"}]"#, "[]",
      "the id appears twice in this list"
    ),
  ])
  func anIDNamesOneRule(_ f: String, _ g: String, _ reason: String) throws {
    let found = try problems(
      #"{"levels": ["a"], "features": {"f": {"metered": true}, "g": {"metered": true}}, "#
        + #""plans": {"p": {"f": \#(f), "g": \#(g)}}}"#)
    #expect(found.count == 1)
    #expect(found.first?.contains(reason) == true, "\(found)")
  }

  @Test(arguments: [
    (#"{"id": "x", "rate": 1, "per": "day"}"#, "this is a rate"),
    (#"{"id": "x", "quota": 1, "per": "month"}"#, "this is a quota per month"),
    (#"{"id": "x", "quota": 1, "per": "day", "level": "b"}"#, "another level"),
  ])
  func anIDNamesOneRuleAcrossPlans(_ limit: String, _ reason: String) throws {
    let found = try problems(
      #"{"levels": ["a", "b"], "features": {"f": {"metered": true}}, "plans": {"#
        + #""p": {"f": [{"id": "x", "quota": 5, "per": "day"}]}, "q": {"f": [\#(limit)]}}}"#)
    #expect(found.count == 1)
    #expect(found.first?.hasPrefix("plans/q/f/0/id") == true)
    #expect(found.first?.contains(reason) == true, "\(found)")
  }

  /// PITFALL 12: a rate so large, or so slow, that arithmetic would overflow.
  @Test func aRateBeyondExactCountingIsRefused() throws {
    let slow = #"[{"id": "x", "rate": 1, "per": "3162240000s", "burst": 9007199254740991}]"#
    #expect(throws: InvalidDocument.self) {
      try Catalog(document: Document(json: Self.wrapped(slow)))
    }
    _ = try catalog(Self.wrapped(#"[{"id": "x", "rate": 9007199254740991, "per": "1s"}]"#))
    _ = try catalog(Self.wrapped(#"[{"id": "x", "rate": 1, "per": "week", "burst": 3000}]"#))
  }

  static func wrapped(_ limits: String) -> String {
    #"{"levels": ["a"], "features": {"f": {"metered": true}}, "plans": {"p": {"f": \#(limits)}}}"#
  }

  @Test func bypassesAndAccountsSurviveTheRoundTrip() throws {
    let config = GlobalConfig(
      version: 7, catalogVersion: 3, catalog: try catalog(Self.good),
      bypasses: [
        Bypass(feature: nil, until: noon, reason: "incident \"9\"", actor: "ann"),
        Bypass(feature: try name("agents"), until: noon, reason: "", actor: "bob"),
      ])
    #expect(try GlobalConfig(document: Document(json: config.document.json())) == config)
    let account = AccountConfig(
      version: 4, plan: try name("pro"), frozen: true,
      overrides: [
        try override("acme", "chat.rpm", .amount(3), expires: 12),
        try override("acme/ann", "chat.rpm", .unlimited),
        try override("acme", "agents.gate", .enabled(true)),
        try override("acme", "chat.month", .enforcement(.shadow)),
      ], sourceID: "crm", sourceVersion: 9)
    #expect(try AccountConfig(document: Document(json: account.document.json())) == account)
    #expect(try AccountConfig(document: AccountConfig().document) == AccountConfig())
  }

  @Test func whatHappensToAnAccountByTimeSurvivesTheRoundTrip() throws {
    let grant = Grant(
      id: try name("g1"), feature: try name("f"), amount: 5, kind: .promotional, priority: 3,
      effective: noon, expires: noon + 1, created: noon, every: Window(.month, .anchored),
      rollover: Rollover(min: 1, max: 2), voided: noon, reason: "r", author: "a")
    let account = AccountConfig(
      version: 4, plan: try name("pro"), grants: [grant], sourceID: "crm", sourceVersion: 9,
      next: NextPlan(plan: try name("free"), at: noon, endsTrial: true),
      pastDue: PastDue(since: noon, graceEnds: noon + 5),
      otherSources: [SourceMark(id: "stripe", version: 0)], retiredGrants: [.max, 0, 7])
    #expect(try AccountConfig(document: Document(json: account.document.json())) == account)
    var ended = account
    ended.next?.plan = nil
    #expect(try AccountConfig(document: Document(json: ended.document.json())) == ended)
  }

  @Test(arguments: [
    #"{"version": 1, "next": {"plan": "p q", "at_ms": 1}}"#,
    #"{"version": 1, "next": {"plan": "p"}}"#, #"{"version": 1, "next": {"at_ms": -1}}"#,
    #"{"version": 1, "past_due": {"since_ms": 1}}"#, #"{"version": 1, "past_due": true}"#,
    #"{"version": 1, "other_sources": [{"id": "x"}]}"#,
    #"{"version": 1, "retired_grants": ["zz"]}"#, #"{"version": 1, "trial": true}"#,
  ])
  func aDamagedAccountIsRefused(_ json: String) {
    #expect(throws: InvalidDocument.self) { try AccountConfig(document: Document(json: json)) }
  }

  @Test func ranksAreReadAndWrittenAndMustNameAPlan() throws {
    let json = { (ranks: String) in
      #"{"levels": ["a"], "features": {}, "ranks": \#(ranks), "plans": {"p": {}, "q": {}}}"#
    }
    let ranked = try catalog(json(#"{"q": 7}"#))
    #expect(ranked.plans[try name("q")]?.rank == 7)
    #expect(ranked.plans.values.filter { $0.rank == nil }.count == 1)
    #expect(try Catalog(document: Document(json: ranked.document.json())) == ranked)
    #expect(try problems(json(#"{"r": 7}"#)) == ["ranks/r: there is no such plan"])
  }

  /// A damaged configuration is an error; it never silently means something wider.
  @Test(arguments: [
    #"{"feature": 3, "until_ms": 1, "reason": "", "actor": ""}"#,
    #"{"feature": "f", "reason": "", "actor": ""}"#,
  ])
  func aDamagedBypassIsRefused(_ json: String) {
    #expect(throws: InvalidDocument.self) { try Bypass(document: Document(json: json)) }
  }

  @Test(arguments: [
    #"{"subject": "a", "limit": "l", "reason": "", "author": ""}"#,
    #"{"subject": "a", "limit": "l", "amount": 1, "unlimited": true, "reason": "", "author": ""}"#,
    #"{"subject": "a", "limit": "l", "amount": -1, "reason": "", "author": ""}"#,
    #"{"subject": "a//b", "limit": "l", "amount": 1, "reason": "", "author": ""}"#,
    #"{"subject": "a", "limit": "l", "amount": 1, "expires_ms": "x", "reason": "", "author": ""}"#,
  ])
  func aDamagedOverrideIsRefused(_ json: String) {
    #expect(throws: InvalidDocument.self) { try Override(document: Document(json: json)) }
  }

  @Test func aDecisionIsWrittenWithoutWhatItHasNot() {
    let decision = Decision(
      reason: .allowed, source: .redis, time: noon, items: [Decision.ItemState(settled: 3)])
    #expect(
      decision.document.json() == #"{"allowed":true,"reason":"ALLOWED","source":"redis","#
        + #""time_ms":1795237200000,"global_version":0,"account_version":0,"replayed":false,"#
        + #""items":[{"settled":3,"held":0}]}"#)
  }
}
