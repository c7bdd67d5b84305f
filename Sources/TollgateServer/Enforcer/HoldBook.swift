// The reservations that were made through one event loop, as Redis had them last, and those that
// ended through it: when an epoch is lost with its holds, they are brought back from here, and what
// is over is said to be over (DESIGN 5). What goes on through another sidecar, or another loop, is
// not known here. So whoever took part in an end tells of it, in whatever order it and the hold
// arrive; the ledger is asked before a hold is brought (`Healer+Holds`); and one that was extended
// elsewhere may be forgotten early: who settles it then is told so, and posts.

import DequeModule
import NIOCore
import TollgateCore
import TollgateRedis

struct HoldBook {
  /// At 300 bytes each some 15 MB. Above it the oldest are not remembered.
  static let holdsMax = 50_000
  /// At 150 bytes each some 8 MB; above it the oldest ends are not told of.
  static let endsMax = 50_000
  /// So long after its grace a hold is still brought back, to expire where it can be settled late.
  static let keptMilliseconds: Int64 = 60_000
  /// So long others may know of the hold: it may have been extended a moment before it ended.
  static let endKeptMilliseconds = HoldBounds.ttlMax + HoldBounds.grace + keptMilliseconds

  private var holds = Memory<StoredHold>(max: holdsMax)
  private var ends = Memory<HoldEnd>(max: endsMax)

  var liveCount: Int { holds.count }
  var endedCount: Int { ends.count }

  mutating func note(_ hold: StoredHold, bucket: Int, now: WallTime) {
    // Answers to one reservation may overtake each other on their way through parked requests.
    guard ends[hold.reservation] == nil else { return }
    holds.note(hold, hold.reservation, bucket, until: Self.end(of: hold), now: now)
  }

  /// It ended for good: it was settled or released, here or as the answer to a step here says.
  mutating func ended(_ end: HoldEnd, bucket: Int, now: WallTime) {
    holds.forget(end.reservation)
    ends.note(
      end, end.reservation, bucket, until: now + Self.endKeptMilliseconds, now: now)
  }

  /// It is not there any more, and nobody knows what became of it.
  mutating func forget(_ reservation: OperationID, of subject: Subject) {
    guard holds[reservation]?.subject == subject else { return }
    holds.forget(reservation)
  }

  /// Those of a bucket by account; others that are over are forgotten.
  mutating func live(in bucket: Int, now: WallTime) -> [String: [StoredHold]] {
    Dictionary(grouping: holds.all(of: bucket, now: now)) { $0.subject.account.path }
  }

  mutating func ends(in bucket: Int, now: WallTime) -> [HoldEnd] { ends.all(of: bucket, now: now) }

  func live(of account: String) -> [StoredHold] {
    holds.all { $0.subject.account.path == account }
  }

  private static func end(of hold: StoredHold) -> WallTime {
    hold.expires + HoldBounds.grace + keptMilliseconds
  }
}

/// So many at most, each until its time, the oldest first to go.
private struct Memory<Value> {
  private struct Entry {
    var value: Value
    var bucket: Int
    var until: WallTime
  }

  private let max: Int
  private var entries: [OperationID: Entry] = [:]
  /// In the order in which they came; those that are forgotten stay until it is their turn.
  private var order: Deque<OperationID> = []

  init(max: Int) { self.max = max }

  var count: Int { entries.count }

  subscript(id: OperationID) -> Value? { entries[id]?.value }

  mutating func note(
    _ value: Value, _ id: OperationID, _ bucket: Int, until: WallTime, now: WallTime
  ) {
    let entry = Entry(value: value, bucket: bucket, until: until)
    if entries.updateValue(entry, forKey: id) == nil { order.append(id) }
    // Two for each that comes: what is over goes as fast as it is made, at no cost to speak of.
    for _ in 0..<2 {
      guard let oldest = order.first else { return }
      if let found = entries[oldest] {
        guard entries.count > max || found.until <= now else { return }
        entries[oldest] = nil
      }
      order.removeFirst()
    }
  }

  mutating func forget(_ id: OperationID) { entries[id] = nil }

  /// Those of a bucket; others that are over are forgotten.
  mutating func all(of bucket: Int, now: WallTime) -> [Value] {
    entries = entries.filter { now < $0.value.until }
    order.removeAll { entries[$0] == nil }
    return entries.values.compactMap { $0.bucket == bucket ? $0.value : nil }
  }

  func all(where isWanted: (Value) -> Bool) -> [Value] {
    entries.values.compactMap { isWanted($0.value) ? $0.value : nil }
  }
}
