// Connections in the client machine: who is dialled when, and what is known when nobody answers.

import Testing
import TollgateTesting
import TollgateWire

@testable import TollgateClient

@Suite(.blocking) struct LinkTranscripts {
  private let goAway = GoAway(code: .draining, graceMilliseconds: 100, message: "")

  @Test func endpointsAreTriedInOrderThenThereIsAPause() {
    var t = Transcript { $0.endpoints = 3 }
    #expect(t.start() == [.connect(1, endpoint: 0)])
    #expect(t.close(1) == [.connect(2, endpoint: 1)])
    #expect(t.close(2) == [.connect(3, endpoint: 2)])
    #expect(t.close(3).isEmpty)
    #expect(t.machine.isDown)
    #expect(t.pass(25).dialled == [0])
  }

  @Test func pausesGrowToTheirLimit() {
    var t = Transcript {
      $0.reconnect = Pause(first: 10_000_000, longest: 80_000_000)
      $0.connectTimeout = 1_000_000
    }
    _ = t.start()
    var gaps: [Int64] = []
    for id in 1...8 {
      _ = t.close(UInt64(id))
      let before = t.now.monotonic
      gaps.append(((t.machine.nextWake ?? before) - before) / 1_000_000)
      var dialled = false
      while !dialled { dialled = !t.pass(1).dialled.isEmpty }
    }
    for (gap, ceiling) in zip(gaps, [10, 20, 40, 80, 80, 80, 80, 80] as [Int64]) {
      #expect(gap >= ceiling / 2 - 1 && gap <= ceiling, "\(gaps)")
    }
  }

  @Test func aGoodLinkThatEndsIsDialledAgainAtOnceAtTheSamePlace() {
    var t = Transcript.open(makeWelcome()) { $0.endpoints = 2 }
    _ = t.submit(1)
    _ = t.answer(1, calls(1), allowed())
    #expect(t.close(1) == [.connect(2, endpoint: 0)])
    #expect(t.close(2) == [.connect(3, endpoint: 1)])
    #expect(t.welcome(3).contains(.ready))
  }

  @Test func aSidecarThatHangsUpOnEveryoneIsNotStormed() {
    var t = Transcript.open()
    #expect(t.close(1).isEmpty)
    #expect(t.pass(25).dialled == [0])
  }

  @Test func aConnectThatTakesTooLongIsGivenUp() {
    var t = Transcript { $0.endpoints = 2 }
    _ = t.start()
    #expect(t.pass(1000) == [.close(1)])
    #expect(t.close(1) == [.connect(2, endpoint: 1)])
  }

  @Test func aWelcomeOfAConnectionThatWasGivenUpIsIgnored() {
    var t = Transcript()
    _ = t.start()
    _ = t.close(1)
    #expect(t.welcome(1).isEmpty)
    #expect(t.machine.openLink == nil)
  }

  @Test func goAwayMovesNewCallsAndKeepsOldAnswers() {
    var t = Transcript.open(makeWelcome()) { $0.endpoints = 2 }
    _ = t.submit(1)
    _ = t.pass(500)
    _ = t.answer(1, calls(1), allowed())
    _ = t.submit(2)
    t.machine.wentAway(1, goAway, t.now)
    #expect(t.effects() == [.connect(2, endpoint: 1)])
    #expect(t.submit(3).isEmpty)
    #expect(t.welcome(2).sent.map(\.shipment) == [calls(3)])
    #expect(t.answer(1, calls(2), allowed()) == [.complete(2, .success(decision())), .close(1)])
    #expect(t.close(1).isEmpty)
    #expect(t.machine.openLink == 2)
  }

  @Test func anIdleGoodbyeIsNoReasonToGoElsewhere() {
    var t = Transcript.open(makeWelcome()) { $0.endpoints = 2 }
    _ = t.pass(2000)
    t.machine.wentAway(1, GoAway(code: .idleTimeout, graceMilliseconds: 0, message: ""), t.now)
    #expect(t.effects() == [.close(1), .connect(2, endpoint: 0)])
  }

  @Test func lingeringConnectionsAreBounded() {
    var t = Transcript.open()
    for id in 1...5 {
      _ = t.submit(UInt64(id))
      _ = t.pass(1000 / 5)
      t.machine.connections[UInt64(id)]?.hasAnswered = true
      t.machine.wentAway(UInt64(id), goAway, t.now)
      let effects = t.effects()
      #expect(effects.contains(.close(1)) == (id == 5))
      _ = t.welcome(UInt64(id) + 1)
    }
  }

  @Test func waitingCallsAreAnsweredByPolicyOnceNobodyCanBeReached() {
    var t = Transcript.open(makeWelcome(["a": .open(allowance: 10)])) { $0.endpoints = 2 }
    _ = t.submit(9)
    _ = t.answer(1, calls(9), allowed())
    _ = t.submit(1)
    #expect(t.close(1, calls(1)) == [.connect(2, endpoint: 0)])
    #expect(t.close(2) == [.connect(3, endpoint: 1)])
    #expect(t.close(3).completed[1]?.reason == .allowedFailOpen)
    // And while it is so, at once.
    #expect(t.submit(2).completed[2]?.reason == .allowedFailOpen)
  }

  @Test func withoutPoliciesCallsWaitForTheirDeadlineAndSayWhy() {
    var t = Transcript()
    _ = t.start()
    _ = t.close(1, trouble: "connection refused")
    #expect(t.submit(1, within: 30).isEmpty)
    #expect(
      t.pass(30).completed == [1: .failure(.notSent(.deadlinePassed("connection refused")))])
  }
}
