// reserve, settle, extend, release and refund by hand: what is sent, what is printed, and the exit
// codes.

import Foundation
import NIOConcurrencyHelpers
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateRedis
@testable import TollgateServer

private let time = WallTime(milliseconds: 1_763_700_000_000)

/// What the mini sidecar was asked last.
private final class Heard: Sendable {
  private let box = NIOLockedValueBox<(RequestMode, AskedRecord)?>(nil)

  func hear(_ mode: RequestMode, _ record: AskedRecord) {
    box.withLockedValue { $0 = (mode, record) }
  }

  func last() throws -> (mode: RequestMode, record: AskedRecord) {
    guard let last = box.withLockedValue({ $0 }) else {
      throw AdminFailure(.internalError, "nothing was asked")
    }
    return last
  }
}

private func listening(
  _ heard: Heard, _ answer: DecisionRecord
) async throws -> CommandHarness {
  try await CommandHarness(hold: { mode, record in
    heard.hear(mode, record)
    return answer
  })
}

private func decision(_ reason: Reason) -> Decision {
  Decision(reason: reason, source: .redis, time: time)
}

@Suite(.serialized, .blocking) struct ReservationCommandTests {
  private let hold = AdminFixture.id(7)
  private let id = AdminFixture.id(8)

  // MARK: what is sent

