// The scripts of leases against the pure evaluator, over random rounds: every answer, every counter,
// every portion; and what must hold whatever comes: what leases have left is what counters hold, and
// no hard limit is exceeded.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct LeaseOracleTests {
  static let operations = OracleSize.asked.map { $0 / 10 } ?? 30_000
  static let operationsPerRound = 250

  @Test func theScriptsOfLeasesAgreeWithTheEvaluator() throws {
    var random = SeededRandom.fromEnvironment("leases against the evaluator")
    let rig = try StoreRig()
    var tally: [String: Int] = [:]
    var done = 0
    while done < Self.operations {
      var round = try LeaseRound(rig: rig, random: random.fork(), tally: tally)
      guard try round.run(Self.operationsPerRound) else {
        Issue.record("seed \(random.seed), after \(done) operations")
        return
      }
      tally = round.tally
      done += round.operations
    }
    print("\(done) operations agree, seed \(random.seed)")
    print(tally.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
    // Fewer may miss one.
    guard done >= 30_000 else { return }
    for outcome in LeaseRound.outcomes { #expect(tally[outcome, default: 0] > 0, "\(outcome)") }
  }

  /// Seed 14003888124843332797: the subject was gone, and a rate of it was drawn after that.
  @Test func onlyACounterThatCountsNothingMayBeMissing() throws {
    let start = WallTime(milliseconds: 0)
    let nothing = CounterValue(start: start)
    func lost(
      _ path: String, _ window: Window, _ value: CounterValue, forgiven: Int64 = 0,
      isStored: Bool = false
    ) throws -> Int {
      let subject = try Subject(path)
      let key = CounterKey(subject: subject, feature: Catalog.name("tokens"), window: window)
      let beside = CounterKey(subject: subject, feature: Catalog.name("chat"), window: .day)
      var state = EvaluatorState()
      state.counters = [key: value, beside: CounterValue(start: StoreRig.start, settled: 1)]
      state.offsets[key] = CounterOffset(start: start, units: forgiven, time: start)
      return state.lost(of: subject, stored: isStored ? [key, beside] : [beside]).count
    }
    #expect(try lost("a/x", .lifetime, nothing) == 0)
    #expect(try lost("a", .lifetime, nothing) == 1)
    #expect(try lost("a/x", .lifetime, CounterValue(start: start, settled: 1)) == 1)
    #expect(try lost("a/x", .lifetime, CounterValue(start: start, held: 1)) == 1)
    #expect(try lost("a/x", .lifetime, nothing, forgiven: 1) == 1)
    // Which of its periods it stands in is still asked for.
    #expect(try lost("a/x", .day, CounterValue(start: StoreRig.start)) == 1)
    #expect(
      try lost("a/x", .lifetime, CounterValue(start: start, settled: 1), isStored: true) == 0)
  }

  /// The canaries: with one rule of a script wrong, the comparison must notice.
  @Test(arguments: [
    (ScriptName.lease, "if room and room >= lessees + 2", "if room and room >= lessees + 1"),
    (.lease, "granted = floor(room / lessees)", "granted = floor(room / lessees) + 1"),
    (.lease, "local applies = not again", "local applies = true"),
    (.lease, "most = most - max(0, owed[2] - owed[4] + owed[3])", ""),
    (
      .lease, "math.min(other[2] - other[4] + other[3], P[l + 4])", "other[2] - other[4] + other[3]"
    ),
    (.lease, "applies = ordinal > latest and", "applies = ordinal >= latest and"),
    (.lease, "(state == 0 or P[7] == 1)", "true"),
    // What was done is forgotten.
    (
      .lease, "steps[n] = {\nwrite = {\n'SET'",
      "steps[n] = math.random(9) > 1 and {write = {'PING'}} or {\nwrite = {'SET'"
    ),
    (.leaseEnd, "or ceiling(left)", "or floor(left / 2)"),
    (.leaseEnd, "0, keeps - left)", "0, -left)"),
    (.leaseEnd, "or over[lessee] == 9", ""),
    // A subject goes in which something is counted, or held.
    (.leaseEnd, "or c[2] ~= 0 or", "or"),
    (.leaseEnd, "or c[3] ~= 0 or", "or"),
    (.leaseClose, "max(forgotten, ms + SKEW)", "forgotten"),
  ])
  func aMistakeInAScriptIsFound(script: ScriptName, text: String, mistake: String) throws {
    let rig = try StoreRig(transform: {
      let source = StoreRig.testClock($1)
      if $0 == script { #expect(source.contains(text)) }
      return $0 == script ? source.replacing(text, with: mistake) : source
    })
    var random = SeededRandom(seed: 7)
    withKnownIssue {
      // As many as the oracle has.
      for _ in 0..<120 {
        var round = try LeaseRound(rig: rig, random: random.fork(), tally: [:])
        if try !round.run(LeaseOracleTests.operationsPerRound) { return }
      }
    }
  }
}
