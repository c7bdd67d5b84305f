// Zone and anchor of an account, through JSON, over the fake backend, whose clock stands at
// 2025-11-21T04:40:00Z.

import Testing
import TollgateCore
import TollgateServer
import TollgateTesting
import TollgateWire

@Suite(.blocking) struct AdminCalendarTests {
  let fixture: AdminFixture

  init() throws { fixture = try AdminFixture() }

  private var now: WallTime { fixture.backend.read(\.now) }

  private func pass(_ milliseconds: Int64) {
    fixture.backend.edit { $0.now = $0.now + milliseconds }
  }

  private func request(
    _ account: Subject? = nil, zone: String? = nil, anchor: WallTime? = nil, drop: Bool? = nil,
    restart: Bool? = nil, plan: String? = nil, dryRun: Bool = false
  ) throws -> AccountSetRequest {
    AccountSetRequest(
      account: account ?? fixture.acme, plan: try plan.map { try Name($0) }, zone: zone,
      anchor: anchor, dropAnchor: drop, restart: restart,
      change: AdminFixture.options(dryRun: dryRun))
  }

  private func set(_ request: AccountSetRequest) async throws -> ChangeReply {
    try await fixture.send(.accountSet, request)
  }

  /// The end of the month that `usage` shows.
  private func monthEnd() async throws -> WallTime? {
    let reply = try await fixture.send(
      .usage, UsageRequest(subject: fixture.acme), as: UsageReply.self)
    return reply.usage.first { $0.limit?.text == "chat.month" }?.reset
  }

  @Test func anUnknownZoneIsNamedWithWhatToGive() async throws {
    for zone in ["Europe/Berln", "../etc/passwd", "Europe", ""] {
      let failure = try await fixture.refusal(.accountSet, try request(zone: zone))
      #expect(failure.code == .badRequest)
      let problem = try #require(failure.problems.first)
      #expect(problem.path == "zone" && problem.value == zone)
      #expect(problem.reason.contains("give an IANA name such as Europe/Berlin"))
    }
    #expect(fixture.account()?.calendar == [])
  }

  @Test(arguments: [Quantity.maximum, -Quantity.maximum, 1_763_700_000_417])
  func anAnchorBeyondAllCalendarsOrBetweenSecondsIsRefused(_ anchor: Int64) async throws {
    let wrong = try request(anchor: WallTime(milliseconds: anchor))
    let failure = try await fixture.refusal(.accountSet, wrong)
    #expect(failure.problems.first?.path == "anchor_ms")
    #expect(failure.problems.first?.value == "\(anchor)")
  }

  @Test func aDryRunChangesNothing() async throws {
    let reply = try await set(request(zone: "Asia/Tokyo", dryRun: true))
    #expect(reply.result == .dryRun)
    #expect(reply.changes == ["calendar: UTC → Asia/Tokyo"])
    #expect(fixture.account()?.calendar == [])
  }

  @Test func aChangeIsInForceTwoSecondsLaterAndTheRunningMonthEndsWhereItWould() async throws {
    let end = try await monthEnd()
    #expect(end.map(CivilDate.text) == "2025-12-01T00:00:00Z")
    _ = try await set(request(zone: "Asia/Tokyo"))
    let setting = try #require(fixture.account()?.calendar.first)
    #expect(setting == CalendarSetting(zone: "Asia/Tokyo", since: now + 2000))
    pass(2000)
    #expect(try await monthEnd() == end)
    fixture.backend.edit { $0.now = end ?? $0.now }
    // December of Tokyo, which ends nine hours before that of UTC.
    #expect(try await monthEnd().map(CivilDate.text) == "2025-12-31T15:00:00Z")
  }

