// What the ledger can be asked. Every answer that can grow is paged by the key of its last row, so
// no reply is unbounded and a page stays right while rows are added behind it.

internal import Foundation
internal import GRDB
package import TollgateCore
internal import TollgateWire

extension LedgerStore {
  /// Rows in one page, whatever is asked for.
  package static let pageMax = 1000

  package struct CellPageKey: Hashable, Sendable {
    package var subject: String
    package var feature: String
    package var window: String
    package var start: Int64

    package init(subject: String, feature: String, window: String, start: Int64) {
      self.subject = subject
      self.feature = feature
      self.window = window
      self.start = start
    }
  }

  package struct TotalPageKey: Hashable, Sendable, Codable {
    package var account: String
    package var feature: String
    package var start: Int64
    package var adjustment: Bool

    package init(account: String, feature: String, start: Int64, adjustment: Bool) {
      self.account = account
      self.feature = feature
      self.start = start
      self.adjustment = adjustment
    }
  }

  static func bounded(_ limit: Int) -> Int { max(1, min(limit, pageMax)) }

  /// The counters of one account whose period ends after `endingAfter`: what Redis is seeded with.
  package func balances(
    account: String, endingAfter: WallTime, after key: CellPageKey? = nil, limit: Int = pageMax
  ) throws -> LedgerPage<CellBalance, CellPageKey> {
    let limit = Self.bounded(limit)
    let rows = try read { db in
      try Row.fetchAll(
        db,
        sql: """
          SELECT subject, feature, window, period_start, period_end, settled, forgiven
          FROM counters WHERE account = ? AND period_end > ?
            AND (subject, feature, window, period_start) > (?, ?, ?, ?)
          ORDER BY subject, feature, window, period_start LIMIT ?
          """,
        arguments: [
          account, endingAfter.milliseconds, key?.subject ?? "", key?.feature ?? "",
          key?.window ?? "", key?.start ?? Int64.min, limit,
        ])
    }
    let cells = rows.map(Self.cellBalance)
    let next =
      cells.count < limit
      ? nil
      : cells.last.map {
        CellPageKey(subject: $0.subject, feature: $0.feature, window: $0.window, start: $0.start)
      }
    return LedgerPage(elements: cells, next: next)
  }

  /// Everything Redis needs to be seeded with one account, as of one moment: its configuration,
  /// then its counters, page by page. `page` runs inside the snapshot and must not wait.
  ///
  /// Beside the periods that end after `since`: of a counter of `<n>s` the one before, at which a
  /// sliding limit still looks, and of each grant the latest instances.
  ///
  /// - Parameter plainOnly: whoever asks knows counters of units alone.
  package func seed(
    account: String, since: WallTime, pageSize: Int, plainOnly: Bool = false,
    page: (ConfigRecord?, _ cells: [CellBalance], _ isLast: Bool) throws -> Void
  ) throws {
    try read { db in
      let config = try Self.latestConfig(db, scope: .account, key: account)
      var cells: [CellBalance] = []
      func add(_ cell: CellBalance) throws {
        if cells.count == pageSize {
          try page(config, cells, false)
          cells.removeAll(keepingCapacity: true)
        }
        cells.append(cell)
      }
      // '%' follows '$': every counter of a grant is told below.
      let rows = try Row.fetchCursor(
        try db.cachedStatement(
          sql: """
            SELECT subject, feature, window, period_start, period_end, settled, forgiven
            FROM counters WHERE account = ?1 AND NOT (window > '$' AND window < '%')
              AND (period_end >= ?2 OR (window GLOB '[1-9]*s'
                AND period_end - period_start <= ?3 AND 2 * period_end - period_start >= ?2))
            """),
        arguments: [account, since.milliseconds, LimitKind.slidingMillisecondsMax])
      while let row = try rows.next() {
        let cell = Self.cellBalance(row)
        if plainOnly, Window(code: cell.window)?.tally != .units { continue }
        try add(cell)
      }
      if !plainOnly {
        try Self.grantInstances(db, account: account, since: since) { try add($0) }
      }
      try page(config, cells, true)
    }
  }

  static func grantInstances(
    _ db: Database, account: String, since: WallTime, found: (CellBalance) throws -> Void
  ) throws {
    let rows = try Row.fetchCursor(
      try db.cachedStatement(
        sql: """
          SELECT subject, feature, window, period_start, period_end, settled, forgiven
          FROM counters WHERE account = ? AND window > '$' AND window < '%'
          ORDER BY subject, feature, window, period_start DESC
          """), arguments: [account])
    var grant: [String] = []
    var rank = 0
    while let row = try rows.next() {
      let cell = Self.cellBalance(row)
      let key = [cell.subject, cell.feature, cell.window]
      rank = key == grant ? rank + 1 : 1
      grant = key
      if rank <= BalancesReply.grantInstances || cell.end >= since.milliseconds { try found(cell) }
    }
  }

