// The shell around `ConnectionMachine`: bytes in, bytes out, the keep-alive timer. Codec and
// handler are one, so no message is boxed on its way; what one turn of the driver sends leaves in
// one flush.
//
// Bound to its event loop. Tells the driver of its end exactly once.

internal import NIOCore
internal import TollgateWire

final class ClientChannelHandler: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  let id: ClientMachine.ConnectionID
  private let driver: ClientDriver
  private let hello: Hello
  /// Nanoseconds.
  private let keepAlive: Int64
  private var machine = ConnectionMachine<ClientMachine.Shipment>()
  // A DECISIONS frame may be larger than the request's; the general bound holds.
  private var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
  private var outbound = ByteBuffer()
  private var context: ChannelHandlerContext?
  private var probe: Scheduled<Void>?
  private var isFinished = false

  init(
    id: ClientMachine.ConnectionID, driver: ClientDriver, hello: Hello, keepAlive: Int64
  ) {
    self.id = id
    self.driver = driver
    self.hello = hello
    self.keepAlive = keepAlive
  }

  // MARK: what the driver calls

  /// Puts a request into the outbound buffer; false where nothing more can be sent here.
  func send(_ outgoing: ClientMachine.Outgoing) -> Bool {
    guard !isFinished, machine.state == .open else { return false }
    let correlation = machine.open(outgoing.shipment)
    outgoing.content.write(
      into: &outbound, outgoing.opcode, correlation: correlation,
      deadlineMilliseconds: outgoing.deadlineMilliseconds, flags: outgoing.flags)
    return true
  }

  func flush() {
    guard outbound.readableBytes > 0, let context, !isFinished else { return }
    let bytes = outbound
    outbound = ByteBuffer()
    context.writeAndFlush(wrapOutboundOut(bytes), promise: nil)
  }

  func close() { finish("") }

  // MARK: channel events

  func channelActive(context: ChannelHandlerContext) {
    self.context = context
    guard driver.connected(self) else { return finish("") }
    outbound.writeFrame(hello, correlation: machine.hello)
    flush()
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    decoder.feed(unwrapInboundIn(data))
    do throws(WireError) {
      while !isFinished, let frame = try decoder.next() { handle(machine.received(frame)) }
    } catch {
      finish("unreadable bytes: \(error)")
    }
  }

  func channelReadComplete(context: ChannelHandlerContext) { driver.turn() }

  func channelWritabilityChanged(context: ChannelHandlerContext) {
    guard !isFinished else { return }
    driver.writabilityChanged(id, context.channel.isWritable)
    driver.turn()
  }

  func channelInactive(context: ChannelHandlerContext) {
    finish("the sidecar closed the connection")
    driver.turn()
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    finish("the connection failed: \(error)")
    driver.turn()
  }

  func handlerRemoved(context: ChannelHandlerContext) {
    finish("the connection ended")
    self.context = nil
  }

  // MARK: decisions of the machine

  private func handle(_ action: ConnectionMachine<ClientMachine.Shipment>.Action) {
    switch action {
    case .none: break
    case .welcomed(let welcome):
      driver.welcomed(id, welcome)
      scheduleProbe(idleTimeout: welcome.idleTimeoutMilliseconds)
    case .policiesChanged(let welcome): driver.policiesChanged(welcome)
    case .answered(let shipment, let records): driver.answered(id, shipment, records)
    case .refused(let shipment, let error): driver.refused(id, shipment, error)
    case .wentAway(let goAway): driver.wentAway(id, goAway)
    case .reply(let pong, let correlation):
      outbound.writeFrame(pong, correlation: correlation)
      flush()
    case .fail(let text): finish(text)
    }
  }

  private func scheduleProbe(idleTimeout: UInt32) {
    var interval = keepAlive
    if idleTimeout > 0 { interval = min(interval, Int64(idleTimeout) * 1_000_000 / 3) }
    armProbe(max(interval, 1_000_000))
  }

  private func armProbe(_ interval: Int64) {
    guard let context else { return }
    probe = context.eventLoop.assumeIsolated().scheduleTask(in: .nanoseconds(interval)) {
      [weak self] in
      guard let self, !isFinished else { return }
      switch machine.probeDue() {
      case .none: break
      case .send(let correlation):
        outbound.writeFrame(Ping(nonce: correlation), correlation: correlation)
        flush()
      case .fail:
        finish("the sidecar did not answer a ping")
        driver.turn()
      }
      armProbe(interval)
    }
  }

  private func finish(_ trouble: String) {
    guard !isFinished else { return }
    isFinished = true
    probe?.cancel()
    let orphans = machine.ended()
    driver.closed(id, orphans: orphans, trouble: trouble)
    context?.close(promise: nil)
  }
}
