// The core's own JSON, against RFC 8259 and against Foundation as a second opinion.

import Foundation
import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct JSONTests {
  @Test(
    arguments: [
      ("null", Document.null), (" true ", true), ("false", false), ("0", 0), ("-0", 0), ("-7", -7),
      ("9223372036854775807", .integer(.max)), ("-9223372036854775808", .integer(.min)),
      ("9223372036854775808", .number("9223372036854775808")), ("1.0", .number("1.0")),
      ("1e3", .number("1e3")), ("-1.5E-7", .number("-1.5E-7")), ("\"\"", ""),
      (#""a\"\\\/\b\f\n\r\tA""#, .string("a\"\\/\u{8}\u{c}\n\r\tA")),
      (#""😀é""#, "😀é"), ("[]", []), ("{}", [:]), ("[1,[2,{}]]", [1, [2, [:]]]),
      (#"{"b":1,"a":null}"#, ["b": 1, "a": nil]), ("\t\r\n [ 1 , 2 ] ", [1, 2]),
    ] as [(String, Document)])
  func goodTextIsRead(_ text: String, _ expected: Document) throws {
    #expect(try Document(json: text) == expected)
  }

  @Test(arguments: [
    "", " ", "nul", "nulll", "tru", "True", "01", "-", "+1", "1.", ".5", "1e", "1e+", "0x1", "NaN",
    "Infinity", "\"", "\"a", #""\x""#, #""\u12""#, #""\u12g4""#, #""\ud800""#, #""\ud800A""#,
    #""\udc00""#, "\"\u{1}\"", "\"\n\"", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{", "{1:2}",
    "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{\"a\":1 \"b\":2}", "{\"a\":1,\"a\":2}", "1 2", "[]]",
    "{}x", "'a'", "// c\n1", "\u{FEFF}1", "-01", "--1",
  ])
  func badTextIsRefused(_ text: String) {
    #expect(throws: InvalidJSON.self) { try Document(json: text) }
  }

  @Test func bytesThatAreNotUTF8AreRefused() {
    for bytes: [UInt8] in [
      [0x22, 0xFF, 0x22], [0x22, 0xC0, 0x80, 0x22], [0x22, 0xED, 0xA0, 0x80, 0x22],
    ] {
      #expect(throws: InvalidJSON.self) { try Document(json: bytes) }
    }
  }

  @Test func theErrorSaysWhere() {
    let error = #expect(throws: InvalidJSON.self) { try Document(json: #"{"a": x}"#) }
    #expect(error?.description == "at byte 6: not a value")
  }

  @Test func depthAndSizeAreBounded() throws {
    func nested(_ depth: Int) -> String {
      String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
    }
    _ = try Document(json: nested(Document.depthMax))
    #expect(throws: InvalidJSON.self) { try Document(json: nested(Document.depthMax + 1)) }
    #expect(throws: InvalidJSON.self) { try Document(json: nested(1_000_000)) }
    #expect(throws: InvalidJSON.self) { try Document(json: "[1234]", bytesMax: 5) }
  }

  @Test func whatIsWrittenIsReadBackTheSame() throws {
    var random = SeededRandom.fromEnvironment("JSONTests")
    for _ in 0..<2_000 {
      let document = Self.document(&random, depth: 4)
      #expect(try Document(json: document.json()) == document)
      #expect(try Document(json: document.json(pretty: true)) == document)
      #expect(document.jsonBytes() == Array(document.json().utf8))
    }
  }

  @Test func foundationReadsTheSameOutOfWhatWeWrite() throws {
    var random = SeededRandom.fromEnvironment("JSONTests.foundation")
    for _ in 0..<500 {
      let document = Self.document(&random, depth: 4)
      let object = try JSONSerialization.jsonObject(
        with: Data(document.jsonBytes()), options: .fragmentsAllowed)
      let again = try JSONSerialization.data(
        withJSONObject: object, options: [.fragmentsAllowed, .sortedKeys])
      #expect(try Self.sorted(Document(json: Array(again))) == Self.sorted(document))
    }
  }

  /// Damaged text never traps, and what is accepted is accepted by Foundation too.
  @Test func damagedTextIsRefusedOrMeansTheSameToFoundation() throws {
    var random = SeededRandom.fromEnvironment("JSONTests.damage")
    var accepted = 0
    for _ in 0..<5_000 {
      var bytes = Self.document(&random, depth: 3).jsonBytes()
      for _ in 0..<Int.random(in: 1...3, using: &random) {
        let index = Int.random(in: 0..<bytes.count, using: &random)
        switch Int.random(in: 0..<3, using: &random) {
        case 0: bytes[index] = UInt8.random(in: 0...255, using: &random)
        case 1: bytes.remove(at: index)
        default:
          bytes.insert(Array("{}[]\",:0-.eu\\ ".utf8).randomElement(using: &random) ?? 0, at: index)
        }
        if bytes.isEmpty { break }
      }
      // Foundation wants every number to fit a Double; ours keep their text instead.
      guard let document = try? Document(json: bytes), !Self.holdsNumberText(document) else {
        continue
      }
      accepted += 1
      #expect(throws: Never.self) {
        try JSONSerialization.jsonObject(with: Data(bytes), options: .fragmentsAllowed)
      }
      #expect(try Document(json: document.json()) == document)
    }
    #expect(accepted > 0)
  }

  private static func holdsNumberText(_ document: Document) -> Bool {
    switch document {
    case .number: true
    case .list(let values): values.contains { holdsNumberText($0) }
    case .object(let members): members.contains { holdsNumberText($0.value) }
    case .null, .bool, .integer, .string: false
    }
  }

  static func document(_ random: inout SeededRandom, depth: Int) -> Document {
    switch Int.random(in: 0..<(depth > 0 ? 7 : 5), using: &random) {
    case 0: return .null
    case 1: return .bool(Bool.random(using: &random))
    case 2: return .integer(Int64.random(in: .min ... .max, using: &random))
    case 3: return .integer(Int64.random(in: -100...100, using: &random))
    case 4: return .string(text(&random))
    case 5:
      return .list(
        (0..<Int.random(in: 0...4, using: &random)).map { _ in document(&random, depth: depth - 1) }
      )
    default:
      return .object(
        (0..<Int.random(in: 0...4, using: &random)).map {
          .init("\($0)" + text(&random), document(&random, depth: depth - 1))
        })
    }
  }

  private static func text(_ random: inout SeededRandom) -> String {
    let alphabet: [Character] = ["a", "\"", "\\", "/", "\n", "\u{1}", "\u{7F}", "é", "😀", " ", "{"]
    return String(
      (0..<Int.random(in: 0...6, using: &random)).map { _ in
        alphabet.randomElement(using: &random) ?? "a"
      })
  }

  private static func sorted(_ document: Document) -> Document {
    switch document {
    case .list(let values): .list(values.map { sorted($0) })
    case .object(let members):
      .object(
        members.map { .init($0.key, sorted($0.value)) }
          .sorted { Array($0.key.utf16).lexicographicallyPrecedes(Array($1.key.utf16)) })
    default: document
    }
  }
}
