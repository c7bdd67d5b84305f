// What reconciliation compares: the ledger's totals, Redis' totals, and the deltas between them.

package import TollgateCore

/// One billed total: units of a feature in a billing period; or one of the counters beside the
/// bill, of what was burnt from a grant, went beyond them, was priced or is owed.
package struct BillingTotal: Hashable, Sendable {
  package var feature: Name
  package var period: Period
  package var settled: Int64
  /// The month: the bill.
  package var window: Window

  package init(feature: Name, period: Period, settled: Int64, window: Window = .month) {
    self.feature = feature
    self.period = period
    self.settled = settled
    self.window = window
  }
}

package struct LedgerBilling: Hashable, Sendable {
  /// What the ledger has of the account's bucket.
  package var cursor: StreamPosition
  package var totals: [BillingTotal]
  /// Whether the counters beside the bill are among them.
  package var hasParts: Bool

  package init(cursor: StreamPosition, totals: [BillingTotal], hasParts: Bool = false) {
    self.cursor = cursor
    self.totals = totals
    self.hasParts = hasParts
  }
}

package struct BilledDelta: Hashable, Sendable {
  package var id: DeltaID
  package var kind: DeltaKind
  package var position: StreamPosition
  package var time: WallTime
  package var feature: Name
  package var period: Period
  /// What it added to that total.
  package var charged: Int64
  package var window: Window

  package init(
    id: DeltaID, kind: DeltaKind, position: StreamPosition, time: WallTime, feature: Name,
    period: Period, charged: Int64, window: Window = .month
  ) {
    self.window = window
    self.id = id
    self.kind = kind
    self.position = position
    self.time = time
    self.feature = feature
    self.period = period
    self.charged = charged
  }
}

package struct StoreBilling: Hashable, Sendable {
  /// Redis time.
  package var time: WallTime
  package var bucketState: CountersSnapshot.Bucket
  /// The account's totals are comparable only while it is loaded.
  package var isLoaded: Bool
  /// The bucket's epoch and the last sequence number given out in it.
  package var last: StreamPosition
  /// The oldest entry still in the stream of the current epoch; 0 where the stream is empty.
  package var firstSequence: Int64
  /// The account's current month.
  package var month: Period
  package var totals: [BillingTotal]
  /// Entries of this account above the cursor asked for, oldest first; the first `listedMax`.
  package var undelivered: [BilledDelta]
  /// The sums of those beyond the list.
  package var unlisted: [BillingTotal]

  /// Entries of one account that are told one by one.
  package static let listedMax = 2000

  package init(
    time: WallTime, bucketState: CountersSnapshot.Bucket, isLoaded: Bool, last: StreamPosition,
    firstSequence: Int64, month: Period, totals: [BillingTotal], undelivered: [BilledDelta],
    unlisted: [BillingTotal] = []
  ) {
    self.time = time
    self.bucketState = bucketState
    self.isLoaded = isLoaded
    self.last = last
    self.firstSequence = firstSequence
    self.month = month
    self.totals = totals
    self.undelivered = undelivered
    self.unlisted = unlisted
  }
}
