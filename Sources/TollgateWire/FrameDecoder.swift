// Bytes in, frames out. A plain value, so that a session can be tested without a channel and the
// handler that owns it holds no decisions. It never allocates for what a header announces: bytes
// are kept only as they arrive, and at most one frame of them.

package import NIOCore

package struct Frame: Hashable, Sendable {
  package var header: FrameHeader
  /// Exactly `header.payloadBytes` readable bytes, sharing the storage they arrived in.
  package var payload: ByteBuffer

  package init(header: FrameHeader, payload: ByteBuffer) {
    self.header = header
    self.payload = payload
  }
}

package struct FrameDecoder: Sendable {
  /// The largest frame accepted, header included. A session raises it once the hello is through.
  package var frameBytesMax: Int
  private var buffer: ByteBuffer?
  private var header: FrameHeader?
  private var failure: WireError?

  package init(frameBytesMax: Int) { self.frameBytesMax = frameBytesMax }

  /// Bytes that are held because their frame is not complete.
  package var pendingBytes: Int {
    (buffer?.readableBytes ?? 0) + (header == nil ? 0 : FrameHeader.bytes)
  }

  /// Takes what arrived. Call `next` until it answers nil before feeding again: the decoder then
  /// holds less than one frame.
  package mutating func feed(_ bytes: ByteBuffer) {
    guard failure == nil, bytes.readableBytes > 0 else { return }
    if var held = buffer.take() {
      if held.readerIndex > 4096 { held.discardReadBytes() }
      held.writeImmutableBuffer(bytes)
      buffer = held
    } else {
      buffer = bytes
    }
  }

  /// The next complete frame, or nil until more bytes were fed. After an error the decoder stays
  /// failed: the stream cannot be picked up again.
  package mutating func next() throws(WireError) -> Frame? {
    if let failure { throw failure }
    guard var held = buffer.take() else { return nil }
    do throws(WireError) {
      if header == nil {
        header = try FrameHeader.read(from: &held, frameBytesMax: frameBytesMax)
      }
    } catch {
      failure = error
      throw error
    }
    guard let current = header, let payload = held.readSlice(length: Int(current.payloadBytes))
    else {
      if held.readableBytes > 0 { buffer = held }
      return nil
    }
    header = nil
    if held.readableBytes > 0 { buffer = held }
    return Frame(header: current, payload: payload)
  }
}
