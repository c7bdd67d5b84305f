// The connection machine as transcripts: state × event, no channel, no clock.

import Testing
import TollgateRedis
import TollgateTesting

@Suite(.blocking) struct RedisConnectionMachineTests {
  typealias Machine = RedisConnectionMachine<Int>

  private static let server = RESPReply.string(
    [UInt8]("# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n".utf8))
  private static func replication(_ id: String, _ role: String = "master") -> RESPReply {
    .string([UInt8]("# Replication\r\nrole:\(role)\r\nmaster_replid:\(id)\r\n".utf8))
  }

  private func fresh(authentication: Bool = false, pendingMax: Int = 4) -> Machine {
    Machine(needsAuthentication: authentication, pendingCommandsMax: pendingMax, stallMax: 1000)
  }

  private func ready(pendingMax: Int = 4) -> Machine {
    var machine = fresh(pendingMax: pendingMax)
    _ = machine.opened(deadline: 100, now: 0)
    machine.flushed()
    _ = machine.replied(Self.server, now: 1)
    _ = machine.replied(Self.replication("r1"), now: 7)
    return machine
  }

  /// An action as a word, so that a transcript can be compared.
  private func word(_ action: Machine.ReplyAction) -> String {
    switch action {
    case .complete(let waiter): return "complete \(waiter)"
    case .late(let waiter): return "late \(waiter)"
    case .sendIdentification: return "sendIdentification"
    case .becameReady(let identity): return "ready \(identity.runID) \(identity.replicationID)"
    case .identityChanged(let identity): return "changed \(identity.replicationID) \(identity.role)"
    case .none: return "none"
    case .fatal(let reason): return "fatal \(reason)"
    }
  }

  private func words(_ casualties: [Machine.Casualty]) -> [String] {
    casualties.map { "\($0.waiter) \($0.isLate ? "late" : "first") \($0.failure)" }
  }

  @Test func handshakeWithPassword() {
    var machine = fresh(authentication: true)
    #expect(machine.opened(deadline: 100, now: 0) == .sendAuthentication)
    machine.flushed()
    #expect(machine.state == .authenticating)
    #expect(word(machine.replied(.status("OK"), now: 1)) == "sendIdentification")
    #expect(machine.state == .identifying)
    machine.flushed()
    #expect(word(machine.replied(Self.server, now: 2)) == "none")
    #expect(word(machine.replied(Self.replication("r1"), now: 3)) == "ready abc r1")
    #expect(machine.state == .ready)
    #expect(machine.identity?.openedAt == 3)
    #expect(machine.identity?.version == "7.0.15")
  }

  @Test func handshakeWithoutPassword() {
    var machine = fresh()
    #expect(machine.opened(deadline: 100, now: 0) == .sendIdentification)
    #expect(machine.state == .identifying)
  }

