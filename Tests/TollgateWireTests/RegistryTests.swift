// PROTOCOL.md and the code hold the same registries: every row there is a case here and the other
// way round. A table is found by its heading, so a renamed heading fails too.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateWire

@Suite(.blocking) struct RegistryTests {
  /// Column texts of the first table below the heading.
  private func table(_ heading: String) throws -> [[String]] {
    let lines = try Repository.text("proto/PROTOCOL.md").split(
      separator: "\n", omittingEmptySubsequences: false)
    guard let start = lines.firstIndex(where: { $0.hasPrefix("#") && $0.hasSuffix(heading) }) else {
      throw VectorError("PROTOCOL.md has no heading that ends in \(heading)")
    }
    let rows = lines[(start + 1)...].drop { !$0.hasPrefix("|") }.prefix { $0.hasPrefix("|") }
    guard rows.count > 2 else { throw VectorError("no table below \(heading)") }
    return rows.dropFirst(2).map { row in
      row.split(separator: "|", omittingEmptySubsequences: false).dropFirst().dropLast().map {
        $0.trimmed
      }
    }
  }

  private func pairs(_ heading: String) throws -> [String] {
    try table(heading).map { "\($0[0]) \($0[1])" }
  }

  @Test func opcodes() throws {
    let code = Opcode.allCases.map { opcode in
      let digits = String(opcode.rawValue, radix: 16, uppercase: true)
      let kind =
        switch opcode.kind {
        case .request: "request"
        case .reply: "reply"
        case .push: "push"
        case .replyOrPush: "reply or push"
        }
      return "0x\(digits.count == 1 ? "0" : "")\(digits) \(opcode.name) \(kind)"
    }
    #expect(try table("7.1 Opcodes").map { "\($0[0]) \($0[1]) \($0[2])" } == code)
  }

  @Test func reasons() throws {
    #expect(try pairs("7.2 Reasons") == Reason.allCases.map { "\($0.rawValue) \($0.name)" })
  }

  @Test func sources() throws {
    #expect(try pairs("7.3 Sources") == Source.allCases.map { "\($0.rawValue) \($0.name)" })
  }

  @Test func errors() throws {
    #expect(try pairs("7.4 Errors") == ErrorCode.allCases.map { "\($0.rawValue) \($0.name)" })
  }

  @Test func `every error says where it appears, its effect and its retry`() throws {
    for row in try table("7.4 Errors") {
      #expect(row.count == 5)
      #expect(row[2].split(separator: " ").allSatisfy { ["C", "R", "I", "A"].contains($0) })
      #expect(["not applied", "unknown"].contains(row[3]), "\(row)")
      #expect(!row[4].isEmpty)
    }
  }

  @Test func features() throws {
    #expect(try pairs("7.5 Features") == ["0 reservations"])
    #expect(ProtocolFeatures.reservations.rawValue == 1 << 0)
    #expect(
      Opcode.allCases.filter { $0.feature == .reservations }
        == [.reserve, .settle, .release, .extend, .refund])
    #expect(Opcode.allCases.allSatisfy { [[], .reservations].contains($0.feature) })
  }

  @Test func `admin methods`() throws {
    #expect(try pairs("8. Admin") == AdminMethod.allCases.map { "\($0.rawValue) \($0.name)" })
  }

  @Test func `query methods`() throws {
    #expect(
      try pairs("9.5 QUERY (0x3C)") == QueryMethod.allCases.map { "\($0.rawValue) \($0.name)" })
  }

  @Test func `numbers and names are unique`() {
    #expect(Set(Opcode.allCases.map(\.name)).count == Opcode.allCases.count)
    #expect(Set(Reason.allCases.map(\.name)).count == Reason.allCases.count)
    #expect(Set(ErrorCode.allCases.map(\.name)).count == ErrorCode.allCases.count)
    #expect(Set(AdminMethod.allCases.map(\.name)).count == AdminMethod.allCases.count)
  }

  @Test func `the limits of the document are the limits of the code`() throws {
    let text = try Repository.text("proto/PROTOCOL.md")
    for wanted in [
      "| frame before WELCOME | 4,096 bytes |", "| frame | WELCOME says; 1,048,576 bytes unless",
      "| frame of CHECK, CONSUME, POST, CANCEL, RESERVE, SETTLE, RELEASE, EXTEND, REFUND | 98,304",
      "| ttl of a RESERVE or EXTEND | 1 … 86,400,000 ms; 60,000 where",
      "| grace of a reservation; time for a late settle | 5 s; 24 h |",
      "| reservations of a subject at a time | configured; 1,000 |",
      "| reason of a REFUND | 256 bytes |", "| burns in a decision | 64 |",
      "| cells; parts; charges of a usage body | 64; 96; 16 |", "| deadline | 600,000 ms |",
      "| records in a frame | 1,024 |", "| items in a record | 16 |",
      "| trace parent | 64 bytes |", "| client name; token | 64; 512 bytes |",
      "| entries in BATCH, PRESENT | 4,096 |", "| body of a delta | 786,432 bytes |",
      "| document in a frame | 1,044,480 bytes |", "| balances in a page | 2,048 |",
      "| configuration of an account in BALANCES_REPLY | 262,144 bytes |",
      "| ADMIN requests at work in a sidecar | 64 |",
    ] {
      // As a truth value of its own, so that a failure quotes the row and not the document.
      let found = text.contains(wanted)
      #expect(found, "\(wanted)")
    }
    #expect(WireLimits.helloFrameBytesMax == 4096)
    #expect(WireLimits.dataFrameBytesMax == 98_304)
    #expect(WireLimits.frameBytesMax == 1_048_576)
    #expect(WireLimits.deadlineMillisecondsMax == 600_000)
    #expect(WireLimits.recordsMax == 1024)
    #expect(WireLimits.entriesMax == 4096)
    #expect(WireLimits.deltaBodyBytesMax == 786_432)
    #expect(WireLimits.documentBytesMax == 1_044_480)
    #expect(WireLimits.balancesMax == 2048)
    #expect(WireLimits.accountConfigBytesMax == 262_144)
    #expect(WireLimits.ttlMillisecondsMax == 86_400_000)
    #expect(WireLimits.refundReasonBytesMax == 256)
    #expect(WireLimits.burnsMax == 64)
    #expect(WireLimits.cellsMax == 64 && WireLimits.partsMax == 96 && WireLimits.chargesMax == 16)
    #expect(HoldBounds.ttlDefault == 60_000)
    #expect(HoldBounds.grace == 5_000)
    #expect(HoldBounds.lateHorizon == 24 * 3_600_000)
    #expect(HoldBounds.perSubjectMax == 1_000)
    #expect(Window.codeBytesMax == 80)
  }
}

extension Substring {
  fileprivate var trimmed: String {
    String(drop { $0 == " " }.reversed().drop { $0 == " " }.reversed())
  }
}
