// The reservations that were made through one event loop, as Redis had them last: when an epoch is
// lost with its holds, they are brought back from here (DESIGN 5). What goes on through another
// sidecar is not known here, so a hold may be remembered larger than it is by then: it holds too
// much until it is settled, never too little.

import NIOCore
import TollgateCore
import TollgateRedis

struct HoldBook {
  /// At 300 bytes each some 15 MB. Above it the oldest are not remembered.
  static let holdsMax = 50_000

  private var holds: [OperationID: (bucket: Int, hold: StoredHold)] = [:]
  private var dropped: Int64 = 0

  var count: Int { holds.count }

  mutating func note(_ hold: StoredHold, bucket: Int, now: WallTime) {
    if holds.count >= Self.holdsMax, holds[hold.reservation] == nil {
      holds = holds.filter { Self.isLive($0.value.hold, now) }
      guard holds.count < Self.holdsMax else {
        dropped += 1
        return
      }
    }
    holds[hold.reservation] = (bucket, hold)
  }

  mutating func ended(_ reservation: OperationID) { holds[reservation] = nil }

  /// Those of a bucket by account; others that are over are forgotten.
  mutating func live(in bucket: Int, now: WallTime) -> [String: [StoredHold]] {
    holds = holds.filter { Self.isLive($0.value.hold, now) }
    var found: [String: [StoredHold]] = [:]
    for (place, hold) in holds.values where place == bucket {
      found[hold.subject.account.path, default: []].append(hold)
    }
    return found
  }

  func live(of account: String) -> [StoredHold] {
    holds.values.map(\.hold).filter { $0.subject.account.path == account }
  }

  /// One that expired while Redis was away is brought back to expire there: what was used of it is
  /// still to be charged.
  private static func isLive(_ hold: StoredHold, _ now: WallTime) -> Bool {
    now < hold.expires + HoldBounds.lateHorizon
  }
}
