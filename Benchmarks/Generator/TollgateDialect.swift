// Tollgate's own protocol, as fast as a client can speak it: one operation per frame, encoded
// once through the real codec, and a parser that looks at the few bytes of a DECISIONS frame that
// say how it came out. A test holds that parser against the real codec.

internal import NIOCore
package import TollgateCore
package import TollgateWire

package struct TollgateDialect: Dialect {
  package static var isOrdered: Bool { false }

  private let template: Template
  private let hello: [UInt8]
  /// What the server said of itself; nil before it did.
  package private(set) var welcome: Welcome?

  /// `check` asks without consuming.
  package init(
    names: SubjectNames, features: [Name], check: Bool, token: String,
    deadlineMilliseconds: UInt32
  ) throws {
    let identifier = OperationID(high: 0x0199_5A7C_33E1_D00D, low: Template.identifierLow)
    let record = OperationRecord(
      id: identifier, subject: try names.subject(names.sentinel),
      items: features.enumerated().map { Item(feature: $1, amount: Template.amount($0)) })
    try record.validate()
    var buffer = ByteBuffer()
    buffer.writeFrame(
      check ? .check : .consume, OperationBatch([record]), correlation: Template.correlation,
      deadlineMilliseconds: deadlineMilliseconds)
    template = try Template(
      Array(buffer.readableBytesView), names: names, identifier: identifier,
      amounts: features.count, correlated: true)
    var greeting = ByteBuffer()
    greeting.writeFrame(Hello(role: .check, client: "tollgate bench", token: token), correlation: 1)
    hello = Array(greeting.readableBytesView)
  }

  package func mintTime(wallMilliseconds: Int64) -> Int64 { wallMilliseconds }

  package func greet(into out: Bytes) { out.append(hello) }

  package mutating func greeted(_ input: Bytes) throws -> Bool {
    guard let length = try Self.frameLength(input) else { return false }
    var payload = ByteBuffer(bytes: input.array(FrameHeader.bytes..<length))
    let opcode = Opcode(rawValue: input[3])
    input.consume(length)
    switch opcode {
    case .welcome: welcome = try Welcome.decode(from: &payload)
    case .error:
      let error = try ErrorReply.decode(from: &payload)
      throw BenchError("the hello was refused: \(error.code.name) \(error.message)")
    default: throw BenchError("the server answered the hello with opcode \(input[3])")
    }
    return true
  }

  package func render(
    subject: Int, high: UInt64, low: UInt64, correlation: UInt64, amounts: ContiguousArray<Int64>,
    base: Int, into out: Bytes
  ) {
    template.render(
      subject: subject, high: high, low: low, correlation: correlation, amounts: amounts,
      base: base, into: out)
  }

  package func pong(correlation: UInt64, nonce: UInt64, into out: Bytes) {
    var buffer = ByteBuffer()
    buffer.writeFrame(Pong(nonce: nonce), correlation: correlation)
    out.append(Array(buffer.readableBytesView))
  }

  package mutating func refresh(wallMilliseconds: Int64) throws {}

  package mutating func next(_ input: Bytes) throws -> Incoming? {
    guard let length = try Self.frameLength(input) else { return nil }
    defer { input.consume(length) }
    let correlation = input.integer(at: 16, as: UInt64.self)
    switch input[3] {
    case Opcode.decisions.rawValue:
      return .reply(correlation: correlation, try Self.decision(input, length))
    case Opcode.error.rawValue:
      guard length >= FrameHeader.bytes + 2 else { throw BenchError("an ERROR frame too short") }
      // An error of the connection: it is closed after this.
      if correlation == 0 { return .goAway }
      return .reply(
        correlation: correlation, .error(input.integer(at: FrameHeader.bytes, as: UInt16.self)))
    case Opcode.goAway.rawValue: return .goAway
    case Opcode.ping.rawValue:
      guard length >= FrameHeader.bytes + 8 else { throw BenchError("a PING frame too short") }
      return .ping(
        correlation: correlation, nonce: input.integer(at: FrameHeader.bytes, as: UInt64.self))
    case Opcode.welcome.rawValue, Opcode.pong.rawValue: return .nothing
    default: throw BenchError("unexpected opcode \(input[3])")
    }
  }

  /// The length of the whole frame at the front; nil where it is not all there.
  private static func frameLength(_ input: Bytes) throws -> Int? {
    guard input.count >= FrameHeader.bytes else { return nil }
    guard input.integer(at: 0, as: UInt16.self) == FrameHeader.magic else {
      throw BenchError("the peer does not speak Tollgate's protocol")
    }
    let length = FrameHeader.bytes + Int(input.integer(at: 8, as: UInt32.self))
    guard length <= WireLimits.frameBytesMax else { throw BenchError("a frame of \(length) bytes") }
    return input.count >= length ? length : nil
  }

  /// Payload: u16 count, 2 reserved, then the record: u16 length, u16 status, and where that is 0
  /// u16 reason, u8 source, u8 bits (1: replayed).
  private static func decision(_ input: Bytes, _ length: Int) throws -> Verdict {
    let at = FrameHeader.bytes
    guard length >= at + 8, input.integer(at: at, as: UInt16.self) == 1 else {
      throw BenchError("a DECISIONS frame without exactly one record")
    }
    let status = input.integer(at: at + 6, as: UInt16.self)
    if status != 0 { return .error(status) }
    guard length >= at + 12 else { throw BenchError("a decision too short") }
    let reason = input.integer(at: at + 8, as: UInt16.self)
    let source = input[at + 10]
    let replayed = input[at + 11] & 1 != 0
    return reason < 16
      ? .allowed(reason: reason, source: source, replayed: replayed)
      : .denied(reason: reason, source: source, replayed: replayed)
  }
}