  @Test func wrongPasswordIsFatal() {
    var machine = fresh(authentication: true)
    _ = machine.opened(deadline: 100, now: 0)
    machine.flushed()
    #expect(
      word(machine.replied(.error("WRONGPASS bad"), now: 1))
        == "fatal authenticationRejected(\"WRONGPASS bad\")")
  }

  @Test func refusedOrIncompleteInfoIsFatal() {
    for (first, second) in [
      (RESPReply.error("NOAUTH x"), nil), (Self.server, RESPReply.error("NOPERM x")),
      (Self.server, .string([])), (.null, Self.replication("r")),
      (Self.server, Self.replication("r", "sentinel")),
    ] as [(RESPReply, RESPReply?)] {
      var machine = fresh()
      _ = machine.opened(deadline: 100, now: 0)
      machine.flushed()
      var last = word(machine.replied(first, now: 1))
      if let second { last = word(machine.replied(second, now: 1)) }
      #expect(last.hasPrefix("fatal identificationRejected"))
      #expect(machine.state != .ready)
    }
  }

  @Test func commandsAreRefusedInEveryStateButReady() {
    var machine = fresh(authentication: true)
    #expect(machine.refusal == .disconnected)
    _ = machine.opened(deadline: 100, now: 0)
    #expect(machine.refusal == .disconnected)
    machine.flushed()
    _ = machine.replied(.status("OK"), now: 1)
    #expect(machine.refusal == .disconnected)
    var closing = ready()
    #expect(closing.refusal == nil)
    closing.commandWritten(1, deadline: 50, sentAt: 10)
    _ = closing.closeRequested()
    #expect(closing.refusal == .closing)
    _ = closing.ended()
    #expect(closing.refusal == .disconnected)
  }

  @Test func repliesGoToCommandsInOrder() {
    var machine = ready()
    for waiter in 1...3 { machine.commandWritten(waiter, deadline: 50, sentAt: 10) }
    machine.flushed()
    let transcript = (1...3).map { word(machine.replied(.integer(Int64($0)), now: 11)) }
    #expect(transcript == ["complete 1", "complete 2", "complete 3"])
  }

  @Test func anErrorReplyIsAReply() {
    var machine = ready()
    machine.commandWritten(1, deadline: 50, sentAt: 10)
    machine.flushed()
    #expect(word(machine.replied(.error("ERR x"), now: 11)) == "complete 1")
  }

  @Test func pitfall50_aReplyNobodyWaitsForIsFatal() {
    var idle = ready()
    #expect(word(idle.replied(.status("OK"), now: 9)) == "fatal unexpectedReply")
    var unflushed = ready()
    unflushed.commandWritten(1, deadline: 50, sentAt: 10)
    #expect(word(unflushed.replied(.status("OK"), now: 9)) == "fatal unexpectedReply")
    #expect(
      words(unflushed.ended()) == [
        "1 first notSent(TollgateRedis.RedisFailure.NotSentReason.disconnected)"
      ])
  }

  @Test func theBoundOnPendingCommandsSaturates() {
    var machine = ready(pendingMax: 2)
    machine.commandWritten(1, deadline: 50, sentAt: 10)
    machine.commandWritten(2, deadline: 50, sentAt: 10)
    #expect(machine.refusal == .saturated)
    machine.flushed()
    _ = machine.replied(.null, now: 11)
    #expect(machine.refusal == nil)
  }

  @Test func aTimedOutCommandKeepsItsPlace() {
    var machine = ready()
    machine.commandWritten(1, deadline: 50, sentAt: 10)
    machine.commandWritten(2, deadline: 90, sentAt: 10)
    machine.flushed()
    let early = machine.swept(now: 49)
    #expect(early.expired.isEmpty && early.nextDeadline == 50)
    let sweep = machine.swept(now: 50)
    #expect(sweep.expired == [1])
    #expect(sweep.nextDeadline == 90)
    #expect(machine.swept(now: 60).expired.isEmpty)
    #expect(word(machine.replied(.integer(1), now: 70)) == "late 1")
    #expect(word(machine.replied(.integer(2), now: 70)) == "complete 2")
  }

  @Test func timedOutCommandsCountAgainstTheBound() {
    var machine = ready(pendingMax: 1)
    machine.commandWritten(1, deadline: 50, sentAt: 10)
    _ = machine.swept(now: 51)
    #expect(machine.refusal == .saturated)
  }

  @Test func theEndTellsSentFromNotSent() {
    var machine = ready()
    machine.commandWritten(1, deadline: 20, sentAt: 10)
    machine.commandWritten(2, deadline: 50, sentAt: 10)
    machine.flushed()
    machine.commandWritten(3, deadline: 50, sentAt: 11)
    _ = machine.swept(now: 21)
    let lost = RedisFailure.outcomeUnknown(.connectionLost)
    let casualties = machine.ended()
    #expect(casualties.map(\.waiter) == [1, 2, 3])
    #expect(casualties.map(\.isLate) == [true, false, false])
    #expect(casualties.map(\.failure) == [lost, lost, .notSent(.disconnected)])
    #expect(casualties.map(\.failure.isSafeToRetry) == [false, false, true])
    #expect(machine.state == .closed)
    #expect(machine.ended().isEmpty)
    #expect(word(machine.replied(.null, now: 30)) == "none")
  }

  @Test func closingDrainsThenEnds() {
    var machine = ready()
    machine.commandWritten(1, deadline: 50, sentAt: 10)
    machine.flushed()
    #expect((machine.closeRequested()) == false)
    #expect(!machine.isDrained)
    #expect(word(machine.replied(.null, now: 12)) == "complete 1")
    #expect(machine.isDrained)
    var idle = ready()
    #expect((idle.closeRequested()) == true)
    var opening = fresh()
    #expect((opening.closeRequested()) == true)
  }

  @Test func aHandshakeThatHangsIsFatal() {
    var machine = fresh(authentication: true)
    _ = machine.opened(deadline: 100, now: 0)
    machine.flushed()
    #expect(machine.swept(now: 99).fatal == nil)
    #expect(machine.swept(now: 100).fatal == .handshakeTimedOut)
  }

  @Test func aPeerThatNeverAnswersIsGivenUp() {
    var machine = ready()
    machine.commandWritten(1, deadline: .max, sentAt: 10)
    machine.flushed()
    #expect(machine.swept(now: 1009).fatal == nil)
    #expect(machine.swept(now: 1010).fatal == .stalled)
  }

  @Test func aPollRefreshesTheIdentity() {
    var machine = ready()
    #expect((machine.refreshDue(deadline: 30, now: 10)) == true)
    #expect((machine.refreshDue(deadline: 30, now: 11)) == false)
    machine.commandWritten(1, deadline: 50, sentAt: 12)
    machine.flushed()
    #expect(word(machine.replied(Self.replication("r1"), now: 13)) == "none")
    #expect(word(machine.replied(.null, now: 13)) == "complete 1")
    #expect((machine.refreshDue(deadline: 30, now: 14)) == true)
    machine.flushed()
    #expect(word(machine.replied(Self.replication("r2", "slave"), now: 15)) == "changed r2 replica")
    #expect(machine.identity?.runID == "abc")
    #expect((machine.refreshDue(deadline: 30, now: 16)) == true)
    machine.flushed()
    #expect(word(machine.replied(.error("NOPERM"), now: 17)) == "none")
  }

  @Test func aTimedOutPollTellsNobody() {
    var machine = ready()
    _ = machine.refreshDue(deadline: 30, now: 10)
    machine.flushed()
    let sweep = machine.swept(now: 31)
    #expect(sweep.expired.isEmpty && sweep.fatal == nil)
    #expect((machine.refreshDue(deadline: 90, now: 40)) == false)
    #expect(machine.ended().isEmpty)
  }

  /// Random histories: each waiter is completed once, and told late once if it timed out first.
  @Test func everyWaiterIsCompletedExactlyOnce() {
    var random = JitterSource(seed: 11)
    for _ in 0..<300 {
      var machine = ready(pendingMax: 8)
      var completed: [Int: Int] = [:]
      var late: [Int: Int] = [:]
      var expired: Set<Int> = []
      var next = 0
      var now: Int64 = 10
      var owed = 0
      for _ in 0..<60 {
        now += 1
        switch Int.random(in: 0..<10, using: &random) {
        case 0..<4:
          guard machine.refusal == nil else { continue }
          machine.commandWritten(
            next, deadline: now + Int64.random(in: 1...9, using: &random), sentAt: now)
          next += 1
        case 4..<6:
          machine.flushed()
          owed = machine.pendingCount
        case 6..<9 where owed > 0:
          owed -= 1
          switch machine.replied(.null, now: now) {
          case .complete(let waiter): completed[waiter, default: 0] += 1
          case .late(let waiter): late[waiter, default: 0] += 1
          case .none, .fatal, .sendIdentification, .becameReady, .identityChanged:
            Issue.record("an owed reply was not taken by a command")
          }
        default:
          for waiter in machine.swept(now: now).expired {
            completed[waiter, default: 0] += 1
            expired.insert(waiter)
          }
        }
      }
      for casualty in machine.ended() {
        if casualty.isLate {
          late[casualty.waiter, default: 0] += 1
        } else {
          completed[casualty.waiter, default: 0] += 1
        }
      }
      #expect(completed == Dictionary(uniqueKeysWithValues: (0..<next).map { ($0, 1) }))
      #expect(late == Dictionary(uniqueKeysWithValues: expired.map { ($0, 1) }))
    }
  }
}