  @Test func usageIsNotForgottenByAChange() async throws {
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 98)
    _ = try await set(request(zone: "America/Los_Angeles"))
    pass(5000)
    let reply = try await fixture.send(
      .usage, UsageRequest(subject: fixture.acme), as: UsageReply.self)
    #expect(reply.usage.first { $0.limit?.text == "chat.month" }?.remaining == 2)
  }

  @Test func anotherChangeBeforeTheFirstIsInForceIsAConflict() async throws {
    _ = try await set(request(zone: "Asia/Tokyo"))
    pass(1999)
    let failure = try await fixture.refusal(.accountSet, try request(zone: "Asia/Kolkata"))
    #expect(failure.code == .conflict && failure.fix == "try again in a few seconds")
    pass(1)
    #expect(try await set(request(zone: "Asia/Kolkata")).result == .applied)
    #expect(fixture.account()?.calendar.map(\.zone) == ["Asia/Tokyo", "Asia/Kolkata"])
  }

  @Test func whatIsSoAlreadyChangesNothing() async throws {
    #expect(try await set(request(zone: "UTC")).result == .unchanged)
    #expect(try await set(request(drop: true)).result == .unchanged)
    _ = try await set(request(zone: "Asia/Tokyo", anchor: now))
    #expect(try await set(request(zone: "Asia/Tokyo", anchor: now)).result == .unchanged)
    #expect(fixture.account()?.calendar.count == 1)
  }

  @Test func dropAnchorGoesWithNeitherAnchorNorRestart() async throws {
    for wrong in [try request(anchor: now, drop: true), try request(drop: true, restart: true)] {
      let failure = try await fixture.refusal(.accountSet, wrong)
      #expect(failure.code == .badRequest && failure.problems.first?.path == "drop_anchor")
    }
    _ = try await set(request(anchor: now))
    pass(5000)
    let reply = try await set(request(drop: true))
    #expect(reply.changes == ["calendar: UTC anchored at 2025-11-21T04:40:00Z → UTC"])
    #expect(fixture.account()?.calendar.last?.anchor == nil)
  }

  @Test func aRestartIsAnchoredWhereItBegins() async throws {
    fixture.backend.edit { $0.now = $0.now + 417 }
    let reply = try await set(request(restart: true))
    #expect(
      reply.changes == [
        "calendar: UTC → UTC anchored at 2025-11-21T04:40:03Z, beginning a new period"
      ])
    let setting = try #require(fixture.account()?.calendar.last)
    #expect(setting.restarts && setting.anchor == setting.since)
    // What was printed of it can be given back, and is what is.
    let printed = try #require(setting.anchor)
    #expect(printed.milliseconds % 1000 == 0)
    pass(10_000)
    #expect(try await set(request(anchor: printed)).result == .unchanged)
    // Again, from the same anchor: a new period all the same.
    #expect(try await set(request(anchor: printed, restart: true)).result == .applied)
  }

  @Test func theFirstSettingOfANewAccountHoldsForAllTime() async throws {
    _ = try await set(request(Subject("new"), zone: "Pacific/Kiritimati", plan: "free"))
    #expect(fixture.account(try Subject("new"))?.calendar == [.init(zone: "Pacific/Kiritimati")])
  }

  /// It has counters, in months of UTC.
  @Test func ofAnAccountThatADefaultPlanServedTheRunningPeriodGoesOn() async throws {
    let plan = try Name("free")
    fixture.backend.edit { $0.global?.catalog.unknownAccount = .plan(plan) }
    _ = try await set(request(Subject("new"), zone: "Pacific/Kiritimati", plan: "free"))
    #expect(fixture.account(try Subject("new"))?.calendar.first?.since == now + 2000)
  }

  @Test func sixteenChangesInThreeYearsAreRemembered() async throws {
    for number in 0..<AccountConfig.calendarSettingsMax {
      _ = try await set(request(zone: number % 2 == 0 ? "Asia/Tokyo" : "UTC"))
      pass(86_400_000)
    }
    let failure = try await fixture.refusal(.accountSet, try request(zone: "Asia/Kolkata"))
    #expect(failure.code == .conflict)
    #expect(failure.message.hasPrefix("zone and anchor were changed 16 times in 3 years"))
    #expect(failure.fix == "wait until the oldest is 3 years old")
    // Then what came before it is of no account any more.
    pass(3 * 366 * 86_400_000 - 14 * 86_400_000)
    #expect(try await set(request(zone: "Asia/Kolkata")).result == .applied)
    let zones = fixture.account()?.calendar.map(\.zone) ?? []
    #expect(zones.count < 17 && zones.last == "Asia/Kolkata")
  }

  @Test func theAuditShowsBeforeAndAfter() async throws {
    _ = try await set(request(zone: "Asia/Tokyo", anchor: now))
    let log = try await fixture.send(
      .auditLog, AuditRequest(account: "acme", limit: 1), as: AuditReply.self)
    let entry = try #require(log.entries.first)
    #expect(entry.action == "account.set")
    #expect(!entry.before.contains("calendar"))
    #expect(
      entry.after.contains(
        #""calendar":[{"zone":"Asia/Tokyo","anchor_ms":1763700000000,"since_ms":1763700002000}]"#),
      "\(entry.after)")
  }

  /// Zone files that were there when it was set, and are not here.
  @Test func anAccountWhosePeriodsAreNotKnownIsNotShownThoseOfUTC() async throws {
    let acme = fixture.acme
    fixture.backend.edit { $0.accounts[acme]?.calendar = [.init(zone: "Mars/Olympus")] }
    let feature = try Name("chat.requests")
    for failure in [
      try await fixture.refusal(.usage, UsageRequest(subject: acme)),
      try await fixture.refusal(
        .explain, ExplainRequest(subject: acme, items: [.init(feature: feature, amount: 1)])),
    ] {
      #expect(failure.code == .unavailable)
      #expect(failure.message == "zone Mars/Olympus is not installed beside this sidecar")
      #expect(failure.fix.contains("tzdata"))
    }
  }

  @Test func showHasEverySetting() async throws {
    _ = try await set(request(zone: "Asia/Tokyo"))
    pass(3000)
    _ = try await set(request(restart: true))
    let reply = try await fixture.send(
      .accountShow, AccountRequest(account: fixture.acme), as: AccountReply.self)
    #expect(reply.calendar.map(\.zone) == ["Asia/Tokyo", "Asia/Tokyo"])
    #expect(reply.calendar.map(\.restarts) == [false, true])
  }

  // MARK: Import

  private func imported(
    _ rows: [AccountImportRequest.Row], _ id: UInt64, dryRun: Bool = false
  ) async throws -> AccountImportReply {
    try await fixture.send(
      .accountImport,
      AccountImportRequest(
        rows: rows, firstRow: 1, sourceID: nil, change: AdminFixture.options(id, dryRun: dryRun)),
      as: AccountImportReply.self)
  }

  @Test func aRowThatNamesTheZoneAndAnchorThatAreChangesNothing() async throws {
    _ = try await set(request(zone: "Asia/Tokyo", anchor: now))
    let before = fixture.account()
    let rows = [
      AccountImportRequest.Row(account: "acme", plan: "free", zone: "Asia/Tokyo", anchor: now),
      .init(account: "acme", plan: "free"),
    ]
    #expect(try await imported(rows, 1).unchanged == 2)
    #expect(fixture.account() == before)
  }

  @Test func aRowSetsZoneAndAnchorOnce() async throws {
    let rows = [
      AccountImportRequest.Row(account: "a", plan: "free", zone: "Asia/Tokyo", anchor: now)
    ]
    #expect(try await imported(rows, 1, dryRun: true).applied == 1)
    #expect(fixture.account(try Subject("a")) == nil)
    #expect(try await imported(rows, 1).applied == 1)
    let once = fixture.account(try Subject("a"))
    #expect(once?.calendar == [CalendarSetting(zone: "Asia/Tokyo", anchor: now)])
    pass(60_000)
    #expect(try await imported(rows, 2).unchanged == 1)
    #expect(fixture.account(try Subject("a")) == once)
  }

  @Test func aBadRowIsNamedByRowColumnValueAndReason() async throws {
    let far = WallTime(milliseconds: Quantity.maximum)
    let reply = try await imported(
      [
        .init(account: "a", plan: "free", zone: "Europe/Berln"),
        .init(account: "b", plan: "free", anchor: far), .init(account: "c", plan: "fr ee"),
        .init(account: "d", plan: "free", zone: "Asia/Tokyo"),
      ], 1)
    #expect(reply.applied == 1)
    #expect(reply.failed.map(\.row) == [1, 2, 3])
    let reasons = reply.failed.map(\.reason)
    try #require(reasons.count == 3)
    #expect(reasons[0].hasPrefix("zone: \"Europe/Berln\" no such zone in "), "\(reasons)")
    #expect(reasons[1].hasPrefix("anchor_ms: \"\(Quantity.maximum)\" "), "\(reasons)")
    #expect(reasons[2].hasPrefix("plan: "), "\(reasons)")
  }
}
