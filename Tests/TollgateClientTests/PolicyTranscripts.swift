// What the client answers when no sidecar does, and how it pays back.

import Testing
import TollgateTesting
import TollgateWire

@testable import TollgateClient

/// Welcomed with these policies, then cut off from its only sidecar.
private func cutOff(
  _ policies: [String: FailurePolicy],
  _ change: (inout ClientMachine.Settings) -> Void = { _ in }
) -> Transcript {
  var t = Transcript.open(makeWelcome(policies), change)
  _ = t.close(1)
  _ = t.pass(25)
  _ = t.close(2)
  #expect(t.machine.isDown)
  return t
}

@Suite(.blocking) struct PolicyTranscripts {
  @Test func openAllowsWithinItsAllowanceAndSaysSo() {
    var t = cutOff(["a": .open(allowance: 3)])
    let first = t.submit(1, record(1, item("a", 2))).completed[1]
    #expect(first?.reason == .allowedFailOpen)
    #expect(first?.source == .clientFallback)
    #expect(t.submit(2, record(2, item("a", 2))).completed[2]?.reason == .fallbackExhausted)
    #expect(t.submit(3, record(3, item("a", 1))).completed[3]?.reason == .allowedFailOpen)
    #expect(t.machine.book.posts.count == 2)
  }

  @Test(arguments: [FailurePolicy.closed, .stale])
  func closedAndStaleDeny(policy: FailurePolicy) {
    var t = cutOff(["a": policy])
    let answer = t.submit(1).completed[1]
    #expect(answer?.reason == .storeUnavailable)
    #expect(answer?.source == .clientFallback)
  }

  @Test func aFeatureThatIsNotListedIsClosed() {
    var t = cutOff(["b": .open(allowance: 3)])
    #expect(t.submit(1).completed[1]?.reason == .storeUnavailable)
  }

  /// It has restarted and holds no configuration yet; until it does, its predecessor's word holds.
  @Test func aWelcomeWithoutConfigurationDoesNotForgetThePolicies() {
    var t = Transcript.open(makeWelcome(["a": .open(allowance: 3)]))
    var empty = makeWelcome()
    empty.globalVersion = 0
    t.machine.policiesChanged(empty)
    _ = t.close(1)
    _ = t.pass(25)
    _ = t.close(2)
    #expect(t.submit(1).completed[1]?.reason == .allowedFailOpen)
  }

  /// Its caller walked away while it was in flight, and asks again when no sidecar is there: the
  /// denial must not leave behind what the first attempt may have counted.
  @Test func aDeniedRetryOfAnUnknownOutcomeIsTakenBack() {
    var t = Transcript.open(makeWelcome(["a": .closed]))
    _ = t.submit(1, record(7))
    t.machine.cancel(1)
    #expect(t.effects().completed[1]?.error == .outcomeUnknown(operation(7)))
    _ = t.close(1)
    _ = t.pass(25)
    _ = t.close(2)
    #expect(t.submit(2, record(7)).completed[2]?.reason == .storeUnavailable)
    #expect(t.machine.book.cancels.records.map(\.id) == [operation(7)])
  }

