// usage, explain, reset, reconcile, doctor, over the fake backend.

import Testing
import TollgateCore
import TollgateServer
import TollgateTesting
import TollgateWire

@Suite(.blocking) struct AdminExplainTests {
  private func explain(
    _ fixture: AdminFixture, _ subject: String, _ items: [(String, Int64)]
  ) async throws -> ExplainReply {
    try await fixture.send(
      .explain,
      ExplainRequest(
        subject: try Subject(subject),
        items: try items.map { .init(feature: try Name($0.0), amount: $0.1) }),
      as: ExplainReply.self)
  }

  @Test func itNamesTheLimitThatBindsAndWhy() async throws {
    let fixture = try AdminFixture()
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 98)
    let reply = try await explain(fixture, "acme", [("chat.requests", 3)])
    #expect(!reply.allowed)
    #expect(reply.reason == "QUOTA_EXCEEDED")
    #expect(reply.steps.map(\.limit.text) == ["chat.month", "chat.rpm"])
    #expect(reply.steps.map(\.binding) == [true, false])
    #expect(reply.steps[0].why == "98 of 100 used; 3 asked, 2 left")
    #expect(reply.steps[1].verdict == "passes")
  }

  @Test func aRateSaysWhenItSucceeds() async throws {
    let fixture = try AdminFixture()
    let reference = RateReference(
      subject: fixture.acme, feature: try Name("chat.requests"), limit: try Name("chat.rpm"))
    // The bucket is empty: the arrival time lies a whole burst (60 s) ahead.
    fixture.backend.edit { $0.rates[reference] = ($0.now.milliseconds + 60_000) * 1000 }
    let reply = try await explain(fixture, "acme", [("chat.requests", 1)])
    #expect(reply.reason == "RATE_LIMITED")
    #expect(reply.retryAfterMilliseconds == 6000)
  }

  @Test func precedenceIsTheSmallestReasonNumber() async throws {
    let fixture = try AdminFixture()
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 100)
    let reply = try await explain(fixture, "acme", [("chat.requests", 1), ("beta", 1)])
    #expect(reply.reason == "GATE_CLOSED")
    #expect(reply.notes == ["these would deny too: chat.month"])
  }

  @Test func anOverrideIsShownWithAuthorReasonAndEnd() async throws {
    let fixture = try AdminFixture()
    _ = try await fixture.send(
      .limitSet,
      LimitSetRequest(
        subject: fixture.acme, limit: try Name("chat.month"), amount: 5,
        expires: fixture.backend.read(\.now) + 1000,
        change: AdminFixture.options(reason: "abuse")))
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 60)
    let reply = try await explain(fixture, "acme", [("chat.requests", 1)])
    #expect(reply.steps[0].remaining == 0)
    #expect(reply.steps[0].kind == "5 per month")
    #expect(reply.steps[0].overrides.map(\.reason) == ["abuse"])
    #expect(reply.steps[0].overrides.map(\.author) == ["ann (uid 0)"])
    fixture.backend.edit { $0.now = $0.now + 1000 }
    let after = try await explain(fixture, "acme", [("chat.requests", 1)])
    #expect(after.allowed)
  }

  @Test func aBypassTurnsADenialIntoShadow() async throws {
    let fixture = try AdminFixture()
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 100)
    _ = try await fixture.send(
      .bypassSet,
      BypassRequest(
        feature: nil, durationMilliseconds: 60_000, change: AdminFixture.options()))
    let reply = try await explain(fixture, "acme", [("chat.requests", 1)])
    #expect(reply.reason == "ALLOWED_SHADOW")
    #expect(reply.bypasses.count == 1)
  }

  @Test func anUnknownAccountAndAFrozenOneAreSaidSo() async throws {
    let fixture = try AdminFixture()
    let unknown = try await explain(fixture, "nobody", [("chat.requests", 1)])
    #expect(unknown.reason == "UNKNOWN_ACCOUNT")
    #expect(unknown.planSource == "none")
    let acme = fixture.acme
    fixture.backend.edit { $0.accounts[acme]?.frozen = true }
    let frozen = try await explain(fixture, "acme", [("chat.requests", 1)])
    #expect(frozen.reason == "ACCOUNT_FROZEN")
  }

  @Test func aFenceAndAMissingRebuildAreNotes() async throws {
    let fixture = try AdminFixture()
    fixture.backend.edit {
      $0.isLoaded = false
      $0.bucketState = .fenced
    }
    let reply = try await explain(fixture, "acme", [("chat.requests", 1)])
    #expect(reply.notes.count == 2)
    #expect(reply.bucketState == .fenced)
  }

  @Test func aCounterOfAnEarlierPeriodIsEmpty() async throws {
    let fixture = try AdminFixture()
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 100)
    fixture.backend.edit { $0.now = $0.now + 31 * 86_400_000 }
    let reply = try await explain(fixture, "acme", [("chat.requests", 1)])
    #expect(reply.allowed)
    #expect(reply.steps[0].settled == 0)
  }

  @Test func usageShowsLimitsAndTheBill() async throws {
    let fixture = try AdminFixture()
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 40)
    let reply = try await fixture.send(
      .usage, UsageRequest(subject: fixture.acme), as: UsageReply.self)
    let month = reply.usage.first { $0.limit?.text == "chat.month" }
    #expect(month?.remaining == 60)
    #expect(month?.unit == "request")
    #expect(reply.usage.contains { $0.feature.text == "tokens.output" && $0.limit == nil })
  }

  @Test func limitListShowsThePlanAndWhatIsInForce() async throws {
    let fixture = try AdminFixture()
    _ = try await fixture.send(
      .limitSet,
      LimitSetRequest(
        subject: fixture.acme, limit: try Name("chat.rpm"), amount: 5,
        change: AdminFixture.options()))
    let reply = try await fixture.send(
      .limitList, LimitListRequest(subject: fixture.acme), as: LimitListReply.self)
    let rate = reply.limits.first { $0.limit.text == "chat.rpm" }
    #expect(rate?.inPlan == "10 per 1 m, burst 10")
    #expect(rate?.inForce == "5 per 1 m, burst 5")
    #expect(rate?.overridden == true)
  }

  // MARK: Reset

  @Test func aResetNamesASubjectOfTheLimitsLevel() async throws {
    let fixture = try AdminFixture()
    for name in ["chat.month", "chat.rpm"] {
      let failure = try await fixture.refusal(
        .reset,
        ResetRequest(
          subject: try Subject("acme/bob"), limit: try Name(name), change: AdminFixture.options()))
      #expect(failure.code == .badRequest)
      #expect(failure.problems.first?.value == "acme/bob")
      #expect(
        failure.problems.first?.reason
          == "limit \(name) sits at level 1 (account): a deeper subject has no counter of it; to "
          + "reset it for everybody below, name acme")
    }
  }

  @Test func aResetForgivesAndLeavesTheBill() async throws {
    let fixture = try AdminFixture()
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 100)
    let request = ResetRequest(
      subject: fixture.acme, limit: try Name("chat.month"), change: AdminFixture.options(1))
    let reply = try await fixture.send(.reset, request, as: ResetReply.self)
    #expect(reply.forgiven == 100)
    let after = try await explain(fixture, "acme", [("chat.requests", 1)])
    #expect(after.allowed)
    #expect(after.steps[0].settled == 100)
    #expect(after.steps[0].remaining == 100)
  }

  @Test func aDryRunOfAResetForgivesNothing() async throws {
    let fixture = try AdminFixture()
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 100)
    let reply = try await fixture.send(
      .reset,
      ResetRequest(
        subject: fixture.acme, limit: try Name("chat.month"),
        change: AdminFixture.options(dryRun: true)), as: ResetReply.self)
    #expect(reply.forgiven == 100)
    #expect(reply.change.result == .dryRun)
    let after = try await explain(fixture, "acme", [("chat.requests", 1)])
    #expect(!after.allowed)
  }

  @Test func aGateHasNothingToReset() async throws {
    let fixture = try AdminFixture()
    let failure = try await fixture.refusal(
      .reset,
      ResetRequest(
        subject: fixture.acme, limit: try Name("beta.gate"), change: AdminFixture.options()))
    #expect(failure.problems.first?.path == "limit")
  }
}

