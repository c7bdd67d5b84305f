// Periods in zones and from billing anchors, against an independent implementation and against a
// table of the places where calendars are known to go wrong.

import Foundation
import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct AccountCalendarTests {
  private func anchored(_ span: Window.Span) -> Window { Window(span, .anchored) }

  private static func zone(_ name: String) throws -> ZoneRules {
    try #require(try ZoneTable.loaded.get().zones[name])
  }

  /// `2026-03-29T02:30` on the clock of a zone, as an instant; with a `Z` at the end in UTC.
  private static func instant(_ text: String, _ zone: ZoneRules = .utc) throws -> WallTime {
    let parts = text.split(whereSeparator: { "-T:Z".contains($0) }).compactMap { Int64($0) }
    try #require(parts.count >= 3)
    let time = parts.dropFirst(3)
    let seconds = time.enumerated().reduce(0) { $0 + $1.element * [3600, 60, 1][$1.offset] }
    let days = CivilDate.days(year: parts[0], month: Int(parts[1]), day: Int(parts[2]))
    let local = (days * 86_400 + seconds) * 1000
    return text.hasSuffix("Z") ? WallTime(milliseconds: local) : zone.instant(ofLocal: local)
  }

  @Test func everyPeriodAgreesWithTheIndependentTable() throws {
    let table = try ZoneTable.loaded.get()
    var wrong: [String] = []
    for row in table.cases {
      let period = row.calendar.period(
        of: row.window, containing: row.instant)
      if period != row.period {
        wrong.append("line \(row.line): \(row.window) \(period.start) … \(period.end)")
      }
    }
    #expect(wrong.isEmpty, "\(wrong.count) of \(table.cases.count): \(wrong.prefix(5))")
    #expect(table.cases.count >= 20_000)
    #expect(table.cases.count { $0.calendar.rules.count > 1 } > 5_000)
    #expect(table.zones.count > 40)
  }

  /// The periods from the anchor on, as the local dates on which they begin.
  private static func starts(
    _ span: Window.Span, from anchor: String, in zone: ZoneRules, count: Int
  ) throws -> [String] {
    let rule = CalendarRule(zone: zone, anchor: try instant(anchor, zone))
    let calendar = AccountCalendar([rule])
    let window = Window(span, .anchored)
    var period = calendar.period(of: window, containing: try #require(rule.anchor))
    var dates: [String] = []
    for _ in 0..<count {
      let local = CivilDate.text(WallTime(milliseconds: zone.local(period.start)))
      dates.append(String(local.dropLast(local.hasSuffix("T00:00:00Z") ? 10 : 4)))
      let next = calendar.period(of: window, containing: period.end)
      #expect(next.start == period.end)
      period = next
    }
    return dates
  }

  @Test func pitfall31AnAnchorOnTheLastDaysClampsAndComesBack() throws {
    let berlin = try Self.zone("Europe/Berlin")
    #expect(
      try Self.starts(.month, from: "2023-10-31", in: berlin, count: 7)
        == [
          "2023-10-31", "2023-11-30", "2023-12-31", "2024-01-31", "2024-02-29", "2024-03-31",
          "2024-04-30",
        ])
    #expect(
      try Self.starts(.month, from: "2023-01-29", in: .utc, count: 4)
        == ["2023-01-29", "2023-02-28", "2023-03-29", "2023-04-29"])
    #expect(
      try Self.starts(.quarter, from: "2023-11-30", in: .utc, count: 4)
        == ["2023-11-30", "2024-02-29", "2024-05-30", "2024-08-30"])
    #expect(
      try Self.starts(.year, from: "2024-02-29", in: .utc, count: 5)
        == ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"])
  }

  @Test func pitfall32ExpiryAndResetUseOneRule() throws {
    // Two windows that end together must end at one instant, whoever asks for which.
    let zone = try Self.zone("America/New_York")
    let calendar = AccountCalendar([
      CalendarRule(zone: zone, anchor: try Self.instant("2024-01-31T09:15", zone))
    ])
    for month in 0..<48 {
      let at = WallTime(milliseconds: 1_706_800_000_000 + Int64(month) * 2_629_800_000)
      let quarter = calendar.period(of: anchored(.quarter), containing: at)
      let last = calendar.period(
        of: anchored(.month), containing: WallTime(milliseconds: quarter.end.milliseconds - 1))
      #expect(last.end == quarter.end)
      #expect(calendar.period(of: anchored(.month), containing: quarter.end).start == quarter.end)
    }
  }

  @Test func pitfall33TheZoneIsKeptAndNotItsOffset() throws {
    let zone = try Self.zone("America/New_York")
    // An anchor in winter at nine in the morning: nine in the morning in summer too.
    #expect(
      try Self.starts(.month, from: "2025-01-15T09:00", in: zone, count: 4)
        == ["2025-01-15T09:00", "2025-02-15T09:00", "2025-03-15T09:00", "2025-04-15T09:00"])
    let calendar = AccountCalendar([CalendarRule(zone: zone)])
    let march = calendar.period(
      of: .month, containing: try Self.instant("2025-03-20T12:00", zone))
    #expect(march.end - march.start == (31 * 24 - 1) * 3_600_000)
  }

  @Test func pitfall35AnInstantOnABoundaryBelongsToOnePeriod() throws {
    for (_, zone) in try ZoneTable.loaded.get().zones.sorted(by: { $0.key < $1.key }) {
      let calendar = AccountCalendar([CalendarRule(zone: zone)])
      for window in [Window.day, .week, .month] {
        let period = calendar.period(
          of: window, containing: try Self.instant("2025-07-17T12:34", zone))
        let before = calendar.period(
          of: window, containing: WallTime(milliseconds: period.start.milliseconds - 1))
        #expect(before.end == period.start)
        #expect(calendar.period(of: window, containing: period.start) == period)
      }
    }
  }

  /// Zone, window, an instant, and the start and end expected; local unless it ends in Z.
  @Test(arguments: [
    // Spring forward at midnight: the day begins at one.
    ("America/Havana", "day", "2025-03-09T12:00", "2025-03-09T05:00Z", "2025-03-10T04:00Z"),
    // Fall back at midnight: the first of the two.
    ("America/Havana", "day", "2025-11-02T12:00", "2025-11-02T04:00Z", "2025-11-03T05:00Z"),
    // A day of 23 hours, of 25, and of 24 and a half.
    ("Europe/Berlin", "day", "2026-03-29T12:00", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
    ("Europe/Berlin", "day", "2026-10-25T12:00", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
    ("Australia/Lord_Howe", "day", "2025-04-06T12:00", "2025-04-05T13:00Z", "2025-04-06T13:30Z"),
    // Quarter hours, and more than twelve.
    ("Asia/Kathmandu", "day", "2025-06-01T00:00", "2025-05-31T18:15Z", "2025-06-01T18:15Z"),
    ("Pacific/Chatham", "day", "2025-01-10T00:00", "2025-01-09T10:15Z", "2025-01-10T10:15Z"),
    ("Pacific/Tongatapu", "month", "2025-02-01T00:00", "2025-01-31T11:00Z", "2025-02-28T11:00Z"),
    ("Pacific/Kiritimati", "year", "2025-06-01T00:00", "2024-12-31T10:00Z", "2025-12-31T10:00Z"),
    // Samoa left out 30 December 2011.
    ("Pacific/Apia", "day", "2011-12-29T12:00", "2011-12-29T10:00Z", "2011-12-30T10:00Z"),
    ("Pacific/Apia", "day", "2011-12-31T12:00", "2011-12-30T10:00Z", "2011-12-31T10:00Z"),
    ("Pacific/Apia", "week", "2011-12-31T12:00", "2011-12-26T10:00Z", "2012-01-01T10:00Z"),
    // South of the equator it is the other way round.
    ("Australia/Sydney", "month", "2025-10-15T00:00", "2025-09-30T14:00Z", "2025-10-31T13:00Z"),
    // The rule at the end of the file, far in the future.
    ("America/New_York", "month", "2300-11-15T00:00", "2300-11-01T04:00Z", "2300-12-01T05:00Z"),
    // Zones that changed their rules for good.
    ("Europe/Istanbul", "month", "2016-11-15T00:00", "2016-10-31T21:00Z", "2016-11-30T21:00Z"),
    ("Asia/Pyongyang", "year", "2018-06-01T00:00", "2017-12-31T15:30Z", "2018-12-31T15:00Z"),
    // The hour is a length of time: not doubled in autumn, not shifted by forty-five minutes.
    ("Europe/Berlin", "hour", "2026-10-25T02:30", "2026-10-25T00:00Z", "2026-10-25T01:00Z"),
    ("Asia/Kathmandu", "hour", "2025-06-01T00:00", "2025-05-31T18:00Z", "2025-05-31T19:00Z"),
  ])
  func theKnownTraps(
    _ zoneName: String, _ word: String, _ at: String, _ start: String, _ end: String
  ) throws {
    let zone = try Self.zone(zoneName)
    let window = try #require(Window(word: word))
    let expected = Period(start: try Self.instant(start), end: try Self.instant(end))
    let calendar = AccountCalendar([CalendarRule(zone: zone)])
    let period = calendar.period(of: window, containing: try Self.instant(at, zone))
    #expect(period == expected)
  }

  // MARK: - Changes

  @Test func aChangeOfZoneCutsNoPeriodShortAndForgivesNothing() throws {
    let change = try Self.instant("2026-11-01T03:00Z")
    let calendar = AccountCalendar([
      CalendarRule(), CalendarRule(zone: try Self.zone("America/Los_Angeles"), since: change),
    ])
    // In UTC November has begun; Los Angeles gets there four hours later, which is no new month.
    let period = calendar.period(of: .month, containing: change)
    #expect(period.start == (try Self.instant("2026-11-01T00:00Z")))
    #expect(period.end == (try Self.instant("2026-12-01T00:00Z")))
    // December is the first month of Los Angeles; the eight hours before it are part of it.
    let next = calendar.period(of: .month, containing: period.end)
    #expect(next == Period(start: period.end, end: try Self.instant("2027-01-01T08:00Z")))
    let before = calendar.period(of: .month, containing: try Self.instant("2026-10-31T23:00Z"))
    #expect(before.end == period.start)
    let hour = calendar.period(of: .hour, containing: change)
    #expect(hour.start == change)
  }

  @Test func aNewAnchorHoldsFromTheEndOfTheRunningPeriod() throws {
    let change = try Self.instant("2026-03-20T00:00Z")
    let calendar = AccountCalendar([
      CalendarRule(anchor: try Self.instant("2026-01-01T00:00Z")),
      CalendarRule(anchor: try Self.instant("2026-01-05T00:00Z"), since: change),
    ])
    let period = calendar.period(of: anchored(.month), containing: change)
    #expect(period.start == (try Self.instant("2026-03-01T00:00Z")))
    #expect(period.end == (try Self.instant("2026-04-01T00:00Z")))
    // Four days would be no month: it goes on to the boundary after.
    let next = calendar.period(of: anchored(.month), containing: period.end)
    #expect(next == Period(start: period.end, end: try Self.instant("2026-05-05T00:00Z")))
    // Windows that follow the calendar do not care.
    let plain = calendar.period(of: .month, containing: change)
    #expect(plain.end == (try Self.instant("2026-04-01T00:00Z")))
  }

  /// Counters expire, sums are dropped and resets are answered by the end that a period has: where
  /// a later change could move it, usage could be forgotten before the period is over.
  @Test func noChangeMovesTheEndOfARunningPeriod() throws {
    var looked = 0
    for row in try ZoneTable.loaded.get().cases where row.calendar.rules.count > 1 {
      guard let last = row.calendar.rules.last, !last.restarts else { continue }
      let before = AccountCalendar(Array(row.calendar.rules.dropLast()))
      let running = before.period(of: row.window, containing: last.since)
      #expect(
        row.calendar.period(of: row.window, containing: last.since) == running,
        "line \(row.line)")
      looked += 1
    }
    #expect(looked > 5_000)
  }

  @Test func changesMakeNoPeriodShorterThanHalfOrAsLongAsOneAndAHalf() throws {
    let day: Int64 = 86_400_000
    let lengths: [Window.Span: ClosedRange<Int64>] = [
      .day: 22 * day / 24...26 * day / 24, .week: 7 * day - day / 6...7 * day + day / 6,
      .month: 28 * day - day / 6...31 * day + day / 6,
      .quarter: 89 * day...92 * day + day / 6, .year: 365 * day - day / 6...366 * day + day / 6,
    ]
    // One day that Samoa, Kwajalein or Kiritimati left out or had twice may stand in any of them.
    for row in try ZoneTable.loaded.get().cases where row.calendar.rules.count > 1 {
      guard let usual = lengths[row.window.span], !row.calendar.rules.contains(where: \.restarts)
      else { continue }
      let length = row.period.end - row.period.start
      #expect(length >= usual.lowerBound / 2 - day, "line \(row.line)")
      #expect(length < usual.upperBound * 3 / 2 + day, "line \(row.line)")
    }
  }

  @Test func aRestartBeginsANewPeriodAtOnce() throws {
    let change = try Self.instant("2026-03-20T10:00Z")
    let calendar = AccountCalendar([
      CalendarRule(anchor: try Self.instant("2026-01-01T00:00Z")),
      CalendarRule(anchor: change, since: change, restarts: true),
    ])
    let period = calendar.period(of: anchored(.month), containing: change)
    #expect(period.start == change)
    #expect(period.end == (try Self.instant("2026-04-20T10:00Z")))
    let plain = calendar.period(of: .month, containing: change)
    #expect(plain.start == (try Self.instant("2026-03-01T00:00Z")))
  }

  @Test func periodsAreGaplessAcrossChanges() throws {
    for row in try ZoneTable.loaded.get().cases where row.calendar.rules.count > 1 {
      guard row.line % 7 == 0, row.window.fixedMilliseconds ?? .max > 3_600_000 else { continue }
      var period = row.period
      for _ in 0..<4 {
        let next = row.calendar.period(of: row.window, containing: period.end)
        // A restart cuts the period that ran, and that is its purpose.
        if !row.calendar.rules.contains(where: \.restarts) {
          #expect(next.start == period.end, "line \(row.line)")
        }
        #expect(next.end > next.start)
        period = next
      }
    }
  }

  // MARK: - Zone files

  @Test func everyCutOfAZoneFileIsRefused() throws {
    let bytes = try #require(try ZoneTable.loaded.get().files["America/New_York"])
    for count in stride(from: 0, to: bytes.count, by: 7) {
      #expect(throws: InvalidZone.self, "\(count) bytes") {
        _ = try ZoneFile.read(name: "cut", Array(bytes.prefix(count)))
      }
    }
  }

  @Test func aDamagedZoneFileNeverTraps() throws {
    let bytes = try #require(try ZoneTable.loaded.get().files["Europe/Berlin"])
    var random = SystemRandomNumberGenerator()
    for _ in 0..<3000 {
      var damaged = bytes
      for _ in 0..<Int.random(in: 1...4, using: &random) {
        damaged[Int.random(in: 0..<damaged.count, using: &random)] =
          UInt8.random(in: 0...255, using: &random)
      }
      guard let zone = try? ZoneFile.read(name: "damaged", damaged) else { continue }
      let calendar = AccountCalendar([CalendarRule(zone: zone)])
      let at = WallTime(milliseconds: 1_800_000_000_000)
      #expect(calendar.period(of: .day, containing: at).contains(at))
    }
  }

  @Test(arguments: [
    "", "E5", "EST", "EST5EDT,M3.2.0", "EST5EDT,M13.2.0,M11.1.0", "EST5EDT,M3.2.0,M11.1.0x",
    "EST999", "<+05-5", "EST5EDT,J0,J365",
  ])
  func aWrongRuleIsRefused(_ text: String) {
    #expect(throws: InvalidZone.self) { _ = try RecurringRule(posix: text.utf8) }
  }

  @Test func dayNumbersOfARuleCountLeapDaysOrNot() throws {
    // J60 is 1 March in every year; 59 is 29 February where there is one.
    let julian = try RecurringRule(posix: "AAA0BBB,J60/0,J300/0".utf8)
    let ordinal = try RecurringRule(posix: "AAA0BBB,59/0,300/0".utf8)
    func zone(_ rule: RecurringRule) -> ZoneRules {
      ZoneRules(name: "rule", initialOffset: 0, transitions: [], tail: rule)
    }
    let eve = try Self.instant("2024-02-29T12:00Z").milliseconds / 1000
    #expect(zone(julian).offset(at: eve) == 0)
    #expect(zone(julian).offset(at: eve + 86_400) == 3600)
    #expect(zone(ordinal).offset(at: eve) == 3600)
  }
}
