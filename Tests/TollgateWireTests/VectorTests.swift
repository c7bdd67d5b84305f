// Every golden vector through the Swift codec: whole, one byte at a time, and all in one buffer;
// the good ones encoded again to the same bytes. The vectors come from the Python client, which
// was written from PROTOCOL.md and shares no line with this codec, and from by-hand.json.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateWire

@Suite(.blocking) struct VectorTests {
  enum Outcome: Hashable {
    case frame(header: JSONValue, fields: JSONValue)
    case error(JSONValue)
  }

  /// Every outcome until the decoder wants more bytes or has failed.
  static func drain(_ decoder: inout FrameDecoder) -> [(Outcome, ByteBuffer?)] {
    var outcomes: [(Outcome, ByteBuffer?)] = []
    do throws(WireError) {
      while let frame = try decoder.next() {
        do throws(WireError) {
          let (fields, again) = try Describe.payload(frame)
          outcomes.append((.frame(header: Describe.header(frame.header), fields: fields), again))
        } catch {
          outcomes.append((.error(Describe.error(error)), nil))
        }
      }
    } catch {
      outcomes.append((.error(Describe.error(error)), nil))
    }
    return outcomes
  }

  static func wanted(_ vector: Vector) throws -> [Outcome] {
    if vector.incomplete == true { return [] }
    if let error = vector.error { return [.error(error)] }
    guard let header = vector.header, let fields = vector.fields else {
      throw VectorError("\(vector.name) has neither fields nor error")
    }
    return [.frame(header: header, fields: fields)]
  }

  static func frames() throws -> [Vector] {
    let frames = try Repository.vectors().filter { $0.kind == nil }
    guard frames.count >= 400 else { throw VectorError("only \(frames.count) frame vectors") }
    return frames
  }

  @Test func `each vector arrives whole and is encoded again to the same bytes`() throws {
    for vector in try Self.frames() {
      let bytes = try vector.bytes()
      var decoder = FrameDecoder(frameBytesMax: vector.frameBytesMax ?? WireLimits.frameBytesMax)
      decoder.feed(ByteBuffer(bytes: bytes))
      let outcomes = Self.drain(&decoder)
      #expect(try outcomes.map(\.0) == Self.wanted(vector), "\(vector.name)")
      if vector.fields != nil, vector.canonical != false {
        let again = outcomes.first?.1.map { Array($0.readableBytesView) }
        #expect(again == Array(bytes.dropFirst(FrameHeader.bytes)), "\(vector.name)")
      }
    }
  }

  @Test func `each vector arrives byte by byte`() throws {
    for vector in try Self.frames() {
      var decoder = FrameDecoder(frameBytesMax: vector.frameBytesMax ?? WireLimits.frameBytesMax)
      var outcomes: [Outcome] = []
      for byte in try vector.bytes() {
        decoder.feed(ByteBuffer(bytes: [byte]))
        outcomes += Self.drain(&decoder).map(\.0)
        if vector.isFatal, !outcomes.isEmpty { break }
      }
      #expect(try outcomes == Self.wanted(vector), "\(vector.name)")
    }
  }

  @Test func `all vectors arrive in one buffer`() throws {
    var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
    var all = ByteBuffer()
    var expected: [Outcome] = []
    for vector in try Self.frames() where vector.incomplete != true && !vector.isFatal {
      all.writeBytes(try vector.bytes())
      expected += try Self.wanted(vector)
    }
    decoder.feed(all)
    #expect(Self.drain(&decoder).map(\.0) == expected)
    #expect(decoder.pendingBytes == 0)
  }

  @Test func `headers are written as the vectors have them`() throws {
    for vector in try Self.frames() where vector.fields != nil {
      let bytes = try vector.bytes()
      var buffer = ByteBuffer(bytes: bytes)
      let header = try #require(
        try FrameHeader.read(from: &buffer, frameBytesMax: WireLimits.frameBytesMax))
      var again = ByteBuffer(repeating: 0xFF, count: FrameHeader.bytes)
      header.set(in: &again, at: 0)
      #expect(Array(again.readableBytesView) == Array(bytes.prefix(FrameHeader.bytes)))
    }
  }

  @Test func `each delta body is read, and written again to the same bytes`() throws {
    let bodies = try Repository.vectors().filter { $0.kind != nil }
    #expect(bodies.count >= 30)
    for vector in bodies {
      let bytes = try vector.bytes()
      var outcome: JSONValue
      var again: [UInt8]?
      do throws(WireError) {
        if vector.kind == "usage" {
          let body = try UsageBody.decode(bytes)
          (outcome, again) = (DescribeLedger.usage(body), body.encode())
        } else {
          let delta = try ConfigDelta.decode(bytes)
          (outcome, again) = (DescribeLedger.configDelta(delta), delta.encode())
        }
      } catch {
        outcome = Describe.error(error)
      }
      #expect(outcome == vector.fields ?? vector.error, "\(vector.name)")
      if vector.canonical != false, vector.fields != nil {
        #expect(again == bytes, "\(vector.name)")
      }
    }
  }
}
