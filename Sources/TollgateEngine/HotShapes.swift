// What is asked for again and again, told from what comes once or twice: a lease is worth its price
// (one call to take it, one to give it back) where it is used several times in between, and who
// came three times in a row without a long pause will probably come a fourth time.
//
// A table of fixed size that forgets at random. Where two shapes want one place the later one has
// it, so one that is hot may need to come more often, and the others cost nothing that would grow.

package struct HotShapes: Sendable {
  /// Half a megabyte, from the first shape on.
  package static let places = 1 << 16
  /// In a row, each soon after the one before.
  package static let timesMin = 3

  /// Hash 32 bits │ times in a row 2 bits │ milliseconds 30 bits. 0: nothing was noted there.
  private var noted: [UInt64] = []
  private static let timeMask: UInt64 = 1 << 30 - 1

  package init() {}

  /// Notes that it was asked for now, and says whether that is often enough.
  /// - Parameters:
  ///   - now: of a clock that does not go back; nanoseconds.
  ///   - span: a longer pause than this begins a new row; nanoseconds, less than ten days.
  package mutating func note(_ hash: UInt64, at now: Int64, within span: Int64) -> Bool {
    if noted.isEmpty { noted = [UInt64](repeating: 0, count: Self.places) }
    let place = Int(truncatingIfNeeded: hash) & (Self.places - 1)
    let time = UInt64(bitPattern: now / 1_000_000) & Self.timeMask
    let before = noted[place]
    let isSame = before != 0 && (before ^ hash) >> 32 == 0
    let pause = Int64((time &- before) & Self.timeMask)
    var times = 1
    if isSame, pause <= span / 1_000_000 {
      times = min(Self.timesMin, Int(before >> 30 & 3) + 1)
    }
    noted[place] = hash & 0xFFFF_FFFF_0000_0000 | UInt64(times) << 30 | time
    return times == Self.timesMin
  }
}
