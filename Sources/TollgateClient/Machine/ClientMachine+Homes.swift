// Operations of scope `sidecar` (PROTOCOL 6.1). What a lease answered is known to the sidecar that
// answered and to nobody else, so an operation that may have been applied is asked again there: its
// *home*. Where the link is with another sidecar by then, an *errand* is made: a connection to the
// home that carries such calls alone, dialled for as long as one of them waits, and closed behind
// the last of them.
//
// Promise: with several endpoints, an operation that may have been applied at one sidecar is never
// sent to another one, and no failure policy answers it: what that lets through is posted, and what
// it denies is cancelled, wherever the link is then. If the home does not come back before the
// call's deadline, the outcome is unknown; the id remembers its home for a later call.
//
// With one endpoint there is no elsewhere, and all of this rests.

internal import DequeModule
internal import TollgateWire

/// Where an operation was sent first.
struct Home: Hashable, Sendable {
  let sidecar: Name
  /// Where that one was met.
  let endpoint: Int
}

extension ClientMachine {
  enum Errand: Hashable {
    case resting(until: MonotonicTime)
    case dialing(ConnectionID, until: MonotonicTime)
    case open(ConnectionID)

    var connection: ConnectionID? {
      switch self {
      case .resting: nil
      case .dialing(let id, _), .open(let id): id
      }
    }

    var wake: MonotonicTime? {
      switch self {
      case .open: nil
      case .resting(let until), .dialing(_, let until): until
      }
    }
  }

  /// Calls that wait for a sidecar other than the link's.
  struct Waiting {
    let home: Home
    var tokens: Deque<Token> = []
    var errand: Errand
    /// Attempts in a row that failed.
    var failures = 0
  }

  // MARK: - Whose it is

  mutating func learnScopes(_ welcome: Welcome) {
    // As with policies: one that has only just started does not know yet.
    if welcome.globalVersion == 0, welcome.policies.isEmpty { return }
    sidecarFeatures = Set(welcome.sidecarFeatures)
  }

  func isOfSidecarScope(_ ask: Ask) -> Bool {
    guard settings.endpoints > 1, case .consume(let record) = ask else { return false }
    return !record.items.isEmpty
      && record.items.allSatisfy { sidecarFeatures.contains($0.feature) }
  }

  /// The only one that may be asked; nil: anybody may.
  func home(of call: Call) -> Home? {
    guard call.mayBeApplied || call.phase == .sent, let home = call.home,
      call.isOfSidecarScope || isOfSidecarScope(call.ask)
    else { return nil }
    return home
  }

  /// It is about to be sent over this connection.
  func addressed(_ call: Call, to connection: Connection) -> Call {
    var call = call
    guard settings.endpoints > 1, call.ask.changes else { return call }
    if !call.mayBeApplied || call.home == nil {
      call.home = connection.sidecar.map { Home(sidecar: $0, endpoint: connection.endpoint) }
      call.isOfSidecarScope = false
    }
    // What it was when it was sent stays true of it, whatever the catalog says later.
    call.isOfSidecarScope = call.isOfSidecarScope || isOfSidecarScope(call.ask)
    return call
  }

  func mayGo(_ call: Call, over connection: Connection) -> Bool {
    guard let home = home(of: call) else { return true }
    return home.sidecar == connection.sidecar
  }

  // MARK: - Waiting for it

  /// The link is with somebody else.
  mutating func park(_ call: Call, at home: Home, _ now: Now) {
    calls[call.token]?.phase = .away
    if waiting[home.sidecar] == nil {
      waiting[home.sidecar] = Waiting(home: home, errand: .resting(until: now.monotonic))
    }
    waiting[home.sidecar]?.tokens.append(call.token)
    wakeErrands(now)
  }

