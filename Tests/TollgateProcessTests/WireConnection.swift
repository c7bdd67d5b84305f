// One blocking connection that speaks Tollgate's frames: the independent auditor's hand.
//
// It shares the codec with the product and nothing else: no client library, no event loop, no
// retries of its own. What a test counts comes from the replies it read with its own eyes.

import NIOCore
import TollgateCore
import TollgateTesting
import TollgateWire

enum WireFailure: Error {
  /// The peer closed or reset the connection.
  case closed
  /// Nothing came in time; the connection is of no further use.
  case timedOut
  case malformed(String)
  case refused(ErrorCode, String)
}

final class WireConnection {
  private let fd: Int32
  private var decoder = FrameDecoder(frameBytesMax: 1 << 20)
  private var correlation: UInt64 = 0
  private(set) var welcome: Welcome?

  init(_ endpoint: TestEndpoint) throws { fd = try Socket.connect(endpoint) }

  convenience init(_ endpoint: TestEndpoint, token: String, role: Role = .check) throws {
    try self.init(endpoint)
    try hello(token: token, role: role)
  }

  deinit { Socket.close(fd) }

  func hello(
    token: String, role: Role = .check, features: ProtocolFeatures = []
  ) throws {
    var buffer = ByteBuffer()
    var hello = Hello(role: role, client: "auditor", token: token)
    hello.features = features
    buffer.writeFrame(hello, correlation: nextCorrelation())
    try send(buffer)
    welcome = try Welcome.decode(try frame(.welcome, within: 5000))
  }

  func nextCorrelation() -> UInt64 {
    correlation += 1
    return correlation
  }

  func send(_ buffer: ByteBuffer) throws { try send(bytes: Array(buffer.readableBytesView)) }

  func send(bytes: [UInt8]) throws {
    var rest = bytes[...]
    while !rest.isEmpty { rest = rest.dropFirst(try Socket.write(fd, rest)) }
  }

  /// The next frame, whatever it is.
  func next(within milliseconds: Int) throws -> Frame {
    let end = ContinuousClock.now.advanced(by: .milliseconds(milliseconds))
    while true {
      do throws(WireError) {
        if let frame = try decoder.next() { return frame }
      } catch {
        throw WireFailure.malformed(error.text)
      }
      let left = (end - .now).inMilliseconds
      guard left > 0, Socket.wait(fd, for: 1, milliseconds: left) else {
        throw WireFailure.timedOut
      }
      guard let bytes = try Socket.read(fd) else { continue }
      guard !bytes.isEmpty else { throw WireFailure.closed }
      decoder.feed(ByteBuffer(bytes: bytes))
    }
  }

  /// The next frame of this kind; goodbyes, pings and news of policies in between are passed over.
  func frame(_ opcode: Opcode, within milliseconds: Int) throws -> Frame {
    while true {
      let frame = try next(within: milliseconds)
      if frame.header.opcode == opcode { return frame }
      switch frame.header.opcode {
      case .goAway?, .ping?, .pong?, .welcome?: continue
      case .error?:
        let reply = try ErrorReply.decode(frame)
        throw WireFailure.refused(reply.code, reply.message)
      default: throw WireFailure.malformed("an unexpected frame")
      }
    }
  }

  /// Sends operations and returns the answers, in order.
  func operate(
    _ records: [OperationRecord], as opcode: Opcode = .consume, deadline: UInt32,
    flags: FrameFlags = [], patience: Int = 2000
  ) throws -> [DecisionRecord] {
    let id = try ask(records, as: opcode, deadline: deadline, flags: flags)
    return try answers(to: id, within: Int(deadline) + patience)
  }

  /// Sends operations; returns the number under which they are answered.
  func ask(
    _ records: [OperationRecord], as opcode: Opcode = .consume, deadline: UInt32,
    flags: FrameFlags = []
  ) throws -> UInt64 {
    let id = nextCorrelation()
    var buffer = ByteBuffer()
    buffer.writeFrame(
      opcode, OperationBatch(records), correlation: id, deadlineMilliseconds: deadline,
      flags: flags)
    try send(buffer)
    return id
  }

  func answers(to id: UInt64, within milliseconds: Int) throws -> [DecisionRecord] {
    let reply = try frame(.decisions, within: milliseconds)
    guard reply.header.correlation == id else {
      throw WireFailure.malformed("the answer to another request")
    }
    return try DecisionBatch.decode(reply).records
  }
}
