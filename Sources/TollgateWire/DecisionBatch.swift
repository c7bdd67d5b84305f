// DECISIONS: one answer per record of the request, in the request's order. An answer is a
// decision (allowed or denied) or an error (no decision was made for this record).

package import NIOCore
package import TollgateCore

package enum DecisionRecord: Hashable, Sendable {
  case decision(Decision)
  case error(ErrorCode, message: String)

  /// length, status, text length.
  static let bytesMin = 2 + 2 + 2
  static let noItem: UInt8 = 0xFF

  private enum Present {
    static let replayed: UInt8 = 1
    static let retryAfter: UInt8 = 2
    static let all: UInt8 = 3
  }

  private enum ItemPresent {
    static let remaining: UInt8 = 1
    static let reset: UInt8 = 2
    static let all: UInt8 = 3
  }

  func encode(into buffer: inout ByteBuffer) {
    buffer.putSized(UInt16.self) { buffer in
      switch self {
      case .error(let code, let message):
        buffer.put(code.rawValue)
        buffer.put(message, UInt16.self, max: WireLimits.messageBytesMax)
      case .decision(let decision):
        buffer.put(UInt16(0))
        Self.encode(decision, into: &buffer)
      }
    }
  }

  private static func encode(_ decision: Decision, into buffer: inout ByteBuffer) {
    buffer.put(decision.reason.rawValue)
    buffer.put(decision.source.rawValue)
    buffer.put(
      (decision.replayed ? Present.replayed : 0)
        | (decision.retryAfter == nil ? 0 : Present.retryAfter))
    buffer.put(decision.time.milliseconds)
    buffer.put(decision.globalVersion)
    buffer.put(decision.accountVersion)
    buffer.put(decision.retryAfter ?? 0)
    buffer.put(decision.bindingItem.map { UInt8($0) } ?? noItem)
    buffer.put(decision.binding)
    buffer.put(UInt8(decision.items.count))
    for item in decision.items {
      buffer.put(
        (item.remaining == nil ? 0 : ItemPresent.remaining)
          | (item.reset == nil ? 0 : ItemPresent.reset))
      buffer.put(item.remaining ?? 0)
      buffer.put(item.settled)
      buffer.put(item.held)
      buffer.put(item.reset?.milliseconds ?? 0)
      buffer.put(item.limit)
    }
  }

  static func decode(from buffer: inout ByteBuffer) throws(WireError) -> DecisionRecord {
    let status = try buffer.take(UInt16.self)
    guard status == 0 else {
      let code = ErrorCode(rawValue: status) ?? .internalError
      let message = try buffer.takeText(UInt16.self, max: WireLimits.messageBytesMax)
      try buffer.takeUnknownFields()
      return .error(code, message: message)
    }
    let number = try buffer.take(UInt16.self)
    guard let reason = Reason(rawValue: number) else {
      throw .refused(.badRequest, "unknown reason \(number)")
    }
    guard let source = Source(rawValue: try buffer.take()) else {
      throw .refused(.badRequest, "unknown source")
    }
    let present = try buffer.take(UInt8.self)
    guard present & ~Present.all == 0 else {
      throw .refused(.badRequest, "reserved bits of a decision are not zero")
    }
    var decision = Decision(
      reason: reason, source: source, time: try buffer.takeTime(),
      globalVersion: try buffer.takeOrdinal(), accountVersion: try buffer.takeOrdinal(),
      replayed: present & Present.replayed != 0)
    decision.retryAfter = try buffer.takeOptional(
      present: present & Present.retryAfter != 0, try buffer.takeOrdinal())
    let bindingItem = try buffer.take(UInt8.self)
    decision.binding = try buffer.takeOptionalName()
    let count = try buffer.takeCount(
      UInt8.self, max: WireLimits.itemsMax, each: 34, of: "items", error: .tooManyItems)
    if bindingItem != noItem {
      guard bindingItem < WireLimits.itemsMax else {
        throw .refused(.badRequest, "binding item \(bindingItem)")
      }
      decision.bindingItem = Int(bindingItem)
    }
    decision.items.reserveCapacity(count)
    for _ in 0..<count { decision.items.append(try decodeItem(from: &buffer)) }
    if buffer.readableBytes > 0 { try buffer.takeUnknownFields() }
    return .decision(decision)
  }

  private static func decodeItem(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> Decision.ItemState {
    let present = try buffer.take(UInt8.self)
    guard present & ~ItemPresent.all == 0 else {
      throw .refused(.badRequest, "reserved bits of an item are not zero")
    }
    let remaining = try buffer.takeOptional(
      present: present & ItemPresent.remaining != 0, try buffer.takeAmount())
    let settled = try buffer.takeQuantity()
    let held = try buffer.takeAmount()
    let reset = try buffer.takeOptional(
      present: present & ItemPresent.reset != 0, try buffer.takeOrdinal())
    return Decision.ItemState(
      limit: try buffer.takeOptionalName(), remaining: remaining, settled: settled, held: held,
      reset: reset.map { WallTime(milliseconds: $0) })
  }
}

extension ByteBuffer {
  /// A value that is always there, and zero where it means nothing.
  func takeOptional(present: Bool, _ value: Int64) throws(WireError) -> Int64? {
    if present { return value }
    guard value == 0 else { throw .refused(.badRequest, "an absent value is not zero") }
    return nil
  }
}

package struct DecisionBatch: OpcodeMessage {
  package static let opcode = Opcode.decisions
  package var records: [DecisionRecord]

  package init(_ records: [DecisionRecord]) { self.records = records }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(UInt16(records.count))
    buffer.put(UInt16(0))
    for record in records { record.encode(into: &buffer) }
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> DecisionBatch {
    let count = try buffer.takeCount(
      UInt16.self, max: WireLimits.recordsMax, each: DecisionRecord.bytesMin, of: "records")
    try buffer.takeReserved(2)
    var records: [DecisionRecord] = []
    records.reserveCapacity(count)
    for _ in 0..<count {
      let length = Int(try buffer.take(UInt16.self))
      guard var slice = buffer.readSlice(length: length) else { throw .truncated }
      records.append(try DecisionRecord.decode(from: &slice))
    }
    try buffer.requireEnd(of: "the batch")
    return DecisionBatch(records)
  }
}
