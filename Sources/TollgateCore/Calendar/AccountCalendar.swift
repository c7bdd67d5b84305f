// Where an account's periods begin and end: its zone, its billing anchor, and what these were
// before. A boundary is never reached by stepping from the one before it:
//
//   boundary(n) = anchor + n intervals, in the local time of the zone, computed from the anchor
//
// so a day that a month lacks is that month's last day and comes back in the next (31, 30, 31), and
// nothing drifts. A calendar-aligned window is one anchored at a local 1970-01-01T00:00 (weeks at
// the Monday before it). Windows of an hour or less, and windows of seconds, are lengths of time
// and know no zone. A period is [start, end).
//
// A change of zone or anchor cuts no period short and forgives nothing. The period that runs ends
// where it was said to end: its counters' expiry, the ledger's books and the reset time that was
// answered all rest on that. The next one begins there, and ends at the first boundary of the new
// rule by which at least half of a period has gone; from then on the new rule holds. So no period
// is shorter than half of one or as long as one and a half, and none is begun twice because two
// rules put the same midnight at two instants. An operator who wants a new period at once says so
// (`restarts`).

/// How a window is laid out in time.
public enum Alignment: String, Hashable, Sendable, CaseIterable {
  /// By the calendar of the account's zone: midnight, Monday, the first of the month.
  case calendar
  /// From the account's billing anchor; like `calendar` for an account that has none.
  case anchored
}

public struct CalendarRule: Hashable, Sendable {
  public var zone: ZoneRules
  /// nil: anchored windows are laid out like calendar-aligned ones.
  public var anchor: WallTime?
  /// In force from then on.
  public var since: WallTime
  /// Anchored windows begin a new period at `since`.
  public var restarts: Bool

  public init(
    zone: ZoneRules = .utc, anchor: WallTime? = nil,
    since: WallTime = WallTime(milliseconds: -Quantity.maximum), restarts: Bool = false
  ) {
    self.zone = zone
    self.anchor = anchor
    self.since = since
    self.restarts = restarts
  }
}

public struct AccountCalendar: Hashable, Sendable {
  /// Ascending by `since`, never empty; the first holds for all time before the second.
  public let rules: [CalendarRule]

  public static let utc = AccountCalendar([])

  public init(_ rules: [CalendarRule]) {
    self.rules = rules.isEmpty ? [CalendarRule()] : rules
  }

  /// The period of `window` that holds `instant`.
  public func period(
    of window: Window, containing instant: WallTime
  ) -> Period {
    let current = rules.lastIndex { $0.since <= instant } ?? 0
    return period(of: window, containing: instant, under: current)
  }

  private func period(
    of window: Window, containing instant: WallTime, under index: Int
  ) -> Period {
    let rule = rules[index]
    let layout = Layout(window, rule)
    let plain = layout.period(containing: instant)
    guard index > 0 else { return plain }
    if rule.restarts, window.alignment == .anchored {
      return Period(start: max(plain.start, rule.since), end: plain.end)
    }
    guard layout != Layout(window, rules[index - 1]) else {
      // A change that does not touch this window.
      return period(of: window, containing: instant, under: index - 1)
    }
    let running = period(of: window, containing: rule.since, under: index - 1)
    if instant < running.end { return running }
    let first = layout.period(containing: running.end)
    guard first.start < running.end else { return plain }
    // Between the rules: from where the old one ended to the new one's boundary.
    let half = running.end + (first.end - first.start + 1) / 2
    let end = layout.boundary(atOrAfter: half)
    return instant < end ? Period(start: running.end, end: end) : plain
  }
}

/// One window under one rule: the sequence of its boundaries.
/// Equal layouts have the same boundaries.
private struct Layout: Equatable {
  private enum Unit: Equatable {
    case forever
    case milliseconds(Int64)
    case days(Int64)
    case months(Int64)
  }

