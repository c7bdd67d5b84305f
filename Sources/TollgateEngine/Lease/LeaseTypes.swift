// What goes into the lease table and what comes out of it.

package import TollgateCore

package enum LeaseKind: UInt8, Sendable {
  case check
  case consume
}

/// One operation as the fast path read it. The pointers are only used during the call.
@safe package struct LeaseRequest {
  package var bucket: Int
  package var kind: LeaseKind
  package var high: UInt64
  package var low: UInt64
  /// The bytes of the record that say what is asked for, without id, amounts and trace parent.
  package var key: UnsafeRawBufferPointer
  /// `LeaseHash.of(key)`.
  package var hash: UInt64
  /// One for each item, each 0 … 2^53 − 1.
  package var amounts: UnsafeBufferPointer<Int64>
  /// Boot time in nanoseconds, suspension included.
  package var now: Int64
  /// Redis time in milliseconds, as the shell reckons it.
  package var wall: Int64

  package init(
    bucket: Int, kind: LeaseKind, id: OperationID, key: UnsafeRawBufferPointer, hash: UInt64,
    amounts: UnsafeBufferPointer<Int64>, now: Int64, wall: Int64
  ) {
    self.bucket = bucket
    self.kind = kind
    high = id.high
    low = id.low
    unsafe self.key = key
    self.hash = hash
    unsafe self.amounts = amounts
    self.now = now
    self.wall = wall
  }
}

/// Why an operation goes to Redis.
package enum LeaseMiss: UInt8, Sendable, CaseIterable {
  /// No entry has this key. Nothing is noted: whoever sends a leasable one calls `mark` before.
  case unknownKey
  /// Its id was seen on its way to Redis.
  case marked
  /// The configuration changed, or its period is over: to be resolved and registered again.
  case outdated
  /// Nobody has confirmed the configuration for too long.
  case notFresh
  /// The lease is over, or was never acquired.
  case ended
  /// The portions hold too little, or too much of them is not settled.
  case noRoom
  /// Nothing more can be remembered until something is settled.
  case ringFull
  case logFull
  /// Its id was minted in the future.
  case future
  /// The answer does not fit, the number of items differs, or an amount is out of the ring's range.
  case shape
  /// As much is let through and not settled as may be lost with this process.
  case exposed
}

package enum LeaseOutcome: Equatable, Sendable {
  /// The answer was written: so many bytes.
  case allowed(bytes: Int)
  /// Let through before under this id; the answer was written, with the numbers of now.
  case replayed(bytes: Int)
  /// Let through before under this id and body, but what its answer is made of is not here any
  /// more.
  case known
  /// Another body under this id. `item`: its amount differs; or nil: the key does, from this byte
  /// on (−1: not known where).
  case mismatch(item: Int?, keyOffset: Int)
  case tooOld
  case cancelled
  /// Denied by a cached denial; the answer was written.
  case denied(bytes: Int)
  /// Denied before under this id, but what its answer is made of is not here any more.
  case knownDenied(LeaseDenialReason)
  case miss(LeaseMiss)
}

/// What a denial that is answered from memory was for.
package enum LeaseDenialReason: UInt32, BitwiseCopyable, Sendable {
  case quota = 0
  case credit = 1
  case rate = 2
}

/// Where the pre-encoded answer is completed. All values are written little-endian, 8 bytes, but
/// `replayed`, which sets bit 0 of a byte.
package struct LeasePatch: Hashable, Sendable {
  package enum Field: UInt8, Sendable {
    case remaining = 0
    case settled = 1
    case held = 2
    case time = 3
    case replayed = 4
    /// Of a denial: milliseconds until its reset.
    case retryAfter = 5
  }

  package var offset: UInt16
  package var field: Field
  package var item: UInt8

  package init(_ field: Field, item: Int = 0, at offset: Int) {
    self.field = field
    self.item = UInt8(truncatingIfNeeded: item)
    self.offset = UInt16(truncatingIfNeeded: offset)
  }
}

package struct LeaseTemplate: Hashable, Sendable {
  package var bytes: [UInt8]
  package var patches: [LeasePatch]

  package init(bytes: [UInt8], patches: [LeasePatch]) {
    self.bytes = bytes
    self.patches = patches
  }
}

/// What a portion is taken from. Texts are the shell's: the engine only keeps and compares them.
package struct LeasePortionKey: Hashable, Sendable {
  package enum Kind: UInt8, Sendable {
    /// Units of a cell that a quota or a sliding limit judges.
    case cell = 0
    /// Tokens of a rate.
    case rate = 1
    /// A cell that no limit judges: it is counted in, and nothing is held.
    case count = 2
  }

  package var kind: Kind
  /// Names the counter within the account: its hash and field, or the rate's.
  package var name: [UInt8]
  /// What judges it: written into each exchange as it is.
  package var limits: [UInt8]
  /// Wall milliseconds; of a rate 0 and Int64.max.
  package var start: Int64
  package var end: Int64

  package init(
    _ kind: Kind, name: [UInt8], limits: [UInt8], start: Int64 = 0, end: Int64 = .max
  ) {
    self.kind = kind
    self.name = name
    self.limits = limits
    self.start = start
    self.end = end
  }
}

