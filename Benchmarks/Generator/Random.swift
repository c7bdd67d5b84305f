// Seeded randomness, and who is popular.
//
// A draw is on the path of every request, so it is two table look-ups (Walker's alias method),
// whatever the number of subjects; the tables are built once. The same seed gives the same
// sequence of subjects on every machine, so a run can be repeated.

internal import Glibc

package struct SplitMix: RandomNumberGenerator, Sendable {
  private var state: UInt64

  package init(seed: UInt64) { state = seed }

  @inline(__always)
  package mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }

  /// Uniform in 0 ..< bound, without the bias of a remainder.
  @inline(__always)
  package mutating func below(_ bound: Int) -> Int {
    Int(truncatingIfNeeded: next().multipliedFullWidth(by: UInt64(bound)).high)
  }
}

/// Draws ranks 0 ..< count: all alike, or rank r with weight 1 / (r + 1)^exponent.
package struct Popularity: Sendable {
  package let count: Int
  private let threshold: [UInt64]
  private let alias: [UInt32]

  package static func uniform(_ count: Int) -> Popularity {
    Popularity(count: count, threshold: [], alias: [])
  }

  package static func zipf(_ count: Int, exponent: Double) -> Popularity {
    guard count > 1 else { return .uniform(count) }
    var weights = (1...count).map { pow(Double($0), -exponent) }
    let total = weights.reduce(0, +)
    for index in weights.indices { weights[index] *= Double(count) / total }
    var threshold = [UInt64](repeating: .max, count: count)
    var alias = (0..<count).map { UInt32($0) }
    var small: [Int] = []
    var large: [Int] = []
    for index in weights.indices {
      if weights[index] < 1 { small.append(index) } else { large.append(index) }
    }
    while let poor = small.popLast(), let rich = large.popLast() {
      threshold[poor] = UInt64(max(0, weights[poor]) * 0x1p63) << 1
      alias[poor] = UInt32(rich)
      weights[rich] -= 1 - weights[poor]
      if weights[rich] < 1 { small.append(rich) } else { large.append(rich) }
    }
    return Popularity(count: count, threshold: threshold, alias: alias)
  }

  private init(count: Int, threshold: [UInt64], alias: [UInt32]) {
    precondition(count > 0, "there must be somebody to draw")
    self.count = count
    self.threshold = threshold
    self.alias = alias
  }

  @inline(__always)
  package func draw(_ random: inout SplitMix) -> Int {
    let column = random.below(count)
    if threshold.isEmpty { return column }
    return random.next() < threshold[column] ? column : Int(alias[column])
  }
}
