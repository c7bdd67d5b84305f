// Changes of accounts, limits, catalogs and bypasses, through JSON, over the fake backend.

import Testing
import TollgateCore
import TollgateServer
import TollgateTesting
import TollgateWire

@Suite(.blocking) struct AdminChangeTests {
  @Test func aPlanIsSetAndTheVersionGrows() async throws {
    let fixture = try AdminFixture()
    let reply: ChangeReply = try await fixture.send(
      .accountSet,
      AccountSetRequest(
        account: fixture.acme, plan: try Name("pro"), change: AdminFixture.options(1)))
    #expect(reply.result == .applied)
    #expect(reply.version == 2)
    #expect(reply.changes == ["plan: free → pro"])
    #expect(fixture.account()?.plan?.text == "pro")
    #expect(fixture.backend.read { $0.audit.first?.change.actor } == "ann (uid 0)")
  }

  @Test func theSameIDHasOneEffect() async throws {
    let fixture = try AdminFixture()
    let request = AccountSetRequest(
      account: fixture.acme, plan: try Name("pro"), change: AdminFixture.options(1))
    _ = try await fixture.send(.accountSet, request)
    _ = try await fixture.send(
      .accountSet,
      AccountSetRequest(
        account: fixture.acme, plan: try Name("free"), change: AdminFixture.options(2)))
    let again = try await fixture.send(.accountSet, request)
    #expect(again.result == .replayed)
    #expect(fixture.account()?.plan?.text == "free")
  }

  @Test func theSameIDWithAnotherBodyIsAMismatch() async throws {
    let fixture = try AdminFixture()
    _ = try await fixture.send(
      .accountSet,
      AccountSetRequest(
        account: fixture.acme, plan: try Name("pro"), change: AdminFixture.options(1)))
    let failure = try await fixture.refusal(
      .accountSet,
      AccountSetRequest(
        account: fixture.acme, plan: nil, frozen: true, change: AdminFixture.options(1)))
    #expect(failure.code == .idempotencyMismatch)
  }

  @Test func anOlderSourceEventChangesNothing() async throws {
    let fixture = try AdminFixture()
    func event(_ plan: String, _ version: Int64) async throws -> ChangeReply {
      try await fixture.send(
        .accountSet,
        AccountSetRequest(
          account: fixture.acme, plan: try Name(plan), sourceID: "billing", sourceVersion: version,
          change: AdminFixture.options()))
    }
    #expect(try await event("pro", 7).result == .applied)
    let late = try await event("free", 6)
    #expect(late.result == .ignored)
    #expect(late.detail.hasPrefix("older source version"))
    #expect(fixture.account()?.plan?.text == "pro")
    #expect(try await event("free", 7).result == .ignored)
    #expect(try await event("free", 8).result == .applied)
  }

  @Test func anUnknownPlanIsRefusedWithTheKnownOnes() async throws {
    let fixture = try AdminFixture()
    let failure = try await fixture.refusal(
      .accountSet,
      AccountSetRequest(
        account: fixture.acme, plan: try Name("gold"), change: AdminFixture.options()))
    #expect(failure.code == .notFound)
    #expect(failure.fix == "use one of: free, pro")
  }

  @Test func aChangeInBetweenIsReadAgainAndBothHold() async throws {
    let fixture = try AdminFixture()
    let acme = fixture.acme
    fixture.backend.edit { state in
      state.beforeWrite = [
        { state in
          state.accounts[acme]?.frozen = true
          state.accounts[acme]?.version += 1
        }
      ]
    }
    let reply = try await fixture.send(
      .accountSet,
      AccountSetRequest(account: acme, plan: try Name("pro"), change: AdminFixture.options(1)))
    #expect(reply.version == 3)
    #expect(fixture.account()?.frozen == true)
    #expect(fixture.account()?.plan?.text == "pro")
  }

