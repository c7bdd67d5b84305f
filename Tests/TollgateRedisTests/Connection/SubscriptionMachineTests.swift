// When it is sure that nothing was missed, as transcripts.

import Testing
import TollgateRedis
import TollgateTesting

@Suite(.blocking) struct SubscriptionMachineTests {
  private func confirmed(_ channel: String) -> RESPReply {
    .array([.string(Array("subscribe".utf8)), .string(Array(channel.utf8)), .integer(1)])
  }

  private func message(_ channel: String, _ text: String) -> RESPReply {
    .array([
      .string(Array("message".utf8)), .string(Array(channel.utf8)), .string(Array(text.utf8)),
    ])
  }

  private let pong = RESPReply.array([.string(Array("pong".utf8)), .string([])])

  private func live() -> SubscriptionMachine {
    var machine = SubscriptionMachine(needsAuthentication: false, channels: 1)
    #expect(machine.opened(now: 1) == .sendSubscribe)
    #expect(machine.received(confirmed("a"), now: 2) == .becameLive)
    return machine
  }

  @Test func itIsLiveWhenTheLastChannelIsConfirmed() {
    var machine = SubscriptionMachine(needsAuthentication: true, channels: 2)
    #expect(machine.opened(now: 1) == .sendAuthentication)
    #expect(machine.received(.status("OK"), now: 2) == .sendSubscribe)
    #expect(machine.received(confirmed("a"), now: 3) == .none)
    #expect(
      machine.received(message("a", "x"), now: 3)
        == .message(channel: "a", payload: Array("x".utf8)))
    #expect(machine.received(confirmed("b"), now: 4) == .becameLive)
  }

  @Test func itIsAsFreshAsTheAnsweredPingWasSent() {
    var machine = live()
    #expect(machine.beat(now: 100) == .sendPing)
    #expect(machine.beat(now: 200) == .sendPing)
    #expect(machine.received(pong, now: 250) == .fresh(asOf: 100))
    #expect(machine.received(message("a", "x"), now: 260) != .none)
    #expect(machine.received(pong, now: 300) == .fresh(asOf: 200))
  }

  @Test func aPongThatNobodyAskedForIsFatal() {
    var machine = live()
    #expect(machine.received(pong, now: 5) == .fatal(.unexpectedReply))
  }

  @Test func silenceEndsIt() {
    var machine = live()
    #expect(machine.beat(now: 100) == .sendPing)
    #expect(machine.beat(now: 100 + SubscriptionMachine.silenceMax) == .sendPing)
    #expect(machine.beat(now: 101 + SubscriptionMachine.silenceMax) == .fatal(.stalled))
  }

  @Test func aHandshakeThatIsNotAnsweredEnds() {
    var machine = SubscriptionMachine(needsAuthentication: false, channels: 1)
    _ = machine.opened(now: 1)
    #expect(machine.beat(now: 2 + SubscriptionMachine.silenceMax) == .fatal(.handshakeTimedOut))
  }

  @Test func aRefusalIsFatal() {
    var machine = SubscriptionMachine(needsAuthentication: true, channels: 1)
    _ = machine.opened(now: 1)
    #expect(
      machine.received(.error("WRONGPASS"), now: 2)
        == .fatal(.authenticationRejected("WRONGPASS")))
    machine = SubscriptionMachine(needsAuthentication: false, channels: 1)
    _ = machine.opened(now: 1)
    #expect(
      machine.received(.error("NOPERM"), now: 2) == .fatal(.identificationRejected("NOPERM")))
  }

  @Test func nothingHappensAfterTheEnd() {
    var machine = live()
    machine.closed()
    #expect(machine.beat(now: 9) == .none)
    #expect(machine.received(pong, now: 9) == .none)
  }
}
