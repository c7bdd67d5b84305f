// The reservations that were made through one event loop, as Redis had them last: when an epoch is
// lost with its holds, they are brought back from here (DESIGN 5). What goes on through another
// sidecar is not known here, so the ledger is asked before one is brought (`Healer+Holds`), and one
// that was extended elsewhere may be forgotten early: who settles it then is told so, and posts.

import DequeModule
import NIOCore
import TollgateCore
import TollgateRedis

struct HoldBook {
  /// At 300 bytes each some 15 MB. Above it the oldest are not remembered.
  static let holdsMax = 50_000
  /// So long after its grace a hold is still brought back, to expire where it can be settled late.
  static let keptMilliseconds: Int64 = 60_000

  private var holds: [OperationID: (bucket: Int, hold: StoredHold)] = [:]
  /// In the order in which they were made; those that have ended stay until it is their turn.
  private var order: Deque<OperationID> = []

  mutating func note(_ hold: StoredHold, bucket: Int, now: WallTime) {
    if holds.updateValue((bucket, hold), forKey: hold.reservation) == nil {
      order.append(hold.reservation)
    }
    // Two for each that comes: what is over goes as fast as it is made, at no cost to speak of.
    for _ in 0..<2 {
      guard let oldest = order.first else { return }
      if let found = holds[oldest] {
        guard holds.count > Self.holdsMax || !Self.isLive(found.hold, now) else { return }
        holds[oldest] = nil
      }
      order.removeFirst()
    }
  }

  mutating func ended(_ reservation: OperationID) { holds[reservation] = nil }

  /// Those of a bucket by account; others that are over are forgotten.
  mutating func live(in bucket: Int, now: WallTime) -> [String: [StoredHold]] {
    holds = holds.filter { Self.isLive($0.value.hold, now) }
    order.removeAll { holds[$0] == nil }
    var found: [String: [StoredHold]] = [:]
    for (place, hold) in holds.values where place == bucket {
      found[hold.subject.account.path, default: []].append(hold)
    }
    return found
  }

  func live(of account: String) -> [StoredHold] {
    holds.values.map(\.hold).filter { $0.subject.account.path == account }
  }

  private static func isLive(_ hold: StoredHold, _ now: WallTime) -> Bool {
    now < hold.expires + HoldBounds.grace + keptMilliseconds
  }
}
