// An operator lowers a limit: every sidecar follows within a second, and no counter is reset.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Tuning {
    private func ask(
      _ connection: WireConnection, _ opcode: Opcode, _ amount: Int64,
      _ random: inout SeededRandom
    ) throws -> Decision {
      let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      let record = OperationRecord(
        id: OperationID(time: time, using: &random), subject: try Subject("acme/m"),
        items: [Item(feature: try Name("calls"), amount: amount)])
      let answer = try connection.operate([record], as: opcode, deadline: 5000).first
      guard case .decision(let decision)? = answer else {
        throw StackFailure(description: "no decision: \(String(describing: answer))")
      }
      return decision
    }

    @Test func aLimitEditIsSeenByAllSidecarsWithinASecondAndResetsNothing() throws {
      var random = SeededRandom.fromEnvironment("limit edit")
      let stack = try Stack(
        .init(
          sidecars: 3, persistence: .none, extra: LiveTests.ExactLimit.patient,
          accounts: ["acme": "small"]))
      let connections = try stack.endpoints.map {
        try WireConnection($0, token: Stack.checkToken)
      }
      for connection in connections {
        #expect(try ask(connection, .consume, 30, &random).isAllowed)
      }
      var slowest = Duration.zero
      for amount in [Int64(89), 200, 95, 400, 90] {
        try stack.command([
          "limit", "set", "acme", "calls.month", "--amount", "\(amount)", "--reason", "test",
        ])
        // The command has returned: from here on the edit is made.
        let began = ContinuousClock.now
        for connection in connections {
          let fits = 90 + 5 <= amount
          try eventually(within: .seconds(1), every: .milliseconds(5), "the edit to \(amount)") {
            try ask(connection, .check, 5, &random).isAllowed == fits
          }
        }
        slowest = max(slowest, .now - began)
        for connection in connections {
          let state = try ask(connection, .check, 0, &random).items.first
          #expect(state?.settled == 90, "an edit to \(amount) reset the counter")
        }
      }
      print("limit edit: seen by 3 sidecars after at most \(slowest)")
      #expect(slowest <= .seconds(1))
      var tally = LoadTally()
      tally.admitted["acme calls"] = 90
      try Audit.check(stack, tally, subjects: ["acme/m"])
    }
  }
}
