// Deltas this sidecar caused and the ledger has not acknowledged. Redis has them too; they are kept
// so that a Redis that loses its outbox (FLUSHALL, an older snapshot) can be healed from here.
// Bounded: at the bound the oldest bucket tail is let go and counted, which narrows the protection
// against that double failure and nothing else.

private import DequeModule
package import TollgateCore

package struct RetainedDeltas: Sendable {
  private struct Held: Sendable {
    var epoch: Int64
    var entry: OutboxEntry
  }

  private var buckets: [Int: Deque<Held>] = [:]
  private let entriesMax: Int
  package private(set) var count = 0
  package private(set) var dropped: Int64 = 0

  package init(entriesMax: Int) { self.entriesMax = entriesMax }

  /// Entries of one bucket come in the order Redis numbered them, because its replies do.
  package mutating func add(_ entry: OutboxEntry, bucket: Int, epoch: Int64) {
    buckets[bucket, default: []].append(Held(epoch: epoch, entry: entry))
    count += 1
    if count > entriesMax { shed() }
  }

  /// Lets an eighth of the longest bucket go at once, so that the search for it is rare: at the
  /// bound every decision would pay for it otherwise.
  private mutating func shed() {
    guard let longest = buckets.max(by: { $0.value.count < $1.value.count })?.key,
      let entries = buckets[longest]?.count
    else { return }
    let excess = max(1, entries / 8)
    buckets[longest]?.removeFirst(excess)
    count -= excess
    dropped += Int64(excess)
  }

  /// The ledger's cursor of this bucket and epoch reached `sequence`: older epochs are closed, and
  /// what they held was presented when they were.
  package mutating func acknowledged(bucket: Int, epoch: Int64, through sequence: Int64) {
    guard var held = buckets.removeValue(forKey: bucket) else { return }
    let before = held.count
    while let first = held.first,
      first.epoch < epoch || (first.epoch == epoch && first.entry.sequence <= sequence)
    {
      held.removeFirst()
    }
    count -= before - held.count
    if !held.isEmpty { buckets[bucket] = held }
  }

  /// What the ledger asks for when a bucket's epoch is closed.
  package func present(bucket: Int, epoch: Int64, after sequence: Int64) -> [OutboxEntry] {
    (buckets[bucket] ?? []).filter { $0.epoch == epoch && $0.entry.sequence > sequence }
      .map(\.entry)
  }

  package var oldestTime: WallTime? {
    buckets.values.compactMap { $0.first?.entry.time }.min()
  }
}
