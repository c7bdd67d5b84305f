// A thread that carries client connections with nothing between it and the kernel: wait, read,
// split into frames, answer what the fast path can, write. It decides nothing about sessions: the
// connection's conversation does, on a NIO loop, and every frame that the fast path leaves goes
// there (LocalLink.swift).
//
// Why beside NIO: at one request per read and write, an event loop's own turn costs as much as both
// system calls together, and the fast path's answer costs a fraction of either.
//
// One turn reads each ready connection once, so that none can hold the others up; what the fast
// path answered leaves when all were read, in one write for each: a peer that is woken by the first
// answer finds the others there, too, and both sides make fewer turns. Where that is very much,
// some of it leaves earlier. Nothing is kept of an idle connection but its place: what is read goes
// into one buffer for all, and only half a frame, or bytes that the peer does not take, are kept
// beside it.
//
// Everything in here happens on the loop's thread. A descriptor belongs to its place in
// `connections` and is closed in `drop`, once, which is also where the conversation is told.

import Glibc
import NIOCore
import TollgateWire

final class LocalLoop {
  struct Settings: Sendable {
    /// Connections that have a place; beyond it the sockets are closed as they come.
    var connectionsMax: Int
    /// Bytes that a peer does not take, above which it is not read either.
    var unsentMax = 4 << 20
    /// Below this it is read again.
    var unsentLow = 256 << 10
    /// How long a closed connection may take to accept its last answers.
    var lingerNanoseconds: Int64 = 1_000_000_000
  }

  /// Bytes of one connection that are read in one turn at most.
  static let readBytesMax = 64 * 1024
  /// A frame up to this size is kept until it is all there; a larger one, which can be nothing that
  /// the fast path answers, goes to the conversation as it comes.
  static let wholeBytesMax = WireLimits.dataFrameBytesMax
  /// More answers than this do not wait for the end of the turn: some six hundred. Of a few at a
  /// time, each write would wake the peer, which on a shared core takes it from this loop.
  static let outputBytesMax = 64 * 1024
  /// Connections accepted in one turn.
  static let acceptsMax = 64
  /// How long no connection is accepted when there are no descriptors left.
  static let acceptPause: Int64 = 50_000_000

  /// Numbers of what is polled beside connections.
  static let bellNumber = UInt64.max
  static let listenerNumber = UInt64.max - 15

  let settings: Settings
  let inbox: LoopInbox
  let homes: [SessionInbox]
  let fast: (any FastPath)?
  let metrics: Metrics
  let poller: LoopPoller
  /// Where accepted connections go in turn; only the first loop has listeners.
  let peers: [LoopInbox]
  var listeners: [LocalListener]

  var connections: [LocalConnection?] = []
  /// How often each place was taken before.
  var taken: [UInt32] = []
  var free: [Int] = []
  /// Events for each home, handed over at the end of the turn.
  var staged: [[SessionEvent]]
  var nextHome = 0
  var nextPeer = 0
  let input = InBytes(capacity: wholeBytesMax + readBytesMax + 4096)
  let output = OutBytes(capacity: 256 * 1024)
  /// Whose answers lie where in `output`.
  var answers: [(LocalConnection, Range<Int>)] = []
  var openCount = 0
  /// Frames that the fast path answered in this turn.
  var answered: Int64 = 0
  /// Accepting goes on then; nil: it does.
  var acceptsAt: Int64?
  /// Closed connections whose last answers are not taken, by the time they have for it.
  var lingering: [(key: ConnectionKey, until: Int64)] = []
  private var messages: [LoopMessage] = []
  private var ends: [@Sendable () -> Void] = []
  private var isStopping = false

  init(
    settings: Settings, inbox: LoopInbox, homes: [SessionInbox], poller: LoopPoller,
    listeners: [LocalListener], peers: [LoopInbox], fast: (any FastPath)?, metrics: Metrics
  ) {
    self.settings = settings
    self.inbox = inbox
    self.homes = homes
    self.poller = poller
    self.listeners = listeners
    self.peers = peers
    self.fast = fast
    self.metrics = metrics
    staged = Array(repeating: [], count: homes.count)
  }

  /// Until it is told to stop.
  func run() {
    _ = poller.add(inbox.bell, number: Self.bellNumber)
    for (index, listener) in listeners.enumerated() {
      _ = poller.add(listener.descriptor, number: Self.listenerNumber + UInt64(index))
    }
    while !isStopping { turn() }
    for place in connections.indices {
      if let connection = connections[place] { drop(connection) }
    }
    stopListening()
    handOver()
    for end in ends { end() }
  }

  private func turn() {
    let ready = poller.wait(milliseconds: timeLimit())
    var isRung = false
    for index in 0..<ready {
      let event = poller[index]
      if event.number == Self.bellNumber {
        isRung = true
      } else if event.number >= Self.listenerNumber {
        accept(Int(event.number - Self.listenerNumber))
      } else if let connection = connection(ConnectionKey(number: event.number)) {
        happened(event, connection)
      }
    }
    flush()
    if isRung {
      work()
      flush()
    }
    if acceptsAt != nil || !lingering.isEmpty { timePassed() }
    if answered > 0 {
      metrics.frames.add(answered)
      answered = 0
    }
    fast?.turnEnded()
    handOver()
  }

