// What can be done to the books in one transaction: batches, recoveries, replays. Several of them
// may share a transaction, in order, each seeing what the earlier ones did.

internal import Foundation
internal import GRDB
internal import TollgateCore
internal import TollgateWire

struct LedgerTransaction {
  let db: Database
  private let streams: Int
  let now: WallTime
  private var poster: Poster

  init(_ db: Database, store: LedgerStore, now: WallTime) throws {
    self.db = db
    self.streams = store.streams
    self.now = now
    poster = try Poster(db, bodies: store.bodies, now: now)
  }

  mutating func finish() throws { try poster.flush() }

  mutating func apply(_ batch: DeltaBatch) throws -> BatchOutcome {
    let bucket = Int(batch.bucket)
    guard (0..<streams).contains(bucket) else {
      return BatchOutcome(answer: .refused("bucket \(bucket) of \(streams)"))
    }
    let state = BucketState(
      epoch: try epoch(of: bucket),
      cursor: try cursor(of: bucket, epoch: batch.epoch),
      fence: try fence(of: bucket, epoch: batch.epoch))
    let verdict = try Contract.judge(batch, state: state) { [poster] entry in
      try poster.recorded(entry, bucket: bucket, epoch: batch.epoch)
    }
    switch verdict {
    case .answer(let answer): return BatchOutcome(answer: answer)
    case .accept(let known, let end, let duplicates):
      var outcome = BatchOutcome(
        answer: .acknowledged(cursor: state.cursor), duplicates: duplicates, skipped: known)
      for entry in batch.entries[known..<end] {
        switch try poster.post(entry, bucket: bucket, epoch: batch.epoch) {
        case .posted: outcome.posted += 1
        case .parked: outcome.parked += 1
        case .known:
          outcome.skipped += 1
          // Counters of an epoch that is over are gone: there is nothing to reverse in them.
          if batch.epoch == state.epoch { outcome.duplicates.append(entry.id) }
        }
      }
      if end > known {
        let cursor = batch.previous + Int64(end)
        try setCursor(of: bucket, epoch: batch.epoch, to: cursor)
        outcome.answer = .acknowledged(cursor: cursor)
      }
      if end < batch.entries.count {
        outcome.answer = .fenced(epoch: state.epoch, lastSequence: state.fence ?? 0)
      }
      return outcome
    }
  }

  mutating func recover(_ request: RecoveryRequest) throws -> RecoveryOutcome {
    let bucket = request.bucket
    guard (0..<streams).contains(bucket) else {
      throw LedgerError.unusable("bucket \(bucket) of \(streams)")
    }
    guard (0..<Quantity.maximum).contains(request.epoch),
      (0...Quantity.maximum).contains(request.highestSeen)
    else { throw LedgerError.unusable("epoch \(request.epoch), sequence \(request.highestSeen)") }
    let current = try epoch(of: bucket)
    // A bucket without an epoch has nothing to close; a requester behind the current one is told
    // of it. One that is ahead knows an epoch this ledger lost (an older copy of the file was put
    // back): the next epoch must still be above everything ever issued.
    if request.epoch < current { return RecoveryOutcome(epoch: current, isNew: false) }
    let closing = request.epoch
    var outcome = RecoveryOutcome(epoch: closing + 1, isNew: true)
    if closing > 0 { try close(epoch: closing, request, into: &outcome) }
    if current < closing {
      try wentBack(bucket, from: closing, to: current, requester: request.requester)
      outcome.behind = BucketPosition(
        bucket: bucket, epoch: current, cursor: try cursor(of: bucket, epoch: current))
    }
    try db.execute(
      sql: """
        INSERT INTO buckets (bucket, epoch) VALUES (?, ?)
        ON CONFLICT DO UPDATE SET epoch = excluded.epoch
        """,
      arguments: [bucket, outcome.epoch])
    try setCursor(of: bucket, epoch: outcome.epoch, to: 0)
    return outcome
  }

  /// Only a ledger issues epochs, so one that is named an epoch above its own has lost what it
  /// held: an older copy of the file was put back, or none. How much lay between the two nobody can
  /// say: the range 0 … 0 stands for it.
  private func wentBack(
    _ bucket: Int, from named: Int64, to current: Int64, requester: String
  ) throws {
    try db.execute(
      sql: """
        INSERT INTO loss (bucket, epoch, first, last, time) VALUES (?, ?, 0, 0, ?)
        ON CONFLICT DO NOTHING
        """, arguments: [bucket, current, now.milliseconds])
    guard current > 0 else { return }
    try setFence(
      of: bucket, epoch: current, last: try cursor(of: bucket, epoch: current),
      requester: requester)
  }