@Suite(.blocking) struct AdminReconcileTests {
  private let month = Window.month.period(containing: WallTime(milliseconds: 1_763_700_000_000))

  private func delta(
    _ low: UInt64, _ sequence: Int64, _ charged: Int64
  ) throws -> BilledDelta {
    BilledDelta(
      id: DeltaID(operation: AdminFixture.id(low), index: 0), kind: .usage,
      position: StreamPosition(epoch: 1, sequence: sequence), time: month.start,
      feature: try Name("chat.requests"), period: month, charged: charged)
  }

  private func ledger(cursor: Int64, _ settled: Int64) throws -> LedgerBilling {
    LedgerBilling(
      cursor: StreamPosition(epoch: 1, sequence: cursor),
      totals: [BillingTotal(feature: try Name("chat.requests"), period: month, settled: settled)])
  }

  private func store(
    _ fixture: AdminFixture, last: Int64, first: Int64, _ settled: Int64,
    _ undelivered: [BilledDelta] = []
  ) throws -> StoreBilling {
    StoreBilling(
      time: fixture.backend.read(\.now), bucketState: .ready, isLoaded: true,
      last: StreamPosition(epoch: 1, sequence: last), firstSequence: first,
      month: month,
      totals: [BillingTotal(feature: try Name("chat.requests"), period: month, settled: settled)],
      undelivered: undelivered)
  }

