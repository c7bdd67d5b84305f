// Which sidecar we talk to. One connection takes requests (the *link*); others may linger after a
// goaway until what they owe is answered. The link stays where it is for as long as it works; when
// it ends the same sidecar is tried first, then the others in turn, and after a round without
// success there is a pause, during which the failure policies answer at once.

internal import TollgateWire

extension ClientMachine {
  enum Link: Hashable {
    /// Not started, or stopped.
    case none
    case resting(until: MonotonicTime)
    /// Connecting or greeting. `until` is far away once giving it up was ordered.
    case dialing(ConnectionID, until: MonotonicTime)
    case open(ConnectionID)

    var wake: MonotonicTime? {
      switch self {
      case .none, .open: nil
      case .resting(let until), .dialing(_, let until): until
      }
    }
  }

  struct Connection {
    enum Phase: Hashable { case dialing, open, draining }

    let endpoint: Int
    var phase = Phase.dialing
    var framesInFlight = 0
    var isWritable = true
    var hasAnswered = false
    var openedAt: MonotonicTime?
    var frameBytesMax = 0
    var recordsMax = 0
    var framesMax = 0
    var features: ProtocolFeatures = []
    /// As it calls itself.
    var sidecar: Name?

    init(endpoint: Int) { self.endpoint = endpoint }

    func hasRoom(_ inFlightMax: Int) -> Bool {
      isWritable && framesInFlight < min(inFlightMax, framesMax)
    }
  }

  /// Connections that linger after goaway; one more ends the oldest.
  static var drainingMax: Int { 4 }
  /// A link that was open this long (ns) was a good one, even if nothing was asked on it.
  static var settledAfter: Int64 { 1_000_000_000 }

  /// The connection that takes requests.
  var openLink: ConnectionID? {
    switch link {
    case .open(let id): id
    case .none, .resting, .dialing: nil
    }
  }

  mutating func dial(_ now: Now) {
    lastConnection += 1
    connections[lastConnection] = Connection(endpoint: cursor)
    link = .dialing(lastConnection, until: now.monotonic + settings.connectTimeout)
    effects.append(.connect(lastConnection, endpoint: cursor))
  }

  mutating func welcomed(_ id: ConnectionID, _ welcome: Welcome, _ now: Now) {
    guard var connection = connections[id], connection.phase == .dialing else { return }
    connection.phase = .open
    connection.openedAt = now.monotonic
    connection.frameBytesMax = min(Int(welcome.frameBytesMax), WireLimits.frameBytesMax)
    connection.recordsMax = max(1, min(Int(welcome.recordsMax), WireLimits.recordsMax))
    connection.framesMax = max(1, Int(welcome.inFlightMax))
    connection.features = welcome.features
    connection.sidecar = welcome.sidecar
    if errandWelcomed(id, connection, now) { return }
    guard case .dialing(id, _) = link else { return }
    connections[id] = connection
    book.learn(welcome)
    learnScopes(welcome)
    link = .open(id)
    cameHome(to: welcome.sidecar)
    isDown = false
    statistics.connections += 1
    effects.append(.ready)
  }

  mutating func policiesChanged(_ welcome: Welcome) {
    book.learn(welcome)
    learnScopes(welcome)
  }

  mutating func writabilityChanged(_ id: ConnectionID, _ isWritable: Bool) {
    connections[id]?.isWritable = isWritable
  }

  /// Send nothing new there; a new link is made at once, elsewhere if there is an elsewhere.
  mutating func wentAway(_ id: ConnectionID, _ goAway: GoAway, _ now: Now) {
    guard let connection = connections[id] else { return }
    lastTrouble = "\(goAway.code.name): \(goAway.message)"
    connections[id]?.phase = .draining
    let draining = connections.filter { $0.value.phase == .draining }.keys.sorted()
    if draining.count > Self.drainingMax { effects.append(.close(draining[0])) }
    errandEnded(id, now)
    finishDraining(id)
    guard link == .open(id) else { return }
    if goAway.code != .idleTimeout { cursor = (cursor + 1) % settings.endpoints }
    relink(after: connection, now)
  }

  /// The connection is gone, or never came to be; the last event of its id. `orphans` are the
  /// shipments that had no answer.
  mutating func closed(
    _ id: ConnectionID, orphans: [Shipment], trouble: String, _ now: Now
  ) {
    guard let connection = connections.removeValue(forKey: id) else { return }
    if !trouble.isEmpty { lastTrouble = trouble }
    for shipment in orphans.reversed() {
      switch shipment {
      case .calls(let tokens): orphaned(tokens, now)
      case .posts(_, let number): book.posts.lost(number: number)
      case .cancels(_, let number): book.cancels.lost(number: number)
      case .settles(_, let number): book.settles.lost(number: number)
      }
    }
    errandEnded(id, now)
    switch link {
    case .open(id): relink(after: connection, now)
    case .dialing(id, _): dialFailed(now)
    case .none, .resting, .dialing, .open: break
    }
    if isDown { settleWaiting(now) }
  }

  /// The link ended. If it was a good one a new one is dialled at once; else, so that a sidecar
  /// that hangs up on everyone is not stormed, after a pause.
  private mutating func relink(after connection: Connection, _ now: Now) {
    guard life == .running || life == .stopping else { return link = .none }
    let age = now.monotonic - (connection.openedAt ?? now.monotonic)
    if connection.hasAnswered || age >= Self.settledAfter {
      failures = 0
      dial(now)
    } else {
      rest(now)
    }
  }

  private mutating func dialFailed(_ now: Now) {
    statistics.connectFailures += 1
    guard life == .running || life == .stopping else { return link = .none }
    cursor = (cursor + 1) % settings.endpoints
    failures += 1
    if failures % settings.endpoints == 0 {
      rest(now)
      isDown = true
    } else {
      dial(now)
    }
  }

  private mutating func rest(_ now: Now) {
    let round = failures / settings.endpoints
    let pause = settings.reconnect.length(attempt: max(0, round - 1), using: &random)
    link = .resting(until: now.monotonic + pause)
  }

  mutating func wakeLink(_ now: Now) {
    switch link {
    case .none, .open: break
    case .resting(let until): if until <= now.monotonic { dial(now) }
    case .dialing(let id, let until):
      guard until <= now.monotonic else { return }
      lastTrouble = "connecting took too long"
      link = .dialing(id, until: MonotonicTime(nanoseconds: .max))
      effects.append(.close(id))
    }
  }

  mutating func freeSlot(of id: ConnectionID) {
    connections[id]?.framesInFlight -= 1
    connections[id]?.hasAnswered = true
    if openLink == id { failures = 0 }
  }

  /// A draining connection that owes nothing more is closed.
  mutating func finishDraining(_ id: ConnectionID) {
    guard let connection = connections[id], connection.phase == .draining else { return }
    if connection.framesInFlight == 0 { effects.append(.close(id)) }
  }
}
