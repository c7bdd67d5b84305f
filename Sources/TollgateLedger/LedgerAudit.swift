// `tollgate ledger verify`: an audit of the books by reading all of them again. It trusts no sum:
// every total, balance and counter is recomputed from the deltas, and every stream is walked from
// its first sequence number to its cursor. Memory: a few numbers per counter and account on record.

internal import Foundation
internal import GRDB
internal import TollgateCore

package struct AuditReport: Hashable, Sendable, Codable {
  /// Findings listed by text; above this they are only counted.
  package static let findingsMax = 100

  package var deltas: Int64 = 0
  package var postings: Int64 = 0
  package var cells: Int64 = 0
  /// Sums of what rates charged, and how many of them were held against a price on record.
  package var charges: Int64 = 0
  package var priced: Int64 = 0
  package var streams: Int64 = 0
  package var lostSequences: Int64 = 0
  package var duplicates: Int64 = 0
  package var parked: Int64 = 0
  package var findings: [String] = []
  package var findingsCount = 0

  /// Losses and parked deltas are named, not hidden, and are no fault of the books.
  package var isSound: Bool { findingsCount == 0 }

  mutating func find(_ text: @autoclosure () -> String) {
    findingsCount += 1
    if findings.count < Self.findingsMax { findings.append(text()) }
  }
}

extension LedgerStore {
  package func verify() throws -> AuditReport {
    try read { db in try verify(db) }
  }

  func verify(_ db: Database) throws -> AuditReport {
    var report = AuditReport()
    try checkFile(db, &report)
    try checkDeltas(db, &report)
    try checkTotals(db, &report)
    try checkStreams(db, &report)
    try checkConfig(db, &report)
    // A file that an older release wrote is read as it is.
    if try Schema.hasParts(db) { try checkTerms(db, &report) }
    if try db.tableExists("closings") { try checkClosings(db, &report) }
    return report
  }

  private func checkFile(_ db: Database, _ report: inout AuditReport) throws {
    // Includes the uniqueness of every primary key and of every index.
    for problem in try String.fetchAll(db, sql: "PRAGMA integrity_check") where problem != "ok" {
      report.find("file: \(problem)")
    }
  }

  /// Each delta's double entry, and every sum of the file, against what the deltas' own bodies say.
  private func checkDeltas(_ db: Database, _ report: inout AuditReport) throws {
    let hasParts = try Schema.hasParts(db)
    var cells: [CellKey: AuditReading.Cell] = [:]
    var charges: [AuditReading.ChargeKey: AuditedCharge] = [:]
    var corrections: Int64 = 0
    var postings = try AuditedPostings(db)
    let rows = try Row.fetchCursor(
      db,
      sql: """
        SELECT d.*, p.op IS NOT NULL AND p.replayed IS NULL AS is_parked FROM deltas AS d
        LEFT JOIN parked AS p ON p.op = d.op AND p.idx = d.idx AND p.bucket = d.bucket
        ORDER BY d.op, d.idx, d.bucket
        """)
    while let row = try rows.next() {
      report.deltas += 1
      guard let entry = Self.entry(of: row) else {
        report.find("a delta of bucket \(row["bucket"] as Int64) has a malformed row")
        continue
      }
      let posted = try postings.rows(of: entry.id, bucket: row["bucket"])
      if row["is_parked"] {
        report.parked += 1
        if !posted.isEmpty { report.find("\(entry.id) is parked and has postings") }
        continue
      }
      let series: Int64? = row["series"]
      do {
        let reading =
          entry.kind == .config
          ? try AuditReading(config: entry, bodies)
          : entry.kind == .threshold
            ? try AuditReading(event: entry) : try AuditReading(usage: entry, bodies)
        let sum = posted.values.reduce(0, &+)
        if sum != 0 { report.find("postings of \(entry.id) sum to \(sum)") }
        if posted.filter({ $0.value != 0 }) != reading.rows
          || entry.actual != entry.charged + entry.absorbed || (series == nil) != posted.isEmpty
        {
          report.find("postings of \(entry.id) are not its numbers")
        }
        for (key, cell) in reading.cells {
          // A period that was ended early has another end in later deltas.
          var counted = cells[key] ?? .init(amount: 0, end: cell.end, goes: cell.goes)
          counted.amount &+= cell.amount
          counted.end = max(counted.end, cell.end)
          counted.goes = cell.goes.map { max($0, counted.goes ?? $0) }
          cells[key] = counted
        }
        for charge in reading.charges {
          let key = AuditReading.ChargeKey(
            series: series ?? 0, rate: charge.rate.text, from: charge.from.milliseconds)
          charges[key, default: .init()].add(charge, isCorrection: entry.kind != .usage)
        }
        if let corrects = reading.corrects, hasParts {
          corrections += 1
          try checkCorrection(db, of: entry, corrects, bucket: row["bucket"], &report)
        }
      } catch {
        report.find("delta \(entry.id) was posted but is poison: \(error)")
      }
    }
    try postings.finish(db, &report)
    try checkCells(db, cells, &report)
    guard hasParts else { return }
    try checkCharges(db, charges, &report)
    let recorded = try Int64.fetchOne(db, sql: "SELECT count(*) FROM corrections") ?? 0
    if recorded != corrections {
      report.find("\(recorded) corrections on record, \(corrections) by the deltas")
    }
  }

