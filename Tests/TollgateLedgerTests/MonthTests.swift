// Billing periods of accounts in other zones than UTC: found by the name of their month, closed
// after their own end, and their counters dropped neither early nor to the audit's surprise.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct MonthTests {
  static let hour: Int64 = 3_600_000
  static let day: Int64 = 24 * hour

  let books: Books

  init() throws {
    books = try Books()
    try books.open()
  }

  /// A month of UTC, as a zone so many hours ahead has it.
  private static func month(_ month: Period = november, ahead hours: Int64) -> Period {
    Period(start: month.start + -hours * hour, end: month.end + -hours * hour)
  }

  private static let december = Window.month.period(containing: november.end)
  private static let october = Window.month.period(containing: november.start + -1)

  private func apply(_ entry: OutboxEntry, now: WallTime = start) throws {
    let outcome = try books.store.apply(
      DeltaBatch(bucket: 0, epoch: 1, previous: entry.sequence - 1, entries: [entry]), now: now)
    #expect(outcome.posted == 1)
  }

  /// From the easternmost clock to the westernmost.
  @Test(arguments: [14, 13, 1, 0, -8, -11, -12] as [Int64])
  func theMonthOfAZoneIsFoundByItsName(_ ahead: Int64) throws {
    for (number, month) in [Self.october, november, Self.december].enumerated() {
      let period = Self.month(month, ahead: ahead)
      try apply(
        try usage(Int64(number) + 1, op: number + 1, amount: Int64(number) + 1, period: period))
    }
    for (number, month) in [Self.october, november, Self.december].enumerated() {
      let period = Self.month(month, ahead: ahead)
      // By the month's name, which is its start in UTC, and by the account's own start.
      for start in [month.start, period.start] {
        let statement = try books.store.statement(account: "acme", start: start.milliseconds)
        #expect(statement.lines.map(\.charged) == [Int64(number) + 1])
        #expect(statement.start == period.start.milliseconds)
        #expect(statement.end == period.end.milliseconds)
      }
      var text = ""
      let starts = BillingMonth.starts(in: month)
      let count = try books.store.export(
        format: .json, from: starts.lowerBound, until: starts.upperBound
      ) { text += $0 }
      #expect(count == 1 && text.contains("\"charged\":\(number + 1)"))
    }
  }

  @Test func aMonthWithoutUsageIsThatOfUTC() throws {
    let statement = try books.store.statement(account: "acme", start: november.start.milliseconds)
    #expect(statement.lines.isEmpty)
    #expect(statement.start == november.start.milliseconds)
    #expect(statement.end == november.end.milliseconds)
  }

  @Test func theRunningMonthIsTheAccountsOwn() throws {
    try apply(try usage(1, op: 1, period: Self.month(Self.december, ahead: 14)))
    // In Kiritimati December has begun.
    let now = november.end + -10 * Self.hour
    let december = Self.month(Self.december, ahead: 14).start.milliseconds
    #expect(try books.store.runningMonth(of: "acme", now: now) == december)
    #expect(
      try books.store.runningMonth(of: "other", now: now) == november.start.milliseconds)
  }

  @Test func aClosedMonthClosesEachAccountsOwnAfterItsEnd() throws {
    let east = Self.month(ahead: 14)
    let west = Self.month(ahead: -11)
    let closing = november.end + 2 * Self.day
    try books.store.close(november, now: closing)
    var op = 0
    func isAdjustment(_ period: Period, at now: WallTime) throws -> Bool {
      op += 1
      func adjusted() throws -> Int64 {
        try books.store.totals(.init(account: "acme")).page.elements
          .filter { $0.adjustment && $0.start == period.start.milliseconds }
          .reduce(0) { $0 + $1.deltas }
      }
      let before = try adjusted()
      try apply(try usage(Int64(op), op: op, period: period), now: now)
      return try adjusted() > before
    }
    #expect(try isAdjustment(november, at: closing))
    #expect(try isAdjustment(east, at: closing))
    // Its November ended eleven hours later, and is closed eleven hours later.
    #expect(try !isAdjustment(west, at: closing))
    #expect(try !isAdjustment(west, at: closing + 11 * Self.hour + -1))
    #expect(try isAdjustment(west, at: closing + 11 * Self.hour))
    // The months beside it are not closed.
    for month in [Self.october, Self.december] {
      for ahead in [14, 0, -11] as [Int64] {
        let period = Self.month(month, ahead: ahead)
        #expect(try !isAdjustment(period, at: closing + 40 * Self.day))
      }
    }
  }

  /// One delta in a window with a period of its own, and one reset of it.
  private func count(_ window: Window, _ period: Period) throws {
    var entry = try usage(1, op: 1, amount: 5)
    var body = try UsageBody.decode(entry.body)
    body.cells[1] = CellReference(level: 2, window: window, period: period)
    entry.body = body.encode()
    try apply(entry)
    let after =
      "{\"subject\":\"acme/ann\",\"feature\":\"tokens\",\"window\":\"\(window.code)\","
      + "\"start\":\(period.start.milliseconds),\"end\":\(period.end.milliseconds)}"
    var reset = change(
      2, op: 2, scope: .counter, key: "acme/ann", version: 0, after: after, action: "reset")
    reset.actual = -2
    reset.absorbed = -2
    try apply(reset)
  }

  private func windows() throws -> [String] {
    try books.store.balances(account: "acme", endingAfter: WallTime(milliseconds: 0)).elements
      .filter { $0.subject == "acme/ann" }.map(\.window)
  }

  @Test(
    arguments: [
      // A day of 23 hours, one of 25, and one that a change of zone made longer still.
      ("d", 23), ("d", 25), ("d", 35), ("d@", 24), ("w@", 168), ("90s@", 1), ("m@", 1), ("h", 1),
    ] as [(String, Int64)])
  func aShortCounterGoesADayAfterThePeriodThatFollowsItsOwn(
    _ code: String, _ hours: Int64
  ) throws {
    let period = Period(start: start, end: start + hours * Self.hour)
    try count(try #require(Window(code: code)), period)
    let horizon = period.end + (period.end - period.start) + LedgerStore.lateHorizonMilliseconds
    #expect(try books.store.prune(now: horizon + -1) == 0)
    #expect(try windows() == [code])
    #expect(try books.store.verify().findings == [])
    #expect(try books.store.prune(now: horizon) == 2)
    #expect(try windows() == [])
    #expect(try books.store.verify().findings == [])
  }

  @Test(arguments: ["M@", "Q@", "Y@", "M", "Q", "Y"])
  func aLongCounterStaysWithTheBooks(_ code: String) throws {
    let window = try #require(Window(code: code))
    try count(window, Period(start: start, end: start + 31 * Self.day))
    #expect(try books.store.prune(now: start + 4000 * Self.day) == 0)
    #expect(try windows() == [code])
  }

  @Test func aCounterThatIsMissingTooEarlyIsAFinding() throws {
    let period = Period(start: start, end: start + 25 * Self.hour)
    try count(.day, period)
    // A ledger that counted on days of 24 hours.
    let wrong = period.start + Self.day + LedgerStore.lateHorizonMilliseconds + 1
    #expect(try books.store.prune(now: wrong) == 0)
    try books.tamper("DELETE FROM cells WHERE window = 'd'")
    #expect(try books.store.verify().findings.count == 1)
  }
}
