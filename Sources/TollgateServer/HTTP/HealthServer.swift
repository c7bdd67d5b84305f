// `/healthz`, `/readyz` and `/metrics` on a loopback port of their own. HTTP/1.1 through NIO's
// codec; three fixed paths, GET and HEAD only, one response per request. Health says that the
// process runs its loops; readiness says "can answer by policy", which one outage of Redis or of
// the ledger does not take away (DESIGN 9). A connection that asks nothing, or takes nothing of an
// answer, is closed after a while, and only so many are let in. The next request of a connection
// is not looked at before the answer to the last has left for the kernel, so what a connection
// costs is one answer; and the loop is not one of those that decide: a monitor that hangs, or that
// asks without end, takes nothing from them but a share of a core.

import NIOCore
import NIOHTTP1
import NIOPosix
import Synchronization

struct ReadinessReport: Sendable {
  var ready: Bool
  /// One line per fact: what is degraded, for people.
  var lines: [String]

  init(ready: Bool, lines: [String]) {
    self.ready = ready
    self.lines = lines
  }
}

enum HealthServer {
  /// Connections at a time; one more is closed at once.
  static let connectionsMax = 64
  static let silence = TimeAmount.seconds(15)

  private final class Count: Sendable {
    let open = Atomic<Int>(0)
  }

  /// Binds and serves until the returned channel is closed.
  static func start(
    host: String, port: Int, group: any EventLoopGroup,
    silence: TimeAmount = silence,
    report: @escaping @Sendable () -> ReadinessReport,
    metrics: @escaping @Sendable () async -> String
  ) async throws -> any Channel {
    let count = Count()
    return try await ServerBootstrap(group: group)
      .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
      .childChannelInitializer { channel in
        let before = count.open.wrappingAdd(1, ordering: .relaxed).oldValue
        channel.closeFuture.whenComplete { _ in
          count.open.wrappingSubtract(1, ordering: .relaxed)
        }
        guard before < connectionsMax else {
          return channel.eventLoop.makeFailedFuture(ChannelError.ioOnClosedChannel)
        }
        return channel.eventLoop.makeCompletedFuture {
          let pipeline = channel.pipeline.syncOperations
          try pipeline.addHandler(IdleStateHandler(allTimeout: silence))
          try pipeline.configureHTTPServerPipeline(withErrorHandling: true)
          try pipeline.addHandler(HealthHandler(report: report, metrics: metrics))
        }
      }
      .bind(host: host, port: port).get()
  }
}

private final class HealthHandler: ChannelInboundHandler {
  typealias InboundIn = HTTPServerRequestPart
  typealias OutboundOut = HTTPServerResponsePart

  private let report: @Sendable () -> ReadinessReport
  private let metrics: @Sendable () async -> String
  private var head: HTTPRequestHead?

  init(
    report: @escaping @Sendable () -> ReadinessReport,
    metrics: @escaping @Sendable () async -> String
  ) {
    self.report = report
    self.metrics = metrics
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    switch unwrapInboundIn(data) {
    case .head(let head): self.head = head
    case .body: break
    case .end:
      guard let head else { return }
      self.head = nil
      respond(to: head, context: context)
    }
  }

  func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
    guard event is IdleStateHandler.IdleStateEvent else {
      return context.fireUserInboundEventTriggered(event)
    }
    context.close(promise: nil)
  }

  private func respond(to head: HTTPRequestHead, context: ChannelHandlerContext) {
    var status = HTTPResponseStatus.ok
    var body = ""
    let path = head.uri.prefix { $0 != "?" }
    if head.method != .GET && head.method != .HEAD {
      status = .methodNotAllowed
      body = "only GET and HEAD\n"
    } else {
      switch path {
      case "/healthz": body = "ok\n"
      case "/readyz":
        let report = report()
        status = report.ready ? .ok : .serviceUnavailable
        body = (report.ready ? "ready\n" : "not ready\n") + report.lines.map { $0 + "\n" }.joined()
      case "/metrics":
        let bound = NIOLoopBound((self, context), eventLoop: context.eventLoop)
        context.eventLoop.makeFutureWithTask { [metrics] in await metrics() }
          .whenSuccess { text in
            let (handler, context) = bound.value
            handler.answer(
              head, text, type: "text/plain; version=0.0.4; charset=utf-8", context: context)
          }
        return
      default:
        status = .notFound
        body = "paths: /healthz /readyz /metrics\n"
      }
    }
    answer(head, body, status: status, context: context)
  }

  private func answer(
    _ head: HTTPRequestHead, _ body: String, status: HTTPResponseStatus = .ok,
    type: String = "text/plain; charset=utf-8", context: ChannelHandlerContext
  ) {
    guard context.channel.isActive else { return }
    let buffer = context.channel.allocator.buffer(string: body)
    var headers = HTTPHeaders([
      ("content-type", type), ("content-length", String(buffer.readableBytes)),
    ])
    if !head.isKeepAlive { headers.add(name: "connection", value: "close") }
    let response = HTTPResponseHead(version: head.version, status: status, headers: headers)
    let keepAlive = head.isKeepAlive
    // The end of an answer lets the next request through; it is said when the socket has taken
    // all of it.
    let isWritten = context.eventLoop.makePromise(of: Void.self)
    let bound = NIOLoopBound((self, context), eventLoop: context.eventLoop)
    isWritten.futureResult.whenSuccess {
      let (handler, context) = bound.value
      context.writeAndFlush(handler.wrapOutboundOut(.end(nil)), promise: nil)
      if !keepAlive { context.close(promise: nil) }
    }
    if head.method == .HEAD || buffer.readableBytes == 0 {
      context.writeAndFlush(wrapOutboundOut(.head(response)), promise: isWritten)
    } else {
      context.write(wrapOutboundOut(.head(response)), promise: nil)
      context.writeAndFlush(wrapOutboundOut(.body(.byteBuffer(buffer))), promise: isWritten)
    }
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    context.close(promise: nil)
  }
}
