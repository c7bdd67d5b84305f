// A Redis 150 ms away that is well: it is slow to answer and nothing else. Nobody is told that it
// cannot be asked, a bucket does more than one call's operations in a round trip, and a limit is
// exact with a thousand operations under way.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct FarRedis {
    private static let limit = 2_000
    private static let oneWay = Duration.milliseconds(75)

    private static let catalog = """
      levels: [account]
      features:
        calls: {metered: true, importance: money, unit: call}
        edits: {metered: true, importance: volume, idempotency: sidecar, unit: edit}
      plans:
        plan:
          calls: [{id: calls.day, quota: \(limit), per: day}]
          edits: [{id: edits.day, quota: \(limit), per: day}]
      """

    /// `calls` are decided by Redis one by one, `edits` are leased after the first.
    @Test(arguments: ["calls", "edits"])
    func aThousandUnderWayAreAllDecidedAndTheLimitIsExact(feature: String) throws {
      let stack = try Stack(
        .init(
          sidecars: 1, persistence: .none, proxies: true, extra: ExactLimit.patient,
          catalog: Self.catalog, accounts: ["acme": "plan"]))
      try #require(stack.redisProxy).delay(toServer: Self.oneWay, toClient: Self.oneWay)
      let connections = try (0..<16).map { _ in
        try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      }
      let each = 64
      let waves = 3
      var random = SystemRandomNumberGenerator()
      var outcomes: [String: Int] = [:]
      let began = ContinuousClock.now
      for _ in 0..<waves {
        let asked = try connections.map { connection in
          let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
          let records = try (0..<each).map { _ in
            OperationRecord(
              id: OperationID(time: time, using: &random), subject: try Subject("acme"),
              items: [Item(feature: try Name(feature), amount: 1)])
          }
          return (connection, try connection.ask(records, deadline: 10_000))
        }
        for (connection, id) in asked {
          for answer in try connection.answers(to: id, within: 12_000) {
            switch answer {
            case .decision(let decision): outcomes[decision.reason.name, default: 0] += 1
            case .error(let code, _): outcomes[code.name, default: 0] += 1
            }
          }
        }
      }
      let took = ContinuousClock.now - began
      let count = waves * each * connections.count
      print("\(count) \(feature) with Redis 150 ms away: \(took), \(outcomes)")
      #expect(outcomes == ["ALLOWED": Self.limit, "QUOTA_EXCEEDED": count - Self.limit])
      // One call of 32 after another would take this long.
      let oneByOne = Self.oneWay * (2 * count / 32)
      #expect(took < oneByOne)
    }
  }
}
