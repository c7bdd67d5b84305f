// Many records in one frame, each with its own id and its own answer in DECISIONS.
// A record has a length in front, so that one bad record is refused alone; only a lie about
// counts or lengths refuses the whole frame.

package import NIOCore
package import TollgateCore

/// One record of a batch: what is asked, and how that is written.
package protocol BatchRecord: Hashable, Sendable {
  /// Minted by the caller before the first send, kept through retries.
  var id: OperationID { get }
  var subject: Subject { get }
  /// Throws what a receiver would refuse, found before sending.
  func validate() throws(WireError)
  /// Bytes of the shortest record, without its length in front.
  static var recordBytesMin: Int { get }
  /// Writes the record without its length.
  func encodeRecord(into buffer: inout ByteBuffer)
  /// Reads one record from a buffer that holds exactly it.
  static func decodeRecord(from buffer: inout ByteBuffer) throws(WireError) -> Self
}

package struct RecordBatch<Record: BatchRecord>: WireMessage {
  package var records: [Record]

  package init(_ records: [Record]) { self.records = records }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(UInt16(records.count))
    buffer.put(UInt16(0))
    for record in records { buffer.putSized(UInt16.self) { record.encodeRecord(into: &$0) } }
  }

  /// Every record must be good. A server uses `decodeEach`.
  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> Self {
    let count = try decodeCount(from: &buffer)
    var records: [Record] = []
    records.reserveCapacity(count)
    for _ in 0..<count {
      var slice = try decodeSlice(from: &buffer)
      records.append(try Record.decodeRecord(from: &slice))
    }
    try buffer.requireEnd(of: "the batch")
    return Self(records)
  }

  /// The records one by one, in order: the good ones, and for a bad one what is wrong with it, to
  /// be answered in its place. Throws only where the frame itself is malformed, and then before
  /// any record was acted upon.
  package static func decodeEach(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> [Result<Record, WireError>] {
    try decodeResults(from: &buffer)
  }

  @inline(__always)
  fileprivate static func decodeResults(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> [Result<Record, WireError>] {
    var reader = try RecordReader<Record>(buffer)
    buffer.moveReaderIndex(to: buffer.writerIndex)
    var results: [Result<Record, WireError>] = []
    results.reserveCapacity(reader.left)
    while let result = reader.decodeNext() { results.append(result) }
    return results
  }

  fileprivate static func decodeCount(from buffer: inout ByteBuffer) throws(WireError) -> Int {
    guard buffer.readableBytes + FrameHeader.bytes <= WireLimits.dataFrameBytesMax else {
      throw .refused(
        .tooManyItems, "a batch of more than \(WireLimits.dataFrameBytesMax) bytes: split it")
    }
    let count = try buffer.takeCount(
      UInt16.self, max: WireLimits.recordsMax, each: 2 + Record.recordBytesMin, of: "records",
      error: .tooManyItems)
    guard count > 0 else { throw .refused(.badRequest, "a batch without records") }
    try buffer.takeReserved(2)
    return count
  }

  fileprivate static func decodeSlice(from buffer: inout ByteBuffer) throws(WireError) -> ByteBuffer
  {
    let length = Int(try buffer.take(UInt16.self))
    guard let slice = buffer.readSlice(length: length) else { throw .truncated }
    return slice
  }
}

extension RecordBatch where Record == OperationRecord {
  /// The request path: preferred where the record's type is known, and compiled for it here,
  /// since another module would call the generic one through witness tables.
  package static func decodeEach(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> [Result<OperationRecord, WireError>] {
    try decodeResults(from: &buffer)
  }
}

/// The records of a batch, each decoded when it is asked for: a frame of a thousand can be worked
/// on in pieces. That the frame itself is well-formed is known from the beginning.
package struct RecordReader<Record: BatchRecord>: Sendable {
  private var buffer: ByteBuffer
  /// Records not asked for yet.
  package private(set) var left: Int

  package init(_ payload: ByteBuffer) throws(WireError) {
    buffer = payload
    left = try RecordBatch<Record>.decodeCount(from: &buffer)
    var walk = buffer
    for _ in 0..<left {
      let length = Int(try walk.take(UInt16.self))
      guard length <= walk.readableBytes else { throw .truncated }
      walk.moveReaderIndex(forwardBy: length)
    }
    try walk.requireEnd(of: "the batch")
  }

  /// The next record, or what is wrong with it; nil after the last.
  package mutating func next() -> Result<Record, WireError>? { decodeNext() }

  @inline(__always)
  fileprivate mutating func decodeNext() -> Result<Record, WireError>? {
    guard left > 0 else { return nil }
    left -= 1
    do throws(WireError) {
      var slice = try RecordBatch<Record>.decodeSlice(from: &buffer)
      return .success(try Record.decodeRecord(from: &slice))
    } catch {
      return .failure(error)
    }
  }
}

package typealias OperationReader = RecordReader<OperationRecord>

extension RecordReader where Record == OperationRecord {
  /// The request path, compiled for its type here, as `decodeEach` is.
  package mutating func next() -> Result<OperationRecord, WireError>? { decodeNext() }
}

/// Numbers of the optional fields of all kinds of records: the same number means the same.
enum RecordTag {
  static let attributes: UInt16 = 1
  static let traceParent: UInt16 = 2
  static let ttl: UInt16 = 3
  static let overrun: UInt16 = 4
  static let reason: UInt16 = 5
}

/// What a receiver would refuse, by the parts that records share.
enum RecordParts {
  static func validate(_ items: [Item], atLeast: Int = 1, of what: String) throws(WireError) {
    try checkCount(items.count, atLeast: atLeast, of: what)
    for (index, item) in items.enumerated() {
      guard item.amount >= 0, item.amount <= Quantity.maximum else {
        throw .refused(.amountOutOfRange, "amount \(item.amount) is outside 0 … 2^53 − 1")
      }
      try checkUnique(item.feature, before: index, in: items)
    }
  }

  static func validate(attributes: [String: String]) throws(WireError) {
    guard attributes.count <= WireLimits.attributesMax else {
      throw .refused(
        .badRequest, "\(attributes.count) attributes; at most \(WireLimits.attributesMax) allowed")
    }
    for (key, value) in attributes {
      do throws(InvalidName) { _ = try Name(key) } catch {
        throw .refused(.invalidName, error.description)
      }
      guard value.utf8.count <= WireLimits.attributeValueBytesMax else {
        throw .refused(.badRequest, "the value of attribute \(key) is too long")
      }
    }
  }

  static func validate(traceParent: String) throws(WireError) {
    guard traceParent.utf8.count <= WireLimits.traceParentBytesMax else {
      throw .refused(.badRequest, "the trace parent is too long")
    }
  }

  static func checkTTL(_ milliseconds: UInt32) throws(WireError) {
    guard milliseconds >= 1, milliseconds <= WireLimits.ttlMillisecondsMax else {
      throw .refused(
        .badRequest, "a ttl of \(milliseconds) ms; 1 … \(WireLimits.ttlMillisecondsMax) allowed")
    }
  }

  static func checkCount(_ count: Int, atLeast: Int, of what: String) throws(WireError) {
    guard count >= atLeast else { throw .refused(.badRequest, "\(what) without items") }
    guard count <= WireLimits.itemsMax else {
      throw .refused(.tooManyItems, "\(count) items; at most \(WireLimits.itemsMax) allowed")
    }
  }

  static func checkUnique(
    _ feature: Name, before index: Int, in items: [Item]
  ) throws(WireError) {
    for earlier in 0..<index where items[earlier].feature == feature {
      throw .refused(.duplicateItem, "feature \(feature) is named twice")
    }
  }
}

extension ByteBuffer {
  mutating func takeItems(
    atLeast: Int = 1, of what: String
  ) throws(WireError) -> [Item] {
    let count = Int(try take(UInt8.self))
    try RecordParts.checkCount(count, atLeast: atLeast, of: what)
    var items: [Item] = []
    items.reserveCapacity(count)
    for index in 0..<count {
      let feature = try takeName()
      try RecordParts.checkUnique(feature, before: index, in: items)
      items.append(Item(feature: feature, amount: try takeAmount()))
    }
    return items
  }

  mutating func put(_ items: [Item]) {
    put(UInt8(items.count))
    for item in items {
      put(item.feature)
      put(item.amount)
    }
  }

  /// The whole of a field's bytes.
  mutating func takeTraceParent() throws(WireError) -> String {
    guard readableBytes <= WireLimits.traceParentBytesMax else {
      throw .refused(.badRequest, "the trace parent is too long")
    }
    return try takeUTF8(readableBytes)
  }

  /// The fields that most records have, left out where they are empty.
  mutating func putRecordFields(attributes: [String: String] = [:], traceParent: String) {
    if !attributes.isEmpty { putField(RecordTag.attributes) { $0.putAttributes(attributes) } }
    if !traceParent.isEmpty { putField(RecordTag.traceParent, text: traceParent) }
  }
}
