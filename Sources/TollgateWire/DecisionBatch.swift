// DECISIONS: one answer per record of the request, in the request's order. An answer is a
// decision (allowed or denied) or an error (no decision was made for this record).
// What an answer must say always fits a frame; what it may say beside that is left out where a
// frame full of it would be longer than a client accepts.

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

  private enum Tag {
    static let expires: UInt16 = 1
    static let settlements: UInt16 = 2
    static let burns: UInt16 = 3
    static let derived: UInt16 = 4
  }

  /// How much is said, from everything down to what must be said.
  enum Detail: CaseIterable {
    case all
    /// Without what the grants covered.
    case noBurns
    /// Nor what is about derived items.
    case noDerivedItems
    /// Nor the states of the items.
    case noStates
  }

  func encode(into buffer: inout ByteBuffer, _ detail: Detail = .all) {
    buffer.putSized(UInt16.self) { buffer in
      switch self {
      case .error(let code, let message):
        buffer.put(code.rawValue)
        buffer.put(message, UInt16.self, max: WireLimits.messageBytesMax)
      case .decision(let decision):
        buffer.put(UInt16(0))
        Self.encode(decision, into: &buffer, detail)
      }
    }
  }

  private static func encode(
    _ decision: Decision, into buffer: inout ByteBuffer, _ detail: Detail
  ) {
    let derivedCount = detail == .all || detail == .noBurns ? 0 : decision.derived.count
    let items = detail == .noStates ? [] : decision.items.dropLast(derivedCount)
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
    buffer.put(UInt8(items.count))
    for item in items {
      buffer.put(
        (item.remaining == nil ? 0 : ItemPresent.remaining)
          | (item.reset == nil ? 0 : ItemPresent.reset))
      buffer.put(item.remaining ?? 0)
      buffer.put(item.settled)
      buffer.put(item.held)
      buffer.put(item.reset?.milliseconds ?? 0)
      buffer.put(item.limit)
    }
    if let expires = decision.expires {
      buffer.putField(Tag.expires) { $0.put(expires.milliseconds) }
    }
    if !decision.settlements.isEmpty {
      buffer.putField(Tag.settlements) { buffer in
        let settlements = decision.settlements.dropLast(derivedCount)
        buffer.put(UInt8(settlements.count))
        for settlement in settlements {
          buffer.put(settlement.actual)
          buffer.put(settlement.charged)
          buffer.put(settlement.absorbed)
        }
      }
    }
    if detail == .all, !decision.burns.isEmpty {
      buffer.putField(Tag.burns) { buffer in
        let burns = decision.burns.prefix(WireLimits.burnsMax)
        buffer.put(UInt8(burns.count))
        for burn in burns {
          buffer.put(UInt8(burn.item))
          buffer.put(burn.grant)
          buffer.put(burn.amount)
        }
      }
    }
    if derivedCount == 0, !decision.derived.isEmpty {
      buffer.putField(Tag.derived) { buffer in
        buffer.put(UInt8(decision.derived.count))
        for feature in decision.derived { buffer.put(feature) }
      }
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
    if buffer.readableBytes > 0 { try decodeFields(of: &decision, from: &buffer) }
    return .decision(decision)
  }

  private static func decodeFields(
    of decision: inout Decision, from buffer: inout ByteBuffer
  ) throws(WireError) {
    try buffer.takeFields { (tag, field) throws(WireError) in
      switch tag {
      case Tag.expires: decision.expires = try field.takeTime()
      case Tag.settlements: decision.settlements = try field.takeSettlements()
      case Tag.burns: decision.burns = try field.takeBurns()
      case Tag.derived: decision.derived = try field.takeDerived()
      default: return false
      }
      return true
    }
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
  fileprivate mutating func takeSettlements() throws(WireError) -> [Decision.Settlement] {
    let count = try takeCount(
      UInt8.self, max: WireLimits.itemsMax, each: 24, of: "settled items", error: .tooManyItems)
    var settlements: [Decision.Settlement] = []
    settlements.reserveCapacity(count)
    for _ in 0..<count {
      let settlement = Decision.Settlement(
        actual: try takeQuantity(), charged: try takeQuantity())
      guard try takeQuantity() == settlement.absorbed else {
        throw .refused(.badRequest, "what is absorbed is not what was not charged")
      }
      settlements.append(settlement)
    }
    return settlements
  }

  fileprivate mutating func takeBurns() throws(WireError) -> [Decision.Burn] {
    let count = try takeCount(UInt8.self, max: WireLimits.burnsMax, each: 10, of: "burns")
    var burns: [Decision.Burn] = []
    burns.reserveCapacity(count)
    for _ in 0..<count {
      let item = Int(try take(UInt8.self))
      guard item < WireLimits.itemsMax else {
        throw .refused(.badRequest, "a burn of item \(item)")
      }
      burns.append(
        Decision.Burn(item: item, grant: try takeOptionalName(), amount: try takeQuantity()))
    }
    return burns
  }

  fileprivate mutating func takeDerived() throws(WireError) -> [Name] {
    let count = try takeCount(
      UInt8.self, max: WireLimits.itemsMax, each: 2, of: "derived items", error: .tooManyItems)
    var derived: [Name] = []
    derived.reserveCapacity(count)
    for _ in 0..<count { derived.append(try takeName()) }
    return derived
  }

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
    let start = buffer.writerIndex
    for detail in DecisionRecord.Detail.allCases {
      buffer.moveWriterIndex(to: start)
      buffer.put(UInt16(records.count))
      buffer.put(UInt16(0))
      for record in records { record.encode(into: &buffer, detail) }
      let bytes = buffer.writerIndex - start + FrameHeader.bytes
      if bytes <= WireLimits.frameBytesMax { return }
    }
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
