// One connection to the ledger, as a pure value: frames in, at most one action out.
//
//   hello ──HELLO──▶ open ──LINK──▶ linking ──accepted──▶ linked
//                      └──────────── reads only ────────────┘
//
//   hello:   only HELLO; anything else is HELLO_REQUIRED and the end.
//   open:    a tool that reads: QUERY, CONFIG, BALANCES, PING; LINK makes it a sidecar's link.
//   linking: the shell compares the deployment; nothing else is legal meanwhile.
//   linked:  everything.
//   ended:   nothing is read any more.
// Draining is a flag beside the state: requests already taken are answered, new ones refused.

internal import TollgateCore
package import TollgateWire

package struct LedgerSessionMachine: Sendable {
  /// Requests of one link that may await their answer; more are answered OVERLOADED.
  package static let inFlightMax = 64

  package enum Reply: Hashable, Sendable {
    case welcome(UInt32)
    case pong(Pong)
    case error(ErrorReply)
  }

  package enum Read: Hashable, Sendable {
    /// With what the other side knows: counters beyond it are not told.
    case balances(BalancesRequest, ProtocolFeatures)
    case config(ConfigRequest)
    case query(QueryRequest)
  }

  package enum Action: Hashable, Sendable {
    case none
    case reply(Reply, correlation: UInt64)
    /// Send this and close.
    case end(ErrorReply, correlation: UInt64)
    case close
    case link(Link, correlation: UInt64)
    case apply(DeltaBatch, correlation: UInt64)
    case read(Read, correlation: UInt64)
    case recover(Recover)
    case present(Present, isLast: Bool)
  }

  private enum State { case hello, open, linking, linked, ended }

  private let token: String
  private var state = State.hello
  private var isDraining = false
  /// Of the hello.
  private var features: ProtocolFeatures = []
  private var inFlight: Set<UInt64> = []

  /// - Parameter token: what a hello must carry; empty: no credential is asked for.
  package init(token: String) { self.token = token }

  package var isLinked: Bool { state == .linked }
  package var isIdle: Bool { inFlight.isEmpty }
  package var isGreeted: Bool { state != .hello }
  /// Frames are small until the hello is through.
  package var frameBytesMax: Int {
    state == .hello ? WireLimits.helloFrameBytesMax : WireLimits.frameBytesMax
  }

  package mutating func received(_ frame: Frame) -> Action {
    if state == .ended { return .none }
    let correlation = frame.header.correlation
    do throws(WireError) {
      return try dispatch(frame, correlation)
    } catch {
      if error.isFatal || correlation == 0 || state == .hello {
        // A refused HELLO is answered under its own id; later, a fatal error speaks of the
        // connection.
        return end(
          ErrorReply(error), correlation: error.isFatal && state != .hello ? 0 : correlation)
      }
      return .reply(.error(ErrorReply(error)), correlation: correlation)
    }
  }

  /// The frame decoder failed: the position in the stream is lost.
  package mutating func broken(_ error: WireError) -> Action {
    state == .ended ? .none : end(ErrorReply(error), correlation: 0)
  }

  package mutating func linkAccepted() { if state == .linking { state = .linked } }

  package mutating func linkRefused(_ error: ErrorReply, correlation: UInt64) -> Action {
    end(error, correlation: correlation)
  }

  /// Answers false where the request is not awaited: the connection ended meanwhile.
  package mutating func answered(_ correlation: UInt64) -> Bool {
    inFlight.remove(correlation) != nil && state != .ended
  }

  /// From now on nothing new is taken. True: nothing is in flight, the connection may go.
  package mutating func drain() -> Bool {
    isDraining = true
    return inFlight.isEmpty
  }

  package mutating func ended() {
    state = .ended
    inFlight.removeAll()
  }

  private mutating func end(_ error: ErrorReply, correlation: UInt64) -> Action {
    ended()
    return .end(error, correlation: correlation)
  }

  private mutating func dispatch(
    _ frame: Frame, _ correlation: UInt64
  ) throws(WireError) -> Action {
    guard let opcode = frame.header.opcode else {
      throw .refused(.unknownOpcode, "opcode \(frame.header.rawOpcode)")
    }
    if state == .hello {
      guard opcode == .hello else { throw .fatal(.helloRequired, "\(opcode.name) before HELLO") }
      return try hello(try Hello.decode(frame), correlation)
    }
    switch opcode {
    case .ping:
      return .reply(.pong(Pong(nonce: try Ping.decode(frame).nonce)), correlation: correlation)
    case .pong: return .none
    case .goAway:
      ended()
      return .close
    case .link:
      guard state == .open else { throw .refused(.badRequest, "LINK was said before") }
      let link = try Link.decode(frame)
      if isDraining { throw .refused(.draining, "the ledger is shutting down") }
      state = .linking
      return .link(link, correlation: correlation)
    case .batch:
      try requireLinked(opcode)
      let batch = try DeltaBatch.decode(frame)
      return try take(correlation) ?? .apply(batch, correlation: correlation)
    case .recover:
      try requireLinked(opcode)
      let recover = try Recover.decode(frame)
      return isDraining ? .none : .recover(recover)
    case .present:
      try requireLinked(opcode)
      let present = try Present.decode(frame)
      return .present(present, isLast: !frame.header.flags.contains(.more))
    case .balances:
      let read = Read.balances(try BalancesRequest.decode(frame), features)
      return try take(correlation) ?? .read(read, correlation: correlation)
    case .config:
      let read = Read.config(try ConfigRequest.decode(frame))
      return try take(correlation) ?? .read(read, correlation: correlation)
    case .query:
      let read = Read.query(try QueryRequest.decode(frame))
      return try take(correlation) ?? .read(read, correlation: correlation)
    case .hello: throw .fatal(.badRequest, "HELLO was said before")
    case .welcome, .error, .check, .consume, .post, .cancel, .reserve, .settle, .release, .extend,
      .refund, .decisions, .admin, .adminReply, .linked, .batchReply, .presentRequest, .epoch,
      .balancesReply, .configReply, .queryReply:
      throw .refused(.forbidden, "\(opcode.name) is not spoken with a ledger")
    }
  }

  private mutating func hello(_ hello: Hello, _ correlation: UInt64) throws(WireError) -> Action {
    guard (hello.versionMin...hello.versionMax).contains(FrameHeader.version) else {
      throw .fatal(
        .unsupportedVersion,
        "versions \(hello.versionMin) to \(hello.versionMax); "
          + "this ledger speaks \(FrameHeader.version)"
      )
    }
    guard hello.role == .ledger else {
      throw .fatal(.forbidden, "role \(hello.role.name); a ledger serves the role ledger")
    }
    guard token.isEmpty || Self.isEqual(hello.token, token) else {
      throw .fatal(.unauthenticated, "the credential is not this ledger's")
    }
    if isDraining { throw .fatal(.draining, "the ledger is shutting down") }
    state = .open
    features = hello.features
    return .reply(.welcome(UInt32(Self.inFlightMax)), correlation: correlation)
  }

  private func requireLinked(_ opcode: Opcode) throws(WireError) {
    guard state == .linked else { throw .refused(.forbidden, "\(opcode.name) before LINK") }
  }

  /// Counts one request in; what it answers instead is to be sent at once.
  private mutating func take(_ correlation: UInt64) throws(WireError) -> Action? {
    if isDraining { throw .refused(.draining, "the ledger is shutting down") }
    guard inFlight.count < Self.inFlightMax else {
      throw .refused(.overloaded, "\(Self.inFlightMax) requests of this link are in flight")
    }
    guard inFlight.insert(correlation).inserted else {
      throw .fatal(.badFrame, "correlation id \(correlation) is in use")
    }
    return nil
  }

  /// In a time that does not tell how much of a guess was right.
  private static func isEqual(_ a: String, _ b: String) -> Bool {
    let (a, b) = (Array(a.utf8), Array(b.utf8))
    var difference = a.count ^ b.count
    for index in 0..<max(a.count, b.count) {
      difference |= Int((index < a.count ? a[index] : 0) ^ (index < b.count ? b[index] : 0))
    }
    return difference == 0
  }
}
