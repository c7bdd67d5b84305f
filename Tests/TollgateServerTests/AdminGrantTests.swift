// grant.add, grant.void and grant.list, through JSON, over the fake backend.

import Testing
import TollgateCore
import TollgateServer
import TollgateTesting
import TollgateWire

@Suite(.blocking) struct AdminGrantTests {
  let fixture: AdminFixture

  init() throws { fixture = try RichCatalog.fixture() }

  private var now: WallTime { fixture.backend.read(\.now) }
  private static let day: Int64 = 86_400_000

  private func pass(_ milliseconds: Int64) {
    fixture.backend.edit { $0.now = $0.now + milliseconds }
  }

  private func add(
    _ id: String?, _ amount: Int64 = 100, feature: String = "spend",
    operation: UInt64? = nil, _ edit: (inout GrantAddRequest) -> Void = { _ in }
  ) throws -> GrantAddRequest {
    var request = GrantAddRequest(
      account: fixture.acme, feature: try Name(feature), amount: amount,
      id: try id.map { try Name($0) }, change: AdminFixture.options(operation))
    edit(&request)
    return request
  }

  private func send(_ request: GrantAddRequest) async throws -> ChangeReply {
    try await fixture.send(.grantAdd, request)
  }

  private func void(_ id: String) async throws -> ChangeReply {
    try await fixture.send(
      .grantVoid,
      GrantVoidRequest(
        account: fixture.acme, id: try Name(id), change: AdminFixture.options()))
  }

  private func list() async throws -> [GrantReport] {
    try await fixture.send(
      .grantList, GrantListRequest(account: fixture.acme), as: GrantListReply.self
    ).grants
  }

  private func burn(
    _ id: String, _ units: Int64, held: Int64 = 0, from start: WallTime
  ) throws {
    let reference = CounterReference(
      subject: fixture.acme, feature: try Name("spend"), window: .grant(try Name(id)))
    fixture.backend.edit {
      $0.counters[reference] = CounterState(start: start, settled: units, held: held)
    }
  }

  // MARK: Add

  @Test func aGrantIsAddedOnceUnderItsOperation() async throws {
    let request = try add(nil, operation: 5)
    let reply = try await send(request)
    #expect(reply.result == .applied && reply.version == 2)
    try fixture.remember("grant.add", request, request.change.operation)
    #expect(try await send(request).result == .replayed)
    let grant = try #require(fixture.account()?.grants.first)
    #expect(fixture.account()?.grants.count == 1)
    #expect(grant.id.text == "g-\(AdminFixture.id(5).hex)")
    #expect(grant.effective == now && grant.author == "ann (uid 0)" && grant.reason == "test")
    #expect(fixture.backend.read { $0.audit.first?.change.action } == "grant.add")
  }

  @Test func anIDIsGivenOnce() async throws {
    _ = try await send(add("promo"))
    // Asked again with the same terms, as by a system that lost the answer and its id.
    #expect(try await send(add("promo")).result == .unchanged)
    #expect(try await fixture.refusal(.grantAdd, add("promo", 101)).code == .conflict)
    _ = try await void("promo")
    #expect(try await fixture.refusal(.grantAdd, add("promo")).code == .conflict)
    #expect(fixture.account()?.grants.count == 1)
  }

  @Test func theIDOfALimitIsNotGiven() async throws {
    let failure = try await fixture.refusal(.grantAdd, add("spend.ultra"))
    #expect(failure.code == .conflict && failure.message.contains("spend.ultra"))
  }

