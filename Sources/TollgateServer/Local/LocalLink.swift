// The way between a connection of a local loop and its conversation, which live on two threads.
//
//   LocalLoop ── SessionEvent ──▶ SessionInbox ──▶ LocalDesk ──▶ Conversation     (NIO loop)
//   LocalLoop ◀── LoopMessage ─── LoopInbox ◀─── LocalOutbox ◀── LocalTransport   (NIO loop)
//   socket    ◀── Outlet ◀────────────────────────────────────── LocalTransport
//
// Why this shape: each side collects what it has for the other in one turn and hands it over under
// one lock, with one wake-up, and only where the other side was not woken already. Messages of one
// connection stay in order either way. Answers do not wait for the loop to be woken: whoever has
// them writes them, under the lock of the connection's outlet. What a `LocalLink` shares beside is
// a few words that either side may see late.
//
// Promises: an opened connection is told lost exactly once, behind everything that was read on it;
// a message for a connection that is gone finds nobody; what lies unread before a conversation is
// bounded, because reading pauses.

import NIOConcurrencyHelpers
import NIOCore
import Synchronization
import TollgateWire

/// What both sides know of one connection.
final class LocalLink: Sendable {
  /// Bytes handed over and not worked on, above which the connection is not read.
  static let unreadMax = 256 * 1024
  /// Below this many it is read again.
  static let unreadLow = 64 * 1024

  let key: ConnectionKey
  let loop: LoopInbox
  /// Both sides write through it, whole frames at a time.
  let outlet: NIOLockedValueBox<Outlet>
  /// Whether the peer takes what it is sent. Written by the loop.
  let isWritable = Atomic<Bool>(true)
  /// The fast path answered since this was last asked. Set by the loop.
  let wasActive = Atomic<Bool>(false)
  private let unread = Atomic<Int>(0)
  private let isStalled = Atomic<Bool>(false)

  init(key: ConnectionKey, descriptor: Int32, loop: LoopInbox) {
    self.key = key
    outlet = NIOLockedValueBox(Outlet(descriptor: descriptor))
    self.loop = loop
  }

  /// On the loop: so many bytes were handed over. True where reading has to wait, until
  /// `LoopMessage.unstall` comes.
  func handedOver(_ bytes: Int) -> Bool {
    guard unread.add(bytes, ordering: .sequentiallyConsistent).newValue > Self.unreadMax else {
      return false
    }
    // Either this sees that they were worked on meanwhile, or who works on them sees the mark.
    isStalled.store(true, ordering: .sequentiallyConsistent)
    guard unread.load(ordering: .sequentiallyConsistent) <= Self.unreadLow else { return true }
    return !isStalled.exchange(false, ordering: .sequentiallyConsistent)
  }

  /// On the conversation's side: true where the loop has to be told to read again.
  func workedOn(_ bytes: Int) -> Bool {
    guard unread.subtract(bytes, ordering: .sequentiallyConsistent).newValue <= Self.unreadLow,
      isStalled.load(ordering: .sequentiallyConsistent)
    else { return false }
    return isStalled.exchange(false, ordering: .sequentiallyConsistent)
  }
}

/// What a loop tells the conversations of a NIO loop.
enum SessionEvent: Sendable {
  case opened(LocalLink, peerUID: UInt32?)
  case received(LocalLink, ByteBuffer)
  case becameWritable(LocalLink)
  /// The last of its connection.
  case lost(LocalLink)
}

/// What a loop is told.
enum LoopMessage: Sendable {
  /// A connection that another loop accepted.
  case adopt(Int32, peerUID: UInt32?, isTCP: Bool)
  /// A conversation wrote more than the peer takes now.
  case unsent(ConnectionKey)
  /// A conversation could not write.
  case broken(ConnectionKey)
  /// The session takes requests: frames of that size, and the fast path may answer.
  case ready(ConnectionKey, frameBytesMax: Int, features: ProtocolFeatures)
  /// The session takes no more requests: the fast path may answer none.
  case draining(ConnectionKey)
  case reading(ConnectionKey, Bool)
  case unstall(ConnectionKey)
  /// Behind what was written.
  case close(ConnectionKey)
  case stopListening(done: @Sendable () -> Void)
  /// Ends every connection, then the loop.
  case stop(done: @Sendable () -> Void)
}

/// Messages to one loop, from anywhere.
final class LoopInbox: Sendable {
  private struct State {
    var messages: [LoopMessage] = []
    var isRung = false
  }

  let bell: LoopBell
  private let state = NIOLockedValueBox(State())

  init() throws(ListenFailure) { bell = try LoopBell() }

  /// Takes all of them; the array is left empty.
  func put(_ messages: inout [LoopMessage]) {
    guard !messages.isEmpty else { return }
    let rings = state.withLockedValue { state in
      if state.messages.isEmpty {
        swap(&state.messages, &messages)
      } else {
        state.messages.append(contentsOf: messages)
      }
      defer { state.isRung = true }
      return !state.isRung
    }
    messages.removeAll(keepingCapacity: true)
    if rings { bell.ring() }
  }

