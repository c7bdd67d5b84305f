// The life of a call in the client machine: what is sent when, what is retried, how it ends.

import NIOCore
import Testing
import TollgateTesting
import TollgateWire

@testable import TollgateClient

@Suite(.blocking) struct CallTranscripts {
  @Test func aCallIsSentAndAnswered() {
    var t = Transcript.open()
    #expect(
      t.submit(5) == [
        .send(
          1,
          ClientMachine.Outgoing(
            opcode: .consume, deadlineMilliseconds: 990, records: [record(5)], shipment: calls(5)))
      ])
    #expect(t.answer(1, calls(5), allowed()) == [.complete(5, .success(decision()))])
    #expect(t.machine.calls.isEmpty)
  }

  @Test func aDenialIsADecisionNotAFailure() {
    var t = Transcript.open()
    _ = t.submit(5)
    let denial = decision(.quotaExceeded)
    #expect(t.answer(1, calls(5), .decision(denial)) == [.complete(5, .success(denial))])
    #expect(t.machine.statistics.denied == 1)
  }

  @Test func callsWaitForTheFirstWelcome() {
    var t = Transcript()
    #expect(t.start() == [.connect(1, endpoint: 0)])
    #expect(t.submit(5).isEmpty)
    #expect(t.welcome().sent.map(\.shipment) == [calls(5)])
  }

  @Test func theHeaderDeadlineShrinksWithTheTimeWaited() {
    var t = Transcript()
    _ = t.start()
    _ = t.submit(5, within: 50)
    _ = t.pass(30)
    #expect(t.welcome().sent.map(\.deadlineMilliseconds) == [18])
  }

  @Test(arguments: [(1, 1), (999_999, 1), (2_000_000, 1), (20_000_000, 18), (1_000_000_000, 990)])
  func theHeaderDeadlineLeavesTimeForTheWayBack(remaining: Int64, told: UInt32) {
    #expect(ClientMachine.headerDeadline(remaining) == told)
  }

  @Test func callsOfOneGroupShareAFrame() {
    var t = Transcript()
    _ = t.start()
    for token in 1...3 { _ = t.submit(UInt64(token), group: 1) }
    _ = t.submit(4, consumes: false, group: 1)
    _ = t.submit(5, group: 5)
    #expect(t.welcome().sent.map(\.shipment) == [calls(1, 2, 3), calls(4), calls(5)])
  }

  @Test func aFrameKeepsToTheRecordsAndBytesOfTheWelcome() {
    var t = Transcript()
    _ = t.start()
    for token in 1...5 { _ = t.submit(UInt64(token), group: 1) }
    #expect(
      t.welcome(1, makeWelcome(recordsMax: 2)).sent.map(\.shipment)
        == [calls(1, 2), calls(3, 4), calls(5)])
    var small = Transcript()
    _ = small.start()
    for token in 1...2 { _ = small.submit(UInt64(token), group: 1) }
    #expect(
      small.welcome(1, makeWelcome(frameBytesMax: 80)).sent.map(\.shipment)
        == [calls(1), calls(2)])
  }

  @Test func aRecordThatFitsNoFrameIsRejectedUnsent() {
    var t = Transcript.open(makeWelcome(frameBytesMax: 40))
    let effects = t.submit(1)
    guard case .rejected(.frameTooLarge, _)? = effects.completed[1]?.error else {
      Issue.record("not rejected: \(effects)")
      return
    }
    #expect(effects.sent.isEmpty)
  }

  @Test func theFrameSizeIsAnUpperBoundOfTheEncoding() {
    let records = [
      record(1), record(2, item("a"), item("tokens.total", Quantity.maximum)),
      Record(
        id: operation(3), subject: subject("a/b/c/d/e"), items: [item("x")],
        attributes: ["model": "m", "region": String(repeating: "r", count: 128)],
        traceParent: String(repeating: "t", count: 55)),
    ]
    for record in records {
      var buffer = ByteBuffer()
      buffer.writeFrame(.consume, OperationBatch([record]), correlation: 1)
      #expect(buffer.readableBytes <= record.frameBytes + ClientMachine.frameOverhead)
      #expect(buffer.readableBytes + 8 >= record.frameBytes + ClientMachine.frameOverhead)
    }
  }

  @Test func whatASidecarWouldRefuseIsRejectedUnsent() {
    var t = Transcript.open()
    let twice = t.submit(1, record(1, item("a"), item("a")))
    #expect(twice.sent.isEmpty)
    guard case .rejected(.duplicateItem, _)? = twice.completed[1]?.error else {
      Issue.record("not rejected: \(twice)")
      return
    }
    guard
      case .rejected(.amountOutOfRange, _)? = t.submit(2, record(2, item("a", -1)))
        .completed[2]?.error
    else {
      Issue.record("a negative amount was taken")
      return
    }
  }

  @Test func inFlightFramesAreBoundedByBothSides() {
    var t = Transcript.open(makeWelcome(inFlightMax: 2))
    #expect(t.submit(1).sent.count == 1)
    #expect(t.submit(2).sent.count == 1)
    #expect(t.submit(3).isEmpty)
    #expect(t.answer(1, calls(2), allowed()).sent.map(\.shipment) == [calls(3)])
    var u = Transcript.open(makeWelcome(inFlightMax: 100)) { $0.inFlightMax = 1 }
    _ = u.submit(1)
    #expect(u.submit(2).isEmpty)
  }

  @Test func nothingIsSentWhileTheSocketTakesNothing() {
    var t = Transcript.open()
    t.machine.writabilityChanged(1, false)
    #expect(t.submit(1).isEmpty)
    t.machine.writabilityChanged(1, true)
    #expect(t.effects().sent.map(\.shipment) == [calls(1)])
  }

  // MARK: refusals

  @Test(arguments: [ErrorCode.overloaded, .draining, .notReady, .unavailable])
  func whatWasNotAppliedIsSentAgainAfterAPause(code: ErrorCode) {
    var t = Transcript.open()
    _ = t.submit(1)
    #expect(t.answer(1, calls(1), refusal(code)).isEmpty)
    let again = t.pass(10)
    #expect(again.sent.map(\.records) == [[record(1)]])
    #expect(t.answer(1, calls(1), allowed()).completed[1]?.reason == .allowed)
    #expect(t.machine.statistics.retries == 1)
  }

  @Test func aPauseThatWouldOutlastTheDeadlineEndsTheCall() {
    var t = Transcript.open { $0.retry = Pause(first: 100_000_000, longest: 100_000_000) }
    _ = t.submit(1, within: 40)
    #expect(
      t.answer(1, calls(1), refusal(.overloaded))
        == [.complete(1, .failure(.rejected(.overloaded, message: "no")))])
  }

  @Test(
    arguments: ErrorCode.allCases.filter { Verdict($0) == .final })
  func whatAskingAgainCannotMendIsRejectedAtOnce(code: ErrorCode) {
    var t = Transcript.open()
    _ = t.submit(1)
    #expect(
      t.answer(1, calls(1), refusal(code))
        == [.complete(1, .failure(.rejected(code, message: "no")))])
  }

  @Test(arguments: [ErrorCode.outcomeUnknown, .internalError])
  func anUnknownOutcomeIsRetriedUnderTheSameIdAndSaidAtTheEnd(code: ErrorCode) {
    var t = Transcript.open(makeWelcome()) { $0.appliesFailurePolicies = false }
    _ = t.submit(1, within: 20)
    _ = t.answer(1, calls(1), refusal(code))
    let again = t.pass(5)
    #expect(again.sent.flatMap(\.records).map(\.id) == [operation(1)])
    #expect(t.pass(20).completed == [1: .failure(.outcomeUnknown(operation(1)))])
  }

  @Test func aLaterRefusalDoesNotMakeAnUnknownOutcomeKnown() {
    var t = Transcript.open()
    _ = t.submit(1)
    _ = t.answer(1, calls(1), refusal(.outcomeUnknown))
    _ = t.pass(10)
    #expect(
      t.answer(1, calls(1), refusal(.forbidden))
        == [.complete(1, .failure(.outcomeUnknown(operation(1))))])
  }

  @Test func aCheckHasNoUnknownOutcome() {
    var t = Transcript.open { $0.appliesFailurePolicies = false }
    _ = t.submit(1, consumes: false, within: 20)
    let end = t.pass(20)
    #expect(end.completed == [1: .failure(.notSent(.deadlinePassed("")))])
  }

  @Test func aRefusedFrameRefusesEachOfItsCalls() {
    var t = Transcript.open()
    t.machine.writabilityChanged(1, false)
    _ = t.submit(1, group: 1)
    _ = t.submit(2, group: 1)
    t.machine.writabilityChanged(1, true)
    #expect(t.effects().sent.map(\.shipment) == [calls(1, 2)])
    t.machine.refused(1, calls(1, 2), ErrorReply(code: .badRequest, message: "no"), t.now)
    #expect(
      t.effects() == [
        .complete(1, .failure(.rejected(.badRequest, message: "no"))),
        .complete(2, .failure(.rejected(.badRequest, message: "no"))),
      ])
  }

  // MARK: lost connections

  @Test func whatWasInFlightIsSentAgainFirstUnderTheSameId() {
    var t = Transcript.open(makeWelcome(inFlightMax: 1))
    _ = t.submit(9)
    _ = t.answer(1, calls(9), allowed())
    _ = t.submit(1)
    _ = t.submit(2)
    #expect(t.close(1, calls(1)) == [.connect(2, endpoint: 0)])
    let welcome = t.welcome(2, makeWelcome())
    #expect(welcome.sent.map(\.shipment) == [calls(1), calls(2)])
    #expect(welcome.sent.first?.records == [record(1)])
  }

  @Test func anOperationOlderThanTheDedupeWindowIsNotRetried() {
    var t = Transcript.open { $0.dedupeWindow = 500 }
    _ = t.pass(600)
    _ = t.submit(1)
    #expect(
      t.close(1, calls(1)).completed == [1: .failure(.outcomeUnknown(operation(1)))])
  }

  /// "Not sent" would say that it may be made again under another id.
  @Test func anOperationOfUnknownOutcomeStaysUnknownWhenItsRetryIsNotSent() {
    var t = Transcript.open { $0.appliesFailurePolicies = false }
    _ = t.submit(1, record(7))
    t.machine.cancel(1)
    #expect(t.effects().completed[1]?.error == .outcomeUnknown(operation(7)))
    _ = t.close(1)
    _ = t.submit(2, record(7), within: 5)
    #expect(t.pass(5).completed[2]?.error == .outcomeUnknown(operation(7)))
    // Once a sidecar has answered for the id, it is an operation like any other.
    _ = t.submit(3, record(7))
    _ = t.pass(100)
    let id = t.machine.lastConnection
    _ = t.welcome(id)
    #expect(t.answer(id, calls(3), allowed()).completed[3]?.reason == .allowed)
    #expect(!t.machine.doubtful.contains(operation(7)))
  }

  /// It has restarted, its store is not there yet, and it knows nothing of the first attempt.
  @Test func aSidecarsPolicyDoesNotDenyWhatAnEarlierAttemptMayHaveApplied() {
    var t = Transcript.open()
    _ = t.submit(1)
    _ = t.close(1, calls(1))
    _ = t.pass(25)
    #expect(t.welcome(2).sent.map(\.shipment) == [calls(1)])
    let denial = DecisionRecord.decision(decision(.storeUnavailable, source: .policy))
    #expect(t.answer(2, calls(1), denial).completed == [:])
    #expect(t.pass(50).sent.map(\.shipment) == [calls(1)])
    #expect(t.answer(2, calls(1), allowed()).completed[1]?.reason == .allowed)
  }

  @Test func theIdsInDoubtAreBounded() {
    var ids = DoubtfulIDs(capacity: 3)
    for number in 1...5 { ids.insert(operation(UInt64(number))) }
    #expect(ids.count == 3)
    #expect(!ids.contains(operation(2)) && ids.contains(operation(3)))
  }

  @Test func whatNeverLeftIsNotOfUnknownOutcome() {
    var t = Transcript.open { $0.appliesFailurePolicies = false }
    _ = t.submit(9)
    _ = t.answer(1, calls(9), allowed())
    t.machine.writabilityChanged(1, false)
    _ = t.submit(1, within: 50)
    _ = t.close(1)
    #expect(t.pass(50).completed == [1: .failure(.notSent(.deadlinePassed("lost")))])
  }

  @Test func aShipmentForAConnectionThatIsGoneWasNotSent() {
    var t = Transcript.open { $0.appliesFailurePolicies = false }
    _ = t.submit(1, within: 50)
    t.machine.undelivered(calls(1))
    _ = t.close(1)
    #expect(t.pass(50).completed == [1: .failure(.notSent(.deadlinePassed("lost")))])
  }

  // MARK: leaving early

  @Test func aCancelledCallLeavesItsSlot() {
    var t = Transcript.open(makeWelcome(inFlightMax: 1))
    _ = t.submit(1)
    _ = t.submit(2)
    t.machine.cancel(1)
    #expect(t.effects() == [.complete(1, .failure(.outcomeUnknown(operation(1))))])
    // The slot is taken until the answer comes; the answer is dropped and the next call goes.
    #expect(t.answer(1, calls(1), allowed()).sent.map(\.shipment) == [calls(2)])
    #expect(t.machine.statistics.lateAnswers == 1)
  }

  @Test func aCallCancelledBeforeItIsSentIsNotSent() {
    var t = Transcript()
    _ = t.start()
    _ = t.submit(1)
    t.machine.cancel(1)
    #expect(t.effects() == [.complete(1, .failure(.notSent(.cancelled)))])
    #expect(t.welcome().sent.isEmpty)
  }

  @Test func cancellingWhatHasEndedDoesNothing() {
    var t = Transcript.open()
    _ = t.submit(1)
    _ = t.answer(1, calls(1), allowed())
    t.machine.cancel(1)
    #expect(t.effects().isEmpty)
  }

  @Test func aLateAnswerIsDropped() {
    var t = Transcript.open { $0.appliesFailurePolicies = false }
    _ = t.submit(1, within: 10)
    #expect(t.pass(10).completed == [1: .failure(.outcomeUnknown(operation(1)))])
    #expect(t.answer(1, calls(1), allowed()).isEmpty)
    #expect(t.machine.statistics.lateAnswers == 1)
  }

  @Test func callsBeforeStartAndAfterStopAreNotSent() {
    var t = Transcript()
    #expect(t.submit(1) == [.complete(1, .failure(.notSent(.notRunning)))])
    _ = t.start()
    _ = t.welcome()
    t.machine.stop(t.now)
    #expect(t.effects() == [.close(1), .idle])
    #expect(t.submit(2) == [.complete(2, .failure(.notSent(.notRunning)))])
  }

  @Test func stoppingWaitsForWhatIsOutstanding() {
    var t = Transcript.open()
    _ = t.submit(1)
    t.machine.stop(t.now)
    #expect(t.effects().isEmpty)
    #expect(
      t.answer(1, calls(1), allowed())
        == [.complete(1, .success(decision())), .close(1), .idle])
  }

  @Test func abandoningEndsEverythingAsWhatIsKnownOfIt() {
    var t = Transcript.open(makeWelcome(inFlightMax: 1))
    _ = t.submit(1)
    _ = t.submit(2)
    _ = t.submit(3, consumes: false)
    t.machine.abandon(t.now)
    #expect(
      t.effects() == [
        .complete(1, .failure(.outcomeUnknown(operation(1)))),
        .complete(2, .failure(.notSent(.notRunning))),
        .complete(3, .failure(.notSent(.notRunning))), .close(1),
      ])
  }
}
