// `transact`, `settle` and `expire` against the pure evaluator, over random catalogs with grants,
// prices, caps and reservations of every kind. TOLLGATE_SEED repeats a run.

import Foundation
import Testing
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct RichOracleTests {
  static let operations =
    ProcessInfo.processInfo.environment["TOLLGATE_ORACLE"].flatMap { Int($0) } ?? 40_000
  static let operationsPerRound = 200

  @Test func theScriptsAgreeWithTheEvaluatorOverRichOperations() throws {
    var random = SeededRandom.fromEnvironment("rich scripts against the evaluator")
    let begun = ContinuousClock.now
    let rig = try StoreRig()
    var tally: [String: Int] = [:]
    var done = 0
    while done < Self.operations {
      var round = try RichRound(rig: rig, random: random.fork(), tally: tally)
      if let problem = try round.run(Self.operationsPerRound) {
        Issue.record("seed \(random.seed), round at \(done): \(problem)")
        return
      }
      tally = round.tally
      done += Self.operationsPerRound
    }
    print("\(done) rich operations agree, seed \(random.seed), in \(ContinuousClock.now - begun)")
    print(tally.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
    for outcome in RichRound.outcomes { #expect(tally[outcome, default: 0] > 0, "\(outcome)") }
  }
}