  @Test func whatIsUnsoundIsRefusedByName() async throws {
    let now = now
    let wrong: [(GrantAddRequest, ErrorCode, String?)] = [
      (try add("x", 0), .amountOutOfRange, "amount"),
      (try add("x", -5), .amountOutOfRange, "amount"),
      (try add("x", Quantity.maximum + 1), .amountOutOfRange, "amount"),
      (try add("x", feature: "nothing"), .notFound, nil),
      (try add("x") { $0.kind = "free" }, .badRequest, "kind"),
      (try add("x") { $0.priority = 1001 }, .badRequest, "priority"),
      (try add("x") { $0.expires = now }, .badRequest, "expires_ms"),
      (
        try add("x") {
          $0.effective = now + 9000
          $0.expires = now + 9000
        }, .badRequest, "expires_ms"
      ),
      (try add("x") { $0.every = "lifetime" }, .badRequest, "every"),
      (try add("x") { $0.every = "fortnight" }, .badRequest, "every"),
      (try add("x") { $0.rolloverMax = 5 }, .badRequest, "rollover_max"),
      (
        try add("x") {
          $0.every = "month"
          $0.rolloverMin = 5
        }, .badRequest, "rollover_max"
      ),
      (
        try add("x") {
          $0.every = "month"
          $0.rolloverMin = 5
          $0.rolloverMax = 4
        }, .badRequest, "rollover_max"
      ),
      (try add("x") { $0.sourceID = "s" }, .badRequest, "source_id"),
    ]
    for (request, code, path) in wrong {
      let failure = try await fixture.refusal(.grantAdd, request)
      #expect(failure.code == code)
      if let path { #expect(failure.problems.map(\.path) == [path]) }
    }
    #expect(fixture.account()?.version == 1)
  }

  @Test func aDryRunAddsNothing() async throws {
    let request = GrantAddRequest(
      account: fixture.acme, feature: try Name("spend"), amount: 1,
      change: AdminFixture.options(dryRun: true))
    let reply = try await send(request)
    #expect(reply.result == .dryRun && reply.impact?.accountsAffected == 1)
    #expect(fixture.account()?.grants.isEmpty == true)
  }

  @Test func aGrantThatNothingBurnsIsAddedWithANote() async throws {
    let reply = try await send(add("x", feature: "chat"))
    #expect(reply.changes.last == "note: plan pro has no credit limit of chat, so nothing burns it")
    #expect(try await list().first { $0.id.text == "x" }?.state == .idle)
  }

  // MARK: Room

  /// As many as there may be; the first of them ends after `days`.
  private func fill(expiring days: Int64?) throws {
    let (acme, start) = (fixture.acme, now)
    let spend = try Name("spend")
    let grants = try (0..<AccountConfig.grantsMax).map { index in
      Grant(
        id: try Name("g\(index)"), feature: spend, amount: 1, effective: start,
        expires: index == 0 ? days.map { start + $0 * Self.day } : nil, created: start)
    }
    fixture.backend.edit { $0.accounts[acme]?.grants = grants }
  }

  @Test func theBoundIsAConflictWhileNothingEndedLongAgo() async throws {
    try fill(expiring: 1)
    for days in [0, 1, 400] as [Int64] {
      fixture.backend.edit { $0.now = WallTime(milliseconds: 1_763_700_000_000 + days * Self.day) }
      #expect(try await fixture.refusal(.grantAdd, add("new")).code == .conflict)
    }
    #expect(fixture.account()?.grants.count == AccountConfig.grantsMax)
  }

  @Test func whatEndedLongAgoMakesRoomAndItsIDStaysTaken() async throws {
    try fill(expiring: 1)
    pass(401 * Self.day)
    #expect(try await send(add("new")).result == .applied)
    let account = try #require(fixture.account())
    #expect(account.grants.count == AccountConfig.grantsMax)
    #expect(!account.grants.contains { $0.id.text == "g0" })
    let failure = try await fixture.refusal(.grantAdd, add("g0"))
    #expect(failure.code == .conflict && failure.message == "there was a grant g0 once")
    // Nothing else ended.
    #expect(try await fixture.refusal(.grantAdd, add("newer")).code == .conflict)
  }

  @Test func nothingIsDroppedWhereThereIsRoom() async throws {
    try fill(expiring: 1)
    let acme = fixture.acme
    fixture.backend.edit { $0.accounts[acme]?.grants.removeLast() }
    pass(500 * Self.day)
    _ = try await send(add("new"))
    #expect(fixture.account()?.grants.first?.id.text == "g0")
    #expect(fixture.account()?.retiredGrants == [])
  }

  @Test func aVoidedGrantMakesRoomTooAndTheIDsKeptAreBounded() async throws {
    try fill(expiring: nil)
    _ = try await void("g5")
    pass(400 * Self.day)
    let acme = fixture.acme
    fixture.backend.edit {
      $0.accounts[acme]?.retiredGrants = Array(repeating: 1, count: AccountConfig.retiredGrantsMax)
    }
    #expect(try await fixture.refusal(.grantAdd, add("new")).code == .conflict)
    fixture.backend.edit { $0.accounts[acme]?.retiredGrants.removeLast() }
    #expect(try await send(add("new")).result == .applied)
    #expect(fixture.account()?.grants.contains { $0.id.text == "g5" } == false)
  }

  // MARK: Void

  @Test func voidTakesWhatIsLeftAndKeepsTheGrant() async throws {
    _ = try await send(add("promo"))
    try burn("promo", 60, held: 15, from: now)
    #expect(try await void("promo").result == .applied)
    #expect(try await void("promo").result == .unchanged)
    let row = try #require(try await list().first { $0.id.text == "promo" })
    #expect(row.state == .voided && row.left == 0 && row.burnt == 60 && row.held == 15)
    #expect(row.order == nil)
  }

  @Test func voidOfWhatIsNotThereSaysWhatIs() async throws {
    _ = try await send(add("promo"))
    let unknown = GrantVoidRequest(
      account: fixture.acme, id: try Name("nope"), change: AdminFixture.options())
    #expect(try await fixture.refusal(.grantVoid, unknown).fix == "it has: promo")
    let plans = GrantVoidRequest(
      account: fixture.acme, id: try Name("spend.pro"), change: AdminFixture.options())
    #expect(try await fixture.refusal(.grantVoid, plans).fix.contains("limit set"))
    let member = GrantVoidRequest(
      account: try Subject("acme/bob"), id: try Name("promo"), change: AdminFixture.options())
    #expect(try await fixture.refusal(.grantVoid, member).code == .badRequest)
  }

  @Test func whatExpiredIsNotVoided() async throws {
    let now = now
    _ = try await send(add("promo") { $0.expires = now + 1000 })
    pass(1000)
    #expect(try await void("promo").result == .unchanged)
    #expect(fixture.account()?.grants.first?.voided == nil)
  }

  // MARK: List

  @Test func theListIsInTheOrderOfBurning() async throws {
    let now = now
    _ = try await send(add("late") { $0.priority = 900 })
    _ = try await send(
      add("promo") {
        $0.kind = "promotional"; $0.expires = now + Self.day
      })
    _ = try await send(add("soon") { $0.expires = now + Self.day })
    _ = try await send(add("first") { $0.priority = 0 })
    _ = try await send(add("later") { $0.effective = now + Self.day })
    try burn("first", 100, from: now)
    let rows = try await list()
    #expect(rows.map(\.id.text) == ["first", "promo", "soon", "spend.pro", "late", "later"])
    #expect(rows.map(\.order) == [1, 2, 3, 4, 5, nil])
    #expect(
      rows.map(\.state) == [.usedUp, .active, .active, .active, .active, .scheduled])
    #expect(rows.map(\.ofPlan) == [false, false, false, true, false, false])
    #expect(rows[3].amount == 500 && rows[3].every == .month)
  }

