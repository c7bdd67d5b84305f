// CHECK, CONSUME, POST and CANCEL: many operations in one frame, each with its own id and its own
// answer.
// A record has a length in front, so that one bad record is refused alone; only a lie about
// counts or lengths refuses the whole frame.

package import NIOCore
package import TollgateCore

package struct OperationRecord: Hashable, Sendable {
  static let attributesTag: UInt16 = 1
  static let traceParentTag: UInt16 = 2
  /// id, subject length, item count.
  static let bytesMin = 16 + 2 + 1
  static let itemBytesMin = 1 + 8

  /// Minted by the caller before the first send, kept through retries. CHECK ignores it.
  package var id: OperationID
  package var subject: Subject
  /// 1 … 16 items, each feature once.
  package var items: [Item]
  package var attributes: [String: String]
  /// W3C trace parent, or empty.
  package var traceParent: String

  package init(
    id: OperationID, subject: Subject, items: [Item], attributes: [String: String] = [:],
    traceParent: String = ""
  ) {
    self.id = id
    self.subject = subject
    self.items = items
    self.attributes = attributes
    self.traceParent = traceParent
  }

  /// What a receiver would refuse, found before sending.
  package func validate() throws(WireError) {
    try Self.checkCount(items.count)
    for (index, item) in items.enumerated() {
      guard item.amount >= 0, item.amount <= Quantity.maximum else {
        throw .refused(.amountOutOfRange, "amount \(item.amount) is outside 0 … 2^53 − 1")
      }
      try Self.checkUnique(item.feature, before: index, in: items)
    }
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
    guard traceParent.utf8.count <= WireLimits.traceParentBytesMax else {
      throw .refused(.badRequest, "the trace parent is too long")
    }
  }

  private static func checkCount(_ count: Int) throws(WireError) {
    guard count >= 1 else { throw .refused(.badRequest, "an operation without items") }
    guard count <= WireLimits.itemsMax else {
      throw .refused(.tooManyItems, "\(count) items; at most \(WireLimits.itemsMax) allowed")
    }
  }

  private static func checkUnique(
    _ feature: Name, before index: Int, in items: [Item]
  ) throws(WireError) {
    for earlier in 0..<index where items[earlier].feature == feature {
      throw .refused(.duplicateItem, "feature \(feature) is named twice")
    }
  }

  func encode(into buffer: inout ByteBuffer) {
    buffer.putSized(UInt16.self) { buffer in
      buffer.put(id)
      buffer.put(subject)
      buffer.put(UInt8(items.count))
      for item in items {
        buffer.put(item.feature)
        buffer.put(item.amount)
      }
      if !attributes.isEmpty {
        buffer.putField(Self.attributesTag) { $0.putAttributes(attributes) }
      }
      if !traceParent.isEmpty { buffer.putField(Self.traceParentTag, text: traceParent) }
    }
  }

  /// Reads one record from a buffer that holds exactly it.
  static func decode(from buffer: inout ByteBuffer) throws(WireError) -> OperationRecord {
    let id = try buffer.takeOperationID()
    let subject = try buffer.takeSubject()
    let count = Int(try buffer.take(UInt8.self))
    try checkCount(count)
    var items: [Item] = []
    items.reserveCapacity(count)
    for index in 0..<count {
      let feature = try buffer.takeName()
      try checkUnique(feature, before: index, in: items)
      items.append(Item(feature: feature, amount: try buffer.takeAmount()))
    }
    var record = OperationRecord(id: id, subject: subject, items: items)
    if buffer.readableBytes > 0 { try record.decodeFields(from: &buffer) }
    return record
  }

  private mutating func decodeFields(from buffer: inout ByteBuffer) throws(WireError) {
    var attributes: [String: String] = [:]
    var traceParent = ""
    try buffer.takeFields { (tag, field) throws(WireError) in
      switch tag {
      case Self.attributesTag: attributes = try field.takeAttributes()
      case Self.traceParentTag:
        guard field.readableBytes <= WireLimits.traceParentBytesMax else {
          throw .refused(.badRequest, "the trace parent is too long")
        }
        traceParent = try field.takeUTF8(field.readableBytes)
      default: return false
      }
      return true
    }
    self.attributes = attributes
    self.traceParent = traceParent
  }
}

package struct OperationBatch: WireMessage {
  package var records: [OperationRecord]

  package init(_ records: [OperationRecord]) { self.records = records }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(UInt16(records.count))
    buffer.put(UInt16(0))
    for record in records { record.encode(into: &buffer) }
  }

  /// Every record must be good. A server uses `decodeEach`.
  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> OperationBatch {
    let count = try decodeCount(from: &buffer)
    var records: [OperationRecord] = []
    records.reserveCapacity(count)
    for _ in 0..<count {
      var slice = try decodeSlice(from: &buffer)
      let record = try OperationRecord.decode(from: &slice)
      records.append(record)
    }
    try buffer.requireEnd(of: "the batch")
    return OperationBatch(records)
  }

  /// The records one by one, in order: the good ones, and for a bad one what is wrong with it, to
  /// be answered in its place. Throws only where the frame itself is malformed, and then before
  /// any record was acted upon.
  package static func decodeEach(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> [Result<OperationRecord, WireError>] {
    var reader = try OperationReader(buffer)
    buffer.moveReaderIndex(to: buffer.writerIndex)
    var results: [Result<OperationRecord, WireError>] = []
    results.reserveCapacity(reader.left)
    while let result = reader.next() { results.append(result) }
    return results
  }

  fileprivate static func decodeCount(from buffer: inout ByteBuffer) throws(WireError) -> Int {
    guard buffer.readableBytes + FrameHeader.bytes <= WireLimits.dataFrameBytesMax else {
      throw .refused(
        .tooManyItems, "a batch of more than \(WireLimits.dataFrameBytesMax) bytes: split it")
    }
    let count = try buffer.takeCount(
      UInt16.self, max: WireLimits.recordsMax, each: 2 + OperationRecord.bytesMin, of: "records",
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

/// The records of a batch, each decoded when it is asked for: a frame of a thousand can be worked
/// on in pieces. That the frame itself is well-formed is known from the beginning.
package struct OperationReader: Sendable {
  private var buffer: ByteBuffer
  /// Records not asked for yet.
  package private(set) var left: Int

  package init(_ payload: ByteBuffer) throws(WireError) {
    buffer = payload
    left = try OperationBatch.decodeCount(from: &buffer)
    var walk = buffer
    for _ in 0..<left {
      let length = Int(try walk.take(UInt16.self))
      guard length <= walk.readableBytes else { throw .truncated }
      walk.moveReaderIndex(forwardBy: length)
    }
    try walk.requireEnd(of: "the batch")
  }

  /// The next record, or what is wrong with it; nil after the last.
  package mutating func next() -> Result<OperationRecord, WireError>? {
    guard left > 0 else { return nil }
    left -= 1
    do throws(WireError) {
      var slice = try OperationBatch.decodeSlice(from: &buffer)
      return .success(try OperationRecord.decode(from: &slice))
    } catch {
      return .failure(error)
    }
  }
}
