// A connection in the pipeline: bytes to frames to the session machine, and its actions out. It
// holds no decisions. On the hub's event loop, like everything it calls.

internal import NIOCore
internal import TollgateCore
internal import TollgateWire

final class LedgerHandler: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  private let hub: LedgerHub
  private var machine: LedgerSessionMachine
  private var decoder: FrameDecoder
  private var context: ChannelHandlerContext?
  private var id: Int?
  private var isDraining = false
  private var heardAt = NIODeadline.now()
  private var watch: Scheduled<Void>?
  private var pings: UInt64 = 0

  init(hub: LedgerHub) {
    self.hub = hub
    machine = LedgerSessionMachine(token: hub.token)
    decoder = FrameDecoder(frameBytesMax: machine.frameBytesMax)
  }

  func channelActive(context: ChannelHandlerContext) {
    self.context = context
    id = hub.opened(self)
    guard id != nil else { return context.close(promise: nil) }
    heardAt = .now()
    listen(for: .milliseconds(hub.silence.helloMilliseconds), context)
  }

  /// Looks again after `time` whether the other side has said anything.
  private func listen(for time: TimeAmount, _ context: ChannelHandlerContext) {
    watch = context.eventLoop.assumeIsolated().scheduleTask(in: time) { self.lookWhetherItLives() }
  }

  private func lookWhetherItLives() {
    guard let context else { return }
    let silent = (NIODeadline.now() - heardAt).nanoseconds / 1_000_000
    switch hub.silence.verdict(isGreeted: machine.isGreeted, silentFor: silent) {
    case .wait(let time): listen(for: time, context)
    case .ping(let time):
      var frames = ByteBuffer()
      pings += 1
      frames.writeFrame(Ping(nonce: pings), correlation: pings)
      send(frames)
      listen(for: time, context)
    case .close: context.close(promise: nil)
    }
  }

  func channelInactive(context: ChannelHandlerContext) {
    machine.ended()
    watch?.cancel()
    self.context = nil
    if let id { hub.closed(id) }
    id = nil
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    // A hello that trickles in does not count as one.
    if machine.isGreeted { heardAt = .now() }
    decoder.feed(unwrapInboundIn(data))
    do throws(WireError) {
      while let frame = try decoder.next() {
        carryOut(machine.received(frame))
        decoder.frameBytesMax = machine.frameBytesMax
      }
    } catch {
      carryOut(machine.broken(error))
    }
  }

  /// Whoever does not read its answers is not read from: what waits for it is bounded by what
  /// one read of the socket asks for.
  func channelWritabilityChanged(context: ChannelHandlerContext) {
    context.channel.setOption(.autoRead, value: context.channel.isWritable).whenFailure { _ in }
    context.fireChannelWritabilityChanged()
  }

  func channelReadComplete(context: ChannelHandlerContext) { context.flush() }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    context.close(promise: nil)
  }

  private func carryOut(_ action: LedgerSessionMachine.Action) {
    guard let id else { return }
    switch action {
    case .none: break
    case .reply(let reply, let correlation):
      var frames = ByteBuffer()
      switch reply {
      case .welcome(let inFlightMax):
        frames.writeFrame(hub.welcome(inFlightMax: inFlightMax), correlation: correlation)
      case .pong(let pong): frames.writeFrame(pong, correlation: correlation)
      case .error(let error): frames.writeFrame(error, correlation: correlation)
      }
      send(frames)
    case .end(let error, let correlation): write(error, correlation)
    case .close: context?.close(promise: nil)
    case .link(let link, let correlation): hub.link(id, link, correlation: correlation)
    case .apply(let batch, let correlation): hub.apply(id, batch, correlation: correlation)
    case .read(let read, let correlation): hub.read(id, read, correlation: correlation)
    case .recover(let recover): hub.recover(id, recover)
    case .present(let present, let isLast): hub.present(id, present, isLast: isLast)
    }
  }

  /// The last words, then the close.
  private func write(_ error: ErrorReply, _ correlation: UInt64) {
    guard let context else { return }
    var frames = ByteBuffer()
    frames.writeFrame(error, correlation: correlation)
    context.writeAndFlush(wrapOutboundOut(frames), promise: nil)
    context.close(promise: nil)
  }

  private func closeWhenIdle() {
    if isDraining && machine.isIdle { context?.close(promise: nil) }
  }
}

extension LedgerHandler: LedgerConnection {
  func send(_ frames: ByteBuffer) {
    guard let context else { return }
    context.writeAndFlush(wrapOutboundOut(frames), promise: nil)
  }

  func end(_ error: ErrorReply, correlation: UInt64) {
    machine.ended()
    write(error, correlation)
  }

  func answer(_ correlation: UInt64, _ frames: ByteBuffer) {
    if machine.answered(correlation) { send(frames) }
    closeWhenIdle()
  }

  func linkAccepted(_ frames: ByteBuffer) {
    machine.linkAccepted()
    send(frames)
  }

  func linkRefused(_ error: ErrorReply, correlation: UInt64) {
    carryOut(machine.linkRefused(error, correlation: correlation))
  }

  func drain(_ frames: ByteBuffer) {
    isDraining = true
    _ = machine.drain()
    send(frames)
    closeWhenIdle()
  }
}
