// What the handlers make of an operation id that is known, of a bound that is reached, of a ledger
// that is behind or away.

import Testing
import TollgateCore
import TollgateServer
import TollgateTesting
import TollgateWire

@Suite(.blocking) struct AdminOperationTests {
  /// The handlers ask the memory before they edit; the fake's is set by hand.
  private func remember(
    _ fixture: AdminFixture, _ request: some Encodable, action: String, id: UInt64, result: Int64,
    floor: UInt64 = 0
  ) throws {
    let print = try AdminService<FakeBackend>.fingerprint(action, request)
    fixture.backend.edit { state in
      state.memory = ChangeMemory(
        floor: floor == 0 ? OperationID(high: 0, low: 0) : AdminFixture.id(floor),
        entries: [
          .init(
            operation: AdminFixture.id(id), fingerprint: print, result: result, time: state.now)
        ])
    }
  }

  @Test func anIdThatIsKnownIsReplayedEvenWhereNothingIsLeftToDo() async throws {
    let fixture = try AdminFixture()
    let request = AccountSetRequest(
      account: fixture.acme, plan: try Name("free"), change: AdminFixture.options(5))
    try remember(fixture, request, action: "account.set", id: 5, result: 17)
    let reply = try await fixture.send(.accountSet, request)
    #expect(reply.result == .replayed && reply.version == 17)
    // Without the id it is `unchanged`: the account is on that plan.
    let other = AccountSetRequest(
      account: fixture.acme, plan: try Name("free"), change: AdminFixture.options(6))
    #expect(try await fixture.send(.accountSet, other).result == .unchanged)
  }

  @Test func aMismatchSaysWhatDiffers() async throws {
    let fixture = try AdminFixture()
    let first = AccountSetRequest(
      account: fixture.acme, plan: try Name("free"), change: AdminFixture.options(5))
    try remember(fixture, first, action: "account.set", id: 5, result: 2)
    var other = first
    other.plan = try Name("pro")
    let values = try await fixture.refusal(.accountSet, other)
    #expect(values.code == .idempotencyMismatch && values.problems.map(\.path) == ["request"])
    let kind = try await fixture.refusal(
      .limitUnset,
      LimitUnsetRequest(
        subject: fixture.acme, limit: try Name("chat.month"), change: AdminFixture.options(5)))
    #expect(kind.code == .idempotencyMismatch && kind.problems.map(\.path) == ["action"])
  }

  @Test func whatMayHaveBeenForgottenIsTooOldForEveryKindOfChange() async throws {
    let fixture = try AdminFixture()
    let request = AccountSetRequest(
      account: fixture.acme, plan: try Name("free"), change: AdminFixture.options(5))
    try remember(fixture, request, action: "account.set", id: 50, result: 2, floor: 9)
    #expect(try await fixture.refusal(.accountSet, request).code == .idTooOld)
    let reset = ResetRequest(
      subject: fixture.acme, limit: try Name("chat.month"), change: AdminFixture.options(9))
    #expect(try await fixture.refusal(.reset, reset).code == .idTooOld)
    let bypass = BypassRequest(
      feature: nil, durationMilliseconds: 60_000, change: AdminFixture.options(8))
    #expect(try await fixture.refusal(.bypassSet, bypass).code == .idTooOld)
    let rows = AccountImportRequest(
      rows: [.init(account: "acme", plan: "pro")], firstRow: 1, sourceID: nil,
      change: AdminFixture.options(5))
    let reply = try await fixture.send(.accountImport, rows, as: AccountImportReply.self)
    // A row's id is derived: the floor of the same instant stands above or below it.
    #expect(reply.applied + reply.failed.count == 1)
  }

  @Test func aResetThatIsKnownAnswersWhatItForgave() async throws {
    let fixture = try AdminFixture()
    let request = ResetRequest(
      subject: fixture.acme, limit: try Name("chat.month"), change: AdminFixture.options(5))
    try remember(fixture, request, action: "reset", id: 5, result: 42)
    let reply = try await fixture.send(.reset, request, as: ResetReply.self)
    #expect(reply.change.result == .replayed && reply.forgiven == 42)
  }

  // MARK: Import

  @Test func rowsOfOneAccountTakeEffectInTheirOrder() async throws {
    let fixture = try AdminFixture()
    let plans = (0..<40).map { $0 % 2 == 0 ? "pro" : "free" }
    let request = AccountImportRequest(
      rows: plans.map { .init(account: "many", plan: $0) }, firstRow: 1, sourceID: nil,
      change: AdminFixture.options(5))
    let reply = try await fixture.send(.accountImport, request, as: AccountImportReply.self)
    #expect(reply.applied == 40 && reply.failed.isEmpty)
    let many = try Subject("many")
    #expect(fixture.backend.read { $0.accounts[many]?.version } == 40)
    #expect(fixture.backend.read { $0.accounts[many]?.plan?.text } == "free")
  }

