// The oracle's own tests, as transcripts: what is asked at which instant, and what is answered.

import Testing
import TollgateCore
import TollgateTesting

/// An evaluator with one catalog and plan `p`, and short ways to put operations to it.
struct Bench {
  var evaluator = Evaluator()
  var catalog: Catalog
  var account: AccountConfig
  var micros = noon.milliseconds * 1000
  private var counter: UInt64 = 0

  init(_ catalog: Catalog, overrides: [Override] = []) throws {
    self.catalog = catalog
    account = try TollgateCoreTests.account("p", overrides: overrides)
    evaluator.state.globalVersion = 1
    evaluator.state.accountVersions[try Subject("acme")] = 1
  }

  mutating func freshID() -> OperationID {
    counter += 1
    return OperationID(high: UInt64(micros / 1000) << 16, low: counter)
  }

  mutating func outcome(
    _ items: [(String, Int64)], subject: String = "acme", id: OperationID? = nil,
    mode: Evaluator.Mode = .consume, notAfter: WallTime? = nil, resolvedAt: WallTime? = nil,
    versions: Evaluator.Versions = .init(global: 1, account: 1)
  ) throws -> Evaluator.Outcome {
    let items = try items.map { Item(feature: try name($0.0), amount: $0.1) }
    let subject = try Subject(subject)
    let resolution = Resolution.resolve(
      subject: subject, items: items, global: global(catalog), account: account,
      now: resolvedAt ?? WallTime(milliseconds: micros / 1000), zones: .utcOnly)
    return evaluator.decide(
      Evaluator.Request(id: id ?? freshID(), subject: subject, items: items, notAfter: notAfter),
      resolution: resolution, versions: versions, nowMicroseconds: micros, mode: mode)
  }

  mutating func ask(
    _ items: [(String, Int64)], subject: String = "acme", id: OperationID? = nil,
    mode: Evaluator.Mode = .consume
  ) throws -> Decision {
    guard case .decided(let decision, _) = try outcome(items, subject: subject, id: id, mode: mode)
    else { throw Undecided() }
    return decision
  }

  struct Undecided: Error {}

  func settled(_ subject: String, _ feature: String, _ window: Window) throws -> Int64? {
    evaluator.state.counters[
      CounterKey(subject: try Subject(subject), feature: try name(feature), window: window)]?
      .settled
  }
}

@Suite(.blocking) struct EvaluatorTests {
  private func bench(_ f: String, g: String = "[]", overrides: [Override] = []) throws -> Bench {
    try Bench(catalog(f: f, g: g), overrides: overrides)
  }

