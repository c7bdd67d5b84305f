// The connection machine as transcripts: every state, every kind of frame.

import NIOCore
import Testing
import TollgateTesting
import TollgateWire

@testable import TollgateClient

private struct Parcel: SlotContent, Equatable {
  var number: Int
  var recordCount = 1
}

private typealias Machine = ConnectionMachine<Parcel>

private func frame(_ write: (inout ByteBuffer) -> Void) throws -> Frame {
  var buffer = ByteBuffer()
  write(&buffer)
  var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
  decoder.feed(buffer)
  return try #require(try decoder.next())
}

private func frame(_ message: some OpcodeMessage, _ correlation: UInt64) throws -> Frame {
  try frame { $0.writeFrame(message, correlation: correlation) }
}

private let answer = DecisionBatch([.decision(decision())])
private let goAway = GoAway(code: .draining, graceMilliseconds: 10, message: "")

private func opened() throws -> Machine {
  var machine = Machine()
  _ = machine.received(try frame(makeWelcome(), machine.hello))
  #expect(machine.state == .open)
  return machine
}

private func isFailure(_ action: Machine.Action) -> Bool {
  if case .fail = action { true } else { false }
}

@Suite(.blocking) struct ConnectionMachineTests {
  @Test func welcomeOpens() throws {
    var machine = Machine()
    #expect(machine.state == .greeting)
    #expect(machine.received(try frame(makeWelcome(), 1)) == .welcomed(makeWelcome()))
    #expect(machine.state == .open)
  }

