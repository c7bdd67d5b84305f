// Times as people type them: `30m`, `7d`, `1h30m`, `500ms`, or an instant in RFC 3339.

import TollgateCore

enum Durations {
  /// nil: not a length of time. Units: ms, s, m, h, d, w.
  static func milliseconds(_ text: String) -> Int64? {
    var rest = text[...]
    var total: Int64 = 0
    guard !rest.isEmpty else { return nil }
    while !rest.isEmpty {
      let digits = rest.prefix { $0.isASCII && $0.isNumber }
      guard let number = Int64(digits) else { return nil }
      rest = rest.dropFirst(digits.count)
      let unit = rest.prefix { $0.isASCII && $0.isLetter }
      rest = rest.dropFirst(unit.count)
      let factor: Int64
      switch unit {
      case "ms": factor = 1
      case "s": factor = 1000
      case "m": factor = 60_000
      case "h": factor = 3_600_000
      case "d": factor = 86_400_000
      case "w": factor = 604_800_000
      default: return nil
      }
      let (part, overflow) = number.multipliedReportingOverflow(by: factor)
      guard !overflow, let sum = Quantity.adding(total, part) else { return nil }
      total = sum
    }
    return total
  }

  /// A length of time from `now`, or an instant: `2026-12-01`, `2026-12-01T00:00:00Z`,
  /// `2026-12-01T09:30:00+01:00`.
  static func instant(_ text: String, now: WallTime) -> WallTime? {
    if let length = milliseconds(text) {
      return Quantity.adding(now.milliseconds, length).map { WallTime(milliseconds: $0) }
    }
    return rfc3339(text)
  }

  static func rfc3339(_ text: String) -> WallTime? {
    let bytes = Array(text.utf8)
    func number(_ start: Int, _ count: Int) -> Int? {
      guard bytes.count >= start + count else { return nil }
      var value = 0
      for byte in bytes[start..<start + count] {
        guard byte >= 0x30, byte <= 0x39 else { return nil }
        value = value * 10 + Int(byte - 0x30)
      }
      return value
    }
    func at(_ index: Int, _ characters: String) -> Bool {
      index < bytes.count && characters.utf8.contains(bytes[index])
    }
    guard let year = number(0, 4), at(4, "-"), let month = number(5, 2), at(7, "-"),
      let day = number(8, 2), (1...12).contains(month), day >= 1
    else { return nil }
    let days = CivilDate.days(year: Int64(year), month: month, day: day)
    // A day that the month does not have would come back as another date.
    guard CivilDate.civil(fromDays: days) == (Int64(year), month, day) else { return nil }
    let midnight = days * 86_400_000
    if bytes.count == 10 { return WallTime(milliseconds: midnight) }
    guard at(10, "Tt "), let hour = number(11, 2), at(13, ":"), let minute = number(14, 2),
      at(16, ":"), let second = number(17, 2), hour < 24, minute < 60, second < 60
    else { return nil }
    var time = Int64(hour * 3600 + minute * 60 + second) * 1000
    var index = 19
    if at(index, ".") {
      index += 1
      // What is less than a millisecond is dropped.
      var worth: Int64 = 100
      while index < bytes.count, bytes[index] >= 0x30, bytes[index] <= 0x39 {
        time += worth * Int64(bytes[index] - 0x30)
        worth /= 10
        index += 1
      }
    }
    if at(index, "Zz") {
      return index + 1 == bytes.count ? WallTime(milliseconds: midnight + time) : nil
    }
    guard at(index, "+-"), let zoneHour = number(index + 1, 2), at(index + 3, ":"),
      let zoneMinute = number(index + 4, 2), index + 6 == bytes.count
    else { return nil }
    let offset = Int64(zoneHour * 3600 + zoneMinute * 60) * 1000
    return WallTime(
      milliseconds: midnight + time + (bytes[index] == 0x2B ? -offset : offset))
  }
}