  /// Sent again after a later row of the account was applied, a row that had nothing to do the
  /// first time must not undo the later one.
  @Test func aRowSentAgainIsNotAppliedOnTopOfALaterOne() async throws {
    let fixture = try AdminFixture()
    let request = AccountImportRequest(
      rows: ["pro", "pro", "free"].map { .init(account: "acme", plan: $0) }, firstRow: 1,
      sourceID: nil, change: AdminFixture.options(5))
    let last = AdminService<FakeBackend>.operation(AdminFixture.id(5), row: 3, account: "acme")
    fixture.backend.edit { state in
      state.memory = ChangeMemory(
        entries: [.init(operation: last, fingerprint: 0, result: 9, time: state.now)])
    }
    let rows = AccountImportRequest(
      rows: Array(request.rows.prefix(2)), firstRow: 1, sourceID: nil, change: request.change)
    let reply = try await fixture.send(.accountImport, rows, as: AccountImportReply.self)
    #expect(reply.replayed == 2 && reply.applied == 0)
    #expect(fixture.account()?.plan?.text == "free")
  }

  @Test func idsOfRowsGrowWithTheirNumbers() {
    let base = AdminFixture.id(77)
    let ids = [1, 2, 300, 70_000, 4_000_000_000].map {
      AdminService<FakeBackend>.operation(base, row: $0, account: "a")
    }
    #expect(ids == ids.sorted() && Set(ids).count == ids.count)
    #expect(
      AdminService<FakeBackend>.operation(base, row: 1, account: "b") != ids[0]
        && ids[0].time == base.time)
  }

  @Test func anImportWaitsForTheLedgerAndGoesOn() async throws {
    let fixture = try AdminFixture()
    fixture.backend.edit { $0.crowded = 3 }
    let request = AccountImportRequest(
      rows: [.init(account: "x", plan: "pro")], firstRow: 1, sourceID: nil,
      change: AdminFixture.options(5))
    let reply = try await fixture.send(.accountImport, request, as: AccountImportReply.self)
    #expect(reply.applied == 1)
  }

  @Test func anImportIsRefusedWhereTheLedgerStaysBehind() async throws {
    let fixture = try AdminFixture()
    fixture.backend.edit {
      $0.crowded = 3
      $0.ledgerConfirms = false
    }
    let request = AccountImportRequest(
      rows: [.init(account: "x", plan: "pro")], firstRow: 1, sourceID: nil,
      change: AdminFixture.options(5))
    #expect(try await fixture.refusal(.accountImport, request).code == .overloaded)
    #expect(fixture.backend.read { $0.accounts.count } == 1)
  }

  // MARK: Bounds

  private func catalog(features: Int, limits: Int) throws -> Document {
    let names = (0..<features).map { "f\($0)" }
    let plan = names.map { name in
      "    \(name):\n"
        + (0..<limits).map { "      - {id: \(name).l\($0), quota: 5, per: \($0 + 60)s}\n" }.joined()
    }
    return try AdminFixture.document(
      "levels: [account]\nfeatures:\n"
        + names.map { "  \($0): {metered: false}\n" }.joined() + "plans:\n  big:\n"
        + plan.joined())
  }

  @Test func aFeatureWithMoreLimitsThanARequestMayHaveIsRefusedByName() async throws {
    #expect(Catalog.limitsPerFeatureMax <= Resolution.limitsMax)
    let fixture = try AdminFixture()
    let document = try catalog(features: 1, limits: Catalog.limitsPerFeatureMax + 1)
    for method in [AdminMethod.catalogValidate, .catalogApply] {
      let failure =
        method == .catalogValidate
        ? try await fixture.refusal(method, CatalogValidateRequest(document: document))
        : try await fixture.refusal(
          method, CatalogApplyRequest(document: document, change: AdminFixture.options()))
      #expect(failure.code == .invalidDocument)
      #expect(failure.problems.map(\.path) == ["plans/big/f0"])
      #expect(failure.problems.first?.reason == "has 9 entries; at most 8 are allowed")
    }
  }

  @Test func aPlanWhoseFeaturesDoNotFitOneRequestIsToldAndTheRequestRefused() async throws {
    let fixture = try AdminFixture()
    let document = try catalog(features: 5, limits: 8)
    let valid = try await fixture.send(
      .catalogValidate, CatalogValidateRequest(document: document),
      as: CatalogValidateReply.self)
    #expect(valid.warnings.count == 1 && valid.warnings[0].hasPrefix("plans/big: "))
    let catalog = try Catalog(document: document)
    let big = AccountConfig(version: 1, plan: try Name("big"))
    fixture.backend.edit { state in
      state.global = GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: [])
      state.accounts[fixture.acme] = big
    }
    func explain(_ features: Int) throws -> ExplainRequest {
      ExplainRequest(
        subject: fixture.acme,
        items: try (0..<features).map { .init(feature: try Name("f\($0)"), amount: 1) })
    }
    let four = try await fixture.send(.explain, try explain(4), as: ExplainReply.self)
    #expect(four.steps.count == 32)
    let five = try await fixture.refusal(.explain, try explain(5))
    #expect(five.code == .tooManyItems && five.message.contains("40 limits"))
  }
}
