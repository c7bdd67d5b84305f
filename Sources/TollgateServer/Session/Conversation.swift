// One client connection, without the socket: bytes to frames to requests, answers to bytes. Codec
// and handling are fused, so that no value travels boxed between them; every decision about the
// session is `SessionMachine`'s, every decision about a request the enforcer's. All on one event
// loop; what carries the bytes is a `Transport`, a NIO channel or a connection of a `LocalLoop`.
//
// Answers are collected in `answers` and written once per tick. A frame of many records is
// answered with one frame when its last record is decided.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateWire

final class Conversation {
  private let shared: SessionContext
  private let peerUID: UInt32?
  private var decoder: FrameDecoder
  private var machine: SessionMachine
  /// nil before the connection is there and after it is gone. What carries it holds this in turn.
  private var transport: (any Transport)?
  private var answers = ByteBuffer()
  private static let allocator = ByteBufferAllocator()
  /// Frames that were read and whose records are not all begun.
  private let waiting = IntakeQueue()
  private var noted = false
  private var readingPaused = false
  private var stopped = false
  /// A WELCOME with new policies waits until the client reads.
  private var policiesDue = false
  /// What the hello proved, for the audit of what is changed here.
  private var proof = ""
  /// What of the protocol's options this sidecar serves. An opcode of another one does not exist
  /// here: UNKNOWN_OPCODE, whatever is in it.
  static let supported: ProtocolFeatures = .reservations
  /// Those of them that the peer has too.
  private var features: ProtocolFeatures = []

  init(shared: SessionContext, peerUID: UInt32?) {
    self.shared = shared
    self.peerUID = peerUID
    decoder = FrameDecoder(frameBytesMax: WireLimits.helloFrameBytesMax)
    let limits = shared.configuration.limits
    machine = SessionMachine(
      now: Self.now(),
      limits: .init(
        inFlightMax: limits.inFlightPerConnectionMax,
        idleNanoseconds: limits.idleMilliseconds * 1_000_000,
        helloNanoseconds: limits.helloMilliseconds * 1_000_000))
  }

  private static func now() -> MonotonicTime {
    MonotonicTime(nanoseconds: Int64(clamping: NIODeadline.now().uptimeNanoseconds))
  }

  // MARK: - Events of the connection

  func opened(on transport: any Transport) {
    self.transport = transport
    guard shared.count < shared.configuration.limits.connectionsMax, !shared.draining else {
      perform(machine.protocolViolated(shared.draining ? .draining : .overloaded))
      return
    }
    shared.opened(self)
  }

  /// The connection is gone, whoever ended it. Told once.
  func lost() {
    machine.connectionLost()
    shared.closed(self)
    shared.intake.drop(waiting)
    transport = nil
  }

  func received(_ bytes: ByteBuffer) {
    guard !stopped else { return }
    decoder.feed(bytes)
    do throws(WireError) {
      while !stopped, let frame = try decoder.next() {
        shared.enforcer.metrics.frames.add()
        received(frame)
      }
    } catch {
      shared.enforcer.metrics.protocolErrors.add()
      perform(machine.protocolViolated(error.code), message: error.text)
    }
  }

  func writabilityChanged() {
    updateReading()
    if policiesDue { policiesChanged() }
  }

  // MARK: - Frames

