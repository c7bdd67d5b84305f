// Local loops over conversations without a Redis: enough of a sidecar to be greeted, to be refused,
// and to be answered by a fast path of the tests. With it a client that has no event loop.

import Foundation
import Glibc
import Logging
import NIOCore
import NIOPosix
import Testing
import TollgateCore
import TollgateRedis
import TollgateTesting
import TollgateWire

@testable import TollgateServer

/// Allows one-record CONSUME frames whose deadline is not `LocalRig.leftDeadline`.
final class AllowingPath: FastPath {
  func answer(_ frame: borrowing FastFrame, into out: OutBytes) -> Bool {
    let payload = unsafe frame.payload
    guard frame.opcode == .consume, frame.deadlineMilliseconds != LocalRig.leftDeadline,
      payload.count >= 4, unsafe payload[0] == 1
    else { return false }
    let decision = Decision(
      reason: .allowed, source: .redis, time: WallTime(milliseconds: 1), globalVersion: 1,
      accountVersion: 1)
    var buffer = ByteBuffer()
    buffer.writeFrame(DecisionBatch([.decision(decision)]), correlation: frame.correlation)
    out.append(buffer)
    return true
  }
}

final class LocalRig: Sendable {
  /// A frame with this deadline goes to its conversation.
  static let leftDeadline: UInt32 = 77

  let directory: TemporaryDirectory
  let configuration: ServerConfiguration
  let metrics = Metrics()
  let units: [SessionUnit]
  let loops: LocalLoops
  private let group: MultiThreadedEventLoopGroup

  var endpoint: TestEndpoint { .unix(configuration.listenUnix ?? "") }

  init(
    localLoops: Int = 1, eventLoops: Int = 1, settings: LocalLoop.Settings? = nil,
    tune: (inout ServerConfiguration) -> Void = { _ in }
  ) async throws {
    let directory = try TemporaryDirectory()
    self.directory = directory
    var configuration = ServerConfiguration(
      deployment: Deployment(id: try Name("rig"), buckets: 2, mode: .dev), sidecarID: "rig",
      redis: RedisLinkConfiguration(endpoint: .unix(path: directory.file("none"))))
    configuration.listenUnix = directory.file("s")
    configuration.localLoops = localLoops
    tune(&configuration)
    self.configuration = configuration
    group = MultiThreadedEventLoopGroup(numberOfThreads: eventLoops)
    var units: [SessionUnit] = []
    let buckets = BucketMap(buckets: 2)
    let desk = AdminDesk { _, body, _ in .success(body) }
    for eventLoop in group.makeIterator() {
      let (metrics, settled) = (metrics, configuration)
      units.append(
        try await eventLoop.submit {
          var logger = Logger(label: "rig")
          logger.logLevel = .critical
          let enforcer = Enforcer(
            eventLoop: eventLoop, configuration: settled,
            keys: KeySpace(deployment: settled.deployment.id, map: buckets), metrics: metrics,
            fallback: FallbackQueue(limits: .init(), journal: nil),
            seen: SeenBoard(buckets: buckets),
            logger: logger, wallClock: { SystemClock.wallTime() })
          return SessionUnit(
            SessionContext(
              enforcer: enforcer, configuration: settled, buckets: buckets, admin: desk,
              logger: logger),
            on: eventLoop)
        }.get())
    }
    self.units = units
    if let settings {
      loops = try await LocalLoops.start(
        settings, count: localLoops, listeners: LocalLoops.listen(configuration), sessions: units,
        metrics: metrics, fastPath: { _ in AllowingPath() })
    } else {
      loops = try await LocalLoops.start(
        configuration, sessions: units, metrics: metrics, fastPath: { _ in AllowingPath() })
    }
  }

  /// Runs the body on so many threads of their own: it may block.
  static func threads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) async {
    await withTaskGroup(of: Void.self) { group in
      for index in 0..<count {
        group.addTask {
          await withCheckedContinuation { done in
            Thread.detachNewThread {
              body(index)
              done.resume()
            }
          }
        }
      }
    }
  }

  func drain() { for unit in units { unit.onLoop { $0.drain() } } }
  func timePassed() { for unit in units { unit.onLoop { $0.timePassed() } } }

  func stop() async throws {
    await loops.stopListening()
    await loops.stop()
    try await group.shutdownGracefully()
  }
}

/// A client connection, blocking.
final class LocalClient {
  let descriptor: Int32
  private var decoder = FrameDecoder(frameBytesMax: 1 << 20)
  private var correlation: UInt64 = 1

  init(_ endpoint: TestEndpoint) throws { descriptor = try Socket.connect(endpoint) }

  deinit { Socket.close(descriptor) }

  static func helloFrame(role: Role = .check, token: String = "") -> ByteBuffer {
    var buffer = ByteBuffer()
    buffer.writeFrame(Hello(role: role, client: "rig", token: token), correlation: 1)
    return buffer
  }

  func greet(role: Role = .check, token: String = "") throws {
    try send(Self.helloFrame(role: role, token: token))
    _ = try next(.welcome)
  }

  static func consumeFrame(
    correlation: UInt64, records: Int = 1, isLeft: Bool = false
  ) throws -> ByteBuffer {
    let record = OperationRecord(
      id: OperationID(high: 0x0199_5A7C_33E1_7000, low: correlation), subject: try Subject("acme"),
      items: [Item(feature: try Name("calls"), amount: 1)])
    var buffer = ByteBuffer()
    buffer.writeFrame(
      .consume, OperationBatch(Array(repeating: record, count: records)), correlation: correlation,
      deadlineMilliseconds: isLeft ? LocalRig.leftDeadline : 1000)
    return buffer
  }

  func send(_ buffer: ByteBuffer) throws { try send(bytes: Array(buffer.readableBytesView)[...]) }

  func send(bytes: ArraySlice<UInt8>) throws {
    var rest = bytes
    while !rest.isEmpty { rest = rest.dropFirst(try Socket.write(descriptor, rest)) }
  }

  enum Failure: Error { case closed, timedOut, unexpected(UInt8) }

  func next(within milliseconds: Int = 30_000) throws -> Frame {
    while true {
      if let frame = try decoder.next() { return frame }
      guard Socket.wait(descriptor, for: 1, milliseconds: milliseconds) else {
        throw Failure.timedOut
      }
      guard let bytes = try Socket.read(descriptor) else { continue }
      guard !bytes.isEmpty else { throw Failure.closed }
      decoder.feed(ByteBuffer(bytes: bytes))
    }
  }

  func next(_ opcode: Opcode) throws -> Frame {
    let frame = try next()
    guard frame.header.opcode == opcode else { throw Failure.unexpected(frame.header.rawOpcode) }
    return frame
  }

  /// True where the peer has ended the connection and nothing more came.
  func isEnded() -> Bool {
    do {
      _ = try next()
      return false
    } catch Failure.timedOut {
      return false
    } catch {
      return true
    }
  }
}
