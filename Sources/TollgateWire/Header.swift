// The 24 bytes in front of every frame, and the numbers that may stand in them. The header alone
// says how long the frame is and to which request it belongs; everything in it is checked before
// a byte of payload is looked at.

package import NIOCore
import TollgateCore

/// What a frame is. Numbers are never reused.
package enum Opcode: UInt8, Sendable, Hashable, CaseIterable {
  case hello = 0x01
  case welcome = 0x02
  case ping = 0x03
  case pong = 0x04
  case goAway = 0x05
  case error = 0x06

  case check = 0x10
  case consume = 0x11
  case post = 0x12
  case decisions = 0x13
  /// Takes back operations of unknown outcome that will not be repeated.
  case cancel = 0x14
  case reserve = 0x15
  case settle = 0x16
  case release = 0x17
  case extend = 0x18
  case refund = 0x19

  case admin = 0x20
  case adminReply = 0x21

  case link = 0x30
  case linked = 0x31
  case batch = 0x32
  case batchReply = 0x33
  case recover = 0x34
  case presentRequest = 0x35
  case present = 0x36
  case epoch = 0x37
  case balances = 0x38
  case balancesReply = 0x39
  case config = 0x3A
  case configReply = 0x3B
  case query = 0x3C
  case queryReply = 0x3D

  /// How a frame takes part in the exchange; it decides which correlation ids and deadlines are
  /// legal in its header.
  package enum Kind: Sendable, Hashable {
    /// Awaits a reply: correlation id ≠ 0, may carry a deadline.
    case request
    /// Answers a request, under its correlation id.
    case reply
    /// Awaits nothing: correlation id 0.
    case push
    /// ERROR, which answers a request or, with correlation id 0, speaks of the connection.
    /// WELCOME, which answers HELLO or, with correlation id 0, brings new failure policies.
    case replyOrPush
  }

  package var kind: Kind {
    switch self {
    case .hello, .ping, .check, .consume, .post, .cancel, .reserve, .settle, .release, .extend,
      .refund, .admin, .link, .batch, .balances, .config, .query:
      .request
    case .pong, .decisions, .adminReply, .linked, .batchReply, .balancesReply, .configReply,
      .queryReply:
      .reply
    case .goAway, .recover, .presentRequest, .present, .epoch: .push
    case .error, .welcome: .replyOrPush
    }
  }

  package var allowedFlags: FrameFlags {
    switch self {
    case .post: .clientFallback
    case .adminReply, .balancesReply, .queryReply, .present: .more
    case .hello, .welcome, .ping, .pong, .goAway, .error, .check, .consume, .decisions, .cancel,
      .reserve, .settle, .release, .extend, .refund, .admin, .link, .linked, .batch, .batchReply,
      .recover, .presentRequest, .epoch, .balances,
      .config, .configReply, .query:
      []
    }
  }

  /// The name used in documents.
  package var name: String {
    switch self {
    case .hello: "HELLO"
    case .welcome: "WELCOME"
    case .ping: "PING"
    case .pong: "PONG"
    case .goAway: "GOAWAY"
    case .error: "ERROR"
    case .check: "CHECK"
    case .consume: "CONSUME"
    case .post: "POST"
    case .decisions: "DECISIONS"
    case .cancel: "CANCEL"
    case .reserve: "RESERVE"
    case .settle: "SETTLE"
    case .release: "RELEASE"
    case .extend: "EXTEND"
    case .refund: "REFUND"
    case .admin: "ADMIN"
    case .adminReply: "ADMIN_REPLY"
    case .link: "LINK"
    case .linked: "LINKED"
    case .batch: "BATCH"
    case .batchReply: "BATCH_REPLY"
    case .recover: "RECOVER"
    case .presentRequest: "PRESENT_REQUEST"
    case .present: "PRESENT"
    case .epoch: "EPOCH"
    case .balances: "BALANCES"
    case .balancesReply: "BALANCES_REPLY"
    case .config: "CONFIG"
    case .configReply: "CONFIG_REPLY"
    case .query: "QUERY"
    case .queryReply: "QUERY_REPLY"
    }
  }
}

package struct FrameFlags: OptionSet, Hashable, Sendable {
  package let rawValue: UInt16
  package init(rawValue: UInt16) { self.rawValue = rawValue }

  /// Another frame with the same correlation id (for PRESENT: the same bucket) follows.
  package static let more = FrameFlags(rawValue: 1 << 0)
  /// In POST: the client let the operations through itself, by failure policy.
  package static let clientFallback = FrameFlags(rawValue: 1 << 1)
}

/// What both sides of a connection must know before it is used there: bits of HELLO and WELCOME.
/// A bit that a receiver does not know stays as it is and means nothing to it.
package struct ProtocolFeatures: OptionSet, Hashable, Sendable {
  package let rawValue: UInt32
  package init(rawValue: UInt32) { self.rawValue = rawValue }

  /// RESERVE … REFUND, the reasons that came with them, and what deltas say of them.
  package static let reservations = ProtocolFeatures(rawValue: 1 << 0)
}

extension Opcode {
  /// The feature that both sides must have before this opcode is sent.
  package var feature: ProtocolFeatures {
    switch self {
    case .reserve, .settle, .release, .extend, .refund: .reservations
    case .hello, .welcome, .ping, .pong, .goAway, .error, .check, .consume, .post, .decisions,
      .cancel, .admin, .adminReply, .link, .linked, .batch, .batchReply, .recover, .presentRequest,
      .present, .epoch, .balances, .balancesReply, .config, .configReply, .query, .queryReply:
      []
    }
  }
}

