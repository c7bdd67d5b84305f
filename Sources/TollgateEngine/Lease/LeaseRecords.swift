// The records of a stripe: trivial, of fixed size, named by index. What `spend` touches of each
// stands first and fits one line of the cache, where the slab begins it: a spend of one item on one
// counter waits for a handful of lines, and that is most of what it costs.

import TollgateCore

/// Two lines of the cache: with one word more it would take three.
struct LeaseAccount: BitwiseCopyable {
  /// Overwritten by the chain of free ones.
  var name: UInt32 = 0
  var generation: UInt32 = 0
  var epochGeneration: UInt32 = 0
  var flags: UInt8 = 0
  /// At most `Deployment.bucketsMax`.
  var bucket: UInt16 = 0
  var localEnd: Int64 = .min
  var confirmedAt: Int64 = .min

  var changedAt: Int64 = .min
  var lessee: UInt64 = 0
  var ordinal: UInt64 = 0
  var globalVersion: Int64 = 0
  var accountVersion: Int64 = 0
  var dueAt: Int64 = 0
  var portions: UInt32 = 0
  var portionCount: UInt32 = 0
  var entryCount: UInt32 = 0
  var dirtyFirst: UInt32 = 0
  var dirtyLast: UInt32 = 0
  var wantFirst: UInt32 = 0
  var dueNext: UInt32 = 0
  var urgentNext: UInt32 = 0
  var exchange: UInt32 = 0
  /// How often something of it was taken back, and when that was last.
  var corrections: UInt32 = 0
  var correctedAt: Int64 = .min

  static let isLive: UInt8 = 1
  /// In one of the bucket's lines.
  static let isQueued: UInt8 = 2
  static let isUrgent: UInt8 = 4
  /// Of an earlier incarnation: only settled.
  static let isGhost: UInt8 = 8
  /// Wanted to be exchanged at once while an exchange of it was under way.
  static let isCalling: UInt8 = 16

  func has(_ flag: UInt8) -> Bool { flags & flag != 0 }
  mutating func set(_ flag: UInt8, _ on: Bool) { flags = on ? flags | flag : flags & ~flag }
}

struct LeasePortion: BitwiseCopyable {
  var account: UInt32 = 0
  var flags: UInt8 = 0
  var kind: UInt8 = 0
  /// What may still be spent now.
  var room: Int64 = 0
  /// Spent, and in no batch.
  var open: Int64 = 0
  /// Where `room` falls below, more is asked for.
  var low: Int64 = 0
  /// Of the cell, as last heard, our own batch in flight not counted; held by others.
  var settled: Int64 = 0
  var held: Int64 = 0
  /// In the batch that is under way.
  var inFlight: Int64 = 0
  /// Used since `foldedAt`, refused ones included; `rate`: units per second before that.
  var used: Int64 = 0

  /// Held for us in Redis, as last heard.
  var left: Int64 = 0
  /// The least target of the exchange that is under way; −1: none.
  var targetInFlight: Int64 = -1
  var target: Int64 = 0
  var rate: Int64 = 0
  var foldedAt: Int64 = 0
  var usedAt: Int64 = 0
  var restUntil: Int64 = .min
  var start: Int64 = 0
  var end: Int64 = 0
  var hash: UInt64 = 0
  var name: UInt32 = 0
  var limits: UInt32 = 0
  /// Others of the account.
  var next: UInt32 = 0
  var previous: UInt32 = 0
  var wantNext: UInt32 = 0
  var wheelNext: UInt32 = 0
  var references: UInt32 = 0
  /// While an exchange is put together: its place among the account's portions, plus 1.
  var place: UInt32 = 0

  static let isLive: UInt8 = 1
  static let isWanting: UInt8 = 2
  static let isInWheel: UInt8 = 4
  /// Redis granted less than was asked for.
  static let isTight: UInt8 = 8

  /// To be given back, and not to be spent before that is answered.
  static let isRecalled: UInt8 = 16
  /// The exchange that is under way gives it back. Without this, the answer to one that left before
  /// the recall came would be taken for the recall's.
  static let isReturning: UInt8 = 64
  /// Named in an exchange that is not answered: its place is needed, whatever becomes of entries.
  static let isOut: UInt8 = 32

  var isJudged: Bool { kind != LeasePortionKey.Kind.count.rawValue }
  var isRate: Bool { kind == LeasePortionKey.Kind.rate.rawValue }
  func has(_ flag: UInt8) -> Bool { flags & flag != 0 }
  mutating func set(_ flag: UInt8, _ on: Bool) { flags = on ? flags | flag : flags & ~flag }

