// The opaque part of a delta: written once by the sidecar that made it, stored in the outbox,
// read by the ledger. It is a field list, so that a release that knows more can say more; whoever
// only forwards it (Redis, a shipper) keeps bytes it has never heard of.

package import NIOCore
package import TollgateCore

extension UsageBody {
  private enum Tag {
    static let subject: UInt16 = 1
    static let feature: UInt16 = 2
    static let period: UInt16 = 3
    static let cells: UInt16 = 4
    static let catalogVersion: UInt16 = 5
    static let source: UInt16 = 6
    static let attributes: UInt16 = 7
    static let traceParent: UInt16 = 8
    static let parts: UInt16 = 9
    static let charges: UInt16 = 10
    static let corrects: UInt16 = 11
    static let note: UInt16 = 12
  }

  /// Fields 5 to 8: what a sidecar knows where a script knows the rest.
  package static func commonFields(
    catalogVersion: Int64, source: Source, attributes: [String: String], traceParent: String
  ) -> [UInt8] {
    var buffer = ByteBuffer()
    buffer.putField(Tag.catalogVersion) { $0.put(catalogVersion) }
    buffer.putField(Tag.source) { $0.put(source.rawValue) }
    if !attributes.isEmpty { buffer.putField(Tag.attributes) { $0.putAttributes(attributes) } }
    if !traceParent.isEmpty { buffer.putField(Tag.traceParent, text: traceParent) }
    return Array(buffer.readableBytesView)
  }

  package func encode() -> [UInt8] {
    var buffer = ByteBuffer()
    buffer.reserveCapacity(minimumWritableBytes: 160)
    encode(into: &buffer)
    return Array(buffer.readableBytesView)
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.putField(Tag.subject, text: subject.path)
    buffer.putField(Tag.feature, text: feature.text)
    buffer.putField(Tag.period) { $0.put(period) }
    buffer.putField(Tag.cells) { buffer in
      buffer.put(UInt8(cells.count))
      for cell in cells {
        buffer.put(UInt8(cell.level))
        buffer.put(cell.window)
        buffer.put(cell.period)
      }
    }
    buffer.putField(Tag.catalogVersion) { $0.put(catalogVersion) }
    buffer.putField(Tag.source) { $0.put(source.rawValue) }
    if !attributes.isEmpty { buffer.putField(Tag.attributes) { $0.putAttributes(attributes) } }
    if !traceParent.isEmpty { buffer.putField(Tag.traceParent, text: traceParent) }
    if !parts.isEmpty { buffer.putField(Tag.parts) { $0.put(parts) } }
    if !charges.isEmpty { buffer.putField(Tag.charges) { $0.put(charges) } }
    if let corrects { buffer.putField(Tag.corrects) { $0.put(corrects) } }
    if !note.isEmpty { buffer.putField(Tag.note, text: note) }
  }

  package static func decode(_ bytes: [UInt8]) throws(WireError) -> UsageBody {
    var buffer = ByteBuffer(bytes: bytes)
    var subject: Subject?
    var feature: Name?
    var period: Period?
    var cells: [CellReference] = []
    var catalogVersion: Int64 = 0
    var source = Source.redis
    var attributes: [String: String] = [:]
    var traceParent = ""
    var parts: [CountedPart] = []
    var charges: [RateCharge] = []
    var corrects: OperationID?
    var note = ""
    try buffer.takeFields { (tag, field) throws(WireError) in
      switch tag {
      case Tag.subject: subject = try field.takeSubject(field.readableBytes)
      case Tag.feature: feature = try field.takeWholeName()
      case Tag.period: period = try field.takePeriod()
      case Tag.cells: cells = try field.takeCells()
      case Tag.catalogVersion: catalogVersion = try field.takeOrdinal()
      case Tag.source:
        guard let known = Source(rawValue: try field.take()) else {
          throw .refused(.badRequest, "unknown source")
        }
        source = known
      case Tag.attributes: attributes = try field.takeAttributes()
      case Tag.traceParent: traceParent = try field.takeTraceParent()
      case Tag.parts: parts = try field.takeParts()
      case Tag.charges: charges = try field.takeCharges()
      case Tag.corrects: corrects = try field.takeOperationID()
      case Tag.note: note = try field.takeWholeText(max: WireLimits.auditReasonBytesMax)
      default: return false
      }
      return true
    }
    guard let subject, let feature, let period else {
      throw .refused(.badRequest, "a usage body without subject, feature or period")
    }
    return UsageBody(
      subject: subject, feature: feature, period: period, cells: cells,
      catalogVersion: catalogVersion, source: source, attributes: attributes,
      traceParent: traceParent, parts: parts, charges: charges, corrects: corrects, note: note)
  }
}

extension ConfigDelta {
  private enum Tag {
    static let scope: UInt16 = 1
    static let key: UInt16 = 2
    static let version: UInt16 = 3
    static let action: UInt16 = 4
    static let actor: UInt16 = 5
    static let reason: UInt16 = 6
    static let before: UInt16 = 7
    static let after: UInt16 = 8
    static let fingerprint: UInt16 = 9
  }

