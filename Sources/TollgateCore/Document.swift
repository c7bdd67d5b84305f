// A document is a tree of plain values, as JSON and YAML both can say it. Everything structured
// that people write or read (catalogs, configurations, `--json` output) passes through this one
// shape, so that it is read strictly in one way wherever it came from: the YAML parser at the edge
// and the JSON reader of this module both end here. Objects keep their order. A number that is not
// a whole Int64 keeps its text: no floating point comes near a quantity (DESIGN promise 9), and a
// reader can name exactly what it rejects.

package enum Document: Hashable, Sendable {
  case null
  case bool(Bool)
  case integer(Int64)
  /// A number with a fraction or an exponent, or beyond Int64, as it was written.
  case number(String)
  case string(String)
  case list([Document])
  case object([Member])

  package struct Member: Hashable, Sendable {
    package var key: String
    package var value: Document

    package init(_ key: String, _ value: Document) {
      self.key = key
      self.value = value
    }
  }

  /// The deepest nesting that a reader accepts.
  package static let depthMax = 32

  /// The first member with this key; nil where there is none, or where this is no object.
  package subscript(key: String) -> Document? {
    guard case .object(let members) = self else { return nil }
    return members.first { $0.key == key }?.value
  }

  /// An object of those members whose value is not nil.
  package static func fields(_ pairs: KeyValuePairs<String, Document?>) -> Document {
    .object(pairs.compactMap { key, value in value.map { Member(key, $0) } })
  }

  package static func strings(_ values: some Sequence<String>) -> Document {
    .list(values.map { .string($0) })
  }

  package var isScalar: Bool {
    switch self {
    case .null, .bool, .integer, .number, .string: true
    case .list, .object: false
    }
  }

  /// A short rendering for messages: cut after 80 characters, since the value is foreign.
  package var excerpt: String {
    let text: String
    switch self {
    case .list(let values) where values.count > 8: text = "a list of \(values.count)"
    case .object(let members) where members.count > 8: text = "an object of \(members.count)"
    default: text = json()
    }
    return text.count <= 80 ? text : text.prefix(80) + "…"
  }
}

extension Document: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral,
  ExpressibleByBooleanLiteral, ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral,
  ExpressibleByNilLiteral
{
  package init(stringLiteral value: String) { self = .string(value) }
  package init(integerLiteral value: Int64) { self = .integer(value) }
  package init(booleanLiteral value: Bool) { self = .bool(value) }
  package init(arrayLiteral elements: Document...) { self = .list(elements) }
  package init(dictionaryLiteral elements: (String, Document)...) {
    self = .object(elements.map { Member($0.0, $0.1) })
  }
  package init(nilLiteral: ()) { self = .null }
}
