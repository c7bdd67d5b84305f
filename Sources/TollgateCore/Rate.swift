// GCRA arithmetic in whole microseconds: one integer per rate, the theoretical arrival time.
// The product units × period is taken in 128 bits, so nothing overflows whatever the amounts
// (PITFALLS 12); what would leave the range below is refused when a catalog is read.

package enum Rate {
  /// The longest span that a cost or a tolerance may be: about 71 years. With a clock of today
  /// (1.8 × 10^15 µs) an arrival time stays inside the quantity range.
  package static let microsecondsMax: Int64 = Quantity.maximum / 4

  /// ⌈units × period ÷ amount⌉ in microseconds, cut at `microsecondsMax`. Rounding up keeps the
  /// average at or below the rate; a rate finer than one unit per microsecond therefore admits at
  /// most one *request* per microsecond, of any size.
  package static func microseconds(
    _ units: Int64, amount: Int64, periodMilliseconds: Int64
  ) -> Int64 {
    let exact = divideUp(Int128(units) * Int128(periodMilliseconds) * 1000, Int128(amount))
    return exact > Int128(microsecondsMax) ? microsecondsMax : Int64(exact)
  }

  /// The tolerance of a bucket of `burst` units. It is the exact length of the burst, rounded up,
  /// plus up to burst − 1 µs of slack: each single request rounds its cost up, and without the
  /// slack a burst of 7 taken one by one would admit 6. The slack is less than the length of one
  /// unit, so that no split of requests ever admits burst + 1 at one instant.
  package static func tolerance(
    burst: Int64, amount: Int64, periodMilliseconds: Int64
  ) -> Int64 {
    let exact = Int128(burst) * Int128(periodMilliseconds) * 1000
    let whole = divideUp(exact, Int128(amount))
    let unit = Int128(periodMilliseconds) * 1000 / Int128(amount)
    let next = divideUp(exact + Int128(periodMilliseconds) * 1000, Int128(amount))
    // `next` is where burst + 1 whole units would fit; stay one microsecond below it.
    let slack = max(0, min(Int128(burst) - 1, unit - 1, next - 1 - whole))
    return Int64(min(whole + slack, Int128(microsecondsMax)))
  }

  /// Whether the tolerance, and the length of one unit, stay within `microsecondsMax`.
  package static func isBounded(amount: Int64, periodMilliseconds: Int64, burst: Int64) -> Bool {
    guard amount > 0 else { return false }
    let units = Int128(max(burst, 1)) + 1
    let longest = divideUp(units * Int128(periodMilliseconds) * 1000, Int128(amount))
    return longest <= Int128(microsecondsMax)
  }

  private static func divideUp(_ a: Int128, _ b: Int128) -> Int128 { (a + b - 1) / b }
}
