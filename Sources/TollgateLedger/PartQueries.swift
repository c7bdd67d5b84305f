// Questions about counters that got other amounts than the books: what grants, caps, rates and
// deficits of one account count, and which deltas made one of them. `reconcile` asks them, so that
// these counters are explained like the bill.

internal import Foundation
internal import GRDB
package import TollgateCore

extension LedgerStore {
  /// Counters in one answer; an account of more is compared as far as they go.
  package static let partsMax = 4096
  /// Deltas read for one page of those of a counter.
  static let scannedMax = 20_000

  static func parts(_ db: Database, account: String, since: WallTime) throws -> [CellBalance] {
    var parts: [CellBalance] = []
    let rows = try Row.fetchCursor(
      try db.cachedStatement(
        sql: """
          SELECT subject, feature, window, period_start, period_end, settled, forgiven
          FROM counters WHERE account = ?1 AND subject = ?1 AND period_end >= ?2
            AND (window IN ('-') OR substr(window, 1, 1) IN ('o', 'r'))
          """), arguments: [account, since.milliseconds])
    while let row = try rows.next(), parts.count < partsMax { parts.append(cellBalance(row)) }
    try grantInstances(db, account: account, since: since) {
      if parts.count < partsMax { parts.append($0) }
    }
    return parts
  }

  /// The deltas that moved one counter of the account itself, newest first, each with what it added
  /// there as `charged`.
  package func deltas(
    account: String, feature: String, window: Window, start: Int64, after: DeltaID? = nil,
    limit: Int = pageMax
  ) throws -> LedgerPage<DeltaRecord, DeltaID> {
    let limit = Self.bounded(limit)
    return try read { db in
      let rows = try Row.fetchCursor(
        db,
        sql: """
          SELECT d.* FROM deltas AS d WHERE d.series IN (
            SELECT id FROM series WHERE account = ? AND feature = ?) AND (d.op, d.idx) < (?, ?)
          ORDER BY d.op DESC, d.idx DESC LIMIT ?
          """,
        arguments: [
          account, feature, after?.operation.blob ?? Data(repeating: 0xFF, count: 17),
          after.map { Int64($0.index) } ?? -1, Self.scannedMax,
        ])
      var found: [DeltaRecord] = []
      var scanned = 0
      var last: DeltaID?
      while found.count < limit, let row = try rows.next() {
        scanned += 1
        guard let entry = Self.entry(of: row), let body = try? bodies.usage(entry.body) else {
          continue
        }
        last = entry.id
        let counts = body.counts(charged: entry.charged).filter {
          $0.level == 1 && $0.window == window && $0.period.start.milliseconds == start
        }
        guard !counts.isEmpty else { continue }
        found.append(
          DeltaRecord(
            id: entry.id.description, bucket: row["bucket"], epoch: row["epoch"],
            sequence: entry.sequence, kind: entry.kind.rawValue, time: entry.time.milliseconds,
            actual: entry.actual, charged: counts.reduce(0) { $0 + $1.amount },
            absorbed: entry.absorbed))
      }
      let isMore = found.count == limit || scanned == Self.scannedMax
      return LedgerPage(elements: found, next: isMore ? last : nil)
    }
  }
}
