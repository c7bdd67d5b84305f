// The rules of one time zone: which offset from UTC its clocks show at which instant. A value,
// read once from the compiled zone files of the system (`ZoneFile`), so that every sidecar with the
// same zone files draws the same boundaries and the rule itself is stated here, not in a library.
//
// A local time becomes an instant by one rule: the first instant at which the local clock shows
// that time or a later one. So a time inside a gap becomes the first valid instant after the gap,
// and a time that comes twice becomes its first occurrence.

public struct ZoneRules: Hashable, Sendable {
  /// From `at` (seconds since 1970, UTC) on, clocks show UTC + `offset` (seconds).
  public struct Transition: Hashable, Sendable {
    public var at: Int64
    public var offset: Int64

    public init(at: Int64, offset: Int64) {
      self.at = at
      self.offset = offset
    }
  }

  public let name: String
  /// Before the first transition.
  let initialOffset: Int64
  /// Ascending in time.
  let transitions: [Transition]
  /// What holds after the last transition, for ever; nil: its offset stays.
  let tail: RecurringRule?

  public init(
    name: String, initialOffset: Int64, transitions: [Transition], tail: RecurringRule? = nil
  ) {
    self.name = name
    self.initialOffset = initialOffset
    self.transitions = transitions
    self.tail = tail
  }

  public static let utc = ZoneRules(name: "UTC", initialOffset: 0, transitions: [])

  /// No zone was ever further from UTC than this, in seconds.
  static let offsetMax: Int64 = 26 * 3600

  /// Seconds to add to UTC at an instant given in seconds since 1970.
  public func offset(at instant: Int64) -> Int64 {
    if let tail, instant >= transitions.last?.at ?? .min { return tail.offset(at: instant) }
    // The last transition at or before the instant.
    var low = 0
    var high = transitions.count
    while low < high {
      let middle = (low + high) / 2
      if transitions[middle].at <= instant { low = middle + 1 } else { high = middle }
    }
    return low == 0 ? initialOffset : transitions[low - 1].offset
  }

  /// What the clock on the wall shows, as milliseconds since a 1970-01-01T00:00 of its own.
  public func local(_ instant: WallTime) -> Int64 {
    instant.milliseconds + offset(at: floorDivide(instant.milliseconds, 1000)) * 1000
  }

  /// The first instant at which the local clock shows `local` (milliseconds) or a later time.
  public func instant(ofLocal local: Int64) -> WallTime {
    let seconds = floorDivide(local, 1000)
    let from = seconds - Self.offsetMax - 1
    let to = seconds + Self.offsetMax + 1
    var start = Int64.min
    var offset = offset(at: from)
    for next in changes(after: from, through: to) {
      let reached = max(start, local - offset * 1000)
      if reached < next.at * 1000 { return WallTime(milliseconds: reached) }
      start = next.at * 1000
      offset = next.offset
    }
    return WallTime(milliseconds: max(start, local - offset * 1000))
  }

  /// Every change of the offset in (after, through], ascending.
  func changes(after: Int64, through: Int64) -> [Transition] {
    var found = transitions.filter { after < $0.at && $0.at <= through }
    if let tail {
      let last = max(after, transitions.last?.at ?? .min)
      found += tail.transitions(after: last, through: through)
    }
    return found
  }
}

/// The rule at the end of a zone file: standard time, and daylight saving time between two dates of
/// each year where there is one. The form is that of POSIX's TZ variable with the wider hours of
/// RFC 9636.
public struct RecurringRule: Hashable, Sendable {
  /// A moment of each year, in local time as it was before it.
  public struct Moment: Hashable, Sendable {
    public enum Day: Hashable, Sendable {
      /// The `week`th (5: last) `weekday` (0: Sunday) of `month`.
      case weekday(month: Int, week: Int, weekday: Int)
      /// 1 … 365; February 29 is never counted.
      case julian(Int)
      /// 0 … 365; February 29 is counted.
      case ordinal(Int)
    }

    public var day: Day
    /// Seconds after local midnight; may be negative or beyond the day.
    public var seconds: Int64
  }

  public struct Daylight: Hashable, Sendable {
    public var offset: Int64
    public var start: Moment
    public var end: Moment
  }

  public var offset: Int64
  public var daylight: Daylight?

  func offset(at instant: Int64) -> Int64 {
    guard let daylight else { return offset }
    let year = Self.year(of: instant + offset)
    let before = transitions(of: (year - 1)...(year + 1), daylight).last { $0.at <= instant }
    return before?.offset ?? offset
  }

  func transitions(after: Int64, through: Int64) -> [ZoneRules.Transition] {
    guard let daylight, after < through else { return [] }
    let years = Self.year(of: after) - 1...Self.year(of: through) + 1
    return transitions(of: years, daylight).filter { after < $0.at && $0.at <= through }
  }

  private static func year(of seconds: Int64) -> Int64 {
    CivilDate.civil(fromDays: floorDivide(seconds, 86_400)).year
  }

  private func transitions(
    of years: ClosedRange<Int64>, _ daylight: Daylight
  ) -> [ZoneRules.Transition] {
    years.flatMap { year in
      [
        .init(at: daylight.start.local(in: year) - offset, offset: daylight.offset),
        .init(at: daylight.end.local(in: year) - daylight.offset, offset: offset),
      ]
    }.sorted { $0.at < $1.at }
  }
}

extension RecurringRule.Moment {
  /// Seconds of local time since 1970-01-01T00:00.
  func local(in year: Int64) -> Int64 {
    let days: Int64
    switch day {
    case .weekday(let month, let week, let weekday):
      let first = CivilDate.days(year: year, month: month, day: 1)
      // 1970-01-01 was a Thursday, day 4 of a week that starts on Sunday.
      let firstWeekday = Int(first + 4 - 7 * floorDivide(first + 4, 7))
      var date = 1 + (weekday - firstWeekday + 7) % 7 + (week - 1) * 7
      if date > CivilDate.daysIn(month: month, year: year) { date -= 7 }
      days = first + Int64(date - 1)
    case .julian(let n):
      let leap = n >= 60 && CivilDate.daysIn(month: 2, year: year) == 29
      days = CivilDate.days(year: year, month: 1, day: 1) + Int64(n - 1 + (leap ? 1 : 0))
    case .ordinal(let n):
      days = CivilDate.days(year: year, month: 1, day: 1) + Int64(n)
    }
    return days * 86_400 + seconds
  }
}
