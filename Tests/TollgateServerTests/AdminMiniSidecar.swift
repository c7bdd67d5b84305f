// A sidecar's admin port without a sidecar: accepts one protocol, answers HELLO, ADMIN (through
// the real service over the fake backend), CONSUME and the requests of reservations (a canned
// decision each). It exists so that the
// built command line is tested end to end, output and exit codes, with a state that is known.

import NIOCore
import NIOPosix
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateServer

final class MiniSidecar: Sendable {
  let path: String
  private let group: MultiThreadedEventLoopGroup
  private let channel: any Channel

  init(
    _ fixture: AdminFixture, directory: TemporaryDirectory,
    decision: @escaping @Sendable (TollgateWire.OperationRecord) -> DecisionRecord = { _ in
      .error(.unavailable, message: "no decision prepared")
    },
    features: ProtocolFeatures = .reservations,
    hold: @escaping @Sendable (RequestMode, AskedRecord) -> DecisionRecord = { _, _ in
      .error(.unavailable, message: "no decision prepared")
    }
  ) async throws {
    let path = directory.file("tg.sock")
    self.path = path
    let service = fixture.service
    // A loop that no other test shares: the command under test waits ten seconds at most.
    group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    channel = try await ServerBootstrap(group: group)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(
            MiniHandler(service: service, decision: decision, features: features, hold: hold))
        }
      }
      .bind(unixDomainSocketPath: path).get()
  }

  func stop() async throws { try await channel.close().get() }

  deinit { group.shutdownGracefully { _ in } }
}

private final class MiniHandler: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  private var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
  private let service: AdminService<FakeBackend>
  private let decision: @Sendable (TollgateWire.OperationRecord) -> DecisionRecord
  private let features: ProtocolFeatures
  private let hold: @Sendable (RequestMode, AskedRecord) -> DecisionRecord

  init(
    service: AdminService<FakeBackend>,
    decision: @escaping @Sendable (TollgateWire.OperationRecord) -> DecisionRecord,
    features: ProtocolFeatures,
    hold: @escaping @Sendable (RequestMode, AskedRecord) -> DecisionRecord
  ) {
    self.service = service
    self.decision = decision
    self.features = features
    self.hold = hold
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    decoder.feed(unwrapInboundIn(data))
    do {
      while let frame = try decoder.next() { try receive(frame, context) }
    } catch {
      context.close(promise: nil)
    }
  }

  private func receive(_ frame: Frame, _ context: ChannelHandlerContext) throws {
    let correlation = frame.header.correlation
    var buffer = ByteBuffer()
    switch frame.header.opcode {
    case .hello:
      let hello = try Hello.decode(frame)
      if hello.token == "wrong" {
        buffer.writeFrame(
          TollgateWire.ErrorReply(code: .unauthenticated, message: "no such credential"),
          correlation: correlation)
      } else {
        buffer.writeFrame(
          Welcome(
            role: hello.role, features: hello.features.intersection(features),
            deployment: try Name("test"), sidecar: try Name("mini"),
            frameBytesMax: 1 << 20, inFlightMax: 64, defaultDeadlineMilliseconds: 1000,
            maxDeadlineMilliseconds: 30_000, idleTimeoutMilliseconds: 0,
            time: WallTime(milliseconds: 0), globalVersion: 1, policies: []),
          correlation: correlation)
      }
    case .admin:
      let request = try AdminRequest.decode(frame)
      guard let method = request.method else { return }
      // A ping of ours under the number of theirs: no answer to their request.
      buffer.writeFrame(Ping(nonce: 1), correlation: correlation)
      context.writeAndFlush(wrapOutboundOut(buffer), promise: nil)
      let channel = context.channel
      let service = service
      Task {
        let answer = await service.answer(
          method, body: request.body, caller: AdminCaller(proof: "test"))
        // In two pieces, so that every test also covers putting them together.
        let middle = answer.body.count / 2
        var buffer = ByteBuffer()
        if answer.status == nil {
          buffer.writeFrame(
            AdminReply(body: Array(answer.body[..<middle])), correlation: correlation, flags: .more)
          buffer.writeFrame(
            AdminReply(body: Array(answer.body[middle...])), correlation: correlation)
        } else {
          buffer.writeFrame(
            AdminReply(status: answer.status, body: answer.body), correlation: correlation)
        }
        channel.writeAndFlush(buffer, promise: nil)
      }
      return
    case .check, .consume:
      let batch = try OperationBatch.decode(frame)
      buffer.writeFrame(DecisionBatch(batch.records.map(decision)), correlation: correlation)
    case .reserve, .settle, .release, .extend, .refund:
      var records = try Self.records(frame)
      var answers: [DecisionRecord] = []
      while let record = records.next() { answers.append(hold(records.mode, try record.get())) }
      buffer.writeFrame(DecisionBatch(answers), correlation: correlation)
    default: return
    }
    context.writeAndFlush(wrapOutboundOut(buffer), promise: nil)
  }

  private static func records(_ frame: Frame) throws -> AskedRecords {
    switch frame.header.opcode {
    case .reserve: .reserves(try .init(frame.payload))
    case .settle: .settles(try .init(frame.payload))
    case .release: .releases(try .init(frame.payload))
    case .extend: .extends(try .init(frame.payload))
    case .refund: .refunds(try .init(frame.payload))
    default: .operations(.check, try .init(frame.payload))
    }
  }
}
