// The published schema against the reader: the same keys, choices and bounds, and the same verdict
// on a table of documents. The schema is interpreted by a few lines that know only the words it
// uses; a word they do not know fails the test.

import Foundation
import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct SchemaTests {
  static func schema() throws -> Document {
    let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let data = try Data(contentsOf: root.appending(path: "deploy/catalog.schema.json"))
    return try Document(json: Array(data))
  }

  private func keys(_ document: Document?) -> [String] {
    guard case .object(let members)? = document else { return [] }
    return members.map(\.key)
  }

  @Test func theKeysAreThoseOfTheReader() throws {
    let schema = try Self.schema()
    #expect(Set(keys(schema["properties"])) == Set(CatalogReader.rootKeys))
    let definitions = schema["$defs"]
    #expect(Set(keys(definitions?["feature"]?["properties"])) == Set(CatalogReader.featureKeys))
    #expect(Set(keys(definitions?["limit"]?["properties"])) == Set(CatalogReader.limitKeys))
    #expect(Set(keys(definitions?["charge"]?["properties"])) == Set(RateReader.keys))
  }

  @Test func theChoicesAndBoundsAreThoseOfTheReader() throws {
    let schema = try Self.schema()
    let limit = schema["$defs"]?["limit"]?["properties"]
    #expect(limit?["enforcement"]?["enum"] == .strings(Enforcement.allCases.map(\.rawValue)))
    let feature = schema["$defs"]?["feature"]?["properties"]
    #expect(
      feature?["importance"]?["enum"] == .strings(Feature.Importance.allCases.map(\.rawValue)))
    #expect(
      feature?["idempotency"]?["enum"] == .strings(Feature.Idempotency.allCases.map(\.rawValue)))
    #expect(limit?["precision"]?["enum"] == .strings(Precision.allCases.map(\.rawValue)))
    #expect(feature?["unit"]?["maxLength"] == .integer(Int64(CatalogReader.unitBytesMax)))
    for key in ["quota", "rate", "burst"] {
      #expect(limit?[key]?["maximum"] == .integer(Quantity.maximum))
      #expect(limit?[key]?["minimum"] == (key == "quota" ? 0 : 1))
    }
    let properties = schema["properties"]
    let ranks = properties?["ranks"]
    #expect(ranks?["maxProperties"] == .integer(Int64(Catalog.plansMax)))
    #expect(ranks?["additionalProperties"]?["maximum"] == .integer(Plan.rankMax))
    #expect(properties?["levels"]?["maxItems"] == .integer(Int64(Subject.levelsMax)))
    #expect(properties?["features"]?["maxProperties"] == .integer(Int64(Catalog.featuresMax)))
    let plans = properties?["plans"]
    #expect(plans?["maxProperties"] == .integer(Int64(Catalog.plansMax)))
    #expect(
      plans?["additionalProperties"]?["additionalProperties"]?["maxItems"]
        == .integer(Int64(Catalog.limitsPerFeatureMax)))
    guard case .list(let policies)? = limit?["on_failure"]?["oneOf"] else {
      Issue.record("on_failure has no choices")
      return
    }
    #expect(
      policies.last?["properties"]?["open"]?["maximum"] == .integer(FailurePolicy.allowanceMax))
  }

  static let limits: [(String, Bool)] = [
    (#"{"id": "x", "quota": 1, "per": "day"}"#, true),
    (#"{"id": "x", "quota": 0, "per": "lifetime", "level": "account"}"#, true),
    (#"{"id": "x", "rate": 1, "per": "90s", "burst": 5, "on_failure": {"open": 1}}"#, true),
    (#"{"id": "x", "quota": 1, "per": "anchored month"}"#, true),
    (#"{"id": "x", "quota": 1, "per": "anchored 90s"}"#, true),
    (#"{"id": "x", "quota": 1, "per": "anchored lifetime"}"#, false),
    (#"{"id": "x", "quota": 1, "per": "anchored  month"}"#, false),
    (#"{"id": "x", "quota": 1, "per": "month anchored"}"#, false),
    (#"{"id": "x", "gate": true, "enforcement": "shadow", "on_failure": "stale"}"#, true),
    (#"{"id": "x", "unlimited": true}"#, true),
    (#"{"id": "x"}"#, false),
    (#"{"quota": 1, "per": "day"}"#, false),
    (#"{"id": "x", "quota": 1}"#, false),
    (#"{"id": "x", "rate": 1}"#, false),
    (#"{"id": "x", "quota": 1, "per": "day", "burst": 2}"#, false),
    (#"{"id": "x", "gate": true, "per": "day"}"#, false),
    (#"{"id": "x", "sliding": 5, "per": "hour"}"#, true),
    (#"{"id": "x", "sliding": 5}"#, false),
    (#"{"id": "x", "concurrency": 200}"#, true),
    (#"{"id": "x", "concurrency": 200, "per": "day"}"#, false),
    (#"{"id": "x", "credit": true, "overage": "allow"}"#, true),
    (#"{"id": "x", "credit": {"amount": 5, "every": "anchored month"}}"#, true),
    (#"{"id": "x", "credit": {"amount": 5, "every": "month", "rollover": {"max": 2}}}"#, true),
    (#"{"id": "x", "credit": {"amount": 5}}"#, false),
    (#"{"id": "x", "credit": false}"#, false),
    (#"{"id": "x", "credit": true, "overage": "some"}"#, false),
    (#"{"id": "x", "quota": 1, "per": "day", "overage": "allow"}"#, false),
    (#"{"id": "x", "spend_cap": 0, "per": "anchored month"}"#, true),
    (#"{"id": "x", "spend_cap": "none", "per": "month"}"#, true),
    (#"{"id": "x", "spend_cap": "all", "per": "month"}"#, false),
    (#"{"id": "x", "spend_cap": 5}"#, false),
    (#"{"id": "x", "unlimited": false}"#, false),
    (#"{"id": "x", "gate": true, "unlimited": true}"#, false),
    (#"{"id": "x", "gate": "on"}"#, false),
    (#"{"id": "x", "quota": 1.5, "per": "day"}"#, false),
    (#"{"id": "x", "quota": 9007199254740992, "per": "day"}"#, false),
    (#"{"id": "x", "quota": "1", "per": "day"}"#, false),
    (#"{"id": "x", "rate": 0, "per": "day"}"#, false),
    (#"{"id": "x", "quota": 1, "per": "05s"}"#, false),
    (#"{"id": "x", "quota": 1, "per": "days"}"#, false),
    (#"{"id": "-x", "gate": true}"#, false),
    (#"{"id": "x", "gate": true, "on_failure": {"open": 0}}"#, false),
    (#"{"id": "x", "gate": true, "on_failure": "open"}"#, false),
    (#"{"id": "x", "gate": true, "colour": 1}"#, false),
    (#"{"id": "x", "gate": true, "enforcement": "firm"}"#, false),
    (#"{"id": "x", "quota": 1, "per": "day", "thresholds": [50, 100]}"#, true),
    (#"{"id": "x", "quota": 1, "per": "day", "thresholds": []}"#, true),
    (#"{"id": "x", "quota": 1, "per": "day", "thresholds": [1,2,3,4,5,6,7,8,9]}"#, false),
    (#"{"id": "x", "quota": 1, "per": "day", "thresholds": [50, 50]}"#, false),
    (#"{"id": "x", "quota": 1, "per": "day", "thresholds": [0]}"#, false),
    (#"{"id": "x", "quota": 1, "per": "day", "thresholds": [101]}"#, false),
    (#"{"id": "x", "quota": 1, "per": "day", "thresholds": 50}"#, false),
    (#"{"id": "x", "spend_cap": 1, "per": "day", "thresholds": [95]}"#, true),
    (#"{"id": "x", "credit": {"amount": 5, "every": "month"}, "thresholds": [80]}"#, true),
    (#"{"id": "x", "rate": 1, "per": "day", "thresholds": [80]}"#, false),
    (#"{"id": "x", "sliding": 1, "per": "day", "thresholds": [80]}"#, false),
    (#"{"id": "x", "gate": true, "thresholds": [80]}"#, false),
    (#"{"id": "x", "concurrency": 5, "thresholds": [80]}"#, false),
    (#"{"id": "x", "unlimited": true, "thresholds": [80]}"#, false),
    (#"{"id": "x", "quota": 1, "per": "day", "precision": "exact"}"#, true),
    (#"{"id": "x", "quota": 1, "per": "day", "precision": "rough"}"#, false),
  ]

  @Test(arguments: limits)
  func bothJudgeALimitAlike(_ limit: String, _ good: Bool) throws {
    let document = try Document(
      json: CatalogReaderTests.wrapped("[\(limit)]").replacing(
        #""levels": ["a"]"#, with: #""levels": ["account"]"#))
    try expect(document, good)
  }

  @Test(
    arguments: [
      (#"{"levels": ["a"], "features": {}, "plans": {}}"#, true),
      (#"{"levels": ["a"], "unknown_account": "deny", "features": {}, "plans": {}}"#, true),
      (
        #"{"levels": ["a"], "unknown_account": {"plan": "p"}, "features": {}, "plans": {"p": {}}}"#,
        true
      ),
      (#"{"levels": ["a"], "features": {}, "ranks": {"p": 0}, "plans": {"p": {}}}"#, true),
      (#"{"levels": ["a"], "features": {}, "ranks": {"p": 1001}, "plans": {"p": {}}}"#, false),
      (#"{"levels": ["a"], "features": {}, "ranks": {"p": "1"}, "plans": {"p": {}}}"#, false),
      (#"{"levels": ["a"], "features": {}, "ranks": [], "plans": {"p": {}}}"#, false),
      (#"{"features": {}, "plans": {}}"#, false),
      (#"{"levels": [], "features": {}, "plans": {}}"#, false),
      (#"{"levels": ["a", "a"], "features": {}, "plans": {}}"#, false),
      (#"{"levels": ["a", "b", "c", "d", "e", "f"], "features": {}, "plans": {}}"#, false),
      (#"{"levels": ["a"], "unknown_account": "allow", "features": {}, "plans": {}}"#, false),
      (#"{"levels": ["a"], "unknown_account": {"plan": 1}, "features": {}, "plans": {}}"#, false),
      (#"{"levels": ["a"], "unknown_account": {}, "features": {}, "plans": {}}"#, false),
      (#"{"levels": ["a"], "features": {"f": {}}, "plans": {}}"#, false),
      (#"{"levels": ["a"], "features": {"f": {"metered": 1}}, "plans": {}}"#, false),
      (#"{"levels": ["a"], "features": [], "plans": {}}"#, false),
      (#"{"levels": ["a"], "features": {}, "plans": {"p q": {}}}"#, false),
      (#"[]"#, false), ("null", false),
    ] as [(String, Bool)])
  func bothJudgeADocumentAlike(_ json: String, _ good: Bool) throws {
    try expect(Document(json: json), good)
  }

  @Test func bothAcceptTheGoodCatalog() throws {
    try expect(Document(json: CatalogReaderTests.good), true)
  }

  private func expect(_ document: Document, _ good: Bool) throws {
    let schema = try Self.schema()
    #expect(try SchemaInterpreter(root: schema).accepts(document, schema) == good)
    if case .success = CatalogReader.read(document) {
      #expect(good)
    } else {
      #expect(!good)
    }
  }
}

private struct SchemaInterpreter {
  struct UnknownWord: Error { let word: String }
  let root: Document

  func accepts(_ value: Document, _ schema: Document) throws -> Bool {
    guard case .object(let words) = schema else { return schema == true }
    for word in words where try !accepts(value, word.key, word.value, in: schema) { return false }
    return true
  }

  private func members(_ value: Document) -> [Document.Member] {
    if case .object(let members) = value { members } else { [] }
  }

  private func list(_ value: Document) -> [Document] {
    if case .list(let values) = value { values } else { [] }
  }

  private func accepts(
    _ value: Document, _ word: String, _ argument: Document, in schema: Document
  ) throws -> Bool {
    switch (word, argument) {
    case ("$schema", _), ("title", _), ("description", _), ("default", _), ("$defs", _): return true
    case ("$ref", .string(let path)):
      let name = String(path.dropFirst("#/$defs/".count))
      return try accepts(value, root["$defs"]?[name] ?? .null)
    case ("const", _): return value == argument
    case ("enum", .list(let values)): return values.contains(value)
    case ("oneOf", .list(let choices)): return try choices.count { try accepts(value, $0) } == 1
    case ("anyOf", .list(let choices)): return try choices.contains { try accepts(value, $0) }
    case ("not", _): return try !accepts(value, argument)
    case ("type", .string(let type)):
      switch (type, value) {
      case ("object", .object), ("array", .list), ("string", .string), ("boolean", .bool),
        ("integer", .integer):
        return true
      default: return false
      }
    case ("required", .list(let keys)):
      guard case .object(let present) = value else { return true }
      return keys.allSatisfy { key in present.contains { .string($0.key) == key } }
    case ("properties", .object(let properties)):
      return try properties.allSatisfy { property in
        try value[property.key].map { try accepts($0, property.value) } ?? true
      }
    case ("additionalProperties", _):
      let known = schema["properties"].map { members($0).map(\.key) } ?? []
      return try members(value).allSatisfy { member in
        try known.contains(member.key) || accepts(member.value, argument)
      }
    case ("propertyNames", _):
      return try members(value).allSatisfy { try accepts(.string($0.key), argument) }
    case ("maxProperties", .integer(let most)): return members(value).count <= most
    case ("items", _): return try list(value).allSatisfy { try accepts($0, argument) }
    case ("minItems", .integer(let least)): return list(value).count >= least
    case ("maxItems", .integer(let most)): return list(value).count <= most
    case ("uniqueItems", true): return Set(list(value)).count == list(value).count
    case ("minimum", .integer(let least)):
      if case .integer(let number) = value { return number >= least }
      return true
    case ("maximum", .integer(let most)):
      if case .integer(let number) = value { return number <= most }
      return true
    case ("maxLength", .integer(let most)):
      if case .string(let text) = value { return text.unicodeScalars.count <= most }
      return true
    case ("pattern", .string(let pattern)):
      guard case .string(let text) = value else { return true }
      return try text.firstMatch(of: Regex(pattern)) != nil
    default: throw UnknownWord(word: word)
    }
  }
}