  private func checkCorrection(
    _ db: Database, of entry: OutboxEntry, _ corrected: OperationID, bucket: Int64,
    _ report: inout AuditReport
  ) throws {
    let statement = try db.cachedStatement(
      sql: "SELECT 1 FROM corrections WHERE corrected = ? AND bucket = ? AND op = ? AND idx = ?")
    let found = try Row.fetchOne(
      statement,
      arguments: [
        corrected.blob, bucket, entry.id.operation.blob, Int64(entry.id.index),
      ])
    if found == nil { report.find("\(entry.id) corrects \(corrected.hex), which is not on record") }
  }

  private func checkCells(
    _ db: Database, _ expected: [CellKey: AuditReading.Cell], _ report: inout AuditReport
  ) throws {
    let pruned = try Pruned(db)
    var cells = expected
    let recorded = try Row.fetchCursor(db, sql: "SELECT * FROM cells")
    while let row = try recorded.next() {
      report.cells += 1
      let key = CellKey(
        account: row["account"], subject: row["subject"], feature: row["feature"],
        window: row["window"], start: row["period_start"])
      let settled: Int64 = row["settled"]
      let cell = cells.removeValue(forKey: key)
      let sum = cell?.amount ?? 0
      let end: Int64 = row["period_end"]
      let goes = AuditReading.goes(key.window, start: key.start, end: end)
      if settled != sum && !pruned.mayMiss(end: end, goes: goes) {
        report.find("cell \(Self.text(key)) holds \(settled), its deltas \(sum)")
      }
      if row.hasColumn("goes"), row["goes"] as Int64? != goes {
        report.find("cell \(Self.text(key)) may be dropped at the wrong time")
      }
    }
    for (key, cell) in cells where cell.amount != 0 {
      guard !pruned.mayMiss(end: cell.end, goes: cell.goes) else { continue }
      report.find("cell \(Self.text(key)) is missing, its deltas sum to \(cell.amount)")
    }
  }

  private func checkTotals(_ db: Database, _ report: inout AuditReport) throws {
    let totals = try Row.fetchAll(
      db,
      sql: """
        SELECT s.account, s.feature, s.period_start FROM series AS s
        LEFT JOIN deltas AS d ON d.series = s.id GROUP BY s.id
        HAVING s.actual <> coalesce(sum(d.actual), 0) OR s.charged <> coalesce(sum(d.charged), 0)
          OR s.absorbed <> coalesce(sum(d.absorbed), 0) OR s.deltas <> count(d.op) LIMIT 1000
        """)
    for row in totals {
      report.find(
        "total of \(row[0] as String) \(row[1] as String) from \(row[2] as Int64) is not its deltas"
      )
    }
  }

  /// No hole below a cursor, except where a loss is on record; nothing above it.
  private func checkStreams(_ db: Database, _ report: inout AuditReport) throws {
    report.duplicates = try Int64.fetchOne(db, sql: "SELECT count(*) FROM duplicates") ?? 0
    report.lostSequences =
      try Int64.fetchOne(db, sql: "SELECT coalesce(sum(last - first + 1), 0) FROM loss") ?? 0
    let rows = try Row.fetchCursor(
      db,
      sql: """
        SELECT bucket, epoch, seq AS first, seq AS last, 0 AS is_cursor FROM deltas
        UNION ALL SELECT bucket, epoch, seq, seq, 0 FROM duplicates
        UNION ALL SELECT bucket, epoch, first, last, 0 FROM loss
        UNION ALL SELECT bucket, epoch, cursor, cursor, 1 FROM cursors
        ORDER BY bucket, epoch, is_cursor, first
        """)
    var stream: (bucket: Int64, epoch: Int64)?
    var reached: Int64 = 0
    while let row = try rows.next() {
      let at: (bucket: Int64, epoch: Int64) = (row[0], row[1])
      if stream == nil || at != stream ?? at {
        stream = at
        reached = 0
        report.streams += 1
      }
      let first: Int64 = row[2]
      let last: Int64 = row[3]
      let isCursor: Bool = row[4]
      if isCursor {
        if last != reached {
          report.find(
            "bucket \(at.bucket) epoch \(at.epoch): cursor \(last), record reaches \(reached)")
        }
      } else {
        if first > reached + 1 {
          report.find(
            "bucket \(at.bucket) epoch \(at.epoch): gap from \(reached + 1) to \(first - 1)")
        }
        reached = max(reached, last)
      }
    }
    let epochs = try Row.fetchAll(
      db,
      sql: """
        SELECT c.bucket, c.epoch FROM cursors AS c JOIN buckets AS b ON b.bucket = c.bucket
        WHERE c.epoch > b.epoch OR (c.epoch < b.epoch AND NOT EXISTS (
          SELECT 1 FROM fences AS f WHERE f.bucket = c.bucket AND f.epoch = c.epoch))
        """)
    for row in epochs {
      report.find(
        "bucket \(row[0] as Int64): epoch \(row[1] as Int64) is neither current nor fenced")
    }
  }

