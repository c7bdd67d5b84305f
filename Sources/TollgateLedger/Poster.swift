// One transaction of the ledger. A `Poster` lives as long as the transaction does: it holds the
// sums it has touched and writes each of them once, at the end, so that a thousand deltas of one
// counter cost one update. It never survives the transaction, so it can never be stale.
//
// Each delta becomes a double entry: usage:<account>:<feature> gets what is billed,
// absorbed:<account>:<feature> what is not, and consumed:<feature> the negative of both.

internal import Foundation
internal import GRDB
internal import TollgateCore

struct Poster {
  enum Posted { case posted, parked, known }

  private struct Sum {
    var value: Int64
    var end: Int64
    var isDirty: Bool
  }
  private struct SeriesKey: Hashable {
    var account: String
    var feature: String
    var start: Int64
    var adjustment: Bool
  }
  private struct Series {
    var id: Int64
    var actual: Int64
    var charged: Int64
    var absorbed: Int64
    var deltas: Int64
    var isDirty: Bool
  }
  private struct BookAccount {
    var id: Int64
    var balance: Int64
    var isDirty: Bool
  }

  private let db: Database
  private let bodies: DeltaBodies
  private let now: WallTime
  private let closed: [ClosedMonth]
  private var cells: [CellKey: Sum] = [:]
  private var series: [SeriesKey: Series] = [:]
  private var accounts: [String: BookAccount] = [:]

  init(_ db: Database, bodies: DeltaBodies, now: WallTime) throws {
    self.db = db
    self.bodies = bodies
    self.now = now
    let rows = try Row.fetchAll(
      db, sql: "SELECT period_start, period_end, time FROM closed_periods")
    closed = rows.map {
      ClosedMonth(
        period: Period(start: WallTime(milliseconds: $0[0]), end: WallTime(milliseconds: $0[1])),
        time: WallTime(milliseconds: $0[2]))
    }
  }

  /// Whether the id is on record, and where.
  func recorded(_ entry: OutboxEntry, bucket: Int, epoch: Int64) throws -> Recorded {
    let statement = try db.cachedStatement(
      sql: "SELECT epoch, seq FROM deltas WHERE op = ? AND idx = ? AND bucket = ?")
    let op = entry.id.operation.blob
    let index = Int64(entry.id.index)
    guard let row = try Row.fetchOne(statement, arguments: [op, index, bucket]) else {
      return .unknown
    }
    let at: (Int64, Int64) = (row[0], row[1])
    if at == (epoch, entry.sequence) { return .here }
    let duplicate = try db.cachedStatement(
      sql: """
        SELECT 1 FROM duplicates WHERE bucket = ? AND epoch = ? AND seq = ? AND op = ? AND idx = ?
        """)
    return try Row.fetchOne(duplicate, arguments: [bucket, epoch, entry.sequence, op, index]) != nil
      ? .hereAsDuplicate : .elsewhere
  }

  /// Posts one entry unless its id is on record; then the position is noted as a duplicate's.
  mutating func post(_ entry: OutboxEntry, bucket: Int, epoch: Int64) throws -> Posted {
    let plan: Plan
    var poison: String?
    do {
      plan = try prepare(entry)
    } catch let error as Poison {
      plan = Plan()
      poison = error.reason
    }
    guard try insert(entry, bucket: bucket, epoch: epoch, series: plan.seriesID) else {
      try noteDuplicate(entry, bucket: bucket, epoch: epoch)
      return .known
    }
    if let poison {
      try park(entry, bucket: bucket, reason: poison)
      return .parked
    }
    try carryOut(plan, for: entry, bucket: bucket)
    return .posted
  }

