// The sidecar's connection to the ledger: requests with their replies by correlation id, and the
// ledger's pushes (PRESENT_REQUEST, EPOCH). It reconnects for as long as it is not stopped; a
// request that was under way when the connection broke fails, and its caller, who knows what is
// safe to repeat, repeats it: everything on the ledger stream is idempotent by position or id.

import DequeModule
import Logging
import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import TollgateCore
import TollgateLedger
import TollgateWire

struct LedgerFailure: Error, Sendable, CustomStringConvertible {
  enum Kind: Sendable, Hashable { case disconnected, timedOut, refused(ErrorCode) }
  let kind: Kind
  let description: String
}

enum LedgerPush: Sendable {
  case connected(Linked)
  case disconnected
  case presentRequest(PresentRequest)
  case epoch(EpochNotice)
  /// The ledger belongs to another deployment, or refuses us: nothing can work.
  case refused(ErrorCode, String)
}

final class LedgerLink: Sendable {
  private struct State {
    var connection: NIOLoopBound<LedgerHandler>?
    var eventLoop: (any EventLoop)?
    var stopped = false
    /// Bucket → the ledger's epoch when it was linked last.
    var issued: [Int: Int64] = [:]
  }

  private let address: ServiceAddress
  private let token: String
  private let link: Link
  private let group: any EventLoopGroup
  private let logger: Logger
  /// False: the push cannot be kept, and the connection it came by is given up.
  private let onPush: @Sendable (LedgerPush) -> Bool
  private let state = NIOLockedValueBox(State())

  static let requestTimeout = TimeAmount.seconds(10)
  static let reconnectMilliseconds: (first: Int64, max: Int64) = (50, 2000)

  init(
    address: ServiceAddress, token: String, link: Link, group: any EventLoopGroup,
    logger: Logger, onPush: @escaping @Sendable (LedgerPush) -> Bool
  ) {
    self.address = address
    self.token = token
    self.link = link
    self.group = group
    self.logger = logger
    self.onPush = onPush
  }

  var isUp: Bool { state.withLockedValue { $0.connection != nil } }

  /// The epoch the ledger had issued for a bucket when it was linked last; nil: none that is known.
  func issuedEpoch(_ bucket: Int) -> Int64? { state.withLockedValue { $0.issued[bucket] } }

  /// Connects, and reconnects after every loss, until the task is cancelled.
  func run() async {
    var wait = Self.reconnectMilliseconds.first
    while !Task.isCancelled {
      do {
        try await connectOnce()
        wait = Self.reconnectMilliseconds.first
      } catch let failure as LedgerFailure {
        if case .refused(let code) = failure.kind {
          _ = onPush(.refused(code, failure.description))
        }
        logger.debug("ledger not reached", metadata: ["error": "\(failure)"])
      } catch {
        logger.debug("ledger not reached", metadata: ["error": "\(error)"])
      }
      let jittered = Int64.random(in: wait / 2...wait)
      try? await Task.sleep(for: .milliseconds(jittered))
      wait = min(wait * 2, Self.reconnectMilliseconds.max)
    }
  }

  /// Opens one connection and returns when it is gone.
  private func connectOnce() async throws {
    let eventLoop = group.next()
    let bootstrap = ClientBootstrap(group: eventLoop).connectTimeout(.seconds(2))
    let onPush = onPush
    let initializer: @Sendable (any Channel) -> EventLoopFuture<Void> = { channel in
      channel.eventLoop.makeCompletedFuture {
        try channel.pipeline.syncOperations.addHandler(
          LedgerHandler(eventLoop: channel.eventLoop, onPush: onPush))
      }
    }
    let channel: any Channel =
      switch address {
      case .tcp(let host, let port):
        try await bootstrap.channelInitializer(initializer).connect(host: host, port: port).get()
      case .unix(let path):
        try await bootstrap.channelInitializer(initializer)
          .connect(unixDomainSocketPath: path).get()
      }
    let bound = try await channel.eventLoop.submit {
      NIOLoopBound(
        try channel.pipeline.syncOperations.handler(type: LedgerHandler.self),
        eventLoop: channel.eventLoop)
    }.get()
    // Futures know nothing of cancellation: the end of the task ends the connection, and that is
    // what everything below waits for.
    try await withTaskCancellationHandler {
      try await serve(bound, channel)
    } onCancel: {
      channel.close(promise: nil)
    }
  }