  private func received(_ frame: Frame) {
    guard let opcode = frame.header.opcode, features.isSuperset(of: opcode.feature) else {
      shared.enforcer.metrics.protocolErrors.add()
      return unknown(frame)
    }
    // Before the welcome nothing but a hello is even looked at.
    guard opcode == .hello || !machine.awaitsHello else {
      shared.enforcer.metrics.protocolErrors.add()
      return perform(
        machine.protocolViolated(.helloRequired), correlation: frame.header.correlation)
    }
    do throws(WireError) {
      switch opcode {
      case .hello: try hello(frame)
      case .ping: try ping(frame)
      case .goAway: perform(machine.goAwayReceived())
      case .check: operations(frame, .operations(.check, try .init(frame.payload)))
      case .consume: operations(frame, .operations(.consume, try .init(frame.payload)))
      case .post: operations(frame, .operations(.post, try .init(frame.payload)))
      case .cancel: operations(frame, .operations(.cancel, try .init(frame.payload)))
      case .admin: try admin(frame)
      case .reserve: operations(frame, .reserves(try .init(frame.payload)))
      case .settle: operations(frame, .settles(try .init(frame.payload)))
      case .release: operations(frame, .releases(try .init(frame.payload)))
      case .extend: operations(frame, .extends(try .init(frame.payload)))
      case .refund: operations(frame, .refunds(try .init(frame.payload)))
      case .welcome, .pong, .error, .decisions, .adminReply, .link, .linked, .batch, .batchReply,
        .recover, .presentRequest, .present, .epoch, .balances, .balancesReply, .config,
        .configReply, .query, .queryReply:
        throw WireError.fatal(.badFrame, "\(opcode.name) has no place on a client connection")
      }
    } catch {
      // A hello that cannot be read leaves nothing to go on with.
      if error.isFatal || machine.awaitsHello {
        shared.enforcer.metrics.protocolErrors.add()
        perform(
          machine.protocolViolated(error.code), correlation: frame.header.correlation,
          message: error.text)
      } else {
        shared.enforcer.metrics.failed(error.code)
        write(ErrorReply(error), correlation: frame.header.correlation)
      }
    }
  }

  /// Its length was good, so only this frame is refused; before the hello the connection is.
  private func unknown(_ frame: Frame) {
    let action = machine.requestReceived(records: 0, needs: .check, now: Self.now())
    guard case .accept = action else {
      return perform(action, correlation: frame.header.correlation)
    }
    perform(.reject(.unknownOpcode), correlation: frame.header.correlation)
  }

  private func hello(_ frame: Frame) throws(WireError) {
    let hello = try Hello.decode(frame)
    // Before this session takes part: others may be told of a change now, and the first WELCOME
    // here is the answer to the hello.
    shared.refreshPolicies()
    let supported = (hello.versionMin...hello.versionMax).contains(FrameHeader.version)
    let identity = shared.identity(token: hello.token, peerUID: peerUID)
    proof = identity?.proof ?? ""
    let action = machine.helloReceived(
      versionSupported: supported, asked: hello.role,
      granted: identity?.role, now: Self.now())
    guard case .welcome = action else {
      return perform(action, correlation: frame.header.correlation)
    }
    decoder.frameBytesMax = shared.configuration.limits.frameBytesMax
    features = hello.features.intersection(Self.supported)
    writeWelcome(hello.role, correlation: frame.header.correlation)
    transport?.sessionReady(frameBytesMax: decoder.frameBytesMax, features: features)
  }

  private func writeWelcome(_ role: Role, correlation: UInt64) {
    let limits = shared.configuration.limits
    guard let sidecar = try? Name(shared.configuration.sidecarID) else { return }
    write(
      Welcome(
        role: role, features: features, deployment: shared.configuration.deployment.id,
        sidecar: sidecar,
        frameBytesMax: UInt32(limits.frameBytesMax),
        inFlightMax: UInt32(limits.inFlightPerConnectionMax),
        defaultDeadlineMilliseconds: UInt32(limits.deadlineDefaultMilliseconds),
        maxDeadlineMilliseconds: UInt32(limits.deadlineMaxMilliseconds),
        idleTimeoutMilliseconds: UInt32(limits.idleMilliseconds),
        time: shared.enforcer.redisNow, globalVersion: shared.enforcer.global?.version ?? 0,
        policies: shared.policies, sidecarFeatures: shared.sidecarFeatures),
      correlation: correlation)
  }

