// One transaction of the ledger. A `Poster` lives as long as the transaction does: it holds the
// sums it has touched and writes each of them once, at the end.
//
// Each delta becomes a double entry: usage:<account>:<feature> gets what is billed and no grant
// covers, grant:… overage:… deficit:… and absorbed:… what each name says (`Breakdown`), and
// consumed:<feature> the negative of all.

internal import Foundation
internal import GRDB
internal import TollgateCore

struct Poster {
  enum Posted { case posted, parked, known }

  private let db: Database
  private let bodies: DeltaBodies
  private let now: WallTime
  private var closings: Closings
  private var sums: Sums
  private let deltas: DeltaInsert
  private let postings: DeltaInsert

  init(_ db: Database, bodies: DeltaBodies, now: WallTime) throws {
    self.db = db
    deltas = try DeltaInsert(
      db,
      sql: """
        INSERT INTO deltas
          (op, idx, bucket, epoch, seq, kind, time, actual, charged, absorbed, series, body)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
        """)
    postings = try DeltaInsert(
      db, sql: "INSERT INTO postings (op, idx, bucket, account, amount) VALUES (?, ?, ?, ?, ?)")
    sums = Sums(db)
    self.bodies = bodies
    self.now = now
    closings = try Closings(db, now: now)
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
  mutating func flush() throws { try sums.flush() }
}

// What one entry will change, computed and checked before anything is written for it: an entry
// that would overflow a sum is poison, and poison must leave no trace in any sum.
extension Poster {
  private struct Plan {
    var cells: [(key: CellKey, sum: Sums.Cell)] = []
    var series: (key: Sums.SeriesKey, value: Sums.Series)?
    var accounts: [(key: Sums.BookKey, value: Sums.BookAccount, amount: Int64)] = []
    var charges: [(key: Sums.ChargeKey, sum: Sums.Charge)] = []
    var corrects: OperationID?
    var config: ConfigDelta?

    var seriesID: Int64? { series?.value.id }
  }

  private mutating func prepare(_ entry: OutboxEntry) throws -> Plan {
    let meaning = try bodies.meaning(of: entry)
    var plan = Plan()
    plan.config = meaning.config
    for change in meaning.cells {
      var sum = try sums.cell(change)
      sum.value = try Self.add(sum.value, change.change, "cell \(change.key.window)")
      sum.isDirty = true
      plan.cells.append((change.key, sum))
    }
    guard let usage = meaning.usage else { return plan }
    // What comes for a closed period is an adjustment in the one that is open.
    let isClosed = try closings.isClosed(usage.period, of: usage.account)
    let billed = isClosed ? try closings.openPeriod(of: usage.account) : usage.period
    let key = Sums.SeriesKey(
      account: usage.account, feature: usage.feature, start: usage.period.start.milliseconds,
      adjustment: isClosed, billed: billed.start.milliseconds)
    var line = try sums.series(
      key, end: usage.period.end.milliseconds, billedEnd: billed.end.milliseconds)
    line.actual = try Self.add(line.actual, entry.actual, "total")
    line.charged = try Self.add(line.charged, entry.charged, "total")
    line.absorbed = try Self.add(line.absorbed, entry.absorbed, "total")
    line.deltas += 1
    line.isDirty = true
    plan.series = (key, line)
    for row in usage.breakdown.rows {
      try book(
        .init(line: row.line, account: usage.account, feature: usage.feature), row.amount, &plan)
    }
    try book(.init(line: nil, account: "", feature: usage.feature), -entry.actual, &plan)
    for charge in usage.charges {
      let key = Sums.ChargeKey(
        series: line.id, rate: charge.rate.text, from: charge.from.milliseconds)
      var sum = try sums.charge(key)
      sum.units = try Self.add(sum.units, charge.units, "units of rate \(key.rate)")
      sum.charge = try Self.add(sum.charge, charge.charge, "charge of rate \(key.rate)")
      sum.deltas += 1
      if usage.isCorrection { sum.corrections += 1 }
      sum.isDirty = true
      plan.charges.append((key, sum))
    }
    plan.corrects = usage.corrects
    return plan
  }

  private mutating func book(_ key: Sums.BookKey, _ amount: Int64, _ plan: inout Plan) throws {
    var account = try sums.account(key)
    let (balance, overflow) = account.balance.addingReportingOverflow(amount)
    guard !overflow else { throw Poison(reason: "the balance of \(key.name) would overflow") }
    account.balance = balance
    account.isDirty = true
    plan.accounts.append((key, account, amount))
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
    for (key, sum) in plan.cells { sums.cells[key] = sum }
    if let (key, line) = plan.series { sums.series[key] = line }
    for (key, sum) in plan.charges { sums.charges[key] = sum }
    let index = Int64(entry.id.index)
    for (key, account, amount) in plan.accounts {
      sums.accounts[key] = account
      try postings(entry.id.operation, index, Int64(bucket), account.id, amount)
    }
    if plan.corrects == nil, plan.config == nil { return }
    let op = entry.id.operation.blob
    if let corrects = plan.corrects {
      try db.cachedStatement(
        sql: "INSERT INTO corrections (corrected, bucket, op, idx) VALUES (?, ?, ?, ?)"
      ).execute(arguments: [corrects.blob, bucket, op, index])
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
      try Terms.note(config, in: db)
    }
  }

  private func insert(
    _ entry: OutboxEntry, bucket: Int, epoch: Int64, series: Int64?
  ) throws -> Bool {
    try deltas(
      entry.id.operation, Int64(entry.id.index), Int64(bucket), epoch, entry.sequence,
      Int64(entry.kind.rawValue), entry.time.milliseconds, entry.actual, entry.charged,
      entry.absorbed, series, bytes: entry.body)
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
}
