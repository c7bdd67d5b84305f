// What was asked for lately, so that what comes again soon is told from what comes once: a table of
// fixed size that forgets at random. Where two shapes want one place the later one has it, so one
// that is hot may need to come a third time, and one that is not costs nothing that would grow.

package struct HotShapes: Sendable {
  /// Half a megabyte, from the first shape on.
  package static let places = 1 << 16

  /// Hash 32 bits │ milliseconds 32 bits. 0: nothing was noted there.
  private var noted: [UInt64] = []

  package init() {}

  /// Notes that it was asked for now, and says whether it was before, within so long.
  /// - Parameters:
  ///   - now: of a clock that does not go back; nanoseconds, like `span`, which is at most 2^50.
  package mutating func note(_ hash: UInt64, at now: Int64, within span: Int64) -> Bool {
    if noted.isEmpty { noted = [UInt64](repeating: 0, count: Self.places) }
    let place = Int(truncatingIfNeeded: hash) & (Self.places - 1)
    let time = UInt32(truncatingIfNeeded: now / 1_000_000)
    let before = noted[place]
    noted[place] = hash & 0xFFFF_FFFF_0000_0000 | UInt64(time)
    guard before != 0, (before ^ hash) >> 32 == 0 else { return false }
    return Int64(time &- UInt32(truncatingIfNeeded: before)) <= span / 1_000_000
  }
}
