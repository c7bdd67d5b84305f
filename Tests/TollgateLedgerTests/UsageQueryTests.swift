// Usage over time: grouped by what deltas say, page by page, each delta once.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct UsageQueryTests {
  let books: Books

  init() throws {
    books = try Books()
    try books.open()
  }

  private func filter(
    _ by: [String] = [], subject: String = "acme", from: Int64 = 0, to: Int64? = nil,
    days: [Int64] = [], feature: String? = nil
  ) throws -> LedgerStore.UsageFilter {
    LedgerStore.UsageFilter(
      account: "acme", subject: subject, by: try by.map { try #require(UsageGrouping(text: $0)) },
      from: start.milliseconds + from, to: start.milliseconds + (to ?? 1_000_000), days: days,
      feature: feature)
  }

  private func corrected(_ sequence: Int64, op: Int, _ kind: DeltaKind, _ amount: Int64) throws
    -> OutboxEntry
  {
    var entry = try usage(
      sequence, op: op, amount: amount, kind: kind, attributes: ["model": "small"])
    var body = try UsageBody.decode(entry.body)
    body.corrects = operation(1)
    entry.body = body.encode()
    return entry
  }

  @Test func itIsGroupedByFeatureMemberAndAttribute() throws {
    _ = try books.apply([
      try usage(1, op: 1, amount: 5, attributes: ["model": "small"]),
      try usage(2, op: 2, amount: 7, attributes: ["model": "large"]),
      try usage(3, op: 3, amount: 1, subject: "acme/bob", attributes: ["model": "small"]),
      try usage(4, op: 4, amount: 2, subject: "acme", feature: "chat"),
    ])
    let rows = try books.store.usage(filter(["feature", "attribute:model", "level:2"])).rows
    #expect(
      rows.map(\.key) == [
        ["chat", "", ""], ["tokens", "large", "acme/ann"], ["tokens", "small", "acme/ann"],
        ["tokens", "small", "acme/bob"],
      ])
    #expect(rows.map(\.charged) == [2, 7, 5, 1])
    #expect(try books.store.usage(filter(subject: "acme/bob")).rows.map(\.used) == [1])
    #expect(try books.store.usage(filter(feature: "chat")).rows.map(\.used) == [2])
  }

  @Test func correctionsStandBesideWhatWasUsed() throws {
    _ = try books.apply([
      try usage(1, op: 1, amount: 10, absorbed: 2, attributes: ["model": "small"]),
      try corrected(2, op: 2, .refund, -3), try corrected(3, op: 3, .adjustment, -1),
      try usage(4, op: 1, index: 64, amount: -4, kind: .reversal),
    ])
    let row = try #require(try books.store.usage(filter()).rows.first)
    #expect(row.used == 8 && row.charged == 6 && row.absorbed == 2)
    #expect(row.refunded == -3 && row.adjusted == -1 && row.deltas == 4)
  }

  @Test func daysAreThoseThatAreNamed() throws {
    // Deltas are born one millisecond apart; "days" of two.
    _ = try books.apply(try (1...6).map { try usage(Int64($0), op: $0, amount: 1) })
    let days = [start.milliseconds + 2, start.milliseconds + 4]
    let rows = try books.store.usage(filter(["day"], from: 1, to: 6, days: days)).rows
    #expect(rows.map(\.key) == [[""], ["\(days[0])"], ["\(days[1])"]])
    #expect(rows.map(\.used) == [1, 2, 2])
  }

  @Test func pagesTogetherAreTheWholeWhateverTheirSize() throws {
    var random = Seeded(11)
    var entries: [OutboxEntry] = []
    for number in 1...200 {
      entries.append(
        try usage(
          Int64(number), op: number, amount: Int64.random(in: 1...9, using: &random),
          subject: ["acme", "acme/ann", "acme/bob"].randomElement(using: &random) ?? "acme",
          feature: ["tokens", "chat"].randomElement(using: &random) ?? "chat",
          attributes: ["model": ["a", "b"].randomElement(using: &random) ?? "a"]))
    }
    _ = try books.apply(entries)
    let whole = try books.store.usage(filter(["feature", "attribute:model"]))
    #expect(whole.next == nil)
    #expect(whole.rows.reduce(0) { $0 + $1.deltas } == 200)
    for size in [1, 7, 64, 199, 200] {
      var sums: [[String]: Int64] = [:]
      var key: LedgerStore.UsagePageKey?
      var pages = 0
      repeat {
        let page = try books.store.usage(
          filter(["feature", "attribute:model"]), after: key, limit: size)
        for row in page.rows { sums[row.key, default: 0] += row.charged }
        #expect(page.rows.reduce(0) { $0 + $1.deltas } <= Int64(size))
        key = page.next
        pages += 1
      } while key != nil && pages < 1_000
      #expect(
        sums == Dictionary(uniqueKeysWithValues: whole.rows.map { ($0.key, $0.charged) }))
    }
  }

  @Test func onlyTheSpanThatWasAskedForIsReadAndOtherAccountsAreNot() throws {
    _ = try books.apply([
      try usage(1, op: 1, amount: 1), try usage(2, op: 2, amount: 2),
      try usage(3, op: 3, amount: 4, subject: "acmeb/ann"),
    ])
    #expect(try books.store.usage(filter(from: 2)).rows.map(\.used) == [2])
    #expect(try books.store.usage(filter(from: 0, to: 2)).rows.map(\.used) == [1])
    #expect(try books.store.usage(filter(subject: "acme/an")).rows.isEmpty)
  }

  @Test func anAdjustmentsReasonIsOnRecordAndMovesNothing() throws {
    let after = "{\"subject\":\"acme\",\"feature\":\"tokens\",\"adjust\":-3}"
    _ = try books.apply([
      try usage(1, op: 1, amount: 10),
      change(
        2, op: 2, scope: .counter, key: "acme", version: 0, after: after, action: "adjust"),
    ])
    #expect(try books.store.parked().isEmpty)
    #expect(try books.total() == 10)
    #expect(
      try books.store.configHistory(.account("acme")).elements.map(\.action) == ["adjust"])
    #expect(try books.soundness() == [])
  }
}