  /// Tries a parked entry again; answers whether it was posted now.
  mutating func replay(_ entry: OutboxEntry, bucket: Int) throws -> Bool {
    let op = entry.id.operation.blob
    let index = Int64(entry.id.index)
    do {
      let plan = try prepare(entry)
      try db.execute(
        sql: "UPDATE deltas SET series = ? WHERE op = ? AND idx = ? AND bucket = ?",
        arguments: [plan.seriesID, op, index, bucket])
      try carryOut(plan, for: entry, bucket: bucket)
      try db.execute(
        sql: "UPDATE parked SET replayed = ? WHERE op = ? AND idx = ? AND bucket = ?",
        arguments: [now.milliseconds, op, index, bucket])
      return true
    } catch let error as Poison {
      try db.execute(
        sql: "UPDATE parked SET reason = ? WHERE op = ? AND idx = ? AND bucket = ?",
        arguments: [error.reason, op, index, bucket])
      return false
    }
  }

  /// Writes every sum that moved. Must be the last act of the transaction.
  mutating func flush() throws {
    let cell = try db.cachedStatement(
      sql: """
        INSERT INTO cells (account, subject, feature, window, period_start, period_end, settled)
        VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT DO UPDATE SET settled = excluded.settled
        """)
    for (key, sum) in cells where sum.isDirty {
      try cell.execute(arguments: [
        key.account, key.subject, key.feature, key.window, key.start, sum.end, sum.value,
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
    cells = [:]
    series = [:]
    accounts = [:]
  }
}

// What one entry will change, computed and checked before anything is written for it: an entry
// that would overflow a sum is poison, and poison must leave no trace in any sum.
extension Poster {
  private struct Plan {
    var cells: [(key: CellKey, sum: Sum)] = []
    var series: (key: SeriesKey, value: Series)?
    var accounts: [(name: String, value: BookAccount, amount: Int64)] = []
    var config: ConfigDelta?

    var seriesID: Int64? { series?.value.id }
  }

  private mutating func prepare(_ entry: OutboxEntry) throws -> Plan {
    let meaning = try bodies.meaning(of: entry)
    var plan = Plan()
    plan.config = meaning.config
    for change in meaning.cells {
      var sum = try loadCell(change.key, end: change.end)
      sum.value = try Self.add(sum.value, change.change, "cell \(change.key.window)")
      sum.isDirty = true
      plan.cells.append((change.key, sum))
    }
    guard let usage = meaning.usage else { return plan }
    let key = SeriesKey(
      account: usage.account, feature: usage.feature, start: usage.period.start.milliseconds,
      adjustment: closed.contains { $0.holds(usage.period, at: now) })
    var line = try loadSeries(key, end: usage.period.end.milliseconds)
    line.actual = try Self.add(line.actual, entry.actual, "total")
    line.charged = try Self.add(line.charged, entry.charged, "total")
    line.absorbed = try Self.add(line.absorbed, entry.absorbed, "total")
    line.deltas += 1
    line.isDirty = true
    plan.series = (key, line)
    var amounts = [
      ("usage:\(usage.account):\(usage.feature)", entry.charged),
      ("consumed:\(usage.feature)", -entry.actual),
    ]
    if entry.absorbed != 0 {
      amounts.append(("absorbed:\(usage.account):\(usage.feature)", entry.absorbed))
    }
    for (name, amount) in amounts {
      var account = try loadAccount(name)
      let (balance, overflow) = account.balance.addingReportingOverflow(amount)
      guard !overflow else { throw Poison(reason: "the balance of \(name) would overflow") }
      account.balance = balance
      account.isDirty = true
      plan.accounts.append((name, account, amount))
    }
    return plan
  }

  private static func add(_ a: Int64, _ b: Int64, _ what: String) throws(Poison) -> Int64 {
    guard let sum = Quantity.adding(a, b) else {
      throw Poison(reason: "the \(what) would leave the range of quantities")
    }
    return sum
  }

  private mutating func carryOut(
    _ plan: Plan, for entry: OutboxEntry, bucket: Int
  ) throws {
    for (key, sum) in plan.cells { cells[key] = sum }
    if let (key, line) = plan.series { series[key] = line }
    let op = entry.id.operation.blob
    let index = Int64(entry.id.index)
    if !plan.accounts.isEmpty {
      let posting = try db.cachedStatement(
        sql: "INSERT INTO postings (op, idx, bucket, account, amount) VALUES (?, ?, ?, ?, ?)")
      for (name, account, amount) in plan.accounts {
        accounts[name] = account
        try posting.execute(arguments: [op, index, bucket, account.id, amount])
      }
    }
    if let config = plan.config {
      let record = try db.cachedStatement(
        sql: """
          INSERT INTO config
            (scope, key, version, op, idx, time, action, actor, reason, before, after)
          VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
          """)
      try record.execute(
        arguments: [
          config.scope.rawValue, config.key, config.version, op, index, entry.time.milliseconds,
          config.action, config.actor, config.reason, config.before, config.after,
        ])
    }
  }

  private func insert(
    _ entry: OutboxEntry, bucket: Int, epoch: Int64, series: Int64?
  ) throws -> Bool {
    let statement = try db.cachedStatement(
      sql: """
        INSERT INTO deltas
          (op, idx, bucket, epoch, seq, kind, time, actual, charged, absorbed, series, body)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
        """)
    try statement.execute(arguments: [
      entry.id.operation.blob, Int64(entry.id.index), bucket, epoch, entry.sequence,
      Int64(entry.kind.rawValue), entry.time.milliseconds, entry.actual, entry.charged,
      entry.absorbed, series, Data(entry.body),
    ])
    return db.changesCount > 0
  }

  func noteDuplicate(_ entry: OutboxEntry, bucket: Int, epoch: Int64) throws {
    try db.cachedStatement(
      sql: """
        INSERT INTO duplicates (bucket, epoch, seq, op, idx, time) VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT DO NOTHING
        """
    ).execute(arguments: [
      bucket, epoch, entry.sequence, entry.id.operation.blob, Int64(entry.id.index),
      now.milliseconds,
    ])
  }

  private func park(_ entry: OutboxEntry, bucket: Int, reason: String) throws {
    try db.execute(
      sql: "INSERT INTO parked (op, idx, bucket, reason, time) VALUES (?, ?, ?, ?, ?)",
      arguments: [
        entry.id.operation.blob, Int64(entry.id.index), bucket, String(reason.prefix(500)),
        now.milliseconds,
      ])
  }

  private mutating func loadCell(_ key: CellKey, end: Int64) throws -> Sum {
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
      row.map { Sum(value: $0[0], end: $0[1], isDirty: false) }
      ?? Sum(value: 0, end: end, isDirty: false)
    cells[key] = sum
    return sum
  }

  private mutating func loadSeries(_ key: SeriesKey, end: Int64) throws -> Series {
    if let found = series[key] { return found }
    let select = try db.cachedStatement(
      sql: """
        SELECT id, actual, charged, absorbed, deltas FROM series
        WHERE account = ? AND feature = ? AND period_start = ? AND adjustment = ?
        """)
    let found: Series
    if let row = try Row.fetchOne(
      select, arguments: [key.account, key.feature, key.start, key.adjustment ? 1 : 0])
    {
      found = Series(
        id: row[0], actual: row[1], charged: row[2], absorbed: row[3], deltas: row[4],
        isDirty: false)
    } else {
      try db.cachedStatement(
        sql: """
          INSERT INTO series (account, feature, period_start, period_end, adjustment, actual,
            charged, absorbed, deltas) VALUES (?, ?, ?, ?, ?, 0, 0, 0, 0)
          """
      ).execute(arguments: [key.account, key.feature, key.start, end, key.adjustment ? 1 : 0])
      found = Series(
        id: db.lastInsertedRowID, actual: 0, charged: 0, absorbed: 0, deltas: 0, isDirty: false)
    }
    series[key] = found
    return found
  }

  private mutating func loadAccount(_ name: String) throws -> BookAccount {
    if let found = accounts[name] { return found }
    let select = try db.cachedStatement(sql: "SELECT id, balance FROM accounts WHERE name = ?")
    let found: BookAccount
    if let row = try Row.fetchOne(select, arguments: [name]) {
      found = BookAccount(id: row[0], balance: row[1], isDirty: false)
    } else {
      try db.cachedStatement(sql: "INSERT INTO accounts (name, balance) VALUES (?, 0)")
        .execute(arguments: [name])
      found = BookAccount(id: db.lastInsertedRowID, balance: 0, isDirty: false)
    }
    accounts[name] = found
    return found
  }
}
