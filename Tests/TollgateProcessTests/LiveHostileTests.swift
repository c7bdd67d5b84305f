// Bad input: every hostile frame gets a typed error or a closed connection, the server stays up,
// and a good client beside the bad ones is served. The Python client drives the same sidecar.

import Foundation
import Synchronization
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Hostile {
    private static let root = URL(fileURLWithPath: #filePath)
      .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    private struct Vector: Decodable {
      struct Refusal: Decodable {
        var code: String
        var fatal: Bool
      }
      var name: String
      var hex: String
      var error: Refusal?
      var incomplete: Bool?
      var frameBytesMax: Int?
    }

    private static func bytes(_ hex: String) -> [UInt8] {
      let digits = Array(hex.utf8)
      return stride(from: 0, to: digits.count - 1, by: 2).compactMap {
        UInt8(String(decoding: digits[$0..<$0 + 2], as: UTF8.self), radix: 16)
      }
    }

    @Test func pitfall49_everyHostileFrameIsRefusedAndTheServerStaysUp() throws {
      let file = Self.root.appendingPathComponent("proto/vectors/frames-hostile.json")
      let vectors = try JSONDecoder().decode([Vector].self, from: Data(contentsOf: file))
      #expect(vectors.count > 100)
      let stack = try Stack(.init(sidecars: 1, persistence: .none, accounts: ["acme": "big"]))
      let pid = stack.sidecar(0)?.pid
      for vector in vectors {
        for saysHello in [true, false] {
          try send(vector, to: stack.endpoint(0), saysHello: saysHello)
        }
      }
      let good = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      #expect(good.welcome != nil)
      #expect(stack.sidecar(0)?.isRunning == true && stack.sidecar(0)?.pid == pid)
    }

    private func send(_ vector: Vector, to endpoint: TestEndpoint, saysHello: Bool) throws {
      let connection =
        saysHello
        ? try WireConnection(endpoint, token: Stack.checkToken) : try WireConnection(endpoint)
      // A server may close while the rest is still being written.
      try? connection.send(bytes: Self.bytes(vector.hex))
      // Half a frame is waited for, not refused.
      if vector.incomplete == true || vector.frameBytesMax != nil { return }
      var sawRefusal = false
      do {
        while true {
          let frame = try connection.next(within: 3000)
          switch frame.header.opcode {
          case .error?:
            let reply = try ErrorReply.decode(frame)
            sawRefusal = true
            if saysHello, let wanted = vector.error, wanted.fatal {
              #expect(reply.code.name == wanted.code, "\(vector.name)")
            }
            // Only a fatal one ends the connection.
            if vector.error?.fatal != true && saysHello { return }
          case .decisions?: return  // Refused in its place.
          case .goAway?, .pong?, .welcome?: continue
          default: Issue.record("\(vector.name): an unexpected frame")
          }
        }
      } catch WireFailure.closed {
        return
      } catch is PosixError {
        return
      } catch {
        Issue.record("\(vector.name): \(error), hello \(saysHello), refused \(sawRefusal)")
      }
    }

    /// TOLLGATE_GARBAGE_SECONDS; CI runs the full 30.
    static let seconds =
      ProcessInfo.processInfo.environment["TOLLGATE_GARBAGE_SECONDS"].flatMap { Double($0) } ?? 30

    @Test func aThousandConnectionsOfGarbageDoNotDisturbAGoodClient() throws {
      var random = SeededRandom.fromEnvironment("garbage")
      let stack = try Stack(
        .init(
          sidecars: 1, persistence: .none, extra: LiveTests.ExactLimit.patient,
          accounts: ["acme": "big"]))
      let good = LoadDriver(
        stack.endpoints,
        .init(
          threads: 1, subjects: ["acme/m"], deadlineMilliseconds: 2000, pause: .milliseconds(5)),
        seed: &random)
      let end = ContinuousClock.now.advanced(by: .seconds(Self.seconds))
      var connections: [Int32] = []
      defer { connections.forEach { Socket.close($0) } }
      var opened = 0
      var refused = 0
      while ContinuousClock.now < end {
        while connections.count < 1000 {
          let fd = try Socket.connect(stack.endpoint(0))
          Socket.setNonBlocking(fd)
          connections.append(fd)
          opened += 1
        }
        connections = connections.filter { fd in
          let count = Int(random.next() % 64) + 1
          var garbage = (0..<count).map { _ in UInt8(truncatingIfNeeded: random.next()) }
          // Half of it begins like a frame, so that it gets past the first check.
          if random.chance(0.5) { garbage = [0x54, 0x47, 1, 0x11, 0, 0, 0, 0] + garbage }
          if (try? Socket.write(fd, garbage[...])) != nil, !random.chance(0.05) { return true }
          refused += 1
          Socket.close(fd)
          return false
        }
        Thread.sleep(forTimeInterval: 0.02)
      }
      let tally = try good.finish()
      let sorted = tally.latencies.sorted()
      let p99 = (sorted.isEmpty ? .infinity : sorted[sorted.count * 99 / 100]) * 1000
      print(
        "garbage: \(opened) connections in \(Self.seconds) s, \(refused) closed; the good client: "
          + "\(tally.operations) operations, p99 \(p99) ms, \(tally.repeated) repeated")
      #expect(tally.violations == [])
      #expect(tally.errors.isEmpty && tally.denied.isEmpty && tally.repeated == 0)
      #expect(tally.operations > Int(Self.seconds * 5))
      #expect(stack.sidecar(0)?.isRunning == true)
    }

    @Test func thePythonClientDrivesARunningSidecar() throws {
      let catalog = Stack.catalog.replacingOccurrences(
        of: "unit: call}", with: "unit: call, reservable: true}")
      let stack = try Stack(
        .init(sidecars: 1, persistence: .none, catalog: catalog, accounts: ["acme": "big"]))
      guard case .unix(let path) = stack.endpoint(0) else { return }
      let script = Self.root.appendingPathComponent("proto/clients/python/drive.py").path
      let drive = try ChildProcess(
        "python3",
        [
          script, "--unix", path, "--token", Stack.checkToken, "--admin-token", Stack.adminToken,
          "--subject", "acme/alice", "--feature", "calls",
        ])
      let status = try drive.wait(within: .seconds(60))
      #expect(status == .exited(0), "\(drive.standardOutput)\(drive.standardError)")
    }
  }
}
