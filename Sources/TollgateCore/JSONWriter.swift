// Writes a document as JSON. The compact form is deterministic (members in their own order, no
// spaces), so equal documents give equal bytes: configuration is compared and audited as text.

extension Document {
  /// `pretty`: two spaces of indentation, one member a line, for people.
  package func json(pretty: Bool = false) -> String {
    var writer = JSONWriter(pretty: pretty)
    writer.write(self, indent: 0)
    return String(decoding: writer.bytes, as: UTF8.self)
  }

  package func jsonBytes() -> [UInt8] {
    var writer = JSONWriter(pretty: false)
    writer.write(self, indent: 0)
    return writer.bytes
  }
}

private struct JSONWriter {
  let pretty: Bool
  var bytes: [UInt8] = []

  init(pretty: Bool) { self.pretty = pretty }

  mutating func write(_ value: Document, indent: Int) {
    switch value {
    case .null: bytes += "null".utf8
    case .bool(let flag): bytes += (flag ? "true" : "false").utf8
    case .integer(let integer): bytes += "\(integer)".utf8
    case .number(let text): bytes += text.utf8
    case .string(let text): write(text)
    case .list(let values):
      bytes.append(0x5B)
      for (index, value) in values.enumerated() {
        if index > 0 { bytes.append(0x2C) }
        breakLine(indent + 1)
        write(value, indent: indent + 1)
      }
      if !values.isEmpty { breakLine(indent) }
      bytes.append(0x5D)
    case .object(let members):
      bytes.append(0x7B)
      for (index, member) in members.enumerated() {
        if index > 0 { bytes.append(0x2C) }
        breakLine(indent + 1)
        write(member.key)
        bytes.append(0x3A)
        if pretty { bytes.append(0x20) }
        write(member.value, indent: indent + 1)
      }
      if !members.isEmpty { breakLine(indent) }
      bytes.append(0x7D)
    }
  }

  private mutating func breakLine(_ indent: Int) {
    guard pretty else { return }
    bytes.append(0x0A)
    bytes.append(contentsOf: repeatElement(0x20, count: 2 * indent))
  }

  private mutating func write(_ text: String) {
    bytes.append(0x22)
    for byte in text.utf8 {
      switch byte {
      case 0x22: bytes += [0x5C, 0x22]
      case 0x5C: bytes += [0x5C, 0x5C]
      case 0x0A: bytes += [0x5C, 0x6E]
      case 0x0D: bytes += [0x5C, 0x72]
      case 0x09: bytes += [0x5C, 0x74]
      case 0..<0x20, 0x7F:
        let hex = Array("0123456789abcdef".utf8)
        bytes += [0x5C, 0x75, 0x30, 0x30, hex[Int(byte >> 4)], hex[Int(byte & 15)]]
      default: bytes.append(byte)
      }
    }
    bytes.append(0x22)
  }
}