  static func cellBalance(_ row: Row) -> CellBalance {
    CellBalance(
      subject: row[0], feature: row[1], window: row[2], start: row[3], end: row[4],
      settled: row[5], forgiven: row[6])
  }

  /// The latest global configuration on record.
  package func globalConfig() throws -> ConfigRecord? { try config(scope: .global, key: "") }

  package func globalVersion() throws -> Int64 {
    try read { db in
      try Int64.fetchOne(
        db, sql: "SELECT max(version) FROM config WHERE scope = 'global' AND key = ''") ?? 0
    }
  }

  package func accountConfig(_ account: String) throws -> ConfigRecord? {
    try config(scope: .account, key: account)
  }

  private func config(scope: ConfigDelta.Scope, key: String) throws -> ConfigRecord? {
    try read { try Self.latestConfig($0, scope: scope, key: key) }
  }

  static func latestConfig(
    _ db: Database, scope: ConfigDelta.Scope, key: String
  ) throws -> ConfigRecord? {
    try Row.fetchOne(
      try db.cachedStatement(
        sql: """
          SELECT * FROM config WHERE scope = ? AND key = ?
          ORDER BY version DESC, time DESC, op DESC, idx DESC LIMIT 1
          """), arguments: [scope.rawValue, key]
    ).map(configRecord)
  }

  /// Which of these deltas of a bucket are on record: posted, or parked until they can be.
  package func known(
    _ ids: [DeltaID], bucket: Int
  ) throws -> (posted: [DeltaID], parked: [DeltaID]) {
    try read { db in
      let statement = try db.cachedStatement(
        sql: """
          SELECT p.op IS NOT NULL FROM deltas AS d
          LEFT JOIN parked AS p ON p.op = d.op AND p.idx = d.idx AND p.bucket = d.bucket
            AND p.replayed IS NULL
          WHERE d.op = ? AND d.idx = ? AND d.bucket = ?
          """)
      var known: (posted: [DeltaID], parked: [DeltaID]) = ([], [])
      for id in ids.prefix(Self.pageMax) {
        let row = try Row.fetchOne(
          statement, arguments: [id.operation.blob, Int64(id.index), bucket])
        guard let row else { continue }
        if row[0] { known.parked.append(id) } else { known.posted.append(id) }
      }
      return known
    }
  }

  /// Which lines of the books: one account's or all, one feature's or all, of the periods that
  /// start in `from ..< to`.
  package struct TotalFilter: Hashable, Sendable {
    package var account: String?
    package var feature: String?
    package var from: Int64
    package var to: Int64

    package init(
      account: String? = nil, feature: String? = nil, from: Int64 = .min, to: Int64 = .max
    ) {
      self.account = account
      self.feature = feature
      self.from = from
      self.to = to
    }
  }

  /// The books, line by line, and, where one account was asked for, how far its bucket was
  /// delivered at that very moment; and, where that is asked for, its own counters that got other
  /// amounts than the books, of periods that ended `partsSince` or later and the latest of grants.
  package func totals(
    _ filter: TotalFilter = TotalFilter(), after key: TotalPageKey? = nil, limit: Int = pageMax,
    partsSince: WallTime? = nil
  ) throws -> (
    page: LedgerPage<UsageTotal, TotalPageKey>, position: BucketPosition?, parts: [CellBalance]?
  ) {
    let limit = Self.bounded(limit)
    let bucket = filter.account.flatMap { account in
      deployment.map { Int(StableHash.of(account) % UInt64($0.buckets)) }
    }
    let (rows, position, parts) = try read { db in
      (
        try Row.fetchAll(
          db,
          sql: """
            SELECT account, feature, period_start, max(period_end), adjustment, sum(actual),
              sum(charged), sum(absorbed), sum(deltas)
            FROM series WHERE (account, feature, period_start, adjustment) > (?, ?, ?, ?)
              AND deltas > 0 AND period_start >= ? AND period_start < ?
              \(filter.account == nil ? "AND ? IS NULL" : "AND account = ?")
              \(filter.feature == nil ? "AND ? IS NULL" : "AND feature = ?")
            GROUP BY account, feature, period_start, adjustment
            ORDER BY account, feature, period_start, adjustment LIMIT ?
            """,
          arguments: [
            key?.account ?? "", key?.feature ?? "", key?.start ?? Int64.min,
            key.map { $0.adjustment ? 1 : 0 } ?? -1, filter.from, filter.to, filter.account,
            filter.feature, limit,
          ]), try bucket.map { try Self.position(db, of: $0) },
        try filter.account.flatMap { account in
          try partsSince.map { try Self.parts(db, account: account, since: $0) }
        }
      )
    }
    let totals = rows.map(Self.total)
    let next =
      totals.count < limit
      ? nil
      : totals.last.map {
        TotalPageKey(
          account: $0.account, feature: $0.feature, start: $0.start, adjustment: $0.adjustment)
      }
    return (LedgerPage(elements: totals, next: next), position, parts)
  }

