// One round of looking things up, whoever asks for it.

import NIOConcurrencyHelpers
import Testing

@testable import TollgateServer

@Suite(.timeLimit(.minutes(1))) struct SharedRoundTests {
  @Test func whoeverAsksMeanwhileAndAMomentLaterSharesIt() async {
    let rounds = NIOLockedValueBox(0)
    let shared = SharedRound { rounds.withLockedValue { $0 += 1 } }
    let clock = ContinuousClock()
    let start = clock.now
    for _ in 0..<1_000 { await shared.done() }
    let took = clock.now - start
    // Each is good for so long; one more for where it began.
    #expect(rounds.withLockedValue { $0 } <= Int(took / .milliseconds(100)) + 1)
    #expect(rounds.withLockedValue { $0 } >= 1)
  }

  @Test func nobodyWaitsForOneThatStandsStill() async {
    let (hold, release) = AsyncStream.makeStream(of: Void.self)
    let rounds = NIOLockedValueBox(0)
    let shared = SharedRound {
      rounds.withLockedValue { $0 += 1 }
      for await _ in hold {}
    }
    for _ in 0..<100 { await shared.done() }
    #expect(rounds.withLockedValue { $0 } == 1)
    release.finish()
  }
}
