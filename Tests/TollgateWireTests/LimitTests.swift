// The named limits, at and just above each, and how they fit into each other.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateWire

@Suite(.blocking) struct LimitTests {
  private func record(items: Int = 1, attributes: Int = 0) throws -> OperationRecord {
    OperationRecord(
      id: OperationID(high: 1, low: 2),
      subject: try Subject(
        (0..<Subject.levelsMax).map { _ in String(repeating: "s", count: 64) }
          .joined(separator: "/")),
      items: try (0..<items).map { n in
        Item(
          feature: try Name("f\(n)" + String(repeating: "x", count: 62 - (n > 9 ? 1 : 0))),
          amount: Quantity.maximum)
      },
      attributes: Dictionary(
        uniqueKeysWithValues: (0..<attributes).map { n in
          (
            "k\(n)" + String(repeating: "y", count: 62 - (n > 9 ? 1 : 0)),
            String(repeating: "v", count: WireLimits.attributeValueBytesMax)
          )
        }),
      traceParent: String(repeating: "t", count: WireLimits.traceParentBytesMax))
  }

  private func decode(_ records: [OperationRecord]) throws -> OperationBatch {
    var buffer = ByteBuffer()
    OperationBatch(records).encode(into: &buffer)
    return try OperationBatch.decode(from: &buffer)
  }

  @Test func `the largest record fits its length field and a data frame`() throws {
    let largest = try record(items: WireLimits.itemsMax, attributes: WireLimits.attributesMax)
    try largest.validate()
    var buffer = ByteBuffer()
    buffer.writeFrame(.consume, OperationBatch([largest]), correlation: 1)
    #expect(buffer.readableBytes < Int(UInt16.max))
    #expect(buffer.readableBytes < WireLimits.dataFrameBytesMax)
    #expect(try decode([largest]).records == [largest])
  }

  @Test func `a full batch of least records fits a data frame`() throws {
    let least = OperationRecord(
      id: OperationID(high: 0, low: 0), subject: try Subject("a"),
      items: [Item(feature: try Name("b"), amount: 1)])
    var buffer = ByteBuffer()
    buffer.writeFrame(
      .consume, OperationBatch(Array(repeating: least, count: WireLimits.recordsMax)),
      correlation: 1)
    #expect(buffer.readableBytes <= WireLimits.dataFrameBytesMax)
  }

  @Test func `the longest answer to the longest request fits the frame that a client accepts`()
    throws
  {
    let name = try Name(String(repeating: "n", count: 64))
    let state = Decision.ItemState(
      limit: name, remaining: Quantity.maximum, settled: Quantity.maximum, held: Quantity.maximum,
      reset: WallTime(milliseconds: Quantity.maximum))
    func answer(_ items: Int) -> DecisionRecord {
      .decision(
        Decision(
          reason: .quotaExceeded, source: .redis, binding: name, bindingItem: 15,
          retryAfter: Quantity.maximum, time: WallTime(milliseconds: Quantity.maximum),
          globalVersion: Quantity.maximum, accountVersion: Quantity.maximum, replayed: true,
          items: Array(repeating: state, count: items)))
    }
    let refusal = DecisionRecord.error(
      .badRequest, message: String(repeating: "m", count: WireLimits.messageBytesMax))
    for items in 1...WireLimits.itemsMax {
      // Features of one or two bytes: the shortest that can be told apart.
      let request =
        2 + OperationRecord.recordBytesMin + 1 + items * (OperationRecord.itemBytesMin + 1)
      let room = WireLimits.dataFrameBytesMax - FrameHeader.bytes - 4
      let records = min(WireLimits.recordsMax, room / request)
      for record in [answer(items), refusal] {
        var buffer = ByteBuffer()
        buffer.writeFrame(
          DecisionBatch(Array(repeating: record, count: records)), correlation: 1)
        #expect(buffer.readableBytes <= WireLimits.frameBytesMax, "\(items) items")
      }
    }
  }

  @Test func `a batch above the ceiling is refused before it is read`() throws {
    let large = try record(items: WireLimits.itemsMax, attributes: WireLimits.attributesMax)
    var buffer = ByteBuffer()
    OperationBatch(Array(repeating: large, count: 40)).encode(into: &buffer)
    #expect(buffer.readableBytes > WireLimits.dataFrameBytesMax)
    let error = #expect(throws: WireError.self) { try OperationBatch.decodeEach(from: &buffer) }
    #expect(error?.code == .tooManyItems)
    #expect(error?.isFatal == false)
  }

