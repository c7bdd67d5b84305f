// The frame decoder as a value: what it holds, when it fails, and that it stays failed.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateWire

@Suite(.blocking) struct FrameDecoderTests {
  private func ping(_ nonce: UInt64, correlation: UInt64 = 1) -> ByteBuffer {
    var buffer = ByteBuffer()
    buffer.writeFrame(Ping(nonce: nonce), correlation: correlation)
    return buffer
  }

  @Test func `nothing fed yields nothing`() throws {
    var decoder = FrameDecoder(frameBytesMax: 100)
    #expect(try decoder.next() == nil)
    decoder.feed(ByteBuffer())
    #expect(try decoder.next() == nil)
  }

  @Test func `an announced length costs nothing before its bytes arrive`() throws {
    var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
    var buffer = ByteBuffer(repeating: 0, count: FrameHeader.bytes)
    FrameHeader(opcode: .admin, payloadBytes: 1_000_000, correlation: 1).set(in: &buffer, at: 0)
    decoder.feed(buffer)
    #expect(try decoder.next() == nil)
    #expect(decoder.pendingBytes == FrameHeader.bytes)
  }

  @Test func `a frame of exactly the limit passes and one byte more is fatal`() throws {
    var decoder = FrameDecoder(frameBytesMax: FrameHeader.bytes + 8)
    decoder.feed(ping(7))
    #expect(try decoder.next() != nil)
    decoder.frameBytesMax = FrameHeader.bytes + 7
    decoder.feed(ping(8))
    let error = #expect(throws: WireError.self) { try decoder.next() }
    #expect(error?.code == .frameTooLarge)
    #expect(error?.isFatal == true)
  }

  @Test func `a raised limit holds from the next header on`() throws {
    var decoder = FrameDecoder(frameBytesMax: 32)
    decoder.feed(ping(1))
    _ = try decoder.next()
    decoder.frameBytesMax = 100
    var buffer = ByteBuffer()
    buffer.writeFrame(
      AdminRequest(.status, body: [UInt8](repeating: 0x20, count: 40)), correlation: 1)
    decoder.feed(buffer)
    #expect(try decoder.next()?.header.opcode == .admin)
  }

  @Test func `after an error the decoder stays failed and keeps nothing`() throws {
    var decoder = FrameDecoder(frameBytesMax: 100)
    decoder.feed(ByteBuffer(string: "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    #expect(throws: WireError.self) { try decoder.next() }
    decoder.feed(ping(1))
    #expect(throws: WireError.self) { try decoder.next() }
    #expect(decoder.pendingBytes == 0)
  }

  @Test func `what follows an unknown opcode is still read`() throws {
    var decoder = FrameDecoder(frameBytesMax: 100)
    var buffer = ByteBuffer(repeating: 0, count: FrameHeader.bytes)
    var header = FrameHeader(opcode: .ping, payloadBytes: 3, correlation: 9)
    header.rawOpcode = 0x7F
    header.set(in: &buffer, at: 0)
    buffer.writeBytes([1, 2, 3])
    buffer.writeImmutableBuffer(ping(5, correlation: 10))
    decoder.feed(buffer)
    let unknown = try #require(try decoder.next())
    #expect(unknown.header.opcode == nil)
    #expect(unknown.header.correlation == 9)
    #expect(try decoder.next()?.header.correlation == 10)
  }

  @Test func `frames split at every pair of places arrive the same`() throws {
    var stream = ping(1, correlation: 1)
    stream.writeImmutableBuffer(ping(2, correlation: 2))
    let count = stream.readableBytes
    for first in 0...count {
      for second in stride(from: first, through: count, by: 7) {
        var decoder = FrameDecoder(frameBytesMax: 100)
        var nonces: [UInt64] = []
        for range in [0..<first, first..<second, second..<count] {
          decoder.feed(stream.getSlice(at: range.lowerBound, length: range.count) ?? ByteBuffer())
          while let frame = try decoder.next() { nonces.append(try Ping.decode(frame).nonce) }
        }
        #expect(nonces == [1, 2])
        #expect(decoder.pendingBytes == 0)
      }
    }
  }

  @Test func `a long stream leaves no growing rest`() throws {
    var decoder = FrameDecoder(frameBytesMax: 100)
    var stream = ByteBuffer()
    for nonce in 0..<20_000 as Range<UInt64> { stream.writeImmutableBuffer(ping(nonce)) }
    var expected: UInt64 = 0
    while let piece = stream.readSlice(length: min(1001, stream.readableBytes)),
      piece.readableBytes > 0
    {
      decoder.feed(piece)
      while let frame = try decoder.next() {
        #expect(try Ping.decode(frame).nonce == expected)
        expected += 1
      }
      #expect(decoder.pendingBytes < FrameHeader.bytes + 8)
    }
    #expect(expected == 20_000)
  }
}
