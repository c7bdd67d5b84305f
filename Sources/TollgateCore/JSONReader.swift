// A strict JSON reader (RFC 8259) over bytes. It exists because the core has no Foundation, and
// because the usual readers are lenient where this project must not be: a doubled key is an error
// here, a number is never rounded, and size and depth are bounded before anything is built.
// One pass, no backtracking; recursion is bounded by `Document.depthMax`.

package struct InvalidJSON: Error, Hashable, Sendable, CustomStringConvertible {
  /// Byte offset of the first byte that could not be understood.
  package let offset: Int
  package let reason: String

  package var description: String { "at byte \(offset): \(reason)" }
}

extension Document {
  /// The largest JSON text that is read unless the caller says otherwise: one frame.
  package static let jsonBytesMax = 1 << 20

  package init(json text: String, bytesMax: Int = jsonBytesMax) throws(InvalidJSON) {
    try self.init(json: Array(text.utf8), bytesMax: bytesMax)
  }

  package init(json bytes: [UInt8], bytesMax: Int = jsonBytesMax) throws(InvalidJSON) {
    guard bytes.count <= bytesMax else {
      throw InvalidJSON(offset: bytesMax, reason: "longer than \(bytesMax) bytes")
    }
    var reader = JSONReader(bytes: bytes)
    reader.skipSpace()
    let value = try reader.value(depth: 1)
    reader.skipSpace()
    guard reader.offset == bytes.count else { throw reader.error("text after the value") }
    self = value
  }
}

private struct JSONReader {
  let bytes: [UInt8]
  var offset = 0

  init(bytes: [UInt8]) { self.bytes = bytes }

  var next: UInt8? { offset < bytes.count ? bytes[offset] : nil }

  func error(_ reason: String) -> InvalidJSON { InvalidJSON(offset: offset, reason: reason) }

  mutating func skipSpace() {
    while let byte = next, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 {
      offset += 1
    }
  }

  mutating func take(_ byte: UInt8) -> Bool {
    guard next == byte else { return false }
    offset += 1
    return true
  }

  mutating func word(_ text: StaticString, _ value: Document) throws(InvalidJSON) -> Document {
    let start = offset
    for scalar in text.description.utf8 where !take(scalar) {
      offset = start
      throw error("not a value")
    }
    return value
  }

  mutating func value(depth: Int) throws(InvalidJSON) -> Document {
    guard depth <= Document.depthMax else {
      throw error("nested deeper than \(Document.depthMax)")
    }
    switch next {
    case 0x7B: return try object(depth: depth)
    case 0x5B: return try list(depth: depth)
    case 0x22: return .string(try string())
    case 0x74: return try word("true", .bool(true))
    case 0x66: return try word("false", .bool(false))
    case 0x6E: return try word("null", .null)
    case let byte? where byte == 0x2D || (byte >= 0x30 && byte <= 0x39): return try number()
    case nil: throw error("the text ends where a value is expected")
    default: throw error("not a value")
    }
  }

  mutating func object(depth: Int) throws(InvalidJSON) -> Document {
    offset += 1
    var members: [Document.Member] = []
    var keys: Set<String> = []
    skipSpace()
    if take(0x7D) { return .object(members) }
    while true {
      skipSpace()
      guard next == 0x22 else { throw error("expected a key") }
      let start = offset
      let key = try string()
      guard keys.insert(key).inserted else {
        throw InvalidJSON(offset: start, reason: "a key appears twice")
      }
      skipSpace()
      guard take(0x3A) else { throw error("expected ':'") }
      skipSpace()
      members.append(Document.Member(key, try value(depth: depth + 1)))
      skipSpace()
      if take(0x7D) { return .object(members) }
      guard take(0x2C) else { throw error("expected ',' or '}'") }
    }
  }

  mutating func list(depth: Int) throws(InvalidJSON) -> Document {
    offset += 1
    var values: [Document] = []
    skipSpace()
    if take(0x5D) { return .list(values) }
    while true {
      skipSpace()
      values.append(try value(depth: depth + 1))
      skipSpace()
      if take(0x5D) { return .list(values) }
      guard take(0x2C) else { throw error("expected ',' or ']'") }
    }
  }

  mutating func digits() throws(InvalidJSON) {
    let start = offset
    while let byte = next, byte >= 0x30, byte <= 0x39 { offset += 1 }
    guard offset > start else { throw error("expected a digit") }
  }

  mutating func number() throws(InvalidJSON) -> Document {
    let start = offset
    _ = take(0x2D)
    if take(0x30) {
      if let byte = next, byte >= 0x30, byte <= 0x39 { throw error("a number starts with 0") }
    } else {
      try digits()
    }
    var whole = true
    if take(0x2E) {
      whole = false
      try digits()
    }
    if let byte = next, byte == 0x65 || byte == 0x45 {
      whole = false
      offset += 1
      if next == 0x2B || next == 0x2D { offset += 1 }
      try digits()
    }
    let text = String(decoding: bytes[start..<offset], as: UTF8.self)
    if whole, let integer = Int64(text) { return .integer(integer) }
    return .number(text)
  }

  mutating func string() throws(InvalidJSON) -> String {
    let opening = offset
    offset += 1
    var text: [UInt8] = []
    while true {
      guard let byte = next else {
        throw InvalidJSON(offset: opening, reason: "a string without an end")
      }
      offset += 1
      switch byte {
      case 0x22:
        guard let valid = String(validating: text, as: UTF8.self) else {
          throw InvalidJSON(offset: opening, reason: "a string that is not UTF-8")
        }
        return valid
      case 0x5C: try escape(into: &text)
      case 0..<0x20:
        offset -= 1
        throw error("a control character in a string")
      default: text.append(byte)
      }
    }
  }

  mutating func escape(into text: inout [UInt8]) throws(InvalidJSON) {
    guard let byte = next else { throw error("the text ends in an escape") }
    offset += 1
    switch byte {
    case 0x22, 0x5C, 0x2F: text.append(byte)
    case 0x62: text.append(0x08)
    case 0x66: text.append(0x0C)
    case 0x6E: text.append(0x0A)
    case 0x72: text.append(0x0D)
    case 0x74: text.append(0x09)
    case 0x75:
      var code = UInt32(try hex())
      if code >= 0xD800, code <= 0xDBFF {
        guard take(0x5C), take(0x75) else { throw error("half a surrogate pair") }
        let low = UInt32(try hex())
        guard low >= 0xDC00, low <= 0xDFFF else { throw error("half a surrogate pair") }
        code = 0x1_0000 + (code - 0xD800) << 10 + (low - 0xDC00)
      }
      guard let scalar = Unicode.Scalar(code) else { throw error("half a surrogate pair") }
      text.append(contentsOf: String(Character(scalar)).utf8)
    default:
      offset -= 1
      throw error("an unknown escape")
    }
  }

  mutating func hex() throws(InvalidJSON) -> UInt16 {
    var code: UInt16 = 0
    for _ in 0..<4 {
      let digit: UInt16
      switch next {
      case let byte? where byte >= 0x30 && byte <= 0x39: digit = UInt16(byte - 0x30)
      case let byte? where byte >= 0x41 && byte <= 0x46: digit = UInt16(byte - 0x41 + 10)
      case let byte? where byte >= 0x61 && byte <= 0x66: digit = UInt16(byte - 0x61 + 10)
      default: throw error("expected four hex digits")
      }
      code = code << 4 | digit
      offset += 1
    }
    return code
  }
}
