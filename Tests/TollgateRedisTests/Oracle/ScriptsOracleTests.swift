// The scripts against the pure evaluator: the same random operations are put to both, and every
// answer, every delta and every counter must agree. The evaluator was written from the design, not
// from the Lua, so an error would have to be made twice to stay hidden.
//
// Each round has a catalog, accounts and a clock of its own; calls are pipelined in batches, since
// the expected answers are known before Redis is asked. TOLLGATE_SEED repeats a run,
// TOLLGATE_ORACLE says how many operations (`.ci/oracle`).

import Foundation
import Testing
import TollgateTesting

@testable import TollgateRedis

/// How many operations the oracles are put, both together, seven of ten of them rich ones.
enum OracleSize {
  static let asked: Int? = ProcessInfo.processInfo.environment["TOLLGATE_ORACLE"].map { text in
    guard let count = Int(text), count > 0 else {
      preconditionFailure("TOLLGATE_ORACLE=\(text) is no number of operations")
    }
    return count
  }
}

@Suite(.blocking) struct ScriptsOracleTests {
  static let operations = OracleSize.asked.map { $0 / 10 * 3 } ?? 100_000
  static let operationsPerRound = 250

  @Test func theScriptsAgreeWithTheEvaluatorOverRandomOperations() throws {
    var random = SeededRandom.fromEnvironment("scripts against the evaluator")
    let begun = ContinuousClock.now
    let rig = try StoreRig()
    var tally: [String: Int] = [:]
    var done = 0
    while done < Self.operations {
      var round = try OracleRound(rig: rig, random: random.fork(), tally: tally)
      guard try round.run(Self.operationsPerRound) else {
        Issue.record("seed \(random.seed), after \(done) operations")
        return
      }
      tally = round.tally
      done += round.operations
    }
    let took = ContinuousClock.now - begun
    print("\(done) operations agree, seed \(random.seed), in \(took)")
    print(tally.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
    // A generator that never reaches an answer proves nothing about it.
    for outcome in OracleRound.outcomes { #expect(tally[outcome, default: 0] > 0, "\(outcome)") }
  }

  /// The canary: with one comparison of the script wrong, the comparison must notice.
  @Test(arguments: [
    ("if room < amount", "if room <= amount"),
    ("cell[2] = cell[2] + P[", "cell[2] = cell[2] + (cell[2] == 3 and 1 or 0) + P["),
    ("if wait > 0 then", "if wait > 1000 then"),
    // Only seen by an operation that comes after another in the same call.
    ("rate[1] = rate[1] + P[b + 6]", "T[l] = {rate[1] + P[b + 6]}"),
    ("written[id] = home", "written[id] = nil"),
    (
      "if reason < 16 or reason == 28 then",
      "if (reason < 16 or reason == 28) and (mode == POST or #record > 75) then"
    ),
  ])
  func aMistakeInTheScriptIsFound(text: String, mistake: String) throws {
    let rig = try StoreRig(transform: {
      let source = StoreRig.testClock($1)
      if $0 == .decide { #expect(source.contains(text)) }
      return $0 == .decide ? source.replacing(text, with: mistake) : source
    })
    var random = SeededRandom(seed: 7)
    withKnownIssue {
      for _ in 0..<40 {
        var round = try OracleRound(rig: rig, random: random.fork(), tally: [:])
        if try !round.run(Self.operationsPerRound) { return }
      }
    }
  }
}