  private func reconcile(
    _ fixture: AdminFixture, _ ledger: [LedgerBilling], _ store: [StoreBilling]
  ) async throws -> ReconcileReply {
    let acme = fixture.acme
    fixture.backend.edit {
      $0.ledger[acme] = ledger
      $0.store[acme] = store
    }
    return try await fixture.send(
      .reconcile, ReconcileRequest(account: acme), as: ReconcileReply.self)
  }

  /// Of a counter beside the bill.
  private func part(_ settled: Int64, _ window: Window) throws -> BillingTotal {
    BillingTotal(
      feature: try Name("chat.requests"), period: month, settled: settled, window: window)
  }

  @Test func theCountersBesideTheBillAreComparedToo() async throws {
    let fixture = try AdminFixture()
    fixture.backend.edit { $0.now = month.start + 5000 }
    let promo = Window.grant(try Name("promo"))
    var billed = try ledger(cursor: 5, 50)
    billed.hasParts = true
    billed.totals += [try part(20, promo), try part(30, .overage(.month)), try part(4, .deficit)]
    var stored = try store(fixture, last: 6, first: 6, 60, [try delta(1, 6, 10)])
    var burnt = try delta(1, 6, 8)
    burnt.window = promo
    stored.undelivered.append(burnt)
    stored.totals += [try part(28, promo), try part(30, .overage(.month)), try part(4, .deficit)]
    let whole = try await reconcile(fixture, [billed], [stored])
    #expect(whole.difference == 0 && whole.totals == 4)
    // Of the bill alone: the same units again are no more units.
    #expect(whole.redis == 60 && whole.ledger == 50 && whole.undelivered == 10)

    // A grant of which Redis counts less than was burnt would be burnt again.
    stored.totals[1].settled = 21
    var known = try delta(9, 3, 8)
    known.window = promo
    fixture.backend.edit {
      $0.deltas = [known]
      $0.records = [known.id.operation: false]
    }
    let less = try await reconcile(fixture, [billed], [stored])
    #expect(less.difference == 7)
    let row = try #require(less.rows.first)
    #expect(row.window == "$promo" && row.difference == -7)
    #expect(row.explanation.first?.contains("\(known.id)") == true)
  }

  @Test func aCounterBesideTheBillThatRedisLostIsADifference() async throws {
    let fixture = try AdminFixture()
    fixture.backend.edit { $0.now = month.start + 5000 }
    var billed = try ledger(cursor: 5, 50)
    billed.hasParts = true
    billed.totals.append(try part(20, .overage(.month)))
    let stored = try store(fixture, last: 5, first: 0, 50)
    #expect(try await reconcile(fixture, [billed], [stored]).difference == 20)
    // Of a period that is over Redis may hold nothing any more.
    fixture.backend.edit { $0.now = month.end }
    let later = try store(fixture, last: 5, first: 0, 50)
    #expect(try await reconcile(fixture, [billed], [later]).difference == 0)
  }

  @Test func aLedgerThatSaysNothingOfThemIsNotComparedInThem() async throws {
    let fixture = try AdminFixture()
    var stored = try store(fixture, last: 5, first: 0, 50)
    stored.totals.append(try part(20, .overage(.month)))
    #expect(try await reconcile(fixture, [try ledger(cursor: 5, 50)], [stored]).difference == 0)
  }