  /// Tells the client, with a WELCOME of correlation id 0; one that does not read is told once, the
  /// newest, when it does, so that edits cannot pile up in front of it.
  func policiesChanged() {
    guard let transport, let role = machine.readyRole else { return }
    policiesDue = !transport.isWritable
    if !policiesDue { writeWelcome(role, correlation: 0) }
  }

  private func ping(_ frame: Frame) throws(WireError) {
    let ping = try Ping.decode(frame)
    let action = machine.pingReceived(now: Self.now())
    if case .pong = action {
      write(Pong(nonce: ping.nonce), correlation: frame.header.correlation)
    } else {
      perform(action, correlation: frame.header.correlation)
    }
  }

  private func operations(_ frame: Frame, _ records: AskedRecords) {
    let mode = records.mode
    let count = records.left
    let action = machine.requestReceived(records: count, needs: .check, now: Self.now())
    switch action {
    case .accept, .acceptAndPauseReading: break
    case .none, .welcome, .resumeReading, .reject, .refuseAndClose, .pong, .goAway,
      .goAwayAndClose, .close:
      return perform(action, correlation: frame.header.correlation)
    }
    if case .acceptAndPauseReading = action { perform(action) }
    let limits = shared.configuration.limits
    let asked = Int64(frame.header.deadlineMilliseconds)
    let milliseconds =
      asked == 0 ? limits.deadlineDefaultMilliseconds : min(asked, limits.deadlineMaxMilliseconds)
    let arrived = NIODeadline.now()
    let deadline = arrived + .milliseconds(milliseconds)
    let correlation = frame.header.correlation
    let admitted = shared.intake.admitted(
      of: count, own: machine.inFlight - count, deadline: deadline, now: arrived)
    guard admitted > 0 else {
      // One of them is counted where the frame is refused.
      shared.enforcer.metrics.overloaded.add(Int64(count - 1))
      perform(.reject(.overloaded), correlation: correlation)
      return perform(machine.repliesSent(records: count, now: Self.now()))
    }
    let posted: Source =
      frame.header.flags.contains(.clientFallback) ? .clientFallback : .policy
    let work = FrameWork(
      shared: shared, mode: mode, source: mode == .post ? posted : .redis, arrived: arrived,
      deadline: deadline,
      reply: FrameAnswer(
        conversation: self, correlation: correlation, count: count, features: features))
    if admitted == count, shared.intake.passes(count) {
      var records = records
      while let result = records.next() { work.begin(count - records.left - 1, result) }
      return
    }
    shared.intake.take(
      IntakeFrame(
        records, admitted: admitted, arrived: arrived, deadline: deadline,
        submit: { work.begin($0, $1) }, refuse: { work.refuse($0) }),
      of: waiting)
  }

  /// All records of a frame are decided.
  func answered(_ correlation: UInt64, _ records: [DecisionRecord]) {
    guard !stopped, transport != nil else { return }
    answers.writeFrame(DecisionBatch(records), correlation: correlation)
    note()
    perform(machine.repliesSent(records: records.count, now: Self.now()))
  }

  private func admin(_ frame: Frame) throws(WireError) {
    let request = try AdminRequest.decode(frame)
    let action = machine.requestReceived(records: 1, needs: .admin, now: Self.now())
    switch action {
    case .accept, .acceptAndPauseReading: break
    case .none, .welcome, .resumeReading, .reject, .refuseAndClose, .pong, .goAway,
      .goAwayAndClose, .close:
      return perform(action, correlation: frame.header.correlation)
    }
    if case .acceptAndPauseReading = action { perform(action) }
    guard transport != nil else { return }
    let correlation = frame.header.correlation
    // Without a deadline of its own an admin request has the longest: the default is made for
    // decisions, and few administrative answers come as fast.
    let longest = shared.configuration.limits.deadlineMaxMilliseconds
    let asked = Int64(frame.header.deadlineMilliseconds)
    shared.admin.ask(
      request.rawMethod, request.body, AdminCaller(proof: proof),
      deadline: .now() + .milliseconds(asked == 0 ? longest : min(asked, longest)),
      on: shared.enforcer.eventLoop
    ) { self.adminAnswered(correlation, $0) }
  }

