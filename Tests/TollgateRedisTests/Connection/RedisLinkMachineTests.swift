// Reconnecting, as transcripts.

import Testing
import TollgateRedis
import TollgateTesting

@Suite(.blocking) struct RedisLinkMachineTests {
  private func machine() -> RedisLinkMachine {
    RedisLinkMachine(backoff: Backoff(initial: 100, max: 1000), seed: 5)
  }

  private func delay(_ action: RedisLinkMachine.Action) -> Int64? {
    if case .wait(let nanoseconds) = action { return nanoseconds }
    return nil
  }

  @Test func failedAttemptsWaitLongerUpToTheCap() throws {
    var machine = machine()
    #expect(machine.started() == .connect)
    for ceiling: Int64 in [100, 200, 400, 800, 1000, 1000, 1000] {
      let waited = try #require(delay(machine.lost()))
      #expect((ceiling / 2...ceiling).contains(waited))
      #expect(machine.waited() == .connect)
    }
  }

  @Test func successResetsTheBackoff() throws {
    var machine = machine()
    _ = machine.started()
    for _ in 0..<5 {
      _ = machine.lost()
      _ = machine.waited()
    }
    machine.becameReady()
    #expect(machine.state == .connected)
    #expect(try #require(delay(machine.lost())) <= 100)
  }

  @Test func stopIsFinalFromEveryState() {
    var idle = machine()
    #expect(idle.stopRequested() == .none)
    #expect(idle.started() == .none)
    var connecting = machine()
    _ = connecting.started()
    #expect(connecting.stopRequested() == .drain)
    #expect(connecting.lost() == .none)
    var waiting = machine()
    _ = waiting.started()
    _ = waiting.lost()
    #expect(waiting.stopRequested() == .cancelWait)
    #expect(waiting.waited() == .none)
    #expect(waiting.stopRequested() == .none)
    #expect(waiting.state == .stopped)
  }

  @Test func theSameSeedGivesTheSameDelays() {
    var first = Backoff()
    var second = Backoff()
    var a = JitterSource(seed: 9)
    var b = JitterSource(seed: 9)
    for _ in 0..<200 { #expect(first.next(using: &a) == second.next(using: &b)) }
  }

  @Test func anExtremeBackoffDoesNotOverflow() {
    var backoff = Backoff(initial: Int64.max / 2, max: Int64.max)
    var random = JitterSource(seed: 1)
    for _ in 0..<100 { #expect(backoff.next(using: &random) > 0) }
  }
}
