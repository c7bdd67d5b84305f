// Ids that are Redis's to answer and have no slot in the ring: those that were ahead of the clock
// when their marker was forgotten, and those for which no marker could be left. A filter of fixed
// size, which now and then takes a new id for one of them: that one is decided in Redis, as it
// would be without leases. Where both halves are full of what the horizon has not passed, it takes
// no more, so that it never takes everybody's for its own.

/// Two halves: one that ids are put into, and the one before, kept until the horizon passed it.
struct LeaseFilter {
  private var bits: [UInt64] = []
  private var before: [UInt64] = []
  private var count = 0
  /// Time of the last id of either half (ms). What is behind the horizon is refused by its time.
  private var until: Int64 = .min
  private var untilBefore: Int64 = .min

  /// 16 KiB each, made when the first id comes.
  private static let words = 2_048
  /// So many ids take a sixth of a half's bits: one in two hundred new ids is taken for one.
  static let idsMax = 8_192

  /// False: there is no room.
  ///
  /// - Parameter hash: of the id, evenly spread.
  mutating func insert(_ hash: UInt64, time: Int64, horizon: Int64) -> Bool {
    if bits.isEmpty { bits = Array(repeating: 0, count: Self.words) }
    if count >= Self.idsMax {
      guard untilBefore <= horizon else { return false }
      swap(&bits, &before)
      bits = Array(repeating: 0, count: Self.words)
      (count, untilBefore, until) = (0, until, .min)
    }
    for shift in Self.shifts {
      let bit = Self.place(hash, shift)
      bits[bit / 64] |= 1 << UInt64(bit % 64)
    }
    count += 1
    until = max(until, time)
    return true
  }

  /// Whether it may be one of them.
  @inline(never)
  func mayContain(_ hash: UInt64, horizon: Int64) -> Bool {
    (until > horizon && has(bits, hash)) || (untilBefore > horizon && has(before, hash))
  }

  /// Whether there are any that the horizon has not passed.
  @inline(__always)
  func isInUse(_ horizon: Int64) -> Bool { until > horizon || untilBefore > horizon }

  private func has(_ half: [UInt64], _ hash: UInt64) -> Bool {
    guard !half.isEmpty else { return false }
    for shift in Self.shifts {
      let bit = Self.place(hash, shift)
      if half[bit / 64] >> UInt64(bit % 64) & 1 == 0 { return false }
    }
    return true
  }

  private static var shifts: StrideTo<UInt64> { stride(from: 0, to: 51, by: 17) }

  private static func place(_ hash: UInt64, _ shift: UInt64) -> Int {
    Int(truncatingIfNeeded: hash >> shift) & (words * 64 - 1)
  }
}
