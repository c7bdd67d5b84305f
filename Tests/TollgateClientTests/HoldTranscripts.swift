// The requests of a reservation in the client machine: who may be answered by policy, what outlives
// its call, and what becomes of use whose hold is lost.

import Testing
import TollgateTesting
import TollgateWire

@testable import TollgateClient

private func reserve(_ number: UInt64) -> Ask { .reserve(ReserveRecord(record(number))) }

private func settlement(
  _ number: UInt64, _ amount: Int64 = 5, isFinal: Bool = true
) -> SettleRecord {
  SettleRecord(
    id: operation(number), subject: subject("acme/ada"), reservation: operation(900),
    isFinal: isFinal, items: [item("a", amount)])
}

private func settle(_ number: UInt64, _ amount: Int64 = 5, isFinal: Bool = true) -> Ask {
  .settle(settlement(number, amount, isFinal: isFinal))
}

private func release(_ number: UInt64) -> Ask {
  .release(
    ReleaseRecord(id: operation(number), subject: subject("acme/ada"), reservation: operation(900)))
}

private func settled(_ reason: Reason = .settled) -> DecisionRecord {
  .decision(decision(reason))
}

private let openPolicy = ["a": FailurePolicy.open(allowance: 100)]

@Suite(.blocking) struct HoldTranscripts {
  @Test func eachKindTravelsUnderItsOwnOpcode() {
    var t = Transcript.open()
    let extend = Ask.extend(
      ExtendRecord(
        id: operation(4), subject: subject("acme/ada"), reservation: operation(900),
        ttlMilliseconds: 1000))
    let refund = Ask.refund(
      RefundRecord(id: operation(5), subject: subject("acme/ada"), corrects: operation(2)))
    for (token, ask) in [
      (1, reserve(1)), (2, settle(2)), (3, release(3)), (4, extend), (5, refund),
    ] as [(UInt64, Ask)] {
      let sent = t.ask(token, ask).sent
      #expect(sent.map(\.opcode) == [ask.opcode])
      #expect(sent.map(\.content) == [FrameRecords([ask])])
      #expect(t.answer(1, calls(token), settled()).completed[token]?.reason == .settled)
    }
  }

  @Test func aSidecarWithoutReservationsIsSentNone() {
    var t = Transcript.open(makeWelcome(features: []))
    let effects = t.ask(1, reserve(1))
    #expect(effects.sent.isEmpty)
    guard case .rejected(.unknownOpcode, _)? = effects.completed[1]?.error else {
      Issue.record("\(effects)")
      return
    }
    #expect(t.submit(2).sent.map(\.opcode) == [.consume])
  }

  @Test func aRecordThatASidecarWouldRefuseIsNotSent() {
    var t = Transcript.open()
    let long = ReserveRecord(record(1), ttlMilliseconds: 86_400_001)
    guard case .rejected(.badRequest, _)? = t.ask(1, .reserve(long)).completed[1]?.error else {
      Issue.record("a ttl of more than a day was sent")
      return
    }
  }

  // MARK: nobody answers

  @Test func noPolicyHolds() {
    var t = Transcript.open(makeWelcome(openPolicy))
    t.machine.writabilityChanged(1, false)
    _ = t.ask(1, reserve(1), within: 10)
    let end = t.pass(10).completed[1]
    #expect(end?.reason == .storeUnavailable && end?.source == .clientFallback)
    #expect(t.machine.book.posts.isEmpty && t.machine.book.cancels.isEmpty)
  }

  @Test func aReserveThatMayHaveBeenAppliedIsOfUnknownOutcome() {
    var t = Transcript.open(makeWelcome(openPolicy))
    _ = t.ask(1, reserve(1), within: 10)
    #expect(t.pass(10).completed[1]?.error == .outcomeUnknown(operation(1)))
    #expect(t.machine.book.cancels.isEmpty)
  }

  @Test func noPolicyAnswersWhatTellsOfTheePast() {
    var t = Transcript.open(makeWelcome(openPolicy))
    t.machine.writabilityChanged(1, false)
    _ = t.ask(1, release(1), within: 10)
    #expect(t.pass(10).completed[1]?.error == .notSent(.deadlinePassed("")))
  }

