// What an event loop can take, and what of its own slowness is not Redis's.

import Testing
import TollgateCore
import TollgateEngine
import TollgateTesting

private func at(_ milliseconds: Int64) -> MonotonicTime {
  MonotonicTime(nanoseconds: milliseconds * 1_000_000)
}

@Suite(.blocking) struct LoadEstimatorTests {
  /// `perMillisecond` operations end in each millisecond, out of so many under way.
  private func run(
    _ load: inout LoadEstimator, from: Int64, to: Int64, perMillisecond: Int, left: Int
  ) {
    for time in from..<to { load.completed(perMillisecond, left: left, now: at(time)) }
  }

  @Test func aBusyLoopIsMeasured() {
    var load = LoadEstimator()
    #expect(load.perOperation(now: at(0)) == LoadEstimator.assumed)
    run(&load, from: 0, to: 500, perMillisecond: 2, left: 1000)
    let measured = load.perOperation(now: at(500))
    #expect((450_000...550_000).contains(measured))
    // Half of 250 ms is 250 of them.
    #expect((225...280).contains(load.operations(in: 125_000_000, now: at(500))))
  }

  @Test func itFollowsAChange() {
    var load = LoadEstimator()
    run(&load, from: 0, to: 500, perMillisecond: 2, left: 1000)
    run(&load, from: 500, to: 1500, perMillisecond: 40, left: 1000)
    #expect((24_000...30_000).contains(load.perOperation(now: at(1500))))
  }

  /// One after the other over a slow way: the way's length says nothing about the loop.
  @Test func littleToDoSaysNothing() {
    var load = LoadEstimator()
    for time in 0..<2000 { load.completed(1, left: 3, now: at(Int64(time) * 10)) }
    #expect(load.perOperation(now: at(20_000)) == LoadEstimator.assumed)
  }

  @Test func whatDidNotEndByBeingDoneIsNotMeasured() {
    var load = LoadEstimator()
    load.completed(1, left: 500, now: at(0))
    load.completed(60, left: 500, now: at(1))
    load.interrupted()
    // The first after the gap only begins a stretch.
    load.completed(10, left: 500, now: at(4000))
    #expect(load.perOperation(now: at(4000)) == LoadEstimator.assumed)
  }

  @Test func aSlowEstimateIsNotBelievedForEver() {
    var load = LoadEstimator()
    run(&load, from: 0, to: 1000, perMillisecond: 1, left: 1000)
    #expect(load.perOperation(now: at(1500)) > LoadEstimator.assumed)
    #expect(load.perOperation(now: at(3100)) == LoadEstimator.assumed)
  }

  @Test func someAreAlwaysLetInSoThatItCanBeMeasuredAnew() {
    var load = LoadEstimator()
    for time in 0..<200 { load.completed(64, left: 1000, now: at(Int64(time) * 1000)) }
    #expect(load.operations(in: 1_000_000, now: at(199_000)) == LoadEstimator.always)
  }
}

@Suite(.blocking) struct AdmissionTests {
  private func rule(
    waiting: Int, allowed: Int = 1000, own: Int = 0, senders: Int = 1, room: Int = 16_384
  ) -> AdmissionRule {
    AdmissionRule(waiting: waiting, allowed: allowed, own: own, senders: senders, room: room)
  }

  @Test func asManyAreLetInAsAreDoneInTime() {
    #expect(rule(waiting: 0).admitted(of: 500) == 500)
    #expect(rule(waiting: 700, own: 1000).admitted(of: 500) == 300)
    #expect(rule(waiting: 1000, own: 1000).admitted(of: 500) == 0)
    #expect(rule(waiting: 5000, own: 1000).admitted(of: 1) == 0)
  }

  @Test func aQuietSenderIsLetInWhereOthersHaveUsedTheTimeUp() {
    #expect(rule(waiting: 1000, own: 0, senders: 21).admitted(of: 1) == 1)
    #expect(rule(waiting: 1000, own: 0, senders: 21).admitted(of: 500) == 1000 / 21)
    #expect(rule(waiting: 1000, own: 500, senders: 21).admitted(of: 1) == 0)
    // Even where a share is less than one.
    #expect(rule(waiting: 1000, own: 0, senders: 5000).admitted(of: 1) == 1)
  }

  @Test func theFixedBoundHoldsForEverybody() {
    #expect(rule(waiting: 0, allowed: 100_000, room: 30).admitted(of: 500) == 30)
    #expect(rule(waiting: 0, room: 0).admitted(of: 1) == 0)
    #expect(rule(waiting: 0, room: -5).admitted(of: 1) == 0)
  }
}

@Suite(.blocking) struct StallLogTests {
  @Test func timeInWhichTheLoopDidNotComeAroundIsItsOwn() {
    var log = StallLog()
    for time in 0...10 { log.turned(at(Int64(time))) }
    log.turned(at(110))
    for time in 111...150 { log.turned(at(Int64(time))) }
    #expect(log.stalled(since: at(5), now: at(150)) == 100_000_000)
    #expect(log.stalled(since: at(60), now: at(150)) == 50_000_000)
    #expect(log.stalled(since: at(120), now: at(150)) == 0)
  }

  @Test func theTurnThatIsNotOverCounts() {
    var log = StallLog()
    log.turned(at(0))
    #expect(log.stalled(since: at(0), now: at(80)) == 80_000_000)
    #expect(log.stalled(since: at(30), now: at(80)) == 50_000_000)
  }

  /// A store that does not answer a loop that keeps coming around is slow, all of the time.
  @Test func aLoopThatKeepsComingAroundHasNoExcuse() {
    var log = StallLog()
    for time in 0...400 { log.turned(at(Int64(time) * 2)) }
    #expect(log.stalled(since: at(0), now: at(800)) == 0)
  }

  @Test func restIsNoStall() {
    var log = StallLog()
    log.turned(at(0))
    log.rests()
    log.turned(at(5000))
    #expect(log.stalled(since: at(0), now: at(5001)) == 0)
  }

  @Test func ofManyStallsTheLatestAreKnown() {
    var log = StallLog()
    for time in 0...200 { log.turned(at(Int64(time) * 10)) }
    #expect(
      log.stalled(since: at(0), now: at(2000)) == Int64(StallLog.kept) * 10_000_000)
  }
}
