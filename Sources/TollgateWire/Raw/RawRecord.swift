// Records of CHECK and CONSUME where they lie, for whoever answers from memory: no buffer, no
// array, no string. What it reads is a *shape*, all of a record but its id, its amounts and its
// trace parent, as bytes that are equal exactly where two requests ask for the same thing of the
// same subject; a shape is only ever looked up among those that came out of records which the whole
// decoder has accepted (`OperationRecord`). So nothing here judges names or subjects: what is not
// as expected is not read (nil), and the other path says what is wrong with it.
//
// Memory: `bytes` is read only inside its bounds, which each step compares with what it needs
// before it reads; `shape` is written only up to its length. Nothing is kept.

private import NIOCore
package import TollgateCore

/// The records of a frame, one after another.
@safe package struct RawRecords {
  private let bytes: UnsafeRawBufferPointer
  private var offset: Int
  /// Records not asked for yet.
  package private(set) var left: Int

  /// nil: this is no batch of records, or not one of `max` at most. `payload` must outlive this.
  @inlinable
  package init?(_ payload: UnsafeRawBufferPointer, max: Int) {
    guard payload.count >= 4 else { return nil }
    let count = unsafe Int(UInt16(littleEndian: payload.loadUnaligned(as: UInt16.self)))
    let reserved = unsafe payload.loadUnaligned(fromByteOffset: 2, as: UInt16.self)
    guard count >= 1, count <= max, reserved == 0 else { return nil }
    // That each record lies inside the frame, and that the frame ends with the last.
    var offset = 4
    for _ in 0..<count {
      guard offset + 2 <= payload.count else { return nil }
      offset +=
        unsafe 2
        + Int(
          UInt16(littleEndian: payload.loadUnaligned(fromByteOffset: offset, as: UInt16.self)))
    }
    guard offset == payload.count else { return nil }
    unsafe bytes = payload
    self.offset = 4
    left = count
  }

  /// The record of a batch that has just one; nil: it has not.
  @inlinable
  package static func only(_ payload: UnsafeRawBufferPointer) -> UnsafeRawBufferPointer? {
    guard payload.count >= 6,
      unsafe UInt32(littleEndian: payload.loadUnaligned(as: UInt32.self)) == 1,
      unsafe Int(UInt16(littleEndian: payload.loadUnaligned(fromByteOffset: 4, as: UInt16.self)))
        == payload.count - 6
    else { return nil }
    return unsafe UnsafeRawBufferPointer(rebasing: payload[6...])
  }

  /// The bytes of the next record; nil after the last.
  @inlinable
  package mutating func next() -> UnsafeRawBufferPointer? {
    guard left > 0 else { return nil }
    left -= 1
    let length = unsafe Int(
      UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt16.self)))
    let start = offset + 2
    offset = start + length
    return unsafe UnsafeRawBufferPointer(rebasing: bytes[start..<offset])
  }
}

