// Codable over `Document`, so that admin messages are plain Swift structs and their JSON still goes
// through Core's one strict reader and deterministic writer. Key rules of the protocol are applied
// here and nowhere else: names in snake_case, `…Milliseconds` and instants end in `_ms`, an absent
// key is nil, members in the order of declaration. Unknown members of a request are refused by
// name (a misspelt `dry_run` must not become a real run); replies may grow.

package import TollgateCore

package enum DocumentKey {
  /// `sourceID` → `source_id`, `waitMilliseconds` → `wait_ms`; an instant gets `_ms` at its end.
  package static func text(of name: String, isInstant: Bool) -> String {
    var text = ""
    var previousIsUpper = true
    for character in name {
      if character.isUppercase {
        if !previousIsUpper { text.append("_") }
        text.append(contentsOf: character.lowercased())
        previousIsUpper = true
      } else {
        text.append(character)
        previousIsUpper = false
      }
    }
    if text.hasSuffix("milliseconds") {
      text = String(text.dropLast("milliseconds".count)) + "ms"
    }
    return isInstant ? text + "_ms" : text
  }
}

extension Document: Codable {
  package init(from decoder: any Decoder) throws {
    guard let decoder = decoder as? DocumentDecoder else {
      throw DecodingError.dataCorrupted(
        .init(codingPath: decoder.codingPath, debugDescription: "documents nest in documents"))
    }
    self = decoder.value
  }

  package func encode(to encoder: any Encoder) throws {
    guard let encoder = encoder as? DocumentEncoder else {
      throw EncodingError.invalidValue(
        self,
        .init(codingPath: encoder.codingPath, debugDescription: "documents nest in documents"))
    }
    encoder.sink.value = self
  }

  package init(encoding value: some Encodable) throws {
    let encoder = DocumentEncoder(codingPath: [])
    try value.encode(to: encoder)
    self = encoder.sink.finished
  }

  /// `strict`: members that the type does not ask for are an error.
  package func decode<Value: Decodable>(
    _: Value.Type, strict: Bool = false
  ) throws -> Value {
    let decoder = DocumentDecoder(value: self, codingPath: [], strict: strict)
    return try decoder.read(Value.self)
  }
}

// MARK: - Encoding

/// Where one value is put together; shared by the containers that write it.
private final class Sink {
  var value: Document = .null
  var members: [(String, Sink)]?
  var elements: [Sink]?

  var finished: Document {
    if let members { return .object(members.map { Document.Member($0.0, $0.1.finished) }) }
    if let elements { return .list(elements.map(\.finished)) }
    return value
  }
}

private final class DocumentEncoder: Encoder {
  let codingPath: [any CodingKey]
  var userInfo: [CodingUserInfoKey: Any] { [:] }
  let sink: Sink

  init(codingPath: [any CodingKey], sink: Sink = Sink()) {
    self.codingPath = codingPath
    self.sink = sink
  }

  func container<Key: CodingKey>(keyedBy _: Key.Type) -> KeyedEncodingContainer<Key> {
    if sink.members == nil { sink.members = [] }
    return KeyedEncodingContainer(KeyedEncoding<Key>(codingPath: codingPath, sink: sink))
  }

  func unkeyedContainer() -> any UnkeyedEncodingContainer {
    if sink.elements == nil { sink.elements = [] }
    return ListEncoding(codingPath: codingPath, sink: sink)
  }

  func singleValueContainer() -> any SingleValueEncodingContainer {
    ScalarEncoding(codingPath: codingPath, sink: sink)
  }
}

private struct KeyedEncoding<Key: CodingKey>: KeyedEncodingContainerProtocol {
  let codingPath: [any CodingKey]
  let sink: Sink

  private func member(_ key: any CodingKey, isInstant: Bool = false, isMap: Bool = false) -> Sink {
    let member = Sink()
    // Keys of a dictionary are data, not names of ours: they stay as they are.
    let text =
      key is DictionaryKey ? key.stringValue : nameOf(key, isInstant: isInstant)
    sink.members?.append((text, member))
    return member
  }

  private func nameOf(_ key: any CodingKey, isInstant: Bool) -> String {
    DocumentKey.text(of: key.stringValue, isInstant: isInstant)
  }

  mutating func encodeNil(forKey key: Key) {}

  mutating func encode<T: Encodable>(_ value: T, forKey key: Key) throws {
    let sink = member(key, isInstant: value is WallTime)
    if let map = value as? [String: Int64] {
      sink.members = map.sorted { $0.key < $1.key }.map { key, value in
        let entry = Sink()
        entry.value = .integer(value)
        return (key, entry)
      }
      return
    }
    try value.encode(to: DocumentEncoder(codingPath: codingPath + [key], sink: sink))
  }

  mutating func nestedContainer<Nested: CodingKey>(
    keyedBy _: Nested.Type, forKey key: Key
  ) -> KeyedEncodingContainer<Nested> {
    DocumentEncoder(codingPath: codingPath + [key], sink: member(key)).container(
      keyedBy: Nested.self)
  }

