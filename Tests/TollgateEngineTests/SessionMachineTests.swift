// The session machine, as transcripts, and every state against every event.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

private func at(_ milliseconds: Int64) -> MonotonicTime {
  MonotonicTime(nanoseconds: milliseconds * 1_000_000)
}

private func machine(inFlightMax: Int = 4) -> SessionMachine {
  SessionMachine(
    now: at(0),
    limits: .init(
      inFlightMax: inFlightMax, idleNanoseconds: 1_000_000_000, helloNanoseconds: 100_000_000))
}

private func ready(_ role: Role = .check, inFlightMax: Int = 4) -> SessionMachine {
  var session = machine(inFlightMax: inFlightMax)
  let action = session.helloReceived(
    versionSupported: true, asked: role, granted: role, now: at(1))
  #expect(action == .welcome)
  return session
}

@Suite("Session machine", .blocking)
struct SessionMachineTests {
  @Test func nothingBeforeHello() {
    var session = machine()
    #expect(
      session.requestReceived(records: 1, needs: .check, now: at(1))
        == .refuseAndClose(.helloRequired))
    #expect(session.isClosed)
  }

  @Test func pingBeforeHelloIsRefused() {
    var session = machine()
    #expect(session.pingReceived(now: at(1)) == .refuseAndClose(.helloRequired))
  }

  @Test func unknownVersionIsRefusedBeforeTheCredentialIsLookedAt() {
    var session = machine()
    #expect(
      session.helloReceived(versionSupported: false, asked: .check, granted: nil, now: at(1))
        == .refuseAndClose(.unsupportedVersion))
  }

  @Test func noCredentialIsUnauthenticated() {
    var session = machine()
    #expect(
      session.helloReceived(versionSupported: true, asked: .check, granted: nil, now: at(1))
        == .refuseAndClose(.unauthenticated))
  }

  @Test func aCheckCredentialDoesNotMakeAnAdmin() {
    var session = machine()
    #expect(
      session.helloReceived(versionSupported: true, asked: .admin, granted: .check, now: at(1))
        == .refuseAndClose(.forbidden))
  }

  @Test func anAdminMayAlsoCheck() {
    var session = ready(.admin)
    #expect(session.requestReceived(records: 1, needs: .check, now: at(2)) == .accept)
  }

  @Test func aCheckRoleIsRefusedAdministrationAndGoesOn() {
    var session = ready()
    #expect(
      session.requestReceived(records: 1, needs: .admin, now: at(2)) == .reject(.forbidden))
    #expect(session.requestReceived(records: 1, needs: .check, now: at(2)) == .accept)
  }

  @Test func helloTwiceIsFatal() {
    var session = ready()
    #expect(
      session.helloReceived(versionSupported: true, asked: .check, granted: .check, now: at(2))
        == .refuseAndClose(.badFrame))
  }

  @Test func aMuteConnectionEnds() {
    var session = machine()
    #expect(session.timePassed(now: at(99)) == .none)
    #expect(session.timePassed(now: at(100)) == .refuseAndClose(.idleTimeout))
  }

  @Test func anIdleConnectionEndsButNotWithWorkInFlight() {
    var session = ready()
    #expect(session.requestReceived(records: 1, needs: .check, now: at(10)) == .accept)
    #expect(session.timePassed(now: at(5000)) == .none)
    #expect(session.repliesSent(records: 1, now: at(5000)) == .none)
    #expect(session.timePassed(now: at(5999)) == .none)
    #expect(session.timePassed(now: at(6000)) == .goAwayAndClose(.idleTimeout))
  }

  @Test func pingKeepsAConnectionAlive() {
    var session = ready()
    #expect(session.pingReceived(now: at(900)) == .pong)
    #expect(session.timePassed(now: at(1500)) == .none)
  }

  @Test func readingPausesAtTheBoundAndResumesAtHalfOfIt() {
    var session = ready()
    #expect(
      session.requestReceived(records: 4, needs: .check, now: at(1)) == .acceptAndPauseReading)
    #expect(session.repliesSent(records: 1, now: at(2)) == .none)
    #expect(session.repliesSent(records: 1, now: at(2)) == .resumeReading)
    #expect(session.inFlight == 2)
  }

  @Test func aFrameLargerThanTheBoundIsOverloadedEarly() {
    var session = ready()
    #expect(
      session.requestReceived(records: 5, needs: .check, now: at(1)) == .reject(.overloaded))
    #expect(session.inFlight == 0)
  }

  @Test func drainAnswersWhatIsInFlightThenCloses() {
    var session = ready()
    #expect(session.requestReceived(records: 2, needs: .check, now: at(1)) == .accept)
    #expect(session.drainStarted() == .goAway(.draining))
    #expect(
      session.requestReceived(records: 1, needs: .check, now: at(2)) == .reject(.draining))
    #expect(session.repliesSent(records: 1, now: at(3)) == .none)
    #expect(session.repliesSent(records: 1, now: at(3)) == .close)
    #expect(session.isClosed)
  }

  @Test func onlyAReadySessionHasARole() {
    #expect(machine().readyRole == nil)
    var session = ready()
    #expect(session.readyRole == .check)
    _ = session.requestReceived(records: 1, needs: .check, now: at(1))
    #expect(session.readyRole == .check)
    _ = session.drainStarted()
    #expect(session.readyRole == nil)
  }

  @Test func drainOfAnIdleConnectionClosesAtOnce() {
    var session = ready()
    #expect(session.drainStarted() == .goAwayAndClose(.draining))
  }

  @Test func aPeersGoAwayEndsWithTheLastAnswer() {
    var session = ready()
    #expect(session.requestReceived(records: 1, needs: .check, now: at(1)) == .accept)
    #expect(session.goAwayReceived() == .none)
    #expect(session.repliesSent(records: 1, now: at(2)) == .close)
  }

  @Test func graceEndsEverything() {
    var session = ready()
    #expect(session.requestReceived(records: 1, needs: .check, now: at(1)) == .accept)
    #expect(session.drainStarted() == .goAway(.draining))
    #expect(session.graceEnded() == .close)
    #expect(session.graceEnded() == .none)
  }

  /// What a peer or a clock can cause is answered in every state, and never traps.
  @Test func everyStateAnswersEveryEventOfAPeer() {
    func states() -> [(String, SessionMachine)] {
      let new = machine()
      let idle = ready()
      var busy = ready()
      _ = busy.requestReceived(records: 2, needs: .check, now: at(1))
      var draining = busy
      _ = draining.drainStarted()
      var closed = idle
      closed.connectionLost()
      return [
        ("new", new), ("idle", idle), ("busy", busy), ("draining", draining), ("closed", closed),
      ]
    }
    let events: [(String, (inout SessionMachine) -> SessionMachine.Action)] = [
      (
        "hello",
        {
          $0.helloReceived(versionSupported: true, asked: .check, granted: .check, now: at(9))
        }
      ),
      ("request", { $0.requestReceived(records: 1, needs: .check, now: at(9)) }),
      ("ping", { $0.pingReceived(now: at(9)) }),
      ("goAway", { $0.goAwayReceived() }),
      ("violation", { $0.protocolViolated(.badFrame) }),
      ("time", { $0.timePassed(now: at(100_000)) }),
      ("drain", { $0.drainStarted() }),
      ("grace", { $0.graceEnded() }),
    ]
    let expected: [String: [SessionMachine.Action]] = [
      "new": [
        .welcome, .refuseAndClose(.helloRequired), .refuseAndClose(.helloRequired), .close,
        .refuseAndClose(.badFrame), .refuseAndClose(.idleTimeout), .close, .close,
      ],
      "idle": [
        .refuseAndClose(.badFrame), .accept, .pong, .close, .refuseAndClose(.badFrame),
        .goAwayAndClose(.idleTimeout), .goAwayAndClose(.draining), .close,
      ],
      "busy": [
        .refuseAndClose(.badFrame), .accept, .pong, .none, .refuseAndClose(.badFrame), .none,
        .goAway(.draining), .close,
      ],
      "draining": [
        .refuseAndClose(.badFrame), .reject(.draining), .pong, .none, .refuseAndClose(.badFrame),
        .none, .none, .close,
      ],
      "closed": [.none, .none, .none, .none, .none, .none, .none, .none],
    ]
    for (name, state) in states() {
      for (index, (event, apply)) in events.enumerated() {
        var copy = state
        #expect(apply(&copy) == expected[name]?[index], "\(event) in \(name)")
      }
    }
  }
}
