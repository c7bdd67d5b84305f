// The bounds of reservations and refunds: at and just above each, how the longest answers fit the
// frame that carries them, and what a sender leaves out where they would not.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateWire

@Suite(.blocking) struct ReservationLimitTests {
  private static let id = OperationID(high: 1, low: 2)
  private static let longName = String(repeating: "n", count: Name.bytesMax)

  private static func subject() throws -> Subject {
    try Subject((0..<Subject.levelsMax).map { _ in longSegment }.joined(separator: "/"))
  }
  private static let longSegment = String(repeating: "s", count: Subject.segmentBytesMax)

  private static func items(_ count: Int, amount: Int64 = Quantity.maximum) throws -> [Item] {
    try (0..<count).map { n in
      let digits = "\(n)"
      return Item(
        feature: try Name(digits + longName.dropFirst(digits.count)), amount: amount)
    }
  }

  private static func attributes(_ count: Int = WireLimits.attributesMax) -> [String: String] {
    var attributes: [String: String] = [:]
    for n in 0..<count {
      attributes["\(n)" + longName.dropFirst("\(n)".count)] = String(
        repeating: "v", count: WireLimits.attributeValueBytesMax)
    }
    return attributes
  }

  private static let trace = String(repeating: "t", count: WireLimits.traceParentBytesMax)

  private func decode<Record>(_ record: Record) throws -> RecordBatch<Record> {
    var buffer = ByteBuffer()
    RecordBatch([record]).encode(into: &buffer)
    return try RecordBatch<Record>.decode(from: &buffer)
  }

  // MARK: - Records

  private func fits<Record: BatchRecord>(_ record: Record, _ opcode: Opcode) throws {
    try record.validate()
    var buffer = ByteBuffer()
    buffer.writeFrame(opcode, RecordBatch([record]), correlation: 1)
    #expect(buffer.readableBytes < Int(UInt16.max), "\(opcode.name)")
    #expect(try decode(record).records == [record], "\(opcode.name)")
  }

  @Test func `the largest record of each kind fits its length field`() throws {
    let items = try Self.items(WireLimits.itemsMax)
    let subject = try Self.subject()
    let operation = OperationRecord(
      id: Self.id, subject: subject, items: items, attributes: Self.attributes(),
      traceParent: Self.trace)
    try fits(
      ReserveRecord(
        operation, ttlMilliseconds: WireLimits.ttlMillisecondsMax,
        overrun: .overdraft(bound: Quantity.maximum)), .reserve)
    try fits(
      SettleRecord(
        id: Self.id, subject: subject, reservation: Self.id, isFinal: true, isFloor: true,
        items: items, attributes: Self.attributes(), traceParent: Self.trace), .settle)
    try fits(
      ReleaseRecord(
        id: Self.id, subject: subject, reservation: Self.id, traceParent: Self.trace), .release)
    try fits(
      ExtendRecord(
        id: Self.id, subject: subject, reservation: Self.id,
        ttlMilliseconds: WireLimits.ttlMillisecondsMax, traceParent: Self.trace), .extend)
    try fits(
      RefundRecord(
        id: Self.id, subject: subject, corrects: Self.id, items: items,
        attributes: Self.attributes(), traceParent: Self.trace,
        reason: String(repeating: "r", count: WireLimits.refundReasonBytesMax)), .refund)
  }

  private func shortest<Record: BatchRecord>(_ record: Record) {
    var buffer = ByteBuffer()
    record.encodeRecord(into: &buffer)
    // A subject of one byte, and no items: nothing is shorter.
    #expect(buffer.readableBytes == Record.recordBytesMin + 1, "\(Record.self)")
  }

  @Test func `no record is shorter than its least length`() throws {
    let subject = try Subject("a")
    shortest(OperationRecord(id: Self.id, subject: subject, items: []))
    shortest(ReserveRecord(OperationRecord(id: Self.id, subject: subject, items: [])))
    shortest(SettleRecord(id: Self.id, subject: subject, reservation: Self.id, items: []))
    shortest(ReleaseRecord(id: Self.id, subject: subject, reservation: Self.id))
    shortest(
      ExtendRecord(id: Self.id, subject: subject, reservation: Self.id, ttlMilliseconds: 1))
    shortest(RefundRecord(id: Self.id, subject: subject, corrects: Self.id))
  }

  private func refuses<Record: BatchRecord>(_ record: Record, _ code: ErrorCode) {
    let found = #expect(throws: WireError.self) { try record.validate() }
    #expect(found?.code == code, "\(record)")
    let decoded = #expect(throws: WireError.self) { try decode(record) }
    #expect(decoded?.code == code, "\(record)")
    #expect(decoded?.isFatal == false)
  }

