// adjust, usage.history, top and tail, over the fake backend; and the ring behind tail.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateServer

@Suite(.blocking) struct AdminAdjustTests {
  private func request(
    _ fixture: AdminFixture, _ amount: Int64, feature: String = "chat.requests",
    period: String? = nil, corrects: OperationID? = nil, _ change: ChangeOptions? = nil
  ) throws -> AdjustRequest {
    AdjustRequest(
      subject: fixture.acme, feature: try Name(feature), amount: amount, period: period,
      corrects: corrects, change: change ?? AdminFixture.options())
  }

  private func billed(_ fixture: AdminFixture, _ amount: Int64, at time: WallTime) throws {
    let total = BillingTotal(
      feature: try Name("chat.requests"), period: Window.month.period(containing: time),
      settled: amount)
    let acme = fixture.acme
    fixture.backend.edit {
      $0.ledger[acme] = [
        LedgerBilling(cursor: StreamPosition(epoch: 1, sequence: 0), totals: [total])
      ]
    }
  }

  @Test func theRunningMonthIsAdjustedOnceForEachId() async throws {
    let fixture = try AdminFixture()
    let now = fixture.backend.read(\.now)
    try billed(fixture, 40, at: now)
    let asked = try request(fixture, -10, AdminFixture.options(7))
    let reply = try await fixture.send(.adjust, asked)
    #expect(reply.result == .applied)
    #expect(
      reply.changes == [
        "acme chat.requests in the month from 2025-11-01T00:00:00Z: 40 → 30 as delivered"
      ])
    let made = try #require(fixture.backend.read(\.adjustments).first)
    #expect(made.amount == -10 && made.isRunning && made.corrects == nil)
    #expect(made.period == Window.month.period(containing: now))
    #expect(try await fixture.send(.adjust, asked).result == .replayed)
    #expect(fixture.backend.read(\.adjustments).count == 1)
  }

  @Test func aDryRunSaysWhatItWouldDoAndDoesNothing() async throws {
    let fixture = try AdminFixture()
    try billed(fixture, 40, at: fixture.backend.read(\.now))
    let reply = try await fixture.send(
      .adjust, try request(fixture, 5, AdminFixture.options(dryRun: true)))
    #expect(reply.result == .dryRun)
    #expect(reply.changes.first?.contains("40 → 45") == true)
    #expect(fixture.backend.read(\.adjustments).isEmpty)
  }

  @Test func anEarlierMonthIsNamedAndCannotBecomeNegative() async throws {
    let fixture = try AdminFixture()
    let september = WallTime(milliseconds: 1_757_000_000_000)
    try billed(fixture, 40, at: september)
    _ = try await fixture.send(.adjust, try request(fixture, -40, period: "2025-09"))
    let made = try #require(fixture.backend.read(\.adjustments).first)
    #expect(made.period == Window.month.period(containing: september) && !made.isRunning)
    let refusal = try await fixture.refusal(
      .adjust, try request(fixture, -41, period: "2025-09"))
    #expect(refusal.code == .conflict)
  }

  @Test func anOperationGivesBackAtMostWhatIsLeftOfIt() async throws {
    let fixture = try AdminFixture()
    let operation = AdminFixture.id(3)
    fixture.backend.edit {
      $0.left[operation] = [Item(feature: Catalog.known("chat.requests"), amount: 6)]
    }
    #expect(
      try await fixture.refusal(.adjust, try request(fixture, -7, corrects: operation)).code
        == .conflict)
    #expect(
      try await fixture.refusal(
        .adjust, try request(fixture, -1, feature: "tokens.output", corrects: operation)
      ).code == .notFound)
    let reply = try await fixture.send(.adjust, try request(fixture, -6, corrects: operation))
    #expect(reply.changes == ["acme chat.requests of operation \(operation): 6 → 0"])
    #expect(fixture.backend.read(\.adjustments).map(\.corrects) == [operation])
  }

  @Test func whatCannotBeAdjustedIsRefusedByName() async throws {
    let fixture = try AdminFixture()
    func path(_ request: AdjustRequest) async throws -> String? {
      try await fixture.refusal(.adjust, request).problems.first?.path
    }
    #expect(try await path(try request(fixture, 0)) == "amount")
    #expect(try await path(try request(fixture, 1, feature: "beta")) == "feature")
    #expect(try await path(try request(fixture, 1, feature: "nothing")) == "feature")
    #expect(try await path(try request(fixture, 1, period: "2025-13")) == "period")
    #expect(try await path(try request(fixture, 1, period: "2025-12")) == "period")
    #expect(
      try await path(
        try request(fixture, 1, period: "2025-11", corrects: AdminFixture.id(1))) == "period")
    var deep = try request(fixture, 1)
    deep.subject = try Subject("acme/ann")
    #expect(try await path(deep) == "subject")
    let silent = try request(fixture, 1, AdminFixture.options(reason: ""))
    #expect(try await path(silent) == "change/reason")
  }

  @Test func withoutALedgerThereIsNothingToAdjust() async throws {
    let fixture = try AdminFixture(hasLedger: false)
    #expect(
      try await fixture.refusal(.adjust, try request(fixture, 1)).message.contains("no ledger"))
  }
}

