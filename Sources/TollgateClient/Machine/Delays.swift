// Pauses and alarms as plain values: the growing, jittered pause before another attempt, and the
// queue of instants at which the machine wants to be woken.

internal import HeapModule

/// Exponential, capped, jittered over the upper half, so that clients which failed together do not
/// return together. Nanoseconds.
struct Pause: Hashable, Sendable {
  let first: Int64
  let longest: Int64

  init(first: Int64, longest: Int64) {
    self.first = max(1, first)
    self.longest = max(self.first, longest)
  }

  /// Uniform in [ceiling / 2, ceiling], with ceiling = first × 2^attempt ≤ longest.
  func length(attempt: Int, using random: inout Jitter) -> Int64 {
    let shift = min(max(0, attempt), max(0, first.leadingZeroBitCount - 2))
    let ceiling = min(first << Int64(shift), longest)
    return Int64.random(in: (ceiling - ceiling / 2)...ceiling, using: &random)
  }
}

/// A small seeded generator (SplitMix64): a machine stays a pure value, and a test can replay it.
struct Jitter: RandomNumberGenerator, Hashable, Sendable {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
    return mixed ^ (mixed >> 31)
  }
}

/// When to look at which call again. Entries of calls that ended stay until they are due or until
/// they are the larger part; so the memory is bounded by the live calls, and ending one is free.
struct Alarms {
  private struct Entry: Comparable {
    let time: MonotonicTime
    let token: UInt64

    static func < (a: Self, b: Self) -> Bool {
      a.time != b.time ? a.time < b.time : a.token < b.token
    }
  }

  private var heap = Heap<Entry>()

  var count: Int { heap.count }
  var next: MonotonicTime? { heap.min?.time }

  mutating func set(_ token: UInt64, at time: MonotonicTime) {
    heap.insert(Entry(time: time, token: token))
  }

  mutating func popDue(_ now: MonotonicTime) -> UInt64? {
    guard let first = heap.min, first.time <= now else { return nil }
    return heap.removeMin().token
  }

  /// Drops what is no longer of interest once that is most of it.
  mutating func compact(live: Int, isLive: (UInt64) -> Bool) {
    guard heap.count > 4 * live + 64 else { return }
    heap = Heap(heap.unordered.filter { isLive($0.token) })
  }
}
