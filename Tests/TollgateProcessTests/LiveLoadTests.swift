// More than a sidecar can do, from clients that keep every documented bound: whoever asks little is
// answered in time all the same, whoever asks too much is told so early, and Redis, which is well,
// is not taken for slow (promise 8).

import Foundation
import NIOConcurrencyHelpers
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Load {
    private static let floods = 20
    private static let records = 500

    private static func record(_ subject: String) throws -> OperationRecord {
      var random = SystemRandomNumberGenerator()
      let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      return OperationRecord(
        id: OperationID(time: time, using: &random), subject: try Subject(subject),
        items: [Item(feature: try Name("calls"), amount: 1)])
    }

    /// Sends one big frame after the other and looks at the answers no closer than it must.
    private static func flood(_ endpoint: TestEndpoint, until end: ContinuousClock.Instant) throws {
      let connection = try WireConnection(endpoint, token: Stack.checkToken)
      var buffer = ByteBuffer()
      buffer.writeFrame(
        .check, OperationBatch(Array(repeating: try record("acme/flood"), count: records)),
        correlation: 7)
      while ContinuousClock.now < end {
        try connection.send(buffer)
        _ = try connection.next(within: 10_000)
      }
    }

    @Test func aQuietClientIsAnsweredInTimeBesideAFlood() throws {
      let stack = try Stack(.init(sidecars: 1, accounts: ["acme": "big", "good": "big"]))
      let quiet = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      for subject in ["acme/flood", "good/m"] {
        _ = try quiet.operate([try Self.record(subject)], deadline: 5_000)
      }
      let end = ContinuousClock.now.advanced(by: .seconds(6))
      let running = NIOLockedValueBox(Self.floods)
      let endpoint = stack.endpoint(0)
      for _ in 0..<Self.floods {
        Thread {
          do { try Self.flood(endpoint, until: end) } catch { print("a flood ended: \(error)") }
          running.withLockedValue { $0 -= 1 }
        }.start()
      }
      var took: [Duration] = []
      var reasons: [String: Int] = [:]
      while ContinuousClock.now < end {
        let began = ContinuousClock.now
        let answers = try quiet.operate([try Self.record("good/m")], deadline: 250)
        took.append(ContinuousClock.now - began)
        let reason =
          if case .decision(let decision)? = answers.first { decision.reason.name } else {
            "\(answers)"
          }
        reasons[reason, default: 0] += 1
        Thread.sleep(forTimeInterval: 0.01)
      }
      try eventually(within: .seconds(20), "the floods ended") {
        running.withLockedValue { $0 } == 0
      }
      took.sort()
      let overloaded = stack.metric("tollgate_overloaded_total", sidecar: 0) ?? 0
      let trips = stack.metric("tollgate_breaker_trips_total", sidecar: 0)
      print(
        "quiet beside a flood: \(reasons), p50 \(took[took.count / 2]), "
          + "p99 \(took[took.count * 99 / 100]), max \(took[took.count - 1]), "
          + "overloaded \(overloaded), breaker trips \(trips ?? -1)")
      if trips != 0 { print(stack.logs) }
      // The deadline, and as long again for a machine that is busy with the test itself.
      #expect(took[took.count * 99 / 100] < .milliseconds(500))
      #expect((reasons["ALLOWED"] ?? 0) * 10 >= took.count * 9, "\(reasons)")
      #expect(overloaded > Double(Self.floods * Self.records))
      #expect(trips == 0)
    }
  }
}
