// Statements: who paid for what, rates, grants, and that the total is the one that is billed.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct StatementTests {
  let books: Books

  init() throws {
    books = try Books()
    try books.open()
  }

  private func month() throws {
    _ = try books.apply([
      try spend(
        1, op: 1, 100, absorbed: 9,
        parts: [try grant("a", 30), try grant("b", 20), overage(.month, 40)],
        charges: [try charge("r", units: 700, 100)]),
      try spend(
        2, op: 2, 60, parts: [overage(.month, 45), deficit(15)],
        charges: [try charge("r", units: 400, 60)]),
      try spend(
        3, op: 1, index: 64, -10, kind: .reversal, parts: [try grant("b", -10)],
        charges: [try charge("r", units: -70, -10)]),
      try spend(4, op: 4, -25, kind: .refund, parts: [overage(.month, -20)], corrects: 2),
      try spend(5, op: 5, 4, kind: .adjustment),
      try spend(6, op: 6, 1, feature: "chat"),
    ])
  }

  @Test func aStatementNamesEveryPayerAndAddsUpToTheBill() throws {
    try month()
    let statement = try books.statement()
    #expect(statement.lines.map(\.feature) == ["chat", "spend"])
    let line = statement.lines[1]
    #expect(line.used == 169 && line.reversed == 10)
    #expect(line.included == 10 && line.granted == 40 && line.overage == 85)
    #expect(line.deficit == 15 && line.refunds == -25 && line.adjusted == 4)
    #expect(line.absorbed == 9 && line.deltas == 5)
    let payers = [
      line.included, line.granted, line.overage, line.deficit, line.refunds, line.adjusted,
    ]
    #expect(line.charged == payers.reduce(0, +))
    // The number that `reconcile` compares.
    #expect(try books.total("acme", "spend") == line.charged)
    #expect(try books.counters()["acme spend M"] == line.charged)
    #expect(
      line.entries.map { "\($0.column) \($0.part) \($0.grant ?? "") \($0.amount)" } == [
        "usage absorbed  9", "adjustment included  4", "usage deficit  15", "usage grant a 30",
        "usage grant b 10", "usage overage  85", "refund overage  -20", "refund included  -5",
        "usage included  10",
      ])
    #expect(
      statement.rates == [
        .init(feature: "spend", rate: "r", from: 0, units: 1030, charge: 150)
      ])
  }

  @Test func csvHasARowForEachNumber() throws {
    try month()
    let rows = try books.statement().csv.split(separator: "\r\n").map { line in
      line.split(separator: ",", omittingEmptySubsequences: false).dropFirst(3)
        .joined(separator: ",")
    }
    for row in [
      "feature,item,id,version,units,amount", "spend,grant,b,,,10",
      "spend,refund.overage,,,,-20", "spend,charged,,,,129",
      "spend,rate,r,1970-01-01T00:00:00Z,1030,150", "spend,grant.burnt,a,,,30",
    ] { #expect(rows.contains(row), "\(row) in \(rows)") }
  }

  @Test func exportedDeltasSayWhatTheyAreMadeOf() throws {
    try month()
    var lines: [ExportLine] = []
    _ = try books.store.export(format: .json) { text in
      lines.append(try JSONDecoder().decode(ExportLine.self, from: Data(text.utf8)))
    }
    let first = lines[0]
    #expect(first.included == 10 && first.grants == ["a": 30, "b": 20] && first.overage == 40)
    #expect(first.charges == ["r@0": 100])
    let refund = try #require(lines.first { $0.kind == "refund" })
    #expect(refund.overage == -20 && refund.included == -5)
    #expect(refund.corrects == operation(2).hex)
    #expect(lines.filter { $0.kind == "adjustment" }.map(\.charged) == [4])
  }

  // MARK: Grants

  private func configure(_ sequence: Int64, version: Int64, _ grants: String...) -> OutboxEntry {
    change(
      sequence, op: Int(sequence), scope: .account, key: "acme", version: version,
      after: "{\"version\":\(version),\"grants\":[\(grants.joined(separator: ","))]}")
  }

  private func terms(_ id: String, _ amount: Int, _ more: String = "") -> String {
    #"{"id":"\#(id)","feature":"spend","amount":\#(amount),"effective_ms":5\#(more)}"#
  }

  private func line(_ id: String, now: WallTime? = nil) throws -> TollgateLedger.Statement.GrantLine
  {
    let statement = try books.store.statement(
      account: "acme", start: november.start.milliseconds, now: now)
    return try #require(statement.grants.first { $0.id == id })
  }

  @Test func aGrantIsIssuedBurntAndHasARemainder() throws {
    _ = try books.apply([
      configure(1, version: 1, terms("a", 100, #","kind":"promotional","reason":"hello""#)),
      try spend(2, op: 2, 30, parts: [try grant("a", 30)]),
      try spend(3, op: 3, -5, kind: .refund, parts: [try grant("a", -5)], corrects: 2),
    ])
    let line = try line("a")
    #expect(line.state == .active && line.amount == 100 && line.kind == "promotional")
    #expect(line.burnt == 25 && line.burntInPeriod == 25)
    #expect(line.remaining == 75 && line.lapsed == 0 && line.reason == "hello")
    #expect(try books.soundness() == [])
  }

  @Test func whatLapsedIsNamedApartFromWhatRemains() throws {
    let expiry = (november.start + 86_400_000).milliseconds
    let past = start.milliseconds
    _ = try books.apply([
      configure(
        1, version: 1, terms("old", 100, #","expires_ms":\#(expiry)"#), terms("void", 100),
        terms("gone", 100), terms("later", 100)),
      try spend(2, op: 2, 70, parts: [try grant("old", 30), try grant("void", 40)]),
      configure(
        3, version: 2, terms("old", 100, #","expires_ms":\#(expiry)"#),
        terms("void", 100, #","voided_ms":\#(past)"#),
        #"{"id":"later","feature":"spend","amount":9,"effective_ms":\#(expiry)}"#),
    ])
    #expect(try line("old", now: start).state == .active)
    #expect(try line("old").state == .expired)
    #expect(try line("old").lapsed == 70)
    #expect(try line("void").state == .voided)
    #expect(try line("void").lapsed == 60 && line("void").remaining == 0)
    #expect(try line("gone").state == .removed)
    #expect(try line("later", now: start).state == .pending)
    #expect(try line("later", now: start).amount == 9)
  }

  @Test func anOlderConfigurationThatComesLaterChangesNoTerms() throws {
    _ = try books.apply([
      configure(1, version: 2, terms("a", 200)), configure(2, version: 1, terms("a", 100)),
    ])
    #expect(try line("a").amount == 200)
    #expect(try books.soundness() == [])
  }

  @Test func termsThatCannotBeReadPostNothingAndStopNothing() throws {
    _ = try books.apply([
      configure(
        1, version: 1, "7", #"{"id":"no spaces allowed","feature":"x","amount":1}"#,
        #"{"id":"a","feature":"spend","amount":1.5}"#, terms("b", 5)),
      change(2, op: 2, scope: .account, key: "acme", version: 2, after: "no json"),
    ])
    #expect(try books.store.parked().isEmpty)
    #expect(try books.statement().grants.map(\.id) == ["b"])
    #expect(try books.soundness() == [])
  }

  @Test func aRecurringGrantSaysWhatCameOver() throws {
    let days = (0..<4).map { Window.day.period(containing: november.start + $0 * 86_400_000) }
    let day = #","every":"day","rollover":{"min":0,"max":30}"#
    _ = try books.apply([
      configure(1, version: 1, terms("d", 100, day)),
      try spend(2, op: 2, 80, parts: [try grant("d", 80, days[0])]),
      try spend(3, op: 3, 110, parts: [try grant("d", 110, days[1])]),
      // The third day is not touched: all of it is left, and 30 of that come over.
      try spend(4, op: 4, 1, parts: [try grant("d", 1, days[3])]),
    ])
    let line = try line("d")
    #expect(line.instances.map(\.burnt) == [80, 110, 1])
    #expect(line.instances.map(\.carried) == [30, 30, 30])
    #expect(line.instances.map(\.remaining) == [50, 20, 129])
    #expect(line.burnt == 191 && line.remaining == nil)
  }

  @Test func aPlansCreditIsListedByWhatWasBurnt() throws {
    _ = try books.apply([try spend(1, op: 1, 30, parts: [try grant("pro", 30, november)])])
    let line = try line("pro")
    #expect(line.state == .plan && line.amount == nil && line.burnt == 30)
    #expect(line.instances.map(\.remaining) == [nil])
  }
}
