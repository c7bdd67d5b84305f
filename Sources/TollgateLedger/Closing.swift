// Closed months. A month is closed for one account or for all, with everything before it; what
// arrives for a closed billing period is posted as an adjustment: a line of the period that is open
// when it comes, which names the period it is of. So a statement that was sent never changes, and
// counters still get what is theirs (DESIGN 7).
//
// Closing is one row, and is never undone. It holds from the transaction that follows it.

internal import GRDB
package import TollgateCore

/// Why a month was not closed.
package struct ClosingRefused: Error, Hashable, CustomStringConvertible {
  package var description: String
}

/// What is closed, as one transaction sees it.
struct Closings {
  private struct Through {
    var month: Period
    var time: WallTime

    /// An account's own month is closed as long after its end as the month itself was after its
    /// own, so that nobody's is closed while it runs; the months before it at once.
    func holds(_ period: Period, at now: WallTime) -> Bool {
      let own = BillingMonth.month(ofStart: period.start.milliseconds)
      guard own.start == month.start else { return own.start < month.start }
      return now >= period.end + (time - month.end)
    }
  }

  private let db: Database
  private let now: WallTime
  private let months: [ClosedMonth]
  private let everybody: [Through]
  private let hasOwn: Bool
  private var own: [String: [Through]] = [:]

  /// Months looked at for one that is open.
  private static let monthsMax = 1200

  init(_ db: Database, now: WallTime) throws {
    self.db = db
    self.now = now
    let months = try db.cachedStatement(
      sql: "SELECT period_start, period_end, time FROM closed_periods")
    self.months = try Row.fetchAll(months)
      .map { ClosedMonth(period: Self.period($0), time: WallTime(milliseconds: $0[2])) }
    everybody = try Self.through(db, account: "")
    let anyOwn = try db.cachedStatement(
      sql: "SELECT EXISTS (SELECT 1 FROM closings WHERE account > '')")
    hasOwn = try Bool.fetchOne(anyOwn) ?? false
  }

  private static func period(_ row: Row) -> Period {
    Period(start: WallTime(milliseconds: row[0]), end: WallTime(milliseconds: row[1]))
  }

  private static func through(_ db: Database, account: String) throws -> [Through] {
    try Row.fetchAll(
      try db.cachedStatement(
        sql: "SELECT month_start, month_end, time FROM closings WHERE account = ?"),
      arguments: [account]
    ).map { Through(month: period($0), time: WallTime(milliseconds: $0[2])) }
  }

  mutating func isClosed(_ period: Period, of account: String) throws -> Bool {
    if months.contains(where: { $0.holds(period, at: now) }) { return true }
    if everybody.contains(where: { $0.holds(period, at: now) }) { return true }
    guard hasOwn else { return false }
    let found = try own[account] ?? Self.through(db, account: account)
    own[account] = found
    return found.contains { $0.holds(period, at: now) }
  }

  /// Where adjustments of an account stand now: its own month, where it used anything in it, else
  /// that of UTC; the first that is not closed.
  mutating func openPeriod(of account: String) throws -> Period {
    let running = try Row.fetchOne(
      try db.cachedStatement(
        sql: """
          SELECT period_start, period_end FROM series WHERE account = ?1 AND adjustment = 0
            AND period_start <= ?2 AND period_end > ?2 ORDER BY period_start DESC LIMIT 1
          """), arguments: [account, now.milliseconds])
    var period = running.map { Self.period($0) } ?? Window.month.period(containing: now)
    for _ in 0..<Self.monthsMax where try isClosed(period, of: account) {
      period = Window.month.period(containing: period.end)
    }
    return period
  }
}

extension LedgerStore {
  /// Closes a month and all before it, of one account or of all.
  ///
  /// - Returns: false where it was closed already.
  package func close(
    through month: Period, account: Subject? = nil, actor: String, reason: String, now: WallTime
  ) throws -> Bool {
    guard now >= month.end else {
      throw ClosingRefused(
        description: "the month ends \(CivilDate.text(month.end)): it cannot be closed before")
    }
    return try transaction(now: now) {
      try $0.close(
        through: month, account: account?.account.path ?? "", time: now, actor: actor,
        reason: reason)
    }
  }

  /// Closes every month that ended so many days ago. Each account's own as long after its own end.
  package func closeEnded(daysAgo days: Int, now: WallTime) throws -> Period? {
    let wait = Int64(days) * 86_400_000
    let running = Window.month.period(containing: now + -wait)
    let month = Window.month.period(containing: running.start + -1)
    let isNew = try transaction(now: now) {
      try $0.close(
        through: month, account: "", time: month.end + wait, actor: "tollgate",
        reason: "\(days) days after its end")
    }
    return isNew ? month : nil
  }
}

extension LedgerTransaction {
  func close(
    through month: Period, account: String, time: WallTime, actor: String, reason: String
  ) throws -> Bool {
    let isClosed = try Bool.fetchOne(
      db,
      sql: "SELECT EXISTS (SELECT 1 FROM closings WHERE account IN ('', ?) AND month_start >= ?)",
      arguments: [account, month.start.milliseconds])
    guard isClosed != true else { return false }
    try db.execute(
      sql: """
        INSERT INTO closings (account, month_start, month_end, time, actor, reason)
        VALUES (?, ?, ?, ?, ?, ?)
        """,
      arguments: [
        account, month.start.milliseconds, month.end.milliseconds, time.milliseconds, actor, reason,
      ])
    return true
  }
}

extension LedgerStore {
  /// An adjustment stands in a later period than its own, which somebody has closed, and nothing
  /// else does.
  func checkClosings(_ db: Database, _ report: inout AuditReport) throws {
    struct Closed {
      var account: String
      var month: Int64
    }
    let through = try Row.fetchAll(db, sql: "SELECT account, month_start FROM closings")
      .map { Closed(account: $0[0], month: $0[1]) }
    let months = Set(try Int64.fetchAll(db, sql: "SELECT period_start FROM closed_periods"))
    let rows = try Row.fetchCursor(
      db,
      sql: """
        SELECT account, feature, period_start, billed_start, adjustment FROM series
        WHERE deltas > 0 AND (adjustment = 1 OR billed_start <> period_start)
        """)
    while let row = try rows.next() {
      let account: String = row[0]
      let (start, billed): (Int64, Int64) = (row[2], row[3])
      let own = BillingMonth.month(ofStart: start).start.milliseconds
      let isClosed =
        months.contains(own)
        || through.contains { [account, ""].contains($0.account) && $0.month >= own }
      // An older release left adjustments in the period they are of.
      if row[4] as Int64 == 0 || billed < start || !isClosed {
        report.find(
          "\(account) \(row[1] as String) from \(start) is billed in the period from \(billed), and"
            + " nobody closed it")
      }
    }
  }
}
