// `transact`, `settle` and `expire` against the pure evaluator, over random catalogs with grants,
// prices, caps and reservations of every kind. TOLLGATE_SEED repeats a run, TOLLGATE_ORACLE says how
// many operations.

import Foundation
import Testing
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct RichOracleTests {
  static let operations = OracleSize.asked.map { $0 - $0 / 10 * 3 } ?? 40_000
  static let operationsPerRound = 200

  /// Half of them each, at the same time.
  @Test(arguments: 0..<2)
  func theScriptsAgreeWithTheEvaluatorOverRichOperations(half: Int) throws {
    var random = SeededRandom.fromEnvironment("rich scripts against the evaluator, half \(half)")
    for _ in 0..<half { random = random.fork() }
    let begun = ContinuousClock.now
    let rig = try StoreRig()
    var tally: [String: Int] = [:]
    var done = 0
    while done < (Self.operations + 1) / 2 {
      var round = try RichRound(rig: rig, random: random.fork(), tally: tally)
      if let problem = try round.run(Self.operationsPerRound) {
        Issue.record("seed \(random.seed), round at \(done): \(problem)")
        return
      }
      tally = round.tally
      done += round.operations
    }
    print("\(done) rich operations agree, seed \(random.seed), in \(ContinuousClock.now - begun)")
    print(tally.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
    for outcome in RichRound.outcomes { #expect(tally[outcome, default: 0] > 0, "\(outcome)") }
  }

  /// The canary: with one thing of a script wrong, the comparison must notice.
  @Test(arguments: [
    (
      ScriptName.transact, "local burnt = math.min(rest, left)",
      "local burnt = math.min(rest, left + 1)"
    ),
    (
      .transact, "floor(sum * num / den) - floor(m * num / den)", "floor(sum * num / den)"
    ),
    (.transact, "shares[deficit] = (shares[deficit] or 0) - cures[k][2]", ""),
    (.settle, "c[7], rest = c[7] - take, rest - take", "rest = rest - take"),
    (.settle, "more = late and excess or math.min(excess, roomOf(i))", "more = excess"),
    (.settle, "owing, beyond = beyond, 0", ""),
    (.transact, "owes[#owes + 1], rest = {P[b + 7], rest}, 0", ""),
    (.transact, "P[b + 6] >= 2 and amount or nil", "amount"),
    (.settle, "if ends and not free(hold, epoch) then", "if false then"),
    (.expire, "if not free(hold, tonumber(e)) then", "if false then"),
    (.cancel, "if not isGrant and cell[4] ~= 0", "if cell[4] ~= 0"),
    // Only seen by what comes again.
    (.settle, "bear(births)\nreturn", "bear(births)\ncall('HDEL', KEYS[3], id)\nreturn"),
  ])
  func aMistakeInAScriptIsFound(script: ScriptName, text: String, mistake: String) throws {
    let rig = try StoreRig(transform: {
      let source = StoreRig.testClock($1)
      if $0 == script { #expect(source.contains(text)) }
      return $0 == script ? source.replacing(text, with: mistake) : source
    })
    var random = SeededRandom(seed: 11)
    var tally: [String: Int] = [:]
    for _ in 0..<60 {
      var round = try RichRound(rig: rig, random: random.fork(), tally: tally)
      if try round.run(Self.operationsPerRound) != nil { return }
      tally = round.tally
    }
    Issue.record("\(mistake) was not noticed")
  }
}
