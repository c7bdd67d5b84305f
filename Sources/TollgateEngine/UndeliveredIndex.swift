// Which accounts an outbox still holds something of, and how far it reaches: read once, page by
// page, however many accounts ask. An account whose header is gone from Redis is seeded from the
// ledger, which knows nothing of what is undelivered; as nothing new can be counted for an account
// without a header, it is enough to wait until its last entry is delivered and taken back where it
// was a duplicate. No sum is made of both, so no position can be missed or counted twice.
//
// Bounded: at most one row for each account with entries in the outbox, which is bounded itself.

package struct UndeliveredIndex: Sendable {
  private var epoch: Int64 = -1
  /// Everything up to here was read, or is acknowledged.
  package private(set) var read: Int64 = 0
  private var acknowledged: Int64 = 0
  private var counted: [String: Int64] = [:]
  private var changed: [String: Int64] = [:]

  package init() {}

  /// The bucket is at `epoch`, delivered up to `acknowledged`.
  package mutating func stands(epoch: Int64, acknowledged: Int64) {
    if epoch != self.epoch {
      self = UndeliveredIndex()
      self.epoch = epoch
    }
    guard acknowledged > self.acknowledged else { return }
    self.acknowledged = acknowledged
    read = max(read, acknowledged)
    // Now and then, not for each account that asks.
    if counted.count + changed.count > 1024 {
      counted = counted.filter { $0.value > acknowledged }
      changed = changed.filter { $0.value > acknowledged }
    }
  }

  /// One entry, of this account; in any order, and again without harm.
  package mutating func found(
    _ sequence: Int64, of account: String?, movesCounters: Bool
  ) {
    read = max(read, sequence)
    guard let account, sequence > acknowledged else { return }
    if movesCounters {
      counted[account] = max(counted[account] ?? 0, sequence)
    } else {
      changed[account] = max(changed[account] ?? 0, sequence)
    }
  }

  /// The last undelivered entry that moved a counter of the account; nil: there is none.
  package func lastCounted(_ account: String) -> Int64? { beyond(counted[account]) }

  /// The last undelivered change of its configuration.
  package func lastChanged(_ account: String) -> Int64? { beyond(changed[account]) }

  private func beyond(_ sequence: Int64?) -> Int64? {
    guard let sequence, sequence > acknowledged else { return nil }
    return sequence
  }
}
