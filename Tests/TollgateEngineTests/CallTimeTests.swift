import Testing
import TollgateEngine
import TollgateTesting

@Suite(.blocking) struct CallTimeTests {
  private static let millisecond: Int64 = 1_000_000
  private static let start: Int64 = 5_000_000_000_000

  /// Calls of so many milliseconds, all answered at one instant, the start.
  private func after(_ calls: [Int64]) -> CallTime {
    var time = CallTime()
    for call in calls { time.note(call * Self.millisecond, at: Self.start) }
    return time
  }

  private func expected(_ time: CallTime, after milliseconds: Int64) -> Int64 {
    time.expected(at: Self.start + milliseconds * Self.millisecond) / Self.millisecond
  }

  @Test func aSlowCallCountsAtOnceHoweverManyQuickOnesWereBefore() {
    #expect(expected(after(Array(repeating: 1, count: 1000) + [80]), after: 0) == 80)
  }

  @Test func itIsForgottenByTheClockAndNotByTheNumberOfQuickOnes() {
    #expect(expected(after([80] + Array(repeating: 1, count: 1000)), after: 0) == 80)
  }

  @Test(arguments: [(0, 800), (250, 565), (500, 400), (750, 282), (1000, 200), (60_000, 0)])
  func halfIsForgottenInHalfASecond(milliseconds: Int64, left: Int64) {
    #expect(expected(after([800]), after: milliseconds) == left)
    // However often it is asked to forget on the way.
    var time = after([800])
    for step in stride(from: Int64(0), through: milliseconds, by: 125) {
      time.note(0, at: Self.start + step * Self.millisecond)
    }
    #expect(abs(expected(time, after: milliseconds) - left) <= 1)
  }

  /// Loops tell the time each for itself; one that is behind brings nothing back.
  @Test func anInstantBeforeTheLastIsTheLast() {
    var time = after([80])
    time.note(1, at: Self.start - 10_000 * Self.millisecond)
    #expect(expected(time, after: 0) == 80)
    #expect(expected(time, after: -10_000) == 80)
  }

  @Test func theUsualIsAMeanThatOneSlowCallMovesLittle() {
    #expect(CallTime().usual == 0)
    #expect(after([150]).usual == 150 * Self.millisecond)
    let mixed = after(Array(repeating: 8, count: 100) + [88])
    #expect(mixed.usual / Self.millisecond == 18)
    #expect(after([1] + Array(repeating: 150, count: 60)).usual > 149 * Self.millisecond)
  }

  @Test func theQuickestIsForgottenAfterAWhileOfSlowerOnes() {
    let stretch = CallTime.stretchNanoseconds / Self.millisecond
    var time = CallTime()
    #expect(time.quickest == 0)
    var seen: [Int64] = []
    let calls: [(at: Int64, took: Int64)] = [
      (0, 9), (1, 7), (2, 80), (stretch, 80), (2 * stretch, 80), (9 * stretch, 8),
    ]
    for (at, took) in calls {
      time.note(took * Self.millisecond, at: Self.start + at * Self.millisecond)
      seen.append(time.quickest / Self.millisecond)
    }
    #expect(seen == [9, 7, 7, 7, 80, 8])
  }

  @Test func whatStoodBehindOthersIsNoWayToRedis() {
    var time = after([9])
    let stretch = CallTime.stretchNanoseconds
    for number in 1...20 {
      time.note(80 * Self.millisecond, at: Self.start + Int64(number) * stretch, isAlone: false)
    }
    #expect(time.quickest == 9 * Self.millisecond)
    time.note(7 * Self.millisecond, at: Self.start + 20 * stretch, isAlone: false)
    #expect(time.quickest == 7 * Self.millisecond)
    time.note(80 * Self.millisecond, at: Self.start + 22 * stretch)
    #expect(time.quickest == 80 * Self.millisecond)
  }

  /// From a near Redis to a far one under load without a pause: no call is ever alone.
  @Test func aNewLinkIsAnotherWay() {
    let ways: [(before: Int64, first: Int64, after: Int64)] = [(1, 200, 150), (150, 3, 1)]
    for way in ways {
      var time = after([way.before])
      time.linked()
      #expect(time.quickest == way.before * Self.millisecond)
      for (number, took) in [way.first, way.after, 900].enumerated() {
        let at = Self.start + Int64(number) * Self.millisecond
        time.note(took * Self.millisecond, at: at, isAlone: false)
      }
      #expect(time.quickest == way.after * Self.millisecond)
    }
  }

  /// The shape of a cold start: most calls are quick, one in five is not, and what has waited for
  /// its account must not be sent with less time than the slow one takes.
  @Test func whatHasWaitedIsNotSentWhereASlowCallOfLateWouldMissItsDeadline() {
    let time = after([2, 2, 40, 2, 2])
    #expect(misses(time, left: 30, waited: 200))
    #expect(!misses(time, left: 200, waited: 300))
  }

  @Test func whatComesFreshIsSentWhateverTimeItHas() {
    let time = after([500])
    #expect(!misses(time, left: 5, waited: 0))
    #expect(!misses(time, left: 5, waited: 5))
    #expect(misses(time, left: 5, waited: 6))
  }

  @Test func whereNothingWasAskedYetEverythingIsSent() {
    #expect(!misses(CallTime(), left: 0, waited: 1_000))
  }

  @Test func whatStandsBehindABurstIsNotSentWhereTheBurstTakesAllItsTime() {
    let time = after([20])
    #expect(misses(time, left: 100, waited: 1900, behind: 70))
    #expect(!misses(time, left: 100, waited: 1900, behind: 50))
    #expect(!misses(time, left: 100, waited: 50, behind: 500))
  }

  private func misses(
    _ time: CallTime, left: Int64, waited: Int64, behind: Int64 = 0
  ) -> Bool {
    time.missesDeadline(
      left: left * Self.millisecond, waited: waited * Self.millisecond,
      behind: behind * Self.millisecond, at: Self.start)
  }
}
