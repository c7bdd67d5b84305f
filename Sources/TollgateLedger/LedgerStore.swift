// The ledger's file: SQLite in WAL mode with full synchronisation, so that what was acknowledged
// survives the loss of power. All writing goes through `transaction`, one after the other; reading
// runs beside it on snapshots. Blocking: call it from the writer's queue or from a command, never
// from an event loop.

internal import Foundation
internal import GRDB
internal import NIOConcurrencyHelpers
package import TollgateCore
package import TollgateWire

package final class LedgerStore: Sendable {
  /// How long a write waits for another process that has the file (an export, a backup).
  package static let busySecondsMax = 5.0
  /// What the writer keeps of the file: the pages that a few thousand busy series come back to.
  /// With the library's two megabytes, two of three deltas read a page from the system.
  static let writerCacheKilobytes = 32 << 10
  /// Pages of the write-ahead log before they are copied into the file: a page that every
  /// transaction changes is copied once for many of them. 32 MB.
  static let checkpointPages = 8_192
  /// Sums of counters whose window is shorter than a month are kept this long after the period
  /// that follows theirs.
  package static let lateHorizonMilliseconds: Int64 = 24 * 3_600_000
  /// Sums of units that a rate priced are kept this long after their month: the month that
  /// follows, the longest hold and the late horizon.
  package static let pricedHorizonMilliseconds: Int64 = 35 * 86_400_000

  let pool: DatabasePool
  let bodies: DeltaBodies
  private let recorded: NIOLockedValueBox<Deployment?>

  /// Whose books these are; nil until the first sidecar has linked.
  package var deployment: Deployment? { recorded.withLockedValue { $0 } }

  /// Opens the file, creating it where it is missing.
  package init(path: String, bodies: DeltaBodies) throws {
    self.bodies = bodies
    do {
      var configuration = Configuration()
      configuration.busyMode = .timeout(Self.busySecondsMax)
      configuration.label = "ledger"
      pool = try DatabasePool(path: path, configuration: configuration)
      // The library opens WAL files with synchronous=NORMAL, which may lose the last transactions
      // when power fails: those were acknowledged, so they must not be lost.
      try pool.writeWithoutTransaction { db in
        try db.execute(
          sql: """
            PRAGMA synchronous = FULL;
            PRAGMA cache_size = -\(Self.writerCacheKilobytes);
            PRAGMA wal_autocheckpoint = \(Self.checkpointPages);
            """)
      }
      let migrator = Schema.migrator
      try migrator.migrate(pool)
      let newer = try pool.read { try migrator.hasBeenSuperseded($0) }
      guard !newer else { throw LedgerError.unusable("\(path) was written by a newer release") }
      recorded = NIOLockedValueBox(try pool.read { try Self.recordedDeployment($0) })
    } catch let error as DatabaseError {
      throw LedgerError.unusable("\(path): \(error)")
    }
  }

  /// Makes these the books of `deployment`, or, where they are somebody's already, compares.
  ///
  /// - Throws: `LedgerError.deploymentMismatch`, naming both values of each difference.
  package func adopt(_ deployment: Deployment, now: WallTime) throws {
    if let recorded = self.deployment {
      let differences = deployment.differences(from: recorded)
      guard differences.isEmpty else { throw LedgerError.deploymentMismatch(differences) }
      return
    }
    do {
      try pool.write { db in
        if let recorded = try Self.recordedDeployment(db) {
          let differences = deployment.differences(from: recorded)
          guard differences.isEmpty else { throw LedgerError.deploymentMismatch(differences) }
        } else {
          try db.execute(
            sql: "INSERT INTO deployment VALUES (1, ?, ?, ?, ?, ?, ?)",
            arguments: [
              deployment.id.text, deployment.buckets, deployment.hash, deployment.keyVersion,
              deployment.mode.rawValue, now.milliseconds,
            ])
        }
      }
    } catch let error as DatabaseError {
      throw LedgerError.storage("\(error)")
    }
    recorded.withLockedValue { $0 = deployment }
  }

  /// Opens an existing file for reading only; the deployment is the recorded one.
  package init(readOnly path: String, bodies: DeltaBodies) throws {
    self.bodies = bodies
    do {
      guard FileManager.default.fileExists(atPath: path) else {
        throw LedgerError.unusable("\(path) does not exist")
      }
      var configuration = Configuration()
      configuration.readonly = true
      configuration.busyMode = .timeout(Self.busySecondsMax)
      pool = try DatabasePool(path: path, configuration: configuration)
      let found = try pool.read { db in
        try db.tableExists("deployment") ? try Self.recordedDeployment(db) : nil
      }
      guard let found else { throw LedgerError.noDeployment(path: path) }
      recorded = NIOLockedValueBox(found)
    } catch let error as DatabaseError {
      throw LedgerError.unusable("\(path): \(error)")
    }
  }

  package func close() throws { try pool.close() }

  private static func recordedDeployment(_ db: Database) throws -> Deployment? {
    guard
      let row = try Row.fetchOne(
        db, sql: "SELECT id, buckets, hash, key_version, mode FROM deployment")
    else { return nil }
    guard let mode = Deployment.Mode(rawValue: row[4]) else {
      throw LedgerError.unusable("deployment mode \(row[4] as String)")
    }
    let name: Name
    do { name = try Name(row[0] as String) } catch { throw LedgerError.unusable("\(error)") }
    var recorded = Deployment(id: name, buckets: row[1], mode: mode)
    recorded.hash = row[2]
    recorded.keyVersion = row[3]
    return recorded
  }

  /// The number of streams: every bucket and the control bucket.
  package var streams: Int { deployment.map { $0.buckets + 1 } ?? 0 }

  // MARK: Writing

  /// One batch in a transaction of its own.
  package func apply(_ batch: DeltaBatch, now: WallTime) throws -> BatchOutcome {
    try transaction(now: now) { try $0.apply(batch) }
  }

  /// Closes an epoch and opens the next, in a transaction of its own.
  package func recover(_ request: RecoveryRequest, now: WallTime) throws -> RecoveryOutcome {
    try transaction(now: now) { try $0.recover(request) }
  }

  /// Everything `body` does is in force together or not at all.
  func transaction<Result>(
    now: WallTime, _ body: (inout LedgerTransaction) throws -> Result
  ) throws -> Result {
    do {
      return try pool.write { db in
        var transaction = try LedgerTransaction(db, store: self, now: now)
        let result = try body(&transaction)
        try transaction.finish()
        return result
      }
    } catch let error as DatabaseError {
      throw LedgerError.storage("\(error)")
    }
  }

  /// Tries every parked delta again, at most `limit` of them, after `parked`'s cause was mended.
  package func replayParked(now: WallTime, limit: Int = 1000) throws -> (posted: Int, left: Int) {
    try transaction(now: now) { try $0.replayParked(limit: limit) }
  }

  /// Closes a billing period: what comes for it from now on is posted as an adjustment.
  package func close(_ period: Period, now: WallTime) throws {
    try transaction(now: now) { try $0.close(period) }
  }

  /// Sums dropped in one transaction: a batch that comes meanwhile waits for no more than these.
  package static let pruneRowsMax = 2000

  /// Drops sums of counters that no seed and no late delta can need any more (`Retention`). The
  /// deltas stay. One transaction, of at most `limit` sums; as many as the limit means that there
  /// may be more.
  package func prune(now: WallTime, limit: Int = pruneRowsMax) throws -> Int {
    try transaction(now: now) { try $0.prune(limit: limit) }
  }

  // MARK: Reading

  func read<Value>(_ body: (Database) throws -> Value) throws -> Value {
    do { return try pool.read(body) } catch let error as DatabaseError {
      throw LedgerError.storage("\(error)")
    }
  }
}
