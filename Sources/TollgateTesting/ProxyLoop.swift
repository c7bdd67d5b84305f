// The fault proxy's thread: one poll(2) loop over its listener and its connections.
//
// Every connection is a pair of lanes, client to server and server to client. A lane holds
// chunks with the time they may leave, so a delay is a property of a chunk and order is kept. A
// lane that holds a megabyte stops reading, so a slow reader pushes back as it would without us.

internal import Glibc
internal import NIOConcurrencyHelpers
internal import Synchronization

/// One direction of one connection.
private struct Lane {
  struct Chunk {
    var bytes: ArraySlice<UInt8>
    let due: ContinuousClock.Instant
  }

  static let heldBytesMax = 1 << 20

  let from: Int32
  let to: Int32
  var chunks: [Chunk] = []
  var held = 0
  /// The source ended; what is held still goes out, then the end is passed on.
  var ended = false
  var endPassed = false
  var passed = 0

  var isDone: Bool { endPassed }
}

private struct ProxyConnection {
  var toServer: Lane
  var toClient: Lane
  /// Client bytes (since arming) after which the next reply is lost; nil when disarmed.
  var threshold: Int?
  var passedAtArming = 0
  var arming = 0
  /// The request has passed: the next bytes of the server are swallowed and the pair is reset.
  var loses = false
  var lostBytes = false
}

struct ProxyLoop {
  private let upstream: TestEndpoint
  private let endpoint: TestEndpoint
  private let shared: ProxyShared
  private var listener: Int32?
  private var connections: [Int: ProxyConnection] = [:]
  private var nextIdentity = 0
  private var mode = FaultProxy.Mode.forward
  private var cutsSeen = 0
  private var dropsSeen = 0

  init(upstream: TestEndpoint, endpoint: TestEndpoint, listener: Int32, shared: ProxyShared) {
    self.upstream = upstream
    self.endpoint = endpoint
    self.listener = listener
    self.shared = shared
  }

  /// Returns once the proxy was closed; every socket is closed then.
  mutating func run() {
    while true {
      shared.drainWakes()
      if takeControls() { break }
      turn()
    }
    for identity in connections.keys { reset(identity) }
    setListening(false)
    if case .unix(let path) = endpoint { unsafe unlink(path) }
    shared.control.withLockedValue { $0.seenVersion = $0.version }
  }

  // MARK: Controls

  /// Takes up what tests have set; true once closed.
  private mutating func takeControls() -> Bool {
    let control = shared.control.withLockedValue { $0 }
    if control.isClosed { return true }
    if control.mode != mode {
      let previous = mode
      mode = control.mode
      setListening(mode != .refuse)
      if mode == .refuse { dropAll { _ in true } }
      if previous == .blackhole { dropAll { $0.lostBytes } }
    }
    if control.dropsOrdered != dropsSeen {
      dropsSeen = control.dropsOrdered
      dropAll { _ in true }
    }
    if control.cutsOrdered != cutsSeen {
      cutsSeen = control.cutsOrdered
      for identity in connections.keys { connections[identity]?.loses = true }
    }
    for identity in connections.keys where connections[identity]?.arming != control.armings {
      arm(identity)
    }
    shared.control.withLockedValue { $0.seenVersion = control.version }
    return false
  }

  private mutating func arm(_ identity: Int) {
    guard var connection = connections[identity] else { return }
    shared.control.withLockedValue { control in
      connection.arming = control.armings
      connection.passedAtArming = connection.toServer.passed
      switch control.cut {
      case .never: connection.threshold = nil
      case .afterClientBytes(let count): connection.threshold = max(count, 1)
      case .random(_, let mean):
        let bound = UInt64(max(2 * mean, 1))
        connection.threshold = Int(control.random.next() % bound) + 1
      }
    }
    connections[identity] = connection
  }

  private mutating func dropAll(where matches: (ProxyConnection) -> Bool) {
    for (identity, connection) in connections where matches(connection) {
      count { $0.dropped += 1 }
      reset(identity)
    }
  }

  private mutating func setListening(_ wanted: Bool) {
    if wanted, listener == nil {
      listener = try? Socket.listen(endpoint)
    } else if !wanted, let open = listener {
      Socket.close(open)
      if case .unix(let path) = endpoint { unsafe unlink(path) }
      listener = nil
    }
  }

  // MARK: One turn