  @Test func `a hello of full length fits the frame before the hello`() {
    var buffer = ByteBuffer()
    buffer.writeFrame(
      Hello(
        role: .check, client: String(repeating: "c", count: 100),
        token: String(repeating: "t", count: 600)), correlation: 1)
    #expect(buffer.readableBytes <= WireLimits.helloFrameBytesMax)
  }

  @Test func `the largest delta body and document fit a frame`() throws {
    let entry = OutboxEntry(
      sequence: 1, kind: .config, id: DeltaID(operation: OperationID(high: 0, low: 0), index: 0),
      time: WallTime(milliseconds: 0), actual: 0, charged: 0, absorbed: 0,
      body: [UInt8](repeating: 0, count: WireLimits.deltaBodyBytesMax))
    var buffer = ByteBuffer()
    buffer.writeFrame(
      DeltaBatch(bucket: 0, epoch: 1, previous: 0, entries: [entry]), correlation: 1)
    #expect(buffer.readableBytes <= WireLimits.frameBytesMax)
    #expect(
      entry.wireBytes
        == buffer.readableBytes - FrameHeader.bytes - 24)
    buffer.clear()
    buffer.writeFrame(
      AdminReply(body: [UInt8](repeating: 0x20, count: WireLimits.documentBytesMax)),
      correlation: 1)
    #expect(buffer.readableBytes <= WireLimits.frameBytesMax)
  }

  @Test func `the largest page of balances fits a frame`() throws {
    // Pages are cut by bytes as well as by rows: rows of usual size must fit in full.
    let balance = BalancesReply.Balance(
      subject: try Subject("account/member/run-0001"), feature: try Name("tokens.output.cached"),
      window: .seconds(3600),
      period: Period(start: WallTime(milliseconds: 0), end: WallTime(milliseconds: 1)), settled: 1)
    var buffer = ByteBuffer()
    buffer.writeFrame(
      BalancesReply(
        account: try Subject("account"), version: 1,
        config: [UInt8](repeating: 0x20, count: WireLimits.accountConfigBytesMax),
        balances: Array(repeating: balance, count: WireLimits.balancesMax)), correlation: 1)
    #expect(buffer.readableBytes <= WireLimits.frameBytesMax)
  }

  @Test func `wire and core agree on items and features`() {
    #expect(WireLimits.itemsMax == Resolution.itemsMax)
    #expect(WireLimits.policiesMax == Catalog.featuresMax)
    #expect(WireLimits.bucketStatesMax == Deployment.bucketsMax + 1)
    #expect(WireLimits.cellsMax > Resolution.limitsMax)
    #expect(WireLimits.deltaBodyBytesMax >= 2 * WireLimits.accountConfigBytesMax)
  }

  @Test func `validate refuses what the receiver would`() throws {
    var tooMany = try record(items: 16)
    tooMany.items.append(Item(feature: try Name("one-more"), amount: 1))
    var twice = try record()
    twice.items.append(twice.items[0])
    var negative = try record()
    negative.items[0].amount = -1
    var empty = try record()
    empty.items = []
    var attribute = try record()
    attribute.attributes["not a name"] = "x"
    var long = try record()
    long.traceParent += "t"
    let cases: [(OperationRecord, ErrorCode)] = [
      (tooMany, .tooManyItems), (twice, .duplicateItem), (negative, .amountOutOfRange),
      (empty, .badRequest), (attribute, .invalidName), (long, .badRequest),
    ]
    for (record, code) in cases {
      let error = #expect(throws: WireError.self) { try record.validate() }
      #expect(error?.code == code)
      let decoded = #expect(throws: WireError.self) { try decode([record]) }
      #expect(decoded?.code == code)
      #expect(decoded?.isFatal == false)
    }
  }

  @Test func `long texts are cut at a character's boundary`() throws {
    var buffer = ByteBuffer()
    ErrorReply(code: .badRequest, message: String(repeating: "漢", count: 400)).encode(into: &buffer)
    let reply = try ErrorReply.decode(from: &buffer)
    #expect(reply.message == String(repeating: "漢", count: 170))
  }
}