  // MARK: a settle outlives its call

  @Test func aSettleIsSentAgainAfterItsCallHasEnded() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1), within: 10)
    let end = t.pass(10)
    #expect(end.completed[1]?.error == .outcomeUnknown(operation(1)))
    #expect(end.sent.map(\.content) == [.settles([settlement(1)])])
    #expect(t.machine.snapshot.unsettled == 1)
    _ = t.answer(1, end.sent.shipment, settled())
    #expect(t.machine.book.settles.isEmpty)
    #expect(t.machine.statistics.settled == 1)
  }

  @Test func aSettleThatWasNeverSentIsKeptToo() {
    var t = Transcript()
    _ = t.start()
    _ = t.ask(1, settle(1), within: 10)
    #expect(t.pass(10).completed[1]?.error == .outcomeUnknown(operation(1)))
    let welcome = t.welcome()
    #expect(welcome.sent.map(\.content) == [.settles([settlement(1)])])
  }

  @Test func aSettleSurvivesItsConnection() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1), within: 5000)
    _ = t.close(1, calls(1))
    _ = t.pass(30)
    #expect(t.welcome(2).sent.map(\.content) == [.settles([settlement(1)])])
    #expect(t.answer(2, calls(1), settled()).completed[1]?.reason == .settled)
    #expect(t.machine.book.settles.isEmpty)
  }

  @Test func aCancelledTaskDoesNotTakeItsSettleAlong() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1))
    t.machine.cancel(1)
    let effects = t.effects()
    #expect(effects.completed[1]?.error == .outcomeUnknown(operation(1)))
    #expect(effects.sent.map(\.content) == [.settles([settlement(1)])])
  }

  @Test func anAnswerToASecondCallEndsWhatIsKept() {
    var t = Transcript.open(makeWelcome(inFlightMax: 2))
    _ = t.ask(1, settle(1), within: 10)
    _ = t.pass(10)
    _ = t.ask(2, settle(1))
    #expect(t.answer(1, calls(1), settled()).sent.map(\.shipment) == [calls(2)])
    #expect(t.answer(1, calls(2), settled()).completed[2]?.reason == .settled)
    #expect(t.machine.book.settles.isEmpty)
  }

  @Test func anUnavailableStoreDoesNotEndASettle() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1), within: 20)
    #expect(t.answer(1, calls(1), settled(.outboxFull)).completed.isEmpty)
    let end = t.pass(20)
    #expect(end.completed[1]?.error == .outcomeUnknown(operation(1)))
    #expect(t.machine.book.settles.count == 1)
  }

  @Test func onlySoManySettlesAreKept() {
    var t = Transcript { $0.unsettledMax = 1 }
    _ = t.start()
    _ = t.ask(1, settle(1), within: 10)
    _ = t.ask(2, settle(2), within: 10)
    let end = t.pass(10).completed
    #expect(end[1]?.error == .outcomeUnknown(operation(1)))
    #expect(end[2]?.error == .notSent(.deadlinePassed("")))
    #expect(t.machine.book.settles.records.map(\.id) == [operation(1)])
  }

  @Test func abandoningKeepsWhatWasUsedForTheNextClient() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1))
    t.machine.abandon(t.now)
    #expect(t.effects().completed[1]?.error == .outcomeUnknown(operation(1)))
    #expect(t.machine.book.settles.records == [settlement(1)])
    var next = Transcript.open()
    next.machine.adopt([], [], [settlement(1)])
    #expect(next.effects().sent.map(\.content) == [.settles([settlement(1)])])
  }

  @Test func aClientThatDoesNotRunKeepsNothing() {
    var t = Transcript()
    #expect(t.ask(1, settle(1)) == [.complete(1, .failure(.notSent(.notRunning)))])
    #expect(t.machine.book.settles.isEmpty)
  }

  @Test func stoppingWaitsForWhatIsKept() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1), within: 10)
    let shipment = t.pass(10).sent.shipment
    t.machine.stop(t.now)
    #expect(t.effects().isEmpty)
    #expect(t.answer(1, shipment, settled()) == [.close(1), .idle])
  }

  @Test func aKeptSettleThatIsRefusedIsHandedBack() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1), within: 10)
    let shipment = t.pass(10).sent.shipment
    #expect(
      t.answer(1, shipment, refusal(.reservationEnded))
        == [.refusedSettle(settlement(1), "RESERVATION_ENDED: no")])
    #expect(t.machine.statistics.settlesRefused == 1)
  }

  // MARK: the hold is gone

  @Test(arguments: [ErrorCode.reservationUnknown, .idTooOld])
  func useWithoutAHoldIsPostedUnderTheSettlesId(_ code: ErrorCode) {
    var t = Transcript.open()
    _ = t.ask(1, settle(1))
    let post = t.answer(1, calls(1), refusal(code)).sent
    #expect(post.map(\.opcode) == [.post])
    #expect(post.first?.records == [record(1, item("a", 5))])
    let end = t.answer(1, calls(1), settled(.allowedPosted))
    #expect(end.completed[1]?.reason == .allowedPosted)
    // Not before: what is held keeps the room for what is posted.
    #expect(post.count == 1 && end.released == [settlement(1)])
  }

  @Test func aKeptSettleWithoutAHoldIsPostedToo() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1), within: 10)
    let shipment = t.pass(10).sent.shipment
    let post = t.answer(1, shipment, refusal(.reservationUnknown)).sent
    #expect(post.map(\.opcode) == [.post])
    #expect(post.first?.records == [record(1, item("a", 5))])
    #expect(t.machine.book.settles.isEmpty)
    let end = t.answer(1, post.shipment, settled(.allowedPosted))
    #expect(end.released == [settlement(1)])
    #expect(t.machine.unheld.isEmpty)
  }

  @Test func aDrawThatIsPostedReleasesNothing() {
    var t = Transcript.open()
    _ = t.ask(1, .settle(settlement(1, isFinal: false)))
    _ = t.answer(1, calls(1), refusal(.reservationUnknown))
    let end = t.answer(1, calls(1), settled(.allowedPosted))
    #expect(end.completed[1]?.reason == .allowedPosted && end.released.isEmpty)
  }

  @Test func aPostThatOutlivesItsCallIsKept() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1), within: 10)
    _ = t.answer(1, calls(1), refusal(.reservationUnknown))
    let end = t.pass(10)
    #expect(end.completed[1]?.error == .outcomeUnknown(operation(1)))
    #expect(end.sent.map(\.opcode) == [.post])
    #expect(t.answer(1, end.sent.shipment, settled(.allowedPosted)).released == [settlement(1)])
  }

  /// The id of a settle whose record is there is no post's: its own record has the answer.
  @Test func aPostWhoseIdIsTheSettlesAfterAllIsAskedForAsThat() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1))
    _ = t.answer(1, calls(1), refusal(.reservationUnknown))
    let again = t.answer(1, calls(1), refusal(.idempotencyMismatch)).sent
    #expect(again.map(\.content) == [.settles([settlement(1)])])
    #expect(t.answer(1, calls(1), settled()).completed[1]?.reason == .settled)
  }

  @Test func whatWasNotUsedIsNotPosted() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1, 0))
    #expect(
      t.answer(1, calls(1), refusal(.reservationUnknown))
        == [
          .letGo(settlement(1, 0)),
          .complete(1, .failure(.rejected(.reservationUnknown, message: "no"))),
        ])
  }

  /// Another final settle has told the same use; one that was not final told a part of its own.
  @Test func onlyADrawIsPostedWhereTheReservationHasEnded() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1))
    #expect(
      t.answer(1, calls(1), refusal(.reservationEnded))
        == [.complete(1, .failure(.rejected(.reservationEnded, message: "no")))])
    _ = t.ask(2, settle(2, isFinal: false))
    #expect(
      t.answer(1, calls(2), refusal(.reservationEnded)).sent.map(\.opcode) == [.post])
  }

  @Test func aRefusalThatSpeaksOfTheIdEndsTheDoubt() {
    var t = Transcript.open()
    _ = t.ask(1, settle(1))
    _ = t.answer(1, calls(1), refusal(.outcomeUnknown))
    _ = t.pass(10)
    #expect(
      t.answer(1, calls(1), refusal(.overrunRejected))
        == [.complete(1, .failure(.rejected(.overrunRejected, message: "no")))])
  }
}