  @Test func reserveSendsItsTerms() async throws {
    let heard = Heard()
    var granted = decision(.allowed)
    granted.expires = time + 90_000
    granted.items = [.init(limit: try Name("chat.month"), remaining: 4, settled: 90, held: 6)]
    let harness = try await listening(heard, .decision(granted))
    let run = try await harness.run(
      "reserve", "acme/ann", "chat.requests=6", "--ttl", "90s", "--overrun", "overdraft=12",
      "--attribute", "model=small", "--id", id.hex)
    #expect(run.code == 0, "\(run.error)")
    #expect(
      run.out == """
        allowed (ALLOWED)
        held until 2025-11-21T04:41:30Z
        FEATURE        ASKED  LIMIT       SETTLED  HELD  REMAINING  RESET
        chat.requests      6  chat.month       90     6          4  -
        id \(id)

        """)
    let (mode, record) = try heard.last()
    #expect(mode == .reserve && record.id == id)
    #expect(record.items == [Item(feature: try Name("chat.requests"), amount: 6)])
    #expect(record.attributes == ["model": "small"])
    #expect(
      record.terms == HoldTerms(ttlMilliseconds: 90_000, overrun: .overdraft(bound: 12)))
  }

  @Test func settleTellsWhatWasCharged() async throws {
    let heard = Heard()
    var settled = decision(.settledClamped)
    settled.settlements = [
      .init(actual: 9, charged: 7), .init(actual: 40, charged: 30),
    ]
    settled.items = [
      .init(limit: try Name("out.month"), remaining: 0, settled: 107, held: 0),
      .init(limit: nil, remaining: nil, settled: 30, held: 0),
    ]
    settled.derived = [try Name("spend")]
    settled.burns = [
      .init(item: 1, grant: try Name("promo"), amount: 20), .init(item: 1, grant: nil, amount: 10),
    ]
    let harness = try await listening(heard, .decision(settled))
    let run = try await harness.run(
      "settle", "acme/ann", hold.hex, "tokens.output=9", "--floor", "--id", id.hex)
    #expect(run.code == 0, "\(run.error)")
    #expect(
      run.out == """
        settled (SETTLED_CLAMPED)
        FEATURE        ACTUAL  CHARGED  ABSORBED  LIMIT      SETTLED  HELD  REMAINING  RESET
        tokens.output       9        7         2  out.month      107     0          0  -
        spend              40       30        10  -               30     0  unlimited  -
        FEATURE  FROM GRANT       UNITS
        spend    promo               20
        spend    (beyond grants)     10
        id \(id)

        """)
    let (mode, record) = try heard.last()
    #expect(mode == .settle)
    #expect(record.terms == HoldTerms(reservation: hold, isFinal: true, isFloor: true))
  }

  @Test func settleWithMoreLeavesTheHoldAlive() async throws {
    let heard = Heard()
    let harness = try await listening(heard, .decision(decision(.settled)))
    let run = try await harness.run("settle", "acme", hold.hex, "a=0", "--more")
    #expect(run.code == 0, "\(run.error)")
    let record = try heard.last().record
    #expect(record.terms == HoldTerms(reservation: hold, isFinal: false))
    #expect(record.items.map(\.amount) == [0])
  }

  @Test func extendAndReleaseNameTheReservation() async throws {
    let heard = Heard()
    var extended = decision(.extended)
    extended.expires = time + 300_000
    let harness = try await listening(heard, .decision(extended))
    let run = try await harness.run("extend", "acme", hold.hex, "--ttl", "5m", "--id", id.hex)
    #expect(run.out == "extended (EXTENDED)\nheld until 2025-11-21T04:45:00Z\nid \(id)\n")
    #expect(try heard.last().mode == .extend)
    #expect(
      try heard.last().record.terms == HoldTerms(reservation: hold, ttlMilliseconds: 300_000))
    _ = try await harness.run("release", "acme", hold.hex)
    #expect(try heard.last().mode == .release)
    #expect(try heard.last().record.terms == HoldTerms(reservation: hold))
  }

  @Test func refundTellsWhatCameBack() async throws {
    let heard = Heard()
    var refunded = decision(.refunded)
    refunded.settlements = [.init(actual: -5, charged: -5)]
    let harness = try await listening(heard, .decision(refunded))
    let run = try await harness.run(
      "refund", "acme", hold.hex, "--reason", "a complaint", "--json", "--id", id.hex)
    #expect(run.code == 0, "\(run.error)")
    let document = try Document(json: run.out)
    #expect(document["operation"] == .string(id.hex))
    #expect(document["corrects"] == .string(hold.hex))
    #expect(document["reason"] == "REFUNDED")
    #expect(
      document["settlements"] == [["actual": -5, "charged": -5, "absorbed": 0]])
    #expect(
      try heard.last().record.terms == HoldTerms(reservation: hold, reason: "a complaint"))
    #expect(try heard.last().record.items.isEmpty)
  }

  // MARK: exit codes

  @Test func aDenialIsOne() async throws {
    let harness = try await listening(Heard(), .decision(decision(.holdsExceeded)))
    let run = try await harness.run("reserve", "acme", "a=1", "--id", id.hex)
    #expect(run.code == 1)
    #expect(run.out.hasPrefix("denied (HOLDS_EXCEEDED)\n"))
  }

  @Test(arguments: [
    ["reserve", "acme"], ["reserve", "acme", "x=1", "--ttl", "0s"],
    ["reserve", "acme", "x=1", "--ttl", "25h"], ["reserve", "acme", "x=1", "--overrun", "free"],
    ["reserve", "acme", "x=1", "--overrun", "overdraft"],
    ["reserve", "acme", "x=1", "--attribute", "model"], ["settle", "acme", "zz", "x=1"],
    ["settle", "acme", "00000000000000000000000000000001"],
    ["settle", "acme", "00000000000000000000000000000001", "x"],
    ["settle", "acme", "00000000000000000000000000000001", "x=1", "x=2"],
    ["settle", "acme", "00000000000000000000000000000001", "x=1", "--more", "--floor"],
    ["release", "acme"], ["extend", "acme", "00000000000000000000000000000001"],
    ["refund", "acme", "00000000000000000000000000000001", "x"],
  ])
  func aUsageErrorIsTwo(_ arguments: [String]) async throws {
    let directory = try TemporaryDirectory("cli")
    let run = try await CommandHarness.run(arguments, directory)
    #expect(run.code == 2, "\(arguments): \(run.error)")
    #expect(run.error.hasPrefix("Error: ") && run.out.isEmpty)
  }

  @Test(
    arguments: [
      (ErrorCode.reservationUnknown, 4, "tell what was used with tollgate consume"),
      (.reservationEnded, 4, "for more, reserve anew"),
      (.overrunRejected, 4, "settle what the hold covers"),
      (.nothingToRefund, 4, "all of it came back already"), (.badRequest, 2, "so said the sidecar"),
      (.unavailable, 3, "so said the sidecar"),
    ] as [(ErrorCode, Int32, String)])
  func aRefusalSaysWhatToDo(_ code: ErrorCode, _ status: Int32, _ wanted: String) async throws {
    let harness = try await listening(Heard(), .error(code, message: "so said the sidecar"))
    let run = try await harness.run("settle", "acme", hold.hex, "a=1")
    #expect(run.code == status)
    #expect(run.error.contains("so said the sidecar") && run.error.contains(wanted), "\(run.error)")
  }

  @Test func anUnknownOutcomeIsSixAndNamesTheId() async throws {
    let harness = try await listening(Heard(), .error(.outcomeUnknown, message: "cut off"))
    let run = try await harness.run("settle", "acme", hold.hex, "a=1", "--id", id.hex)
    #expect(run.code == 6)
    #expect(run.error.contains("→ run it again with --id \(id): it is applied once"))
  }

  @Test func aSidecarWithoutReservationsIsNotAsked() async throws {
    let harness = try await CommandHarness(features: [])
    let run = try await harness.run("reserve", "acme", "a=1", "--json")
    #expect(run.code == 4)
    #expect(run.error.contains("does not serve RESERVE"))
    #expect(try Document(json: run.out)["name"] == "CONFLICT")
  }

  @Test func helpSaysHowAReservationEnds() async throws {
    let directory = try TemporaryDirectory("cli")
    for command in ["reserve", "settle", "extend", "release", "refund"] {
      let run = try await CommandHarness.run([command, "--help"], directory)
      #expect(run.code == 0 && run.out.contains("USAGE: tollgate \(command)"))
    }
    let run = try await CommandHarness.run(["reserve", "--help"], directory)
    #expect(run.out.contains("nothing is charged. Only features"), "\(run.out)")
  }
}
