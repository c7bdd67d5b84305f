// Closed months: what comes late stands in the month that is open and names its own, the statement
// that was sent stays as it was, and counters get what is theirs (DESIGN 7).

import Foundation
import GRDB
import Logging
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct ClosingTests {
  static let hour: Int64 = 3_600_000
  static let day: Int64 = 24 * hour
  static let december = Window.month.period(containing: november.end)
  static let october = Window.month.period(containing: november.start + -1)

  let books: Books

  init() throws {
    books = try Books()
    try books.open()
  }

  private func apply(_ entry: OutboxEntry, now: WallTime) throws {
    let outcome = try books.store.apply(
      DeltaBatch(bucket: 0, epoch: 1, previous: entry.sequence - 1, entries: [entry]), now: now)
    #expect(outcome.posted == 1 && outcome.parked == 0)
  }

  private func statement(_ month: Period, _ account: String = "acme") throws
    -> TollgateLedger.Statement
  {
    try books.store.statement(account: account, start: month.start.milliseconds)
  }

  @discardableResult
  private func close(
    _ month: Period, _ account: String? = nil, now: WallTime
  ) throws -> Bool {
    try books.store.close(
      through: month, account: try account.map { try Subject($0) }, actor: "ops",
      reason: "invoices", now: now)
  }

  @Test func whatComesLateStandsInTheOpenMonthAndNamesItsOwn() throws {
    let now = november.end + 2 * Self.day
    try apply(
      try spend(
        1, op: 1, 50, parts: [try grant("a", 20), try priced("small", 50)],
        charges: [try charge("small", units: 50, 50)]), now: start)
    let sent = try statement(november)
    try close(november, now: now)
    try apply(
      try spend(
        2, op: 2, 30, absorbed: 5,
        parts: [try grant("a", 10), overage(.month, 20), try priced("small", 35)],
        charges: [try charge("small", units: 30, 30)]), now: now)
    try apply(
      try spend(3, op: 3, -8, kind: .refund, parts: [try grant("a", -8)], corrects: 1), now: now)
    try apply(try spend(4, op: 4, 7, period: Self.december), now: now)
    // To the letter, but for what is left of the grants, which is as of now.
    var again = try statement(november)
    #expect(again.lines == sent.lines && again.rates == sent.rates && again.closed == [])
    again.grants = sent.grants
    #expect(again == sent)
    let open = try statement(Self.december)
    #expect(open.start == Self.december.start.milliseconds)
    let line = try #require(open.lines.first)
    #expect(line.charged == 29 && line.adjustments == 22 && line.absorbed == 5)
    #expect(line.granted == 10 && line.overage == 20 && line.refunds == -8 && line.included == 7)
    #expect(
      open.closed == [
        .init(
          feature: "spend", start: november.start.milliseconds, end: november.end.milliseconds,
          actual: 27, charged: 22, absorbed: 5, deltas: 2)
      ])
    #expect(open.rates.map(\.charge) == [30])
    #expect(open.csv.contains("closed"))
    // What reconcile compares: each period's own.
    let totals = try books.store.totals(.init(account: "acme")).page.elements
    func total(_ period: Period) -> Int64 {
      totals.filter { $0.start == period.start.milliseconds }.reduce(0) { $0 + $1.charged }
    }
    #expect(total(november) == 72 && total(Self.december) == 7)
    #expect(try books.counters()["acme spend $a"] == 22)
    #expect(try books.soundness() == [])
  }

  @Test func oneMonthMayGetAdjustmentsInSeveral() throws {
    try close(november, now: november.end + Self.day)
    let january = Window.month.period(containing: Self.december.end)
    for (index, now) in [Self.december.start + 5 * Self.day, january.start + 5 * Self.day]
      .enumerated()
    {
      try apply(try spend(Int64(index) + 1, op: index + 1, Int64(index) + 1), now: now)
    }
    #expect(try statement(Self.december).closed.map(\.charged) == [1])
    #expect(try statement(january).closed.map(\.charged) == [2])
    #expect(try statement(november).lines.isEmpty)
    let totals = try books.store.totals(.init(account: "acme"), limit: 1)
    #expect(totals.page.elements.map(\.charged) == [3])
    #expect(totals.page.elements.map(\.adjustment) == [true])
    let next = try #require(totals.page.next)
    #expect(try books.store.totals(.init(account: "acme"), after: next).page.elements.isEmpty)
    #expect(try books.soundness() == [])
  }

  @Test func allBeforeIsClosedTooAndNothingAfter() throws {
    let now = november.end + Self.day
    #expect(try close(november, now: now))
    for (index, period) in [Self.october, november, Self.december].enumerated() {
      try apply(
        try spend(Int64(index) + 1, op: index + 1, 1, period: period), now: now)
    }
    #expect(try statement(Self.october).lines.isEmpty)
    #expect(try statement(Self.december).closed.map(\.start).count == 2)
    #expect(try statement(Self.december).lines.map(\.charged) == [3])
    #expect(try close(Self.october, now: now) == false)
    #expect(try close(november, now: now) == false)
  }

  @Test func oneAccountIsClosedByItself() throws {
    let now = november.end + Self.day
    #expect(try close(november, "acme", now: now))
    try apply(try usage(1, op: 1, subject: "acme/ann"), now: now)
    try apply(try usage(2, op: 2, subject: "other/ann"), now: now)
    #expect(try statement(november).lines.isEmpty)
    #expect(try statement(november, "other").lines.map(\.charged) == [1])
    // For all, later: both.
    #expect(try close(november, now: now))
    try apply(try usage(3, op: 3, subject: "other/ann"), now: now)
    #expect(try statement(november, "other").lines.map(\.charged) == [1])
    #expect(try books.soundness() == [])
  }

  @Test func aMonthThatRunsIsNotClosed() throws {
    #expect(throws: ClosingRefused.self) { try close(november, now: november.end + -1) }
    try apply(try spend(1, op: 1, 5), now: november.end)
    #expect(try statement(november).lines.map(\.charged) == [5])
  }

  /// Whose November ends eleven hours later has it closed eleven hours later.
  @Test func anAccountsOwnMonthIsClosedAfterItsOwnEnd() throws {
    let west = Period(start: november.start + 11 * Self.hour, end: november.end + 11 * Self.hour)
    let closing = november.end + 2 * Self.day
    try close(november, now: closing)
    try apply(try spend(1, op: 1, 1, period: west), now: closing + 11 * Self.hour + -1)
    try apply(try spend(2, op: 2, 2, period: west), now: closing + 11 * Self.hour)
    #expect(try statement(november).lines.map(\.charged) == [1])
    // Its own month that runs is the one that is open.
    let next = Period(start: west.end, end: Self.december.end + 11 * Self.hour)
    try apply(try spend(3, op: 3, 4, period: next), now: closing + 12 * Self.hour)
    try apply(try spend(4, op: 4, 8, period: west), now: closing + 12 * Self.hour)
    let open = try statement(Self.december)
    #expect(open.lines.map(\.charged) == [14] && open.closed.map(\.charged) == [10])
    #expect(try books.soundness() == [])
  }

  @Test func monthsAreClosedByThemselvesWhereThatIsAskedFor() async throws {
    func upkeep(_ days: Int?, now: WallTime) -> LedgerUpkeep {
      LedgerUpkeep(
        store: books.store, intervalMilliseconds: 0, closeAfterDays: days,
        logger: Logger(label: "t"), clock: { now })
    }
    let due = november.end + 3 * Self.day
    await upkeep(nil, now: due).closeMonths()
    await upkeep(3, now: due + -1).closeMonths()
    try apply(try spend(1, op: 1, 1), now: due)
    #expect(try statement(november).lines.map(\.charged) == [1])
    await upkeep(3, now: due).closeMonths()
    try apply(try spend(2, op: 2, 2), now: due)
    #expect(try statement(november).lines.map(\.charged) == [1])
    #expect(try statement(Self.december).closed.map(\.charged) == [2])
    #expect(try books.store.closeEnded(daysAgo: 3, now: due) == nil)
  }

  @Test func theAuditFindsAnAdjustmentThatNobodyClosedFor() throws {
    try close(november, now: november.end + Self.day)
    try apply(try spend(1, op: 1, 1), now: november.end + Self.day)
    #expect(try books.soundness() == [])
    try books.tamper("DELETE FROM closings")
    #expect(try books.soundness().count == 1)
  }

  @Test func anAdjustmentOfAnOlderReleaseStaysWhereItStood() throws {
    let path = books.directory.appending(path: "older.sqlite").path
    let older = try DatabaseQueue(path: path)
    try Schema.migrator.migrate(older, upTo: "6-parts")
    try older.write { db in
      for adjustment in 0...1 {
        try db.execute(
          sql: """
            INSERT INTO series (account, feature, period_start, period_end, adjustment, actual,
              charged, absorbed, deltas) VALUES ('acme', 'spend', ?, ?, ?, 0, 0, 0, 0)
            """,
          arguments: [november.start.milliseconds, november.end.milliseconds, adjustment])
      }
    }
    try Schema.migrator.migrate(older)
    let billed = try older.read {
      try Int64.fetchAll($0, sql: "SELECT billed_start FROM series ORDER BY adjustment")
    }
    #expect(billed == [november.start.milliseconds, november.start.milliseconds])
  }
}
