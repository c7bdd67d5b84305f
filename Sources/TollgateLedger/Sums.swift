// The sums that one transaction has touched, so that a thousand deltas of one counter cost one
// update. Each is read once and written once, at the end. It never survives the transaction, so it
// can never be stale.

internal import GRDB

struct Sums {
  struct Cell {
    var value: Int64
    var end: Int64
    var goes: Int64?
    var isDirty = false
  }
  struct SeriesKey: Hashable {
    var account: String
    var feature: String
    var start: Int64
    var adjustment: Bool
    /// Of the period in whose statement it stands: its own, unless that is closed.
    var billed: Int64
  }
  struct Series {
    var id: Int64
    var actual: Int64
    var charged: Int64
    var absorbed: Int64
    var deltas: Int64
    var isDirty = false
  }
  /// One side of a double entry; without a line the other side, `consumed:<feature>`.
  struct BookKey: Hashable {
    var line: BookLine?
    var account: String
    var feature: String

    var name: String {
      line?.name(account: account, feature: feature) ?? "consumed:\(feature)"
    }
  }
  struct BookAccount {
    var id: Int64
    var balance: Int64
    var isDirty = false
  }
  /// One version of a rate in one line of the books.
  struct ChargeKey: Hashable {
    var series: Int64
    var rate: String
    var from: Int64
  }
  struct Charge {
    var units: Int64
    var charge: Int64
    var deltas: Int64
    /// Of them: reversals, refunds and adjustments.
    var corrections: Int64
    var isDirty = false
  }

  let db: Database
  var cells: [CellKey: Cell] = [:]
  var series: [SeriesKey: Series] = [:]
  var accounts: [BookKey: BookAccount] = [:]
  var charges: [ChargeKey: Charge] = [:]

  init(_ db: Database) { self.db = db }

  mutating func cell(_ change: Meaning.CellChange) throws -> Cell {
    let key = change.key
    if let found = cells[key] { return found }
    let statement = try db.cachedStatement(
      sql: """
        SELECT settled, period_end FROM cells WHERE account = ? AND subject = ? AND feature = ?
          AND window = ? AND period_start = ?
        """)
    let row = try Row.fetchOne(
      statement,
      arguments: [key.account, key.subject, key.feature, key.window, key.start])
    let sum =
      row.map { Cell(value: $0[0], end: $0[1], goes: change.goes) }
      ?? Cell(value: 0, end: change.end, goes: change.goes)
    cells[key] = sum
    return sum
  }

  mutating func series(_ key: SeriesKey, end: Int64, billedEnd: Int64) throws -> Series {
    if let found = series[key] { return found }
    // Not a parameter: SQLite compares what is bound with the partial index of adjustments, and
    // prepares the statement anew for each.
    let select = try db.cachedStatement(
      sql: """
        SELECT id, actual, charged, absorbed, deltas FROM series
        WHERE account = ? AND feature = ? AND period_start = ?
          AND adjustment = \(key.adjustment ? 1 : 0) AND billed_start = ?
        """)
    let found: Series
    if let row = try Row.fetchOne(
      select, arguments: [key.account, key.feature, key.start, key.billed])
    {
      found = Series(
        id: row[0], actual: row[1], charged: row[2], absorbed: row[3], deltas: row[4])
    } else {
      try db.cachedStatement(
        sql: """
          INSERT INTO series (account, feature, period_start, period_end, adjustment, actual,
            charged, absorbed, deltas, billed_start, billed_end)
          VALUES (?, ?, ?, ?, ?, 0, 0, 0, 0, ?, ?)
          """
      ).execute(arguments: [
        key.account, key.feature, key.start, end, key.adjustment ? 1 : 0, key.billed, billedEnd,
      ])
      found = Series(id: db.lastInsertedRowID, actual: 0, charged: 0, absorbed: 0, deltas: 0)
    }
    series[key] = found
    return found
  }

  mutating func account(_ key: BookKey) throws -> BookAccount {
    if let found = accounts[key] { return found }
    let name = key.name
    let select = try db.cachedStatement(sql: "SELECT id, balance FROM accounts WHERE name = ?")
    let found: BookAccount
    if let row = try Row.fetchOne(select, arguments: [name]) {
      found = BookAccount(id: row[0], balance: row[1])
    } else {
      try db.cachedStatement(sql: "INSERT INTO accounts (name, balance) VALUES (?, 0)")
        .execute(arguments: [name])
      found = BookAccount(id: db.lastInsertedRowID, balance: 0)
    }
    accounts[key] = found
    return found
  }

  mutating func charge(_ key: ChargeKey) throws -> Charge {
    if let found = charges[key] { return found }
    let select = try db.cachedStatement(
      sql: """
        SELECT units, charge, deltas, corrections FROM charges
        WHERE series = ? AND rate = ? AND rate_from = ?
        """)
    let found =
      try Row.fetchOne(select, arguments: [key.series, key.rate, key.from]).map {
        Charge(units: $0[0], charge: $0[1], deltas: $0[2], corrections: $0[3])
      } ?? Charge(units: 0, charge: 0, deltas: 0, corrections: 0)
    charges[key] = found
    return found
  }

  /// Writes every sum that moved. Must be the last act of the transaction.
  mutating func flush() throws {
    let cell = try db.cachedStatement(
      sql: """
        INSERT INTO cells
          (account, subject, feature, window, period_start, period_end, settled, goes)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT DO UPDATE SET settled = excluded.settled
        """)
    for (key, sum) in cells where sum.isDirty {
      try cell.execute(arguments: [
        key.account, key.subject, key.feature, key.window, key.start, sum.end, sum.value, sum.goes,
      ])
    }
    let line = try db.cachedStatement(
      sql: """
        UPDATE series SET actual = ?, charged = ?, absorbed = ?, deltas = ? WHERE id = ?
        """)
    for one in series.values where one.isDirty {
      try line.execute(arguments: [one.actual, one.charged, one.absorbed, one.deltas, one.id])
    }
    let account = try db.cachedStatement(sql: "UPDATE accounts SET balance = ? WHERE id = ?")
    for one in accounts.values where one.isDirty {
      try account.execute(arguments: [one.balance, one.id])
    }
    for (key, sum) in charges where sum.isDirty {
      try db.cachedStatement(
        sql: """
          INSERT INTO charges (series, rate, rate_from, units, charge, deltas, corrections)
          VALUES (?, ?, ?, ?, ?, ?, ?)
          ON CONFLICT DO UPDATE SET units = excluded.units, charge = excluded.charge,
            deltas = excluded.deltas, corrections = excluded.corrections
          """
      ).execute(arguments: [
        key.series, key.rate, key.from, sum.units, sum.charge, sum.deltas, sum.corrections,
      ])
    }
    cells = [:]
    series = [:]
    accounts = [:]
    charges = [:]
  }
}