  @Test func aQuotaIsAdmittedToItsLastUnit() throws {
    var bench = try bench(#"[{"id": "q", "quota": 10, "per": "day"}]"#)
    let first = try bench.ask([("f", 7)])
    #expect(first.reason == .allowed)
    #expect(first.items.first?.remaining == 3)
    #expect(first.items.first?.settled == 7)
    #expect(first.items.first?.limit?.text == "q")
    let second = try bench.ask([("f", 4)])
    #expect(second.reason == .quotaExceeded)
    #expect(second.binding?.text == "q")
    #expect(second.items.first?.remaining == 3)
    let end = Window.day.period(containing: noon).end
    #expect(second.retryAfter == end - noon)
    #expect(second.items.first?.reset == end)
    #expect(try bench.ask([("f", 3)]).reason == .allowed)
    #expect(try bench.ask([("f", 1)]).reason == .quotaExceeded)
    #expect(try bench.ask([("f", 0)]).reason == .allowed)
    #expect(try bench.settled("acme", "f", .day) == 10)
  }

  /// PITFALL 10: a denied request consumes nothing, under any of its limits.
  @Test func aDenialChangesNoCounterAndNoArrival() throws {
    var bench = try bench(
      #"[{"id": "q", "quota": 5, "per": "day"}, {"id": "r", "rate": 100, "per": "minute"}]"#)
    _ = try bench.ask([("f", 1)])
    let before = bench.evaluator.state
    #expect(try bench.ask([("f", 5)]).reason == .quotaExceeded)
    #expect(bench.evaluator.state.counters == before.counters)
    #expect(bench.evaluator.state.arrivals == before.arrivals)
    #expect(bench.evaluator.state.records.count == before.records.count + 1)
  }

  @Test func severalFeaturesAreAdmittedOrDeniedAsOne() throws {
    var bench = try bench(
      #"[{"id": "q", "quota": 5, "per": "day"}]"#, g: #"[{"id": "s", "quota": 1, "per": "day"}]"#)
    #expect(try bench.ask([("f", 1), ("g", 1)]).isAllowed)
    let denied = try bench.ask([("f", 1), ("g", 1)])
    #expect(denied.reason == .quotaExceeded)
    #expect(denied.bindingItem == 1)
    #expect(denied.items.map(\.remaining) == [4, 0])
    #expect(try bench.settled("acme", "f", .day) == 1)
  }

  @Test func theMostRestrictiveLevelBindsAndAllLevelsCount() throws {
    var bench = try bench(
      """
      [{"id": "team", "quota": 10, "per": "day"},
       {"id": "each", "quota": 6, "per": "day", "level": "member"}]
      """)
    #expect(try bench.ask([("f", 6)], subject: "acme/ann").items.first?.limit?.text == "each")
    #expect(try bench.ask([("f", 1)], subject: "acme/ann").binding?.text == "each")
    let bob = try bench.ask([("f", 4)], subject: "acme/bob")
    #expect(bob.items.first?.limit?.text == "team")
    #expect(try bench.ask([("f", 1)], subject: "acme/bob").binding?.text == "team")
    #expect(try bench.settled("acme/ann", "f", .day) == 6)
    #expect(try bench.settled("acme", "f", .day) == 10)
    #expect(try bench.settled("acme", "f", .month) == 10)
  }

  @Test func aRateAdmitsItsBurstAndThenItsRate() throws {
    var bench = try bench("[]", g: #"[{"id": "r", "rate": 7, "per": "minute", "burst": 7}]"#)
    for left: Int64 in (0..<7).reversed() {
      let decision = try bench.ask([("g", 1)])
      #expect(decision.reason == .allowed)
      #expect(decision.items.first?.remaining == left)
    }
    let denied = try bench.ask([("g", 1)])
    #expect(denied.reason == .rateLimited)
    let wait = try #require(denied.retryAfter)
    #expect(wait == 8_572)
    bench.micros += (wait - 1) * 1000
    #expect(try bench.ask([("g", 1)]).reason == .rateLimited)
    bench.micros += 1000
    #expect(try bench.ask([("g", 1)]).reason == .allowed)
    #expect(try bench.ask([("g", 1)]).reason == .rateLimited)
  }

  @Test func aCostAboveTheBurstHasNoRetryTime() throws {
    var bench = try bench("[]", g: #"[{"id": "r", "rate": 7, "per": "minute", "burst": 7}]"#)
    let denied = try bench.ask([("g", 8)])
    #expect(denied.reason == .costAboveBurst)
    #expect(denied.retryAfter == nil)
    #expect(bench.evaluator.state.arrivals.isEmpty)
  }

  @Test func shadowDecidesAndAllows() throws {
    var bench = try bench(
      """
      [{"id": "q", "quota": 2, "per": "day", "enforcement": "shadow"},
       {"id": "r", "rate": 2, "per": "day", "enforcement": "shadow"},
       {"id": "s", "quota": 1, "per": "week", "enforcement": "soft"}]
      """)
    #expect(try bench.ask([("f", 1)]).reason == .allowed)
    let soft = try bench.ask([("f", 1)])
    #expect(soft.reason == .allowedSoft)
    #expect(soft.binding?.text == "s")
    let arrivals = bench.evaluator.state.arrivals
    let shadow = try bench.ask([("f", 1)])
    #expect(shadow.reason == .allowedShadow)
    #expect(shadow.binding?.text == "q")
    #expect(shadow.retryAfter == nil)
    #expect(try bench.settled("acme", "f", .day) == 3)
    #expect(bench.evaluator.state.arrivals == arrivals)
  }

  /// The precedence of reasons: the smallest number among denying hard limits.
  @Test func theSmallestReasonBinds() throws {
    let gate = #"{"id": "gate", "gate": false}"#
    let burst = #"{"id": "burst", "rate": 1, "per": "day", "burst": 1}"#
    let quota = #"{"id": "quota", "quota": 0, "per": "day"}"#
    let rate = #"{"id": "rate", "rate": 5, "per": "day"}"#
    let table: [([String], Int64, String)] = [
      ([rate, quota, burst, gate], 2, "gate"), ([rate, quota, burst], 2, "burst"),
      ([rate, quota], 2, "quota"), ([rate], 5, "rate"),
    ]
    for (limits, amount, binding) in table {
      var bench = try bench("[]", g: "[\(limits.joined(separator: ","))]")
      // The rate is used up through a plan that has nothing else.
      bench.catalog = try catalog(f: "[]", g: "[\(rate)]")
      #expect(try bench.ask([("g", 5)]).isAllowed)
      bench.catalog = try catalog(f: "[]", g: "[\(limits.joined(separator: ","))]")
      #expect(try bench.ask([("g", amount)]).binding?.text == binding)
    }
  }

  @Test func ofOneReasonTheSmallerRemainingBindsThenTheFirst() throws {
    var bench = try bench(
      """
      [{"id": "a", "quota": 5, "per": "day"}, {"id": "b", "quota": 3, "per": "week"},
       {"id": "c", "quota": 3, "per": "month"}]
      """)
    #expect(try bench.ask([("f", 9)]).binding?.text == "b")
  }

  @Test func aCheckChangesNothing() throws {
    var bench = try bench(
      #"[{"id": "q", "quota": 5, "per": "day"}, {"id": "r", "rate": 5, "per": "minute"}]"#)
    _ = try bench.ask([("f", 1)])
    let before = bench.evaluator.state
    let check = try bench.ask([("f", 4)], mode: .check)
    #expect(check.isAllowed)
    #expect(check.items.first?.remaining == 4)
    #expect(try bench.ask([("f", 5)], mode: .check).reason == .quotaExceeded)
    #expect(bench.evaluator.state == before)
  }

  // MARK: Operation records

  @Test func aRetryGetsItsFirstAnswer() throws {
    var bench = try bench(#"[{"id": "q", "quota": 5, "per": "day"}]"#)
    let (admitted, refused) = (bench.freshID(), bench.freshID())
    let first = try bench.ask([("f", 5)], id: admitted)
    let denied = try bench.ask([("f", 1)], id: refused)
    bench.micros += 60_000_000
    var again = try bench.ask([("f", 5)], id: admitted)
    #expect(again.replayed)
    again.replayed = false
    #expect(again == first)
    let deniedAgain = try bench.ask([("f", 1)], id: refused)
    #expect(deniedAgain.replayed && deniedAgain.reason == denied.reason)
    #expect(try bench.settled("acme", "f", .day) == 5)
  }

  @Test func aRetryIsAnsweredWhateverTheVersionsAreNow() throws {
    var bench = try bench(#"[{"id": "q", "quota": 5, "per": "day"}]"#)
    let id = bench.freshID()
    _ = try bench.ask([("f", 1)], id: id)
    bench.evaluator.state.globalVersion = 2
    #expect(try bench.ask([("f", 1)], id: id).replayed)
  }

  @Test func anotherBodyUnderOneIDNamesTheField() throws {
    var bench = try bench("[]")
    let id = bench.freshID()
    _ = try bench.ask([("f", 1)], id: id)
    #expect(try bench.outcome([("f", 2)], id: id) == .mismatch(field: "amounts"))
    #expect(try bench.outcome([("g", 1)], id: id) == .mismatch(field: "items"))
    #expect(try bench.outcome([("f", 1), ("g", 1)], id: id) == .mismatch(field: "items"))
    #expect(
      try bench.outcome([("f", 1)], subject: "acme/ann", id: id) == .mismatch(field: "subject"))
  }

  @Test func anIDOutsideTheWindowIsRefused() throws {
    var bench = try bench("[]")
    let id = bench.freshID()
    _ = try bench.ask([("f", 1)], id: id)
    bench.micros += 86_400_000_000
    #expect(try bench.ask([("f", 1)], id: id).replayed)
    bench.micros += 1_000
    #expect(try bench.outcome([("f", 1)], id: id) == .idTooOld)
    let ahead = bench.freshID()
    bench.micros -= 60_000_000
    #expect(try bench.ask([("f", 1)], id: ahead).isAllowed)
  }

  @Test func anIDFromTheFutureIsRefused() throws {
    var bench = try bench("[]")
    let ahead = OperationID(high: UInt64(noon.milliseconds + 60_001) << 16, low: 1)
    #expect(try bench.outcome([("f", 1)], id: ahead) == .idFromFuture)
    bench.micros += 1_000
    #expect(try bench.ask([("f", 1)], id: ahead).isAllowed)
  }

  @Test func aLateCallIsNotApplied() throws {
    var bench = try bench("[]")
    let before = bench.evaluator.state
    #expect(try bench.outcome([("f", 1)], notAfter: noon + -1) == .expired(now: noon))
    #expect(bench.evaluator.state == before)
    #expect(try bench.outcome([("f", 1)], notAfter: noon) != .expired(now: noon))
  }

  @Test func anOldConfigurationIsAnsweredStale() throws {
    var bench = try bench("[]")
    for versions in [Evaluator.Versions(global: 0, account: 1), .init(global: 1, account: 2)] {
      #expect(
        try bench.outcome([("f", 1)], versions: versions) == .stale(.init(global: 1, account: 1)))
    }
    #expect(bench.evaluator.state.records.isEmpty)
  }

  // MARK: Time

  @Test func aPassedPeriodIsResolvedAnew() throws {
    var bench = try bench(#"[{"id": "q", "quota": 5, "per": "minute"}]"#)
    _ = try bench.ask([("f", 5)])
    bench.micros += 60_000_000
    #expect(
      try bench.outcome([("f", 1)], resolvedAt: noon) == .periodPassed(now: noon + 60_000))
    #expect(try bench.ask([("f", 5)]).isAllowed)
    let key = CounterKey(subject: try Subject("acme"), feature: try name("f"), window: .minute)
    let counter = try #require(bench.evaluator.state.counters[key])
    #expect(counter.start == noon + 60_000)
    #expect(counter.previousStart == noon)
    #expect(counter.previousSettled == 5)
  }

  /// PITFALL 36: a clock that jumps back does not reopen a period.
  @Test func timeNeverRunsBackwards() throws {
    var bench = try bench(#"[{"id": "q", "quota": 5, "per": "minute"}]"#)
    bench.micros += 60_000_000
    let late = try bench.ask([("f", 5)])
    bench.micros -= 60_000_000
    #expect(
      try bench.outcome([("f", 1)]) == .periodPassed(now: noon + 60_000))
    #expect(try bench.outcome([("f", 1)], resolvedAt: late.time).isDenied(.quotaExceeded))
  }

  // MARK: Edits

  /// PITFALLS 6 and 11: a limit lowered below usage.
  @Test func aLoweredLimitBitesAtOnceAndNeverUnderflows() throws {
    var bench = try bench(#"[{"id": "q", "quota": 10, "per": "day"}]"#)
    _ = try bench.ask([("f", 8)])
    bench.catalog = try catalog(f: #"[{"id": "q", "quota": 3, "per": "day"}]"#)
    let denied = try bench.ask([("f", 1)])
    #expect(denied.reason == .quotaExceeded)
    #expect(denied.items.first?.remaining == 0)
    #expect(denied.items.first?.settled == 8)
    bench.catalog = try catalog(f: #"[{"id": "q", "quota": 9, "per": "day"}]"#)
    #expect(try bench.ask([("f", 1)]).items.first?.remaining == 0)
  }

  @Test func aResetForgivesWithoutTouchingTheBill() throws {
    var bench = try bench(#"[{"id": "q", "quota": 10, "per": "month"}]"#)
    _ = try bench.ask([("f", 10)])
    let key = CounterKey(subject: try Subject("acme"), feature: try name("f"), window: .month)
    bench.evaluator.setCounter(key, to: 0, nowMicroseconds: bench.micros)
    let decision = try bench.ask([("f", 4)])
    #expect(decision.items.first?.settled == 4)
    #expect(decision.items.first?.remaining == 6)
    #expect(try bench.settled("acme", "f", .month) == 14)
    bench.evaluator.setCounter(key, to: 9, nowMicroseconds: bench.micros)
    #expect(try bench.ask([("f", 2)]).reason == .quotaExceeded)
  }

  @Test func aCounterThatWouldLeaveTheRangeIsAnError() throws {
    var bench = try bench("[]")
    _ = try bench.ask([("f", Quantity.maximum)])
    let before = bench.evaluator.state
    #expect(try bench.outcome([("f", 1)]) == .amountOutOfRange(item: 0))
    #expect(bench.evaluator.state == before)
  }
}

extension Evaluator.Outcome {
  func isDenied(_ reason: Reason) -> Bool {
    if case .decided(let decision, _) = self { decision.reason == reason } else { false }
  }

  var births: [Evaluator.Birth] {
    if case .decided(_, let births) = self { births } else { [] }
  }
}
