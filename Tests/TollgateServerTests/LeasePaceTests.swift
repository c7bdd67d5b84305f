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
