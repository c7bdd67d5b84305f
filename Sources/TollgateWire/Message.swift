// What all messages share: an opcode, a payload writer and a strict payload reader. The frame
// writer leaves room for the header, writes the payload in place and fills the header in, so that
// a message is encoded without a copy.

package import NIOCore

package protocol WireMessage: Sendable, Hashable {
  /// Writes the payload (no header).
  func encode(into buffer: inout ByteBuffer)
  /// Reads the payload up to the end of the buffer; bytes that are left over are an error.
  static func decode(from buffer: inout ByteBuffer) throws(WireError) -> Self
}

/// A message that has an opcode of its own.
package protocol OpcodeMessage: WireMessage {
  static var opcode: Opcode { get }
}

extension WireMessage {
  package static func decode(_ frame: Frame) throws(WireError) -> Self {
    var payload = frame.payload
    return try decode(from: &payload)
  }
}

extension ByteBuffer {
  package mutating func writeFrame(
    _ message: some OpcodeMessage, correlation: UInt64, deadlineMilliseconds: UInt32 = 0,
    flags: FrameFlags = []
  ) {
    writeFrame(
      type(of: message).opcode, message, correlation: correlation,
      deadlineMilliseconds: deadlineMilliseconds, flags: flags)
  }

  /// For batches of records: OperationBatch is shared by four opcodes.
  package mutating func writeFrame(
    _ opcode: Opcode, _ message: some WireMessage, correlation: UInt64,
    deadlineMilliseconds: UInt32 = 0, flags: FrameFlags = []
  ) {
    let start = writerIndex
    writeRepeatingByte(0, count: FrameHeader.bytes)
    message.encode(into: &self)
    let header = FrameHeader(
      opcode: opcode, flags: flags,
      payloadBytes: UInt32(writerIndex - start - FrameHeader.bytes),
      deadlineMilliseconds: deadlineMilliseconds, correlation: correlation)
    header.set(in: &self, at: start)
  }
}