  package struct AccountTotals: Hashable, Sendable, Codable {
    package var account: String
    package var totals: [UsageTotal]
    package var parts: [CellBalance]?
    /// The first of its lines only: it is to be asked for by itself.
    package var isMore: Bool?
  }

  /// Accounts in one question, and lines of the books in one answer.
  package static let accountsMax = 500
  package static let accountLinesMax = 10_000

  /// The same of several accounts of one bucket, in one snapshot; of the first of them where all
  /// would be more than fits. nil: they are not of one bucket.
  package func totals(
    ofAccounts accounts: [String], partsSince: WallTime
  ) throws -> (accounts: [AccountTotals], position: BucketPosition)? {
    guard let deployment, let first = accounts.first else { return nil }
    func bucket(_ account: String) -> Int {
      Int(StableHash.of(account) % UInt64(deployment.buckets))
    }
    guard accounts.allSatisfy({ bucket($0) == bucket(first) }) else { return nil }
    return try read { db in
      var found: [AccountTotals] = []
      var lines = 0
      for account in accounts where lines < Self.accountLinesMax {
        let rows = try Row.fetchAll(
          try db.cachedStatement(
            sql: """
              SELECT account, feature, period_start, max(period_end), adjustment, sum(actual),
                sum(charged), sum(absorbed), sum(deltas)
              FROM series WHERE account = ? AND deltas > 0
              GROUP BY account, feature, period_start, adjustment
              ORDER BY account, feature, period_start, adjustment LIMIT ?
              """), arguments: [account, Self.pageMax])
        let parts = try Self.parts(db, account: account, since: partsSince)
        lines += rows.count + parts.count + 1
        found.append(
          AccountTotals(
            account: account, totals: rows.map(Self.total), parts: parts,
            isMore: rows.count == Self.pageMax ? true : nil))
      }
      return (found, try Self.position(db, of: bucket(first)))
    }
  }

  private static func total(_ row: Row) -> UsageTotal {
    UsageTotal(
      account: row[0], feature: row[1], start: row[2], end: row[3], adjustment: row[4],
      actual: row[5], charged: row[6], absorbed: row[7], deltas: row[8])
  }

  private static func position(_ db: Database, of bucket: Int) throws -> BucketPosition {
    let row = try Row.fetchOne(
      db,
      sql: """
        SELECT b.epoch, coalesce(c.cursor, 0) FROM buckets AS b
        LEFT JOIN cursors AS c ON c.bucket = b.bucket AND c.epoch = b.epoch WHERE b.bucket = ?
        """, arguments: [bucket])
    return row.map { BucketPosition(bucket: bucket, epoch: $0[0], cursor: $0[1]) }
      ?? BucketPosition(bucket: bucket, epoch: 0, cursor: 0)
  }

  /// The start of the billing period that runs for an account, where it used anything in it; else
  /// that of the month of UTC.
  package func runningMonth(of account: String, now: WallTime) throws -> Int64 {
    try read { db in
      try Int64.fetchOne(
        db,
        sql: """
          SELECT max(period_start) FROM series
          WHERE account = ? AND period_start <= ? AND period_end > ?
          """, arguments: [account, now.milliseconds, now.milliseconds])
    } ?? Window.month.period(containing: now).start.milliseconds
  }

  /// The deltas behind one line of the books, in the order of their ids, which is the order of
  /// time, or in the opposite one.
  package func deltas(
    account: String, feature: String, start: Int64, newestFirst: Bool = false,
    after: DeltaID? = nil, limit: Int = pageMax
  ) throws -> LedgerPage<DeltaRecord, DeltaID> {
    let limit = Self.bounded(limit)
    let beyond = newestFirst ? Data(repeating: 0xFF, count: 17) : Data()
    let rows = try read { db in
      try Row.fetchAll(
        db,
        sql: """
          SELECT d.* FROM deltas AS d WHERE d.series IN (
            SELECT id FROM series WHERE account = ? AND feature = ? AND period_start = ?)
            AND (d.op, d.idx) \(newestFirst ? "<" : ">") (?, ?)
          ORDER BY d.op \(newestFirst ? "DESC" : ""), d.idx \(newestFirst ? "DESC" : "") LIMIT ?
          """,
        arguments: [
          account, feature, start, after?.operation.blob ?? beyond,
          after.map { Int64($0.index) } ?? -1, limit,
        ])
    }
    let entries = rows.compactMap { row in Self.entry(of: row).map { (row, $0) } }
    let records = entries.map { row, entry in
      DeltaRecord(
        id: entry.id.description, bucket: row["bucket"], epoch: row["epoch"],
        sequence: entry.sequence, kind: entry.kind.rawValue, time: entry.time.milliseconds,
        actual: entry.actual, charged: entry.charged, absorbed: entry.absorbed)
    }
    return LedgerPage(
      elements: records, next: rows.count < limit ? nil : entries.last.map { $0.1.id })
  }