  /// Says hello, links, and returns when the connection is gone.
  private func serve(_ bound: NIOLoopBound<LedgerHandler>, _ channel: any Channel) async throws {
    defer { channel.close(promise: nil) }
    _ = try await exchange(
      bound, channel.eventLoop,
      Hello(
        role: .ledger, client: "tollgate-sidecar", token: token, features: [.reservations]),
      as: Welcome.self)
    let linked = try await exchange(bound, channel.eventLoop, link, as: Linked.self)
    state.withLockedValue {
      $0.connection = bound
      $0.eventLoop = channel.eventLoop
      for bucket in linked.buckets { $0.issued[Int(bucket.bucket)] = bucket.epoch }
    }
    logger.notice("ledger connected", metadata: ["endpoint": "\(address)"])
    _ = onPush(.connected(linked))
    channel.eventLoop.execute { bound.value.startProbing() }
    // A future knows nothing of cancellation: without the close a drained sidecar would wait here
    // for the ledger to leave first.
    await withTaskCancellationHandler {
      try? await channel.closeFuture.get()
    } onCancel: {
      channel.close(promise: nil)
    }
    state.withLockedValue {
      $0.connection = nil
      $0.eventLoop = nil
    }
    logger.notice("ledger disconnected", metadata: ["endpoint": "\(address)"])
    _ = onPush(.disconnected)
  }

  // MARK: - Requests

  /// Sends a request and waits for its (single) reply.
  func request<Reply: OpcodeMessage>(
    _ message: some OpcodeMessage, as type: Reply.Type
  ) async throws(LedgerFailure) -> Reply {
    let (connection, eventLoop) = try current()
    return try await exchange(connection, eventLoop, message, as: type)
  }

  /// Sends a request and waits for all pages of its reply.
  func pages<Reply: OpcodeMessage>(
    _ message: some OpcodeMessage, as type: Reply.Type, timeout: TimeAmount = requestTimeout
  ) async throws(LedgerFailure) -> [Reply] {
    let (connection, eventLoop) = try current()
    return try await frames(connection, eventLoop, message, timeout: timeout).map {
      frame throws(LedgerFailure) in
      try Self.decode(frame, as: type)
    }
  }

  /// Sends many requests at once and waits for all; the pages of each reply, in their order.
  func pages<Request: OpcodeMessage, Reply: OpcodeMessage>(
    ofEach messages: [Request], as type: Reply.Type
  ) async throws(LedgerFailure) -> [[Reply]] {
    guard !messages.isEmpty else { return [] }
    let (connection, eventLoop) = try current()
    let results: [Result<[Frame], LedgerFailure>] = await withCheckedContinuation { continuation in
      eventLoop.execute {
        let gathered = Gathered(messages.count) { continuation.resume(returning: $0) }
        for (index, message) in messages.enumerated() {
          connection.value.request(message, timeout: Self.requestTimeout) {
            gathered.set(index, $0)
          }
        }
      }
    }
    return try results.map { (result) throws(LedgerFailure) in
      try result.get().map { (frame) throws(LedgerFailure) in try Self.decode(frame, as: type) }
    }
  }

  /// On the connection's event loop.
  private final class Gathered {
    private var results: [Result<[Frame], LedgerFailure>]
    private var missing: Int
    private let done: ([Result<[Frame], LedgerFailure>]) -> Void

    init(_ count: Int, done: @escaping ([Result<[Frame], LedgerFailure>]) -> Void) {
      results = Array(
        repeating: .failure(.init(kind: .timedOut, description: "no reply")), count: count)
      missing = count
      self.done = done
    }

    func set(_ index: Int, _ result: Result<[Frame], LedgerFailure>) {
      results[index] = result
      missing -= 1
      if missing == 0 { done(results) }
    }
  }

