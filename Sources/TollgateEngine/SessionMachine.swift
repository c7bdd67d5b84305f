// One client connection, as a value: what may be asked when, and what to do with each event.
//
//   awaitingHello ──hello ok──▶ ready ──drain──▶ draining ──last reply──▶ closed
//        │                        │                                         ▲
//        └── refused, too slow ───┴── protocol error, idle ─────────────────┘
//
// It knows no sockets, frames or clocks: the handler feeds it events with `now` and carries out
// the one action that comes back. Promise 8 lives here: in-flight records are bounded, early
// refusal is OVERLOADED, an idle or mute connection ends, a drain answers what is in flight.

package import TollgateCore

package struct SessionMachine: Sendable {
  package struct Limits: Sendable, Hashable {
    /// Records a connection may have in flight before reading from it pauses.
    package var inFlightMax: Int
    /// A connection without traffic and without work in flight ends after this.
    package var idleNanoseconds: Int64
    /// A connection that has not said hello ends after this.
    package var helloNanoseconds: Int64

    package init(inFlightMax: Int, idleNanoseconds: Int64, helloNanoseconds: Int64) {
      self.inFlightMax = inFlightMax
      self.idleNanoseconds = idleNanoseconds
      self.helloNanoseconds = helloNanoseconds
    }
  }

  enum State: Sendable, Hashable {
    /// Only a hello is welcome. Next: ready, closed.
    case awaitingHello(since: MonotonicTime)
    /// Requests are accepted. Next: draining, closed.
    case ready(role: Role, inFlight: Int, lastActivity: MonotonicTime, paused: Bool)
    /// What is in flight is answered; new requests are refused with DRAINING. Next: closed.
    case draining(inFlight: Int)
    /// Nothing more is sent or read.
    case closed
  }

  package enum Action: Sendable, Hashable {
    case none
    case welcome
    /// Serve the request.
    case accept
    /// Serve the request, and read no further until `resumeReading`.
    case acceptAndPauseReading
    case resumeReading
    /// Answer this one frame with an error; the connection goes on.
    case reject(ErrorCode)
    /// Send an error for the whole connection, then close it.
    case refuseAndClose(ErrorCode)
    case pong
    /// Tell the peer to send nothing new here; answers of work in flight still come.
    case goAway(ErrorCode)
    case goAwayAndClose(ErrorCode)
    case close
  }

  private(set) var state: State
  private let limits: Limits

  package init(now: MonotonicTime, limits: Limits) {
    state = .awaitingHello(since: now)
    self.limits = limits
  }

  package var inFlight: Int {
    switch state {
    case .ready(_, let inFlight, _, _): inFlight
    case .draining(let inFlight): inFlight
    case .awaitingHello, .closed: 0
    }
  }

  package var isClosed: Bool { state == .closed }

  /// The session's role while it takes requests, nil before and after.
  package var readyRole: Role? {
    if case .ready(let role, _, _, _) = state { role } else { nil }
  }

  package var awaitsHello: Bool {
    if case .awaitingHello = state { true } else { false }
  }

  /// `granted` is the role that the credential or the peer's uid earns, nil where it earns none.
  package mutating func helloReceived(
    versionSupported: Bool, asked: Role, granted: Role?, now: MonotonicTime
  ) -> Action {
    switch state {
    case .awaitingHello:
      guard versionSupported else { return fail(.unsupportedVersion) }
      guard let granted else { return fail(.unauthenticated) }
      guard granted.covers(asked) else { return fail(.forbidden) }
      state = .ready(role: asked, inFlight: 0, lastActivity: now, paused: false)
      return .welcome
    case .ready, .draining: return fail(.badFrame)
    case .closed: return .none
    }
  }

  package mutating func requestReceived(
    records: Int, needs role: Role, now: MonotonicTime
  ) -> Action {
    switch state {
    case .awaitingHello: return fail(.helloRequired)
    case .ready(let own, let inFlight, _, let paused):
      guard own.covers(role) else {
        state = .ready(role: own, inFlight: inFlight, lastActivity: now, paused: paused)
        return .reject(.forbidden)
      }
      guard records <= limits.inFlightMax, inFlight <= limits.inFlightMax else {
        state = .ready(role: own, inFlight: inFlight, lastActivity: now, paused: paused)
        return .reject(.overloaded)
      }
      let total = inFlight + records
      let full = total >= limits.inFlightMax
      state = .ready(role: own, inFlight: total, lastActivity: now, paused: paused || full)
      return full && !paused ? .acceptAndPauseReading : .accept
    case .draining: return .reject(.draining)
    case .closed: return .none
    }
  }

  /// `records` answers were handed to the connection.
  package mutating func repliesSent(records: Int, now: MonotonicTime) -> Action {
    switch state {
    case .awaitingHello: preconditionFailure("a reply before the hello")
    case .ready(let role, let inFlight, _, let paused):
      precondition(inFlight >= records, "more replies than requests")
      let rest = inFlight - records
      let resume = paused && rest <= limits.inFlightMax / 2
      state = .ready(role: role, inFlight: rest, lastActivity: now, paused: paused && !resume)
      return resume ? .resumeReading : .none
    case .draining(let inFlight):
      precondition(inFlight >= records, "more replies than requests")
      if inFlight == records {
        state = .closed
        return .close
      }
      state = .draining(inFlight: inFlight - records)
      return .none
    case .closed: return .none
    }
  }

  package mutating func pingReceived(now: MonotonicTime) -> Action {
    switch state {
    case .awaitingHello: return fail(.helloRequired)
    case .ready(let role, let inFlight, _, let paused):
      state = .ready(role: role, inFlight: inFlight, lastActivity: now, paused: paused)
      return .pong
    case .draining: return .pong
    case .closed: return .none
    }
  }

  /// Requests of this session were answered elsewhere: it is not idle.
  package mutating func activityNoticed(now: MonotonicTime) {
    switch state {
    case .ready(let role, let inFlight, _, let paused):
      state = .ready(role: role, inFlight: inFlight, lastActivity: now, paused: paused)
    case .awaitingHello, .draining, .closed: break
    }
  }

  /// The peer said that it will send no more.
  package mutating func goAwayReceived() -> Action { drain(answering: .none) }

  /// The server is going down.
  package mutating func drainStarted() -> Action { drain(answering: .goAway(.draining)) }

  private mutating func drain(answering action: Action) -> Action {
    switch state {
    case .awaitingHello:
      state = .closed
      return .close
    case .ready(_, let inFlight, _, _):
      guard inFlight > 0 else {
        state = .closed
        return action == .none ? .close : .goAwayAndClose(.draining)
      }
      state = .draining(inFlight: inFlight)
      return action
    case .draining, .closed: return .none
    }
  }

  /// The grace time of a drain is over.
  package mutating func graceEnded() -> Action {
    guard !isClosed else { return .none }
    state = .closed
    return .close
  }

  package mutating func timePassed(now: MonotonicTime) -> Action {
    switch state {
    case .awaitingHello(let since):
      return now - since >= limits.helloNanoseconds ? fail(.idleTimeout) : .none
    case .ready(_, 0, let lastActivity, _):
      guard now - lastActivity >= limits.idleNanoseconds else { return .none }
      state = .closed
      return .goAwayAndClose(.idleTimeout)
    case .ready, .draining, .closed: return .none
    }
  }

  /// Bytes that are not a frame, or a frame that must not be there: fatal to the connection.
  package mutating func protocolViolated(_ code: ErrorCode) -> Action {
    isClosed ? .none : fail(code)
  }

  package mutating func connectionLost() { state = .closed }

  private mutating func fail(_ code: ErrorCode) -> Action {
    state = .closed
    return .refuseAndClose(code)
  }
}
