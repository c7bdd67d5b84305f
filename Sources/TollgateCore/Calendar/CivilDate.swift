// Days, months and years of the proleptic Gregorian calendar as whole numbers. No zone, no clock.

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

  /// 28 … 31.
  public static func daysIn(month: Int, year: Int64) -> Int {
    let isLast = month == 12
    let next = days(year: isLast ? year + 1 : year, month: isLast ? 1 : month + 1, day: 1)
    return Int(next - days(year: year, month: month, day: 1))
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

  /// `2026-12-01T00:00:00Z`, exactly so; nil: anything else.
  public static func instant(_ text: String) -> WallTime? {
    let bytes = Array(text.utf8)
    guard bytes.count == 20 else { return nil }
    let marks: [Int: UInt8] = [4: 0x2D, 7: 0x2D, 10: 0x54, 13: 0x3A, 16: 0x3A, 19: 0x5A]
    guard marks.allSatisfy({ bytes[$0.key] == $0.value }) else { return nil }
    func number(_ range: Range<Int>) -> Int? {
      var value = 0
      for byte in bytes[range] {
        guard (0x30...0x39).contains(byte) else { return nil }
        value = value * 10 + Int(byte - 0x30)
      }
      return value
    }
    guard let year = number(0..<4), let month = number(5..<7), let day = number(8..<10),
      let hour = number(11..<13), let minute = number(14..<16), let second = number(17..<19),
      (1...12).contains(month), day >= 1, day <= daysIn(month: month, year: Int64(year)),
      hour < 24, minute < 60, second < 60
    else { return nil }
    let seconds =
      days(year: Int64(year), month: month, day: day) * 86_400
      + Int64(hour * 3600 + minute * 60 + second)
    return WallTime(milliseconds: seconds * 1000)
  }
}
