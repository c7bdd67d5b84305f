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

  init(hub: LedgerHub) {
    self.hub = hub
    machine = LedgerSessionMachine(token: hub.token)
    decoder = FrameDecoder(frameBytesMax: machine.frameBytesMax)
  }

  func channelActive(context: ChannelHandlerContext) {
    self.context = context
    id = hub.opened(self)
    if id == nil { context.close(promise: nil) }
  }

  func channelInactive(context: ChannelHandlerContext) {
    machine.ended()
    self.context = nil
    if let id { hub.closed(id) }
    id = nil
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
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
