// Periods. A window names how usage is grouped in time; a period is one instance of it,
// [start, end). Boundaries are computed from the instant each time, never iteratively, so nothing
// drifts and nothing depends on a job having run. This step knows UTC; zones and billing anchors
// join in `Window.period(containing:)` without a change of any stored format.

public enum Window: Hashable, Sendable, Codable, CustomStringConvertible {
  case minute, hour, day, week, month, quarter, year
  case lifetime
  /// Whole seconds, aligned to 1970-01-01T00:00:00Z; 1 … 100 years.
  case seconds(Int64)

  public static let secondsMax: Int64 = 100 * 366 * 86_400

  /// The short code used in counter fields and deltas: `m h d w M Q Y L`, or `<n>s`.
  public var code: String {
    switch self {
    case .minute: "m"
    case .hour: "h"
    case .day: "d"
    case .week: "w"
    case .month: "M"
    case .quarter: "Q"
    case .year: "Y"
    case .lifetime: "L"
    case .seconds(let n): "\(n)s"
    }
  }

  public init?(code: some StringProtocol) {
    switch code {
    case "m": self = .minute
    case "h": self = .hour
    case "d": self = .day
    case "w": self = .week
    case "M": self = .month
    case "Q": self = .quarter
    case "Y": self = .year
    case "L": self = .lifetime
    default:
      // One spelling per window, since the code is part of a counter's name: no sign, no zeros
      // in front.
      guard code.hasSuffix("s"), let first = code.utf8.first, first >= 0x31, first <= 0x39,
        let n = Int64(code.dropLast()), n <= Self.secondsMax
      else { return nil }
      self = .seconds(n)
    }
  }

  /// The word used in catalogs and on the command line: `minute` … `lifetime`, or `90s`.
  public init?(word: String) {
    switch word {
    case "minute": self = .minute
    case "hour": self = .hour
    case "day": self = .day
    case "week": self = .week
    case "month": self = .month
    case "quarter": self = .quarter
    case "year": self = .year
    case "lifetime": self = .lifetime
    default:
      guard case .seconds(let n)? = Window(code: word) else { return nil }
      self = .seconds(n)
    }
  }

  public var word: String {
    switch self {
    case .minute: "minute"
    case .hour: "hour"
    case .day: "day"
    case .week: "week"
    case .month: "month"
    case .quarter: "quarter"
    case .year: "year"
    case .lifetime: "lifetime"
    case .seconds(let n): "\(n)s"
    }
  }

  public init(from decoder: any Decoder) throws {
    let word = try decoder.singleValueContainer().decode(String.self)
    guard let window = Window(word: word) else {
      throw DecodingError.dataCorrupted(
        .init(codingPath: decoder.codingPath, debugDescription: "unknown window \"\(word)\""))
    }
    self = window
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(word)
  }

  public var description: String { word }

  /// The nominal length in milliseconds of windows of fixed length; nil for calendar ones.
  public var fixedMilliseconds: Int64? {
    switch self {
    case .minute: 60_000
    case .hour: 3_600_000
    case .day: 86_400_000
    case .week: 604_800_000
    case .seconds(let n): n * 1000
    case .month, .quarter, .year, .lifetime: nil
    }
  }

  /// The window that is exactly this long: a word where there is one, seconds otherwise.
  public init(fixedMilliseconds: Int64) {
    switch fixedMilliseconds {
    case 60_000: self = .minute
    case 3_600_000: self = .hour
    case 86_400_000: self = .day
    case 604_800_000: self = .week
    default: self = .seconds(fixedMilliseconds / 1000)
    }
  }

  /// The period of this window that holds `instant`, in UTC. Weeks start on Monday (ISO 8601).
  public func period(containing instant: WallTime) -> Period {
    if self == .lifetime {
      return Period(start: WallTime(milliseconds: 0), end: WallTime(milliseconds: Quantity.maximum))
    }
    if let length = fixedMilliseconds {
      // 1970-01-01 was a Thursday: the Monday before it is three days earlier.
      let origin: Int64 = self == .week ? -3 * 86_400_000 : 0
      let n = floorDivide(instant.milliseconds - origin, length)
      let start = WallTime(milliseconds: origin + n * length)
      return Period(start: start, end: start + length)
    }
    let months: Int64 = self == .month ? 1 : self == .quarter ? 3 : 12
    let (year, month, _) = CivilDate.civil(
      fromDays: floorDivide(instant.milliseconds, 86_400_000))
    let index = floorDivide(year * 12 + Int64(month - 1), months) * months
    return Period(
      start: CivilDate.instant(ofMonthIndex: index),
      end: CivilDate.instant(ofMonthIndex: index + months))
  }
}

/// [start, end).
public struct Period: Hashable, Sendable, Codable {
  public var start: WallTime
  public var end: WallTime

  public init(start: WallTime, end: WallTime) {
    self.start = start
    self.end = end
  }

  public func contains(_ instant: WallTime) -> Bool { start <= instant && instant < end }
}

func floorDivide(_ a: Int64, _ b: Int64) -> Int64 {
  let quotient = a / b
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient
}

/// Proleptic Gregorian arithmetic on day numbers; day 0 is 1970-01-01.
public enum CivilDate {
  public static func days(year: Int64, month: Int, day: Int) -> Int64 {
    // Years are counted from March, so that the leap day is the last day of a year.
    let y = month <= 2 ? year - 1 : year
    let era = floorDivide(y, 400)
    let yearOfEra = y - era * 400
    let dayOfYear = Int64((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1)
    let dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
    return era * 146_097 + dayOfEra - 719_468
  }

  public static func civil(fromDays days: Int64) -> (year: Int64, month: Int, day: Int) {
    let z = days + 719_468
    let era = floorDivide(z, 146_097)
    let dayOfEra = z - era * 146_097
    let yearOfEra =
      (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let mp = (5 * dayOfYear + 2) / 153
    let day = Int(dayOfYear - (153 * mp + 2) / 5 + 1)
    let month = Int(mp < 10 ? mp + 3 : mp - 9)
    return (yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month, day)
  }

  /// Midnight UTC of the first day of month `index`, where index = year × 12 + (month − 1).
  static func instant(ofMonthIndex index: Int64) -> WallTime {
    let year = floorDivide(index, 12)
    let day = days(year: year, month: Int(index - year * 12) + 1, day: 1)
    return WallTime(milliseconds: day * 86_400_000)
  }

  /// RFC 3339 in UTC with seconds, e.g. `2026-11-21T05:00:00Z`.
  public static func text(_ instant: WallTime) -> String {
    let seconds = floorDivide(instant.milliseconds, 1000)
    let day = floorDivide(seconds, 86_400)
    let (year, month, dayOfMonth) = civil(fromDays: day)
    let rest = seconds - day * 86_400
    func two(_ n: Int64) -> String { n < 10 ? "0\(n)" : "\(n)" }
    let yearText = String(repeating: "0", count: max(0, 4 - "\(year)".count)) + "\(year)"
    return "\(yearText)-\(two(Int64(month)))-\(two(Int64(dayOfMonth)))"
      + "T\(two(rest / 3600)):\(two(rest / 60 % 60)):\(two(rest % 60))Z"
  }
}
