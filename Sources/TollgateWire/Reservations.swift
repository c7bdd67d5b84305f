// The records of a reservation's life: RESERVE holds an estimate, SETTLE says what was used,
// EXTEND prolongs, RELEASE gives back. Each is an operation with an id of its own; the id of the
// RESERVE is the reservation's, and the later ones name it. Their answers are DECISIONS.

package import NIOCore
package import TollgateCore

package typealias ReserveBatch = RecordBatch<ReserveRecord>
package typealias SettleBatch = RecordBatch<SettleRecord>
package typealias ReleaseBatch = RecordBatch<ReleaseRecord>
package typealias ExtendBatch = RecordBatch<ExtendRecord>

/// RESERVE: a CONSUME that is not over yet.
package struct ReserveRecord: BatchRecord {
  package static let recordBytesMin = OperationRecord.recordBytesMin

  /// Its id is the reservation's, its amounts are the estimate.
  package var operation: OperationRecord
  /// How long the hold lives; nil: `HoldBounds.ttlDefault`.
  package var ttlMilliseconds: UInt32?
  /// nil: `OverrunPolicy.standard`.
  package var overrun: OverrunPolicy?

  package var id: OperationID { operation.id }
  package var subject: Subject { operation.subject }

  package init(
    _ operation: OperationRecord, ttlMilliseconds: UInt32? = nil, overrun: OverrunPolicy? = nil
  ) {
    self.operation = operation
    self.ttlMilliseconds = ttlMilliseconds
    self.overrun = overrun
  }

  package func validate() throws(WireError) {
    try operation.validate()
    if let ttlMilliseconds { try RecordParts.checkTTL(ttlMilliseconds) }
    guard case .overdraft(let bound)? = overrun else { return }
    guard bound >= 0, bound <= Quantity.maximum else {
      throw .refused(.amountOutOfRange, "overdraft \(bound) is outside 0 … 2^53 − 1")
    }
  }

  package func encodeRecord(into buffer: inout ByteBuffer) {
    operation.encodeRecord(into: &buffer)
    if let ttlMilliseconds { buffer.putField(RecordTag.ttl) { $0.put(ttlMilliseconds) } }
    if let overrun { buffer.putField(RecordTag.overrun) { $0.put(overrun) } }
  }

  package static func decodeRecord(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> ReserveRecord {
    var ttl: UInt32?
    var overrun: OverrunPolicy?
    let operation = try OperationRecord.decode(from: &buffer) { (tag, field) throws(WireError) in
      switch tag {
      case RecordTag.ttl: ttl = try field.takeTTL()
      case RecordTag.overrun: overrun = try field.takeOverrun()
      default: return false
      }
      return true
    }
    return ReserveRecord(operation, ttlMilliseconds: ttl, overrun: overrun)
  }
}

/// SETTLE: what was used since the settle before.
package struct SettleRecord: BatchRecord {
  /// id, subject length, reservation, bits, item count.
  package static let recordBytesMin = 16 + 2 + 16 + 1 + 1

  private enum Bits {
    static let isFinal: UInt8 = 1
    static let isFloor: UInt8 = 2
    static let all: UInt8 = 3
  }

  package var id: OperationID
  package var subject: Subject
  package var reservation: OperationID
  /// Ends the reservation and frees what is left; false: draws from it, and it lives on.
  package var isFinal: Bool
  /// What was used is not known in full, this is the least of it. Always final.
  package var isFloor: Bool
  /// 1 … 16 items. An amount of 0 says that nothing was used.
  package var items: [Item]
  package var attributes: [String: String]
  /// W3C trace parent, or empty.
  package var traceParent: String

  package init(
    id: OperationID, subject: Subject, reservation: OperationID, isFinal: Bool = true,
    isFloor: Bool = false, items: [Item], attributes: [String: String] = [:],
    traceParent: String = ""
  ) {
    self.id = id
    self.subject = subject
    self.reservation = reservation
    self.isFinal = isFinal
    self.isFloor = isFloor
    self.items = items
    self.attributes = attributes
    self.traceParent = traceParent
  }

  package func validate() throws(WireError) {
    try Self.check(isFinal: isFinal, isFloor: isFloor)
    try RecordParts.validate(items, of: "a settle")
    try RecordParts.validate(attributes: attributes)
    try RecordParts.validate(traceParent: traceParent)
  }

  private static func check(isFinal: Bool, isFloor: Bool) throws(WireError) {
    guard isFinal || !isFloor else {
      throw .refused(.badRequest, "a floor that does not end the reservation")
    }
  }

  package func encodeRecord(into buffer: inout ByteBuffer) {
    buffer.put(id)
    buffer.put(subject)
    buffer.put(reservation)
    buffer.put((isFinal ? Bits.isFinal : 0) | (isFloor ? Bits.isFloor : 0))
    buffer.put(items)
    buffer.putRecordFields(attributes: attributes, traceParent: traceParent)
  }

  package static func decodeRecord(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> SettleRecord {
    let id = try buffer.takeOperationID()
    let subject = try buffer.takeSubject()
    let reservation = try buffer.takeOperationID()
    let bits = try buffer.take(UInt8.self)
    guard bits & ~Bits.all == 0 else {
      throw .refused(.badRequest, "reserved bits of a settle are not zero")
    }
    let isFinal = bits & Bits.isFinal != 0
    let isFloor = bits & Bits.isFloor != 0
    try check(isFinal: isFinal, isFloor: isFloor)
    let items = try buffer.takeItems(of: "a settle")
    var record = SettleRecord(
      id: id, subject: subject, reservation: reservation, isFinal: isFinal, isFloor: isFloor,
      items: items)
    try buffer.takeFields { (tag, field) throws(WireError) in
      switch tag {
      case RecordTag.attributes: record.attributes = try field.takeAttributes()
      case RecordTag.traceParent: record.traceParent = try field.takeTraceParent()
      default: return false
      }
      return true
    }
    return record
  }
}

/// RELEASE: nothing was used, or nothing more; the rest is free.
package struct ReleaseRecord: BatchRecord {
  /// id, subject length, reservation.
  package static let recordBytesMin = 16 + 2 + 16

  package var id: OperationID
  package var subject: Subject
  package var reservation: OperationID
  /// W3C trace parent, or empty.
  package var traceParent: String

  package init(
    id: OperationID, subject: Subject, reservation: OperationID, traceParent: String = ""
  ) {
    self.id = id
    self.subject = subject
    self.reservation = reservation
    self.traceParent = traceParent
  }

  package func validate() throws(WireError) {
    try RecordParts.validate(traceParent: traceParent)
  }

  package func encodeRecord(into buffer: inout ByteBuffer) {
    buffer.put(id)
    buffer.put(subject)
    buffer.put(reservation)
    buffer.putRecordFields(traceParent: traceParent)
  }

  package static func decodeRecord(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> ReleaseRecord {
    ReleaseRecord(
      id: try buffer.takeOperationID(), subject: try buffer.takeSubject(),
      reservation: try buffer.takeOperationID(), traceParent: try buffer.takeTraceField())
  }
}

/// EXTEND: the hold lives for `ttl` from now on, if that is longer than it would have.
package struct ExtendRecord: BatchRecord {
  /// id, subject length, reservation, ttl.
  package static let recordBytesMin = ReleaseRecord.recordBytesMin + 4

  package var id: OperationID
  package var subject: Subject
  package var reservation: OperationID
  package var ttlMilliseconds: UInt32
  /// W3C trace parent, or empty.
  package var traceParent: String

  package init(
    id: OperationID, subject: Subject, reservation: OperationID, ttlMilliseconds: UInt32,
    traceParent: String = ""
  ) {
    self.id = id
    self.subject = subject
    self.reservation = reservation
    self.ttlMilliseconds = ttlMilliseconds
    self.traceParent = traceParent
  }

  package func validate() throws(WireError) {
    try RecordParts.checkTTL(ttlMilliseconds)
    try RecordParts.validate(traceParent: traceParent)
  }

  package func encodeRecord(into buffer: inout ByteBuffer) {
    buffer.put(id)
    buffer.put(subject)
    buffer.put(reservation)
    buffer.put(ttlMilliseconds)
    buffer.putRecordFields(traceParent: traceParent)
  }

  package static func decodeRecord(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> ExtendRecord {
    ExtendRecord(
      id: try buffer.takeOperationID(), subject: try buffer.takeSubject(),
      reservation: try buffer.takeOperationID(), ttlMilliseconds: try buffer.takeTTL(),
      traceParent: try buffer.takeTraceField())
  }
}

extension ByteBuffer {
  fileprivate mutating func takeTTL() throws(WireError) -> UInt32 {
    let milliseconds = try take(UInt32.self)
    try RecordParts.checkTTL(milliseconds)
    return milliseconds
  }

  /// The field list of a record that has no other field than this.
  fileprivate mutating func takeTraceField() throws(WireError) -> String {
    var traceParent = ""
    try takeFields { (tag, field) throws(WireError) in
      guard tag == RecordTag.traceParent else { return false }
      traceParent = try field.takeTraceParent()
      return true
    }
    return traceParent
  }

  /// u8 policy, reserved(7), amount: what may be owed.
  fileprivate mutating func takeOverrun() throws(WireError) -> OverrunPolicy {
    let policy = try take(UInt8.self)
    try takeReserved(7)
    let bound = try takeAmount()
    guard policy == 2 || bound == 0 else {
      throw .refused(.badRequest, "only the policy overdraft has a bound")
    }
    switch policy {
    case 0: return .reject
    case 1: return .clamp
    case 2: return .overdraft(bound: bound)
    default: throw .refused(.badRequest, "unknown overrun policy \(policy)")
    }
  }

  fileprivate mutating func put(_ overrun: OverrunPolicy) {
    let (policy, bound): (UInt8, Int64) =
      switch overrun {
      case .reject: (0, 0)
      case .clamp: (1, 0)
      case .overdraft(let bound): (2, bound)
      }
    put(policy)
    writeRepeatingByte(0, count: 7)
    put(bound)
  }
}
