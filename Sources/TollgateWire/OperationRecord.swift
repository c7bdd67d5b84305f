// The record of CHECK, CONSUME, POST and CANCEL: one subject, some features with an amount each.
// What it is made of, a list of items and a few optional fields, the records of reservations are
// made of too (Reservations.swift).

package import NIOCore
package import TollgateCore

package typealias OperationBatch = RecordBatch<OperationRecord>

package struct OperationRecord: BatchRecord {
  /// id, subject length, item count.
  package static let recordBytesMin = 16 + 2 + 1
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

  package func validate() throws(WireError) {
    try RecordParts.validate(items, of: "an operation")
    try RecordParts.validate(attributes: attributes)
    try RecordParts.validate(traceParent: traceParent)
  }

  package func encodeRecord(into buffer: inout ByteBuffer) {
    buffer.put(id)
    buffer.put(subject)
    buffer.put(items)
    buffer.putRecordFields(attributes: attributes, traceParent: traceParent)
  }

  package static func decodeRecord(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> OperationRecord {
    try decode(from: &buffer) { (_, _) throws(WireError) in false }
  }

  /// `known` reads the fields that a record of another kind has beside those of this one.
  static func decode(
    from buffer: inout ByteBuffer,
    known: (UInt16, inout ByteBuffer) throws(WireError) -> Bool
  ) throws(WireError) -> OperationRecord {
    let id = try buffer.takeOperationID()
    let subject = try buffer.takeSubject()
    let items = try buffer.takeItems(of: "an operation")
    guard buffer.readableBytes > 0 else {
      return OperationRecord(id: id, subject: subject, items: items)
    }
    var attributes: [String: String] = [:]
    var traceParent = ""
    try buffer.takeFields { (tag, field) throws(WireError) in
      switch tag {
      case RecordTag.attributes: attributes = try field.takeAttributes()
      case RecordTag.traceParent: traceParent = try field.takeTraceParent()
      default: return try known(tag, &field)
      }
      return true
    }
    return OperationRecord(
      id: id, subject: subject, items: items, attributes: attributes, traceParent: traceParent)
  }
}