  /// Sends something that is answered by a push, or not at all.
  func push(
    _ message: some OpcodeMessage, more: Bool = false
  ) async throws(LedgerFailure) {
    let (connection, eventLoop) = try current()
    await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
      eventLoop.execute {
        connection.value.push(message, flags: more ? .more : [])
        continuation.resume()
      }
    }
  }

  private func current() throws(LedgerFailure) -> (NIOLoopBound<LedgerHandler>, any EventLoop) {
    let found = state.withLockedValue { ($0.connection, $0.eventLoop) }
    guard let connection = found.0, let eventLoop = found.1 else {
      throw LedgerFailure(kind: .disconnected, description: "the ledger is not connected")
    }
    return (connection, eventLoop)
  }

  private func exchange<Reply: OpcodeMessage>(
    _ connection: NIOLoopBound<LedgerHandler>, _ eventLoop: any EventLoop,
    _ message: some OpcodeMessage, as type: Reply.Type
  ) async throws(LedgerFailure) -> Reply {
    let frames = try await frames(connection, eventLoop, message)
    guard let frame = frames.first, frames.count == 1 else {
      throw LedgerFailure(
        kind: .refused(.badFrame), description: "one reply was due, \(frames.count) came")
    }
    return try Self.decode(frame, as: type)
  }

  private func frames(
    _ connection: NIOLoopBound<LedgerHandler>, _ eventLoop: any EventLoop,
    _ message: some OpcodeMessage, timeout: TimeAmount = requestTimeout
  ) async throws(LedgerFailure) -> [Frame] {
    let result: Result<[Frame], LedgerFailure> = await withCheckedContinuation { continuation in
      eventLoop.execute {
        connection.value.request(message, timeout: timeout) {
          continuation.resume(returning: $0)
        }
      }
    }
    return try result.get()
  }

  private static func decode<Reply: OpcodeMessage>(
    _ frame: Frame, as type: Reply.Type
  ) throws(LedgerFailure) -> Reply {
    do throws(WireError) {
      if frame.header.opcode == Reply.opcode { return try Reply.decode(frame) }
      guard frame.header.opcode == .error else {
        throw WireError.fatal(.badFrame, "unexpected reply")
      }
      let error = try ErrorReply.decode(frame)
      throw WireError.refused(error.code, error.message)
    } catch {
      throw LedgerFailure(kind: .refused(error.code), description: error.text)
    }
  }
}

