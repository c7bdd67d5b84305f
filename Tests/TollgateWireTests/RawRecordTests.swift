// What is read of a record where it lies is what the whole decoder reads, or nothing.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@Suite(.blocking) struct RawRecordTests {
  /// What `RawRecord` reads; nil: it is for the other path.
  private func read(_ bytes: [UInt8]) -> (RawRecord, shape: [UInt8])? {
    var shape = [UInt8](repeating: 0xAA, count: RawRecord.shapeBytesMax)
    return unsafe shape.withUnsafeMutableBytes { shape in
      unsafe bytes.withUnsafeBytes { bytes in
        unsafe RawRecord(bytes, shape: shape).map { unsafe ($0, Array($0.shape(bytes, shape))) }
      }
    }
  }

  private func encoded(_ record: OperationRecord) -> [UInt8] {
    var buffer = ByteBuffer()
    record.encodeRecord(into: &buffer)
    return Array(buffer.readableBytesView)
  }

  private static let subjects = ["acme", "acme/ann", "acme/ann/7", "acmf"]
  private static let features = ["f", "chat.requests", "tokens.output", "g", "h"]

  private func random(_ random: inout SeededRandom) throws -> OperationRecord {
    let count = Int.random(in: 1...4, using: &random)
    let names = Self.features.shuffled(using: &random).prefix(count)
    return OperationRecord(
      id: OperationID(high: random.next(), low: random.next()),
      subject: try Subject(Self.subjects.randomElement(using: &random) ?? "acme"),
      items: try names.map {
        Item(feature: try Name($0), amount: Int64.random(in: 0...Quantity.maximum, using: &random))
      },
      attributes: Bool.random(using: &random)
        ? [:] : ["model": Bool.random(using: &random) ? "large" : "small"],
      traceParent: Bool.random(using: &random) ? "" : "00-1-2-01")
  }

  @Test func itReadsWhatTheDecoderReads() throws {
    var source = SeededRandom.fromEnvironment("RawRecordTests")
    var records: [(OperationRecord, [UInt8])] = []
    for _ in 0..<500 {
      let record = try random(&source)
      let (raw, shape) = try #require(read(encoded(record)))
      #expect(raw.id == record.id)
      #expect(raw.items == record.items.count)
      #expect(record.items.indices.allSatisfy { raw.amounts[$0] == record.items[$0].amount })
      #expect(record.shape == shape)
      let back = try OperationRecord(shape: shape)
      #expect(back.subject == record.subject && back.attributes == record.attributes)
      #expect(back.items.map(\.feature) == record.items.map(\.feature))
      records.append((record, shape))
    }
    for (a, first) in records {
      for (b, second) in records.prefix(50) {
        let same =
          a.subject == b.subject && a.items.map(\.feature) == b.items.map(\.feature)
          && a.attributes == b.attributes
        #expect((first == second) == same)
      }
    }
  }

  @Test func whatIsCutShortIsNotRead() throws {
    var source = SeededRandom.fromEnvironment("RawRecordTests")
    for _ in 0..<50 {
      let record = try random(&source)
      let bytes = encoded(record)
      for count in 0..<bytes.count {
        guard let (raw, _) = read(Array(bytes.prefix(count))) else { continue }
        // Only whole fields at the end can be missing without notice.
        #expect(raw.items == record.items.count)
        var buffer = ByteBuffer(bytes: bytes.prefix(count))
        #expect(throws: Never.self) { _ = try OperationRecord.decodeRecord(from: &buffer) }
      }
    }
  }

  @Test func bytesAtRandomReadNothingOutsideThem() throws {
    var source = SeededRandom.fromEnvironment("RawRecordTests")
    for _ in 0..<5_000 {
      var bytes = encoded(try random(&source))
      for _ in 0..<3 {
        bytes[Int.random(in: 0..<bytes.count, using: &source)] = UInt8.random(
          in: 0...255, using: &source)
      }
      _ = read(bytes)
      var frame = bytes
      frame.insert(contentsOf: [UInt8.random(in: 0...2, using: &source), 0, 0, 0], at: 0)
      unsafe frame.withUnsafeBytes { payload in
        var records = unsafe RawRecords(payload, max: 1024)
        while let record = unsafe records?.next() { #expect(record.count <= frame.count) }
      }
    }
  }

  @Test func aFrameGivesItsRecordsOneByOne() throws {
    var source = SeededRandom.fromEnvironment("RawRecordTests")
    let batch = OperationBatch(try (0..<5).map { _ in try random(&source) })
    var buffer = ByteBuffer()
    batch.encode(into: &buffer)
    let payload = Array(buffer.readableBytesView)
    unsafe payload.withUnsafeBytes { payload in
      var records = unsafe RawRecords(payload, max: 1024)
      #expect(records?.left == 5)
      for record in batch.records {
        let bytes = unsafe records?.next().map { unsafe Array($0) }
        #expect(bytes == encoded(record))
      }
      let isAtEnd = unsafe records?.next() == nil
      #expect(isAtEnd)
      let fewer = unsafe RawRecords(payload, max: 4) == nil
      #expect(fewer)
      let short = unsafe RawRecords(
        UnsafeRawBufferPointer(rebasing: payload.dropLast()), max: 1024)
      #expect(short == nil)
    }
  }

  @Test func aTemplateWithItsNumbersIsTheAnswer() throws {
    let states = [
      Decision.ItemState(
        limit: try Name("x.day"), remaining: 1, settled: 2, held: 3,
        reset: WallTime(milliseconds: 9)),
      Decision.ItemState(remaining: nil, settled: 4, held: 0),
    ]
    var decision = Decision(
      reason: .allowed, source: .lease, time: WallTime(milliseconds: 7), globalVersion: 5,
      accountVersion: 6, items: states)
    decision.binding = try Name("y")
    decision.bindingItem = 1
    let template = AnswerTemplate(decision)
    var bytes = template.bytes
    func put(_ value: Int64, _ offset: Int) {
      unsafe withUnsafeBytes(of: value.littleEndian) { value in
        unsafe bytes.replaceSubrange(offset..<offset + 8, with: value)
      }
    }
    put(70, template.timeOffset)
    put(10, template.itemOffsets[0])
    put(20, template.itemOffsets[0] + 8)
    put(30, template.itemOffsets[0] + 16)
    put(40, template.itemOffsets[1] + 8)
    bytes[template.flagsOffset] |= AnswerTemplate.replayed
    decision.time = WallTime(milliseconds: 70)
    decision.replayed = true
    decision.items[0].remaining = 10
    decision.items[0].settled = 20
    decision.items[0].held = 30
    decision.items[1].settled = 40
    var expected = ByteBuffer()
    DecisionBatch([.decision(decision)]).encode(into: &expected)
    #expect(Array(expected.readableBytesView.dropFirst(4)) == bytes)
  }
}
