// What one sidecar knows of every bucket's epochs, and so whether it may work under one.
//
//   the ledger told its epochs (LINKED, EPOCH) ─▶ only that one is worked under
//   presented, or found broken                 ─▶ that epoch and all before it never again
//   no ledger is linked                        ─▶ what Redis names, unless it was given up before
//
// An epoch that was presented to the ledger is about to be closed at the position that was read:
// whatever were written under it afterwards would be thrown away with its outbox. So it is left for
// good at that moment, and only a later epoch opens the bucket again (promise 3). The price is
// that a bucket whose recovery the ledger did not live to finish waits for the ledger.

package import TollgateCore

package struct EpochBook: Sendable {
  package enum Verdict: Hashable, Sendable {
    case work
    /// Later than the ledger has told us: its word may still be under way.
    case early
    case recover
  }

  private struct Bucket: Sendable {
    /// No epoch up to this one is worked under again.
    var left: Int64 = -1
    /// Where the ledger is; meaningless while nothing is linked.
    var ledger = StreamPosition(epoch: 0, sequence: 0)
    /// The last sequences of epochs that were closed, the latest few.
    var lasts: [StreamPosition] = []
  }

  private var buckets: [Bucket]
  package private(set) var isLinked = false

  /// Closed epochs remembered for each bucket.
  static let lastsMax = 8

  package init(count: Int) { buckets = Array(repeating: Bucket(), count: count) }

  /// The ledger's list: all its epochs at one moment. A bucket it does not list has none.
  package mutating func linked(_ list: [(bucket: Int, position: StreamPosition)]) {
    isLinked = true
    for index in buckets.indices { buckets[index].ledger = StreamPosition(epoch: 0, sequence: 0) }
    for item in list where buckets.indices.contains(item.bucket) {
      buckets[item.bucket].ledger = item.position
      // Closed, whether or not anybody has opened the next in Redis yet.
      buckets[item.bucket].left = max(buckets[item.bucket].left, item.position.epoch - 1)
    }
  }

  package mutating func unlinked() { isLinked = false }

  /// The ledger closed what was before, at `previous`, and issued this epoch.
  package mutating func announced(bucket: Int, epoch: Int64, previous: StreamPosition) {
    guard buckets.indices.contains(bucket) else { return }
    buckets[bucket].ledger = StreamPosition(epoch: epoch, sequence: 0)
    buckets[bucket].left = max(buckets[bucket].left, epoch - 1)
    guard previous.epoch > 0, !buckets[bucket].lasts.contains(previous) else { return }
    buckets[bucket].lasts.append(previous)
    if buckets[bucket].lasts.count > Self.lastsMax { buckets[bucket].lasts.removeFirst() }
  }

  /// It is being presented, or cannot be delivered as it lies.
  package mutating func leave(bucket: Int, epoch: Int64) {
    guard buckets.indices.contains(bucket) else { return }
    buckets[bucket].left = max(buckets[bucket].left, epoch)
  }

  /// Whether this bucket may be worked with where Redis names this position.
  package func verdict(bucket: Int, _ position: StreamPosition) -> Verdict {
    guard buckets.indices.contains(bucket), position.epoch > buckets[bucket].left else {
      return .recover
    }
    guard isLinked else { return .work }
    let ledger = buckets[bucket].ledger
    if position.epoch > ledger.epoch { return .early }
    // A Redis that stands behind what was delivered was put back.
    return position >= ledger ? .work : .recover
  }

  /// How far the ledger said it is in this epoch.
  package func cursor(bucket: Int, epoch: Int64) -> Int64 {
    guard isLinked, buckets.indices.contains(bucket), buckets[bucket].ledger.epoch == epoch else {
      return 0
    }
    return buckets[bucket].ledger.sequence
  }

  /// The latest epoch that was left.
  package func left(bucket: Int) -> Int64 {
    buckets.indices.contains(bucket) ? buckets[bucket].left : -1
  }

  /// How far a closed epoch was known to go, by anybody; nil: not told.
  package func last(bucket: Int, epoch: Int64) -> Int64? {
    guard buckets.indices.contains(bucket) else { return nil }
    return buckets[bucket].lasts.last { $0.epoch == epoch }?.sequence
  }
}
