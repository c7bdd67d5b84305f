// The breaker as transcripts.

import Testing
import TollgateCore
import TollgateEngine
import TollgateTesting

@Suite(.blocking) struct BreakerTests {
  private static let millisecond: Int64 = 1_000_000

  private func at(_ milliseconds: Int64) -> MonotonicTime {
    MonotonicTime(nanoseconds: milliseconds * Self.millisecond)
  }

  private func ticket(_ breaker: inout BreakerMachine, _ now: MonotonicTime) throws
    -> BreakerMachine.Ticket
  {
    switch breaker.admit(now: now) {
    case .allowed(let ticket): return ticket
    case .refused:
      struct Refused: Error {}
      throw Refused()
    }
  }

  private func isRefused(_ breaker: inout BreakerMachine, _ now: MonotonicTime) -> Bool {
    if case .refused = breaker.admit(now: now) { true } else { false }
  }

  /// A breaker that consecutive failures have opened at time 0, and when it may probe.
  private func opened() throws -> (BreakerMachine, MonotonicTime) {
    var breaker = BreakerMachine(seed: 3)
    let ticket = try ticket(&breaker, at(0))
    for _ in 0..<breaker.limits.consecutiveFailuresMax - 1 {
      #expect(breaker.failed(ticket, now: at(0)) == nil)
    }
    guard case .opened(.failures, let until)? = breaker.failed(ticket, now: at(0)) else {
      Issue.record("not opened")
      return (breaker, at(0))
    }
    return (breaker, until)
  }

  @Test func consecutiveFailuresOpenIt() throws {
    var (breaker, until) = try opened()
    #expect(breaker.state == .open(until: until))
    #expect(until >= at(50) && until <= at(100))
    #expect(breaker.admit(now: at(1)) == .refused(retryAt: until))
  }

  @Test func anAnswerInBetweenResetsTheCount() throws {
    var breaker = BreakerMachine(seed: 3)
    let ticket = try ticket(&breaker, at(0))
    for _ in 0..<4 { #expect(breaker.failed(ticket, now: at(0)) == nil) }
    #expect(breaker.answered(ticket, latency: 1, now: at(0)) == nil)
    for _ in 0..<4 { #expect(breaker.failed(ticket, now: at(0)) == nil) }
    #expect(breaker.state == .closed)
  }

  @Test func anOldUnansweredCommandOpensIt() {
    var breaker = BreakerMachine(seed: 3)
    #expect(breaker.observed(oldestUnansweredSince: nil, now: at(500)) == nil)
    #expect(breaker.observed(oldestUnansweredSince: at(400), now: at(500)) == nil)
    guard
      case .opened(.unanswered, _)? = breaker.observed(
        oldestUnansweredSince: at(399), now: at(500))
    else {
      Issue.record("not opened")
      return
    }
    #expect(breaker.observed(oldestUnansweredSince: at(399), now: at(501)) == nil)
  }

  @Test func aShareOfSlowAnswersOpensIt() throws {
    var breaker = BreakerMachine(seed: 3)
    let ticket = try ticket(&breaker, at(0))
    for _ in 0..<10 {
      #expect(breaker.answered(ticket, latency: Self.millisecond, now: at(10)) == nil)
    }
    for _ in 0..<10 {
      #expect(breaker.answered(ticket, latency: 21 * Self.millisecond, now: at(20)) == nil)
    }
    guard
      case .opened(.slow, _)? = breaker.answered(
        ticket, latency: 21 * Self.millisecond, now: at(30))
    else {
      Issue.record("not opened")
      return
    }
  }

  @Test func slowAnswersLeaveTheWindow() throws {
    var breaker = BreakerMachine(seed: 3)
    let ticket = try ticket(&breaker, at(0))
    for round in 0..<10 {
      for _ in 0..<15 {
        let now = at(Int64(round) * 1200)
        #expect(breaker.answered(ticket, latency: 30 * Self.millisecond, now: now) == nil)
      }
    }
    #expect(breaker.state == .closed)
  }

  @Test func fewAnswersDoNotOpenIt() throws {
    var breaker = BreakerMachine(seed: 3)
    let ticket = try ticket(&breaker, at(0))
    for _ in 0..<19 {
      #expect(breaker.answered(ticket, latency: 30 * Self.millisecond, now: at(1)) == nil)
    }
    #expect(breaker.state == .closed)
  }

  @Test func oneProbeAtATimeThenItCloses() throws {
    var (breaker, until) = try opened()
    for round in 1...3 {
      let probe = try ticket(&breaker, until)
      #expect(probe.isProbe)
      #expect(isRefused(&breaker, until))
      let transition = breaker.answered(probe, latency: 1, now: until)
      #expect(transition == (round == 3 ? .closed : nil))
    }
    #expect(breaker.state == .closed)
    #expect(try !ticket(&breaker, until).isProbe)
  }

  @Test func aFailedOrSlowProbeOpensItForLonger() throws {
    for slow in [false, true] {
      var (breaker, until) = try opened()
      for round in 1...8 {
        let probe = try ticket(&breaker, until)
        let transition =
          slow
          ? breaker.answered(probe, latency: 30 * Self.millisecond, now: until)
          : breaker.failed(probe, now: until)
        guard case .opened(.probeFailed, let next)? = transition else {
          Issue.record("not re-opened")
          return
        }
        let ceiling = min(100 << Int64(round), 5000) * Self.millisecond
        #expect(next - until >= ceiling / 2 && next - until <= ceiling)
        until = next
      }
    }
  }

  @Test func outcomesOfEarlierCallsDoNotCount() throws {
    var breaker = BreakerMachine(seed: 3)
    let old = try ticket(&breaker, at(0))
    for _ in 0..<5 { _ = breaker.failed(old, now: at(0)) }
    let probe = try ticket(&breaker, at(100))
    #expect(breaker.failed(old, now: at(101)) == nil)
    #expect(breaker.answered(old, latency: 1, now: at(101)) == nil)
    #expect(breaker.state == .halfOpen(probeSince: at(100), successes: 0))
    _ = breaker.answered(probe, latency: 1, now: at(102))
    #expect(breaker.state == .halfOpen(probeSince: nil, successes: 1))
  }

  @Test func aLostProbeIsGivenUp() throws {
    var (breaker, _) = try opened()
    let lost = try ticket(&breaker, at(100))
    #expect(breaker.admit(now: at(2099)) == .refused(retryAt: at(2100)))
    let second = try ticket(&breaker, at(2100))
    #expect(second.isProbe)
    #expect(breaker.failed(lost, now: at(2101)) == nil)
    #expect(breaker.state == .halfOpen(probeSince: at(2100), successes: 0))
  }

  @Test func seedsSpreadTheCoolDown() throws {
    var ends: Set<MonotonicTime> = []
    for seed: UInt64 in 0..<20 {
      var breaker = BreakerMachine(seed: seed)
      let ticket = try ticket(&breaker, at(0))
      for _ in 0..<5 {
        if case .opened(_, let until)? = breaker.failed(ticket, now: at(0)) { ends.insert(until) }
      }
    }
    #expect(ends.count > 15)
  }
}
