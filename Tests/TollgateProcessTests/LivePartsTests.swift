// Grants, overage and prices through real losses: what Redis forgot comes back for every counter
// that limits go by, and what only a script knew when it wrote it is held by whoever repeats it
// (promises 1, 3, 5).

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Parts {
    /// 7 tokens cost 3: 20 are included in each month, and 40 beyond them are allowed.
    static let catalog = """
      levels: [account, member]
      features:
        tokens: {metered: true, importance: money, unit: token}
        spend: {metered: true, importance: money, unit: micro}
      rates:
        - {id: small, feature: tokens, into: spend, price: 3, per: 7}
      plans:
        pro:
          tokens:
            - {id: tokens.month, quota: 1000000, per: month}
          spend:
            - {id: spend.included, credit: {every: month, amount: 20}, overage: allow}
            - {id: spend.cap, spend_cap: 40, per: month}
      """

    private static func record(_ random: inout SeededRandom) throws -> OperationRecord {
      let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      return OperationRecord(
        id: OperationID(time: time, using: &random), subject: try Subject("acme/ann"),
        items: [Item(feature: try Name("tokens"), amount: 7)])
    }

    /// Tries until there is an answer by Redis; what was minted before a loss is asked anew.
    private static func consume(
      _ stack: Stack, sidecar: Int = 0, _ random: inout SeededRandom
    ) throws -> (record: OperationRecord, decision: Decision) {
      var found: (OperationRecord, Decision)?
      try eventually(within: .seconds(30), every: .milliseconds(50), "an answer by Redis") {
        let connection = try WireConnection(stack.endpoint(sidecar), token: Stack.checkToken)
        let record = try record(&random)
        let answer = try connection.operate([record], deadline: 5000).first
        guard case .decision(let decision)? = answer, decision.source == .redis else {
          print("no answer by Redis yet: \(answer.map { "\($0)" } ?? "none")")
          return false
        }
        found = (record, decision)
        return true
      }
      return try #require(found)
    }

    private static func delivered(_ stack: Stack, operations: Int64) throws {
      try eventually(within: .seconds(30), every: .milliseconds(100), "all is in the books") {
        let totals = try Audit.totals(stack)
        return totals["acme tokens"] == operations * 7 && totals["acme spend"] == operations * 3
      }
    }

    private static func isOneTruth(_ stack: Stack, sidecar: Int = 0) throws {
      try eventually(within: .seconds(20), every: .milliseconds(100), "one truth") {
        guard let found = try Audit.reconcile(stack, sidecar: sidecar) else { return false }
        return found.difference == 0 && found.undelivered == 0 && !found.rows.isEmpty
      }
      #expect(try Audit.verify(stack).findings == [])
    }

    @Test func aLostRedisForgetsNoGrantNoCapAndNoPrice() throws {
      var random = SeededRandom.fromEnvironment("parts, lost redis")
      let stack = try Stack(
        .init(sidecars: 1, buckets: 1, catalog: Self.catalog, accounts: ["acme": "pro"]))
      for _ in 0..<12 {
        #expect(try Self.consume(stack, &random).decision.reason == .allowed)
      }
      try Self.delivered(stack, operations: 12)
      _ = try stack.redis.connect().command("FLUSHALL")
      // 36 of 60 are used: 8 more, and not one.
      var admitted = 0
      while try Self.consume(stack, &random).decision.isAllowed { admitted += 1 }
      #expect(admitted == 8)
      #expect(try Self.consume(stack, &random).decision.binding == Name("spend.cap"))
      try Self.delivered(stack, operations: 20)
      try Self.isOneTruth(stack)
      let text = try stack.cli(["reconcile", "--verbose"]).output
      for counter in ["spend, grant spend.included", "spend, overage per month", "priced by small"]
      {
        #expect(text.contains(counter), "\(text)")
      }
    }

    /// The sidecar that decided is gone, and so is Redis: whoever repeated the answer has it.
    @Test func whoRepeatsAnAnswerHoldsItsDeltas() throws {
      var random = SeededRandom.fromEnvironment("parts, repeated")
      let stack = try Stack(
        .init(sidecars: 2, buckets: 1, catalog: Self.catalog, accounts: ["acme": "pro"]))
      for index in 0..<2 {
        #expect(try Self.consume(stack, sidecar: index, &random).decision.isAllowed)
      }
      try Self.delivered(stack, operations: 2)
      stack.ledger?.kill()
      var asked: [OperationRecord] = []
      for _ in 0..<9 {
        let (record, decision) = try Self.consume(stack, &random)
        #expect(decision.isAllowed)
        asked.append(record)
      }
      let other = try WireConnection(stack.endpoint(1), token: Stack.checkToken)
      for record in asked {
        guard case .decision(let decision)? = try other.operate([record], deadline: 5000).first
        else { throw StackFailure(description: "no answer") }
        #expect(decision.isAllowed && decision.replayed)
      }
      // Of each the tokens and what they cost.
      try eventually(within: .seconds(10), "the other holds them") {
        (stack.metric("tollgate_retained_deltas", sidecar: 1) ?? 0) >= 18
      }
      stack.sidecar(0)?.kill()
      _ = try stack.redis.connect().command("FLUSHALL")
      try stack.startLedger()
      try Self.delivered(stack, operations: 11)
      #expect(try Self.consume(stack, sidecar: 1, &random).decision.isAllowed)
      try Self.delivered(stack, operations: 12)
      #expect(try Audit.verify(stack).lostSequences == 0)
      try Self.isOneTruth(stack, sidecar: 1)
    }
  }
}
