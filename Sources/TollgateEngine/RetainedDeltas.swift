// Deltas this sidecar caused and the ledger has not acknowledged. Redis has them too; they are kept
// so that a Redis that loses its outbox (FLUSHALL, an older snapshot) can be healed from here.
//
//   add ─▶ held ──acknowledged in its epoch──▶ gone
//            └──a later epoch is learned of──▶ late ──on record, or posted anew──▶ gone
//
// A held entry whose epoch is over was presented to the ledger or it was not: a sidecar that was
// cut off from the ledger then could not. So it becomes *late*: it stays until the ledger was asked
// for its id and, where it is unknown, until it lies in the outbox again (promise 3).
//
// Bounded, both kinds together. At the bound held entries are let go first, the oldest of the
// bucket that has most, because Redis has them too; late ones last, because nobody else may. Both
// are counted.

private import DequeModule
package import TollgateCore

package struct RetainedDeltas: Sendable {
  private struct Held: Sendable {
    var epoch: Int64
    var entry: OutboxEntry
  }

  private struct Bucket: Sendable {
    /// The latest epoch learned of; what is held belongs to it.
    var epoch: Int64 = 0
    /// The ledger's cursor of that epoch.
    var acknowledged: Int64 = 0
    var held: Deque<Held> = []
    var late: Deque<Held> = []

    /// Answers how many entries became late.
    mutating func opened(_ epoch: Int64) -> Int {
      guard epoch > self.epoch else { return 0 }
      self.epoch = epoch
      acknowledged = 0
      let count = held.count
      late.append(contentsOf: held)
      held.removeAll()
      return count
    }
  }

  private var buckets: [Int: Bucket] = [:]
  private let entriesMax: Int
  package private(set) var count = 0
  package private(set) var lateCount = 0
  package private(set) var dropped: Int64 = 0

  package init(entriesMax: Int) { self.entriesMax = entriesMax }

  /// Entries of one bucket come in the order Redis numbered them, because its replies do; one that
  /// was told of by another connection may come behind later ones, and is then held longer, or not
  /// at all where the ledger was faster.
  package mutating func add(_ entry: OutboxEntry, bucket: Int, epoch: Int64) {
    lateCount += buckets[bucket, default: Bucket()].opened(epoch)
    let (current, acknowledged) = buckets[bucket].map { ($0.epoch, $0.acknowledged) } ?? (epoch, 0)
    if epoch == current && entry.sequence <= acknowledged { return }
    if epoch < current {
      buckets[bucket]?.late.append(Held(epoch: epoch, entry: entry))
      lateCount += 1
    } else {
      buckets[bucket]?.held.append(Held(epoch: epoch, entry: entry))
    }
    count += 1
    if count > entriesMax { shed() }
  }

  /// Lets an eighth of the longest bucket go at once, so that the search for it is rare: at the
  /// bound every decision would pay for it otherwise.
  private mutating func shed() {
    let onlyLate = count == lateCount
    func length(_ bucket: Bucket) -> Int { onlyLate ? bucket.late.count : bucket.held.count }
    guard let longest = buckets.max(by: { length($0.value) < length($1.value) }) else { return }
    let excess = max(1, length(longest.value) / 8)
    if onlyLate {
      buckets[longest.key]?.late.removeFirst(excess)
      lateCount -= excess
    } else {
      buckets[longest.key]?.held.removeFirst(excess)
    }
    count -= excess
    dropped += Int64(excess)
  }

  /// The bucket is open under `epoch`: what is held of earlier ones is late.
  package mutating func opened(bucket: Int, epoch: Int64) {
    lateCount += buckets[bucket, default: Bucket()].opened(epoch)
  }

  /// The ledger's cursor of this bucket and epoch reached `sequence`. A cursor of an epoch that is
  /// over says nothing: it also stands above what was given up as lost.
  package mutating func acknowledged(bucket: Int, epoch: Int64, through sequence: Int64) {
    lateCount += buckets[bucket, default: Bucket()].opened(epoch)
    guard var found = buckets.removeValue(forKey: bucket) else { return }
    defer { buckets[bucket] = found }
    guard epoch == found.epoch else { return }
    found.acknowledged = max(found.acknowledged, sequence)
    let before = found.held.count
    while let first = found.held.first, first.entry.sequence <= sequence {
      found.held.removeFirst()
    }
    count -= before - found.held.count
    // After a burst its memory goes with it.
    if found.held.isEmpty { found.held = [] }
  }

  /// What the ledger asks for when a bucket's epoch is closed.
  package func present(bucket: Int, epoch: Int64, after sequence: Int64) -> [OutboxEntry] {
    guard let bucket = buckets[bucket] else { return [] }
    return [bucket.late, bucket.held].flatMap { list in
      list.filter { $0.epoch == epoch && $0.entry.sequence > sequence }.map(\.entry)
    }
  }

  // MARK: - Late entries

  /// The buckets that have some.
  package var lateBuckets: [Int] {
    lateCount == 0 ? [] : buckets.filter { !$0.value.late.isEmpty }.keys.sorted()
  }

  /// The oldest late entries of a bucket.
  package func late(bucket: Int, limit: Int) -> [OutboxEntry] {
    buckets[bucket]?.late.prefix(limit).map(\.entry) ?? []
  }

  /// The ledger has these, or they lie in the outbox again.
  package mutating func settledLate(bucket: Int, _ ids: Set<DeltaID>) {
    guard let before = buckets[bucket]?.late.count else { return }
    buckets[bucket]?.late.removeAll { ids.contains($0.entry.id) }
    let gone = before - (buckets[bucket]?.late.count ?? 0)
    count -= gone
    lateCount -= gone
  }

  package var oldestTime: WallTime? {
    buckets.values.compactMap { ($0.late.first ?? $0.held.first)?.entry.time }.min()
  }
}
