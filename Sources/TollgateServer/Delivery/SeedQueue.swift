// Accounts that wait to be seeded, in groups of one bucket and epoch: what a group needs to know of
// its bucket is asked once, and its questions about accounts travel together. The bucket that
// waited longest is next; within it, the account that came first.
//
// An account stays although the requests that asked for it have been answered: whoever asks again
// finds it, and a queue that forgot what was not done in time would do nothing in time.

import DequeModule
import TollgateCore

/// One account to be seeded, and who waits to hear of it.
struct SeedErrand: Sendable {
  var account: Subject
  var bucket: Int
  var epoch: Int64
  var purpose: SeedPurpose
  var done: @Sendable (Healer.LoadOutcome) -> Void
}

struct SeedQueue {
  /// Accounts of one group: as many as share the round trips without one waiting long for the rest.
  static let groupMax = 64
  /// Groups at work at a time.
  static let groupsMax = 4
  /// Accounts that wait; one more is refused, and the requests for it are answered OVERLOADED.
  static let waitingMax = 16_384

  private var waiting: [Int: Deque<SeedErrand>] = [:]
  /// Buckets with errands, the one that waited longest in front.
  private var line: Deque<Int> = []
  private(set) var count = 0

  /// False: there is no room.
  mutating func add(_ errand: SeedErrand) -> Bool {
    guard count < Self.waitingMax else { return false }
    count += 1
    if waiting[errand.bucket] == nil { line.append(errand.bucket) }
    waiting[errand.bucket, default: []].append(errand)
    return true
  }

  /// Errands of one bucket and epoch, taken out; nil where none waits.
  mutating func next() -> [SeedErrand]? {
    guard let bucket = line.popFirst(), var errands = waiting.removeValue(forKey: bucket) else {
      return nil
    }
    var group: [SeedErrand] = []
    while group.count < Self.groupMax, let first = errands.first,
      group.isEmpty || first.epoch == group[0].epoch
    {
      group.append(errands.removeFirst())
    }
    count -= group.count
    if !errands.isEmpty {
      waiting[bucket] = errands
      line.append(bucket)
    }
    return group
  }
}