  private func adminAnswered(_ correlation: UInt64, _ result: Result<[UInt8], AdminError>) {
    guard !stopped, transport != nil else { return }
    switch result {
    case .success(let body):
      let chunk = min(WireLimits.documentBytesMax, decoder.frameBytesMax - 1024)
      var rest = body[...]
      repeat {
        let part = rest.prefix(chunk)
        rest = rest.dropFirst(part.count)
        answers.writeFrame(
          AdminReply(body: Array(part)), correlation: correlation,
          flags: rest.isEmpty ? [] : .more)
      } while !rest.isEmpty
    case .failure(let error):
      answers.writeFrame(
        AdminReply(status: error.code, body: error.body), correlation: correlation)
    }
    note()
    perform(machine.repliesSent(records: 1, now: Self.now()))
  }

  // MARK: - What the session decides

  func timePassed() {
    let now = Self.now()
    if transport?.takeActivity() == true { machine.activityNoticed(now: now) }
    perform(machine.timePassed(now: now))
  }

  func drain() { perform(machine.drainStarted()) }

  func closeNow() { perform(machine.graceEnded()) }

  private func perform(
    _ action: SessionMachine.Action, correlation: UInt64 = 0, message: String? = nil
  ) {
    switch action {
    case .none, .welcome, .accept, .pong: break
    case .acceptAndPauseReading:
      readingPaused = true
      updateReading()
    case .resumeReading:
      readingPaused = false
      updateReading()
    case .reject(let code):
      if code == .overloaded { shared.enforcer.metrics.overloaded.add() }
      shared.enforcer.metrics.failed(code)
      write(
        ErrorReply(code: code, message: message ?? Self.text(of: code)), correlation: correlation)
    case .refuseAndClose(let code):
      shared.enforcer.metrics.failed(code)
      write(
        ErrorReply(code: code, message: message ?? Self.text(of: code)), correlation: correlation)
      close()
    case .goAway(let code):
      transport?.sessionDrains()
      let drain = shared.configuration.limits.drainMilliseconds
      write(
        goAway(code, grace: DrainPlan.workMilliseconds(ofGrace: drain)), correlation: 0)
    case .goAwayAndClose(let code):
      write(goAway(code, grace: 0), correlation: 0)
      close()
    case .close: close()
    }
  }

  private func goAway(_ code: ErrorCode, grace: Int64) -> GoAway {
    GoAway(
      code: code, graceMilliseconds: UInt32(clamping: grace), message: Self.text(of: code))
  }

  private static func text(of code: ErrorCode) -> String {
    switch code {
    case .helloRequired: "say hello first"
    case .unauthenticated: "no credential that is known here"
    case .forbidden: "the connection's role does not cover this"
    case .overloaded: "too much in flight; retry later or elsewhere"
    case .draining: "this sidecar is going down; use another connection"
    case .idleTimeout: "nothing was asked for too long"
    default: code.name
    }
  }

  // MARK: - Writing

  private func write(_ message: some OpcodeMessage, correlation: UInt64) {
    guard transport != nil else { return }
    answers.writeFrame(message, correlation: correlation)
    note()
  }

  private func note() {
    guard !noted else { return }
    noted = true
    shared.flusher.add(self)
  }

  func flushAnswers() {
    noted = false
    guard let transport, answers.readableBytes > 0 else { return }
    let bytes = answers
    answers = Self.allocator.buffer(capacity: max(256, min(bytes.capacity, 64 * 1024)))
    transport.write(bytes)
  }

  private func close() {
    guard !stopped else { return }
    stopped = true
    flushAnswers()
    transport?.close()
  }

  private func updateReading() {
    guard let transport else { return }
    transport.setReading(!readingPaused && transport.isWritable)
  }
}