  @Test func aRecurringGrantShowsWhatCameOver() async throws {
    _ = try await send(
      add("monthly", 40) {
        $0.every = "month"
        $0.rolloverMax = 25
      })
    let before = Window.month.period(containing: now)
    try burn("monthly", 10, from: before.start)
    #expect(try await list().first { $0.id.text == "monthly" }?.left == 30)
    fixture.backend.edit { $0.now = before.end }
    let row = try #require(try await list().first { $0.id.text == "monthly" })
    #expect(row.carried == 25 && row.left == 65 && row.burnt == 0)
    #expect(row.period == Window.month.period(containing: before.end))
  }

  @Test func anExpiredGrantShowsWhatWasBurntWhileItsCounterStands() async throws {
    let start = now
    _ = try await send(add("promo") { $0.expires = start + 1000 })
    try burn("promo", 30, from: start)
    pass(5000)
    let row = try #require(try await list().first { $0.id.text == "promo" })
    #expect(row.state == .expired && row.burnt == 30 && row.left == 0)
    fixture.backend.edit { $0.counters = [:] }
    let gone = try #require(try await list().first { $0.id.text == "promo" })
    #expect(gone.burnt == nil)
  }

  @Test func neitherAFreezeNorAnotherPlanHidesGrants() async throws {
    _ = try await send(add("promo"))
    try burn("promo", 30, from: now)
    let acme = fixture.acme
    let free = try Name("free")
    let since = now
    fixture.backend.edit {
      $0.accounts[acme]?.plan = free
      $0.accounts[acme]?.frozen = true
      $0.accounts[acme]?.pastDue = PastDue(since: since, graceEnds: since)
    }
    let rows = try await list()
    #expect(rows.map(\.id.text) == ["promo"])
    #expect(rows.map(\.state) == [.idle] && rows.map(\.left) == [70])
  }

  @Test func whatIsOwedIsShown() async throws {
    let reference = CounterReference(
      subject: fixture.acme, feature: try Name("spend"), window: .deficit)
    fixture.backend.edit {
      $0.counters[reference] = CounterState(start: WallTime(milliseconds: 0), settled: 9)
    }
    let reply = try await fixture.send(
      .grantList, GrantListRequest(account: fixture.acme), as: GrantListReply.self)
    #expect(reply.owed.map(\.units) == [9] && reply.owed.map(\.feature.text) == ["spend"])
  }
}
