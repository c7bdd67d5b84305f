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
    holds.note(
      hold, hold.reservation, bucket, account: hold.subject.account.path,
      until: Self.end(of: hold), now: now)
  }

  func subject(of reservation: OperationID) -> Subject? { holds[reservation]?.subject }

  /// It ended for good: it was settled or released, here or as the answer to a step here says.
  mutating func ended(_ end: HoldEnd, bucket: Int, now: WallTime) {
    holds.forget(end.reservation)
    ends.note(
      end, end.reservation, bucket, account: end.subject.account.path,
      until: now + Self.endKeptMilliseconds, now: now)
  }

  /// It is not there any more, and nobody knows what became of it.
  mutating func forget(_ reservation: OperationID, of subject: Subject) {
    guard holds[reservation]?.subject == subject else { return }
    holds.forget(reservation)
  }

  /// Those of a bucket by account; others that are over are forgotten.
  mutating func live(in bucket: Int, now: WallTime) -> [String: [StoredHold]] {
    holds.all(of: bucket, now: now)
  }

  mutating func ends(in bucket: Int, now: WallTime) -> [HoldEnd] {
    ends.all(of: bucket, now: now).values.flatMap { $0 }
  }

  func live(of account: String, in bucket: Int) -> [StoredHold] {
    holds.all(of: account, in: bucket)
  }

  private static func end(of hold: StoredHold) -> WallTime {
    hold.expires + HoldBounds.grace + keptMilliseconds
  }
}

/// So many at most, each until its time, the oldest first to go. Laid out by bucket and account, so
/// that a loss, which asks for each of them, reads each entry once.
private struct Memory<Value> {
  private struct Entry {
    var value: Value
    var until: WallTime
  }

  private struct Place {
    var bucket: Int
    var account: String
  }

  private let max: Int
  private var entries: [Int: [String: [OperationID: Entry]]] = [:]
  private var places: [OperationID: Place] = [:]
  /// In the order in which they came; those that are forgotten stay until it is their turn.
  private var order: Deque<OperationID> = []
  /// How often one more came than there may be, since all were looked through.
  private var pressed = 0

  init(max: Int) { self.max = max }

  var count: Int { places.count }

  subscript(id: OperationID) -> Value? {
    places[id].flatMap { entries[$0.bucket]?[$0.account]?[id]?.value }
  }

  mutating func note(
    _ value: Value, _ id: OperationID, _ bucket: Int, account: String, until: WallTime,
    now: WallTime
  ) {
    if places[id] == nil { order.append(id) }
    places[id] = Place(bucket: bucket, account: account)
    entries[bucket, default: [:]][account, default: [:]][id] = Entry(value: value, until: until)
    if order.count > 2 * count + 1024 { order.removeAll { places[$0] == nil } }
    // What is over goes before what is not, once for an eighth of all there may be.
    pressed += count > max ? 1 : 0
    if pressed > max / 8 || (count > max && pressed == 1) {
      pressed = 1
      for bucket in entries.keys { _ = all(of: bucket, now: now) }
    }
    // Two for each that comes: what is over goes as fast as it is made, at no cost to speak of.
    for _ in 0..<2 {
      guard let oldest = order.first else { return }
      if let place = places[oldest],
        let found = entries[place.bucket]?[place.account]?[oldest]
      {
        guard count > max || found.until <= now else { return }
        forget(oldest)
      }
      order.removeFirst()
    }
  }

  mutating func forget(_ id: OperationID) {
    guard let place = places.removeValue(forKey: id) else { return }
    entries[place.bucket]?[place.account]?[id] = nil
    guard entries[place.bucket]?[place.account]?.isEmpty == true else { return }
    entries[place.bucket]?[place.account] = nil
    if entries[place.bucket]?.isEmpty == true { entries[place.bucket] = nil }
  }

  /// Those of a bucket by account; others of it that are over are forgotten.
  mutating func all(of bucket: Int, now: WallTime) -> [String: [Value]] {
    var found: [String: [Value]] = [:]
    for (account, its) in entries[bucket] ?? [:] {
      for (id, entry) in its {
        if now < entry.until { found[account, default: []].append(entry.value) } else { forget(id) }
      }
    }
    return found
  }

  func all(of account: String, in bucket: Int) -> [Value] {
    entries[bucket]?[account]?.values.map(\.value) ?? []
  }
}