  mutating func nestedUnkeyedContainer(forKey key: Key) -> any UnkeyedEncodingContainer {
    DocumentEncoder(codingPath: codingPath + [key], sink: member(key)).unkeyedContainer()
  }

  mutating func superEncoder() -> any Encoder {
    DocumentEncoder(codingPath: codingPath, sink: sink)
  }

  mutating func superEncoder(forKey key: Key) -> any Encoder {
    DocumentEncoder(codingPath: codingPath + [key], sink: member(key))
  }
}

private struct ListEncoding: UnkeyedEncodingContainer {
  let codingPath: [any CodingKey]
  let sink: Sink
  var count: Int { sink.elements?.count ?? 0 }

  private func next() -> DocumentEncoder {
    let element = Sink()
    sink.elements?.append(element)
    return DocumentEncoder(codingPath: codingPath, sink: element)
  }

  mutating func encodeNil() { _ = next() }
  mutating func encode(_ value: some Encodable) throws { try value.encode(to: next()) }

  mutating func nestedContainer<Nested: CodingKey>(
    keyedBy _: Nested.Type
  ) -> KeyedEncodingContainer<Nested> { next().container(keyedBy: Nested.self) }

  mutating func nestedUnkeyedContainer() -> any UnkeyedEncodingContainer {
    next().unkeyedContainer()
  }

  mutating func superEncoder() -> any Encoder { next() }
}

private struct ScalarEncoding: SingleValueEncodingContainer {
  let codingPath: [any CodingKey]
  let sink: Sink

  mutating func encodeNil() { sink.value = .null }

  mutating func encode(_ value: some Encodable) throws {
    switch value {
    case let value as Bool: sink.value = .bool(value)
    case let value as String: sink.value = .string(value)
    case let value as any BinaryInteger:
      guard let integer = Int64(exactly: value) else {
        throw EncodingError.invalidValue(
          value, .init(codingPath: codingPath, debugDescription: "beyond 64 bits"))
      }
      sink.value = .integer(integer)
    case is Double, is Float:
      throw EncodingError.invalidValue(
        value, .init(codingPath: codingPath, debugDescription: "no fractions in admin messages"))
    default: try value.encode(to: DocumentEncoder(codingPath: codingPath, sink: sink))
    }
  }
}

private struct DictionaryKey: CodingKey {
  let stringValue: String
  var intValue: Int? { nil }
  init(stringValue: String) { self.stringValue = stringValue }
  init?(intValue: Int) { nil }
}

// MARK: - Decoding

private final class DocumentDecoder: Decoder {
  let value: Document
  let codingPath: [any CodingKey]
  let strict: Bool
  var userInfo: [CodingUserInfoKey: Any] { [:] }
  /// Members that were asked for, while `strict`.
  private var asked: Set<String>?

  init(value: Document, codingPath: [any CodingKey], strict: Bool) {
    self.value = value
    self.codingPath = codingPath
    self.strict = strict
  }

  func note(_ key: String) { asked = (asked ?? []).union([key]) }

  func read<Value: Decodable>(_: Value.Type) throws -> Value {
    if Value.self == [String: Int64].self, case .object(let members) = value {
      var map: [String: Int64] = [:]
      for member in members {
        guard case .integer(let integer) = member.value else { throw mismatch("whole numbers") }
        map[member.key] = integer
      }
      if let result = map as? Value { return result }
    }
    let result = try Value(from: self)
    if strict, let asked, case .object(let members) = value {
      for member in members where !asked.contains(member.key) {
        throw DecodingError.dataCorrupted(
          .init(
            codingPath: codingPath + [DictionaryKey(stringValue: member.key)],
            debugDescription:
              "unknown key; known here: \(asked.sorted().joined(separator: ", "))"))
      }
    }
    return result
  }

  func mismatch(_ wanted: String) -> DecodingError {
    .dataCorrupted(
      .init(codingPath: codingPath, debugDescription: "must be \(wanted), not \(value.excerpt)"))
  }

  func container<Key: CodingKey>(keyedBy _: Key.Type) throws -> KeyedDecodingContainer<Key> {
    guard case .object(let members) = value else { throw mismatch("an object") }
    if asked == nil { asked = [] }
    return KeyedDecodingContainer(KeyedDecoding<Key>(decoder: self, members: members))
  }

  func unkeyedContainer() throws -> any UnkeyedDecodingContainer {
    guard case .list(let values) = value else { throw mismatch("a list") }
    return ListDecoding(decoder: self, values: values)
  }

  func singleValueContainer() -> any SingleValueDecodingContainer { ScalarDecoding(decoder: self) }
}

private struct KeyedDecoding<Key: CodingKey>: KeyedDecodingContainerProtocol {
  let decoder: DocumentDecoder
  let members: [Document.Member]
  var codingPath: [any CodingKey] { decoder.codingPath }
  var allKeys: [Key] { members.compactMap { Key(stringValue: $0.key) } }