  /// A closed period has its line and one of adjustments: the bill is both.
  @Test func twoLinesOfOnePeriodAreOneTotal() async throws {
    let fixture = try AdminFixture()
    var billed = try ledger(cursor: 5, 50)
    billed.totals += try ledger(cursor: 5, -7).totals
    let reply = try await reconcile(
      fixture, [billed], [try store(fixture, last: 5, first: 0, 43)])
    #expect(reply.difference == 0 && reply.totals == 1 && reply.ledger == 43)
  }

  @Test func entriesBeyondTheListAreCountedAllTheSame() async throws {
    let fixture = try AdminFixture()
    var stored = try store(fixture, last: 7, first: 6, 65, [try delta(2, 6, 5)])
    stored.unlisted = [
      BillingTotal(feature: try Name("chat.requests"), period: month, settled: 10)
    ]
    let reply = try await reconcile(fixture, [try ledger(cursor: 5, 50)], [stored])
    #expect(reply.difference == 0 && reply.undelivered == 15)
  }

  @Test func theOutboxIsReadOncePerBucketAndNotPerAccount() async throws {
    let fixture = try AdminFixture()
    let map = BucketMap(buckets: 4)
    let accounts = try (0..<40).map { try Subject("a\($0)") }
    let (billed, stored) = (
      try ledger(cursor: 5, 50), try store(fixture, last: 5, first: 0, 50)
    )
    let free = AccountConfig(version: 1, plan: try Name("free"))
    fixture.backend.edit { state in
      state.accounts = [:]
      for account in accounts {
        state.accounts[account] = free
        state.ledger[account] = [billed]
        state.store[account] = [stored]
      }
    }
    let reply = try await fixture.send(
      .reconcile, ReconcileRequest(limit: 100), as: ReconcileReply.self)
    #expect(reply.accounts == 40 && reply.difference == 0)
    #expect(
      fixture.backend.read(\.outboxReads)
        == Set(accounts.map { map.bucket(ofAccount: $0.path) }).count)
  }

  @Test func undeliveredEntriesCloseTheSum() async throws {
    let fixture = try AdminFixture()
    let reply = try await reconcile(
      fixture, [try ledger(cursor: 5, 50)],
      [
        try store(
          fixture, last: 7, first: 3, 65,
          [try delta(1, 5, 9), try delta(2, 6, 5), try delta(3, 7, 10)])
      ])
    #expect(reply.difference == 0)
    #expect(reply.undelivered == 15)
    #expect(reply.rows.isEmpty)
  }

  @Test func entriesTrimmedInBetweenAreReadAgain() async throws {
    let fixture = try AdminFixture()
    let reply = try await reconcile(
      fixture, [try ledger(cursor: 5, 50), try ledger(cursor: 9, 90)],
      [try store(fixture, last: 9, first: 8, 90), try store(fixture, last: 9, first: 8, 90)])
    #expect(reply.difference == 0)
    #expect(reply.ledger == 90)
  }

  @Test func aDeltaInBothPlacesIsNamed() async throws {
    let fixture = try AdminFixture()
    let twice = try delta(1, 6, 7)
    fixture.backend.edit {
      $0.deltas = [twice]
      $0.records = [twice.id.operation: true]
    }
    let reply = try await reconcile(
      fixture, [try ledger(cursor: 5, 50)],
      [try store(fixture, last: 6, first: 6, 50, [twice])])
    #expect(reply.difference == 7)
    #expect(reply.rows.first?.difference == -7)
    #expect(reply.rows.first?.explanation.first?.contains("\(twice.id)") == true)
    #expect(reply.rows.first?.explanation.count == 1)
  }

  @Test func unitsWithoutADeltaAreADifference() async throws {
    let fixture = try AdminFixture()
    let reply = try await reconcile(
      fixture, [try ledger(cursor: 5, 50)], [try store(fixture, last: 5, first: 5, 53)])
    #expect(reply.difference == 3)
    #expect(reply.rows.first?.explanation.first?.hasPrefix("3 units are counted in Redis") == true)
  }

  @Test func aTotalOnlyTheLedgerHasIsADifference() async throws {
    let fixture = try AdminFixture()
    var empty = try store(fixture, last: 5, first: 5, 0)
    empty.totals = []
    let reply = try await reconcile(fixture, [try ledger(cursor: 5, 50)], [empty])
    #expect(reply.difference == 50)
  }

  @Test func anAccountThatIsNotLoadedIsSkippedAndSaidSo() async throws {
    let fixture = try AdminFixture()
    var idle = try store(fixture, last: 5, first: 5, 0)
    idle.isLoaded = false
    let reply = try await reconcile(fixture, [try ledger(cursor: 5, 50)], [idle])
    #expect(reply.accounts == 0)
    #expect(reply.skipped.map(\.idle) == [true])
  }

  @Test func aLedgerAheadOfRedisIsNotCalledEqual() async throws {
    let fixture = try AdminFixture()
    let reply = try await reconcile(
      fixture, [try ledger(cursor: 9, 50)], [try store(fixture, last: 5, first: 5, 50)])
    #expect(reply.accounts == 0)
    #expect(reply.skipped.map(\.idle) == [false])
  }
}

