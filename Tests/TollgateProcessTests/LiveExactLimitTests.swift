// The heart of the promise: a hard limit is exact, whoever asks, through whichever sidecar.

import Foundation
import NIOConcurrencyHelpers
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct ExactLimit {
    /// On a machine that is busy with other things a slow answer is no outage: what is tested here
    /// is the store's decision, not the breaker's.
    static let patient = "limits: {redis_slow_ms: 10000}"

    /// 64 clients over 3 sidecars ask at once until each was denied; returns units admitted.
    private func race(
      _ stack: Stack, subject: Subject, items: [Item], clients: Int = 64
    ) throws -> (allowed: Int, violations: [String]) {
      let allowed = NIOLockedValueBox(0)
      let violations = NIOLockedValueBox<[String]>([])
      let left = NIOLockedValueBox(clients)
      let gate = NIOLockedValueBox(false)
      for index in 0..<clients {
        let thread = Thread {
          defer { left.withLockedValue { $0 -= 1 } }
          var random = SystemRandomNumberGenerator()
          do {
            let connection = try WireConnection(
              stack.endpoint(index % stack.options.sidecars), token: Stack.checkToken)
            while !gate.withLockedValue({ $0 }) { Thread.sleep(forTimeInterval: 0.001) }
            while true {
              let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
              let record = OperationRecord(
                id: OperationID(time: time, using: &random), subject: subject, items: items)
              let answer = try connection.operate([record], deadline: 20_000).first
              guard case .decision(let decision)? = answer, decision.source == .redis else {
                let text = String(describing: answer)
                violations.withLockedValue { $0.append("no decision of the store: \(text)") }
                return
              }
              guard decision.isAllowed else {
                if decision.reason != .quotaExceeded {
                  violations.withLockedValue { $0.append("denied: \(decision.reason.name)") }
                }
                return
              }
              allowed.withLockedValue { $0 += 1 }
            }
          } catch { violations.withLockedValue { $0.append("\(error)") } }
        }
        thread.start()
      }
      gate.withLockedValue { $0 = true }
      try eventually(within: .seconds(60), "every client was denied") {
        left.withLockedValue { $0 } == 0
      }
      return (allowed.withLockedValue { $0 }, violations.withLockedValue { $0 })
    }

    @Test func sixtyFourClientsOverThreeSidecarsAdmitExactlyTheLimit() throws {
      let rounds = 20
      let accounts = (0..<rounds).map { ("round-\($0)", "small") }
      let stack = try Stack(
        .init(
          sidecars: 3, persistence: .none, extra: Self.patient,
          accounts: Dictionary(uniqueKeysWithValues: accounts)))
      for round in 0..<rounds {
        let subject = try Subject("round-\(round)/member")
        let items = [Item(feature: try Name("calls"), amount: 1)]
        let (allowed, violations) = try race(stack, subject: subject, items: items)
        #expect(allowed == 500, "round \(round)")
        #expect(violations == [], "round \(round)")
      }
      var tally = LoadTally()
      for round in 0..<rounds { tally.admitted["round-\(round) calls"] = 500 }
      try Audit.check(stack, tally, subjects: accounts.map(\.0))
    }

    /// Three limits on calls and one on tokens: an operation takes both features or neither.
    @Test func allOrNothingOverFourLimitsUnderConcurrency() throws {
      let stack = try Stack(
        .init(
          sidecars: 3, persistence: .none, extra: Self.patient, accounts: ["acme": "small"]))
      let items = [
        Item(feature: try Name("calls"), amount: 1), Item(feature: try Name("tokens"), amount: 3),
      ]
      // 700 tokens / 3: the tokens' limit denies first, and no call may be counted without them.
      let (allowed, violations) = try race(stack, subject: try Subject("acme/m"), items: items)
      #expect(allowed == 233)
      #expect(violations == [])
      var tally = LoadTally()
      tally.admitted = ["acme calls": 233, "acme tokens": 699]
      try Audit.check(stack, tally, subjects: ["acme"])
    }
  }
}