  @Test func retriesOfAConflictAreBounded() async throws {
    let fixture = try AdminFixture()
    let acme = fixture.acme
    fixture.backend.edit { state in
      state.beforeWrite = Array(repeating: { $0.accounts[acme]?.version += 1 }, count: 100)
    }
    let failure = try await fixture.refusal(
      .accountSet,
      AccountSetRequest(account: acme, plan: try Name("pro"), change: AdminFixture.options(1)))
    #expect(failure.code == .conflict)
    #expect(fixture.backend.read { $0.beforeWrite.count } == 92)
  }

  @Test func aDryRunTellsWhoIsDeniedAndWritesNothing() async throws {
    let fixture = try AdminFixture()
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 60)
    let reply = try await fixture.send(
      .limitSet,
      LimitSetRequest(
        subject: fixture.acme, limit: try Name("chat.month"), amount: 60,
        change: AdminFixture.options(dryRun: true)))
    #expect(reply.result == .dryRun)
    #expect(reply.impact?.accountsAffected == 1)
    #expect(reply.impact?.deniedAtOnce == 1)
    #expect(reply.impact?.deniedExamples == ["acme"])
    #expect(fixture.account()?.version == 1)
    #expect(fixture.backend.read { $0.operations.isEmpty })
  }

  @Test func waitingForTheLedgerIsAnswered() async throws {
    let fixture = try AdminFixture()
    let first = try await fixture.send(
      .accountSet,
      AccountSetRequest(
        account: fixture.acme, plan: try Name("pro"), change: AdminFixture.options(wait: .ledger)))
    #expect(first.durable == .ledger)
    fixture.backend.edit { $0.ledgerConfirms = false }
    let second = try await fixture.send(
      .accountSet,
      AccountSetRequest(
        account: fixture.acme, plan: try Name("free"), change: AdminFixture.options(wait: .ledger))
    )
    #expect(second.durable == .redis)
    #expect(second.detail.contains("did not confirm"))
  }

  @Test func waitingForALedgerThatIsNotThereIsRefused() async throws {
    let fixture = try AdminFixture(hasLedger: false)
    let failure = try await fixture.refusal(
      .accountSet,
      AccountSetRequest(
        account: fixture.acme, plan: try Name("pro"), change: AdminFixture.options(wait: .ledger)))
    #expect(failure.problems.first?.path == "change/wait")
  }

  @Test func aMisspeltKeyIsRefusedByName() async throws {
    let fixture = try AdminFixture()
    let body = #"{"account":"acme","plan":"pro","change":{"actor":"ann","dryrun":true}}"#
    let answer = await fixture.service.answer(
      .accountSet, body: Array(body.utf8), caller: AdminFixture.caller)
    #expect(answer.status == .badRequest)
    let failure = try AdminJSON.decode(AdminErrorReply.self, from: answer.body).failure
    #expect(failure.problems.first?.path == "change/dryrun")
    #expect(fixture.account()?.plan?.text == "free")
  }

  // MARK: Limits

  @Test func anOverrideReplacesTheOneOfTheSameAspect() async throws {
    let fixture = try AdminFixture()
    func set(_ amount: Int64?, unlimited: Bool? = nil, enforcement: String? = nil) async throws {
      _ = try await fixture.send(
        .limitSet,
        LimitSetRequest(
          subject: fixture.acme, limit: try Name("chat.month"), amount: amount,
          unlimited: unlimited, enforcement: enforcement, change: AdminFixture.options()))
    }
    try await set(50)
    try await set(nil, enforcement: "soft")
    try await set(nil, unlimited: true)
    #expect(fixture.account()?.overrides.map(\.change) == [.enforcement(.soft), .unlimited])
  }

  @Test func overridesOfOneAccountAreBounded() async throws {
    let fixture = try AdminFixture()
    let acme = fixture.acme
    let overrides = try (0..<AccountConfig.overridesMax).map { index in
      Override(
        subject: try Subject("acme/m\(index)"), limit: try Name("chat.member"), change: .amount(1),
        expires: nil, reason: "", author: "")
    }
    fixture.backend.edit { $0.accounts[acme]?.overrides = overrides }
    let failure = try await fixture.refusal(
      .limitSet,
      LimitSetRequest(
        subject: acme, limit: try Name("chat.month"), amount: 1, change: AdminFixture.options()))
    #expect(failure.code == .conflict)
    #expect(failure.message.contains("257 overrides"))
  }

  @Test func expiredOverridesMakeRoom() async throws {
    let fixture = try AdminFixture()
    let acme = fixture.acme
    let past = WallTime(milliseconds: 1)
    let old = Override(
      subject: acme, limit: try Name("chat.rpm"), change: .amount(1), expires: past, reason: "",
      author: "")
    fixture.backend.edit { $0.accounts[acme]?.overrides = [old] }
    _ = try await fixture.send(
      .limitSet,
      LimitSetRequest(
        subject: acme, limit: try Name("chat.month"), amount: 5, change: AdminFixture.options()))
    #expect(fixture.account()?.overrides.map(\.limit.text) == ["chat.month"])
  }

  @Test func aSubjectBelowTheLimitsLevelIsRefused() async throws {
    let fixture = try AdminFixture()
    let failure = try await fixture.refusal(
      .limitSet,
      LimitSetRequest(
        subject: try Subject("acme/bob"), limit: try Name("chat.month"), amount: 5,
        change: AdminFixture.options()))
    #expect(failure.problems.first?.path == "subject")
  }

  @Test func aReasonIsRequired() async throws {
    let fixture = try AdminFixture()
    let failure = try await fixture.refusal(
      .limitSet,
      LimitSetRequest(
        subject: fixture.acme, limit: try Name("chat.month"), amount: 5,
        change: AdminFixture.options(reason: "")))
    #expect(failure.problems.first?.path == "change/reason")
  }

  @Test func unsettingTwiceIsUnchanged() async throws {
    let fixture = try AdminFixture()
    _ = try await fixture.send(
      .limitSet,
      LimitSetRequest(
        subject: fixture.acme, limit: try Name("chat.month"), amount: 5,
        change: AdminFixture.options()))
    let request = LimitUnsetRequest(
      subject: fixture.acme, limit: try Name("chat.month"), change: AdminFixture.options())
    #expect(try await fixture.send(.limitUnset, request).result == .applied)
    #expect(try await fixture.send(.limitUnset, request).result == .unchanged)
    #expect(fixture.account()?.overrides.isEmpty == true)
  }

  // MARK: Import

  @Test func anImportAppliesRowsAndNamesTheBadOnes() async throws {
    let fixture = try AdminFixture()
    let request = AccountImportRequest(
      rows: [
        .init(account: "a", plan: "free"), .init(account: "b c", plan: "free"),
        .init(account: "d", plan: "gold"), .init(account: "acme", plan: "free"),
      ], firstRow: 10, sourceID: nil, change: AdminFixture.options(5))
    let reply = try await fixture.send(.accountImport, request, as: AccountImportReply.self)
    #expect(reply.applied == 1)
    #expect(reply.unchanged == 1)
    #expect(reply.failed.map(\.row) == [11, 12])
    #expect(reply.failed.map(\.code) == ["INVALID_NAME", "NOT_FOUND"])
    let again = try await fixture.send(.accountImport, request, as: AccountImportReply.self)
    #expect(again.applied == 0)
    #expect(again.unchanged == 2)
  }

  @Test func aBatchSentAgainDoesNotUndoWhatCameAfter() async throws {
    let fixture = try AdminFixture()
    let request = AccountImportRequest(
      rows: [.init(account: "acme", plan: "pro")], firstRow: 1, sourceID: nil,
      change: AdminFixture.options(5))
    _ = try await fixture.send(.accountImport, request, as: AccountImportReply.self)
    _ = try await fixture.send(
      .accountSet,
      AccountSetRequest(
        account: fixture.acme, plan: try Name("free"), change: AdminFixture.options(6)))
    let again = try await fixture.send(.accountImport, request, as: AccountImportReply.self)
    #expect(again.replayed == 1)
    #expect(fixture.account()?.plan?.text == "free")
  }

  // MARK: Catalog

  private func applying(
    _ yaml: String, dryRun: Bool = false, expected: Int64? = nil
  ) throws -> CatalogApplyRequest {
    CatalogApplyRequest(
      document: try AdminFixture.document(yaml), expectedVersion: expected,
      change: AdminFixture.options(dryRun: dryRun))
  }

  @Test func applyRaisesBothVersionsAndAnnounces() async throws {
    let fixture = try AdminFixture()
    let yaml = AdminFixture.catalogYAML.replacing("quota: 100,", with: "quota: 120,")
    let reply = try await fixture.send(
      .catalogApply, try applying(yaml), as: CatalogChangeReply.self)
    #expect(reply.catalogVersion == 2)
    #expect(reply.change.version == 2)
    #expect(reply.change.changes == ["~ plans/free/chat.requests/chat.month quota: 100 → 120"])
    #expect(fixture.backend.read(\.published) == [2])
  }

  /// The ledger may be slow, and no bucket may wait for it.
  @Test func aCatalogIsAnnouncedBeforeTheLedgerIsWaitedFor() async throws {
    let fixture = try AdminFixture()
    let yaml = AdminFixture.catalogYAML.replacing("quota: 100,", with: "quota: 120,")
    let request = CatalogApplyRequest(
      document: try AdminFixture.document(yaml), expectedVersion: nil,
      change: AdminFixture.options(wait: .ledger))
    _ = try await fixture.send(.catalogApply, request, as: CatalogChangeReply.self)
    #expect(fixture.backend.read(\.publishedWhenWaited) == [2])
    #expect(fixture.backend.read(\.published) == [2])
  }

  @Test func applyingTheSameContentIsUnchanged() async throws {
    let fixture = try AdminFixture()
    let reply = try await fixture.send(
      .catalogApply, try applying(AdminFixture.catalogYAML), as: CatalogChangeReply.self)
    #expect(reply.change.result == .unchanged)
    #expect(fixture.backend.read { $0.global?.version } == 1)
  }

  @Test func aChangeOfAFeaturesClassIsRefused() async throws {
    let fixture = try AdminFixture()
    let yaml = AdminFixture.catalogYAML.replacing(
      "tokens.output: {metered: true, importance: volume",
      with: "tokens.output: {metered: false, importance: volume")
    let failure = try await fixture.refusal(.catalogApply, try applying(yaml))
    #expect(failure.code == .conflict)
    #expect(failure.problems.map(\.path) == ["features/tokens.output/metered"])
    #expect(fixture.backend.read { $0.global?.version } == 1)
  }

  /// Taken out by one catalog and put back by the next, a feature would change its class all the
  /// same, and operations of it could be replayed as new.
  @Test func aFeatureThatComesBackKeepsItsClass() async throws {
    let fixture = try AdminFixture()
    let line = "tokens.output: {metered: true, importance: volume, unit: token}"
    let entitlement =
      "    tokens.output:\n"
      + "      - {id: tokens.month, quota: 5000, per: month, enforcement: shadow}\n"
    let without = AdminFixture.catalogYAML.replacing("  \(line)\n", with: "").replacing(
      entitlement, with: "")
    _ = try await fixture.send(.catalogApply, try applying(without), as: CatalogChangeReply.self)
    #expect(fixture.backend.read { $0.global?.catalog.features.count } == 2)
    let changed = AdminFixture.catalogYAML.replacing(
      line, with: "tokens.output: {metered: true, importance: money, unit: token}")
    let failure = try await fixture.refusal(.catalogApply, try applying(changed))
    #expect(failure.code == .conflict)
    let problem = try #require(failure.problems.first)
    #expect(problem.path == "features/tokens.output/importance")
    #expect(problem.value == "\"money\"")
    #expect(problem.reason.contains("catalog version 1 had it in another class"))
    let diff = try await fixture.send(
      .catalogDiff, CatalogValidateRequest(document: try AdminFixture.document(changed)),
      as: CatalogDiffReply.self)
    #expect(diff.refusals.count == 1)
    // In its own class it may come back.
    _ = try await fixture.send(
      .catalogApply, try applying(AdminFixture.catalogYAML), as: CatalogChangeReply.self)
    #expect(fixture.backend.read { $0.global?.catalogVersion } == 3)
  }

  @Test func anUnsoundCatalogNamesEveryProblem() async throws {
    let fixture = try AdminFixture()
    let yaml = AdminFixture.catalogYAML
      .replacing("quota: 100,", with: "quota: -1,").replacing("rate: 10,", with: "rat: 10,")
    let failure = try await fixture.refusal(.catalogApply, try applying(yaml))
    #expect(failure.code == .invalidDocument)
    #expect(failure.problems.count >= 2)
  }

  @Test func applyToAnotherVersionThanExpectedIsAConflict() async throws {
    let fixture = try AdminFixture()
    let failure = try await fixture.refusal(
      .catalogApply, try applying(AdminFixture.catalogYAML, expected: 9))
    #expect(failure.code == .conflict)
  }

  @Test func rollbackIsANewVersionWithOldContent() async throws {
    let fixture = try AdminFixture()
    let yaml = AdminFixture.catalogYAML.replacing("quota: 100,", with: "quota: 120,")
    _ = try await fixture.send(.catalogApply, try applying(yaml), as: CatalogChangeReply.self)
    let reply = try await fixture.send(
      .catalogRollback, CatalogRollbackRequest(to: 1, change: AdminFixture.options()),
      as: CatalogChangeReply.self)
    #expect(reply.catalogVersion == 3)
    #expect(
      fixture.backend.read { $0.global?.catalog }
        == (try AdminFixture.catalog(
          AdminFixture.catalogYAML)))
  }

  @Test func aDryRunOfACatalogCountsAccounts() async throws {
    let fixture = try AdminFixture()
    let other = try Subject("other")
    let pro = AccountConfig(version: 1, plan: try Name("pro"))
    fixture.backend.edit { $0.accounts[other] = pro }
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 30)
    let yaml = AdminFixture.catalogYAML.replacing("quota: 100,", with: "quota: 20,")
    let reply = try await fixture.send(
      .catalogApply, try applying(yaml, dryRun: true), as: CatalogChangeReply.self)
    #expect(
      reply.change.impact
        == Impact(
          accountsAffected: 1, deniedAtOnce: 1, accountsExamined: 2, deniedExamples: ["acme"]))
    #expect(fixture.backend.read { $0.global?.version } == 1)
  }

  @Test func meteredFeaturesNeedALedger() async throws {
    let fixture = try AdminFixture(hasLedger: false)
    let failure = try await fixture.refusal(
      .catalogApply, try applying(AdminFixture.catalogYAML))
    #expect(failure.code == .invalidDocument)
    #expect(failure.problems.count == 2)
  }

  // MARK: Bypass

  @Test func aBypassEndsByItself() async throws {
    let fixture = try AdminFixture()
    _ = try await fixture.send(
      .bypassSet,
      BypassRequest(
        feature: try Name("chat.requests"), durationMilliseconds: 60_000,
        change: AdminFixture.options()))
    let during = try await fixture.send(.bypassList, EmptyRequest(), as: BypassListReply.self)
    #expect(during.bypasses.map(\.leftMilliseconds) == [60_000])
    fixture.backend.edit { $0.now = $0.now + 60_000 }
    let after = try await fixture.send(.bypassList, EmptyRequest(), as: BypassListReply.self)
    #expect(after.bypasses.isEmpty)
  }

  @Test func clearingEverythingEndsEveryBypass() async throws {
    let fixture = try AdminFixture()
    for feature in ["chat.requests", "beta"] {
      _ = try await fixture.send(
        .bypassSet,
        BypassRequest(
          feature: try Name(feature), durationMilliseconds: 60_000, change: AdminFixture.options())
      )
    }
    let request = BypassClearRequest(
      feature: nil, everything: true, change: AdminFixture.options())
    #expect(try await fixture.send(.bypassClear, request).result == .applied)
    #expect(fixture.backend.read { $0.global?.bypasses.isEmpty } == true)
    #expect(try await fixture.send(.bypassClear, request).result == .unchanged)
  }
}