  private func checkConfig(_ db: Database, _ report: inout AuditReport) throws {
    // NOT IN makes one index of the records; NOT EXISTS would read all of them for each delta,
    // because they are kept by what they are about and not by id.
    let missing =
      try Int64.fetchOne(
        db,
        sql: """
          SELECT count(*) FROM deltas AS d WHERE d.kind = 3
            AND (d.op, d.idx) NOT IN (SELECT op, idx FROM config)
            AND NOT EXISTS (SELECT 1 FROM parked AS p
              WHERE p.op = d.op AND p.idx = d.idx AND p.bucket = d.bucket
                AND p.replayed IS NULL)
          """) ?? 0
    if missing > 0 { report.find("\(missing) config deltas without a config record") }
  }

  private static func text(_ key: CellKey) -> String {
    "\(key.subject) \(key.feature) \(key.window) from \(key.start)"
  }
}

/// Which sums may be gone: by the rule of this release, or by that of an older one, which dropped
/// sums of windows shorter than a month by the end of their period.
private struct Pruned {
  private var endedBefore = Int64.min
  private var goneBy = Int64.min

  init(_ db: Database) throws {
    guard let row = try Row.fetchOne(db, sql: "SELECT * FROM pruned") else { return }
    endedBefore = row["cells_ended_before"]
    if row.hasColumn("cells_gone_by") { goneBy = row["cells_gone_by"] ?? Int64.min }
  }

  func mayMiss(end: Int64, goes: Int64?) -> Bool {
    guard let goes else { return false }
    return goes <= goneBy || end < endedBefore
  }
}

/// The postings in the order of their deltas, so that both are read once, side by side; and the
/// balance of every account on the way.
private struct AuditedPostings {
  private struct Place: Comparable {
    var id: DeltaID
    var bucket: Int64

    static func < (a: Self, b: Self) -> Bool {
      a.id != b.id ? a.id < b.id : a.bucket < b.bucket
    }
  }

  private let cursor: RowCursor
  private var next: (place: Place, account: Int64, amount: Int64)?
  private var names: [Int64: String] = [:]
  private var balances: [Int64: Int64] = [:]
  private var count: Int64 = 0
  private var orphans: Int64 = 0

  init(_ db: Database) throws {
    let rows = try Row.fetchCursor(db, sql: "SELECT id, name FROM accounts")
    while let row = try rows.next() { names[row[0]] = row[1] }
    cursor = try Row.fetchCursor(
      db, sql: "SELECT op, idx, bucket, account, amount FROM postings ORDER BY op, idx, bucket")
    try advance()
  }

  private mutating func advance() throws {
    next = nil
    while let row = try cursor.next() {
      count += 1
      balances[row[3], default: 0] &+= row[4]
      let index: Int64 = row[1]
      guard let op = OperationID(blob: row[0]), let index = UInt16(exactly: index) else {
        orphans += 1
        continue
      }
      let place = Place(id: DeltaID(operation: op, index: index), bucket: row[2])
      next = (place, row[3], row[4])
      return
    }
  }

  /// By the names of their accounts.
  mutating func rows(of id: DeltaID, bucket: Int64) throws -> [String: Int64] {
    let place = Place(id: id, bucket: bucket)
    var rows: [String: Int64] = [:]
    while let one = next, one.place <= place {
      if one.place == place {
        rows[names[one.account] ?? "account \(one.account)", default: 0] &+= one.amount
      } else {
        orphans += 1
      }
      try advance()
    }
    return rows
  }

  mutating func finish(_ db: Database, _ report: inout AuditReport) throws {
    while next != nil {
      orphans += 1
      try advance()
    }
    report.postings = count
    if orphans > 0 { report.find("\(orphans) postings without a delta") }
    let rows = try Row.fetchCursor(db, sql: "SELECT id, name, balance FROM accounts")
    while let row = try rows.next() {
      let total = balances.removeValue(forKey: row[0]) ?? 0
      if total != row[2] {
        report.find(
          "account \(row[1] as String) has balance \(row[2] as Int64), postings \(total)")
      }
    }
    for (account, total) in balances where total != 0 {
      report.find("account \(account) is missing, its postings sum to \(total)")
    }
  }
}
