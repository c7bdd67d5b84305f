// REFUND: units of an earlier operation are given back, with an id of its own. Never more comes
// back than that operation was charged, whatever is asked and however often.

package import NIOCore
package import TollgateCore

package typealias RefundBatch = RecordBatch<RefundRecord>

package struct RefundRecord: BatchRecord {
  /// id, subject length, corrected operation, item count.
  package static let recordBytesMin = 16 + 2 + 16 + 1

  package var id: OperationID
  package var subject: Subject
  /// The operation that charged: a CONSUME, a POST or a SETTLE.
  package var corrects: OperationID
  /// 0 … 16 items; none: all that was charged.
  package var items: [Item]
  package var attributes: [String: String]
  /// W3C trace parent, or empty.
  package var traceParent: String
  /// For people; empty where none was given.
  package var reason: String

  package init(
    id: OperationID, subject: Subject, corrects: OperationID, items: [Item] = [],
    attributes: [String: String] = [:], traceParent: String = "", reason: String = ""
  ) {
    self.id = id
    self.subject = subject
    self.corrects = corrects
    self.items = items
    self.attributes = attributes
    self.traceParent = traceParent
    self.reason = reason
  }

  package func validate() throws(WireError) {
    try RecordParts.validate(items, atLeast: 0, of: "a refund")
    try RecordParts.validate(attributes: attributes)
    try RecordParts.validate(traceParent: traceParent)
    guard reason.utf8.count <= WireLimits.refundReasonBytesMax else {
      throw .refused(
        .badRequest, "a reason of more than \(WireLimits.refundReasonBytesMax) bytes")
    }
  }

  package func encodeRecord(into buffer: inout ByteBuffer) {
    buffer.put(id)
    buffer.put(subject)
    buffer.put(corrects)
    buffer.put(items)
    buffer.putRecordFields(attributes: attributes, traceParent: traceParent)
    if !reason.isEmpty { buffer.putField(RecordTag.reason, text: reason) }
  }

  package static func decodeRecord(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> RefundRecord {
    var record = RefundRecord(
      id: try buffer.takeOperationID(), subject: try buffer.takeSubject(),
      corrects: try buffer.takeOperationID(),
      items: try buffer.takeItems(atLeast: 0, of: "a refund"))
    try buffer.takeFields { (tag, field) throws(WireError) in
      switch tag {
      case RecordTag.attributes: record.attributes = try field.takeAttributes()
      case RecordTag.traceParent: record.traceParent = try field.takeTraceParent()
      case RecordTag.reason:
        record.reason = try field.takeWholeText(max: WireLimits.refundReasonBytesMax)
      default: return false
      }
      return true
    }
    return record
  }
}
