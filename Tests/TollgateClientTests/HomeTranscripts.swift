// Operations of scope `sidecar`: while it is possible that one was applied, nobody but the sidecar
// that had it first is asked, and nobody else answers.

import Testing
import TollgateTesting
import TollgateWire

@testable import TollgateClient

@Suite(.blocking) struct HomeTranscripts {
  private static func welcome(
    _ sidecar: String, _ policies: [String: FailurePolicy] = [:], scoped: [String] = ["a"]
  ) -> Welcome {
    var welcome = makeWelcome(policies)
    welcome.sidecar = name(sidecar)
    welcome.sidecarFeatures = scoped.map(name)
    return welcome
  }

  /// Call 1 was sent to `s0`, whose connection is lost; the link is with `s1` now, on connection 3.
  private static func movedAway(
    _ policies: [String: FailurePolicy] = [:], scoped: [String] = ["a"], within: Int64 = 1000
  ) -> (Transcript, [ClientMachine.Effect]) {
    var t = Transcript.open(welcome("s0", policies, scoped: scoped)) { $0.endpoints = 2 }
    _ = t.pass(2000)
    #expect(t.submit(1, within: within).sent.map(\.shipment) == [calls(1)])
    #expect(t.close(1, calls(1)) == [.connect(2, endpoint: 0)])
    #expect(t.close(2) == [.connect(3, endpoint: 1)])
    let effects = t.welcome(3, welcome("s1", policies, scoped: scoped))
    return (t, effects)
  }

  private func sends(_ effects: [ClientMachine.Effect], over id: UInt64) -> Bool {
    effects.contains { if case .send(id, _) = $0 { true } else { false } }
  }

