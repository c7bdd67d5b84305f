// Books in a temporary file, and short ways to make deltas for them.

import Foundation
import GRDB
import TollgateCore
import TollgateWire

@testable import TollgateLedger

let november = Window.month.period(containing: WallTime(milliseconds: 1_795_000_000_000))
let start = november.start + 3_600_000

/// SplitMix64: small, seeded, and the same on every machine.
struct Seeded: RandomNumberGenerator {
  var state: UInt64
  init(_ seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }
}

/// A ledger file that goes away with the last reference.
final class Books {
  let directory: URL
  let deployment: Deployment
  private(set) var store: LedgerStore

  var path: String { directory.appending(path: "ledger.sqlite").path }

  init(buckets: Int = 4, bodies: DeltaBodies = .wire) throws {
    directory = FileManager.default.temporaryDirectory.appending(
      path: "tollgate-ledger-\(UUID().uuidString.prefix(8))")
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    deployment = Deployment(id: try Name("test"), buckets: buckets, mode: .dev)
    store = try LedgerStore(
      path: directory.appending(path: "ledger.sqlite").path, bodies: bodies)
    try store.adopt(deployment, now: start)
  }

  deinit { try? FileManager.default.removeItem(at: directory) }

  func reopen(bodies: DeltaBodies = .wire) throws {
    try store.close()
    store = try LedgerStore(path: path, bodies: bodies)
  }

  /// Gives a bucket its next epoch with nothing held by anyone.
  @discardableResult
  func open(_ bucket: Int = 0, epoch: Int64 = 0, entries: [OutboxEntry] = [], seen: Int64 = 0)
    throws -> RecoveryOutcome
  {
    try store.recover(
      RecoveryRequest(
        bucket: bucket, epoch: epoch, highestSeen: seen, entries: entries, requester: "one"),
      now: start)
  }

  func apply(
    _ entries: [OutboxEntry], bucket: UInt32 = 0, epoch: Int64 = 1, after previous: Int64? = nil
  ) throws -> BatchOutcome {
    let before = previous ?? (entries.first?.sequence ?? 1) - 1
    return try store.apply(
      DeltaBatch(bucket: bucket, epoch: epoch, previous: before, entries: entries), now: start)
  }

  func total(_ account: String = "acme", _ feature: String = "tokens") throws -> Int64 {
    try store.totals(.init(account: account)).page.elements.filter { $0.feature == feature }
      .reduce(0) { $0 + $1.charged }
  }

  func count() throws -> Int64 { try store.status().deltas }

  /// Runs SQL on the file behind the store's back, as a tamperer would.
  /// The file may grow by so many pages, as on a disk that is nearly full.
  func leaveRoom(pages: Int) throws {
    try store.pool.writeWithoutTransaction { db in
      let now = try Int.fetchOne(db, sql: "PRAGMA page_count") ?? 0
      try db.execute(sql: "PRAGMA max_page_count = \(now + pages)")
    }
  }

  func tamper(_ sql: String) throws {
    try DatabaseQueue(path: path).write { try $0.execute(sql: sql) }
  }
}

func operation(_ number: Int) -> OperationID {
  OperationID(
    high: UInt64(start.milliseconds) << 16 | UInt64(number >> 16), low: UInt64(number))
}

/// `amount` units of a feature for a subject, counted in the account's month and, at its own
/// level, in the subject's minute.
func usage(
  _ sequence: Int64, op: Int, index: UInt16 = 0, amount: Int64 = 1, absorbed: Int64 = 0,
  subject: String = "acme/ann", feature: String = "tokens", kind: DeltaKind = .usage,
  period: Period = november, attributes: [String: String] = [:]
) throws -> OutboxEntry {
  let path = try Subject(subject)
  let body = UsageBody(
    subject: path, feature: try Name(feature), period: period,
    cells: [
      CellReference(level: 1, window: .month, period: period),
      CellReference(
        level: path.depth, window: .minute, period: Window.minute.period(containing: start)),
    ], catalogVersion: 3, source: .redis, attributes: attributes)
  return OutboxEntry(
    sequence: sequence, kind: kind, id: DeltaID(operation: operation(op), index: index),
    time: start + sequence, actual: amount + absorbed, charged: amount, absorbed: absorbed,
    body: body.encode())
}

func change(
  _ sequence: Int64, op: Int, scope: ConfigDelta.Scope, key: String, version: Int64,
  after: String, action: String = "account.set", before: String = ""
) -> OutboxEntry {
  let delta = ConfigDelta(
    scope: scope, key: key, version: version, action: action, actor: "ops", reason: "because",
    before: before, after: after)
  return OutboxEntry(
    sequence: sequence, kind: .config, id: DeltaID(operation: operation(op), index: 0),
    time: start + sequence, actual: 0, charged: 0, absorbed: 0, body: delta.encode())
}

/// An operator's change of what limits see of one counter of `acme`, by `amount` units.
func reset(
  _ sequence: Int64, op: Int, subject: String, window: Window, by amount: Int64,
  feature: String = "tokens"
) -> OutboxEntry {
  let period = window.period(containing: start)
  let after =
    "{\"subject\":\"\(subject)\",\"feature\":\"\(feature)\",\"window\":\"\(window.code)\","
    + "\"start\":\(period.start.milliseconds),\"end\":\(period.end.milliseconds)}"
  var entry = change(
    sequence, op: op, scope: .counter, key: subject, version: 0, after: after, action: "reset")
  entry.actual = amount
  entry.absorbed = amount
  return entry
}
