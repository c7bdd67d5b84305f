// One connection of a command to a sidecar: connect, hello, calls in flight side by side, replies
// by correlation id. Deliberately small and without retries: a command says what happened, and a
// person or a script decides. All state lives on the channel's event loop; the async side only
// hands calls in and awaits their promises.

import Foundation
import NIOCore
import NIOPosix
import TollgateCore
import TollgateServer
import TollgateWire

struct Endpoint: Hashable, Sendable, CustomStringConvertible {
  enum Address: Hashable, Sendable {
    case unix(String)
    case tcp(host: String, port: Int)
  }

  var address: Address
  var token: String

  var description: String {
    switch address {
    case .unix(let path): "unix:\(path)"
    case .tcp(let host, let port): "\(host):\(port)"
    }
  }
}

final class ServerConnection: Sendable {
  let welcome: Welcome
  private let channel: any Channel
  private let timeoutMilliseconds: Int64

  private init(welcome: Welcome, channel: any Channel, timeoutMilliseconds: Int64) {
    self.welcome = welcome
    self.channel = channel
    self.timeoutMilliseconds = timeoutMilliseconds
  }

  /// Connects and says hello; every way this can fail names what to do.
  static func open(
    _ endpoint: Endpoint, role: Role, timeoutMilliseconds: Int64
  ) async throws(CommandFailure) -> ServerConnection {
    let bootstrap = ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
      .connectTimeout(.milliseconds(timeoutMilliseconds))
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(CallHandler())
        }
      }
    let channel: any Channel
    do {
      switch endpoint.address {
      case .unix(let path):
        channel = try await bootstrap.connect(unixDomainSocketPath: path).get()
      case .tcp(let host, let port):
        channel = try await bootstrap.connect(host: host, port: port).get()
      }
    } catch {
      throw CommandFailure(
        .unavailable, "no sidecar answers at \(endpoint): \(Self.words(for: error))",
        fix: "start one (tollgate serve --config FILE), or name another with --unix PATH or "
          + "--tcp HOST:PORT")
    }
    let hello = Hello(
      role: role, client: "tollgate-cli", token: endpoint.token, features: .reservations)
    do throws(CommandFailure) {
      let frames = try await call(
        channel, Hello.opcode, hello, timeoutMilliseconds: timeoutMilliseconds)
      guard let frame = frames.first, frame.header.opcode == .welcome else {
        throw CommandFailure(.internalError, "\(endpoint) did not answer the hello with a welcome")
      }
      let welcome = try decode(Welcome.self, frame)
      return ServerConnection(
        welcome: welcome, channel: channel, timeoutMilliseconds: timeoutMilliseconds)
    } catch {
      try? await channel.close().get()
      guard error.status == .notPermitted else { throw error }
      throw CommandFailure(
        AdminFailure(
          error.failure.code,
          "\(endpoint) refused the hello for role \(role.name): " + error.failure.message,
          fix: "give the credential with --token-file FILE or TOLLGATE_TOKEN; on the Unix socket a "
            + "user listed under credentials.peer_uids needs none for the role check"))
    }
  }

  /// False once the connection is gone: then only a new one helps.
  var isOpen: Bool { channel.isActive }

  func close() async { try? await channel.close().get() }

  // MARK: Calls

  func admin<Reply: Decodable & Sendable>(
    _ method: AdminMethod, _ request: some Encodable, as _: Reply.Type,
    timeoutMilliseconds: Int64? = nil
  ) async throws(CommandFailure) -> (reply: Reply, body: [UInt8]) {
    let body: [UInt8]
    do throws(AdminFailure) {
      body = try AdminJSON.encode(request)
    } catch {
      throw CommandFailure(error)
    }
    guard body.count <= WireLimits.documentBytesMax else {
      throw .usage("the request has \(body.count) bytes; at most \(WireLimits.documentBytesMax)")
    }
    let frames = try await Self.call(
      channel, AdminRequest.opcode, AdminRequest(method, body: body),
      timeoutMilliseconds: timeoutMilliseconds ?? self.timeoutMilliseconds)
    var status: ErrorCode?
    var answer: [UInt8] = []
    for frame in frames {
      let part = try Self.decode(AdminReply.self, frame)
      status = part.status ?? status
      answer += part.body
    }
    do throws(AdminFailure) {
      if let status {
        let error = try? AdminJSON.decode(AdminErrorReply.self, from: answer)
        throw error?.failure ?? AdminFailure(status, status.name)
      }
      return (try AdminJSON.decode(Reply.self, from: answer), answer)
    } catch {
      throw CommandFailure(error)
    }
  }

  func operate(
    _ opcode: Opcode, _ batch: some WireMessage
  ) async throws(CommandFailure) -> [DecisionRecord] {
    let frames = try await Self.call(
      channel, opcode, batch, timeoutMilliseconds: timeoutMilliseconds)
    guard let frame = frames.first else {
      throw CommandFailure(.internalError, "an empty answer")
    }
    return try Self.decode(DecisionBatch.self, frame).records
  }

  /// The sidecar answers *at* the deadline; waiting no longer than that would miss the answer.
  private static let answerGraceMilliseconds: Int64 = 250

  private static func call(
    _ channel: any Channel, _ opcode: Opcode, _ message: some WireMessage,
    timeoutMilliseconds: Int64
  ) async throws(CommandFailure) -> [Frame] {
    let promise = channel.eventLoop.makePromise(of: [Frame].self)
    let message = message
    let call = Call(
      encode: { buffer, correlation in
        buffer.writeFrame(
          opcode, message, correlation: correlation,
          deadlineMilliseconds: UInt32(
            clamping: opcode == .hello
              ? 0 : min(timeoutMilliseconds, Int64(WireLimits.deadlineMillisecondsMax))))
      }, promise: promise, timeoutMilliseconds: timeoutMilliseconds + answerGraceMilliseconds)
    channel.writeAndFlush(call, promise: nil)
    do {
      return try await promise.futureResult.get()
    } catch let failure as CommandFailure {
      throw failure
    } catch {
      throw CommandFailure(.unavailable, words(for: error))
    }
  }

  private static func decode<Message: WireMessage>(
    _: Message.Type, _ frame: Frame
  ) throws(CommandFailure) -> Message {
    do throws(WireError) {
      return try Message.decode(frame)
    } catch {
      throw CommandFailure(.internalError, "the sidecar's answer cannot be read: \(error)")
    }
  }

  private static func words(for error: any Error) -> String {
    switch error {
    case let error as IOError: systemText(error.errnoCode)
    case let error as NIOConnectionError:
      error.connectionErrors.first.map { words(for: $0.error) } ?? "\(error)"
    case ChannelError.connectTimeout(let time):
      "no connection within \(time.nanoseconds / 1_000_000) ms"
    default: "\(error)"
    }
  }
}

