// adjust, usage --history, top and tail of the built binary, against a mini sidecar.

import Foundation
import Testing
import TollgateCore
import TollgateServer
import TollgateTesting
import TollgateWire

@Suite(.serialized, .blocking) struct SeeingCommandTests {
  private struct Harness {
    let directory: TemporaryDirectory
    let fixture: AdminFixture
    let sidecar: MiniSidecar

    init() async throws {
      directory = try TemporaryDirectory("see")
      fixture = try AdminFixture()
      sidecar = try await MiniSidecar(fixture, directory: directory) { _ in
        .error(.unavailable, message: "no decision prepared")
      }
    }

    func run(_ arguments: String...) async throws -> CommandRun {
      try await CommandHarness.run(arguments, directory, ["TOLLGATE_UNIX": sidecar.path])
    }
  }

  @Test func anAdjustmentTakesItsSignAsItIsTyped() async throws {
    let harness = try await Harness()
    let acme = harness.fixture.acme
    harness.fixture.backend.edit {
      $0.ledger[acme] = [LedgerBilling(cursor: StreamPosition(epoch: 1, sequence: 0), totals: [])]
    }
    let id = AdminFixture.id(9).hex
    let up = try await harness.run(
      "adjust", "acme", "chat.requests", "+30", "--reason", "late usage", "--id", id)
    #expect(up.code == 0, "\(up.error)")
    #expect(
      up.out == """
          acme chat.requests in the month from 2025-11-01T00:00:00Z: 0 → 30 as delivered
        applied (durable: redis, id \(id))

        """)
    let down = try await harness.run(
      "adjust", "acme", "chat.requests", "-7", "--reason", "goodwill")
    #expect(down.code == 0, "\(down.error)")
    #expect(harness.fixture.backend.read(\.adjustments).map(\.amount) == [30, -7])
  }

  @Test func historyAddsThePagesUp() async throws {
    let harness = try await Harness()
    let page = HistoryPage(
      rows: [
        .init(
          key: ["chat.requests", "small"], used: 5, charged: 4, absorbed: 1, refunded: -1,
          adjusted: 2, deltas: 3)
      ], next: "1|x")
    var last = page
    last.next = nil
    harness.fixture.backend.edit { [last] in $0.historyPages = [page, last] }
    let run = try await harness.run(
      "usage", "acme", "--history", "--by", "feature,model", "--from", "2025-11-01", "--to",
      "2025-11-02T12:00:00Z")
    #expect(run.code == 0, "\(run.error)")
    #expect(
      run.out == """
        acme, 2025-11-01T00:00:00Z … 2025-11-02T12:00:00Z, as delivered to the ledger
        FEATURE        MODEL  USED  CHARGED  ABSORBED  REFUNDED  ADJUSTED  BILLED  DELTAS
        chat.requests  small    10        8         2        -2         4      10       6

        """)
    #expect(harness.fixture.backend.read(\.questions).map(\.cursor) == [nil, "1|x"])
  }

  @Test func topIsATableAndADocument() async throws {
    let harness = try await Harness()
    try harness.fixture.use(harness.fixture.acme, "chat.requests", .month, settled: 40)
    let use = BucketSample.Use(
      time: harness.fixture.backend.read(\.now) + -10, account: harness.fixture.acme,
      feature: try Name("chat.requests"), units: 25)
    harness.fixture.backend.edit { $0.samples = [BucketSample(uses: [use], isCut: false)] }
    let table = try await harness.run("top", "--once", "--timeout", "60s")
    #expect(table.code == 0, "\(table.error)")
    #expect(
      table.out == """
        at 2025-11-21T04:40:00Z, of the last 10 s
        ACCOUNT  FEATURE        PER SECOND  UNITS  DELTAS  LIMIT         USED  REMAINING  AMOUNT
        acme     chat.requests         2.5     25       1  chat.month  40.0 %         60     100

        """)
    let json = try await harness.run("top", "--once", "--json", "--timeout", "60s")
    #expect(try Document(json: json.out)["rows"]?.first?["milli_per_second"] == 2_500)
  }

  @Test func tailSaysWhatPassedAndWhatWasDropped() async throws {
    let harness = try await Harness()
    let event = TailReply.Event(
      time: harness.fixture.backend.read(\.now), subject: try Subject("acme/ann"),
      operation: AdminFixture.id(1), kind: "consume",
      items: [.init(feature: try Name("chat.requests"), amount: 2)], allowed: false,
      reason: "QUOTA_EXCEEDED", source: "redis", limit: try Name("chat.month"), replayed: false,
      microseconds: 310)
    harness.fixture.backend.edit { $0.passed = ([event], 12) }
    let run = try await harness.run("tail", "--limit", "1", "--denied")
    #expect(run.code == 0, "\(run.error)")
    #expect(
      run.out == "2025-11-21T04:40:00Z DENY consume acme/ann chat.requests=2 QUOTA_EXCEEDED by "
        + "chat.month 310 µs \(AdminFixture.id(1))\n")
    #expect(run.error.contains("12 more were not shown"))
  }
}

extension Document {
  fileprivate var first: Document? {
    if case .list(let values) = self { return values.first }
    return nil
  }
}