/// A hot shape: who asks for what, and what that touches.
package struct LeaseRegistration: Sendable {
  package struct Item: Sendable {
    /// Indexes into `portions`: those that judge it and those that count it.
    package var portions: [Int]
    /// The portion whose state the answer shows, and the amount of the limit shown.
    package var shown: Int?
    package var amount: Int64

    package init(portions: [Int], shown: Int?, amount: Int64) {
      self.portions = portions
      self.shown = shown
      self.amount = amount
    }
  }

  package var bucket: Int
  package var account: [UInt8]
  package var key: [UInt8]
  package var globalVersion: Int64
  package var accountVersion: Int64
  /// When the decision or exchange that showed these versions to be current was sent.
  package var confirmedAt: Int64
  package var now: Int64
  /// Until then it stays what it is (wall ms).
  package var validUntil: Int64
  /// Every limit's failure policy is `stale`: spent while nobody confirms the configuration.
  package var isStaleAllowed: Bool
  package var items: [Item]
  package var portions: [LeasePortionKey]
  /// Of the amounts of one operation: the first target is a few of them.
  package var demand: Int64
  package var template: LeaseTemplate
  /// What the shell needs beside the key to make the deltas: body parts, periods, versions. The
  /// same bytes for the same meaning, whatever the subject, so that they are kept once.
  package var definition: [UInt8]

  package init(
    bucket: Int, account: [UInt8], key: [UInt8], globalVersion: Int64, accountVersion: Int64,
    confirmedAt: Int64, now: Int64, validUntil: Int64, isStaleAllowed: Bool, items: [Item],
    portions: [LeasePortionKey], demand: Int64, template: LeaseTemplate, definition: [UInt8]
  ) {
    self.bucket = bucket
    self.account = account
    self.key = key
    self.globalVersion = globalVersion
    self.accountVersion = accountVersion
    self.confirmedAt = confirmedAt
    self.now = now
    self.validUntil = validUntil
    self.isStaleAllowed = isStaleAllowed
    self.items = items
    self.portions = portions
    self.demand = demand
    self.template = template
    self.definition = definition
  }
}

package enum LeaseRegistered: Sendable, Equatable {
  case ready
  /// The configuration changed after what this was made from was confirmed.
  case outdated
  /// A limit of the table is reached; the operation stays with Redis.
  case full
  /// More items, portions or bytes than an entry has room for.
  case unfit
}

/// A named limit each; what happens when it is reached stands beside it.
package struct LeaseConfiguration: Sendable {
  /// Of all stripes together. Reached: `register` evicts what is idle, or answers `.full`.
  package var accountsMax = 1 << 20
  package var entriesMax = 1 << 21
  package var portionsMax = 1 << 22
  package var bytesMax = 1 << 29
  /// How long Redis keeps a lease (ms), and how much earlier it ends here.
  package var leaseMilliseconds: Int64 = 10_000
  package var marginMilliseconds: Int64 = 500
  /// Usage is settled when it is this old, where there is capacity to spare …
  package var tickNanoseconds: Int64 = 10_000_000
  /// … and else when it is this old, or older where so many are hot (`LeaseTable.collect`). What
  /// is idle, and what a portion shall cover, then grows with it.
  package var settleNanoseconds: Int64 = 500_000_000
  /// Without word of the configuration for so long, nothing is spent.
  package var freshNanoseconds: Int64 = 1_000_000_000
  /// After so long without use a portion is given back, or after twice the time in which usage is
  /// settled; and an entry may be evicted.
  package var idleNanoseconds: Int64 = 1_000_000_000
  package var evictNanoseconds: Int64 = 60_000_000_000
  /// After a recall, and after Redis granted nothing, nothing is asked for.
  package var restNanoseconds: Int64 = 250_000_000
  /// How long a correction waits for spends that absorb it.
  package var correctionNanoseconds: Int64 = 1_000_000_000
  /// A portion shall hold what is used in this time: four times `settle`.
  package var coverMilliseconds: Int64 = 2_000
  /// A portion's target is at most this.
  package var targetMax: Int64 = 1 << 40
  package var targetMin: Int64 = 16
  /// Let through and not settled, of all stripes together: what a sidecar without a journal can
  /// lose, whatever it leases. Each stripe has its equal share; at it, the path goes atomic.
  package var unsettledUnitsMax: Int64 = 1 << 24
  package var unsettledOperationsMax: Int64 = 1 << 19
  /// Ids minted so much later than now are not taken.
  package var skewMilliseconds: Int64 = 1_000
  /// Of a counter of which something is leased, either way.
  package static let settledMax = Quantity.maximum / 2
  /// Per exchange: at most the 120 that a batch id has room for, and what one call may touch.
  package var deltasMax = 100
  package var accountsPerExchangeMax = 100
  /// What is not due goes along up to so many accounts: as much as keeps Redis for a millisecond.
  package var accountsAlongMax = 32
  package var portionsPerExchangeMax = 200

  package init() {}
}