extension Catalog {
  fileprivate static func known(_ text: String) -> Name {
    do { return try Name(text) } catch { preconditionFailure("\(error)") }
  }
}

@Suite(.blocking) struct AdminHistoryTests {
  @Test func levelsAndAttributesAreTranslatedAndDaysNamed() async throws {
    let fixture = try AdminFixture()
    let from = WallTime(milliseconds: 1_761_955_200_000)
    fixture.backend.edit {
      $0.historyPages = [
        HistoryPage(
          rows: [
            .init(
              key: ["1762041600000", "small", "acme/ann"], used: 5, charged: 5, deltas: 2)
          ], next: "1|x")
      ]
    }
    let reply = try await fixture.send(
      .usageHistory,
      HistoryRequest(
        subject: fixture.acme, by: ["day", "model", "member"], from: from,
        to: from + 3 * 86_400_000), as: HistoryReply.self)
    #expect(reply.rows.map(\.key) == [["2025-11-02", "small", "acme/ann"]])
    #expect(reply.next == "1|x")
    let question = try #require(fixture.backend.read(\.questions).first)
    #expect(question.by == ["day", "attribute:model", "level:2"])
    #expect(question.days == (0..<3).map { from + $0 * 86_400_000 })
  }

  @Test func daysAreThoseOfTheAccountsZone() async throws {
    let fixture = try AdminFixture()
    let acme = fixture.acme
    for (zone, offset) in [("Pacific/Auckland", 13), ("America/Los_Angeles", -8)] {
      fixture.backend.edit {
        $0.accounts[acme]?.calendar = [CalendarSetting(zone: zone)]
      }
      let midnight = Int64(1_764_547_200_000 - offset * 3_600_000)
      fixture.backend.edit {
        $0.historyPages = [HistoryPage(rows: [.init(key: ["\(midnight)"], used: 1)], next: nil)]
      }
      let reply = try await fixture.send(
        .usageHistory,
        HistoryRequest(
          subject: fixture.acme, by: ["day"], from: WallTime(milliseconds: midnight),
          to: WallTime(milliseconds: midnight + 86_400_000)), as: HistoryReply.self)
      #expect(reply.rows.map(\.key) == [["2025-12-01"]], "\(zone)")
    }
  }

  @Test func theRunningMonthIsWhatIsShownWhereNothingIsSaid() async throws {
    let fixture = try AdminFixture()
    let reply = try await fixture.send(
      .usageHistory, HistoryRequest(subject: fixture.acme), as: HistoryReply.self)
    #expect(reply.from == Window.month.period(containing: fixture.backend.read(\.now)).start)
  }

