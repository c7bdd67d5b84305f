// A change that no exchange would tell of: who is only asked whether, of what no limit judges,
// spends nothing and so has nothing to tell Redis. The word that Redis publishes reaches him.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests.Leases {
  @Test func aChangeIsHeardWhereNothingIsSpent() throws {
    let stack = try Stack(
      Stack.Options(
        sidecars: 2,
        catalog: """
          levels: [account]
          features:
            notes: {metered: true, importance: volume, idempotency: sidecar, unit: note}
          plans:
            open:
              notes:
                - {id: notes.unlimited, unlimited: true}
            shut:
              notes:
                - {id: notes.day, quota: 0, per: day}
          """, accounts: ["acme": "open"]))
    // The change is made at the other one.
    let connection = try WireConnection(stack.endpoint(1), token: Stack.checkToken)
    var random = SystemRandomNumberGenerator()
    func ask(_ opcode: Opcode) throws -> Decision? {
      let record = OperationRecord(
        id: OperationID(
          time: WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000)),
          using: &random), subject: try Subject("acme"),
        items: [Item(feature: try Name("notes"), amount: 1)])
      guard
        case .decision(let decision)? = try connection.operate(
          [record], as: opcode, deadline: 2000
        ).first
      else { return nil }
      return decision
    }
    try eventually(within: .seconds(20), "a lease answers") {
      try ask(.consume)?.source == .lease
    }
    // All of it is settled: no exchange is due any more.
    try eventually(within: .seconds(10), "it is settled") {
      stack.metric("tollgate_lease_settled_units_total", sidecar: 1) ?? 0 > 0
        && stack.metric("tollgate_lease_unsettled_operations", sidecar: 1) == 0
    }
    let before = try ask(.check)
    #expect(before?.source == .lease && before?.isAllowed == true)
    try stack.command(["account", "set", "acme", "--plan", "shut"])
    let changed = ContinuousClock.now
    try eventually(within: .seconds(10), "it is heard of") { try ask(.check)?.isAllowed == false }
    let took = ContinuousClock.now - changed
    print("heard after \(took)")
    #expect(took < .seconds(1))
  }
}
