// Every key Tollgate has in Redis, built in one place. proto/KEYS.md is the normative text.
//
// Why this shape: all keys of a bucket share one hash tag, so that one script call may touch them;
// the prefix of each bucket is made once. Names are validated types, so no outside byte can change
// where a key ends.

package import TollgateCore

/// The class under which an operation is remembered; each has its own byte ceiling and horizon.
package enum RecordClass: UInt8, Sendable, Hashable, CaseIterable {
  case money = 0
  case volume = 1

  package init(_ importance: Feature.Importance) {
    self = importance == .money ? .money : .volume
  }

  package var letter: String { self == .money ? "m" : "v" }
  package var other: RecordClass { self == .money ? .volume : .money }
}

/// Operation records lie in time slices by the *minting* time of their id, so that a retry finds
/// its record knowing nothing but the id.
package enum OperationSlice {
  /// Part of the key layout: changing it is a new key version.
  package static let milliseconds: Int64 = 120_000
  /// The dedupe window may be configured up to this.
  package static let windowMaxMilliseconds: Int64 = 86_400_000
  /// How far ahead of Redis time an id may be minted.
  package static let skewMilliseconds: Int64 = 60_000

  package static func of(_ time: WallTime) -> Int64 { max(0, time.milliseconds) / milliseconds }
  package static func end(_ slice: Int64) -> WallTime {
    WallTime(milliseconds: (slice + 1) * milliseconds)
  }
}

package struct KeySpace: Sendable {
  package let deployment: Name
  package let map: BucketMap
  private let prefixes: [String]

  package init(deployment: Name, map: BucketMap) {
    self.deployment = deployment
    self.map = map
    prefixes = map.tags.map { "tg\(Deployment.keyVersion):\(deployment.text):{\($0)}:" }
  }

  package func bucket(of subject: Subject) -> Int { map.bucket(ofAccount: subject.account.path) }

  package func prefix(_ bucket: Int) -> String { prefixes[bucket] }

  /// Independent of the key version, so that any release finds it.
  package var deploymentRecord: String { "tollgate:{\(deployment.text)}:deployment" }

  package func meta(_ bucket: Int) -> String { prefixes[bucket] + "meta" }
  package func outbox(_ bucket: Int) -> String { prefixes[bucket] + "out" }
  /// The outbox of an epoch that is over, until it is known that the ledger has all of it.
  package func late(_ bucket: Int, epoch: Int64) -> String {
    prefixes[bucket] + "late:" + String(epoch)
  }
  package func owner(_ bucket: Int) -> String { prefixes[bucket] + "own" }
  /// ZSET of outbox positions whose counter effect was taken back and that `meta.ack` has not
  /// passed.
  package func takenBack(_ bucket: Int) -> String { prefixes[bucket] + "rev" }
  package func audit(_ bucket: Int) -> String { prefixes[bucket] + "aud" }
  /// ZSET of operations that were corrected lately: id → mark of the latest correction.
  package func corrected(_ bucket: Int) -> String { prefixes[bucket] + "cor" }

  package func operations(_ bucket: Int, _ recordClass: RecordClass, slice: Int64) -> String {
    prefixes[bucket] + "op:" + recordClass.letter + ":" + String(slice)
  }

  /// The account header for a subject of depth 1, the subject's counters otherwise.
  package func subject(_ bucket: Int, _ subject: Subject) -> String {
    prefixes[bucket] + "a:" + subject.path
  }

  /// ZSET of the account's live deeper subjects: path → expiry in milliseconds.
  package func index(_ bucket: Int, account: Subject) -> String {
    prefixes[bucket] + "idx:" + account.path
  }

  /// HASH of an account's live reservations: id → hold.
  package func holds(_ bucket: Int, account: Subject) -> String {
    prefixes[bucket] + "h:" + account.path
  }
  /// ZSET of the same: id → when it ends by itself, grace included, ms.
  package func holdEnds(_ bucket: Int, account: Subject) -> String {
    prefixes[bucket] + "hx:" + account.path
  }
  /// ZSET of the bucket's accounts with live reservations: path → the first end of one.
  package func holdsDue(_ bucket: Int) -> String { prefixes[bucket] + "hb" }
  /// HASH of reservations that have ended, by the hour of their ids.
  package func endedHolds(_ bucket: Int, of id: OperationID) -> String {
    prefixes[bucket] + "he:" + String(max(0, id.time.milliseconds) / 3_600_000)
  }

  /// STRING: the ids of a lessee's latest calls to the bucket.
  package func leaseCalls(_ bucket: Int, _ lessee: LesseeID) -> String {
    prefixes[bucket] + "lb:" + lessee.hex
  }
  /// ZSET of the bucket's accounts with leases: path → when something of them may be due first.
  package func leasesDue(_ bucket: Int) -> String { prefixes[bucket] + "lx" }

  /// Channels stand for no bucket: a change of an account's configuration or counters by hand (the
  /// message is the account, or `*`), and units that a lessee is asked to give back (the account).
  package var changesChannel: String { channels + "c" }
  package func recallChannel(_ lessee: LesseeID) -> String { recallChannels + lessee.hex }
  var recallChannels: String { channels + "r:" }
  private var channels: String { "tg\(Deployment.keyVersion):\(deployment.text):" }

  package var global: String { prefixes[map.control] + "global" }
  package var catalogs: String { prefixes[map.control] + "catalogs" }

  /// The field of a quota cell in its subject's hash.
  package static func field(feature: Name, window: Window) -> String {
    feature.text + "|" + window.code
  }

  /// The field of the thresholds of a limit that were noted. No name begins like it.
  package static func field(threshold limit: Name) -> String { "!" + limit.text }

  /// The field of a rate's theoretical arrival time.
  package static func field(feature: Name, rate limit: Name) -> String {
    feature.text + "~" + limit.text
  }
}