/// The connection itself, on its event loop.
final class LedgerHandler: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer
  typealias Completion = (Result<[Frame], LedgerFailure>) -> Void

  private struct Waiting {
    var frames: [Frame] = []
    var completion: Completion
    var timeout: Scheduled<Void>
    var isSent = false
  }

  private let eventLoop: any EventLoop
  private let onPush: @Sendable (LedgerPush) -> Bool
  private var context: ChannelHandlerContext?
  private var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
  private var waiting: [UInt64: Waiting] = [:]
  private var correlation: UInt64 = 0
  private var outstanding = 0
  private var queue: Deque<(id: UInt64, frame: ByteBuffer)> = []
  private var lastHeard = NIODeadline.now()
  private var probe: Scheduled<Void>?

  /// Requests sent and not answered: below what a ledger takes from one link, so that none of ours
  /// is OVERLOADED. Those beyond wait here; their time runs.
  static let outstandingMax = LedgerSessionMachine.inFlightMax - 8
  static let queuedMax = 16_384

  /// A connection on which nothing arrived for this long is pinged …
  static let probeInterval = TimeAmount.seconds(5)
  /// … and given up after this: a host that is gone says nothing, and a new connection may reach
  /// another that took its place. Above the longest time a request waits.
  static let silenceMax = TimeAmount.seconds(15)

  init(eventLoop: any EventLoop, onPush: @escaping @Sendable (LedgerPush) -> Bool) {
    self.eventLoop = eventLoop
    self.onPush = onPush
  }

  func handlerAdded(context: ChannelHandlerContext) { self.context = context }
  func handlerRemoved(context: ChannelHandlerContext) { self.context = nil }

  /// From now on asks a silent ledger for a sign of life.
  func startProbing() {
    guard context != nil, probe == nil else { return }
    lastHeard = .now()
    scheduleProbe()
  }

  private func scheduleProbe() {
    probe = eventLoop.assumeIsolated().scheduleTask(in: Self.probeInterval) {
      self.scheduleProbe()
      self.probeDue(now: .now())
    }
  }

  func probeDue(now: NIODeadline) {
    let silence = now - lastHeard
    if silence >= Self.silenceMax {
      fail(.timedOut, "the ledger is silent")
      context?.close(promise: nil)
    } else if silence >= Self.probeInterval {
      request(Ping(nonce: now.uptimeNanoseconds), timeout: LedgerLink.requestTimeout) { _ in }
    }
  }

  func request(
    _ message: some OpcodeMessage, timeout: TimeAmount, completion: @escaping Completion
  ) {
    guard let context, context.channel.isActive else {
      return completion(
        .failure(.init(kind: .disconnected, description: "the ledger is not connected")))
    }
    guard queue.count < Self.queuedMax else {
      return completion(
        .failure(
          .init(kind: .refused(.overloaded), description: "too many questions to the ledger")))
    }
    correlation += 1
    let id = correlation
    let timer = eventLoop.assumeIsolated().scheduleTask(in: timeout) {
      // A late reply would be taken for another's only if ids were reused; they are not.
      guard let entry = self.take(id) else { return }
      entry.completion(
        .failure(.init(kind: .timedOut, description: "the ledger did not answer in time")))
    }
    waiting[id] = Waiting(completion: completion, timeout: timer)
    queue.append((id, frame(message, correlation: id, flags: [], context: context)))
    sendQueued()
  }

  private func sendQueued() {
    while outstanding < Self.outstandingMax, let next = queue.popFirst() {
      // One that timed out while it waited has no entry any more.
      guard waiting[next.id] != nil else { continue }
      waiting[next.id]?.isSent = true
      outstanding += 1
      context?.writeAndFlush(wrapOutboundOut(next.frame), promise: nil)
    }
  }

  /// Ends the wait for an answer and lets the next question go.
  private func take(_ id: UInt64) -> Waiting? {
    guard let entry = waiting.removeValue(forKey: id) else { return nil }
    if entry.isSent { outstanding -= 1 }
    sendQueued()
    return entry
  }

  func push(_ message: some OpcodeMessage, flags: FrameFlags) {
    guard let context, context.channel.isActive else { return }
    send(message, correlation: 0, flags: flags, context: context)
  }

  private func send(
    _ message: some OpcodeMessage, correlation: UInt64, flags: FrameFlags,
    context: ChannelHandlerContext
  ) {
    let frame = frame(message, correlation: correlation, flags: flags, context: context)
    context.writeAndFlush(wrapOutboundOut(frame), promise: nil)
  }

  private func frame(
    _ message: some OpcodeMessage, correlation: UInt64, flags: FrameFlags,
    context: ChannelHandlerContext
  ) -> ByteBuffer {
    var buffer = context.channel.allocator.buffer(capacity: 4096)
    buffer.writeFrame(message, correlation: correlation, flags: flags)
    return buffer
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    lastHeard = .now()
    decoder.feed(unwrapInboundIn(data))
    do throws(WireError) {
      while let frame = try decoder.next() { try received(frame, context: context) }
    } catch {
      fail(.refused(error.code), error.text)
      context.close(promise: nil)
    }
  }

  private func received(_ frame: Frame, context: ChannelHandlerContext) throws(WireError) {
    // Each direction has its own correlation ids: the id of the ledger's request says nothing
    // about ours, even where one of ours has the same number.
    if frame.header.opcode == .ping {
      let pong = Pong(nonce: try Ping.decode(frame).nonce)
      return send(pong, correlation: frame.header.correlation, flags: [], context: context)
    }
    if frame.header.correlation != 0 {
      // A reply nobody waits for any more was timed out; ids are never reused, so it is dropped.
      guard var entry = waiting[frame.header.correlation] else { return }
      entry.frames.append(frame)
      if frame.header.flags.contains(.more) {
        waiting[frame.header.correlation] = entry
      } else {
        _ = take(frame.header.correlation)
        entry.timeout.cancel()
        entry.completion(.success(entry.frames))
      }
      return
    }
    switch frame.header.opcode {
    case .presentRequest?: hand(.presentRequest(try PresentRequest.decode(frame)), context)
    case .epoch?: hand(.epoch(try EpochNotice.decode(frame)), context)
    case .error?:
      let error = try ErrorReply.decode(frame)
      fail(.refused(error.code), error.message)
      context.close(promise: nil)
    case .goAway?: context.close(promise: nil)
    default: throw WireError.fatal(.badFrame, "unexpected push")
    }
  }

  /// There is no room for it: the next link will say it anew.
  private func hand(_ push: LedgerPush, _ context: ChannelHandlerContext) {
    guard !onPush(push) else { return }
    fail(.disconnected, "the ledger said more than could be looked at")
    context.close(promise: nil)
  }

  func channelInactive(context: ChannelHandlerContext) {
    probe?.cancel()
    probe = nil
    fail(.disconnected, "the ledger's connection was lost")
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    context.close(promise: nil)
  }

  private func fail(_ kind: LedgerFailure.Kind, _ text: String) {
    let entries = waiting.values
    waiting.removeAll()
    queue.removeAll()
    outstanding = 0
    for entry in entries {
      entry.timeout.cancel()
      entry.completion(.failure(.init(kind: kind, description: text)))
    }
  }
}