  @Test func helloRefusedEndsWithItsReason() throws {
    var machine = Machine()
    let error = ErrorReply(code: .unauthenticated, message: "who?")
    #expect(
      machine.received(try frame(error, 1))
        == .fail("the hello was refused: UNAUTHENTICATED: who?"))
  }

  @Test func nothingElseMayComeBeforeWelcome() throws {
    for early in [
      try frame(answer, 2), try frame(Pong(nonce: 1), 2), try frame(goAway, 0),
      try frame(makeWelcome(), 0), try frame(Ping(nonce: 1), 5),
    ] {
      var machine = Machine()
      #expect(isFailure(machine.received(early)))
    }
  }

  @Test func answersFindTheirSlotInAnyOrder() throws {
    var machine = try opened()
    let first = machine.open(Parcel(number: 1))
    let second = machine.open(Parcel(number: 2))
    #expect(first != second)
    #expect(
      machine.received(try frame(answer, second)) == .answered(Parcel(number: 2), answer.records))
    #expect(
      machine.received(try frame(answer, first)) == .answered(Parcel(number: 1), answer.records))
    #expect(machine.slotCount == 0)
  }

  @Test func aRefusalFreesTheSlot() throws {
    var machine = try opened()
    let slot = machine.open(Parcel(number: 1))
    let error = ErrorReply(code: .overloaded, message: "later")
    #expect(machine.received(try frame(error, slot)) == .refused(Parcel(number: 1), error))
    #expect(machine.ended().isEmpty)
  }

  @Test func anAnswerThatFitsNoSlotIsFatal() throws {
    var machine = try opened()
    let slot = machine.open(Parcel(number: 1))
    #expect(isFailure(machine.received(try frame(answer, slot + 1))))
    #expect(machine.ended() == [Parcel(number: 1)])
  }

  @Test func aSecondAnswerIsFatal() throws {
    var machine = try opened()
    let slot = machine.open(Parcel(number: 1))
    _ = machine.received(try frame(answer, slot))
    #expect(isFailure(machine.received(try frame(answer, slot))))
  }

  @Test func anErrorForNothingInFlightIsFatal() throws {
    var machine = try opened()
    let error = ErrorReply(code: .overloaded, message: "")
    #expect(isFailure(machine.received(try frame(error, 99))))
  }

  @Test func aWrongNumberOfRecordsIsFatalAndOrphansTheSlot() throws {
    var machine = try opened()
    let slot = machine.open(Parcel(number: 1, recordCount: 2))
    #expect(isFailure(machine.received(try frame(answer, slot))))
    #expect(machine.ended() == [Parcel(number: 1, recordCount: 2)])
  }

  @Test func anUnreadableAnswerOrphansTheSlot() throws {
    var machine = try opened()
    let slot = machine.open(Parcel(number: 1))
    var broken = try frame(answer, slot)
    broken.payload = ByteBuffer(bytes: [1, 0, 0])
    #expect(isFailure(machine.received(broken)))
    #expect(machine.ended() == [Parcel(number: 1)])
  }

  @Test func errorZeroEndsTheConnection() throws {
    var machine = try opened()
    let error = ErrorReply(code: .idleTimeout, message: "bye")
    #expect(machine.received(try frame(error, 0)) == .fail("IDLE_TIMEOUT: bye"))
  }

  @Test func goAwayKeepsWhatIsInFlight() throws {
    var machine = try opened()
    let slot = machine.open(Parcel(number: 1))
    #expect(machine.received(try frame(goAway, 0)) == .wentAway(goAway))
    #expect(machine.state == .draining)
    #expect(machine.received(try frame(goAway, 0)) == .none)
    #expect(
      machine.received(try frame(answer, slot)) == .answered(Parcel(number: 1), answer.records))
  }

  @Test func welcomeAgainBringsPolicies() throws {
    var machine = try opened()
    let later = makeWelcome(["a": .open(allowance: 3)])
    #expect(machine.received(try frame(later, 0)) == .policiesChanged(later))
    #expect(isFailure(machine.received(try frame(later, 1))))
  }

  @Test func pingIsAnsweredUnderItsCorrelation() throws {
    var machine = try opened()
    #expect(
      machine.received(try frame(Ping(nonce: 42), 9)) == .reply(Pong(nonce: 42), correlation: 9))
  }

  @Test func aPingUnderTheNumberOfARequestIsNoAnswerToIt() throws {
    var machine = try opened()
    let slot = machine.open(Parcel(number: 1))
    #expect(
      machine.received(try frame(Ping(nonce: 4), slot)) == .reply(Pong(nonce: 4), correlation: slot)
    )
    #expect(
      machine.received(try frame(answer, slot)) == .answered(Parcel(number: 1), answer.records))
  }

  @Test func framesThatAreNotForAClientAreFatal() throws {
    for stray in [
      try frame { $0.writeFrame(.consume, OperationBatch([record(1)]), correlation: 5) },
      try frame { $0.writeFrame(.cancel, OperationBatch([record(1)]), correlation: 5) },
      try frame(Hello(role: .check, client: "", token: ""), 5),
    ] {
      var machine = try opened()
      #expect(isFailure(machine.received(stray)))
    }
  }

  @Test func aPushOfALaterReleaseIsSkipped() throws {
    var machine = try opened()
    var push = try frame(goAway, 0)
    push.header.rawOpcode = 0x7F
    #expect(machine.received(push) == .none)
    push.header.correlation = 3
    #expect(isFailure(machine.received(push)))
  }

  @Test func aProbeIsAnsweredByItsPong() throws {
    var machine = try opened()
    guard case .send(let correlation) = machine.probeDue() else {
      Issue.record("no probe")
      return
    }
    #expect(machine.received(try frame(Pong(nonce: correlation), correlation)) == .none)
    #expect(machine.probeDue() == .send(correlation: correlation + 1))
  }

  @Test func silenceAfterAProbeEndsTheConnection() throws {
    var machine = try opened()
    _ = machine.probeDue()
    #expect(machine.probeDue() == .none)
    #expect(machine.probeDue() == .fail)
  }

  @Test func anySignOfLifeExcusesALatePong() throws {
    var machine = try opened()
    let slot = machine.open(Parcel(number: 1))
    _ = machine.probeDue()
    #expect(machine.probeDue() == .none)
    _ = machine.received(try frame(answer, slot))
    #expect(machine.probeDue() == .none)
    #expect(machine.probeDue() == .fail)
  }

  @Test func aPongThatAnswersNothingIsFatal() throws {
    var machine = try opened()
    #expect(isFailure(machine.received(try frame(Pong(nonce: 1), 7))))
  }

  @Test func noProbeBeforeWelcomeNorAfterTheEnd() throws {
    var machine = Machine()
    #expect(machine.probeDue() == .none)
    _ = machine.ended()
    #expect(machine.probeDue() == .none)
    #expect(machine.received(try frame(answer, 1)) == .none)
  }

  @Test func theEndGivesEverySlotBackOnceOldestFirst() throws {
    var machine = try opened()
    for number in 1...20 { _ = machine.open(Parcel(number: number)) }
    #expect(machine.ended().map(\.number) == Array(1...20))
    #expect(machine.ended().isEmpty)
  }
}