  mutating func pumpErrands(_ now: Now) {
    guard !waiting.isEmpty else { return }
    for sidecar in waiting.keys.sorted() {
      guard case .open(let id)? = waiting[sidecar]?.errand else { continue }
      while let connection = connections[id], connection.hasRoom(settings.inFlightMax),
        let token = waiting[sidecar]?.tokens.popFirst()
      {
        guard let call = calls[token], call.phase == .away else { continue }
        sendAlone(call, on: id, now)
      }
      endErrandIfDone(sidecar)
    }
  }

  /// Nobody waits any more.
  private mutating func endErrandIfDone(_ sidecar: Name) {
    guard var place = waiting[sidecar] else { return }
    while let first = place.tokens.first, calls[first]?.phase != .away {
      place.tokens.removeFirst()
    }
    waiting[sidecar] = place
    guard place.tokens.isEmpty else { return }
    switch place.errand {
    case .resting: waiting[sidecar] = nil
    // Its welcome or its end comes first.
    case .dialing: break
    case .open(let id):
      guard connections[id]?.framesInFlight == 0 else { return }
      waiting[sidecar] = nil
      connections[id]?.phase = .draining
      effects.append(.close(id))
    }
  }

  // MARK: - Connections to it

  mutating func wakeErrands(_ now: Now) {
    guard !waiting.isEmpty else { return }
    for sidecar in waiting.keys.sorted() {
      endErrandIfDone(sidecar)
      guard let place = waiting[sidecar] else { continue }
      switch place.errand {
      case .open: break
      case .resting(let until):
        guard until <= now.monotonic else { continue }
        lastConnection += 1
        connections[lastConnection] = Connection(endpoint: place.home.endpoint)
        waiting[sidecar]?.errand = .dialing(
          lastConnection, until: now.monotonic + settings.connectTimeout)
        effects.append(.connect(lastConnection, endpoint: place.home.endpoint))
      case .dialing(let id, let until):
        guard until <= now.monotonic else { continue }
        waiting[sidecar]?.errand = .dialing(id, until: MonotonicTime(nanoseconds: .max))
        effects.append(.close(id))
      }
    }
  }

  /// The home of a connection that is no link; nil: it is, or was, one.
  private func errand(of id: ConnectionID) -> Name? {
    waiting.first { $0.value.errand.connection == id }?.key
  }

  /// False: the connection is not an errand's.
  mutating func errandWelcomed(_ id: ConnectionID, _ connection: Connection, _ now: Now) -> Bool {
    guard let sidecar = errand(of: id) else { return false }
    connections[id] = connection
    if connection.sidecar == sidecar {
      waiting[sidecar]?.errand = .open(id)
      waiting[sidecar]?.failures = 0
    } else {
      // Somebody else stands there now.
      restErrand(sidecar, now)
      effects.append(.close(id))
    }
    return true
  }

  /// It takes nothing new any more, or is gone.
  mutating func errandEnded(_ id: ConnectionID, _ now: Now) {
    guard let sidecar = errand(of: id) else { return }
    restErrand(sidecar, now)
  }

  private mutating func restErrand(_ sidecar: Name, _ now: Now) {
    let failures = waiting[sidecar]?.failures ?? 0
    let pause = settings.reconnect.length(attempt: failures, using: &random)
    waiting[sidecar]?.failures = failures + 1
    waiting[sidecar]?.errand = .resting(until: now.monotonic + pause)
  }

  /// The link is with this sidecar now: whoever waited for it goes that way.
  mutating func cameHome(to sidecar: Name) {
    guard let place = waiting.removeValue(forKey: sidecar) else { return }
    for token in place.tokens.reversed() where calls[token]?.phase == .away {
      calls[token]?.phase = .queued
      queue.prepend(token)
    }
    guard let id = place.errand.connection else { return }
    connections[id]?.phase = .draining
    // What is under way over it is answered there; one that is being dialled is of no use.
    if connections[id]?.openedAt == nil { effects.append(.close(id)) } else { finishDraining(id) }
  }

  var errandsWake: MonotonicTime? { waiting.values.compactMap(\.errand.wake).min() }
}
