// One Redis connection's protocol state: handshake, the FIFO of commands awaiting a reply,
// deadlines and the end.
//
// Why this shape: Redis answers in order, so a queue is the whole correlation. A command whose
// deadline passes keeps its place in the queue; its reply, when it comes, is taken off with it.
// That is what keeps every later answer from being off by one. The machine is a value that takes
// events and answers actions: no clock, no channel, no logging, so a test is a transcript.
//
// Promises: every accepted waiter is completed exactly once, and one that timed out is afterwards
// told exactly once how it ended (`late`); a reply nobody waits for ends the connection; when it
// ends, what was never flushed is `notSent` and the rest is `outcomeUnknown`.
//
//   connecting ──opened──▶ authenticating ──OK──▶ identifying ──INFO──▶ ready
//       │                       │                     │                  │ closeRequested
//       └───────────────────────┴─────────────────────┴──────┐           ▼
//                                                         closed ◀─── closing (drains)

private import DequeModule

package struct RedisConnectionMachine<Waiter> {
  package enum State: Hashable, Sendable {
    /// The transport is not open yet.
    case connecting
    /// AUTH was sent. Next: identifying, or closed.
    case authenticating
    /// INFO was sent. Next: ready, or closed.
    case identifying
    /// Commands are accepted. Next: closing, or closed.
    case ready
    /// No new commands; waits for the replies owed. Next: closed.
    case closing
    /// Final.
    case closed
  }

  private enum Kind {
    case command(Waiter)
    /// A command whose waiter has had its timeout and now hears of the late end.
    case expired(Waiter)
    case authentication
    case serverInformation
    case replicationInformation
    case refresh
  }

  private struct Slot {
    var kind: Kind
    var deadline: Int64
    var sentAt: Int64
  }

  package enum OpenedAction: Hashable, Sendable {
    case sendAuthentication
    case sendIdentification
  }

  package enum ReplyAction {
    /// Give the reply to the command's completion.
    case complete(Waiter)
    /// The command timed out before; give the reply to its late handler.
    case late(Waiter)
    case sendIdentification
    case becameReady(ServerIdentity)
    case identityChanged(ServerIdentity)
    case none
    /// End the connection: call `ended` with this reason, then close the channel.
    case fatal(RedisCloseReason)
  }

  package struct SweepAction {
    /// Complete these with `.outcomeUnknown(.timedOut)`.
    package var expired: [Waiter] = []
    /// The earliest deadline still pending; sweep again then. `Int64.max`: none.
    package var nextDeadline = Int64.max
    package var fatal: RedisCloseReason?
  }

  package struct Casualty {
    package var waiter: Waiter
    /// The waiter had its timeout already: tell its late handler, not its completion.
    package var isLate: Bool
    package var failure: RedisFailure
  }

  package private(set) var state: State = .connecting
  package private(set) var identity: ServerIdentity?
  private let needsAuthentication: Bool
  private let pendingCommandsMax: Int
  /// Nanoseconds the oldest command may stay unanswered before the connection is given up.
  private let stallMax: Int64
  private var slots: Deque<Slot> = []
  /// Slots at the tail whose bytes were not handed to the socket yet.
  private var unflushed = 0
  private var refreshPending = false
  private var serverInformation: InfoFields?

  package init(needsAuthentication: Bool, pendingCommandsMax: Int, stallMax: Int64) {
    self.needsAuthentication = needsAuthentication
    self.pendingCommandsMax = pendingCommandsMax
    self.stallMax = stallMax
  }

  /// Commands without a reply, timed-out ones and our own included.
  package var pendingCount: Int { slots.count }

  /// When the oldest unanswered command was written: what a breaker looks at.
  package var oldestSentAt: Int64? { slots.first?.sentAt }

  /// Closing, and every reply owed has come.
  package var isDrained: Bool { state == .closing && slots.isEmpty }

  // MARK: Commands

  /// Why a new command would be refused, or nil if `commandWritten` may follow.
  package var refusal: RedisFailure.NotSentReason? {
    switch state {
    case .ready: return slots.count < pendingCommandsMax ? nil : .saturated
    case .connecting, .authenticating, .identifying, .closed: return .disconnected
    case .closing: return .closing
    }
  }

  /// The bytes of one command were appended to the outbound buffer. Only after `refusal == nil`.
  package mutating func commandWritten(_ waiter: Waiter, deadline: Int64, sentAt: Int64) {
    precondition(state == .ready, "a command needs a ready connection")
    append(.command(waiter), deadline: deadline, sentAt: sentAt)
  }

  /// Whether INFO replication should be polled now; its bytes must then be appended.
  package mutating func refreshDue(deadline: Int64, now: Int64) -> Bool {
    guard state == .ready, !refreshPending else { return false }
    refreshPending = true
    append(.refresh, deadline: deadline, sentAt: now)
    return true
  }

  /// Everything appended so far was handed to the socket.
  package mutating func flushed() { unflushed = 0 }

  private mutating func append(_ kind: Kind, deadline: Int64, sentAt: Int64) {
    slots.append(Slot(kind: kind, deadline: deadline, sentAt: sentAt))
    unflushed += 1
  }

  // MARK: Events

  /// The transport opened. The answered handshake command must be appended.
  package mutating func opened(deadline: Int64, now: Int64) -> OpenedAction {
    precondition(state == .connecting, "a transport opens once")
    if needsAuthentication {
      state = .authenticating
      append(.authentication, deadline: deadline, sentAt: now)
      return .sendAuthentication
    }
    identify(deadline: deadline, now: now)
    return .sendIdentification
  }

  private mutating func identify(deadline: Int64, now: Int64) {
    state = .identifying
    append(.serverInformation, deadline: deadline, sentAt: now)
    append(.replicationInformation, deadline: deadline, sentAt: now)
  }

  /// A complete reply was read. `now` stamps the identity.
  package mutating func replied(_ reply: RESPReply, now: @autoclosure () -> Int64) -> ReplyAction {
    guard state != .closed else { return .none }
    guard slots.count > unflushed, let slot = slots.popFirst() else {
      return .fatal(.unexpectedReply)
    }
    switch slot.kind {
    case .command(let waiter):
      return .complete(waiter)
    case .expired(let waiter):
      return .late(waiter)
    case .authentication:
      if let text = reply.error { return .fatal(.authenticationRejected(text)) }
      identify(deadline: slot.deadline, now: now())
      return .sendIdentification
    case .serverInformation:
      if let text = reply.error { return .fatal(.identificationRejected(text)) }
      serverInformation = InfoFields(reply.text ?? "")
      return .none
    case .replicationInformation:
      return identified(reply, now: now())
    case .refresh:
      refreshPending = false
      return refreshed(reply)
    }
  }

  private mutating func identified(_ reply: RESPReply, now: Int64) -> ReplyAction {
    if let text = reply.error { return .fatal(.identificationRejected(text)) }
    let replication = InfoFields(reply.text ?? "")
    guard
      let runID = serverInformation?["run_id"],
      let version = serverInformation?["redis_version"],
      let replicationID = replication["master_replid"],
      let role = replication.role
    else {
      return .fatal(.identificationRejected("INFO lacks run_id, master_replid or role"))
    }
    serverInformation = nil
    let identity = ServerIdentity(
      runID: runID, replicationID: replicationID, version: version, role: role, openedAt: now)
    self.identity = identity
    if state == .identifying { state = .ready }
    return .becameReady(identity)
  }

  private mutating func refreshed(_ reply: RESPReply) -> ReplyAction {
    // A refused poll says nothing about who answers; the next one may.
    guard reply.error == nil, var changed = identity else { return .none }
    let replication = InfoFields(reply.text ?? "")
    guard let replicationID = replication["master_replid"], let role = replication.role else {
      return .none
    }
    changed.replicationID = replicationID
    changed.role = role
    guard changed != identity else { return .none }
    identity = changed
    return .identityChanged(changed)
  }

  /// Times out what is past its deadline, keeping its place in the queue.
  package mutating func swept(now: Int64) -> SweepAction {
    var action = SweepAction()
    if let oldest = slots.first, oldest.sentAt &+ stallMax <= now {
      action.fatal = .stalled
      return action
    }
    for index in slots.indices {
      let deadline = slots[index].deadline
      if deadline > now {
        action.nextDeadline = min(action.nextDeadline, deadline)
        continue
      }
      switch slots[index].kind {
      case .command(let waiter):
        slots[index].kind = .expired(waiter)
        action.expired.append(waiter)
      case .authentication, .serverInformation, .replicationInformation:
        action.fatal = .handshakeTimedOut
      case .expired, .refresh:
        break
      }
      slots[index].deadline = Int64.max
    }
    return action
  }

  /// Stop accepting commands. Answers whether the channel can be closed at once.
  package mutating func closeRequested() -> Bool {
    switch state {
    case .connecting, .authenticating, .identifying:
      return true
    case .ready, .closing:
      state = .closing
      return slots.isEmpty
    case .closed:
      return false
    }
  }

  /// The connection is over, for whatever reason. Idempotent: later calls answer nothing.
  package mutating func ended() -> [Casualty] {
    guard state != .closed else { return [] }
    state = .closed
    let firstUnflushed = slots.count - unflushed
    var casualties: [Casualty] = []
    for (index, slot) in slots.enumerated() {
      switch slot.kind {
      case .command(let waiter):
        casualties.append(
          Casualty(
            waiter: waiter, isLate: false,
            failure: index < firstUnflushed
              ? .outcomeUnknown(.connectionLost) : .notSent(.disconnected)))
      case .expired(let waiter):
        casualties.append(
          Casualty(
            waiter: waiter, isLate: true,
            failure: index < firstUnflushed
              ? .outcomeUnknown(.connectionLost) : .notSent(.disconnected)))
      case .authentication, .serverInformation, .replicationInformation, .refresh:
        break
      }
    }
    slots.removeAll()
    unflushed = 0
    return casualties
  }
}