  /// What may be spent, so that it fits what Redis holds whether the exchange under way was done
  /// or not, and so that its unsettled part fits what an expiry leaves.
  mutating func reckon() {
    let after = max(0, left - inFlight)
    let given = targetInFlight < 0 ? after : min(after, targetInFlight)
    if has(Self.isRecalled) {
      room = -open
    } else if isRate {
      room = given - open
    } else {
      let before = LeaseRules.ceiling(left: left) - inFlight
      room = min(before, LeaseRules.ceiling(left: given)) - open
    }
  }
}

struct LeaseReference: BitwiseCopyable {
  var portion: UInt32 = 0
  var item: UInt32 = 0
}

struct LeaseItem: BitwiseCopyable {
  /// Spent, and in no batch.
  var open: Int64 = 0
  /// −1: no limit is shown.
  var amount: Int64 = -1
  var shown: UInt32 = 0
  var reserved: UInt32 = 0
  /// In the batch under way; negative: a refund.
  var inFlight: Int64 = 0
  /// Taken back after it was settled: later spends absorb it, or it becomes a refund. Kept apart
  /// from `open`, because what was settled lends nothing to a portion before Redis knows.
  var credit: Int64 = 0
}

struct LeaseEntry: BitwiseCopyable {
  var account: UInt32 = 0
  var generation: UInt32 = 0
  var key: UInt32 = 0
  var items: UInt32 = 0
  var references: UInt32 = 0
  /// Of the only reference of the only item; 0: there are more, or none.
  var portion: UInt32 = 0
  var template: UInt32 = 0
  var itemCount: UInt8 = 0
  /// Those that judge stand first.
  var referenceCount: UInt8 = 0
  var judgedCount: UInt8 = 0
  var flags: UInt8 = 0
  var denial: UInt32 = 0
  var operations: UInt32 = 0
  /// It is what it is, and each of its periods runs, within these (wall ms).
  var validFrom: Int64 = 0
  var validUntil: Int64 = 0
  var usedAt: Int64 = 0

  var hash: UInt64 = 0
  /// Slots before are not its own.
  var born: UInt64 = 0
  /// Its slots before are settled; those before `sent` are in a batch.
  var through: UInt64 = 0
  var sent: UInt64 = 0
  /// Of its definition in the log; 0: none.
  var logged: UInt64 = 0 {
    didSet { set(Self.isLogged, logged != 0) }
  }
  var dirtySince: Int64 = 0
  var operationsInFlight: UInt32 = 0
  var definition: UInt32 = 0
  var dirtyNext: UInt32 = 0

  static let isLive: UInt8 = 1
  /// In its account's line of what is to be settled.
  static let isDirty: UInt8 = 2
  static let isInFlight: UInt8 = 4
  static let isStaleAllowed: UInt8 = 8
  /// Not to be found by its key any more: another took its place.
  static let isRetired: UInt8 = 16
  /// Its definition stands in the log.
  static let isLogged: UInt8 = 32
  /// Retired for another of its key, with other periods or limits: what it let through may be
  /// cancelled, and is taken back where it was counted.
  static let isReplaced: UInt8 = 64

  func has(_ flag: UInt8) -> Bool { flags & flag != 0 }
  mutating func set(_ flag: UInt8, _ on: Bool) { flags = on ? flags | flag : flags & ~flag }
}

/// A denial that is answered from memory for a while.
struct LeaseDenial: BitwiseCopyable {
  var reason = LeaseDenialReason.quota
  var template: UInt32 = 0
  /// Boot time in nanoseconds; wall time in milliseconds.
  var until: Int64 = 0
  var reset: Int64 = 0
  /// Of one item: smaller ones are asked again, and greater ones, which may be told otherwise.
  var amount: Int64 = 0
  var amountMax: Int64 = .max
  var generation: UInt32 = 0
  /// Of the account when it was noted: what is taken back after that may be there again.
  var corrections: UInt32 = 0
}

/// The accounts of one bucket that wait for an exchange: at once, or since when they are due.
struct LeaseLine: BitwiseCopyable {
  var urgentFirst: UInt32 = 0
  var urgentLast: UInt32 = 0
  var first: UInt32 = 0
  var last: UInt32 = 0
  /// Those that are due or will be.
  var waiting: UInt32 = 0
}