package struct RawRecord {
  /// Longer shapes are for the other path.
  package static let shapeBytesMax = 512
  /// More items are for the other path.
  package static let itemsMax = 4

  package var id: OperationID
  package var shapeBytes: Int
  /// The shape lies in the record as it is, from `shapeStart` on: nothing was written.
  package var isInPlace = false
  package var items: Int
  /// Those of the items, and zeros.
  package var amounts: InlineArray<4, Int64>

  @usableFromInline static var shapeStart: Int { 16 }

  /// The shape, where `init` found or wrote it: the same two memories.
  @inlinable
  package func shape(
    _ bytes: UnsafeRawBufferPointer, _ shape: UnsafeMutableRawBufferPointer
  ) -> UnsafeRawBufferPointer {
    isInPlace
      ? unsafe UnsafeRawBufferPointer(
        rebasing: bytes[Self.shapeStart..<Self.shapeStart + shapeBytes])
      : unsafe UnsafeRawBufferPointer(rebasing: shape[0..<shapeBytes])
  }

  /// Reads a record whose fields are all known here, and writes its shape, unless that lies in the
  /// record as it is (one item, nothing behind it); nil: it is for the other
  /// path. `shape` has `shapeBytesMax` bytes.
  @inlinable
  package init?(_ bytes: UnsafeRawBufferPointer, shape: UnsafeMutableRawBufferPointer) {
    // Id, length of the subject.
    guard bytes.count >= 16 + 2, shape.count >= Self.shapeBytesMax else { return nil }
    id = unsafe OperationID(
      high: UInt64(bigEndian: bytes.loadUnaligned(as: UInt64.self)),
      low: UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self)))
    let subject = unsafe Int(
      UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: 16, as: UInt16.self)))
    var offset = 18 + subject
    guard offset < bytes.count else { return nil }
    items = unsafe Int(bytes[offset])
    guard items >= 1, items <= Self.itemsMax else { return nil }
    offset += 1
    amounts = InlineArray(repeating: 0)
    if items == 1, offset < bytes.count {
      let end = unsafe offset + 1 + Int(bytes[offset])
      if end + 8 == bytes.count {
        let amount = unsafe Int64(
          littleEndian: bytes.loadUnaligned(fromByteOffset: end, as: Int64.self))
        shapeBytes = end - Self.shapeStart
        guard amount >= 0, amount <= Quantity.maximum, shapeBytes <= Self.shapeBytesMax else {
          return nil
        }
        amounts[0] = amount
        isInPlace = true
        return
      }
    }
    var written = offset - Self.shapeStart
    guard written <= Self.shapeBytesMax else { return nil }
    unsafe shape.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[Self.shapeStart..<offset]))
    for item in 0..<items {
      guard offset < bytes.count else { return nil }
      let name = unsafe 1 + Int(bytes[offset])
      guard offset + name + 8 <= bytes.count, written + name <= Self.shapeBytesMax else {
        return nil
      }
      unsafe UnsafeMutableRawBufferPointer(rebasing: shape[written...])
        .copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + name]))
      written += name
      offset += name
      let amount = unsafe Int64(
        littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: Int64.self))
      guard amount >= 0, amount <= Quantity.maximum else { return nil }
      amounts[item] = amount
      offset += 8
    }
    shapeBytes = written
    if offset < bytes.count {
      guard let end = unsafe Self.fields(bytes, from: offset, into: shape, at: written) else {
        return nil
      }
      shapeBytes = end
    }
  }

  /// Attributes are part of the shape, a trace parent is not; any other field is for the other
  /// path, and so is one that is long, or out of order.
  @usableFromInline
  static func fields(
    _ bytes: UnsafeRawBufferPointer, from start: Int, into shape: UnsafeMutableRawBufferPointer,
    at place: Int
  ) -> Int? {
    var (offset, written, last) = (start, place, 0)
    while offset < bytes.count {
      guard offset + 4 <= bytes.count else { return nil }
      let tag = unsafe Int(
        UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt16.self)))
      let length = unsafe Int(
        UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: offset + 2, as: UInt16.self)))
      let end = offset + 4 + length
      guard tag > last, end <= bytes.count, length < Int(FieldTag.longLength) else { return nil }
      last = tag
      switch UInt16(tag) {
      case RecordTag.attributes:
        guard written + 4 + length <= shapeBytesMax else { return nil }
        unsafe UnsafeMutableRawBufferPointer(rebasing: shape[written...])
          .copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[offset..<end]))
        written += 4 + length
      case RecordTag.traceParent:
        guard length <= WireLimits.traceParentBytesMax else { return nil }
      default: return nil
      }
      offset = end
    }
    return written
  }
}

extension OperationRecord {
  /// The shape of a record that was decoded, as `RawRecord` reads it from the same record's bytes;
  /// nil where it would not.
  package var shape: [UInt8]? {
    var buffer = ByteBuffer()
    encodeRecord(into: &buffer)
    var shape = [UInt8](repeating: 0, count: RawRecord.shapeBytesMax)
    return unsafe shape.withUnsafeMutableBytes { shape in
      unsafe buffer.withUnsafeReadableBytes { bytes in
        unsafe RawRecord(bytes, shape: shape).map { raw in
          unsafe Array(raw.shape(bytes, shape))
        }
      }
    }
  }
}

extension OperationRecord {
  /// What a shape asks for: a record without an id, of nothing.
  package init(shape: [UInt8]) throws(WireError) {
    var buffer = ByteBuffer(bytes: shape)
    let subject = try buffer.takeSubject()
    let count = Int(try buffer.take(UInt8.self))
    guard (1...RawRecord.itemsMax).contains(count) else {
      throw .refused(.badRequest, "a shape of \(count) items")
    }
    var items: [Item] = []
    for _ in 0..<count { items.append(Item(feature: try buffer.takeName(), amount: 0)) }
    var attributes: [String: String] = [:]
    try buffer.takeFields { (tag, field) throws(WireError) in
      guard tag == RecordTag.attributes else { return false }
      attributes = try field.takeAttributes()
      return true
    }
    self.init(
      id: OperationID(high: 0, low: 0), subject: subject, items: items, attributes: attributes)
  }
}