  @Test func itIsAskedAgainWhereItWasAskedFirst() {
    var (t, effects) = Self.movedAway()
    #expect(effects == [.ready, .connect(4, endpoint: 0)])
    let sent = t.welcome(4, Self.welcome("s0"))
    #expect(sends(sent, over: 4) && sent.sent.map(\.shipment) == [calls(1)])
    // The errand ends with it; the link stays where it is.
    #expect(
      t.answer(4, calls(1), allowed()) == [.complete(1, .success(decision())), .close(4)])
    #expect(t.close(4).isEmpty)
    #expect(t.machine.openLink == 3 && t.machine.waiting.isEmpty)
  }

  @Test func anOperationOfScopeGlobalGoesToWhoeverIsThere() {
    let (_, effects) = Self.movedAway(scoped: [])
    #expect(sends(effects, over: 3))
  }

  @Test func oneItemOfScopeGlobalMakesTheOperationGlobal() {
    var t = Transcript.open(Self.welcome("s0")) { $0.endpoints = 2 }
    _ = t.pass(2000)
    _ = t.submit(1, record(1, item("a"), item("b")))
    _ = t.close(1, calls(1))
    _ = t.close(2)
    #expect(t.welcome(3, Self.welcome("s1")).sent.map(\.shipment) == [calls(1)])
  }

  @Test func aCheckGoesToWhoeverIsThere() {
    var t = Transcript.open(Self.welcome("s0")) { $0.endpoints = 2 }
    _ = t.pass(2000)
    _ = t.submit(1, consumes: false)
    _ = t.close(1, calls(1))
    _ = t.close(2)
    #expect(t.welcome(3, Self.welcome("s1")).sent.map(\.shipment) == [calls(1)])
  }

  @Test func newOnesGoOverTheLinkMeanwhile() {
    var (t, _) = Self.movedAway()
    let sent = t.submit(2)
    #expect(sends(sent, over: 3) && sent.sent.map(\.shipment) == [calls(2)])
  }

  @Test func aBatchIsPartedWhereOnlySomeOfItIsInDoubt() {
    var t = Transcript.open(Self.welcome("s0")) {
      $0.endpoints = 2
      $0.inFlightMax = 1
    }
    _ = t.pass(2000)
    #expect(t.submit(1, group: 9).sent.map(\.shipment) == [calls(1)])
    // Of the same group, and not sent yet.
    #expect(t.submit(2, group: 9).isEmpty)
    _ = t.close(1, calls(1))
    _ = t.close(2)
    let sent = t.welcome(3, Self.welcome("s1"))
    #expect(sends(sent, over: 3) && sent.sent.map(\.shipment) == [calls(2)])
  }

  @Test func itsHomeIsTriedUntilTheDeadlineAndThenTheOutcomeIsUnknown() {
    var (t, _) = Self.movedAway(within: 500)
    var dials = 0
    var completed = t.close(4).completed
    for _ in 0..<600 {
      let effects = t.pass(1)
      #expect(!sends(effects, over: 3))
      dials += effects.dialled.count { $0 == 0 }
      completed.merge(effects.completed) { $1 }
      for case .connect(let id, _) in effects { completed.merge(t.close(id).completed) { $1 } }
    }
    #expect(dials > 2)
    #expect(completed == [1: .failure(.outcomeUnknown(operation(1)))])
    #expect(t.machine.waiting.isEmpty)
  }

  @Test func theIdKeepsItsHomeForALaterCall() {
    var (t, _) = Self.movedAway(within: 50)
    _ = t.close(4)
    #expect(t.pass(200).completed[1]?.error == .outcomeUnknown(operation(1)))
    // Asked again by the caller: not of the one who does not know.
    let effects = t.submit(2, record(1))
    #expect(effects == [])
    let id = t.machine.lastConnection
    #expect(t.machine.connections[id]?.endpoint == 0)
    #expect(t.welcome(id, Self.welcome("s0")).sent.map(\.shipment) == [calls(2)])
    #expect(t.answer(id, calls(2), allowed()).completed[2]?.reason == .allowed)
    // Settled: it is an operation like any other.
    #expect(t.machine.doubtful.home(of: operation(1)) == nil)
  }

  @Test func anotherSidecarAtItsAddressIsNotAsked() {
    var (t, _) = Self.movedAway()
    #expect(t.welcome(4, Self.welcome("s9")) == [.close(4)])
    _ = t.close(4)
    #expect(t.pass(2000).completed[1]?.error == .outcomeUnknown(operation(1)))
  }

  @Test func whenTheLinkComesHomeItGoesThatWay() {
    var (t, _) = Self.movedAway(within: 5000)
    _ = t.close(4)
    t.machine.wentAway(3, GoAway(code: .draining, graceMilliseconds: 100, message: ""), t.now)
    _ = t.effects() + t.close(3) + t.pass(100)
    #expect(t.machine.connections.values.allSatisfy { $0.endpoint == 0 })
    var sent: [ClientMachine.Outgoing] = []
    for id in t.machine.connections.keys.sorted() {
      sent += t.welcome(id, Self.welcome("s0")).sent
    }
    #expect(sent.map(\.shipment) == [calls(1)])
    #expect(t.machine.waiting.isEmpty)
  }

  @Test func whatWasNotAppliedMayGoElsewhere() {
    var t = Transcript.open(Self.welcome("s0")) { $0.endpoints = 2 }
    _ = t.pass(2000)
    _ = t.submit(1)
    // It refuses, and goes away.
    _ = t.answer(1, calls(1), refusal(.draining))
    t.machine.wentAway(1, GoAway(code: .draining, graceMilliseconds: 100, message: ""), t.now)
    _ = t.effects()
    _ = t.welcome(2, Self.welcome("s1"))
    #expect(t.pass(300).sent.map(\.shipment) == [calls(1)])
  }

  @Test func noPolicyAnswersForIt() {
    let policies: [String: FailurePolicy] = ["a": .open(allowance: 10)]
    var t = Transcript.open(Self.welcome("s0", policies)) { $0.endpoints = 2 }
    _ = t.pass(2000)
    _ = t.submit(1, within: 100)
    _ = t.close(1, calls(1))
    _ = t.close(2)
    #expect(t.close(3).completed == [:])
    #expect(t.machine.isDown)
    // One that never left is let through, and posted later wherever that is.
    #expect(t.submit(2).completed[2]?.reason == .allowedFailOpen)
    #expect(t.pass(200).completed[1]?.error == .outcomeUnknown(operation(1)))
    #expect(t.machine.book.posts.count == 1 && t.machine.book.cancels.isEmpty)
  }

  @Test func whatIsUnansweredAtItsDeadlineIsNotCancelledElsewhere() {
    var t = Transcript.open(Self.welcome("s0", ["a": .closed])) { $0.endpoints = 2 }
    _ = t.submit(1, within: 100)
    #expect(t.pass(200).completed[1]?.error == .outcomeUnknown(operation(1)))
    #expect(t.machine.book.cancels.isEmpty)
  }

  @Test func withOneEndpointThereIsNoElsewhere() {
    var t = Transcript.open(Self.welcome("s0", ["a": .closed]))
    _ = t.submit(1, within: 100)
    #expect(t.pass(200).completed[1]?.reason == .storeUnavailable)
    #expect(t.machine.book.cancels.count == 1)
  }

  @Test func whatTheCatalogSaysLaterChangesNothingOfWhatWasSent() {
    var t = Transcript.open(Self.welcome("s0")) { $0.endpoints = 2 }
    _ = t.pass(2000)
    _ = t.submit(1)
    t.machine.policiesChanged(Self.welcome("s0", scoped: ["b"]))
    _ = t.close(1, calls(1))
    _ = t.close(2)
    let effects = t.welcome(3, Self.welcome("s1", scoped: ["b"]))
    #expect(!sends(effects, over: 3) && effects.dialled == [0])
  }

  /// The link's sidecar heard of the catalog first.
  @Test func whatIsToldMeanwhileHoldsForItsRetry() {
    var t = Transcript.open(Self.welcome("s0", scoped: [])) { $0.endpoints = 2 }
    _ = t.pass(2000)
    _ = t.submit(1)
    _ = t.close(1, calls(1))
    _ = t.close(2)
    #expect(t.welcome(3, Self.welcome("s1")).dialled == [0])
  }

  @Test func anErrandIsNotKeptForCallersWhoLeft() {
    var (t, _) = Self.movedAway()
    t.machine.cancel(1)
    #expect(t.effects().completed[1]?.error == .outcomeUnknown(operation(1)))
    #expect(t.welcome(4, Self.welcome("s0")) == [.close(4)])
    #expect(t.close(4).isEmpty && t.machine.waiting.isEmpty)
  }
}