  private mutating func turn() {
    let now = ContinuousClock.now
    var entries = [pollfd(fd: shared.wakeRead, events: Int16(POLLIN), revents: 0)]
    if let listener, mode != .pause {
      entries.append(pollfd(fd: listener, events: Int16(POLLIN), revents: 0))
    }
    var nextDue: ContinuousClock.Instant?
    if mode != .pause {
      for connection in connections.values {
        for lane in [connection.toServer, connection.toClient] {
          if !lane.ended, lane.held < Lane.heldBytesMax {
            entries.append(pollfd(fd: lane.from, events: Int16(POLLIN), revents: 0))
          }
          guard let first = lane.chunks.first else { continue }
          if first.due <= now {
            entries.append(pollfd(fd: lane.to, events: Int16(POLLOUT), revents: 0))
          } else {
            nextDue = min(nextDue ?? first.due, first.due)
          }
        }
      }
    }
    let wait = nextDue.map { max(1, now.duration(to: $0).inMilliseconds) } ?? 1000
    let count = entries.count
    let ready = unsafe entries.withUnsafeMutableBufferPointer { buffer in
      unsafe poll(buffer.baseAddress, nfds_t(count), Int32(clamping: wait))
    }
    // A change of mode wins over bytes that arrived with it.
    guard ready >= 0, entries[0].revents == 0, mode != .pause else { return }
    let readable = Set(entries.dropFirst().filter { $0.revents != 0 }.map(\.fd))
    if let listener, readable.contains(listener) { accept(listener) }
    for identity in connections.keys { serve(identity, readable) }
  }

  private mutating func accept(_ listener: Int32) {
    while true {
      let client = Glibc.accept(listener, nil, nil)
      guard client >= 0 else { return }
      Socket.setNonBlocking(client)
      Socket.setCloseOnExec(client)
      guard let server = try? Socket.connect(upstream) else {
        self.count { $0.upstreamFailures += 1 }
        Socket.reset(client)
        continue
      }
      Socket.setNonBlocking(server)
      let identity = nextIdentity
      nextIdentity += 1
      connections[identity] = ProxyConnection(
        toServer: Lane(from: client, to: server), toClient: Lane(from: server, to: client),
        arming: -1)
      arm(identity)
      self.count {
        $0.accepted += 1
        $0.open += 1
      }
    }
  }

  /// Reads and writes both lanes of one connection, and decides whether it is cut.
  private mutating func serve(_ identity: Int, _ readable: Set<Int32>) {
    guard var connection = connections[identity] else { return }
    let (delayToServer, delayToClient) = shared.control.withLockedValue {
      ($0.delayToServer, $0.delayToClient)
    }
    do {
      if readable.contains(connection.toServer.from) {
        let lost = try read(&connection.toServer, delay: delayToServer)
        connection.lostBytes = connection.lostBytes || lost
      }
      try flush(&connection.toServer)
      if let threshold = connection.threshold,
        connection.toServer.passed - connection.passedAtArming >= threshold
      {
        connection.loses = true
      }
      if readable.contains(connection.toClient.from) {
        let before = connection.toClient.held
        let lost = try read(&connection.toClient, delay: delayToClient)
        connection.lostBytes = connection.lostBytes || lost
        if connection.loses, connection.toClient.held > before {
          let swallowed = connection.toClient.held - before
          connections[identity] = connection
          // Counted first: the client may look as soon as it sees the reset.
          count {
            $0.cut += 1
            $0.bytesSwallowed += swallowed
          }
          reset(identity)
          return
        }
      }
      try flush(&connection.toClient)
      connections[identity] = connection
      if connection.toServer.isDone, connection.toClient.isDone { end(identity) }
    } catch {
      // One side broke the connection; the other side is told in the same way.
      connections[identity] = connection
      reset(identity)
    }
  }

  /// Reads once; true where a blackhole swallowed bytes.
  private mutating func read(_ lane: inout Lane, delay: Duration) throws -> Bool {
    guard !lane.ended, lane.held < Lane.heldBytesMax,
      let bytes = try Socket.read(lane.from)
    else { return false }
    if bytes.isEmpty {
      lane.ended = true
      return false
    }
    if mode == .blackhole {
      count { $0.bytesSwallowed += bytes.count }
      return true
    }
    lane.chunks.append(Lane.Chunk(bytes: bytes[...], due: ContinuousClock.now + delay))
    lane.held += bytes.count
    return false
  }

  private mutating func flush(_ lane: inout Lane) throws {
    let now = ContinuousClock.now
    var written = 0
    while let first = lane.chunks.first, first.due <= now {
      let taken = try Socket.write(lane.to, first.bytes)
      written += taken
      lane.held -= taken
      if taken < first.bytes.count {
        lane.chunks[0].bytes = first.bytes.dropFirst(taken)
        break
      }
      lane.chunks.removeFirst()
    }
    lane.passed += written
    if lane.ended, !lane.endPassed, lane.chunks.isEmpty, mode != .blackhole {
      shutdown(lane.to, Int32(SHUT_WR))
      lane.endPassed = true
    }
  }

  private mutating func end(_ identity: Int) {
    guard let connection = connections.removeValue(forKey: identity) else { return }
    account(connection)
    Socket.close(connection.toServer.from)
    Socket.close(connection.toServer.to)
  }

  private mutating func reset(_ identity: Int) {
    guard let connection = connections.removeValue(forKey: identity) else { return }
    account(connection)
    Socket.reset(connection.toServer.from)
    Socket.reset(connection.toServer.to)
  }

  private func account(_ connection: ProxyConnection) {
    count {
      $0.open -= 1
      $0.bytesToServer += connection.toServer.passed
      $0.bytesToClient += connection.toClient.passed
    }
  }

  private func count(_ body: (inout FaultProxy.Counters) -> Void) {
    shared.control.withLockedValue { body(&$0.counters) }
  }
}