  private func find(_ key: Key) -> Document? {
    // An instant's name ends in `_ms`; which type is wanted is not known here, so both are tried.
    for isInstant in [false, true] {
      let text = DocumentKey.text(of: key.stringValue, isInstant: isInstant)
      if let found = members.first(where: { $0.key == text })?.value {
        decoder.note(text)
        return found == .null ? nil : found
      }
    }
    decoder.note(DocumentKey.text(of: key.stringValue, isInstant: false))
    return nil
  }

  func contains(_ key: Key) -> Bool { find(key) != nil }
  func decodeNil(forKey key: Key) -> Bool { find(key) == nil }

  private func child(_ key: Key) throws -> DocumentDecoder {
    let name = DictionaryKey(stringValue: DocumentKey.text(of: key.stringValue, isInstant: false))
    guard let value = find(key) else {
      throw DecodingError.dataCorrupted(
        .init(codingPath: codingPath + [name], debugDescription: "is required"))
    }
    return DocumentDecoder(value: value, codingPath: codingPath + [name], strict: decoder.strict)
  }

  func decode<T: Decodable>(_: T.Type, forKey key: Key) throws -> T {
    try child(key).read(T.self)
  }

  func nestedContainer<Nested: CodingKey>(
    keyedBy _: Nested.Type, forKey key: Key
  ) throws -> KeyedDecodingContainer<Nested> { try child(key).container(keyedBy: Nested.self) }

  func nestedUnkeyedContainer(forKey key: Key) throws -> any UnkeyedDecodingContainer {
    try child(key).unkeyedContainer()
  }

  func superDecoder() throws -> any Decoder { decoder }
  func superDecoder(forKey key: Key) throws -> any Decoder { try child(key) }
}

private struct ListDecoding: UnkeyedDecodingContainer {
  let decoder: DocumentDecoder
  let values: [Document]
  var currentIndex = 0
  var codingPath: [any CodingKey] { decoder.codingPath }
  var count: Int? { values.count }
  var isAtEnd: Bool { currentIndex >= values.count }

  private mutating func next() throws -> DocumentDecoder {
    guard !isAtEnd else { throw decoder.mismatch("a longer list") }
    defer { currentIndex += 1 }
    let place = DictionaryKey(stringValue: "\(currentIndex)")
    return DocumentDecoder(
      value: values[currentIndex], codingPath: codingPath + [place], strict: decoder.strict)
  }

  mutating func decodeNil() throws -> Bool {
    guard !isAtEnd, values[currentIndex] == .null else { return false }
    currentIndex += 1
    return true
  }

  mutating func decode<T: Decodable>(_: T.Type) throws -> T { try next().read(T.self) }

  mutating func nestedContainer<Nested: CodingKey>(
    keyedBy _: Nested.Type
  ) throws -> KeyedDecodingContainer<Nested> { try next().container(keyedBy: Nested.self) }

  mutating func nestedUnkeyedContainer() throws -> any UnkeyedDecodingContainer {
    try next().unkeyedContainer()
  }

  mutating func superDecoder() throws -> any Decoder { try next() }
}

private struct ScalarDecoding: SingleValueDecodingContainer {
  let decoder: DocumentDecoder
  var codingPath: [any CodingKey] { decoder.codingPath }

  func decodeNil() -> Bool { decoder.value == .null }

  func decode(_: Bool.Type) throws -> Bool {
    guard case .bool(let value) = decoder.value else { throw decoder.mismatch("true or false") }
    return value
  }

  func decode(_: String.Type) throws -> String {
    guard case .string(let value) = decoder.value else { throw decoder.mismatch("text") }
    return value
  }

  private func integer<T: FixedWidthInteger>(_: T.Type) throws -> T {
    guard case .integer(let value) = decoder.value, let result = T(exactly: value) else {
      throw decoder.mismatch("a whole number from \(T.min) to \(T.max)")
    }
    return result
  }

  func decode(_ type: Int.Type) throws -> Int { try integer(type) }
  func decode(_ type: Int8.Type) throws -> Int8 { try integer(type) }
  func decode(_ type: Int16.Type) throws -> Int16 { try integer(type) }
  func decode(_ type: Int32.Type) throws -> Int32 { try integer(type) }
  func decode(_ type: Int64.Type) throws -> Int64 { try integer(type) }
  func decode(_ type: UInt.Type) throws -> UInt { try integer(type) }
  func decode(_ type: UInt8.Type) throws -> UInt8 { try integer(type) }
  func decode(_ type: UInt16.Type) throws -> UInt16 { try integer(type) }
  func decode(_ type: UInt32.Type) throws -> UInt32 { try integer(type) }
  func decode(_ type: UInt64.Type) throws -> UInt64 { try integer(type) }
  func decode(_: Double.Type) throws -> Double { throw decoder.mismatch("a whole number") }
  func decode(_: Float.Type) throws -> Float { throw decoder.mismatch("a whole number") }
  func decode<T: Decodable>(_: T.Type) throws -> T { try decoder.read(T.self) }
}
