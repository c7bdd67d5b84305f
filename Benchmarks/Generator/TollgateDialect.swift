// Tollgate's own protocol, as fast as a client can speak it: operations encoded once through the
// real codec, and a parser that looks at the few bytes of a DECISIONS frame that say how each
// came out. A test holds that parser against the real codec.
//
// As an echo it sends the same CONSUME frames to a peer that sends them back, and counts the
// records that return: the limit of the transport, measured by the same hand and the same work.

internal import NIOCore
package import TollgateCore
internal import TollgateWire

package struct TollgateDialect: Dialect {
  package static var isOrdered: Bool { false }

  // Written out, and compared with the codec's when a dialect is made: a constant of another module
  // would be asked for through its accessor, several times for each answer.
  @inline(__always) private static var headerBytes: Int { 24 }
  @inline(__always) private static var magic: UInt16 { 0x4754 }
  @inline(__always) private static var frameBytesMax: Int { 1 << 20 }
  /// Header and what stands before the first record.
  @inline(__always) private static var prefixBytes: Int { 28 }
  @inline(__always) private static var lengthOffset: Int { 8 }
  @inline(__always) private static var correlationOffset: Int { 16 }

  /// All that stays the same, so that a copy is one reference.
  private final class Form: Sendable {
    /// One record, with its length.
    let template: Template
    /// A frame up to its first record.
    let prefix: InlineArray<28, UInt8>
    let hello: [UInt8]
    let answer: UInt8
    let isEcho: Bool

    init(
      template: Template, prefix: InlineArray<28, UInt8>, hello: [UInt8], answer: UInt8,
      isEcho: Bool
    ) {
      self.template = template
      self.prefix = prefix
      self.hello = hello
      self.answer = answer
      self.isEcho = isEcho
    }
  }

  private let form: Form

  /// - Parameters:
  ///   - check: asks without consuming.
  ///   - echo: the peer sends back what it got.
  package init(
    names: SubjectNames, features: [Name], check: Bool, token: String,
    deadlineMilliseconds: UInt32, echo: Bool = false
  ) throws {
    let identifier = OperationID(high: 0x0199_5A7C_33E1_D00D, low: Template.identifierLow)
    let record = OperationRecord(
      id: identifier, subject: try names.subject(names.sentinel),
      items: features.enumerated().map { Item(feature: $1, amount: Template.amount($0)) })
    try record.validate()
    var buffer = ByteBuffer()
    let opcode = check ? Opcode.check : .consume
    buffer.writeFrame(
      opcode, OperationBatch([record]), correlation: 1,
      deadlineMilliseconds: deadlineMilliseconds)
    let bytes = Array(buffer.readableBytesView)
    precondition(
      Self.headerBytes == FrameHeader.bytes && Self.magic == FrameHeader.magic
        && Self.frameBytesMax == WireLimits.frameBytesMax)
    var prefix = InlineArray<28, UInt8>(repeating: 0)
    for index in 0..<Self.prefixBytes { prefix[index] = bytes[index] }
    var greeting = ByteBuffer()
    greeting.writeFrame(Hello(role: .check, client: "tollgate bench", token: token), correlation: 1)
    form = Form(
      template: try Template(
        Array(bytes[Self.prefixBytes...]), names: names, identifier: identifier,
        amounts: features.count),
      prefix: prefix, hello: echo ? [] : Array(greeting.readableBytesView),
      answer: echo ? opcode.rawValue : Opcode.decisions.rawValue, isEcho: echo)
  }

  package func mintTime(wallMilliseconds: Int64) -> Int64 { wallMilliseconds }

  package func greet(into out: Bytes) { out.append(form.hello) }

  package func greeted(_ input: Bytes) throws -> Bool {
    if form.isEcho { return true }
    guard let length = try Self.frameLength(input, 0) else { return false }
    var payload = ByteBuffer(bytes: input.array(Self.headerBytes..<length))
    let opcode = Opcode(rawValue: input[3])
    input.consume(length)
    switch opcode {
    case .welcome: _ = try Welcome.decode(from: &payload)
    case .error:
      let error = try ErrorReply.decode(from: &payload)
      throw BenchError("the hello was refused: \(error.code.name) \(error.message)")
    default: throw BenchError("the server answered the hello with opcode \(input[3])")
    }
    return true
  }

  @inline(__always)
  package func begin(correlation: UInt64, records: Int, into out: Bytes) {
    let start = unsafe out.claim(Self.prefixBytes)
    unsafe start.storeBytes(of: form.prefix, as: InlineArray<28, UInt8>.self)
    unsafe start.storeBytes(
      of: UInt32(truncatingIfNeeded: 4 + records * form.template.count).littleEndian,
      toByteOffset: Self.lengthOffset, as: UInt32.self)
    unsafe start.storeBytes(
      of: correlation.littleEndian, toByteOffset: Self.correlationOffset, as: UInt64.self)
    unsafe start.storeBytes(
      of: UInt16(truncatingIfNeeded: records).littleEndian, toByteOffset: Self.headerBytes,
      as: UInt16.self)
  }

  @unsafe @inline(__always)
  package func render(_ asked: Asked, amounts: UnsafePointer<Int64>, into out: Bytes) {
    unsafe form.template.render(asked, amounts: amounts, into: out)
  }

  package func pong(correlation: UInt64, nonce: UInt64, into out: Bytes) {
    var buffer = ByteBuffer()
    buffer.writeFrame(Pong(nonce: nonce), correlation: correlation)
    out.append(Array(buffer.readableBytesView))
  }

  package mutating func refresh(wallMilliseconds: Int64) throws {}

  @inline(__always)
  package func next(_ input: Bytes, _ cursor: inout Cursor) throws -> Incoming? {
    if cursor.left == 0 {
      let at = cursor.position
      guard let length = try Self.frameLength(input, at) else { return nil }
      guard input[at + 3] == form.answer else { return try other(input, &cursor, length) }
      guard length >= Self.prefixBytes else { throw BenchError("an answer too short") }
      cursor.left = Int(input.integer(at: at + Self.headerBytes, as: UInt16.self))
      guard cursor.left > 0 else { throw BenchError("an answer without records") }
      cursor.taken = 0
      cursor.correlation = input.integer(at: at + Self.correlationOffset, as: UInt64.self)
      cursor.position = at + Self.prefixBytes
      cursor.end = at + length
    }
    // A record: u16 length, u16 status, and where that is 0 u16 reason, u8 source, u8 bits
    // (1: replayed).
    let at = cursor.position
    guard at + 6 <= cursor.end else { throw BenchError("a record too short") }
    let end = at + 2 + Int(input.integer(at: at, as: UInt16.self))
    cursor.left -= 1
    guard cursor.left == 0 ? end == cursor.end : end < cursor.end else {
      throw BenchError("a record that does not end with its frame")
    }
    cursor.position = end
    let record = cursor.taken
    cursor.taken += 1
    return .reply(
      correlation: cursor.correlation, record: record,
      form.isEcho
        ? .allowed(reason: 0, source: 0, replayed: false) : try Self.verdict(input, at + 2, end))
  }

  @inline(__always)
  private static func verdict(_ input: Bytes, _ at: Int, _ end: Int) throws -> Verdict {
    let status = input.integer(at: at, as: UInt16.self)
    if status != 0 { return .error(status) }
    guard at + 6 <= end else { throw BenchError("a decision too short") }
    let reason = input.integer(at: at + 2, as: UInt16.self)
    let source = input[at + 4]
    let replayed = input[at + 5] & 1 != 0
    return reason < 16
      ? .allowed(reason: reason, source: source, replayed: replayed)
      : .denied(reason: reason, source: source, replayed: replayed)
  }

  /// What is no answer to operations one by one.
  @inline(never)
  private func other(_ input: Bytes, _ cursor: inout Cursor, _ length: Int) throws -> Incoming {
    let at = cursor.position
    cursor.position += length
    let correlation = input.integer(at: at + Self.correlationOffset, as: UInt64.self)
    switch input[at + 3] {
    case Opcode.error.rawValue:
      guard length >= Self.headerBytes + 2 else { throw BenchError("an ERROR frame too short") }
      // An error of the connection: it is closed after this.
      if correlation == 0 { return .goAway }
      return .reply(
        correlation: correlation, record: -1,
        .error(input.integer(at: at + Self.headerBytes, as: UInt16.self)))
    case Opcode.goAway.rawValue: return .goAway
    case Opcode.ping.rawValue:
      guard length >= Self.headerBytes + 8 else { throw BenchError("a PING frame too short") }
      return .ping(
        correlation: correlation,
        nonce: input.integer(at: at + Self.headerBytes, as: UInt64.self))
    case Opcode.welcome.rawValue, Opcode.pong.rawValue: return .nothing
    default: throw BenchError("unexpected opcode \(input[at + 3])")
    }
  }

  /// The length of the whole frame at `at`; nil where it is not all there.
  @inline(__always)
  private static func frameLength(_ input: Bytes, _ at: Int) throws -> Int? {
    let there = input.count - at
    guard there >= Self.headerBytes else { return nil }
    guard input.integer(at: at, as: UInt16.self) == Self.magic else {
      throw BenchError("the peer does not speak Tollgate's protocol")
    }
    let length =
      Self.headerBytes + Int(input.integer(at: at + Self.lengthOffset, as: UInt32.self))
    guard length <= Self.frameBytesMax else { throw BenchError("a frame of \(length) bytes") }
    return there >= length ? length : nil
  }
}