  @Test func `validate refuses what the receiver would`() throws {
    let subject = try Subject("acme")
    let one = try Self.items(1)
    let operation = OperationRecord(id: Self.id, subject: subject, items: one)
    for ttl in [0, WireLimits.ttlMillisecondsMax + 1, .max] {
      refuses(ReserveRecord(operation, ttlMilliseconds: ttl), .badRequest)
      refuses(
        ExtendRecord(id: Self.id, subject: subject, reservation: Self.id, ttlMilliseconds: ttl),
        .badRequest)
    }
    for bound in [-1, Quantity.maximum + 1, .max, .min] {
      refuses(ReserveRecord(operation, overrun: .overdraft(bound: bound)), .amountOutOfRange)
    }

    let settle = SettleRecord(id: Self.id, subject: subject, reservation: Self.id, items: one)
    var floor = settle
    (floor.isFinal, floor.isFloor) = (false, true)
    refuses(floor, .badRequest)
    for (items, code) in [
      ([], ErrorCode.badRequest), (try Self.items(17), .tooManyItems),
      (one + one, .duplicateItem), (try Self.items(1, amount: -1), .amountOutOfRange),
      (try Self.items(1, amount: Quantity.maximum + 1), .amountOutOfRange),
    ] {
      for isFinal in [true, false] {
        var record = settle
        (record.items, record.isFinal) = (items, isFinal)
        refuses(record, code)
      }
      if items.isEmpty { continue }
      refuses(
        RefundRecord(id: Self.id, subject: subject, corrects: Self.id, items: items), code)
    }
    refuses(
      RefundRecord(
        id: Self.id, subject: subject, corrects: Self.id,
        reason: String(repeating: "r", count: WireLimits.refundReasonBytesMax + 1)), .badRequest)
    refuses(
      ReleaseRecord(
        id: Self.id, subject: subject, reservation: Self.id, traceParent: Self.trace + "t"),
      .badRequest)
  }

  @Test func `an amount of zero is an amount`() throws {
    let settle = SettleRecord(
      id: Self.id, subject: try Subject("acme"), reservation: Self.id,
      items: try Self.items(2, amount: 0))
    try settle.validate()
    #expect(try decode(settle).records[0].items.map(\.amount) == [0, 0])
  }

  // MARK: - Answers

  /// The longest decision: `items` of its own and all the derived ones there is room for.
  private static func longest(items: Int, settled: Bool) throws -> Decision {
    let name = try Name(longName)
    let state = Decision.ItemState(
      limit: name, remaining: Quantity.maximum, settled: Quantity.maximum, held: Quantity.maximum,
      reset: WallTime(milliseconds: Quantity.maximum))
    let settlement = Decision.Settlement(actual: Quantity.maximum, charged: Quantity.maximum)
    return Decision(
      reason: .settledClamped, source: .redis, binding: name, bindingItem: 15,
      retryAfter: Quantity.maximum, time: WallTime(milliseconds: Quantity.maximum),
      globalVersion: Quantity.maximum, accountVersion: Quantity.maximum, replayed: true,
      items: Array(repeating: state, count: WireLimits.itemsMax),
      expires: WallTime(milliseconds: Quantity.maximum),
      settlements: settled ? Array(repeating: settlement, count: WireLimits.itemsMax) : [],
      burns: Array(
        repeating: .init(item: 0, grant: name, amount: Quantity.maximum),
        count: WireLimits.burnsMax),
      derived: Array(repeating: name, count: WireLimits.itemsMax - items))
  }

  private func sent(_ decision: Decision, times count: Int) throws -> DecisionBatch {
    var buffer = ByteBuffer()
    let records = [DecisionRecord](repeating: .decision(decision), count: count)
    buffer.writeFrame(DecisionBatch(records), correlation: 1)
    #expect(buffer.readableBytes <= WireLimits.frameBytesMax, "\(count) records")
    buffer.moveReaderIndex(forwardBy: FrameHeader.bytes)
    return try DecisionBatch.decode(from: &buffer)
  }

  private func decision(_ record: DecisionRecord) throws -> Decision {
    guard case .decision(let decision) = record else { throw VectorError("no decision") }
    return decision
  }

  @Test func `records that name their items are answered with all of their states`() throws {
    let room = WireLimits.dataFrameBytesMax - FrameHeader.bytes - 4
    for items in 1...WireLimits.itemsMax {
      // A subject of one byte, features of one or two: the shortest that can be told apart.
      let named = 1 + items * (OperationRecord.itemBytesMin + 1)
      for (least, settled) in [
        (OperationRecord.recordBytesMin, false), (SettleRecord.recordBytesMin, true),
        (RefundRecord.recordBytesMin, true),
      ] {
        let count = min(WireLimits.recordsMax, room / (2 + least + named))
        let answer = try decision(
          sent(try Self.longest(items: items, settled: settled), times: count).records[0])
        #expect(answer.items.count >= items, "\(items) items of records of \(least) bytes")
        #expect(answer.settlements.count >= (settled ? items : 0))
        #expect(answer.expires != nil)
      }
    }
  }

  @Test func `the longest answer to a frame full of releases fits, without states if need be`()
    throws
  {
    let longest = try Self.longest(items: 16, settled: true)
    let answer = try decision(sent(longest, times: WireLimits.recordsMax).records[0])
    #expect(answer.items.isEmpty)
    #expect(answer.expires == longest.expires)
    #expect(answer.settlements == longest.settlements)
  }

  @Test func `burns go first, then derived items, then states`() throws {
    let longest = try Self.longest(items: 8, settled: true)
    var expected = longest
    func answered(_ count: Int) throws {
      #expect(try decision(sent(longest, times: count).records[0]) == expected, "\(count) records")
    }
    try answered(142)
    expected.burns = []
    try answered(143)
    try answered(403)
    expected.derived = []
    expected.items = Array(expected.items.prefix(8))
    expected.settlements = Array(expected.settlements.prefix(8))
    try answered(404)
    try answered(953)
    expected.items = []
    try answered(954)
    try answered(WireLimits.recordsMax)
  }

  @Test func `more burns than a decision may name are cut`() throws {
    var many = Decision(reason: .allowed, source: .redis, time: WallTime(milliseconds: 1))
    many.burns = (0..<100).map { .init(item: 0, grant: nil, amount: $0) }
    let answer = try decision(sent(many, times: 1).records[0])
    #expect(answer.burns == Array(many.burns.prefix(WireLimits.burnsMax)))
  }
}