  @Test func tooMuchAtOnceIsRefused() async throws {
    let fixture = try AdminFixture()
    let now = fixture.backend.read(\.now)
    func code(_ request: HistoryRequest) async throws -> ErrorCode {
      try await fixture.refusal(.usageHistory, request).code
    }
    #expect(
      try await code(HistoryRequest(subject: fixture.acme, by: ["day", "day"])) == .badRequest)
    #expect(
      try await code(HistoryRequest(subject: fixture.acme, by: ["a", "b", "c", "d", "e"]))
        == .badRequest)
    #expect(try await code(HistoryRequest(subject: fixture.acme, by: ["a b"])) == .badRequest)
    #expect(
      try await code(
        HistoryRequest(subject: fixture.acme, from: now + -401 * 86_400_000, to: now))
        == .badRequest)
    #expect(
      try await code(HistoryRequest(subject: fixture.acme, from: now, to: now)) == .badRequest)
  }
}

@Suite(.blocking) struct AdminTopTests {
  private func use(
    _ fixture: AdminFixture, _ account: String, _ units: Int64, ago: Int64
  ) throws -> BucketSample.Use {
    BucketSample.Use(
      time: fixture.backend.read(\.now) + -ago, account: try Subject(account),
      feature: try Name("chat.requests"), units: units)
  }

  @Test func theBusiestComesFirstWithTheLimitThatIsUsedUpMost() async throws {
    let fixture = try AdminFixture()
    try fixture.use(fixture.acme, "chat.requests", .month, settled: 98)
    let sample = BucketSample(
      uses: [
        try use(fixture, "acme", 2, ago: 100), try use(fixture, "acme", 3, ago: 9_000),
        try use(fixture, "beta", 40, ago: 5),
      ], isCut: false)
    fixture.backend.edit { $0.samples = [sample] }
    let reply = try await fixture.send(.top, TopRequest(), as: TopReply.self)
    #expect(reply.rows.map(\.account.path) == ["beta", "acme"])
    #expect(reply.rows.map(\.milliPerSecond) == [4_000, 500])
    #expect(reply.rows.map(\.deltas) == [1, 2])
    #expect(reply.rows[1].limit?.text == "chat.month")
    #expect(reply.rows[1].usedPerMille == 980)
    #expect(reply.sampled == 0 && reply.unread == 0)
  }

  @Test func aBucketThatIsCutCountsByTheSpanThatWasRead() async throws {
    let fixture = try AdminFixture()
    let busy = BucketSample(
      uses: [try use(fixture, "acme", 500, ago: 0), try use(fixture, "acme", 500, ago: 500)],
      isCut: true)
    fixture.backend.edit {
      $0.samples = [busy, BucketSample(uses: [], isCut: false, isUnread: true)]
    }
    let reply = try await fixture.send(.top, TopRequest(), as: TopReply.self)
    #expect(reply.rows.map(\.milliPerSecond) == [2_000_000])
    #expect(reply.sampled == 1 && reply.unread == 1)
  }

  @Test func atMostSoManyRowsAreGiven() async throws {
    let fixture = try AdminFixture()
    let uses = try (0..<30).map { try use(fixture, "a\($0)", Int64($0 + 1), ago: 1) }
    fixture.backend.edit { $0.samples = [BucketSample(uses: uses, isCut: false)] }
    let reply = try await fixture.send(.top, TopRequest(count: 3), as: TopReply.self)
    #expect(reply.rows.map(\.account.path) == ["a29", "a28", "a27"])
    #expect(try await fixture.refusal(.top, TopRequest(count: 51)).code == .badRequest)
    #expect(
      try await fixture.refusal(.top, TopRequest(windowMilliseconds: 999)).code == .badRequest)
  }
}

@Suite(.blocking) struct AdminTailTests {
  private func event(_ subject: String, allowed: Bool = true) throws -> TailReply.Event {
    TailReply.Event(
      time: WallTime(milliseconds: 5), subject: try Subject(subject),
      operation: AdminFixture.id(1), kind: "consume", items: [], allowed: allowed,
      reason: "ALLOWED", source: "redis", limit: nil, replayed: false, microseconds: 90)
  }

