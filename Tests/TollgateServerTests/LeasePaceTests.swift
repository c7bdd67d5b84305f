// How much is settled early, and that what the table may put into one exchange is what one call takes.

import Testing
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateTesting

@testable import TollgateServer

@Suite(.blocking) struct LeasePaceTests {
  private static let second: Int64 = 1_000_000_000

  @Test func aFewAreSettledAtOnce() {
    var pace = LeasePace()
    for tick in 0..<100 {
      let isSpare = pace.isSpare(at: Int64(tick) * 10_000_000)
      #expect(isSpare)
      pace.sent(accounts: 2)
    }
  }

  @Test func manyAreNotSettledEarlyBeyondThePace() {
    var pace = LeasePace()
    var early = 0
    for tick in 0..<1_000 where pace.isSpare(at: Int64(tick) * 10_000_000) {
      pace.sent(accounts: 20)
      early += 20 + Int(LeasePace.accountsPerCall)
    }
    let seconds = 10
    #expect(early <= seconds * Int(LeasePace.accountsPerSecond) + Int(LeasePace.burst) + 23)
    #expect(early >= seconds * Int(LeasePace.accountsPerSecond) - 23)
  }

  @Test func aDebtIsOverSoonAndAClockThatStandsGivesNothing() {
    var pace = LeasePace()
    for _ in 0..<1_000 { pace.sent(accounts: 64) }
    let during = [pace.isSpare(at: 0), pace.isSpare(at: 0)]
    let later = pace.isSpare(at: Self.second)
    #expect(during == [false, false] && later)
  }

  /// Each of so many is settled once in that time, at the pace.
  @Test(arguments: [
    (0, 500), (250, 500), (251, 502), (1_000, 2_000), (2_000, 4_000), (.max, 4_000),
  ])
  func usageWaitsAsLongAsAllThatIsHotTakes(_ waiting: Int, _ milliseconds: Int64) {
    var pace = LeasePace()
    pace.measured(waiting: waiting)
    #expect(pace.settle == milliseconds * 1_000_000)
    #expect(pace.demand == max(Self.second, pace.settle))
  }

  @Test func itIsSlowlyLessAgain() {
    var pace = LeasePace()
    pace.measured(waiting: 2_000)
    var steps = 0
    var before = pace.settle
    while pace.settle > 2 * LeasePace.settleLeast, steps < 1_000 {
      pace.measured(waiting: 0)
      #expect(pace.settle < before)
      before = pace.settle
      steps += 1
    }
    #expect((20...40).contains(steps))
    for _ in 0..<1_000 { pace.measured(waiting: 0) }
    #expect(pace.settle < LeasePace.settleLeast + 100)
  }

  /// Near and quick, far and quick, near and slow for being asked too much; and never too long.
  @Test(
    arguments: [
      (1, 1, 500), (9, 1, 500), (150, 150, 1_500), (41, 1, 2_410), (68, 2, 3_980),
      (5_000, 1, 4_000),
      (5_000, 5_000, 4_000), (.max, .max, 4_000), (1, 3, 500),
    ] as [(Int64, Int64, Int64)])
  func aSlowRedisIsAskedSeldom(_ took: Int64, _ way: Int64, _ milliseconds: Int64) {
    var pace = LeasePace()
    for _ in 0..<200 {
      pace.called(
        took.multipliedReportingOverflow(by: 1_000_000).overflow ? .max : took * 1_000_000,
        way: way.multipliedReportingOverflow(by: 1_000_000).overflow ? .max : way * 1_000_000)
    }
    #expect(abs(pace.settle - milliseconds * 1_000_000) < 1_000_000)
  }

  @Test func whatWaitsIsCountedFourTimesASecond() {
    var pace = LeasePace()
    let times = (0..<1_000).count { pace.isToMeasure(at: Int64($0) * 10_000_000) }
    #expect(times == 40)
  }

  @Test func anExchangeOfTheTableIsACall() throws {
    let limits = LeaseHub.limits(
      ServerConfiguration(
        deployment: Deployment(id: try Name("none"), buckets: 1, mode: .dev), sidecarID: "none",
        redis: RedisLinkConfiguration(endpoint: .unix(path: "/none"))))
    #expect(limits.accountsPerExchangeMax <= LeaseCall.accountsMax)
    #expect(limits.deltasMax <= LeaseCall.deltasMax)
    #expect(limits.portionsPerExchangeMax <= LeaseCall.portionsMax)
  }
}