@Suite(.blocking) struct DoctorTests {
  private func findings(_ change: (inout DoctorFacts) -> Void) -> [Finding] {
    var facts = DoctorFacts()
    facts.redisAddress = "127.0.0.1:6379"
    facts.redisVersion = "7.0.15"
    facts.maxmemoryPolicy = "noeviction"
    facts.appendOnly = true
    facts.appendFsync = "everysec"
    facts.ledgerAddress = "127.0.0.1:7420"
    facts.redisClockOffset = 3
    change(&facts)
    return Doctor.findings(facts, health: .healthy)
  }

  private func worst(_ check: String, _ change: (inout DoctorFacts) -> Void) -> Finding? {
    findings(change).filter { $0.check == check }.max { $0.severity < $1.severity }
  }

  @Test func aSoundInstallationHasNothingToDo() {
    #expect(findings { _ in }.allSatisfy { $0.severity == .ok && $0.fix.isEmpty })
  }

  @Test func everyFindingThatIsNotOkSaysWhatToDo() {
    let bad = findings {
      $0.redisVersion = "6.2.1"
      $0.maxmemoryPolicy = "allkeys-lru"
      $0.appendOnly = false
      $0.redisClockOffset = 5000
      $0.ledgerError = "connection refused"
      $0.denied = ["EVALSHA"]
      $0.deploymentDifferences = ["buckets: configured 4, recorded 8"]
      $0.fileProblems = ["token file is readable by all"]
      $0.outboxEntriesLargest = 90
      $0.outboxEntriesMax = 100
    }.filter { $0.severity != .ok }
    #expect(
      Set(bad.map(\.check)) == [
        "redis version", "eviction", "persistence", "redis clock", "ledger", "permissions",
        "deployment", "files", "outbox",
      ])
    #expect(bad.allSatisfy { !$0.fix.isEmpty })
  }

  @Test func evictionIsAnError() {
    #expect(worst("eviction") { $0.maxmemoryPolicy = "volatile-ttl" }?.severity == .error)
  }

  @Test func missingZoneFilesAreNamedWithTheirFolder() {
    func found(_ missing: [String]) -> Finding? {
      worst("zone files") {
        $0.zoneFolder = "/zones"
        $0.zonesSought = 2
        $0.zonesMissing = missing
      }
    }
    #expect(found([])?.severity == .ok && found([])?.found == "in /zones")
    #expect(found(["Asia/Tokyo"])?.found == "Asia/Tokyo not in /zones")
    let none = found(["Asia/Tokyo", "Africa/Cairo"])
    #expect(none?.severity == .warning && none?.found == "none in /zones")
    #expect(none?.fix.contains("install tzdata") == true && none?.fix.contains("TZDIR") == true)
  }

  @Test func noLedgerIsAdviceOnly() {
    #expect(worst("ledger") { $0.ledgerAddress = nil }?.severity == .advice)
  }

  @Test func anUnreachableRedisIsOneErrorAndNoGuesses() {
    let found = findings {
      $0.redisError = "connection refused"
      $0.maxmemoryPolicy = nil
    }
    #expect(found.first?.severity == .error)
    #expect(!found.contains { $0.check == "eviction" || $0.check == "persistence" })
  }
}
