// The decoder against bytes that nobody meant well: random legal messages come back as they were,
// and 200,000 frames that were cut, flipped, spliced or made up end in a message or in an error,
// never in a trap. What is accepted after a mutation must itself survive another round.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateWire

@Suite(.blocking) struct FuzzTests {
  @Test func `a random message of every opcode decodes to itself`() throws {
    var messages = RandomMessages(random: .fromEnvironment("wire round trips"))
    for round in 0..<400 {
      for opcode in Opcode.allCases {
        let bytes = messages.frame(opcode)
        var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
        decoder.feed(bytes)
        let frame = try #require(try decoder.next())
        #expect(frame.header.opcode == opcode)
        let (_, again) = try Describe.payload(frame)
        #expect(again == frame.payload, "\(opcode.name), round \(round)")
      }
    }
  }

  @Test func `random records, decisions and bodies compare equal after a round`() throws {
    var messages = RandomMessages(random: .fromEnvironment("wire values"))
    for _ in 0..<2000 {
      let operations = OperationBatch(messages.list(1...3) { $0.operation() })
      var buffer = ByteBuffer()
      operations.encode(into: &buffer)
      #expect(try OperationBatch.decode(from: &buffer) == operations)
      for record in operations.records { try record.validate() }
      try Self.roundTrip(ReserveBatch(messages.list(1...3) { $0.reserve() }))
      try Self.roundTrip(SettleBatch(messages.list(1...3) { $0.settle() }))
      try Self.roundTrip(ReleaseBatch(messages.list(1...3) { $0.release() }))
      try Self.roundTrip(ExtendBatch(messages.list(1...3) { $0.extend() }))
      try Self.roundTrip(RefundBatch(messages.list(1...3) { $0.refund() }))

      let decisions = DecisionBatch(messages.list(0...3) { $0.decision() })
      buffer.clear()
      decisions.encode(into: &buffer)
      #expect(try DecisionBatch.decode(from: &buffer) == decisions)

      let usage = messages.usageBody()
      #expect(try UsageBody.decode(usage.encode()) == usage)
    }
    for _ in 0..<200 {
      let delta = messages.configDelta()
      #expect(try ConfigDelta.decode(delta.encode()) == delta)
      let batch = DeltaBatch(bucket: 1, epoch: 2, previous: 3, entries: messages.entries())
      var buffer = ByteBuffer()
      batch.encode(into: &buffer)
      #expect(try DeltaBatch.decode(from: &buffer) == batch)
    }
  }

  @Test func `200,000 broken frames end in a message or an error`() throws {
    var messages = RandomMessages(random: .fromEnvironment("wire mutations"))
    var random = messages.random.fork()
    let seeds = (0..<20).flatMap { _ in
      Opcode.allCases.map { Array(messages.frame($0).readableBytesView) }
    }
    var accepted = 0
    var refused = 0
    var fatal = 0
    for round in 0..<200_000 {
      var bytes = seeds[Int.random(in: seeds.indices, using: &random)]
      Self.mutate(&bytes, with: seeds, &random)
      var decoder = FrameDecoder(frameBytesMax: WireLimits.dataFrameBytesMax)
      decoder.feed(ByteBuffer(bytes: bytes))
      for (outcome, again) in VectorTests.drain(&decoder) {
        switch outcome {
        case .error(let error):
          if case .object(let error) = error, error["fatal"] == .bool(true) {
            fatal += 1
          } else {
            refused += 1
          }
        case .frame(let header, let fields):
          accepted += 1
          guard case .object(let header) = header, case .text(let name)? = header["opcode"],
            let opcode = Opcode.allCases.first(where: { $0.name == name }), let again
          else { continue }
          let frame = Frame(
            header: FrameHeader(
              opcode: opcode, payloadBytes: UInt32(again.readableBytes), correlation: 1),
            payload: again)
          let (second, _) = try Describe.payload(frame)
          #expect(second == fields, "round \(round), seed \(messages.random.seed)")
        }
      }
    }
    // The mutations reach every kind of outcome, or they test nothing.
    #expect(accepted > 1000)
    #expect(refused > 1000)
    #expect(fatal > 1000)
  }

  @Test func `200,000 broken delta bodies end in a body or an error`() {
    var messages = RandomMessages(random: .fromEnvironment("body mutations"))
    var random = messages.random.fork()
    var seeds = (0..<100).map { _ in messages.usageBody().encode() }
    seeds += (0..<20).map { _ in
      ConfigDelta(
        scope: .account, key: "acme", version: 1, action: "a", actor: "b", reason: "c",
        before: "{}", after: "{}"
      ).encode()
    }
    var accepted = 0
    var refused = 0
    for _ in 0..<200_000 {
      var bytes = seeds[Int.random(in: seeds.indices, using: &random)]
      Self.mutate(&bytes, with: seeds, &random)
      do throws(WireError) {
        if random.chance(0.5) {
          _ = try UsageBody.decode(bytes)
        } else {
          _ = try ConfigDelta.decode(bytes)
        }
        accepted += 1
      } catch {
        refused += 1
      }
    }
    #expect(accepted > 1000)
    #expect(refused > 1000)
  }

  private static func roundTrip<Record>(_ batch: RecordBatch<Record>) throws {
    var buffer = ByteBuffer()
    batch.encode(into: &buffer)
    #expect(try RecordBatch<Record>.decode(from: &buffer) == batch)
    for record in batch.records { try record.validate() }
  }

  static func mutate(
    _ bytes: inout [UInt8], with seeds: [[UInt8]], _ random: inout SeededRandom
  ) {
    for _ in 0..<Int.random(in: 1...3, using: &random) where !bytes.isEmpty {
      let at = Int.random(in: bytes.indices, using: &random)
      switch Int.random(in: 0...7, using: &random) {
      case 0: bytes[at] ^= 1 << UInt8.random(in: 0...7, using: &random)
      case 1: bytes[at] = UInt8.random(in: 0 ... .max, using: &random)
      case 2: bytes[at] = 0xFF
      case 3: bytes.removeLast(bytes.count - at)
      case 4: bytes.insert(UInt8.random(in: 0 ... .max, using: &random), at: at)
      case 5: bytes.remove(at: at)
      case 6:
        let other = seeds[Int.random(in: seeds.indices, using: &random)]
        bytes.replaceSubrange(at..., with: other.dropFirst(min(at, other.count)))
      default:
        bytes = (0..<Int.random(in: 0...80, using: &random)).map { _ in
          UInt8.random(in: 0 ... .max, using: &random)
        }
      }
    }
  }
}