  @Test func everyFeatureOfTheRequestMustBeOpen() {
    var t = cutOff(["a": .open(allowance: 3), "b": .closed])
    #expect(
      t.submit(1, record(1, item("a"), item("b"))).completed[1]?.reason == .storeUnavailable)
    // The denial used nothing of the allowance.
    #expect(t.submit(2, record(2, item("a", 3))).completed[2]?.reason == .allowedFailOpen)
  }

  @Test func theAllowanceIsPerAccountAndFeature() {
    var t = cutOff(["a": .open(allowance: 1), "b": .open(allowance: 1)])
    #expect(t.submit(1, record(1, subject: "acme/ada")).completed[1]?.reason == .allowedFailOpen)
    #expect(t.submit(2, record(2, subject: "acme/bob")).completed[2]?.reason == .fallbackExhausted)
    #expect(t.submit(3, record(3, subject: "zoo")).completed[3]?.reason == .allowedFailOpen)
    #expect(t.submit(4, record(4, item("b"))).completed[4]?.reason == .allowedFailOpen)
  }

  @Test func aCheckUsesNoAllowanceAndOwesNothing() {
    var t = cutOff(["a": .open(allowance: 1)])
    for token in 1...3 {
      #expect(
        t.submit(UInt64(token), consumes: false).completed[UInt64(token)]?.reason
          == .allowedFailOpen)
    }
    #expect(t.machine.book.posts.isEmpty)
    #expect(
      t.submit(4, consumes: false, record(4, item("a", 2))).completed[4]?.reason
        == .fallbackExhausted)
  }

  @Test func withoutRoomToRememberNothingIsLetThrough() {
    var t = cutOff(["a": .open(allowance: 100)]) { $0.unpostedMax = 2 }
    _ = t.submit(1)
    _ = t.submit(2)
    #expect(t.submit(3).completed[3]?.reason == .fallbackExhausted)
    #expect(t.machine.book.posts.count == 2)
  }

  @Test func anUnansweredDeadlineIsSettledByPolicyToo() {
    var t = Transcript.open(makeWelcome(["a": .open(allowance: 1)]))
    _ = t.submit(1, within: 10)
    let end = t.pass(10)
    #expect(end.completed[1]?.reason == .allowedFailOpen)
    // The connection lives: the post goes out at once, under the same id.
    #expect(end.sent.map(\.opcode) == [.post])
    #expect(end.sent.first?.flags == .clientFallback)
    #expect(end.sent.first?.records == [record(1)])
  }

  @Test func policiesCanBeSwitchedOff() {
    var t = Transcript.open(makeWelcome(["a": .open(allowance: 1)])) {
      $0.appliesFailurePolicies = false
    }
    _ = t.submit(1, within: 10)
    #expect(t.pass(10).completed == [1: .failure(.outcomeUnknown(operation(1)))])
  }

  @Test func policiesAreReplacedByALaterWelcome() {
    var t = cutOff(["a": .open(allowance: 1)])
    t.machine.policiesChanged(makeWelcome(["a": .closed]))
    #expect(t.submit(1).completed[1]?.reason == .storeUnavailable)
  }

  @Test func theSameIdGetsTheSameAnswer() {
    var t = cutOff(["a": .open(allowance: 5)])
    _ = t.submit(1, record(7, item("a", 3)))
    guard case .success(let again)? = t.submit(2, record(7, item("a", 3))).completed[2] else {
      Issue.record("no decision")
      return
    }
    #expect(again.reason == .allowedFailOpen)
    #expect(again.replayed)
    guard
      case .rejected(.idempotencyMismatch, _)? = t.submit(3, record(7, item("a", 2)))
        .completed[3]?.error
    else {
      Issue.record("another body was taken")
      return
    }
    // Used once: 2 of 5 are left.
    #expect(t.submit(4, record(8, item("a", 2))).completed[4]?.reason == .allowedFailOpen)
  }

  // MARK: posting

  @Test func whatWasLetThroughIsPostedUnderTheSameIdsUntilAcknowledged() {
    var t = cutOff(["a": .open(allowance: 5)])
    _ = t.submit(1)
    _ = t.submit(2)
    _ = t.pass(50)
    let sent = t.welcome(t.machine.lastConnection, makeWelcome(["a": .open(allowance: 5)])).sent
    #expect(sent.map(\.opcode) == [.post])
    #expect(sent.first?.flags == .clientFallback)
    #expect(sent.first?.records == [record(1), record(2)])
    guard let shipment = sent.first?.shipment else { return }
    let id = t.machine.lastConnection
    let half = t.answer(id, shipment, .decision(decision(.allowedPosted)), refusal(.overloaded))
    #expect(half.isEmpty)
    #expect(t.machine.book.posts.records == [record(2)])
    let again = t.pass(50).sent
    #expect(again.map(\.records) == [[record(2)]])
    _ = t.answer(id, again.shipment, .decision(decision(.allowed)))
    #expect(t.machine.book.posts.isEmpty)
    #expect(t.machine.statistics.posted == 2)
  }

  @Test func aLostPostIsSentAgain() {
    var t = cutOff(["a": .open(allowance: 5)])
    _ = t.submit(1)
    _ = t.pass(50)
    let id = t.machine.lastConnection
    let first = t.welcome(id).sent
    _ = t.close(id, first.shipment)
    _ = t.pass(100)
    let second = t.welcome(t.machine.lastConnection).sent
    #expect(second.map(\.records) == [[record(1)]])
  }

  @Test func aPostWithoutAnswerIsSentAgainOnTheSameConnection() {
    var t = Transcript.open(makeWelcome(["a": .open(allowance: 1)])) {
      $0.owedTimeout = 100_000_000
    }
    _ = t.submit(1, within: 10)
    let first = t.pass(10).sent
    let second = t.pass(100).sent
    #expect(second.map(\.records) == [[record(1)]])
    // The late answer to the first settles it; that to the second finds nothing to settle.
    _ = t.answer(1, first.shipment, .decision(decision(.allowedPosted)))
    _ = t.answer(1, second.shipment, .decision(decision(.allowedPosted)))
    #expect(t.machine.book.posts.isEmpty)
    #expect(t.machine.statistics.posted == 1)
    #expect(t.pass(1000).sent.isEmpty)
  }

  @Test func oneFrameOfPostsIsInFlightAtATime() {
    var t = cutOff(["a": .open(allowance: 5)]) { $0.recordsPerFrameMax = 2 }
    for token in 1...5 { _ = t.submit(UInt64(token)) }
    _ = t.pass(50)
    let id = t.machine.lastConnection
    var sent = t.welcome(id).sent
    var sizes: [Int] = []
    while let frame = sent.first {
      #expect(sent.count == 1)
      sizes.append(frame.records.count)
      let posted = DecisionRecord.decision(decision(.allowedPosted))
      t.machine.answered(
        id, frame.shipment, Array(repeating: posted, count: frame.records.count), t.now)
      sent = t.effects().sent
    }
    #expect(sizes == [2, 2, 1])
  }

  @Test func theAllowanceComesBackOnlyWhenEverythingIsPosted() {
    var t = cutOff(["a": .open(allowance: 1)])
    _ = t.submit(1)
    _ = t.pass(50)
    let id = t.machine.lastConnection
    let post = t.welcome(id, makeWelcome(["a": .open(allowance: 1)])).sent
    // The sidecar flaps: nothing was acknowledged, so the outage goes on.
    _ = t.close(id, post.shipment)
    while !t.machine.isDown { _ = t.pass(10) + t.close(t.machine.lastConnection) }
    #expect(t.submit(2).completed[2]?.reason == .fallbackExhausted)
    var again: [ClientMachine.Effect] = []
    while again.dialled.isEmpty { again = t.pass(10) }
    let next = t.machine.lastConnection
    let sent = t.welcome(next).sent
    _ = t.answer(next, sent.shipment, .decision(decision(.allowedPosted)))
    t.machine.policiesChanged(makeWelcome(["a": .open(allowance: 1)]))
    _ = t.submit(3, within: 10)
    #expect(t.pass(10).completed[3]?.reason == .allowedFailOpen)
  }

  @Test func aFinalRefusalIsHandedOverNotDropped() {
    var t = Transcript.open(makeWelcome(["a": .open(allowance: 1)]))
    _ = t.submit(1, within: 10)
    let post = t.pass(10).sent
    #expect(
      t.answer(1, post.shipment, refusal(.idTooOld))
        == [.refusedPost(record(1), "ID_TOO_OLD: no")])
    #expect(t.machine.statistics.postsRefused == 1)
    #expect(t.machine.book.posts.isEmpty)
  }

  @Test(arguments: [Reason.outboxFull, .dedupeFull, .storeUnavailable, .accountFrozen])
  func aDenialThatIsNotRecordedPostponesThePost(reason: Reason) {
    var t = Transcript.open(makeWelcome(["a": .open(allowance: 1)]))
    _ = t.submit(1, within: 10)
    let post = t.pass(10).sent
    #expect(t.answer(1, post.shipment, .decision(decision(reason))).isEmpty)
    #expect(t.pass(30).sent.map(\.records) == [[record(1)]])
  }

  // MARK: taking back

  @Test func whatMayHaveBeenAppliedAndIsDeniedIsTakenBack() {
    var t = Transcript.open(makeWelcome(["a": .closed]))
    _ = t.submit(1, within: 10)
    let end = t.pass(10)
    #expect(end.completed[1]?.reason == .storeUnavailable)
    #expect(end.sent.map(\.opcode) == [.cancel])
    #expect(end.sent.first?.flags == [])
    #expect(end.sent.first?.records == [record(1)])
    // The original answer comes late, then the cancellation's.
    #expect(t.answer(1, calls(1), allowed()).isEmpty)
    _ = t.answer(1, end.sent.shipment, .decision(decision(.cancelled)))
    #expect(t.machine.book.cancels.isEmpty)
    #expect(t.machine.statistics.cancelled == 1)
  }

  @Test func whatMayHaveBeenAppliedAndIsAllowedIsPostedNotTakenBack() {
    var t = Transcript.open(makeWelcome(["a": .open(allowance: 1)]))
    _ = t.submit(1, within: 10)
    #expect(t.pass(10).sent.map(\.opcode) == [.post])
    #expect(t.machine.book.cancels.isEmpty)
  }

  @Test func whatWasNeverSentIsNotTakenBack() {
    var t = cutOff(["a": .closed])
    _ = t.submit(1)
    #expect(t.machine.book.cancels.isEmpty)
  }

  @Test func aCancellationIsRepeatedUntilAcknowledged() {
    var t = Transcript.open(makeWelcome(["a": .closed]))
    _ = t.submit(1, within: 10)
    let first = t.pass(10).sent
    _ = t.close(1, calls(1), first.shipment)
    _ = t.pass(50)
    let second = t.welcome(t.machine.lastConnection).sent
    #expect(second.map(\.opcode) == [.cancel])
    #expect(second.first?.records == [record(1)])
  }

  @Test func anOperationBeingTakenBackIsNotAskedAgain() {
    var t = Transcript.open(makeWelcome(["a": .closed]))
    _ = t.submit(1, within: 10)
    _ = t.pass(10)
    let again = t.submit(2, record(1))
    #expect(again.sent.isEmpty)
    #expect(again.completed[2]?.reason == .cancelled)
  }

  @Test func withoutRoomToRememberTheOutcomeIsCalledUnknown() {
    var t = Transcript.open(makeWelcome(["a": .closed])) { $0.uncancelledMax = 1 }
    _ = t.submit(1, within: 10)
    _ = t.submit(2, within: 10)
    let end = t.pass(10)
    #expect(end.completed[1]?.reason == .storeUnavailable)
    #expect(end.completed[2] == .failure(.outcomeUnknown(operation(2))))
  }

  // MARK: handing over

  @Test func whatIsOwedKeepsAStoppingClientAtWork() {
    var t = Transcript.open(makeWelcome(["a": .open(allowance: 1)]))
    _ = t.submit(1, within: 10)
    let post = t.pass(10).sent
    t.machine.stop(t.now)
    #expect(t.effects().isEmpty)
    #expect(
      t.answer(1, post.shipment, .decision(decision(.allowedPosted))) == [.close(1), .idle])
  }

  @Test func adoptedWorkIsPaidBack() {
    var t = Transcript.open()
    t.machine.adopt([record(1)], [record(2)])
    #expect(t.effects().sent.map(\.opcode) == [.post, .cancel])
  }
}