  private let unit: Unit
  private let zone: ZoneRules
  /// For lengths of time an instant; otherwise local time. Milliseconds.
  private let origin: Int64
  private let originDay: Int64
  private let originTime: Int64

  init(_ window: Window, _ rule: CalendarRule) {
    let anchor = window.alignment == .anchored ? rule.anchor : nil
    switch window.span {
    case .lifetime: unit = .forever
    case .minute: unit = .milliseconds(60_000)
    case .hour: unit = .milliseconds(3_600_000)
    case .seconds(let count): unit = .milliseconds(count * 1000)
    case .day: unit = .days(1)
    case .week: unit = .days(7)
    case .month: unit = .months(1)
    case .quarter: unit = .months(3)
    case .year: unit = .months(12)
    }
    switch unit {
    case .forever, .milliseconds:
      zone = .utc
      origin = anchor?.milliseconds ?? 0
    case .days, .months:
      zone = rule.zone
      // 1970-01-01 was a Thursday: the Monday before it is three days earlier.
      origin = anchor.map(rule.zone.local) ?? (window.span == .week ? -3 * 86_400_000 : 0)
    }
    originDay = floorDivide(origin, 86_400_000)
    originTime = origin - originDay * 86_400_000
  }

  func period(containing instant: WallTime) -> Period {
    guard unit != .forever else {
      return Period(start: WallTime(milliseconds: 0), end: WallTime(milliseconds: Quantity.maximum))
    }
    let n = index(ofLastBoundaryBy: instant)
    return Period(start: boundary(n), end: boundary(after: n, instant))
  }

  func boundary(atOrAfter instant: WallTime) -> WallTime {
    guard unit != .forever else { return WallTime(milliseconds: Quantity.maximum) }
    let n = index(ofLastBoundaryBy: instant)
    let last = boundary(n)
    return last == instant ? last : boundary(after: n, instant)
  }

  /// The first boundary beyond `instant`; two boundaries may be one instant where a zone left out
  /// a day.
  private func boundary(after n: Int64, _ instant: WallTime) -> WallTime {
    var next = n + 1
    while boundary(next) <= instant { next += 1 }
    return boundary(next)
  }

  private func index(ofLastBoundaryBy instant: WallTime) -> Int64 {
    var n = estimate(instant)
    while boundary(n) > instant { n -= 1 }
    while boundary(n + 1) <= instant { n += 1 }
    return n
  }

  private func estimate(_ instant: WallTime) -> Int64 {
    switch unit {
    case .forever: return 0
    case .milliseconds(let length): return floorDivide(instant.milliseconds - origin, length)
    case .days(let count):
      return floorDivide(zone.local(instant) - origin, count * 86_400_000)
    case .months(let count):
      let day = floorDivide(zone.local(instant), 86_400_000)
      return floorDivide(Self.month(of: day) - Self.month(of: originDay), count)
    }
  }

  private static func month(of day: Int64) -> Int64 {
    let date = CivilDate.civil(fromDays: day)
    return date.year * 12 + Int64(date.month - 1)
  }

  private func boundary(_ n: Int64) -> WallTime {
    switch unit {
    case .forever: return WallTime(milliseconds: 0)
    case .milliseconds(let length): return WallTime(milliseconds: origin + n * length)
    case .days(let count): return zone.instant(ofLocal: origin + n * count * 86_400_000)
    case .months(let count):
      let date = CivilDate.civil(fromDays: originDay)
      let index = date.year * 12 + Int64(date.month - 1) + n * count
      let year = floorDivide(index, 12)
      let month = Int(index - year * 12) + 1
      let day = min(date.day, CivilDate.daysIn(month: month, year: year))
      return zone.instant(
        ofLocal: CivilDate.days(year: year, month: month, day: day) * 86_400_000 + originTime)
    }
  }
}

extension Window {
  /// The period in UTC, for an account without a calendar of its own. Weeks start on Monday.
  public func period(containing instant: WallTime) -> Period {
    AccountCalendar.utc.period(of: self, containing: instant)
  }
}