private func systemText(_ code: CInt) -> String {
  unsafe strerror(code).map { unsafe String(cString: $0) } ?? "error \(code)"
}

/// One call on its way into the channel.
private struct Call: Sendable {
  var encode: @Sendable (inout ByteBuffer, UInt64) -> Void
  var promise: EventLoopPromise<[Frame]>
  var timeoutMilliseconds: Int64
}

private final class CallHandler: ChannelDuplexHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundIn = Call
  typealias OutboundOut = ByteBuffer

  private struct Waiting {
    var promise: EventLoopPromise<[Frame]>
    var frames: [Frame] = []
    var bytes = 0
    var timeout: Scheduled<Void>
  }

  private var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
  private var waiting: [UInt64: Waiting] = [:]
  private var correlation: UInt64 = 0
  private var ending: CommandFailure?

  func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
    let call = unwrapOutboundIn(data)
    if let ending {
      call.promise.fail(ending)
      return
    }
    correlation += 1
    let correlation = correlation
    var buffer = context.channel.allocator.buffer(capacity: 1024)
    call.encode(&buffer, correlation)
    let handler = NIOLoopBound(self, eventLoop: context.eventLoop)
    let timeout = context.eventLoop.scheduleTask(in: .milliseconds(call.timeoutMilliseconds)) {
      handler.value.expire(correlation, after: call.timeoutMilliseconds)
    }
    waiting[correlation] = Waiting(promise: call.promise, timeout: timeout)
    context.write(wrapOutboundOut(buffer), promise: promise)
  }

  private func expire(_ correlation: UInt64, after milliseconds: Int64) {
    waiting.removeValue(forKey: correlation)?.promise.fail(
      CommandFailure(
        .outcomeUnknown, "no answer within \(milliseconds) ms",
        fix: "a read can just be run again; a change is run again with the same --id, so that it "
          + "happens once. --timeout gives it longer"))
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    decoder.feed(unwrapInboundIn(data))
    do throws(WireError) {
      while let frame = try decoder.next() { try receive(frame, context) }
    } catch {
      end(CommandFailure(.internalError, "the sidecar sent what is not our protocol: \(error)"))
      context.close(promise: nil)
    }
  }

  private func receive(_ frame: Frame, _ context: ChannelHandlerContext) throws(WireError) {
    let correlation = frame.header.correlation
    switch frame.header.opcode {
    case .ping:
      // The server's ids are its own: its ping is never the answer to a call of ours.
      var buffer = context.channel.allocator.buffer(capacity: 32)
      buffer.writeFrame(Pong(nonce: try Ping.decode(frame).nonce), correlation: correlation)
      context.writeAndFlush(wrapOutboundOut(buffer), promise: nil)
    case .error:
      guard let error = try? TollgateWire.ErrorReply.decode(frame) else { return }
      let failure = CommandFailure(
        AdminFailure(
          error.code, error.field.map { "\($0): \(error.message)" } ?? error.message))
      if correlation == 0 { end(failure) } else { finish(correlation, .failure(failure)) }
    case .goAway:
      // What is in flight is still answered; a new call on this connection is not.
      ending = CommandFailure(
        .unavailable, "the sidecar is draining", fix: "ask another one, or try again in a moment")
    default:
      guard var call = waiting[correlation] else { return }
      call.frames.append(frame)
      call.bytes += frame.payload.readableBytes
      waiting[correlation] = call
      if call.bytes > AdminJSON.bytesMax {
        finish(
          correlation, .failure(CommandFailure(.internalError, "the answer is too large")))
      } else if !frame.header.flags.contains(.more) {
        finish(correlation, .success(call.frames))
      }
    }
  }

  private func finish(_ correlation: UInt64, _ result: Result<[Frame], any Error>) {
    guard let call = waiting.removeValue(forKey: correlation) else { return }
    call.timeout.cancel()
    call.promise.completeWith(result)
  }

  private func end(_ failure: CommandFailure) {
    if ending == nil { ending = failure }
    for correlation in waiting.keys.sorted() { finish(correlation, .failure(failure)) }
  }

  func channelInactive(context: ChannelHandlerContext) {
    end(
      CommandFailure(
        .outcomeUnknown, "the sidecar closed the connection before it answered",
        fix: "run it again; a change with the same --id happens once"))
    context.fireChannelInactive()
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    end(CommandFailure(.outcomeUnknown, "the connection broke: \(error)"))
    context.close(promise: nil)
  }
}
