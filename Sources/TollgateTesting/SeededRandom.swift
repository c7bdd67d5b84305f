// Randomness that can be run again.
//
// SplitMix64: one word of state, every seed is good, and the same seed gives the same stream on
// every machine. `fromEnvironment` prints the seed it uses, so that a failure can be repeated
// with TOLLGATE_SEED.

internal import Foundation

package struct SeededRandom: RandomNumberGenerator, Sendable {
  /// The seed this stream started from; print it with any failure.
  package let seed: UInt64
  private var state: UInt64

  package init(seed: UInt64) {
    self.seed = seed
    state = seed
  }

  /// Reads TOLLGATE_SEED (decimal or 0x…), or draws a fresh seed, and prints which one it is.
  /// An unreadable TOLLGATE_SEED is fatal: running with another seed would hide the mistake.
  package static func fromEnvironment(_ name: String) -> SeededRandom {
    let seed: UInt64
    if let text = ProcessInfo.processInfo.environment["TOLLGATE_SEED"] {
      let parsed =
        text.hasPrefix("0x") ? UInt64(text.dropFirst(2), radix: 16) : UInt64(text, radix: 10)
      guard let parsed else { fatalError("TOLLGATE_SEED is not a 64-bit number: \(text)") }
      seed = parsed
    } else {
      seed = UInt64.random(in: .min ... .max)
    }
    print("seed for \(name): TOLLGATE_SEED=\(seed)")
    return SeededRandom(seed: seed)
  }

  package mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }

  /// An independent stream for one worker, so that thread timing does not change what each draws.
  package mutating func fork() -> SeededRandom { SeededRandom(seed: next()) }

  /// True with the given probability.
  package mutating func chance(_ probability: Double) -> Bool { unit() < probability }

  /// Uniform in [0, 1).
  package mutating func unit() -> Double { Double(next() >> 11) * 0x1p-53 }
}

/// Draws ranks 0 ..< n with probability proportional to 1 / (rank + 1)^s: the skew of real
/// customers. The table is n doubles; a draw is one binary search.
package struct Zipf: Sendable {
  private let cumulative: [Double]

  package init(_ n: Int, _ s: Double) {
    precondition(n > 0, "a Zipf distribution needs at least one rank")
    var total = 0.0
    cumulative = (1...n).map { rank in
      total += pow(Double(rank), -s)
      return total
    }
  }

  package func sample(using random: inout SeededRandom) -> Int {
    let target = random.unit() * cumulative[cumulative.count - 1]
    var low = 0
    var high = cumulative.count - 1
    while low < high {
      let middle = (low + high) / 2
      if cumulative[middle] > target { high = middle } else { low = middle + 1 }
    }
    return low
  }
}
