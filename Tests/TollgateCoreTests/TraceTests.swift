// The trace reader and generator: what is written is read back, and a bad row is named.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct TraceTests {
  static let head = "TIMESTAMP,ContextTokens,GeneratedTokens"

  @Test func readsTheRealShape() throws {
    let text = "\(Self.head)\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04,0,8"
    let rows = try Trace.parse(Array(text.utf8))
    #expect(
      rows == [
        TraceRow(
          nanoseconds: 1_700_158_623_979_960_000, contextTokens: 4808, generatedTokens: 10),
        TraceRow(nanoseconds: 1_700_158_624_000_000_000, contextTokens: 0, generatedTokens: 8),
      ])
  }

  @Test func aGeneratedTraceIsReadBackTheSame() throws {
    var random = SeededRandom.fromEnvironment("aGeneratedTraceIsReadBackTheSame")
    let rows = TraceGenerator.rows(2000, using: &random)
    #expect(rows.count == 2000)
    #expect(try Trace.parse(Array(Trace.text(rows).utf8)) == rows)
  }

  @Test func theSameSeedGivesTheSameTrace() {
    var first = SeededRandom(seed: 7)
    var second = SeededRandom(seed: 7)
    var third = SeededRandom(seed: 8)
    let rows = TraceGenerator.rows(100, using: &first)
    #expect(rows == TraceGenerator.rows(100, using: &second))
    #expect(rows != TraceGenerator.rows(100, using: &third))
  }

  @Test func aGeneratedHourHasBurstsAndSilence() {
    var random = SeededRandom(seed: 1)
    let rows = TraceGenerator.rows(8819, using: &random)
    let perSecond = Dictionary(grouping: rows) { $0.nanoseconds / 1_000_000_000 }
    #expect(perSecond.count < 2700, "half of the stretches are idle")
    #expect(perSecond.values.map(\.count).max() ?? 0 >= 10, "bursts stand out")
    let sizes = rows.map(\.contextTokens).sorted()
    #expect((1000...2000).contains(sizes[sizes.count / 2]))
  }

  @Test(arguments: [
    ("2023-11-16 18:17:03,1", "3 fields expected"),
    ("2023-11-16 18:17:03,1,2,3", "3 fields expected"),
    ("2023-11-16T18:17:03,1,2", "TIMESTAMP"),
    ("2023-02-29 18:17:03,1,2", "TIMESTAMP"),
    ("2023-13-01 18:17:03,1,2", "TIMESTAMP"),
    ("2023-11-16 24:00:00,1,2", "TIMESTAMP"),
    ("2023-11-16 18:17:03.,1,2", "TIMESTAMP"),
    ("2023-11-16 18:17:03,-1,2", "ContextTokens"),
    ("2023-11-16 18:17:03,1,9999999999", "GeneratedTokens"),
    ("2023-11-16 18:17:03,1,1e3", "GeneratedTokens"),
    ("2023-11-16 18:17:01,1,2", "earlier"),
    ("", "empty"),
  ])
  func aBadRowIsNamedByItsLine(_ row: String, _ reason: String) {
    let good = "2023-11-16 18:17:02,1,2"
    let text = "\(Self.head)\n\(good)\n\(row)\n\(good)\n"
    let error = #expect(throws: TraceError.self) { try Trace.parse(Array(text.utf8)) }
    #expect(error?.line == 3)
    #expect(error?.reason.contains(reason) == true, "\(String(describing: error))")
  }

  @Test func aMissingHeaderIsNamed() {
    #expect(throws: TraceError(line: 1, reason: "the header must be \(Self.head)")) {
      try Trace.parse(Array("2023-11-16 18:17:02,1,2\n".utf8))
    }
  }
}
