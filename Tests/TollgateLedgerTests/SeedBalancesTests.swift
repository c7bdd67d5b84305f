// What BALANCES tells beside the periods of today: what later periods hang on, and nothing that the
// other side does not know.

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct SeedBalancesTests {
  let books: Books
  private static let day: Int64 = 86_400_000

  init() throws {
    books = try Books()
    try books.open()
  }

  private func seeded(plainOnly: Bool = false, since: WallTime = start) throws -> [CellBalance] {
    var found: [CellBalance] = []
    try books.store.seed(account: "acme", since: since, pageSize: 10, plainOnly: plainOnly) {
      found += $1
      #expect($1.count <= 10 && $2 == ($1.count < 10))
    }
    return found
  }

  private func count(_ sequence: Int64, _ window: Window, _ period: Period) throws {
    let body = UsageBody(
      subject: try Subject("acme/ann"), feature: try Name("tokens"), period: november,
      cells: [
        CellReference(level: 1, window: .month, period: november),
        CellReference(level: 2, window: window, period: period),
      ], catalogVersion: 1, source: .redis)
    let entry = OutboxEntry(
      sequence: sequence, kind: .usage,
      id: DeltaID(operation: operation(Int(sequence)), index: 0), time: start, actual: sequence,
      charged: sequence, absorbed: 0, body: body.encode())
    #expect(try books.apply([entry]).posted == 1)
  }

  @Test func aSlidingLimitGetsThePeriodBeforeHoweverLongItWas() throws {
    let week = Window.seconds(604_800)
    let running = week.period(containing: start)
    let before = week.period(containing: running.start + -1)
    let older = week.period(containing: before.start + -1)
    for (index, period) in [running, before, older].enumerated() {
      try count(Int64(index) + 1, week, period)
    }
    let found = try seeded(since: running.end + -1).filter { $0.window == "604800s" }
    #expect(found.map(\.start) == [before, running].map(\.start.milliseconds))
  }

  /// No sliding limit is that long.
  @Test func ofLongerOnesThePeriodBeforeIsNotTold() throws {
    let long = Window.seconds(604_801)
    let running = long.period(containing: start)
    try count(1, long, long.period(containing: running.start + -1))
    #expect(try !seeded(since: running.end + -1).contains { $0.window == "604801s" })
  }

  @Test func ofEachGrantTheLatestInstancesAreTold() throws {
    var sequence: Int64 = 0
    for id in ["a", "b"] {
      for number in 0..<7 {
        let end = november.start + -Int64(number) * 31 * Self.day
        sequence += 1
        _ = try books.apply([
          try spend(
            sequence, op: Int(sequence), 5,
            parts: [try grant(id, 5, Period(start: end + -31 * Self.day, end: end))])
        ])
      }
    }
    let found = try seeded().filter { $0.window.hasPrefix("$") }
    let grouped = Dictionary(grouping: found, by: \.window)
    #expect(grouped.keys.sorted() == ["$a", "$b"])
    for instances in grouped.values {
      #expect(instances.count == BalancesReply.grantInstances)
      #expect(instances.map(\.end).max() == november.start.milliseconds)
    }
    #expect(try books.soundness() == [])
  }

  @Test func whoDoesNotKnowPartsIsToldUnitsAlone() throws {
    _ = try books.apply([
      try spend(
        1, op: 1, 30,
        parts: [
          try grant("a", 10), overage(.month, 20), try priced("small", 30), deficit(0),
        ])
    ])
    #expect(try seeded().map(\.window).sorted() == ["$a", "-", "M", "oM", "rsmall,0"])
    #expect(try seeded(plainOnly: true).map(\.window) == ["M"])
  }

  @Test func partsAreOfOneMomentWithTheTotals() throws {
    _ = try books.apply([
      try spend(
        1, op: 1, 30,
        parts: [
          try grant("a", 10), overage(.month, 20), overage(.month, 20, level: 2),
          try priced("small", 30), deficit(0),
        ])
    ])
    let answer = try books.store.totals(.init(account: "acme"), partsSince: start)
    let parts = try #require(answer.parts)
    #expect(parts.map(\.window).sorted() == ["$a", "-", "oM", "rsmall,0"])
    #expect(parts.first { $0.window == "oM" }?.settled == 20)
    #expect(answer.position != nil)
    #expect(try books.store.totals(.init(account: "acme")).parts == nil)
    // Of a month that ended longer ago only grants and what is owed are told.
    let later = try books.store.totals(
      .init(account: "acme"), partsSince: november.end + Self.day)
    #expect(later.parts?.map(\.window).sorted() == ["$a", "-"])
  }

  @Test func theDeltasOfACounterAreNamedWithWhatTheyAddedThere() throws {
    let once = Period(start: november.start + -Self.day, end: forever.end)
    _ = try books.apply([
      try spend(1, op: 1, 30, parts: [try grant("a", 10, once), overage(.month, 20)]),
      try spend(2, op: 2, 5),
      try spend(3, op: 3, 9, parts: [try grant("a", 9)]),
      try spend(4, op: 4, -4, kind: .refund, parts: [try grant("a", -4, once)], corrects: 1),
    ])
    func deltas(after: DeltaID? = nil, limit: Int = 100) throws -> LedgerPage<DeltaRecord, DeltaID>
    {
      try books.store.deltas(
        account: "acme", feature: "spend", window: .grant(try name("a")),
        start: once.start.milliseconds, after: after, limit: limit)
    }
    #expect(try deltas().elements.map(\.charged) == [-4, 10])
    let first = try deltas(limit: 1)
    #expect(first.elements.map(\.charged) == [-4])
    let second = try deltas(after: first.next, limit: 1)
    #expect(second.elements.map(\.charged) == [10])
  }

  /// By the feature that its hello names.
  @Test func theHelloSaysWhatIsTold() throws {
    for (features, isAll): (ProtocolFeatures, Bool) in [([], false), ([.reservations], true)] {
      var machine = LedgerSessionMachine(token: "")
      func frame(_ message: some OpcodeMessage, _ correlation: UInt64) throws -> Frame {
        var buffer = ByteBuffer()
        buffer.writeFrame(message, correlation: correlation)
        var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
        decoder.feed(buffer)
        return try #require(try decoder.next())
      }
      _ = machine.received(
        try frame(Hello(role: .ledger, client: "x", token: "", features: features), 1))
      let request = BalancesRequest(account: try Subject("acme"), since: start)
      #expect(
        machine.received(try frame(request, 2))
          == .read(.balances(request, features), correlation: 2))
      _ = try books.apply([
        try spend(1, op: 1, 30, parts: [try grant("a", 30)])
      ])
      var answer = LedgerReads(store: books.store)
        .answer(.balances(request, features), correlation: 2)
      var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
      decoder.feed(answer)
      answer.clear()
      let reply = try BalancesReply.decode(try #require(try decoder.next()))
      #expect(reply.balances.contains { $0.window.code == "$a" } == isAll)
      #expect(reply.balances.contains { $0.window.code == "M" })
    }
  }
}
