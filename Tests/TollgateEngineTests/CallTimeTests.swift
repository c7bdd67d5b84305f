import Testing
import TollgateEngine

@Suite struct CallTimeTests {
  private static let millisecond: Int64 = 1_000_000

  private func after(_ calls: [Int64]) -> CallTime {
    var time = CallTime()
    for call in calls { time.note(call * Self.millisecond) }
    return time
  }

  @Test func aSlowCallCountsAtOnceHoweverManyQuickOnesWereBefore() {
    let time = after(Array(repeating: 1, count: 1000) + [80])
    #expect(time.nanoseconds == 80 * Self.millisecond)
  }

  @Test func itIsForgottenSlowly() {
    #expect(after([80] + Array(repeating: 1, count: 4)).nanoseconds > 40 * Self.millisecond)
    #expect(after([80] + Array(repeating: 1, count: 40)).nanoseconds < 2 * Self.millisecond)
  }

  /// The shape of a cold start: most calls are quick, one in five is not, and what has waited for
  /// its account must not be sent with less time than the slow one takes.
  @Test func whatHasWaitedIsNotSentWhereASlowCallOfLateWouldMissItsDeadline() {
    let time = after([2, 2, 40, 2, 2])
    #expect(
      time.missesDeadline(left: 30 * Self.millisecond, waited: 200 * Self.millisecond))
    #expect(
      !time.missesDeadline(left: 200 * Self.millisecond, waited: 300 * Self.millisecond))
  }

  @Test func whatComesFreshIsSentWhateverTimeItHas() {
    let time = after([500])
    #expect(!time.missesDeadline(left: 5 * Self.millisecond, waited: 0))
    #expect(!time.missesDeadline(left: 5 * Self.millisecond, waited: 5 * Self.millisecond))
    #expect(time.missesDeadline(left: 5 * Self.millisecond, waited: 6 * Self.millisecond))
  }

  @Test func whereNothingWasAskedYetEverythingIsSent() {
    #expect(!CallTime().missesDeadline(left: 0, waited: 1_000 * Self.millisecond))
  }
}
