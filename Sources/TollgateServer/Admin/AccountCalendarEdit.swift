// account.set, the part about time: the zone whose calendar an account's periods follow, and the
// anchor of its anchored windows. A change never reaches back: what was counted stays in the period
// it was counted in. So it comes into force a moment after it was made, when every sidecar has it,
// and a period that runs then still ends where it was said to.

import TollgateCore

enum CalendarEdit {
  /// From the edit to where it holds: longer than a change takes to reach every sidecar.
  static let delayMilliseconds: Int64 = 2000
  /// Settings older than this no longer bear on any period: at most one and a half years of the
  /// period that ran, and as much of the one between two calendars.
  static let historyYears: Int64 = 3
  static let historyMilliseconds: Int64 = historyYears * 366 * 86_400_000
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
    guard let anchor = request.anchor?.milliseconds else { return }
    // A thousand years each way: dates that calendars agree on. Whole seconds: what is printed of
    // an anchor is all of it.
    if abs(anchor) > 1000 * 366 * 86_400_000 || anchor % 1000 != 0 {
      throw .badRequest(
        "anchor_ms", "must be a whole second, at most a thousand years from 1970",
        value: "\(anchor)")
    }
  }

  /// What it changed, in words; nil: nothing.
  static func changeCalendar(
    _ account: inout AccountConfig, _ global: GlobalConfig?, _ request: AccountSetRequest,
    now: WallTime
  ) throws(AdminFailure) -> String? {
    let before = account.calendar.last ?? CalendarSetting()
    var after = before
    // A whole second, so that what is printed of an anchor set here can be given back.
    let since = WallTime(
      milliseconds: (now.milliseconds + CalendarEdit.delayMilliseconds + 999) / 1000 * 1000)
    if let zone = request.zone { after.zone = zone }
    if request.dropAnchor == true { after.anchor = nil }
    if request.restart == true { after.anchor = since }
    if let anchor = request.anchor { after.anchor = anchor }
    after.restarts = request.restart == true
    guard
      (after.zone, after.anchor?.milliseconds) != (before.zone, before.anchor?.milliseconds)
        || after.restarts
    else { return nil }
    // The first setting of an account that was denied everything so far holds for all time. One
    // that a default plan served has counters, and the period they stand in goes on.
    let isNew = account.version == 0 && (global?.catalog.unknownAccount ?? .deny) == .deny
    after.since = isNew ? nil : since
    if account.calendar.count == AccountConfig.calendarSettingsMax {
      // Of what was so long ago that no period that runs began in it, only the last is needed.
      let settled = account.calendar.lastIndex {
        ($0.since?.milliseconds ?? .min) < now.milliseconds - CalendarEdit.historyMilliseconds
      }
      if let settled { account.calendar.removeFirst(settled) }
    }
    if let last = account.calendar.last?.since, last > now {
      throw AdminFailure(
        .conflict, "another change of the calendar is coming into force",
        fix: "try again in a few seconds")
    }
    guard account.calendar.count < AccountConfig.calendarSettingsMax else {
      throw AdminFailure(
        .conflict,
        "zone and anchor were changed \(account.calendar.count) times in "
          + "\(CalendarEdit.historyYears) years, and no more changes are remembered",
        fix: "wait until the oldest is \(CalendarEdit.historyYears) years old")
    }
    account.calendar.append(after)
    return "calendar: \(text(before)) → \(text(after))"
      + (after.restarts ? ", beginning a new period" : "")
  }

  private static func text(_ setting: CalendarSetting) -> String {
    setting.zone + (setting.anchor.map { " anchored at \(CivilDate.text($0))" } ?? "")
  }
}
