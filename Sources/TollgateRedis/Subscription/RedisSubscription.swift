// A subscription that comes back: what is published on some channels, and how fresh that is.
//
// Why a connection of its own: a RESP2 connection that subscribes can ask nothing else, and its
// replies answer no command, so the FIFO of `RedisConnection` is not for it. The reconnecting is
// `RedisLink`'s machine. Bound to one event loop; told on it.
//
// Promises: `live` comes once per connection, before the first `fresh`; between `live` and `lost`
// nothing published is missed; who hears no `fresh` must not rely on what was not published.

package import Logging
package import NIOCore

package enum RedisSubscriptionEvent: Hashable, Sendable {
  case live
  case message(channel: String, payload: [UInt8])
  /// Nothing published before this instant was missed since `live`.
  case fresh(asOf: NIODeadline)
  case lost(RedisCloseReason)
}

package final class RedisSubscription: Sendable {
  package let eventLoop: any EventLoop
  private let core: NIOLoopBoundBox<Core>

  /// Makes an idle subscription; from any thread. `beat`: after what time it is made sure again
  /// that nothing was missed; asked each time.
  package init(
    _ configuration: RedisLinkConfiguration, channels: [String],
    beat: @escaping @Sendable () -> TimeAmount, on eventLoop: any EventLoop, seed: UInt64,
    logger: Logger,
    onEvent: @escaping @Sendable (RedisSubscriptionEvent) -> Void
  ) {
    self.eventLoop = eventLoop
    core = NIOLoopBoundBox.makeBoxSendingValue(
      Core(
        configuration, channels: channels, beat: beat, on: eventLoop, seed: seed, logger: logger,
        onEvent: onEvent),
      eventLoop: eventLoop)
  }

  package func start() {
    let core = core
    eventLoop.execute { core.value.start() }
  }

  /// Stops for good; nothing is told afterwards.
  package func stop() async {
    await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
      let core = core
      eventLoop.execute {
        core.value.stop()
        continuation.resume()
      }
    }
  }
}

extension RedisSubscription {
  /// What the event loop owns.
  private final class Core {
    private let configuration: RedisLinkConfiguration
    private let channels: [String]
    private let beat: @Sendable () -> TimeAmount
    private let eventLoop: any EventLoop
    private let logger: Logger
    private let onEvent: @Sendable (RedisSubscriptionEvent) -> Void
    private var machine: RedisLinkMachine
    private var current: SubscriptionHandler?

    init(
      _ configuration: RedisLinkConfiguration, channels: [String],
      beat: @escaping @Sendable () -> TimeAmount, on eventLoop: any EventLoop, seed: UInt64,
      logger: Logger,
      onEvent: @escaping @Sendable (RedisSubscriptionEvent) -> Void
    ) {
      self.configuration = configuration
      self.channels = channels
      self.beat = beat
      self.eventLoop = eventLoop
      self.logger = logger
      self.onEvent = onEvent
      machine = RedisLinkMachine(backoff: configuration.backoff, seed: seed)
    }

    func start() { perform(machine.started()) }

    func stop() {
      _ = machine.stopRequested()
      current?.close(.requested)
    }

    private func perform(_ action: RedisLinkMachine.Action) {
      switch action {
      case .connect: connect()
      case .wait(let nanoseconds):
        eventLoop.assumeIsolated().scheduleTask(in: .nanoseconds(nanoseconds)) {
          self.perform(self.machine.waited())
        }
      case .drain, .cancelWait, .none: break
      }
    }

    private func connect() {
      let handler = SubscriptionHandler(
        eventLoop: eventLoop, credentials: configuration.credentials,
        limits: configuration.limits.replies, channels: channels, beat: beat
      ) { self.received($0) }
      current = handler
      configuration.open(on: eventLoop, for: handler) { handler.close($0) }
    }

    private func received(_ event: RedisSubscriptionEvent) {
      guard machine.state != .stopped else { return }
      switch event {
      case .live:
        machine.becameReady()
        onEvent(event)
      case .message, .fresh: onEvent(event)
      case .lost(let reason):
        current = nil
        logger.debug("redis subscription ended", metadata: ["reason": "\(reason)"])
        onEvent(event)
        perform(machine.lost())
      }
    }
  }
}

/// The shell around `SubscriptionMachine`. `lost` is told exactly once.
private final class SubscriptionHandler: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  private let eventLoop: any EventLoop
  private let credentials: RedisCredentials?
  private let channels: [String]
  private let beat: @Sendable () -> TimeAmount
  private let onEvent: (RedisSubscriptionEvent) -> Void
  private let reader: RESPReader
  private var machine: SubscriptionMachine
  private var context: ChannelHandlerContext?
  private var beats: Scheduled<Void>?
  private var isClosed = false

  init(
    eventLoop: any EventLoop, credentials: RedisCredentials?, limits: RESPLimits,
    channels: [String], beat: @escaping @Sendable () -> TimeAmount,
    onEvent: @escaping (RedisSubscriptionEvent) -> Void
  ) {
    self.eventLoop = eventLoop
    self.credentials = credentials
    self.channels = channels
    self.beat = beat
    self.onEvent = onEvent
    reader = RESPReader(limits: limits)
    machine = SubscriptionMachine(
      needsAuthentication: credentials != nil, channels: channels.count)
  }

  func handlerAdded(context: ChannelHandlerContext) {
    self.context = context
    guard !isClosed else { return context.close(promise: nil) }
    perform(machine.opened(now: Self.now()))
    scheduleBeat()
  }

  func handlerRemoved(context: ChannelHandlerContext) {
    self.context = nil
    close(.peerClosed)
  }

  func channelInactive(context: ChannelHandlerContext) { close(.peerClosed) }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    close(.inputOutputError(String(describing: error)))
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    guard !isClosed else { return }
    reader.feed(unwrapInboundIn(data))
    do throws(RESPViolation) {
      while !isClosed, let reply = try reader.next() {
        perform(machine.received(reply, now: Self.now()))
      }
    } catch {
      close(.protocolViolation(error))
    }
  }

  func close(_ reason: RedisCloseReason) {
    guard !isClosed else { return }
    isClosed = true
    machine.closed()
    beats?.cancel()
    context?.close(promise: nil)
    onEvent(.lost(reason))
  }

  private func scheduleBeat() {
    beats = eventLoop.assumeIsolated().scheduleTask(in: beat()) {
      guard !self.isClosed else { return }
      self.perform(self.machine.beat(now: Self.now()))
      if !self.isClosed { self.scheduleBeat() }
    }
  }

  private func perform(_ action: SubscriptionMachine.Action) {
    switch action {
    case .none: break
    case .sendAuthentication:
      guard let credentials else { return }
      send(["AUTH"] + [credentials.username, credentials.password].compactMap { $0 })
    case .sendSubscribe: send(["SUBSCRIBE"] + channels)
    case .sendPing: send(["PING"])
    case .becameLive: onEvent(.live)
    case .message(let channel, let payload):
      onEvent(.message(channel: channel, payload: payload))
    case .fresh(let instant):
      onEvent(.fresh(asOf: .uptimeNanoseconds(UInt64(clamping: instant))))
    case .fatal(let reason): close(reason)
    }
  }

  private func send(_ words: [String]) {
    guard let context else { return }
    var buffer = context.channel.allocator.buffer(capacity: 128)
    RESPWriter.write(words.map { .string($0) }, to: &buffer)
    context.writeAndFlush(wrapOutboundOut(buffer), promise: nil)
  }

  private static func now() -> Int64 { Int64(clamping: NIODeadline.now().uptimeNanoseconds) }
}
