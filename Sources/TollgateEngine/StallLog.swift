// When an event loop was busy with itself: a reply that came meanwhile lay unread, and the time it
// lay is nobody's slowness but ours. The breaker judges a store by what is left.
//
// Bounded: the latest stalls are kept; of older ones nothing is known, and their time counts.

package import TollgateCore

package struct StallLog: Sendable {
  /// Stalls remembered.
  package static let kept = 64
  /// A loop that comes around within this has not stalled, nanoseconds.
  package static let stallMin: Int64 = 5_000_000

  private var stalls: [(from: MonotonicTime, to: MonotonicTime)] = []
  private var cameAround: MonotonicTime?

  package init() {}

  /// The loop came around; called each millisecond or so while anything is under way.
  package mutating func turned(_ now: MonotonicTime) {
    if let last = cameAround, now - last >= Self.stallMin {
      if stalls.count == Self.kept { stalls.removeFirst() }
      stalls.append((last, now))
    }
    cameAround = now
  }

  /// Nothing is under way, so nobody looks.
  package mutating func rests() { cameAround = nil }

  /// How much of the time since `start` the loop was busy with itself, the present turn included.
  package func stalled(since start: MonotonicTime, now: MonotonicTime) -> Int64 {
    var sum: Int64 = 0
    if let last = cameAround, now - last >= Self.stallMin { sum = now - max(last, start) }
    for stall in stalls.reversed() {
      guard stall.to > start else { break }
      sum += stall.to - max(stall.from, start)
    }
    return max(0, sum)
  }
}
