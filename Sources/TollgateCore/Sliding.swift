// The arithmetic of a sliding window made of two cells: what counts of the period before is the
// share of it that a span of the window's length, ending now, still reaches. Shares are 2^20ths, so
// that a script whose only numbers are doubles comes to the same result.

package enum Sliding {
  static let unit: Int64 = 1 << 20

  /// ⌈(length − elapsed) ÷ length⌉ in 2^20ths. Milliseconds; length ≤ `slidingMillisecondsMax`.
  package static func weight(elapsed: Int64, length: Int64) -> Int64 {
    let rest = min(max(0, length - elapsed), length)
    return (rest * unit + length - 1) / length
  }

  /// ⌈units × weight⌉.
  package static func share(of units: Int64, _ weight: Int64) -> Int64 {
    guard units > 0 else { return 0 }
    let (high, low) = (units / unit, units % unit)
    return high * weight + (low * weight + unit - 1) / unit
  }

  /// How long until no more than `room` units of the period before count; where the period that
  /// runs leaves no room by itself, until it is the one before. Milliseconds, at least 1.
  package static func wait(elapsed: Int64, length: Int64, before: Int64, room: Int64) -> Int64 {
    let end = max(1, length - elapsed)
    guard room >= 0, before > 0 else { return end }
    // The largest weight at which ⌈before × weight⌉ ≤ room.
    var (low, high) = (Int64(0), unit)
    while low < high {
      let middle = (low + high + 1) / 2
      if share(of: before, middle) <= room { low = middle } else { high = middle - 1 }
    }
    // The largest rest with ⌈rest × 2^20 ÷ length⌉ ≤ that weight.
    let rest = low * length / unit
    return max(1, min(end, length - rest - elapsed))
  }
}
