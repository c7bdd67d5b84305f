// The little of MessagePack that scripts and sidecar exchange: integers and byte strings, one
// after another, no containers.
//
// Why this shape: Lua's `cmsgpack` packs and unpacks such a run in one C call, keeps integers up to
// 2^53 − 1 exact (unlike `tostring`), and stores small numbers in one byte. A run of forty values
// costs Redis less than forty arguments would.
//
// Promise: reading never traps; what does not parse is nil.

package struct MessagePackWriter: Sendable {
  package private(set) var bytes: [UInt8] = []

  package init(capacity: Int = 64) { bytes.reserveCapacity(capacity) }

  package mutating func append(_ value: Int64) {
    if value >= 0 {
      switch value {
      case 0..<128: bytes.append(UInt8(value))
      case 128..<256: number(0xCC, UInt64(value), 1)
      case 256..<65536: number(0xCD, UInt64(value), 2)
      case 65536..<4_294_967_296: number(0xCE, UInt64(value), 4)
      default: number(0xCF, UInt64(value), 8)
      }
    } else if value >= -32 {
      bytes.append(UInt8(bitPattern: Int8(value)))
    } else {
      number(0xD3, UInt64(bitPattern: value), 8)
    }
  }

  package mutating func append(_ value: Int) { append(Int64(value)) }

  package mutating func append(_ text: String) {
    header(text.utf8.count)
    bytes.append(contentsOf: text.utf8)
  }

  package mutating func append(_ raw: [UInt8]) {
    header(raw.count)
    bytes.append(contentsOf: raw)
  }

  /// Bytes as they are, in front of the first value.
  package mutating func append(unframed raw: [UInt8]) { bytes.append(contentsOf: raw) }

  private mutating func header(_ count: Int) {
    switch count {
    case 0..<32: bytes.append(0xA0 | UInt8(count))
    case 32..<65536: number(0xDA, UInt64(count), 2)
    default: number(0xDB, UInt64(count), 4)
    }
  }

  private mutating func number(_ tag: UInt8, _ value: UInt64, _ width: Int) {
    bytes.append(tag)
    for index in 0..<width {
      bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * (width - 1 - index))))
    }
  }
}

package struct MessagePackReader: Sendable {
  private let bytes: [UInt8]
  private var position: Int

  package init(_ bytes: [UInt8], from start: Int = 0) {
    self.bytes = bytes
    position = start
  }

  package var isAtEnd: Bool { position >= bytes.count }

  /// The next value where it is an integer.
  package mutating func integer() -> Int64? {
    guard let tag = byte() else { return nil }
    switch tag {
    case 0x00...0x7F: return Int64(tag)
    case 0xE0...0xFF: return Int64(Int8(bitPattern: tag))
    case 0xCC: return big(1).map { Int64($0) }
    case 0xCD: return big(2).map { Int64($0) }
    case 0xCE: return big(4).map { Int64($0) }
    case 0xCF: return big(8).flatMap { Int64(exactly: $0) }
    case 0xD0: return big(1).map { Int64(Int8(truncatingIfNeeded: $0)) }
    case 0xD1: return big(2).map { Int64(Int16(truncatingIfNeeded: $0)) }
    case 0xD2: return big(4).map { Int64(Int32(truncatingIfNeeded: $0)) }
    case 0xD3: return big(8).map { Int64(bitPattern: $0) }
    default: return nil
    }
  }

  /// The next value where it is a byte string.
  package mutating func raw() -> ArraySlice<UInt8>? {
    guard let tag = byte() else { return nil }
    let count: UInt64?
    switch tag {
    case 0xA0...0xBF: count = UInt64(tag & 0x1F)
    case 0xD9, 0xC4: count = big(1)
    case 0xDA, 0xC5: count = big(2)
    case 0xDB, 0xC6: count = big(4)
    default: count = nil
    }
    guard let count, count <= UInt64(bytes.count - position) else { return nil }
    defer { position += Int(count) }
    return bytes[position..<position + Int(count)]
  }

  package mutating func text() -> String? { raw().map { String(decoding: $0, as: UTF8.self) } }

  private mutating func byte() -> UInt8? {
    guard position < bytes.count else { return nil }
    defer { position += 1 }
    return bytes[position]
  }

  private mutating func big(_ width: Int) -> UInt64? {
    guard bytes.count - position >= width else { return nil }
    var value: UInt64 = 0
    for _ in 0..<width {
      value = value << 8 | UInt64(bytes[position])
      position += 1
    }
    return value
  }
}
