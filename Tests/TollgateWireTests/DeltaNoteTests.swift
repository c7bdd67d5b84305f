// The words that a correction carries: they travel in the body, and a release that does not know the
// field passes them over.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@Suite(.blocking) struct DeltaNoteTests {
  private func body(_ note: String) throws -> UsageBody {
    UsageBody(
      subject: try Subject("acme/ann"), feature: try Name("tokens"),
      period: Window.month.period(containing: WallTime(milliseconds: 1_763_700_000_000)),
      cells: [], catalogVersion: 1, source: .redis,
      corrects: OperationID(high: 1, low: 2), note: note)
  }

  @Test func aNoteComesBackAsItWasWritten() throws {
    for note in ["", "because", "ä — 🙂"] {
      #expect(try UsageBody.decode(body(note).encode()) == body(note))
    }
    #expect(try body("x").encode().count == body("").encode().count + 5)
  }

  @Test func itIsOptionalAndBounded() throws {
    // Bit 15 of the tag would make it critical.
    let bytes = try body("x").encode()
    #expect(Array(bytes.suffix(5)) == [12, 0, 1, 0, UInt8(ascii: "x")])
    let long = try body(String(repeating: "x", count: WireLimits.auditReasonBytesMax + 1))
    #expect(throws: WireError.self) { try UsageBody.decode(long.encode()) }
  }
}
