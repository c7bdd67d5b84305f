// Periods against a table that Python's calendar computed.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct WindowTests {
  @Test func everyPeriodAgreesWithTheIndependentTable() throws {
    let windows = try PeriodTable.windows.split(separator: " ").map {
      try #require(Window(word: String($0)))
    }
    var rows = 0
    for line in PeriodTable.rows.split(separator: "\n") {
      let numbers = line.split(separator: " ").compactMap { Int64($0) }
      try #require(numbers.count == 1 + 2 * windows.count)
      let instant = WallTime(milliseconds: numbers[0])
      for (index, window) in windows.enumerated() {
        let period = window.period(containing: instant)
        let expected = Period(
          start: WallTime(milliseconds: numbers[1 + 2 * index]),
          end: WallTime(milliseconds: numbers[2 + 2 * index]))
        #expect(period == expected, "\(window) at \(numbers[0])")
        #expect(period.contains(instant))
      }
      rows += 1
    }
    #expect(rows > 300)
  }

  @Test func aPeriodEndsWhereTheNextBegins() {
    let windows: [Window] = [.minute, .hour, .day, .week, .month, .quarter, .year, .seconds(7)]
    for window in windows {
      var period = window.period(containing: WallTime(milliseconds: 1_700_000_000_123))
      for _ in 0..<500 {
        let next = window.period(containing: period.end)
        #expect(next.start == period.end, "\(window)")
        period = next
      }
    }
  }

  @Test func aLifetimeHoldsEveryInstant() {
    let period = Window.lifetime.period(containing: WallTime(milliseconds: 1_800_000_000_000))
    #expect(period.start.milliseconds == 0)
    #expect(period.end.milliseconds == Quantity.maximum)
  }

  @Test(arguments: [
    "minute", "hour", "day", "week", "month", "quarter", "year", "lifetime", "1s", "3162240000s",
  ])
  func wordsAndCodesRoundTrip(_ word: String) throws {
    let window = try #require(Window(word: word))
    #expect(window.word == word)
    #expect(Window(code: window.code) == window)
  }

  @Test(arguments: ["", "s", "0s", "-1s", "+5s", "05s", "1.5s", "1S", "3162240001s", "Month", "m "])
  func otherSpellingsAreRefused(_ word: String) {
    #expect(Window(word: word) == nil)
    #expect(Window(code: word) == nil)
  }

  @Test func datesSurviveTheRoundTripThroughDayNumbers() {
    for days in stride(from: Int64(-800_000), through: 800_000, by: 37) {
      let (year, month, day) = CivilDate.civil(fromDays: days)
      #expect(CivilDate.days(year: year, month: month, day: day) == days)
    }
  }

  @Test func instantsAreWrittenInUTC() {
    #expect(CivilDate.text(WallTime(milliseconds: 0)) == "1970-01-01T00:00:00Z")
    #expect(CivilDate.text(WallTime(milliseconds: 1_709_251_199_999)) == "2024-02-29T23:59:59Z")
    #expect(CivilDate.text(WallTime(milliseconds: 1_795_237_200_000)) == "2026-11-21T05:00:00Z")
  }
}
