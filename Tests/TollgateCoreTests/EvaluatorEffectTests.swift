// Deltas, cancellation, posting and reversal in the oracle; and what must hold over any operations.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct EvaluatorEffectTests {
  private func bench() throws -> Bench {
    try Bench(
      catalog(
        f: #"[{"id": "q", "quota": 10, "per": "day"}]"#,
        g: #"[{"id": "s", "quota": 10, "per": "day"}]"#))
  }

  @Test func eachMeteredItemOfAnAdmittedOperationBearsOneDelta() throws {
    var bench = try bench()
    let id = bench.freshID()
    var born = try bench.outcome([("g", 1), ("f", 3)], id: id).births
    // Every counter of the metered item, by as much.
    #expect(born.first?.counted.map(\.cell.window) == [.month, .day])
    #expect(born.first?.counted.allSatisfy { $0.amount == 3 && $0.feature.text == "f" } == true)
    for index in born.indices { born[index].counted = [] }
    #expect(
      born == [
        Evaluator.Birth(
          id: DeltaID(operation: id, index: 1), kind: .usage, time: noon, item: 1, actual: 3,
          charged: 3, absorbed: 0)
      ])
    #expect(try bench.outcome([("g", 1), ("f", 3)], id: id).births.isEmpty)
    #expect(try bench.outcome([("f", 11)]).births.isEmpty)
    #expect(try bench.outcome([("f", 1)], mode: .check).births.isEmpty)
  }

  @Test func aCancelTakesTheEffectBackOnce() throws {
    var bench = try bench()
    let id = bench.freshID()
    _ = try bench.ask([("g", 2), ("f", 3)], id: id)
    guard case .cancelled(let reversals) = bench.evaluator.cancel(id, nowMicroseconds: bench.micros)
    else { throw Bench.Undecided() }
    #expect(reversals.map(\.id.index) == [65])
    #expect(reversals.map(\.actual) == [-3])
    #expect(reversals.map(\.kind) == [.reversal])
    #expect(try bench.settled("acme", "f", .day) == 0)
    #expect(try bench.settled("acme", "f", .month) == 0)
    #expect(try bench.settled("acme", "g", .day) == 0)
    #expect(bench.evaluator.cancel(id, nowMicroseconds: bench.micros) == .cancelled([]))
    #expect(try bench.settled("acme", "f", .day) == 0)
    let retried = try bench.ask([("g", 2), ("f", 3)], id: id)
    #expect(retried.reason == .cancelled && retried.replayed)
  }

  @Test func aCancelThatLeavesTheRangeChangesNothing() throws {
    var bench = try bench()
    let id = bench.freshID()
    _ = try bench.ask([("g", 2), ("f", 3)], id: id)
    // As a debt grows after it was paid back a little: nothing may be forgotten of either.
    let keys = bench.evaluator.state.counters.keys.filter { $0.feature.text == "f" }
    let key = try #require(keys.first { $0.window == .day })
    bench.evaluator.state.counters[key]?.settled = -Quantity.maximum + 2
    let before = bench.evaluator.state.counters
    bench.micros += 1
    let latest = bench.evaluator.state.latest
    #expect(
      bench.evaluator.cancel(id, nowMicroseconds: bench.micros) == .amountOutOfRange(item: 1))
    #expect(bench.evaluator.state.counters == before && bench.evaluator.state.latest == latest)
    bench.evaluator.state.counters[key]?.settled = 3
    #expect(
      bench.evaluator.cancel(id, nowMicroseconds: bench.micros) != .amountOutOfRange(item: 1))
    #expect(try bench.settled("acme", "f", .day) == 0)
    #expect(try bench.settled("acme", "f", .month) == 0)
  }

  @Test func aCancelBeforeTheOperationKeepsItFromEverHappening() throws {
    var bench = try bench()
    let id = bench.freshID()
    #expect(bench.evaluator.cancel(id, nowMicroseconds: bench.micros) == .cancelled([]))
    #expect(try bench.ask([("f", 1)], id: id).reason == .cancelled)
    #expect(bench.evaluator.state.counters.isEmpty)
  }

  @Test func aCancelledDenialChangesNothing() throws {
    var bench = try bench()
    let id = bench.freshID()
    _ = try bench.ask([("f", 11)], id: id)
    #expect(bench.evaluator.cancel(id, nowMicroseconds: bench.micros) == .cancelled([]))
    #expect(try bench.ask([("f", 11)], id: id).reason == .quotaExceeded)
  }

  @Test func aCancelReachesThePeriodThatAdmitted() throws {
    var bench = try bench()
    let id = bench.freshID()
    _ = try bench.ask([("f", 3)], id: id)
    bench.micros += 20 * 3_600_000_000
    _ = try bench.ask([("f", 1)])
    _ = bench.evaluator.cancel(id, nowMicroseconds: bench.micros)
    let key = CounterKey(subject: try Subject("acme"), feature: try name("f"), window: .day)
    let counter = try #require(bench.evaluator.state.counters[key])
    #expect(counter.settled == 1)
    #expect(counter.previousSettled == 0)
  }

  @Test func aPostCountsAboveTheLimitAndOnce() throws {
    var bench = try bench()
    let id = bench.freshID()
    let first = try bench.outcome([("f", 30)], id: id, mode: .post)
    #expect(first.births.map(\.actual) == [30])
    #expect(try bench.ask([("f", 30)], id: id, mode: .post).replayed)
    #expect(try bench.settled("acme", "f", .day) == 30)
    #expect(try bench.ask([("f", 1)]).reason == .quotaExceeded)
  }

  @Test func aPostOfADeniedOperationCounts() throws {
    var bench = try bench()
    let id = bench.freshID()
    _ = try bench.ask([("f", 11)], id: id)
    let posted = try bench.ask([("f", 11)], id: id, mode: .post)
    #expect(posted.reason == .allowedPosted && !posted.replayed)
    #expect(try bench.settled("acme", "f", .day) == 11)
  }

  @Test func aPostOfAnAnnulledOperationIsNotPostedTwice() throws {
    var bench = try bench()
    let id = bench.freshID()
    _ = try bench.ask([("f", 1)], id: id)
    _ = bench.evaluator.cancel(id, nowMicroseconds: bench.micros)
    #expect(try bench.ask([("f", 1)], id: id, mode: .post).reason == .cancelled)
    #expect(try bench.settled("acme", "f", .day) == 0)
  }

  @Test func aDuplicateIsReversedOnce() throws {
    var bench = try bench()
    let id = bench.freshID()
    _ = try bench.ask([("f", 3)], id: id)
    let delta = DeltaID(operation: id, index: 0)
    let cells = [
      CellReference(level: 1, window: .day, period: Window.day.period(containing: noon)),
      CellReference(level: 1, window: .month, period: Window.month.period(containing: noon)),
    ]
    for expected in [true, false] {
      #expect(
        bench.evaluator.reverse(
          delta, actual: 3, subject: try Subject("acme/ann"), feature: try name("f"), cells: cells)
          == expected)
      #expect(try bench.settled("acme", "f", .day) == 0)
      #expect(try bench.settled("acme", "f", .month) == 0)
    }
  }

  @Test func aCounterNeverRotatesBackwards() {
    let later = CounterValue(start: noon, settled: 4, previousStart: noon + -60_000)
    #expect(later.rotated(to: noon + -60_000) == later)
    #expect(later.rotated(to: noon) == later)
    #expect(later.rotated(to: noon + 60_000).previousSettled == 4)
  }

  // MARK: Invariants

  /// Over any operations: hard limits hold, the billing cell is the sum of the deltas, a denial
  /// and a replay change nothing, and a replay repeats its answer.
  @Test func invariantsHoldOverRandomOperations() throws {
    var random = SeededRandom.fromEnvironment("EvaluatorEffectTests")
    let rules = try catalog(
      f: """
        [{"id": "fq", "quota": 50, "per": "minute"}, {"id": "fm", "quota": 20, "per": "minute",
          "level": "member"}, {"id": "fs", "quota": 30, "per": "hour", "enforcement": "soft"}]
        """,
      g: """
        [{"id": "gq", "quota": 40, "per": "90s"}, {"id": "gr", "rate": 30, "per": "minute",
          "burst": 15}]
        """)
    var bench = try Bench(rules)
    var billed: [Period: Int64] = [:]
    var admitted: [(at: Int64, units: Int64)] = []
    var known: [(OperationID, String, [(String, Int64)], Decision)] = []
    for _ in 0..<4_000 {
      bench.micros += Int64.random(in: 0...900_000, using: &random)
      let subject = ["acme", "acme/ann", "acme/bob"].randomElement(using: &random) ?? "acme"
      let features =
        [["f"], ["g"], ["f", "g"], ["g", "f"]].randomElement(using: &random) ?? ["f"]
      let items = features.map { ($0, Int64.random(in: 0...12, using: &random)) }
      let before = bench.evaluator.state
      if random.chance(0.15), let (id, subject, items, answer) = known.randomElement(using: &random)
      {
        let outcome = try bench.outcome(items, subject: subject, id: id)
        guard case .decided(var again, let births) = outcome else {
          throw Bench.Undecided()
        }
        #expect(again.replayed && births.isEmpty)
        again.replayed = false
        #expect(again == answer)
        #expect(bench.evaluator.state == before)
        continue
      }
      let id = bench.freshID()
      guard
        case .decided(let decision, let births) = try bench.outcome(items, subject: subject, id: id)
      else { throw Bench.Undecided() }
      known.append((id, subject, items, decision))
      if known.count > 50 { known.removeFirst() }
      if decision.isAllowed {
        #expect(births.map(\.actual) == items.filter { $0.0 == "f" }.map(\.1))
        for birth in births {
          billed[Window.month.period(containing: birth.time), default: 0] += birth.charged
        }
        for item in items where item.0 == "g" { admitted.append((bench.micros, item.1)) }
      } else {
        #expect(births.isEmpty)
        #expect(bench.evaluator.state.counters == before.counters)
        #expect(bench.evaluator.state.arrivals == before.arrivals)
      }
      try expectLimits(bench)
    }
    #expect(billed.count == 1)
    #expect(try bench.settled("acme", "f", .month) == billed.values.first)
    expectRate(admitted)
  }

  private func expectLimits(_ bench: Bench) throws {
    for (key, counter) in bench.evaluator.state.counters {
      switch (key.feature.text, key.window, key.subject.depth) {
      case ("f", .minute, 1): #expect(counter.settled <= 50)
      case ("f", .minute, 2): #expect(counter.settled <= 20)
      case ("g", .seconds(90), _): #expect(counter.settled <= 40)
      default: break
      }
      #expect(counter.settled >= 0)
    }
  }

  /// In any span: at most burst + rate × span (15 units, one per 2 s), and the slack's one unit.
  private func expectRate(_ admitted: [(at: Int64, units: Int64)]) {
    for start in stride(from: 0, to: admitted.count, by: 7) {
      var sum: Int64 = 0
      for index in start..<min(start + 60, admitted.count) {
        sum += admitted[index].units
        let span = admitted[index].at - admitted[start].at
        #expect(sum <= 15 + (span + 14) / 2_000_000)
      }
    }
  }
}
