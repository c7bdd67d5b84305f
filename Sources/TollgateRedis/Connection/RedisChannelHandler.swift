// The shell around `RedisConnectionMachine`: bytes in, bytes out, timers, callbacks.
//
// Why this shape: codec and handler are one, so no value is boxed on its way through the pipeline
// and a command costs no promise. Commands of one event-loop tick are appended to one buffer and
// leave in one `writeAndFlush`: at the end of the read that caused them, or else at the end of the
// tick. While the socket does not take bytes the buffer stays here, so what never left is known
// not to have been sent. Deadlines are swept by one coarse timer, armed only while one is pending.
//
// Promises: every completion is called exactly once, on the event loop, never while the machine or
// the outbound buffer is being changed; a `late` callback is called exactly once after a timeout.
//
// Bound to one event loop: not Sendable, and nothing here takes a lock.

package import NIOCore

/// What a connection tells its owner, on its event loop. `closed` comes exactly once, last, after
/// every pending command was completed.
package enum RedisConnectionEvent: Sendable {
  case ready(ServerIdentity)
  case identityChanged(ServerIdentity)
  case closed(RedisCloseReason)
}

package typealias RedisCompletion = (Result<RESPReply, RedisFailure>) -> Void

/// The callbacks of one command.
package struct RedisWaiter {
  package var completion: RedisCompletion
  /// After a timeout: the reply that came late, or the failure that means it never will.
  package var late: RedisCompletion?
}

