// The protocol on one connection, as seen by a client: hello, welcome, requests in flight, probes,
// goaway. A plain value: no channel, no clock. What it is handed are decoded frames, what it
// answers is the one thing that follows from each.
//
// Promises: every slot that was opened is given back exactly once — answered, refused, or orphaned
// when the connection ends. A slot stays open when its caller has gone, so answers never shift. An
// answer that fits no slot is fatal: the peer and we no longer speak of the same things.

internal import NIOCore
internal import TollgateWire

/// What travels in a slot, as far as the connection cares.
protocol SlotContent {
  /// How many records the answer must have.
  var recordCount: Int { get }
}

struct ConnectionMachine<Slot: SlotContent> {
  /// ```
  /// greeting ──welcome──▶ open ──goaway──▶ draining ──▶ closed
  ///     └──────────────────┴── desync, error 0, end ──────▲
  /// ```
  enum State: Hashable, Sendable {
    /// HELLO is sent; nothing else may be.
    case greeting
    /// Requests may be sent.
    case open
    /// The server said goaway: answers still come, nothing new is sent.
    case draining
    /// Nothing happens any more.
    case closed
  }

  enum Action {
    case none
    case welcomed(Welcome)
    /// A later WELCOME: new failure policies.
    case policiesChanged(Welcome)
    case answered(Slot, [DecisionRecord])
    case refused(Slot, ErrorReply)
    case wentAway(GoAway)
    case reply(Pong, correlation: UInt64)
    /// The connection cannot go on; the text says why.
    case fail(String)
  }

  enum Probe: Hashable, Sendable {
    case send(correlation: UInt64)
    case fail
    case none
  }

  /// With a probe every third of the sidecar's idle timeout, a dead connection is left before the
  /// sidecar would leave it, and one late pong is no reason to.
  static var silentIntervalsMax: Int { 2 }

  private(set) var state = State.greeting
  private var slots: [UInt64: Slot] = [:]
  private var lastCorrelation: UInt64
  private let helloCorrelation: UInt64 = 1
  private var probe: UInt64?
  /// Intervals in a row in which nothing arrived though a probe is out.
  private var silentIntervals = 0

  init() { lastCorrelation = helloCorrelation }

  var slotCount: Int { slots.count }
  var hello: UInt64 { helloCorrelation }

  /// Opens a slot for a request about to be written.
  mutating func open(_ slot: Slot) -> UInt64 {
    precondition(state == .open, "only an open connection takes requests")
    lastCorrelation += 1
    slots[lastCorrelation] = slot
    return lastCorrelation
  }

  mutating func received(_ frame: Frame) -> Action {
    silentIntervals = 0
    guard let opcode = frame.header.opcode else {
      // Without a correlation id of ours it can only be a push of a later release.
      if frame.header.correlation == 0 { return .none }
      return fail("an answer with unknown opcode \(frame.header.rawOpcode)")
    }
    do throws(WireError) {
      switch state {
      case .closed: return .none
      case .greeting: return try receivedGreeting(opcode, frame)
      case .open, .draining: return try receivedOpen(opcode, frame)
      }
    } catch {
      return fail("an unreadable \(opcode.name): \(error)")
    }
  }

  private mutating func receivedGreeting(
    _ opcode: Opcode, _ frame: Frame
  ) throws(WireError) -> Action {
    switch opcode {
    case .welcome where frame.header.correlation == helloCorrelation:
      let welcome = try Welcome.decode(frame)
      guard welcome.version == FrameHeader.version else {
        return fail("the sidecar chose version \(welcome.version)")
      }
      state = .open
      return .welcomed(welcome)
    case .error:
      let reply = try ErrorReply.decode(frame)
      return fail("the hello was refused: \(reply.code.name): \(reply.message)")
    case .goAway: return fail("goaway instead of welcome")
    case .hello, .welcome, .ping, .pong, .check, .consume, .post, .cancel, .reserve, .settle,
      .release, .extend, .refund, .decisions, .admin, .adminReply, .link, .linked, .batch,
      .batchReply, .recover, .presentRequest, .present, .epoch, .balances, .balancesReply, .config,
      .configReply, .query, .queryReply:
      return fail("\(opcode.name) before welcome")
    }
  }

  private mutating func receivedOpen(_ opcode: Opcode, _ frame: Frame) throws(WireError) -> Action {
    let correlation = frame.header.correlation
    switch opcode {
    case .decisions:
      guard let slot = slots.removeValue(forKey: correlation) else {
        return fail("an answer to request \(correlation), which is not in flight")
      }
      do throws(WireError) {
        let records = try DecisionBatch.decode(frame).records
        if records.count == slot.recordCount { return .answered(slot, records) }
        slots[correlation] = slot
        return fail("\(records.count) answers to \(slot.recordCount) records")
      } catch {
        slots[correlation] = slot
        throw error
      }
    case .error:
      let reply = try ErrorReply.decode(frame)
      guard correlation != 0 else { return fail("\(reply.code.name): \(reply.message)") }
      if correlation == probe {
        probe = nil
        return .none
      }
      guard let slot = slots.removeValue(forKey: correlation) else {
        return fail("an error for request \(correlation), which is not in flight")
      }
      return .refused(slot, reply)
    case .pong:
      guard correlation == probe, try Pong.decode(frame).nonce == correlation else {
        return fail("a pong that answers no ping")
      }
      probe = nil
      return .none
    case .ping: return .reply(Pong(nonce: try Ping.decode(frame).nonce), correlation: correlation)
    case .goAway:
      let goAway = try GoAway.decode(frame)
      if state == .draining { return .none }
      state = .draining
      return .wentAway(goAway)
    case .welcome where correlation == 0: return .policiesChanged(try Welcome.decode(frame))
    case .hello, .welcome, .check, .consume, .post, .cancel, .reserve, .settle, .release, .extend,
      .refund, .admin, .adminReply, .link, .linked, .batch, .batchReply, .recover, .presentRequest,
      .present, .epoch, .balances, .balancesReply, .config, .configReply, .query, .queryReply:
      return fail("\(opcode.name) is not for a client")
    }
  }

  /// The keep-alive interval passed.
  mutating func probeDue() -> Probe {
    switch state {
    case .greeting, .closed: return .none
    case .open, .draining:
      if probe != nil {
        silentIntervals += 1
        return silentIntervals >= Self.silentIntervalsMax ? .fail : .none
      }
      lastCorrelation += 1
      probe = lastCorrelation
      silentIntervals = 0
      return .send(correlation: lastCorrelation)
    }
  }

  /// The connection ended, for whatever reason: what was in flight, oldest first.
  mutating func ended() -> [Slot] {
    state = .closed
    let orphans = slots.sorted { $0.key < $1.key }.map(\.value)
    slots = [:]
    return orphans
  }

  private func fail(_ text: String) -> Action { .fail(text) }
}

extension ConnectionMachine.Action: Equatable where Slot: Equatable {}
