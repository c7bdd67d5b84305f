// account.set, the part about time: the zone whose calendar an account's periods follow, and the
// anchor of its anchored windows. A change never reaches back: what was counted stays in the period
// it was counted in. So it comes into force a moment after it was made, when every sidecar has it.

import TollgateCore

enum CalendarEdit {
  /// From the edit to where it holds: longer than a change takes to reach every sidecar.
  static let delayMilliseconds: Int64 = 2000
  /// Settings older than this no longer bear on any period: the longest is a year and a half.
  static let historyMilliseconds: Int64 = 2 * 366 * 86_400_000
}

extension AccountSetRequest {
  var changesCalendar: Bool {
    zone != nil || anchor != nil || dropAnchor == true || restart == true
  }
}

extension AdminService {
  func checkCalendar(_ request: AccountSetRequest) throws(AdminFailure) {
    if let zone = request.zone, zone != "UTC", SystemZones.rules(named: zone) == nil {
      throw .badRequest(
        "zone",
        "no such zone in \(SystemZones.folder): give an IANA name such as Europe/Berlin",
        value: zone)
    }
    if request.dropAnchor == true, request.anchor != nil || request.restart == true {
      throw .badRequest("drop_anchor", "goes with neither anchor nor restart")
    }
    // A thousand years each way: whole milliseconds, and dates that calendars agree on.
    if let anchor = request.anchor, abs(anchor.milliseconds) > 1000 * 366 * 86_400_000 {
      throw .badRequest("anchor_ms", "out of range", value: "\(anchor.milliseconds)")
    }
  }

  /// What it changed, in words; nil: nothing.
  static func changeCalendar(
    _ account: inout AccountConfig, _ request: AccountSetRequest, now: WallTime
  ) throws(AdminFailure) -> String? {
    let before = account.calendar.last ?? CalendarSetting()
    var after = before
    let since = now + CalendarEdit.delayMilliseconds
    if let zone = request.zone { after.zone = zone }
    if request.dropAnchor == true { after.anchor = nil }
    if request.restart == true { after.anchor = since }
    if let anchor = request.anchor { after.anchor = anchor }
    guard (after.zone, after.anchor?.milliseconds) != (before.zone, before.anchor?.milliseconds)
    else { return nil }
    after.restarts = request.restart == true
    // The first setting of an account nobody has counted for yet holds for all time.
    after.since = account.version == 0 ? nil : since
    // Of what was so long ago that no period that runs began in it, only the last is needed.
    let settled = account.calendar.lastIndex {
      ($0.since?.milliseconds ?? .min) < now.milliseconds - CalendarEdit.historyMilliseconds
    }
    if let settled { account.calendar.removeFirst(settled) }
    if let last = account.calendar.last?.since, last >= since {
      throw AdminFailure(
        .conflict, "another change of the calendar is coming into force",
        fix: "try again in a few seconds")
    }
    guard account.calendar.count < AccountConfig.calendarSettingsMax else {
      throw AdminFailure(
        .conflict,
        "zone and anchor were changed \(account.calendar.count - 1) times in two years; at most "
          + "\(AccountConfig.calendarSettingsMax - 1) are remembered",
        fix: "wait until the oldest is two years old")
    }
    account.calendar.append(after)
    return "calendar: \(text(before)) → \(text(after))"
      + (after.restarts ? ", beginning a new period" : "")
  }

  private static func text(_ setting: CalendarSetting) -> String {
    setting.zone + (setting.anchor.map { " anchored at \(CivilDate.text($0))" } ?? "")
  }
}