  private mutating func close(
    epoch: Int64, _ request: RecoveryRequest, into outcome: inout RecoveryOutcome
  ) throws {
    let bucket = request.bucket
    let cursor = try cursor(of: bucket, epoch: epoch)
    var present: Set<Int64> = []
    var last = max(cursor, request.highestSeen)
    let ordered = request.entries.sorted { ($0.sequence, $0.id) < ($1.sequence, $1.id) }
    for entry in ordered where entry.sequence >= 1 && entry.sequence <= Quantity.maximum {
      last = max(last, entry.sequence)
      if entry.sequence > cursor { present.insert(entry.sequence) }
      // The identity is the id: two deltas at one sequence number, from a stream that was rewound
      // and written again, are both posted.
      switch try poster.recorded(entry, bucket: bucket, epoch: epoch) {
      case .here, .hereAsDuplicate: break
      case .elsewhere: try poster.noteDuplicate(entry, bucket: bucket, epoch: epoch)
      case .unknown:
        switch try poster.post(entry, bucket: bucket, epoch: epoch) {
        case .posted: outcome.posted += 1
        case .parked: outcome.parked += 1
        case .known: break
        }
      }
    }
    outcome.lastSequence = last
    outcome.losses = Self.missing(above: cursor, through: last, present: present)
    for range in outcome.losses {
      try db.execute(
        sql: "INSERT INTO loss (bucket, epoch, first, last, time) VALUES (?, ?, ?, ?, ?)",
        arguments: [bucket, epoch, range.lowerBound, range.upperBound, now.milliseconds])
    }
    try setCursor(of: bucket, epoch: epoch, to: last)
    try setFence(of: bucket, epoch: epoch, last: last, requester: request.requester)
  }

  /// The holes of `present` in `cursor + 1 ... last`.
  static func missing(
    above cursor: Int64, through last: Int64, present: Set<Int64>
  ) -> [ClosedRange<Int64>] {
    var ranges: [ClosedRange<Int64>] = []
    var next = cursor + 1
    for sequence in present.sorted() {
      if sequence > next { ranges.append(next...(sequence - 1)) }
      next = sequence + 1
    }
    if next <= last { ranges.append(next...last) }
    return ranges
  }

  mutating func replayParked(limit: Int) throws -> (posted: Int, left: Int) {
    let rows = try Row.fetchAll(
      db,
      sql: """
        SELECT d.* FROM parked AS p
        JOIN deltas AS d ON d.op = p.op AND d.idx = p.idx AND d.bucket = p.bucket
        WHERE p.replayed IS NULL ORDER BY p.time, p.op LIMIT ?
        """, arguments: [limit])
    var result = (posted: 0, left: 0)
    for row in rows {
      if let entry = LedgerStore.entry(of: row), try poster.replay(entry, bucket: row["bucket"]) {
        result.posted += 1
      } else {
        result.left += 1
      }
    }
    return result
  }

  func close(_ period: Period) throws {
    try db.execute(
      sql: """
        INSERT INTO closed_periods (period_start, period_end, time) VALUES (?, ?, ?)
        ON CONFLICT DO NOTHING
        """,
      arguments: [period.start.milliseconds, period.end.milliseconds, now.milliseconds])
  }

  /// Drops at most `limit` sums; answers how many there were.
  func prune(limit: Int) throws -> Int {
    try db.execute(
      sql: """
        DELETE FROM cells WHERE (account, subject, feature, window, period_start) IN (
          SELECT account, subject, feature, window, period_start FROM cells
          WHERE goes <= ? LIMIT ?)
        """, arguments: [now.milliseconds, limit])
    let dropped = db.changesCount
    try db.execute(
      sql: """
        INSERT INTO pruned (only, cells_ended_before, cells_gone_by) VALUES (1, ?, ?)
        ON CONFLICT DO UPDATE
        SET cells_gone_by = max(coalesce(cells_gone_by, excluded.cells_gone_by),
          excluded.cells_gone_by)
        """, arguments: [Int64.min, now.milliseconds])
    return dropped
  }

  // MARK: Positions

  private func epoch(of bucket: Int) throws -> Int64 {
    let statement = try db.cachedStatement(sql: "SELECT epoch FROM buckets WHERE bucket = ?")
    return try Int64.fetchOne(statement, arguments: [bucket]) ?? 0
  }

  private func cursor(of bucket: Int, epoch: Int64) throws -> Int64 {
    let statement = try db.cachedStatement(
      sql: "SELECT cursor FROM cursors WHERE bucket = ? AND epoch = ?")
    return try Int64.fetchOne(statement, arguments: [bucket, epoch]) ?? 0
  }

  private func fence(of bucket: Int, epoch: Int64) throws -> Int64? {
    let statement = try db.cachedStatement(
      sql: "SELECT last_seq FROM fences WHERE bucket = ? AND epoch = ?")
    return try Int64.fetchOne(statement, arguments: [bucket, epoch])
  }

  private func setCursor(of bucket: Int, epoch: Int64, to cursor: Int64) throws {
    try db.cachedStatement(
      sql: """
        INSERT INTO cursors (bucket, epoch, cursor) VALUES (?, ?, ?)
        ON CONFLICT DO UPDATE SET cursor = excluded.cursor
        """
    ).execute(arguments: [bucket, epoch, cursor])
  }

  private func setFence(of bucket: Int, epoch: Int64, last: Int64, requester: String) throws {
    try db.execute(
      sql: """
        INSERT INTO fences (bucket, epoch, last_seq, requester, time) VALUES (?, ?, ?, ?, ?)
        ON CONFLICT DO NOTHING
        """,
      arguments: [bucket, epoch, last, requester, now.milliseconds])
  }
}