package final class RedisChannelHandler: ChannelInboundHandler {
  package typealias InboundIn = ByteBuffer
  package typealias OutboundOut = ByteBuffer

  private let eventLoop: any EventLoop
  private let limits: RedisConnectionLimits
  private let credentials: RedisCredentials?
  private let onEvent: (RedisConnectionEvent) -> Void
  private let reader: RESPReader

  private var machine: RedisConnectionMachine<RedisWaiter>
  private var context: ChannelHandlerContext?
  private var outbound = ByteBuffer()
  private var isReading = false
  private var isFlushScheduled = false
  /// `closed` was told; nothing happens any more.
  private(set) var isFinished = false
  private var closeReason: RedisCloseReason?
  /// The time of this tick's first write: one clock reading serves the whole tick.
  private var tickTime: Int64 = 0
  private var sweepAt = Int64.max
  private var sweepTask: Scheduled<Void>?
  private var refreshTask: Scheduled<Void>?
  /// When who answers was last asked for.
  private var refreshedAt: Int64 = 0

  package init(
    eventLoop: any EventLoop, limits: RedisConnectionLimits, credentials: RedisCredentials?,
    onEvent: @escaping (RedisConnectionEvent) -> Void
  ) {
    self.eventLoop = eventLoop
    self.limits = limits
    self.credentials = credentials
    self.onEvent = onEvent
    reader = RESPReader(limits: limits.replies)
    machine = RedisConnectionMachine(
      needsAuthentication: credentials != nil, pendingCommandsMax: limits.pendingCommandsMax,
      stallMax: limits.stallMax)
  }

  // MARK: What the owner calls

  package var identity: ServerIdentity? { machine.identity }
  package var isReady: Bool { machine.state == .ready }
  package var pendingCount: Int { machine.pendingCount }
  package var oldestSentAt: Int64? { machine.oldestSentAt }

  /// See `RedisConnection.send`.
  package func send(
    deadline: NIODeadline, late: RedisCompletion?, completion: @escaping RedisCompletion,
    write: (inout ByteBuffer) -> Void
  ) {
    if let refusal = machine.refusal {
      completion(.failure(.notSent(refusal)))
      return
    }
    guard outbound.readableBytes < limits.outboundBytesMax else {
      completion(.failure(.notSent(.saturated)))
      return
    }
    scheduleFlush()
    if tickTime &- refreshedAt >= limits.refreshInterval { refresh(tickTime) }
    write(&outbound)
    let deadline = Int64(clamping: deadline.uptimeNanoseconds)
    machine.commandWritten(
      RedisWaiter(completion: completion, late: late), deadline: deadline, sentAt: tickTime)
    if deadline < sweepAt { armSweep(deadline) }
    if outbound.readableBytes >= limits.flushBytesMax { flush() }
  }

  /// Takes no more commands; closes once the replies owed have come.
  package func closeGracefully() {
    closeReason = closeReason ?? .requested
    if machine.closeRequested() { closeNow(.requested) }
  }

  /// Ends the connection now. Pending commands fail.
  package func closeNow(_ reason: RedisCloseReason) {
    closeReason = closeReason ?? reason
    let channel = context?.channel
    finish(closeReason ?? reason)
    channel?.close(promise: nil)
  }

  // MARK: Channel events

  package func handlerAdded(context: ChannelHandlerContext) {
    self.context = context
    outbound = context.channel.allocator.buffer(capacity: Self.outboundCapacity)
    if isFinished {
      context.close(promise: nil)
    } else if context.channel.isActive {
      opened()
    }
  }

  package func handlerRemoved(context: ChannelHandlerContext) {
    finish(closeReason ?? .peerClosed)
    self.context = nil
  }

  package func channelActive(context: ChannelHandlerContext) {
    opened()
    context.fireChannelActive()
  }

  package func channelInactive(context: ChannelHandlerContext) {
    finish(closeReason ?? .peerClosed)
    context.fireChannelInactive()
  }

  package func errorCaught(context: ChannelHandlerContext, error: any Error) {
    closeNow(.inputOutputError(String(describing: error)))
  }

  package func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    guard !isFinished else { return }
    isReading = true
    reader.feed(unwrapInboundIn(data))
    do throws(RESPViolation) {
      while !isFinished, let reply = try reader.next() { deliver(reply) }
    } catch {
      closeNow(.protocolViolation(error))
    }
    if machine.isDrained { closeNow(.requested) }
  }

  package func channelReadComplete(context: ChannelHandlerContext) {
    isReading = false
    flush()
    context.fireChannelReadComplete()
  }

  package func channelWritabilityChanged(context: ChannelHandlerContext) {
    if context.channel.isWritable { flush() }
    context.fireChannelWritabilityChanged()
  }

  // MARK: Machine actions

  private func opened() {
    guard machine.state == .connecting else { return }
    let now = Self.now()
    scheduleFlush()
    let deadline = now &+ limits.handshakeMax
    switch machine.opened(deadline: deadline, now: now) {
    case .sendAuthentication: writeAuthentication()
    case .sendIdentification: writeIdentification()
    }
    armSweep(deadline)
  }

  private func deliver(_ reply: RESPReply) {
    switch machine.replied(reply, now: Self.now()) {
    case .complete(let waiter):
      waiter.completion(.success(reply))
    case .late(let waiter):
      waiter.late?(.success(reply))
    case .sendIdentification:
      scheduleFlush()
      writeIdentification()
    case .becameReady(let identity):
      refreshedAt = Self.now()
      scheduleRefresh()
      onEvent(.ready(identity))
    case .identityChanged(let identity):
      onEvent(.identityChanged(identity))
    case .none:
      break
    case .fatal(let reason):
      closeNow(reason)
    }
  }

  private func finish(_ reason: RedisCloseReason) {
    guard !isFinished else { return }
    isFinished = true
    sweepTask?.cancel()
    refreshTask?.cancel()
    outbound.clear()
    for casualty in machine.ended() {
      if casualty.isLate {
        casualty.waiter.late?(.failure(casualty.failure))
      } else {
        casualty.waiter.completion(.failure(casualty.failure))
      }
    }
    onEvent(.closed(reason))
  }

  private func writeAuthentication() {
    guard let credentials else { return }
    var arguments: [RESPArgument] = ["AUTH"]
    if let username = credentials.username { arguments.append(.string(username)) }
    arguments.append(.string(credentials.password))
    RESPWriter.write(arguments, to: &outbound)
  }

  private func writeIdentification() {
    RESPWriter.write(["INFO", "server"], to: &outbound)
    RESPWriter.write(["INFO", "replication"], to: &outbound)
  }

  // MARK: Flushing

  private func scheduleFlush() {
    guard !isFlushScheduled else { return }
    isFlushScheduled = true
    tickTime = Self.now()
    // Inside a read the flush comes with `channelReadComplete`.
    guard !isReading else { return }
    eventLoop.assumeIsolated().execute { self.flush() }
  }

  private func flush() {
    isFlushScheduled = false
    guard !isFinished, let context, outbound.readableBytes > 0 else { return }
    // Until the socket takes bytes again they stay here, countable as not sent;
    // `channelWritabilityChanged` comes back for them.
    guard context.channel.isWritable else { return }
    machine.flushed()
    // Taken out before the write: a write above the channel's high-water mark changes its
    // writability twice, and `channelWritabilityChanged` comes back here in the middle of it.
    var bytes = outbound
    outbound = ByteBuffer()
    context.writeAndFlush(wrapOutboundOut(bytes), promise: nil)
    guard outbound.readableBytes == 0 else { return }
    if bytes.capacity > limits.flushBytesMax * 2 {
      // A burst must not pin its memory for the life of the connection.
      outbound = context.channel.allocator.buffer(capacity: Self.outboundCapacity)
    } else {
      // The channel usually wrote at once and let go, so the same storage serves the next tick.
      bytes.clear()
      outbound = bytes
    }
  }

  // MARK: Timers

  private func armSweep(_ deadline: Int64) {
    let at = max(deadline, tickTime &+ limits.sweepInterval)
    guard at &+ limits.sweepInterval <= sweepAt || sweepAt == Int64.max else { return }
    sweepTask?.cancel()
    sweepAt = at
    sweepTask = eventLoop.assumeIsolated().scheduleTask(
      deadline: .uptimeNanoseconds(UInt64(clamping: at))
    ) { self.sweep() }
  }

  private func sweep() {
    sweepAt = Int64.max
    guard !isFinished else { return }
    let now = Self.now()
    let action = machine.swept(now: now)
    for waiter in action.expired {
      waiter.completion(.failure(.outcomeUnknown(.timedOut)))
    }
    if let reason = action.fatal {
      closeNow(reason)
      return
    }
    if action.nextDeadline < sweepAt {
      armSweep(max(action.nextDeadline, now &+ limits.sweepInterval))
    }
  }

  /// Goes before the command that is next, so that its answer is known before that one's.
  private func refresh(_ now: Int64) {
    let deadline = now &+ limits.refreshInterval
    guard machine.refreshDue(deadline: deadline, now: now) else { return }
    refreshedAt = now
    RESPWriter.write(["INFO", "replication"], to: &outbound)
    armSweep(deadline)
  }

  /// Where nothing is sent that it could go before.
  private func scheduleRefresh() {
    refreshTask = eventLoop.assumeIsolated().scheduleTask(
      in: .nanoseconds(limits.refreshInterval * Self.idleRefreshes)
    ) {
      guard !self.isFinished else { return }
      let now = Self.now()
      if now &- self.refreshedAt >= self.limits.refreshInterval {
        self.scheduleFlush()
        self.refresh(self.tickTime)
      }
      // Also where the last one is not answered yet: this is what notices a peer that is gone.
      self.armSweep(now &+ self.limits.refreshInterval)
      self.scheduleRefresh()
    }
  }

  private static let idleRefreshes: Int64 = 3

  /// Bytes; a tick's commands usually fit.
  private static let outboundCapacity = 4096

  private static func now() -> Int64 { Int64(clamping: NIODeadline.now().uptimeNanoseconds) }
}
