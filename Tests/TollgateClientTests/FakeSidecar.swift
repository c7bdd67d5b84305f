// A sidecar that speaks the real protocol on a real socket and does what the test says: answer,
// refuse, hold an answer back, hang up. It remembers every record it was sent, so a test can count
// the sends of one id.

import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import TollgateTesting
import TollgateWire

@testable import TollgateClient

final class FakeSidecar: Sendable {
  struct Request: Sendable {
    let connection: Int
    let opcode: Opcode
    let flags: FrameFlags
    let correlation: UInt64
    let deadline: UInt32
    let asks: [Ask]
    fileprivate let channel: any Channel
  }

  enum Answer: Sendable {
    case allow
    /// Allowed, with a reason and an expiry so many milliseconds from now.
    case grant(Reason, lives: Int64?)
    case deny(Reason)
    /// One error for each record, in DECISIONS.
    case error(ErrorCode)
    /// An ERROR frame.
    case refuse(ErrorCode)
    /// Nothing, until the test answers itself.
    case hold
    /// The connection ends unanswered.
    case hangUp
  }

  struct Manners: Sendable {
    var policies: [FeaturePolicy] = []
    var inFlightMax: UInt32 = 1024
    var frameBytesMax: UInt32 = UInt32(WireLimits.dataFrameBytesMax)
    var idleTimeout: UInt32 = 0
    /// Milliseconds the sidecar's clock is ahead.
    var ahead: Int64 = 0
    var answersPings = true
    /// What a hello gets instead of a welcome.
    var refusesHello: ErrorCode?
    var credential = ""
    var features: ProtocolFeatures = .reservations
  }

  private struct State {
    var rule: @Sendable (Request) -> Answer = { _ in .allow }
    var manners: Manners
    var requests: [Request] = []
    var channels: [Int: any Channel] = [:]
    var accepted = 0
    var pings = 0
    var listener: (any Channel)?
  }

  let path: String
  private let state: NIOLockedValueBox<State>

  init(_ path: String, _ manners: Manners = Manners()) {
    self.path = path
    state = NIOLockedValueBox(State(manners: manners))
  }

  var endpoint: Endpoint { .unix(path) }
  var requests: [Request] { state.withLockedValue { $0.requests } }
  var accepted: Int { state.withLockedValue { $0.accepted } }
  var open: Int { state.withLockedValue { $0.channels.count } }
  var pings: Int { state.withLockedValue { $0.pings } }

  func answer(_ rule: @escaping @Sendable (Request) -> Answer) {
    state.withLockedValue { $0.rule = rule }
  }

  func change(_ body: @Sendable (inout Manners) -> Void) {
    state.withLockedValue { body(&$0.manners) }
  }

  /// How often the id was sent with this opcode.
  func sends(_ id: OperationID, _ opcode: Opcode) -> Int {
    requests.filter { $0.opcode == opcode }.flatMap(\.records).filter { $0.id == id }.count
  }