  @Test func aListenerGoesOnUnderTheNameItWasGiven() async throws {
    let fixture = try AdminFixture()
    let first = try await fixture.send(.tail, TailRequest(), as: TailReply.self)
    #expect(first.events.isEmpty && first.listener.utf8.count == 16)
    let event = try event("acme")
    fixture.backend.edit { $0.passed = ([event], 4) }
    let second = try await fixture.send(
      .tail, TailRequest(listener: first.listener), as: TailReply.self)
    #expect(second.listener == first.listener)
    #expect(second.events == [event] && second.dropped == 4)
    #expect(fixture.backend.read(\.listeners).count == 1)
  }

  @Test func oneListenerTooManyIsRefused() async throws {
    let fixture = try AdminFixture()
    for _ in 0..<2 { _ = try await fixture.send(.tail, TailRequest(), as: TailReply.self) }
    #expect(try await fixture.refusal(.tail, TailRequest()).code == .overloaded)
    #expect(
      try await fixture.refusal(.tail, TailRequest(listener: "zz")).code == .badRequest)
  }

  // MARK: The ring

  private func listening(
    _ filter: DecisionTail.Filter, at now: NIODeadline = .uptimeNanoseconds(0)
  ) -> DecisionTail {
    var tail = DecisionTail()
    let isTaken = tail.listen(1, filter, now: now)
    #expect(isTaken)
    return tail
  }

  /// What an enforcer looks at for each answer while nobody listens: one word, and nothing behind it.
  @Test func nobodyListeningIsOneWord() {
    #expect(MemoryLayout<DecisionTail?>.size == MemoryLayout<Int>.size)
  }

  @Test func whatNobodyWantsIsNotMade() throws {
    var tail = listening(.init(account: "acme", deniedOnly: true))
    var made = 0
    func note(_ account: String, _ isAllowed: Bool) throws {
      let event = try event(account, allowed: isAllowed)
      tail.note(account: account, isAllowed: isAllowed) {
        made += 1
        return event
      }
    }
    try note("beta", false)
    try note("acme", true)
    #expect(made == 0)
    try note("acme", false)
    #expect(made == 1)
    let (first, second) = (tail.take(1, limit: 10), tail.take(1, limit: 10))
    #expect(first.events.map(\.subject.path) == ["acme"])
    #expect(second.events.isEmpty)
  }

  @Test func theOldestAreDroppedAndCounted() throws {
    var tail = listening(.init(account: nil, deniedOnly: false))
    let event = try event("acme")
    for _ in 0..<DecisionTail.eventsMax + 3 {
      tail.note(account: "acme", isAllowed: true) { event }
    }
    let first = tail.take(1, limit: 100)
    #expect(first.events.count == 100 && first.dropped == 3)
    let rest = tail.take(1, limit: .max)
    #expect(rest.events.count == DecisionTail.eventsMax - 100 && rest.dropped == 0)
  }

  @Test func aSilentListenerIsForgottenAndThenNothingIsKept() throws {
    let silence = DecisionTail.silenceMax
    var tail = listening(.init(account: nil, deniedOnly: false))
    tail.forgetSilent(now: .uptimeNanoseconds(0) + silence - .milliseconds(1))
    #expect(!tail.isEmpty)
    // Every question starts the silence anew.
    let isKnown = tail.listen(1, .init(account: nil, deniedOnly: false), now: .uptimeNanoseconds(5))
    #expect(isKnown)
    tail.forgetSilent(now: .uptimeNanoseconds(4) + silence)
    #expect(!tail.isEmpty)
    tail.forgetSilent(now: .uptimeNanoseconds(5) + silence)
    #expect(tail.isEmpty)
  }

  @Test func soManyListenersAndNoMore() {
    var tail = DecisionTail()
    let filter = DecisionTail.Filter(account: nil, deniedOnly: false)
    let ids = Array(1...UInt64(DecisionTail.listenersMax)) + [99, 1]
    let taken = ids.map { tail.listen($0, filter, now: .uptimeNanoseconds(0)) }
    #expect(taken == ids.map { $0 != 99 })
  }
}
