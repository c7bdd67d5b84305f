// Which billing period of an account is meant by a month. A period is known by its start, and an
// account's month starts up to a day before or after the month of UTC, wherever its zone is; the
// ledger knows no zones. So the month of a period is the one that holds the instant a fortnight
// after its start: the day is never far from the middle, so no zone and no change of zone moves it
// into another month.

package import TollgateCore

package enum BillingMonth {
  static let fortnight: Int64 = 14 * 86_400_000

  /// The month, in UTC, that a billing period with this start is the bill of.
  package static func month(ofStart start: Int64) -> Period {
    Window.month.period(containing: WallTime(milliseconds: start + fortnight))
  }

  /// Where the billing periods of this month, given in UTC, start.
  package static func starts(in month: Period) -> Range<Int64> {
    month.start.milliseconds - fortnight..<month.end.milliseconds - fortnight
  }
}

/// A month that was closed: what comes for it from then on is an adjustment.
struct ClosedMonth {
  var period: Period
  /// When it was closed.
  var time: WallTime

  /// Whether an account's own period of this month is closed at `now`: as long after its end as the
  /// month was closed after its own, so that nobody's month is closed while it runs.
  func holds(_ other: Period, at now: WallTime) -> Bool {
    BillingMonth.starts(in: period).contains(other.start.milliseconds)
      && now >= other.end + (time - period.end)
  }
}