  package func encode() -> [UInt8] {
    var buffer = ByteBuffer()
    buffer.reserveCapacity(minimumWritableBytes: 256 + before.utf8.count + after.utf8.count)
    buffer.putField(Tag.scope, text: scope.rawValue)
    buffer.putField(Tag.key, text: key)
    buffer.putField(Tag.version) { $0.put(version) }
    buffer.putField(Tag.action, text: action)
    buffer.putField(Tag.actor, text: actor)
    buffer.putField(Tag.reason, text: reason)
    buffer.putField(Tag.before, text: before)
    buffer.putField(Tag.after, text: after)
    if fingerprint != 0 { buffer.putField(Tag.fingerprint) { $0.put(fingerprint) } }
    return Array(buffer.readableBytesView)
  }

  package static func decode(_ bytes: [UInt8]) throws(WireError) -> ConfigDelta {
    var buffer = ByteBuffer(bytes: bytes)
    var scope: Scope?
    var version: Int64?
    var fingerprint: UInt64 = 0
    var texts = ["", "", "", "", "", ""]
    try buffer.takeFields { (tag, field) throws(WireError) in
      switch tag {
      case Tag.scope:
        guard let known = Scope(rawValue: try field.takeWholeText(max: 16)) else {
          throw .refused(.badRequest, "unknown configuration scope")
        }
        scope = known
      case Tag.version: version = try field.takeOrdinal()
      case Tag.key: texts[0] = try field.takeWholeText(max: WireLimits.auditNameBytesMax)
      case Tag.action: texts[1] = try field.takeWholeText(max: WireLimits.auditNameBytesMax)
      case Tag.actor: texts[2] = try field.takeWholeText(max: WireLimits.auditNameBytesMax)
      case Tag.reason: texts[3] = try field.takeWholeText(max: WireLimits.auditReasonBytesMax)
      case Tag.before: texts[4] = try field.takeWholeText(max: WireLimits.deltaBodyBytesMax)
      case Tag.after: texts[5] = try field.takeWholeText(max: WireLimits.deltaBodyBytesMax)
      case Tag.fingerprint: fingerprint = try field.take(UInt64.self)
      default: return false
      }
      return true
    }
    guard let scope, let version else {
      throw .refused(.badRequest, "a configuration delta without scope or version")
    }
    return ConfigDelta(
      scope: scope, key: texts[0], version: version, action: texts[1], actor: texts[2],
      reason: texts[3], before: texts[4], after: texts[5], fingerprint: fingerprint)
  }
}

extension ByteBuffer {
  mutating func takeWholeText(max: Int) throws(WireError) -> String {
    guard readableBytes <= max else {
      throw .refused(.badRequest, "a text of \(readableBytes) bytes; at most \(max) allowed")
    }
    return try takeUTF8(readableBytes)
  }

  mutating func takeWholeName() throws(WireError) -> Name {
    let text = try takeWholeText(max: Name.bytesMax)
    do throws(InvalidName) {
      return try Name(text)
    } catch {
      throw .refused(.invalidName, error.description)
    }
  }

  mutating func takeCells() throws(WireError) -> [CellReference] {
    let count = try takeCount(UInt8.self, max: WireLimits.cellsMax, each: 19, of: "cells")
    var cells: [CellReference] = []
    cells.reserveCapacity(count)
    for _ in 0..<count {
      cells.append(
        CellReference(
          level: try takeLevel(), window: try takeWindow(), period: try takePeriod()))
    }
    return cells
  }

  private mutating func takeLevel() throws(WireError) -> Int {
    let level = Int(try take(UInt8.self))
    guard level >= 1, level <= Subject.levelsMax else {
      throw .refused(.badRequest, "level \(level)")
    }
    return level
  }

  mutating func takeParts() throws(WireError) -> [CountedPart] {
    let count = try takeCount(UInt8.self, max: WireLimits.partsMax, each: 27, of: "parts")
    var parts: [CountedPart] = []
    parts.reserveCapacity(count)
    for _ in 0..<count {
      parts.append(
        CountedPart(
          level: try takeLevel(), window: try takeWindow(), period: try takePeriod(),
          amount: try takeQuantity()))
    }
    return parts
  }

  mutating func put(_ parts: [CountedPart]) {
    put(UInt8(parts.count))
    for part in parts {
      put(UInt8(part.level))
      put(part.window)
      put(part.period)
      put(part.amount)
    }
  }

  mutating func takeCharges() throws(WireError) -> [RateCharge] {
    let count = try takeCount(UInt8.self, max: WireLimits.chargesMax, each: 26, of: "charges")
    var charges: [RateCharge] = []
    charges.reserveCapacity(count)
    for _ in 0..<count {
      charges.append(
        RateCharge(
          rate: try takeName(), from: try takeTime(), units: try takeQuantity(),
          charge: try takeQuantity()))
    }
    return charges
  }

  mutating func put(_ charges: [RateCharge]) {
    put(UInt8(charges.count))
    for charge in charges {
      put(charge.rate)
      put(charge.from.milliseconds)
      put(charge.units)
      put(charge.charge)
    }
  }
}