  /// The current epoch and cursor of every stream; epoch 0 where none was ever issued.
  package func positions() throws -> [BucketPosition] {
    try read { db in
      var positions = (0..<streams).map { BucketPosition(bucket: $0, epoch: 0, cursor: 0) }
      let rows = try Row.fetchAll(
        db,
        sql: """
          SELECT b.bucket, b.epoch, coalesce(c.cursor, 0) FROM buckets AS b
          LEFT JOIN cursors AS c ON c.bucket = b.bucket AND c.epoch = b.epoch
          """)
      for row in rows {
        let bucket: Int = row[0]
        guard positions.indices.contains(bucket) else { continue }
        positions[bucket].epoch = row[1]
        positions[bucket].cursor = row[2]
      }
      return positions
    }
  }

  /// How far one epoch of a stream is delivered.
  package func cursor(bucket: Int, epoch: Int64) throws -> Int64 {
    try read { db in
      try Int64.fetchOne(
        db, sql: "SELECT cursor FROM cursors WHERE bucket = ? AND epoch = ?",
        arguments: [bucket, epoch]) ?? 0
    }
  }

  /// Sequence numbers that were closed as lost in the bucket of this account; while there are any,
  /// its sums may be short.
  package func lost(account: String) throws -> Int64 {
    guard let deployment else { return 0 }
    let bucket = Int(StableHash.of(account) % UInt64(deployment.buckets))
    return try read { db in
      try Int64.fetchOne(
        db, sql: "SELECT coalesce(sum(last - first + 1), 0) FROM loss WHERE bucket = ?",
        arguments: [bucket]) ?? 0
    }
  }

  package func parked(limit: Int = pageMax) throws -> [ParkedRecord] {
    try read { db in
      try Row.fetchAll(
        db,
        sql: """
          SELECT d.*, p.reason AS why FROM parked AS p
          JOIN deltas AS d ON d.op = p.op AND d.idx = p.idx AND d.bucket = p.bucket
          WHERE p.replayed IS NULL ORDER BY p.time, p.op, p.idx LIMIT ?
          """, arguments: [Self.bounded(limit)])
    }.compactMap { row in
      guard let op = OperationID(blob: row["op"]) else { return nil }
      let index: Int64 = row["idx"]
      return ParkedRecord(
        id: "\(op.hex).\(index)", bucket: row["bucket"], epoch: row["epoch"],
        sequence: row["seq"], reason: row["why"])
    }
  }

  package func status() throws -> LedgerStatus {
    let positions = try positions()
    return try read { db in
      func number(_ sql: String) throws -> Int64 { try Int64.fetchOne(db, sql: sql) ?? 0 }
      return LedgerStatus(
        deployment: deployment, positions: positions,
        deltas: try number("SELECT coalesce(sum(deltas), 0) FROM series"),
        duplicates: try number("SELECT count(*) FROM duplicates"),
        parked: try number("SELECT count(*) FROM parked WHERE replayed IS NULL"),
        lostSequences: try number("SELECT coalesce(sum(last - first + 1), 0) FROM loss"),
        acknowledgedSequences: try Self.acknowledgedSequences(db),
        configRecords: try number("SELECT count(*) FROM config"))
    }
  }

  static func configRecord(_ row: Row) -> ConfigRecord {
    let op: Data = row["op"]
    return ConfigRecord(
      scope: row["scope"], key: row["key"], version: row["version"],
      operation: OperationID(blob: op)?.hex ?? "", action: row["action"], actor: row["actor"],
      reason: row["reason"], before: row["before"], after: row["after"], time: row["time"])
  }

  /// A row of `deltas` as the entry it was; nil where the file was tampered with.
  static func entry(of row: Row) -> OutboxEntry? {
    let kind: Int64 = row["kind"]
    let index: Int64 = row["idx"]
    guard let op = OperationID(blob: row["op"]), let kind = UInt8(exactly: kind),
      let position = UInt16(exactly: index)
    else { return nil }
    let body: Data = row["body"]
    return OutboxEntry(
      sequence: row["seq"], kind: DeltaKind(rawValue: kind),
      id: DeltaID(operation: op, index: position),
      time: WallTime(milliseconds: row["time"]), actual: row["actual"], charged: row["charged"],
      absorbed: row["absorbed"], body: [UInt8](body))
  }
}
