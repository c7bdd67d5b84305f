// Field lists: the part of a message that can grow without a new version. A field is a tag, a
// length and that many bytes. Bit 15 of the tag says *critical*: a receiver that does not know
// the tag must refuse. Other unknown fields are skipped, and whoever forwards the opaque bytes
// forwards them too.

import NIOCore
import TollgateCore

enum FieldTag {
  static let criticalBit: UInt16 = 0x8000
  /// A length of this value says that the real one follows in 32 bits.
  static let longLength: UInt16 = 0xFFFF
}

extension ByteBuffer {
  /// Reads fields up to the end of this buffer. `known` handles a field it knows and says so; it
  /// is handed the tag without the critical bit and exactly the field's bytes, all of which it
  /// must consume.
  mutating func takeFields(
    _ known: (UInt16, inout ByteBuffer) throws(WireError) -> Bool
  ) throws(WireError) {
    var last = -1
    var count = 0
    while readableBytes > 0 {
      let raw = try take(UInt16.self)
      let tag = raw & ~FieldTag.criticalBit
      guard Int(tag) > last else {
        throw .refused(.badRequest, "field \(tag) is repeated or out of order")
      }
      last = Int(tag)
      count += 1
      guard count <= WireLimits.fieldsMax else {
        throw .refused(.badRequest, "more than \(WireLimits.fieldsMax) fields")
      }
      var length = Int(try take(UInt16.self))
      if length == Int(FieldTag.longLength) {
        length = Int(try take(UInt32.self))
        guard length >= Int(FieldTag.longLength) else {
          throw .refused(.badRequest, "a short field has a long length")
        }
      }
      guard var field = readSlice(length: length) else { throw .truncated }
      if try known(tag, &field) {
        try field.requireEnd(of: "field \(tag)")
      } else if raw & FieldTag.criticalBit != 0 {
        throw .refused(.unknownCriticalField, "field \(tag) is critical and not known here")
      }
    }
  }

  /// The tail of a message for which no field is defined yet.
  mutating func takeUnknownFields() throws(WireError) {
    try takeFields { (_, _) throws(WireError) in false }
  }

  mutating func putField(_ tag: UInt16, _ body: (inout ByteBuffer) -> Void) {
    put(tag)
    let lengthIndex = writerIndex
    put(UInt16(0))
    let start = writerIndex
    body(&self)
    setInteger(UInt16(writerIndex - start), at: lengthIndex, endianness: .little)
  }

  /// A text of any length.
  mutating func putField(_ tag: UInt16, text: String) {
    put(tag)
    let count = text.utf8.count
    if count < Int(FieldTag.longLength) {
      put(UInt16(count))
    } else {
      put(FieldTag.longLength)
      put(UInt32(count))
    }
    writeString(text)
  }

  mutating func takeAttributes() throws(WireError) -> [String: String] {
    let count = try takeCount(
      UInt8.self, max: WireLimits.attributesMax, each: 3, of: "attributes")
    var attributes: [String: String] = [:]
    attributes.reserveCapacity(count)
    var last: Name?
    for _ in 0..<count {
      let key = try takeName()
      if let last, !(last < key) {
        throw .refused(.badRequest, "attribute \(key) is repeated or out of order")
      }
      last = key
      attributes[key.text] = try takeText(UInt8.self, max: WireLimits.attributeValueBytesMax)
    }
    return attributes
  }

  mutating func putAttributes(_ attributes: [String: String]) {
    put(UInt8(attributes.count))
    for (key, value) in attributes.sorted(by: { $0.key < $1.key }) {
      put(key, UInt8.self, max: Name.bytesMax)
      put(value, UInt8.self, max: WireLimits.attributeValueBytesMax)
    }
  }
}