  func put(_ message: LoopMessage) {
    var messages = [message]
    put(&messages)
  }

  /// On the loop, when the bell was heard. `into` is empty.
  func take(into messages: inout [LoopMessage]) {
    state.withLockedValue { state in
      swap(&state.messages, &messages)
      state.isRung = false
    }
  }
}

/// Events for the conversations of one NIO loop, from any local loop.
final class SessionInbox: Sendable {
  private struct State {
    var events: [SessionEvent] = []
    var isScheduled = false
  }

  private let unit: SessionUnit
  private let state = NIOLockedValueBox(State())

  init(_ unit: SessionUnit) { self.unit = unit }

  /// Takes all of them; the array is left empty.
  func put(_ events: inout [SessionEvent]) {
    let schedules = state.withLockedValue { state in
      if state.events.isEmpty {
        swap(&state.events, &events)
      } else {
        state.events.append(contentsOf: events)
      }
      defer { state.isScheduled = true }
      return !state.isScheduled
    }
    events.removeAll(keepingCapacity: true)
    if schedules {
      unit.onLoop { context in context.breather.run { context.local.work(on: self) } }
    }
  }

  /// On the NIO loop. `into` is empty.
  func take(into events: inout [SessionEvent]) {
    state.withLockedValue { state in
      swap(&state.events, &events)
      state.isScheduled = false
    }
  }
}

/// Messages of one NIO loop to one local loop, collected over a turn. On the NIO loop only.
final class LocalOutbox {
  private let loop: LoopInbox
  private let flusher: LoopFlusher
  private var messages: [LoopMessage] = []

  init(_ loop: LoopInbox, flusher: LoopFlusher) {
    self.loop = loop
    self.flusher = flusher
  }

  func add(_ message: LoopMessage) {
    if messages.isEmpty { flusher.add(self) }
    messages.append(message)
  }

  func handOver() { loop.put(&messages) }
}

/// The conversations of one NIO loop whose sockets are on local loops. On the NIO loop only.
final class LocalDesk {
  private unowned let shared: SessionContext
  private var open: [ObjectIdentifier: LocalTransport] = [:]
  private var outboxes: [ObjectIdentifier: LocalOutbox] = [:]
  private var events: [SessionEvent] = []

  init(_ shared: SessionContext) { self.shared = shared }

  func work(on inbox: SessionInbox) {
    var events = events
    self.events = []
    inbox.take(into: &events)
    for event in events { happened(event) }
    events.removeAll(keepingCapacity: events.capacity < 4096)
    self.events = events
  }

  private func happened(_ event: SessionEvent) {
    switch event {
    case .opened(let link, let peerUID):
      let conversation = Conversation(shared: shared, peerUID: peerUID)
      let transport = LocalTransport(link, outbox: outbox(of: link.loop), conversation)
      open[ObjectIdentifier(link)] = transport
      conversation.opened(on: transport)
    case .received(let link, let bytes):
      let count = bytes.readableBytes
      open[ObjectIdentifier(link)]?.conversation.received(bytes)
      if link.workedOn(count) { outbox(of: link.loop).add(.unstall(link.key)) }
    case .becameWritable(let link):
      open[ObjectIdentifier(link)]?.conversation.writabilityChanged()
    case .lost(let link): open.removeValue(forKey: ObjectIdentifier(link))?.conversation.lost()
    }
  }

  private func outbox(of loop: LoopInbox) -> LocalOutbox {
    if let outbox = outboxes[ObjectIdentifier(loop)] { return outbox }
    let outbox = LocalOutbox(loop, flusher: shared.flusher)
    outboxes[ObjectIdentifier(loop)] = outbox
    return outbox
  }
}

/// What a conversation sees of a connection on a local loop.
final class LocalTransport: Transport {
  let conversation: Conversation
  private let link: LocalLink
  private let outbox: LocalOutbox
  private var isReading = true

  init(_ link: LocalLink, outbox: LocalOutbox, _ conversation: Conversation) {
    self.link = link
    self.outbox = outbox
    self.conversation = conversation
  }

  var isWritable: Bool { link.isWritable.load(ordering: .relaxed) }

  func write(_ bytes: ByteBuffer) {
    switch link.outlet.withLockedValue({ $0.write(bytes) }) {
    case 0?: break
    case nil: outbox.add(.broken(link.key))
    case _?: outbox.add(.unsent(link.key))
    }
  }

  func setReading(_ on: Bool) {
    guard on != isReading else { return }
    isReading = on
    outbox.add(.reading(link.key, on))
  }

  func close() { outbox.add(.close(link.key)) }

  func sessionReady(frameBytesMax: Int, features: ProtocolFeatures) {
    outbox.add(.ready(link.key, frameBytesMax: frameBytesMax, features: features))
  }

  func sessionDrains() { outbox.add(.draining(link.key)) }

  func takeActivity() -> Bool {
    link.wasActive.load(ordering: .relaxed) && link.wasActive.exchange(false, ordering: .relaxed)
  }
}
