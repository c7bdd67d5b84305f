// A JSON document as a value: what the vectors' `fields` are compared with. Integers stay
// integers of 64 bits, signed or not; the protocol has no fractions.

struct JSONValueKey: CodingKey {
  let stringValue: String
  var intValue: Int? { nil }
  init(stringValue: String) { self.stringValue = stringValue }
  init?(intValue: Int) { nil }
}

enum JSONValue: Hashable, Sendable, Decodable {
  case null
  case bool(Bool)
  case integer(Int64)
  /// Above the range of Int64 only.
  case unsigned(UInt64)
  case text(String)
  case array([JSONValue])
  case object([String: JSONValue])

  init(from decoder: any Decoder) throws {
    if let container = try? decoder.container(keyedBy: JSONValueKey.self) {
      var object: [String: JSONValue] = [:]
      for key in container.allKeys {
        object[key.stringValue] = try container.decode(JSONValue.self, forKey: key)
      }
      self = .object(object)
      return
    }
    if var container = try? decoder.unkeyedContainer() {
      var array: [JSONValue] = []
      while !container.isAtEnd { array.append(try container.decode(JSONValue.self)) }
      self = .array(array)
      return
    }
    let container = try decoder.singleValueContainer()
    if container.decodeNil() {
      self = .null
    } else if let value = try? container.decode(Bool.self) {
      self = .bool(value)
    } else if let value = try? container.decode(Int64.self) {
      self = .integer(value)
    } else if let value = try? container.decode(UInt64.self) {
      self = .unsigned(value)
    } else {
      self = .text(try container.decode(String.self))
    }
  }

  init(_ value: some FixedWidthInteger) {
    if let signed = Int64(exactly: value) {
      self = .integer(signed)
    } else {
      self = .unsigned(UInt64(value))
    }
  }

  init<T: FixedWidthInteger>(_ value: T?) {
    if let value { self.init(value) } else { self = .null }
  }

  init(_ value: String?) {
    if let value { self = .text(value) } else { self = .null }
  }
}
