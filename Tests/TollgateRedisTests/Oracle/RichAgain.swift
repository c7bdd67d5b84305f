// Operations that were decided, put to both sides once more: the same answers, and not one byte in
// Redis that moves.

import TollgateCore

@testable import TollgateRedis

extension RichRound {
  /// Asks one of them again; what it was answered otherwise than it should, if so.
  typealias Again = (inout RichRound) throws -> String?

  mutating func remember<Call: ScriptCall>(
    _ id: OperationID, _ outcome: Evaluator.Outcome,
    _ judge: @escaping (inout Evaluator, Int64) -> Evaluator.Outcome, _ call: Call, _ what: String
  ) where Call.Reply == RichReply {
    // Some refusals pass by themselves: the same id may come again, and is decided then.
    guard case .decided(let decision, _) = outcome, !decision.replayed,
      evaluator.state.records[id] != nil
    else { return }
    history.append { round in
      let outcome = judge(&round.evaluator, round.microseconds)
      switch outcome {
      case .decided(let decision, let born) where decision.replayed && born.isEmpty: break
      case .idTooOld: break
      default: return "\(what) again: \(outcome)"
      }
      let expected = OracleRound.expected(outcome, after: 0)
      let got = OracleRound.comparable(try round.ask(call).answer)
      return got == expected ? nil : "\(what) again\nexpected \(expected)\n     got \(got)"
    }
  }

  /// Whatever prefix of the history it is, it changes nothing when it comes again, and again.
  mutating func repeatPrefix() throws -> String? {
    count("prefix")
    let state = evaluator.state
    let before = try rig.dump()
    let prefix = history.prefix(Int.random(in: 0...history.count, using: &random))
    for _ in 0..<2 {
      for again in prefix {
        if let problem = try again(&self) { return problem }
      }
    }
    guard evaluator.state == state else { return "a prefix again changed the evaluator" }
    let after = try rig.dump()
    guard after != before else { return nil }
    let changed = Set(before.keys).union(after.keys).filter { before[$0] != after[$0] }
    return "a prefix of \(prefix.count) again changed \(changed.sorted())"
  }
}
