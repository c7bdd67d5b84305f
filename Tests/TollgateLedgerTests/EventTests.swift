// Events in the books: on record once, without postings, listed newest first.

import Foundation
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateLedger

@Suite(.blocking) struct EventTests {
  let books: Books

  init() throws {
    books = try Books()
    try books.open()
  }

  private func event(
    _ sequence: Int64, percent: Int64, account: String = "acme", used: Int64 = 50
  ) throws -> OutboxEntry {
    let body = ThresholdBody(
      subject: try Subject(account), feature: try Name("tokens"), limit: try Name("tokens.month"),
      period: november, percent: percent, amount: 100, used: used)
    return OutboxEntry(
      sequence: sequence, kind: .threshold, id: body.id(forgiven: 0), time: start + sequence,
      actual: 0, charged: 0, absorbed: 0, body: body.encode())
  }

  private func events(_ account: String? = nil, limit: Int? = nil) throws -> [LedgerEvent] {
    var found: [LedgerEvent] = []
    try books.store.eachEvent(account: account, limit: limit) { found.append($0) }
    return found
  }

  @Test func anEventIsListedAndMovesNothing() throws {
    let outcome = try books.apply([
      usage(1, op: 1, amount: 80), event(2, percent: 50), event(3, percent: 80),
    ])
    #expect(outcome.parked == 0)
    #expect(try books.total() == 80)
    #expect(try events().map(\.body.percent) == [80, 50])
    #expect(try events().first?.time == start + 3)
    let report = try books.store.verify()
    #expect(report.findings == [])
    var lines = 0
    _ = try books.store.export(format: .csv) { _ in lines += 1 }
    // The head and the usage.
    #expect(lines == 2)
  }

  @Test func whatComesTwiceIsThereOnce() throws {
    _ = try books.apply([event(1, percent: 50)])
    let outcome = try books.apply([event(2, percent: 50, used: 70)], after: 1)
    #expect(outcome.parked == 0)
    #expect(try events().map(\.body.used) == [50])
    #expect(try books.store.verify().findings == [])
  }

  @Test func oneAccountAndAsManyAsAsked() throws {
    _ = try books.apply([
      event(1, percent: 50), event(2, percent: 50, account: "globex"), event(3, percent: 80),
    ])
    #expect(try events("acme").map(\.body.percent) == [80, 50])
    #expect(try events("globex").count == 1)
    #expect(try events(limit: 2).count == 2)
    #expect(try events("nobody").isEmpty)
  }

  @Test func anEventWithAnAmountOrWithoutAMeaningIsParked() throws {
    var paid = try event(1, percent: 50)
    (paid.actual, paid.charged) = (1, 1)
    var empty = try event(2, percent: 80)
    empty.body = Array("{}".utf8)
    #expect(try books.apply([paid, empty]).parked == 2)
    #expect(try books.total() == 0)
  }
}