package struct FrameHeader: Hashable, Sendable {
  package static let bytes = 24
  /// "TG" read as two bytes in stream order.
  package static let magic: UInt16 = 0x4754
  package static let version: UInt8 = 1

  /// The opcode as it stood on the wire; `opcode` is nil where this side does not know it.
  package var rawOpcode: UInt8
  package var flags: FrameFlags
  package var payloadBytes: UInt32
  /// Milliseconds from sending in which the sender wants an answer; 0: the server's default.
  package var deadlineMilliseconds: UInt32
  package var correlation: UInt64

  package init(
    opcode: Opcode, flags: FrameFlags = [], payloadBytes: UInt32 = 0,
    deadlineMilliseconds: UInt32 = 0, correlation: UInt64
  ) {
    rawOpcode = opcode.rawValue
    self.flags = flags
    self.payloadBytes = payloadBytes
    self.deadlineMilliseconds = deadlineMilliseconds
    self.correlation = correlation
  }

  package var opcode: Opcode? { Opcode(rawValue: rawOpcode) }

  /// Reads and checks one header; nil while fewer than 24 bytes are there. Every error is fatal,
  /// since after a wrong header nothing that follows can be trusted. An unknown opcode is not an
  /// error here: its length is known, so the session can refuse that one frame and go on.
  package static func read(
    from buffer: inout ByteBuffer, frameBytesMax: Int
  ) throws(WireError) -> FrameHeader? {
    guard
      let (magic, version, opcode, flags, reserved, length, deadline, correlation) =
        buffer.readMultipleIntegers(
          endianness: .little,
          as: (UInt16, UInt8, UInt8, UInt16, UInt16, UInt32, UInt32, UInt64).self)
    else { return nil }
    guard magic == Self.magic else { throw .fatal(.badFrame, "wrong magic") }
    guard version == Self.version else {
      throw .fatal(.unsupportedVersion, "frame version \(version), this side speaks 1")
    }
    guard reserved == 0 else { throw .fatal(.badFrame, "reserved header bytes are not zero") }
    guard UInt64(length) + UInt64(Self.bytes) <= UInt64(max(0, frameBytesMax)) else {
      throw .fatal(
        .frameTooLarge, "a frame of \(UInt64(length) + 24) bytes; at most \(frameBytesMax) allowed")
    }
    var header = FrameHeader(
      opcode: .ping, flags: FrameFlags(rawValue: flags), payloadBytes: length,
      deadlineMilliseconds: deadline, correlation: correlation)
    header.rawOpcode = opcode
    try header.checkAgainstOpcode()
    return header
  }

  /// Whether the flags, the deadline and the correlation id may stand with this opcode.
  package var fitsOpcode: Bool { (try? checkAgainstOpcode()) != nil }

  private func checkAgainstOpcode() throws(WireError) {
    guard let opcode else { return }
    guard opcode.allowedFlags.isSuperset(of: flags) else {
      throw .fatal(.badFrame, "flags \(flags.rawValue) are not defined for \(opcode.name)")
    }
    switch opcode.kind {
    case .request:
      guard correlation != 0 else {
        throw .fatal(.badFrame, "\(opcode.name) needs a correlation id other than 0")
      }
      guard deadlineMilliseconds <= WireLimits.deadlineMillisecondsMax else {
        throw .fatal(.badFrame, "deadline of \(deadlineMilliseconds) ms is too long")
      }
      return
    case .reply:
      guard correlation != 0 else {
        throw .fatal(.badFrame, "\(opcode.name) needs a correlation id other than 0")
      }
    case .push:
      guard correlation == 0 else {
        throw .fatal(.badFrame, "\(opcode.name) answers nothing: its correlation id must be 0")
      }
    case .replyOrPush: break
    }
    guard deadlineMilliseconds == 0 else {
      throw .fatal(.badFrame, "\(opcode.name) carries no deadline")
    }
  }

  /// Writes the header to memory that is its owner's alone and has at least `bytes` bytes.
  @inlinable
  package func write(to room: UnsafeMutableRawBufferPointer) {
    precondition(room.count >= Self.bytes)
    unsafe room.storeBytes(of: Self.magic.littleEndian, as: UInt16.self)
    unsafe room[2] = Self.version
    unsafe room[3] = rawOpcode
    unsafe room.storeBytes(of: flags.rawValue.littleEndian, toByteOffset: 4, as: UInt16.self)
    unsafe room.storeBytes(of: 0, toByteOffset: 6, as: UInt16.self)
    unsafe room.storeBytes(of: payloadBytes.littleEndian, toByteOffset: 8, as: UInt32.self)
    unsafe room.storeBytes(
      of: deadlineMilliseconds.littleEndian, toByteOffset: 12, as: UInt32.self)
    unsafe room.storeBytes(of: correlation.littleEndian, toByteOffset: 16, as: UInt64.self)
  }

  /// Writes the header at `index`, where 24 bytes were left free.
  package func set(in buffer: inout ByteBuffer, at index: Int) {
    buffer.setInteger(Self.magic, at: index, endianness: .little)
    buffer.setInteger(Self.version, at: index + 2)
    buffer.setInteger(rawOpcode, at: index + 3)
    buffer.setInteger(flags.rawValue, at: index + 4, endianness: .little)
    buffer.setInteger(UInt16(0), at: index + 6, endianness: .little)
    buffer.setInteger(payloadBytes, at: index + 8, endianness: .little)
    buffer.setInteger(deadlineMilliseconds, at: index + 12, endianness: .little)
    buffer.setInteger(correlation, at: index + 16, endianness: .little)
  }
}
