// The furthest that anybody in this sidecar has seen each bucket: every event loop, the shipper,
// the administration, and the ledger's own cursor. Every fenced call carries it, so that a Redis
// put back in place (same run id, same replication id, same epoch) is met by the first call of any
// of them, whoever saw what was lost (DESIGN 5).
//
// A value once seen stays true: Redis answers one call after another, and its sequence and its time
// only grow, so a call that leaves later never names more than it will find. One lock for each
// bucket, held for a comparison.
//
// Whoever waits for a bucket to be written to rests here (`rest`), and is roused by the first who
// sees more of it.

import NIOConcurrencyHelpers
import TollgateCore
import TollgateRedis

final class SeenBoard: Sendable {
  struct Seen: Sendable, Hashable {
    var position = StreamPosition(epoch: 0, sequence: 0)
    /// The latest Redis time at which this sidecar was told of a write in that epoch.
    var time = WallTime(milliseconds: 0)
  }

  private final class Slot: Sendable {
    let seen = NIOLockedValueBox(Seen())
    let nap = Nap()
  }

  private let slots: [Slot]

  /// Of the accounts' buckets and the control bucket.
  init(buckets: BucketMap) {
    slots = (0...buckets.control).map { _ in Slot() }
  }

  func saw(bucket: Int, epoch: Int64, sequence: Int64, time: WallTime? = nil) {
    let isNews = slots[bucket].seen.withLockedValue { seen in
      guard epoch >= seen.position.epoch else { return false }
      let isNews = StreamPosition(epoch: epoch, sequence: sequence) > seen.position
      if epoch > seen.position.epoch {
        seen = Seen(position: StreamPosition(epoch: epoch, sequence: sequence))
      } else if sequence > seen.position.sequence {
        seen.position.sequence = sequence
      }
      if let time, time > seen.time { seen.time = time }
      return isNews
    }
    if isNews { slots[bucket].nap.wake() }
  }

  /// Rests until then, or until somebody sees more of the bucket than `sequence`: not at all, where
  /// somebody has. One caller for each bucket.
  func rest(
    bucket: Int, epoch: Int64, beyond sequence: Int64, until end: ContinuousClock.Instant
  ) async {
    let known = StreamPosition(epoch: epoch, sequence: sequence)
    await slots[bucket].nap.rest(until: end) { self[bucket].position <= known }
  }

  subscript(bucket: Int) -> Seen { slots[bucket].seen.withLockedValue { $0 } }

  /// What a call under `epoch` must find at least.
  func seen(bucket: Int, epoch: Int64) -> Seen {
    let seen = self[bucket]
    return seen.position.epoch == epoch
      ? seen : Seen(position: StreamPosition(epoch: epoch, sequence: 0))
  }
}

extension SeenBoard.Seen {
  /// Whether this meta has all of it. The time tells where nothing was lost but denials, which
  /// are recorded without a delta; it goes with the epoch it was seen in.
  func isKept(by meta: BucketMeta) -> Bool {
    guard meta.position.epoch == position.epoch else { return meta.position > position }
    return meta.position.sequence >= position.sequence
      && meta.microseconds >= time.milliseconds * 1000
  }
}