  func start() async throws {
    let listener = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(Handler(sidecar: self))
        }
      }
      .bind(unixDomainSocketPath: path, cleanupExistingSocketFile: true).get()
    state.withLockedValue { $0.listener = listener }
  }

  /// Refuses new connections; those that are open stay.
  func stopListening() async throws {
    let listener = state.withLockedValue { state in
      defer { state.listener = nil }
      return state.listener
    }
    try await listener?.close()
  }

  /// Ends every connection, like a process that was killed.
  func hangUp() async throws {
    for channel in state.withLockedValue({ Array($0.channels.values) }) {
      try? await channel.close()
    }
  }

  func kill() async throws {
    try await stopListening()
    try await hangUp()
  }

  func goAway(_ code: ErrorCode = .draining) {
    let goAway = GoAway(code: code, graceMilliseconds: 1000, message: "stopping")
    for channel in state.withLockedValue({ Array($0.channels.values) }) {
      write(channel) { $0.writeFrame(goAway, correlation: 0) }
    }
  }

  func push(_ policies: [FeaturePolicy]) {
    state.withLockedValue { $0.manners.policies = policies }
    for channel in state.withLockedValue({ Array($0.channels.values) }) {
      write(channel) { $0.writeFrame(self.welcome, correlation: 0) }
    }
  }

  func respond(_ request: Request, _ answer: Answer) {
    let records: [DecisionRecord]
    switch answer {
    case .hold: return
    case .hangUp:
      request.channel.close(promise: nil)
      return
    case .refuse(let code):
      let error = ErrorReply(code: code, message: "so said the test")
      return write(request.channel) { $0.writeFrame(error, correlation: request.correlation) }
    case .allow:
      let reason: Reason = request.opcode == .post ? .allowedPosted : .allowed
      records = request.records.map { .decision(decision(reason, $0)) }
    case .deny(let reason): records = request.records.map { .decision(decision(reason, $0)) }
    case .grant(let reason, let lives):
      records = request.records.map { record in
        var decision = decision(reason, record)
        decision.expires = lives.map { decision.time + $0 }
        return .decision(decision)
      }
    case .error(let code):
      records = request.records.map { _ in .error(code, message: "so said the test") }
    }
    write(request.channel) {
      $0.writeFrame(DecisionBatch(records), correlation: request.correlation)
    }
  }

  /// The first item's amount comes back as `accountVersion`, so a test can tell answers apart.
  private func decision(_ reason: Reason, _ record: Record) -> Decision {
    Decision(
      reason: reason, source: .redis, time: Clock.wall,
      accountVersion: record.items.first?.amount ?? 0)
  }

  private func write(_ channel: any Channel, _ body: @Sendable (inout ByteBuffer) -> Void) {
    var buffer = ByteBuffer()
    body(&buffer)
    channel.writeAndFlush(buffer, promise: nil)
  }

  private var welcome: Welcome {
    let manners = state.withLockedValue { $0.manners }
    return Welcome(
      role: .check, features: manners.features, deployment: name("test"), sidecar: name("fake"),
      frameBytesMax: manners.frameBytesMax, inFlightMax: manners.inFlightMax,
      defaultDeadlineMilliseconds: 1000, maxDeadlineMilliseconds: 60_000,
      idleTimeoutMilliseconds: manners.idleTimeout, time: Clock.wall + manners.ahead,
      globalVersion: 1, policies: manners.policies)
  }

  // MARK: the server's side

  private func accept(_ channel: any Channel) -> Int {
    state.withLockedValue { state in
      state.accepted += 1
      state.channels[state.accepted] = channel
      return state.accepted
    }
  }

  private func gone(_ connection: Int) { state.withLockedValue { $0.channels[connection] = nil } }

  private func received(_ frame: Frame, _ connection: Int, _ channel: any Channel) {
    let manners = state.withLockedValue { $0.manners }
    do {
      switch frame.header.opcode {
      case .hello:
        let hello = try Hello.decode(frame)
        if let code = manners.refusesHello
          ?? (hello.token == manners.credential ? nil : .unauthenticated)
        {
          let error = ErrorReply(code: code, message: "no")
          write(channel) { $0.writeFrame(error, correlation: frame.header.correlation) }
          channel.close(promise: nil)
        } else {
          write(channel) { $0.writeFrame(self.welcome, correlation: frame.header.correlation) }
        }
      case .ping:
        let nonce = try Ping.decode(frame).nonce
        state.withLockedValue { $0.pings += 1 }
        guard manners.answersPings else { return }
        write(channel) {
          $0.writeFrame(Pong(nonce: nonce), correlation: frame.header.correlation)
        }
      case .check, .consume, .post, .cancel, .reserve, .settle, .release, .extend, .refund:
        let request = Request(
          connection: connection, opcode: frame.header.opcode ?? .check, flags: frame.header.flags,
          correlation: frame.header.correlation, deadline: frame.header.deadlineMilliseconds,
          asks: try Self.asks(frame), channel: channel)
        let rule = state.withLockedValue { state in
          state.requests.append(request)
          return state.rule
        }
        respond(request, rule(request))
      default: channel.close(promise: nil)
      }
    } catch {
      channel.close(promise: nil)
    }
  }

  private static func asks(_ frame: Frame) throws -> [Ask] {
    switch frame.header.opcode {
    case .reserve: try ReserveBatch.decode(frame).records.map { .reserve($0) }
    case .settle: try SettleBatch.decode(frame).records.map { .settle($0) }
    case .release: try ReleaseBatch.decode(frame).records.map { .release($0) }
    case .extend: try ExtendBatch.decode(frame).records.map { .extend($0) }
    case .refund: try RefundBatch.decode(frame).records.map { .refund($0) }
    default: try OperationBatch.decode(frame).records.map { .consume($0) }
    }
  }

  private final class Handler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    let sidecar: FakeSidecar
    var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
    var number = 0

    init(sidecar: FakeSidecar) { self.sidecar = sidecar }

    func channelActive(context: ChannelHandlerContext) { number = sidecar.accept(context.channel) }

    func channelInactive(context: ChannelHandlerContext) { sidecar.gone(number) }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
      decoder.feed(unwrapInboundIn(data))
      do {
        while let frame = try decoder.next() {
          sidecar.received(frame, number, context.channel)
        }
      } catch {
        context.close(promise: nil)
      }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
      context.close(promise: nil)
    }
  }
}

/// A name known to be good.
func name(_ text: String) -> Name {
  do { return try Name(text) } catch { fatalError("\(error)") }
}

func subject(_ path: String) -> Subject {
  do { return try Subject(path) } catch { fatalError("\(error)") }
}

func item(_ feature: String, _ amount: Int64 = 1) -> Item {
  Item(feature: name(feature), amount: amount)
}

extension FakeSidecar.Request {
  /// What the records name, whatever their kind.
  var records: [Record] {
    asks.map { ask in
      switch ask {
      case .check(let record), .consume(let record), .post(let record, _): record
      case .reserve(let record): record.operation
      case .settle(let record): record.asPost
      case .release(let record): Record(id: record.id, subject: record.subject, items: [])
      case .extend(let record): Record(id: record.id, subject: record.subject, items: [])
      case .refund(let record):
        Record(id: record.id, subject: record.subject, items: record.items)
      }
    }
  }

  var settles: [SettleRecord] {
    asks.compactMap { if case .settle(let record) = $0 { record } else { nil } }
  }
}