  private func happened(_ event: LoopPoller.Ready, _ connection: LocalConnection) {
    if event.isWritable { writable(connection) }
    if connection.isGone { return }
    if connection.isWatchedForReading {
      // What was sent before a peer left is still read; the end shows as an empty read.
      if event.isReadable || event.isBroken { readable(connection) }
    } else if event.isBroken {
      // Nothing waits for it to be read again: it would be reported without end.
      drop(connection)
    }
  }

  /// What was collected for the conversations in this turn.
  func handOver() {
    for index in staged.indices where !staged[index].isEmpty { homes[index].put(&staged[index]) }
  }

  func connection(_ key: ConnectionKey) -> LocalConnection? {
    guard Int(key.place) < connections.count, let connection = connections[Int(key.place)],
      connection.key == key
    else { return nil }
    return connection
  }

  // MARK: - Messages

  private func work() {
    inbox.take(into: &messages)
    for message in messages { received(message) }
    messages.removeAll(keepingCapacity: messages.capacity < 4096)
  }

  private func received(_ message: LoopMessage) {
    switch message {
    case .adopt(let descriptor, let peerUID, let isTCP):
      adopt(descriptor, peerUID: peerUID, isTCP: isTCP)
    case .unsent(let key):
      if let connection = connection(key) { noteUnsent(connection) }
    case .broken(let key):
      if let connection = connection(key) { drop(connection) }
    case .ready(let key, let frameBytesMax, let features):
      guard let connection = connection(key) else { return }
      connection.frameBytesMax = frameBytesMax
      connection.features = features
      connection.isFast = fast != nil
      connection.pauses.remove(.greeting)
      // What came behind the hello is here already, and may be all there will be.
      splitKept(connection)
    case .draining(let key): connection(key)?.isFast = false
    case .reading(let key, let on):
      guard let connection = connection(key) else { return }
      if on { connection.pauses.remove(.session) } else { connection.pauses.insert(.session) }
      watch(connection)
    case .unstall(let key):
      guard let connection = connection(key) else { return }
      connection.pauses.remove(.stalled)
      watch(connection)
    case .close(let key):
      if let connection = connection(key) { close(connection) }
    case .stopListening(let done):
      stopListening()
      done()
    case .stop(let done):
      isStopping = true
      ends.append(done)
    }
  }

  // MARK: - Time

  private func timeLimit() -> Int32? {
    guard let next = [acceptsAt, lingering.first?.until].compactMap({ $0 }).min() else {
      return nil
    }
    return Int32(clamping: max(0, next - LocalSystem.bootNanoseconds()) / 1_000_000 + 1)
  }

  private func timePassed() {
    let now = LocalSystem.bootNanoseconds()
    if let at = acceptsAt, now >= at { acceptAgain() }
    while let first = lingering.first, first.until <= now {
      lingering.removeFirst()
      if let connection = connection(first.key) { drop(connection) }
    }
  }
}

/// A listening socket, and what its connections are.
struct LocalListener: Sendable {
  let descriptor: Int32
  /// Otherwise a Unix socket, whose peer's user counts.
  let isTCP: Bool
}

/// One connection's place.
final class LocalConnection {
  /// Why a connection is not read.
  struct Pauses: OptionSet {
    let rawValue: UInt8
    /// Its first frame is being judged: what follows is read by other rules, or not at all.
    static let greeting = Pauses(rawValue: 1)
    /// The session said so.
    static let session = Pauses(rawValue: 2)
    /// The peer does not take what it is sent.
    static let unsent = Pauses(rawValue: 4)
    /// The conversation has enough to work on.
    static let stalled = Pauses(rawValue: 8)
    /// Nothing more is read from it.
    static let closing = Pauses(rawValue: 16)
  }

  let key: ConnectionKey
  let descriptor: Int32
  let link: LocalLink
  let home: Int
  var frameBytesMax = WireLimits.helloFrameBytesMax
  var features: ProtocolFeatures = []
  /// The fast path may answer.
  var isFast = false
  /// The first frame has been handed over.
  var hasGreeted = false
  /// The conversation is over.
  var isClosed = false
  var isGone = false
  var pauses: Pauses = []
  /// What epoll was told.
  var isWatchedForReading = true
  var isWatchedForWriting = false
  /// Half a frame.
  var kept: [UInt8] = []
  /// Bytes of a frame that goes to the conversation as it comes.
  var passing = 0
  /// The outlet keeps what the peer did not take.
  var hasUnsent = false

  init(key: ConnectionKey, descriptor: Int32, link: LocalLink, home: Int) {
    self.key = key
    self.descriptor = descriptor
    self.link = link
    self.home = home
  }
}
