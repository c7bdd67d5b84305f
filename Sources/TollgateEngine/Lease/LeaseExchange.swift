// The one call between a sidecar and Redis, as the table describes it and hears of it.

package import TollgateCore

package struct LeaseExchange: Sendable, Equatable {
  /// Names it towards the table until it is answered.
  package struct Token: Hashable, Sendable {
    package var bucket: Int
    package var number: UInt32
  }

  package struct Account: Sendable, Equatable {
    package var name: [UInt8]
    package var lessee: UInt64
    /// Higher than of every send before, of this lessee for this account.
    package var ordinal: UInt64
    /// Nothing is unsettled but what is settled here, and nothing can be spent until the reply: a
    /// lease in doubt becomes live again.
    package var isWhole: Bool
    package var globalVersion: Int64
    package var accountVersion: Int64
    package var portions: [Portion]
  }

  package struct Portion: Sendable, Equatable {
    package var key: LeasePortionKey
    /// Units that became usage; negative where more was taken back than used.
    package var settle: Int64
    /// What the lease shall hold afterwards; −1: as it is.
    package var target: Int64
  }

  package struct Delta: Sendable, Equatable {
    /// Of `accounts`.
    package var account: Int
    package var key: [UInt8]
    package var definition: [UInt8]
    package var item: Int
    /// Negative: a refund of what was settled before.
    package var amount: Int64
  }

  package var token: Token
  /// Of the batch. Deltas are numbered as they stand here.
  package var id: OperationID
  /// It may have been executed before: then its settles are not done again.
  package var isRepeat: Bool
  package var accounts: [Account]
  package var deltas: [Delta]
}

/// What Redis said about one account of an exchange.
package enum LeaseReply: Sendable, Equatable {
  package struct Portion: Sendable, Equatable {
    package var left: Int64
    /// Of the cell: settled − forgiven, and held by everybody. Rates: anything.
    package var settled: Int64
    package var held: Int64

    package init(left: Int64, settled: Int64, held: Int64) {
      self.left = left
      self.settled = settled
      self.held = held
    }
  }

  /// In the order of the account's portions. `isProlonged`: it holds for the whole ttl from when
  /// the exchange was sent; else it does not hold any longer than it did.
  case held([Portion], isProlonged: Bool)
  /// Its settles were done, everything was given back: the configuration is another.
  case stale
}

/// What is not settled, and what the table is made of now.
package struct LeaseGauges: Sendable, Equatable {
  package var unsettledUnits: Int64 = 0
  package var unsettledOperations: Int64 = 0
  /// Taken back after they were settled, and not seen to be given back yet.
  package var creditUnits: Int64 = 0
  package var accounts = 0
  package var entries = 0
  package var portions = 0
  package var bytes = 0
  package var exchanges = 0
  /// Accounts of an earlier incarnation that are not settled yet.
  package var recovering = 0
  /// Units of batches whose outcome nobody can know any more.
  package var unresolvedUnits: Int64 = 0
  /// How often a portion was looked at, for whether it is idle or ends soon.
  package var looks: Int64 = 0
  package var misses: [LeaseMiss: Int64] = [:]
  /// Of the ids minted until then some may be forgotten, in the part of the table that remembers
  /// least (wall ms).
  package var horizon: Int64 = 0

  package init() {}

  package static func += (a: inout Self, b: Self) {
    a.unsettledUnits += b.unsettledUnits
    a.unsettledOperations += b.unsettledOperations
    a.creditUnits += b.creditUnits
    a.accounts += b.accounts
    a.looks += b.looks
    a.entries += b.entries
    a.portions += b.portions
    a.bytes += b.bytes
    a.exchanges += b.exchanges
    a.recovering += b.recovering
    a.unresolvedUnits += b.unresolvedUnits
    a.misses.merge(b.misses) { $0 + $1 }
    a.horizon = max(a.horizon, b.horizon)
  }
}

/// What a POST finds.
package enum LeaseKnown: Sendable, Equatable {
  case allowed
  case denied(LeaseDenialReason)
  case cancelled
  case mismatch(item: Int?, keyOffset: Int)
  case tooOld
  /// Not decided here, or by Redis.
  case unknown
}

/// What CANCEL finds.
package enum LeaseCancel: Sendable, Equatable {
  /// It was let through here and is taken back.
  case cancelled
  /// It had been taken back before.
  case already
  /// It was denied here: nothing was counted.
  case denied(LeaseDenialReason)
  case mismatch(item: Int?, keyOffset: Int)
  case tooOld
  /// Not decided here: Redis answers. A marker was left, so that an operation of this id that is
  /// still on its way goes there, too.
  case unknown
  /// It was let through here and settled, and its entry is gone: register the shape again and
  /// cancel again.
  case unregistered
  /// Nothing more can be remembered: to be asked again.
  case full
}
