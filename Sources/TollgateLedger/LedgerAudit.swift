// `tollgate ledger verify`: an audit of the books by reading all of them again. It trusts no sum:
// every total, balance and counter is recomputed from the deltas, and every stream is walked from
// its first sequence number to its cursor. Memory: two numbers per counter on record.

internal import Foundation
internal import GRDB
internal import TollgateCore

package struct AuditReport: Hashable, Sendable, Codable {
  /// Findings listed by text; above this they are only counted.
  package static let findingsMax = 100

  package var deltas: Int64 = 0
  package var postings: Int64 = 0
  package var cells: Int64 = 0
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
    try checkPostings(db, &report)
    try checkSums(db, &report)
    try checkStreams(db, &report)
    try checkConfig(db, &report)
    return report
  }

  private func checkFile(_ db: Database, _ report: inout AuditReport) throws {
    // Includes the uniqueness of every primary key and of every index.
    for problem in try String.fetchAll(db, sql: "PRAGMA integrity_check") where problem != "ok" {
      report.find("file: \(problem)")
    }
  }

  private func checkPostings(_ db: Database, _ report: inout AuditReport) throws {
    report.postings = try Int64.fetchOne(db, sql: "SELECT count(*) FROM postings") ?? 0
    let unbalanced = try Row.fetchAll(
      db,
      sql: """
        SELECT lower(hex(op)), idx, sum(amount) FROM postings GROUP BY op, idx, bucket
        HAVING sum(amount) <> 0 LIMIT 1000
        """)
    for row in unbalanced {
      report.find("postings of \(row[0] as String).\(row[1] as Int64) sum to \(row[2] as Int64)")
    }
    let wrong = try Row.fetchAll(
      db,
      sql: """
        SELECT lower(hex(d.op)), d.idx FROM deltas AS d WHERE d.series IS NOT NULL AND (
          d.charged <> coalesce((SELECT sum(p.amount) FROM postings AS p
            JOIN accounts AS a ON a.id = p.account
            WHERE p.op = d.op AND p.idx = d.idx AND p.bucket = d.bucket
              AND a.name LIKE 'usage:%'), 0)
          OR d.absorbed <> coalesce((SELECT sum(p.amount) FROM postings AS p
            JOIN accounts AS a ON a.id = p.account
            WHERE p.op = d.op AND p.idx = d.idx AND p.bucket = d.bucket
              AND a.name LIKE 'absorbed:%'), 0)
          OR d.actual <> d.charged + d.absorbed) LIMIT 1000
        """)
    for row in wrong {
      report.find("postings of \(row[0] as String).\(row[1] as Int64) are not its numbers")
    }
    let orphans =
      try Int64.fetchOne(
        db,
        sql: """
          SELECT count(*) FROM postings AS p WHERE NOT EXISTS (
            SELECT 1 FROM deltas AS d WHERE d.op = p.op AND d.idx = p.idx
              AND d.bucket = p.bucket AND d.series IS NOT NULL)
          """) ?? 0
    if orphans > 0 { report.find("\(orphans) postings without a delta") }
    try checkBalances(db, &report)
  }

  /// One pass over the postings and one over the accounts, in step: joined, the postings would be
  /// read again for each account, because they are kept by delta.
  private func checkBalances(_ db: Database, _ report: inout AuditReport) throws {
    let sums = try Row.fetchCursor(
      db, sql: "SELECT account, sum(amount) FROM postings GROUP BY account ORDER BY account")
    func next() throws -> (account: Int64, total: Int64)? {
      try sums.next().map { (account: $0[0], total: $0[1]) }
    }
    let accounts = try Row.fetchCursor(
      db, sql: "SELECT id, name, balance FROM accounts ORDER BY id")
    var sum = try next()
    while let row = try accounts.next() {
      let id: Int64 = row[0]
      var total: Int64 = 0
      while let found = sum, found.account <= id {
        if found.account == id {
          total = found.total
        } else {
          report.find("postings of account \(found.account), which is not on record")
        }
        sum = try next()
      }
      let balance: Int64 = row[2]
      if balance != total {
        report.find("account \(row[1] as String) has balance \(balance), postings \(total)")
      }
    }
    while let found = sum {
      report.find("postings of account \(found.account), which is not on record")
      sum = try next()
    }
  }

  /// Totals and counters against what the deltas' own bodies say.
  private func checkSums(_ db: Database, _ report: inout AuditReport) throws {
    let prunedBefore =
      try Int64.fetchOne(db, sql: "SELECT cells_ended_before FROM pruned") ?? Int64.min
    var cells: [CellKey: (sum: Int64, end: Int64)] = [:]
    let rows = try Row.fetchCursor(
      db,
      sql: """
        SELECT d.*, p.op IS NOT NULL AND p.replayed IS NULL AS is_parked FROM deltas AS d
        LEFT JOIN parked AS p ON p.op = d.op AND p.idx = d.idx AND p.bucket = d.bucket
        """)
    while let row = try rows.next() {
      report.deltas += 1
      if row["is_parked"] {
        report.parked += 1
        continue
      }
      guard let entry = Self.entry(of: row) else {
        report.find("a delta of bucket \(row["bucket"] as Int64) has a malformed row")
        continue
      }
      do {
        for change in try bodies.meaning(of: entry).cells {
          // The end is what deltas say: of a day in a zone, or of an anchored window, the start
          // does not tell it.
          var counted = cells[change.key] ?? (0, change.end)
          counted.sum &+= change.change
          counted.end = max(counted.end, change.end)
          cells[change.key] = counted
        }
      } catch {
        report.find("delta \(entry.id) was posted but is poison: \(error)")
      }
    }
    let recorded = try Row.fetchCursor(db, sql: "SELECT * FROM cells")
    while let row = try recorded.next() {
      report.cells += 1
      let key = CellKey(
        account: row["account"], subject: row["subject"], feature: row["feature"],
        window: row["window"], start: row["period_start"])
      let settled: Int64 = row["settled"]
      let sum = cells.removeValue(forKey: key)?.sum ?? 0
      let end: Int64 = row["period_end"]
      if settled != sum && end >= prunedBefore {
        report.find("cell \(Self.text(key)) holds \(settled), its deltas \(sum)")
      }
    }
    for (key, counted) in cells where counted.sum != 0 {
      if Schema.isShort(window: key.window), counted.end < prunedBefore { continue }
      report.find("cell \(Self.text(key)) is missing, its deltas sum to \(counted.sum)")
    }
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
