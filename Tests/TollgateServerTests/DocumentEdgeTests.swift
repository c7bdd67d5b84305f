// YAML in, JSON in and out: the two edges of the admin documents.

import Testing
import TollgateCore
import TollgateServer
import TollgateTesting

@Suite(.blocking) struct YAMLDocumentTests {
  @Test func scalarsFollowThePlainRules() throws {
    let yaml = try YAMLDocument(
      yaml: """
        a: 1_000
        b: -7
        c: true
        d: yes
        e: "12"
        f: 1.5
        g: ~
        h: 007
        i: 99999999999999999999
        j: 2026-11-21
        k: 1.2.3
        l: 0
        """)
    #expect(
      yaml.document == [
        "a": 1000, "b": -7, "c": true, "d": "yes", "e": "12", "f": .number("1.5"), "g": nil,
        "h": "007", "i": .number("99999999999999999999"), "j": "2026-11-21", "k": "1.2.3", "l": 0,
      ])
  }

  @Test func everyPlaceHasItsLine() throws {
    let yaml = try YAMLDocument(yaml: "a:\n  b:\n    - 1\n    - c: 2\n")
    #expect(yaml.line(of: "a/b/1/c") == 4)
    #expect(yaml.line(of: "a/b/0") == 3)
    #expect(yaml.line(of: "a/b/9/missing") == 2)
  }

  @Test func aDoubledKeyIsAProblem() throws {
    #expect(throws: InvalidDocument.self) { try YAMLDocument(yaml: "a: 1\na: 2\n") }
  }

  @Test func aSyntaxErrorNamesItsLine() throws {
    let error = #expect(throws: InvalidDocument.self) { try YAMLDocument(yaml: "a: [1\nb: }\n") }
    #expect(error?.problems.first?.value.hasPrefix("line 2") == true)
  }

  @Test func aliasesCannotExplode() throws {
    var text = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
    for level in 1...9 {
      let items = Array(repeating: "*a\(level - 1)", count: 10).joined(separator: ",")
      text += "a\(level): &a\(level) [\(items)]\n"
    }
    let error = #expect(throws: InvalidDocument.self) { try YAMLDocument(yaml: text) }
    #expect(error?.problems.first?.reason.contains("more than") == true)
  }
}

@Suite(.blocking) struct AdminJSONTests {
  private struct Sample: Codable, Equatable {
    struct Part: Codable, Equatable { var waitMilliseconds: Int64 }
    var sourceID: String?
    var startedAt: WallTime
    var parts: [Part]
    var counts: [String: Int64]
    var flag: Bool
  }

  @Test func keysFollowTheRulesAndComeBack() throws {
    let sample = Sample(
      sourceID: "x", startedAt: WallTime(milliseconds: 5), parts: [.init(waitMilliseconds: 9)],
      counts: ["QUOTA_EXCEEDED": 2], flag: true)
    let bytes = try AdminJSON.encode(sample)
    #expect(
      String(decoding: bytes, as: UTF8.self)
        == #"{"source_id":"x","started_at_ms":5,"parts":[{"wait_ms":9}],"#
        + #""counts":{"QUOTA_EXCEEDED":2},"flag":true}"#)
    #expect(try AdminJSON.decode(Sample.self, from: bytes, strict: true) == sample)
  }

  @Test func anAbsentOptionalIsNilAndAnAbsentValueIsNamed() throws {
    let text = #"{"started_at_ms":5,"parts":[],"counts":{}}"#
    let failure = #expect(throws: AdminFailure.self) {
      try AdminJSON.decode(Sample.self, from: Array(text.utf8))
    }
    #expect(failure?.problems.first?.path == "flag")
    #expect(failure?.problems.first?.reason == "is required")
  }

  @Test func aWrongTypeNamesItsPlace() throws {
    let text = #"{"started_at_ms":5,"parts":[{"wait_ms":"9"}],"counts":{},"flag":true}"#
    let failure = #expect(throws: AdminFailure.self) {
      try AdminJSON.decode(Sample.self, from: Array(text.utf8))
    }
    #expect(failure?.problems.first?.path == "parts/0/wait_ms")
  }

  @Test func unknownKeysAreRefusedOnlyWhereStrict() throws {
    let text = #"{"started_at_ms":5,"parts":[],"counts":{},"flag":true,"more":1}"#
    _ = try AdminJSON.decode(Sample.self, from: Array(text.utf8))
    let failure = #expect(throws: AdminFailure.self) {
      try AdminJSON.decode(Sample.self, from: Array(text.utf8), strict: true)
    }
    #expect(failure?.problems.first?.path == "more")
  }

  @Test func largeWholeNumbersStayExact() throws {
    struct Number: Codable, Equatable { var value: Int64 }
    let number = Number(value: Quantity.maximum)
    #expect(try AdminJSON.decode(Number.self, from: AdminJSON.encode(number)) == number)
  }
}
