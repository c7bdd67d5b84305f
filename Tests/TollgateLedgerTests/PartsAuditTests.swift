// The audit recomputes parts, charges and terms by itself: each sum changed behind the books' back
// is a finding. And prices: what a rate charged against what its units should have cost.

import GRDB
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct PartsAuditTests {
  let books: Books

  static let catalog =
    #"{"version":1,"catalog":{"rates":[{"id":"r","price":150000,"per":1000000}]}}"#
  static let account =
    #"{"version":1,"grants":[{"id":"g","feature":"spend","amount":100,"effective_ms":0}]}"#

  init() throws {
    books = try Books()
    try books.open()
    _ = try books.apply([
      change(1, op: 1, scope: .global, key: "", version: 1, after: Self.catalog),
      change(2, op: 2, scope: .account, key: "acme", version: 1, after: Self.account),
      try spend(
        3, op: 3, 15, parts: [try grant("g", 10), overage(.month, 5)],
        charges: [try charge("r", units: 105, 15)]),
      try spend(4, op: 4, -5, kind: .refund, parts: [overage(.month, -5)], corrects: 3),
    ])
  }

  @Test func soundBooksPass() throws {
    let report = try books.store.verify()
    #expect(report.findings == [])
    #expect(report.charges == 1 && report.priced == 1)
  }

  @Test(arguments: [
    ("UPDATE charges SET charge = charge + 1", "charged 16 for 105 units, its deltas 15"),
    ("UPDATE charges SET units = units + 1", "charged 15 for 106 units"),
    ("DELETE FROM charges", "rate r of series"),
    ("UPDATE charges SET corrections = 3", "charged 15 for 105 units, its deltas 15"),
    ("UPDATE cells SET settled = settled + 1 WHERE window = '$g'", "acme spend $g from 0 holds 11"),
    ("DELETE FROM cells WHERE window = '$g'", "acme spend $g from 0 is missing"),
    ("UPDATE cells SET goes = 5 WHERE window = '$g'", "dropped at the wrong time"),
    ("UPDATE prices SET amount = 1", "the price of r"),
    ("DELETE FROM prices", "the price of r is not on record"),
    ("UPDATE grants SET amount = 99", "grant g of acme is not its change"),
    ("DELETE FROM grants", "grant g of acme is not on record"),
    ("DELETE FROM corrections", "which is not on record"),
    ("UPDATE corrections SET idx = 7", "which is not on record"),
    (
      "UPDATE accounts SET name = 'overage:acme:spent' WHERE name = 'overage:acme:spend'",
      "are not its numbers"
    ),
    (
      """
      UPDATE postings SET amount = CASE amount WHEN 10 THEN 9 ELSE 6 END
      WHERE amount IN (10, 5) AND idx = 0
      """, "are not its numbers"
    ),
    ("UPDATE accounts SET balance = 0 WHERE name LIKE 'refund:%'", "has balance 0"),
    ("INSERT INTO postings SELECT op, 9, bucket, account, amount FROM postings", "without a delta"),
  ])
  func auditNotices(sql: String, finding: String) throws {
    try books.tamper(sql)
    let findings = try books.soundness()
    #expect(findings.contains { $0.contains(finding) }, "\(findings)")
  }

  /// A cap let half of what the rate made be charged; given back in parts, or all at once.
  @Test(arguments: [[67, 67, 66], [1, 199], [200]] as [[Int64]])
  func refundsOfWhatWasClampedLeaveSoundBooks(parts: [Int64]) throws {
    let books = try Books()
    try books.open()
    let catalog = #"{"version":1,"catalog":{"rates":[{"id":"r","price":15,"per":1}]}}"#
    let used = [
      try spend(2, op: 2, 200, feature: "tokens", parts: [try priced("r", 200)]),
      try spend(
        3, op: 2, index: 1, 1_500, absorbed: 1_500,
        parts: [try grant("g", 1_000), overage(.month, 500)],
        charges: [try charge("r", units: 200, 3_000)]),
    ]
    _ = try books.apply([change(1, op: 1, scope: .global, key: "", version: 1, after: catalog)])
    _ = try books.apply(used)
    #expect(try books.soundness() == [])
    func recorded(_ entry: OutboxEntry) throws -> RecordedDelta {
      RecordedDelta(
        id: entry.id, kind: entry.kind, time: entry.time, actual: entry.actual,
        charged: entry.charged, body: try UsageBody.decode(entry.body))
    }
    var earlier: [RecordedDelta] = []
    var sequence: Int64 = 3
    for (step, units) in parts.enumerated() {
      let correction = try #require(
        Correction.refund(
          of: operation(2), recorded: try used.map(recorded), earlier: earlier,
          items: [Item(feature: try Name("tokens"), amount: units)]))
      let entries = correction.shares.enumerated().map { index, share in
        OutboxEntry(
          sequence: sequence + Int64(index) + 1, kind: .refund,
          id: DeltaID(operation: operation(10 + step), index: UInt16(index)), time: start,
          actual: share.actual, charged: share.amount, absorbed: share.absorbed,
          body: share.body.encode())
      }
      sequence += Int64(entries.count)
      _ = try books.apply(entries)
      earlier += try entries.map(recorded)
      #expect(try books.soundness() == [])
    }
    let statement = try books.statement()
    let line = try #require(statement.lines.first { $0.feature == "spend" })
    #expect(line.charged == 0 && line.absorbed == 0 && line.refunds == -1_500)
    #expect(statement.rates.map(\.units) == [0] && statement.rates.map(\.charge) == [0])
    let balances = try books.balances()
    #expect(balances["absorbed:acme:spend"] == 1_500)
    #expect(balances["refund:absorbed:acme:spend"] == -1_500)
    #expect(balances["refund:grant:acme:spend:g"] == -1_000)
  }

  @Test func aRateThatChargedAnotherPriceIsNoticed() throws {
    // 105 units at 0.15 are 15.75: up to 16.74 may be rounding, 17 is not, nor is 14.
    for (charged, isFound) in [(14, true), (15, false), (16, false), (17, true)] {
      let books = try Books()
      try books.open()
      _ = try books.apply([
        change(1, op: 1, scope: .global, key: "", version: 1, after: Self.catalog),
        try spend(
          2, op: 2, Int64(charged), charges: [try charge("r", units: 105, Int64(charged))]),
      ])
      #expect(try books.soundness().isEmpty != isFound, "charged \(charged)")
    }
  }

  @Test func aPriceThatTwoCatalogsSayDifferentlyIsNotSure() throws {
    _ = try books.apply([
      change(
        5, op: 5, scope: .global, key: "", version: 2,
        after: #"{"catalog":{"rates":[{"id":"r","price":1,"per":2}]}}"#),
      try spend(6, op: 6, 90, charges: [try charge("r", units: 1, 90)]),
    ])
    let report = try books.store.verify()
    #expect(report.findings == [] && report.priced == 0)
    #expect(try books.statement().rates.map(\.price) == [nil])
  }

  @Test func aVersionOfARateHasItsOwnSumAndPrice() throws {
    let from = november.start.milliseconds
    _ = try books.apply([
      change(
        5, op: 5, scope: .global, key: "", version: 2,
        after: """
          {"catalog":{"rates":[{"id":"r","price":150000,"per":1000000},
          {"id":"r","price":3,"per":4,"from":\(from)}]}}
          """),
      try spend(6, op: 6, 30, charges: [try charge("r", units: 40, 30, from: from)]),
    ])
    let rates = try books.statement().rates
    #expect(rates.map(\.from) == [0, from])
    #expect(rates.map(\.charge) == [15, 30])
    #expect(rates.map(\.price) == [3, 3] && rates.map(\.per) == [20, 4])
    #expect(try books.soundness() == [])
  }
}
