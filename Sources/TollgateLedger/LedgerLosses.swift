// What was closed as lost, and who has looked at it. A row of `loss` is never changed or removed:
// it is why the books may be short, and why a seed lowers no counter of its bucket. An
// acknowledgement is a row beside it, with who, when and why; it silences `status`, no more.

internal import Foundation
internal import GRDB
package import TollgateCore

package enum LossNotFound: Error, Hashable, Sendable, CustomStringConvertible {
  case unreadable(String)
  case unknown(String)

  package var description: String {
    switch self {
    case .unreadable(let id): "\(id) is not the id of a loss: give BUCKET/EPOCH/FIRST"
    case .unknown(let id): "there is no loss \(id)"
    }
  }
}

extension LedgerStore {
  /// How long before a row a delta may have been minted that is counted as late: the dedupe window
  /// is far shorter, and the rest need not be read.
  package static let lateMillisecondsMax: Int64 = 25 * 3_600_000

  /// Those that nobody acknowledged first, the latest first; the first `limit` of them.
  package func losses(
    limit: Int = pageMax, countingLate: Bool = false
  ) throws -> [LossRecord] {
    var losses: [LossRecord] = []
    try eachLoss(limit: Self.bounded(limit), countingLate: countingLate) { losses.append($0) }
    return losses
  }

  /// Every row, in the same order, from one snapshot.
  ///
  /// - Parameter limit: nil: all of them.
  package func eachLoss(
    limit: Int? = nil, countingLate: Bool = false, _ body: (LossRecord) throws -> Void
  ) throws {
    try read { db in
      // A file that an older release wrote is read as it is.
      let known = try db.tableExists(Schema.acknowledged)
      let rows = try Row.fetchCursor(
        db,
        sql: known
          ? """
          SELECT l.bucket, l.epoch, l.first, l.last, l.time, a.time, a.actor, a.reason
          FROM loss AS l LEFT JOIN \(Schema.acknowledged) AS a
            ON a.bucket = l.bucket AND a.epoch = l.epoch AND a.first = l.first
          ORDER BY a.time IS NOT NULL, l.time DESC, l.bucket, l.epoch, l.first LIMIT ?
          """
          : """
          SELECT bucket, epoch, first, last, time, NULL, NULL, NULL
          FROM loss ORDER BY time DESC, bucket, epoch, first LIMIT ?
          """, arguments: [limit ?? -1])
      // What one recovery closed stands together and shares its count.
      var counted: (bucket: Int, epoch: Int64, time: Int64, late: Int64)?
      while let row = try rows.next() {
        var loss = LossRecord(
          bucket: row[0], epoch: row[1], first: row[2], last: row[3], time: row[4])
        if let time = row[5] as Int64? {
          loss.acknowledged = .init(time: time, actor: row[6], reason: row[7])
        }
        if countingLate {
          if let counted, counted.bucket == loss.bucket, counted.epoch == loss.epoch,
            counted.time == loss.time
          {
            loss.late = counted.late
          } else {
            let late = try Self.late(loss, db)
            counted = (loss.bucket, loss.epoch, loss.time, late)
            loss.late = late
          }
        }
        try body(loss)
      }
    }
  }

  private static func late(_ loss: LossRecord, _ db: Database) throws -> Int64 {
    func bound(_ milliseconds: Int64) -> Data {
      OperationID(high: UInt64(max(0, milliseconds)) << 16, low: 0).blob
    }
    return try Int64.fetchOne(
      db,
      sql: """
        SELECT count(*) FROM deltas
        WHERE op >= ? AND op < ? AND bucket = ? AND epoch > ? AND time < ?
        """,
      arguments: [
        bound(loss.time - lateMillisecondsMax), bound(loss.time + 60_000), loss.bucket, loss.epoch,
        loss.time,
      ]) ?? 0
  }

  static func acknowledgedSequences(_ db: Database) throws -> Int64 {
    guard try db.tableExists(Schema.acknowledged) else { return 0 }
    return try Int64.fetchOne(
      db,
      sql: """
        SELECT coalesce(sum(l.last - l.first + 1), 0) FROM loss AS l
        JOIN \(Schema.acknowledged) AS a
          ON a.bucket = l.bucket AND a.epoch = l.epoch AND a.first = l.first
        """) ?? 0
  }

  /// Notes that somebody has looked at these losses; all of them, or none where one is unknown.
  /// What was acknowledged before keeps its first word.
  ///
  /// - Parameter ids: nil: every one that nobody acknowledged yet.
  /// - Returns: how many were acknowledged now.
  package func acknowledge(
    _ ids: [String]?, actor: String, reason: String, now: WallTime
  ) throws -> Int {
    try transaction(now: now) { try $0.acknowledge(ids, actor: actor, reason: reason) }
  }
}

extension LedgerTransaction {
  func acknowledge(_ ids: [String]?, actor: String, reason: String) throws -> Int {
    let values = [now.milliseconds, actor, reason] as [any DatabaseValueConvertible]
    let insert = """
      INSERT INTO \(Schema.acknowledged) (bucket, epoch, first, time, actor, reason)
      SELECT bucket, epoch, first, ?, ?, ? FROM loss
      """
    guard let ids else {
      try db.execute(
        sql: insert + " WHERE true ON CONFLICT DO NOTHING", arguments: StatementArguments(values))
      return db.changesCount
    }
    var count = 0
    for id in ids {
      let parts = id.split(separator: "/", omittingEmptySubsequences: false).map { Int64($0) }
      guard parts.count == 3, let bucket = parts[0], let epoch = parts[1], let first = parts[2]
      else { throw LossNotFound.unreadable(id) }
      let key = [bucket, epoch, first] as [any DatabaseValueConvertible]
      let found = try Bool.fetchOne(
        db,
        sql: "SELECT EXISTS (SELECT 1 FROM loss WHERE bucket = ? AND epoch = ? AND first = ?)",
        arguments: StatementArguments(key))
      guard found == true else { throw LossNotFound.unknown(id) }
      try db.execute(
        sql: insert + " WHERE bucket = ? AND epoch = ? AND first = ? ON CONFLICT DO NOTHING",
        arguments: StatementArguments(values + key))
      count += db.changesCount
    }
    return count
  }
}
