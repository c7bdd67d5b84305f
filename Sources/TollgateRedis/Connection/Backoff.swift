// How long to wait before the next attempt: exponential, capped, jittered over the upper half so
// that a fleet that lost Redis at one instant does not return at one instant.

package struct Backoff: Hashable, Sendable {
  /// Nanoseconds; the ceiling of the first delay.
  package var initial: Int64
  /// Nanoseconds; no delay is longer.
  package var max: Int64
  /// Attempts since the last success; saturates.
  package private(set) var attempts = 0

  package init(initial: Int64 = 20_000_000, max: Int64 = 2_000_000_000) {
    precondition(initial > 0 && max >= initial, "a backoff grows from a positive delay")
    self.initial = initial
    self.max = max
  }

  /// The next delay: uniform in [ceiling / 2, ceiling], with ceiling = initial × 2^attempts ≤ max.
  package mutating func next(using random: inout some RandomNumberGenerator) -> Int64 {
    let shift = Swift.min(
      attempts, Int64.bitWidth - 2 - (Int64.bitWidth - initial.leadingZeroBitCount))
    let ceiling = Swift.min(initial << Swift.max(shift, 0), max)
    if attempts < Int64.bitWidth { attempts += 1 }
    return Int64.random(in: (ceiling - ceiling / 2)...ceiling, using: &random)
  }

  package mutating func reset() { attempts = 0 }
}

/// A small seeded generator (SplitMix64): the same seed gives the same jitter, so a test can
/// replay it. Not for secrets.
package struct JitterSource: RandomNumberGenerator, Sendable {
  private var state: UInt64

  package init(seed: UInt64) { state = seed }

  package mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
    return mixed ^ (mixed >> 31)
  }
}
