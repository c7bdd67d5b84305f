// When a call may leave beside another, and when Redis is taken to be stuck: both hang on how far
// Redis is, and not on how slow it has become.

import NIOCore
import Testing
import TollgateEngine
import TollgateRedis
import TollgateTesting

@testable import TollgateServer

@Suite(.blocking) struct CallRuleTests {
  private typealias Lane = Enforcer.Lane
  private static let millisecond: Int64 = 1_000_000
  private static let full = DecideBatch.operationsMax

  /// Calls that are out when no more may leave: each is full, and one more would be.
  private func callsOut(way: Int64) -> Int {
    var calls = 0
    while calls < 100,
      Lane.maySend(calls: calls, waiting: Self.full, sent: calls * Self.full, way: way)
    {
      calls += 1
    }
    return calls
  }

  @Test func oneCallIsOutNearByAndSeveralFarAway() {
    #expect(callsOut(way: Self.millisecond / 5) == 1)
    #expect(callsOut(way: 3 * Self.millisecond) == 1)
    #expect(callsOut(way: 10 * Self.millisecond) == 4)
    #expect(callsOut(way: 150 * Self.millisecond) == Lane.callsMax)
  }

  @Test func whatDoesNotFillACallWaitsForTheOneBeforeIt() {
    let far = 150 * Self.millisecond
    #expect(Lane.maySend(calls: 0, waiting: 1, sent: 0, way: far))
    #expect(!Lane.maySend(calls: 0, waiting: 0, sent: 0, way: far))
    #expect(!Lane.maySend(calls: 1, waiting: Self.full - 1, sent: Self.full, way: far))
    #expect(Lane.maySend(calls: 1, waiting: Self.full, sent: Self.full, way: far))
  }

  /// Its answers take as long as those of a far one, as they stand behind each other. More calls at
  /// once would only make that queue longer.
  @Test func anOverloadedRedisNearByIsNoFarOne() {
    var time = CallTime()
    time.note(Self.millisecond / 5, at: 1_000 * Self.millisecond)
    for call in 1...1_000 {
      time.note(
        150 * Self.millisecond, at: (1_000 + 150 * Int64(call)) * Self.millisecond,
        isAlone: false)
    }
    #expect(time.usual > 149 * Self.millisecond)
    #expect(callsOut(way: time.quickest) == 1)
  }

  @Test func anAnswerOnItsWayIsNoSilence() {
    let patience = Enforcer.answersFlow.nanoseconds
    for way in [Self.millisecond / 5, 150 * Self.millisecond] {
      #expect(!Enforcer.isStuck(silence: nil, way: way))
      #expect(!Enforcer.isStuck(silence: way, way: way))
      #expect(!Enforcer.isStuck(silence: patience + way, way: way))
      #expect(Enforcer.isStuck(silence: patience + way + 1, way: way))
    }
  }

  /// A freeze that has ended leaves a call behind that took as long as it: the next one is not to be
  /// taken for a queue.
  @Test func whatWaitedOutAnOutageDoesNotMakeTheNextOneFlow() {
    let patience = Enforcer.answersFlow.nanoseconds
    let way = Self.millisecond / 5
    let usual = 75 * Self.millisecond
    func flows(silence: Int64, waited: Int64) -> Bool {
      Enforcer.isFlowing(silence: silence, waited: waited, usual: usual, way: way)
    }
    // It came when Redis was silent already.
    #expect(!flows(silence: 95 * Self.millisecond, waited: 95 * Self.millisecond))
    #expect(!flows(silence: 200 * Self.millisecond, waited: 95 * Self.millisecond))
    #expect(flows(silence: patience, waited: 20 * Self.millisecond))
    // Others were answered while it waited.
    #expect(flows(silence: 95 * Self.millisecond, waited: 200 * Self.millisecond))
    #expect(!flows(silence: patience + usual, waited: 1_000 * Self.millisecond))
  }
}
