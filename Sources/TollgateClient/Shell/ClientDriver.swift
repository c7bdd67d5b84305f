// The shell around `ClientMachine`: it hands events and the time in and carries the effects out.
// It holds no decisions. Everything here runs on one event loop; callers reach it through the
// `Inbox`, completions leave it through continuations.
//
// A turn: pump the machine, carry out its effects until there are none, publish the statistics,
// resume the callers, flush each connection once, arm the timer. Events that effects cause on the
// spot only change the machine; the turn that is under way carries out what follows.

internal import NIOCore
internal import NIOPosix
internal import TollgateWire

final class ClientDriver {
  private enum Waiter {
    case single(CheckedContinuation<Result<Decision, TollgateError>, Never>)
    case batch(UInt64, index: Int)
    case nobody
  }

  private struct Batch {
    let continuation: CheckedContinuation<[Result<Decision, TollgateError>], Never>
    var results: [Result<Decision, TollgateError>]
    var left: Int
  }

  private let eventLoop: any EventLoop
  private let configuration: ClientConfiguration
  private let inbox: Inbox
  private var machine: ClientMachine
  /// Milliseconds the sidecar's clock is ahead of ours, where that is seconds.
  private var clockOffset: Int64 = 0

  private var waiters: [ClientMachine.Token: Waiter] = [:]
  private var batches: [UInt64: Batch] = [:]
  private var readyWaiters: [UInt64: CheckedContinuation<Result<Void, TollgateError>, Never>] = [:]
  private var stopWaiters: [CheckedContinuation<UnfinishedWork, Never>] = []
  private var finalWork: UnfinishedWork?

  /// Connections the machine knows and has not been told the end of.
  private var live: Set<ClientMachine.ConnectionID> = []
  private var handlers: [ClientMachine.ConnectionID: ClientChannelHandler] = [:]
  private var isInTurn = false
  private var timer: Scheduled<Void>?
  private var timerAt = Int64.max

  init(eventLoop: any EventLoop, configuration: ClientConfiguration, inbox: Inbox) {
    self.eventLoop = eventLoop
    self.configuration = configuration
    self.inbox = inbox
    machine = ClientMachine(settings: ClientMachine.Settings(configuration))
  }

  private var now: ClientMachine.Now {
    ClientMachine.Now(monotonic: Clock.monotonic, wall: Clock.wall + clockOffset)
  }

  // MARK: commands

  func drain() {
    let commands = inbox.take()
    let now = now
    for command in commands { carryOut(command, now) }
    turn()
  }

  private func carryOut(_ command: Inbox.Command, _ now: ClientMachine.Now) {
    switch command {
    case .start: if machine.life == .new { machine.start(now) }
    case .submit(let call, let continuation):
      waiters[call.token] = .single(continuation)
      machine.submit(call, now)
    case .submitBatch(let calls, let group, let continuation):
      let empty = Result<Decision, TollgateError>.failure(.notSent(.notRunning))
      batches[group] = Batch(
        continuation: continuation, results: Array(repeating: empty, count: calls.count),
        left: calls.count)
      for (index, call) in calls.enumerated() { waiters[call.token] = .batch(group, index: index) }
      for call in calls { machine.submit(call, now) }
    case .cancel(let tokens): for token in tokens { machine.cancel(token) }
    case .adopt(let posts, let cancels, let settles): machine.adopt(posts, cancels, settles)
    case .awaitReady(let id, let nanoseconds, let continuation):
      awaitReady(id, nanoseconds, continuation)
    case .cancelReady(let id): endReady(id, .failure(.notSent(.cancelled)))
    case .stop(let grace, let continuation): stop(grace, continuation, now)
    case .abandon: abandon()
    }
  }

  private func awaitReady(
    _ id: UInt64, _ nanoseconds: Int64,
    _ continuation: CheckedContinuation<Result<Void, TollgateError>, Never>
  ) {
    if machine.openLink != nil { return continuation.resume(returning: .success(())) }
    switch machine.life {
    case .new, .stopping, .stopped:
      return continuation.resume(returning: .failure(.notSent(.notRunning)))
    case .running: break
    }
    readyWaiters[id] = continuation
    eventLoop.assumeIsolated().scheduleTask(in: .nanoseconds(nanoseconds)) { [weak self] in
      guard let self else { return }
      endReady(id, .failure(.notSent(.deadlinePassed(machine.lastTrouble))))
    }
  }

  private func endReady(_ id: UInt64, _ result: Result<Void, TollgateError>) {
    readyWaiters.removeValue(forKey: id)?.resume(returning: result)
  }

  private func stop(
    _ grace: Int64, _ continuation: CheckedContinuation<UnfinishedWork, Never>,
    _ now: ClientMachine.Now
  ) {
    if let finalWork { return continuation.resume(returning: finalWork) }
    stopWaiters.append(continuation)
    machine.stop(now)
    if machine.life == .stopped { return finish() }
    eventLoop.assumeIsolated().scheduleTask(in: .nanoseconds(grace)) { [weak self] in
      self?.abandon()
    }
  }

  private func abandon() {
    guard machine.life != .stopped else { return }
    machine.abandon(now)
    turn()
    finish()
  }

  private func finish() {
    guard finalWork == nil else { return }
    let work = UnfinishedWork(
      unposted: machine.book.posts.records.map(Request.init),
      uncancelled: machine.book.cancels.records.map(Request.init),
      unsettled: machine.book.settles.records.map(UnsettledUse.init))
    finalWork = work
    timer?.cancel()
    for id in readyWaiters.keys { endReady(id, .failure(.notSent(.notRunning))) }
    let waiting = stopWaiters
    stopWaiters = []
    for continuation in waiting { continuation.resume(returning: work) }
  }

  // MARK: connection events

  /// The channel is up; false where it is not wanted any more.
  func connected(_ handler: ClientChannelHandler) -> Bool {
    guard live.contains(handler.id) else { return false }
    handlers[handler.id] = handler
    return true
  }

  func welcomed(_ id: ClientMachine.ConnectionID, _ welcome: Welcome) {
    let ahead = welcome.time - Clock.wall
    clockOffset = abs(ahead) > 2000 ? ahead : 0
    inbox.setClockOffset(clockOffset)
    machine.welcomed(id, welcome, now)
  }

  func policiesChanged(_ welcome: Welcome) { machine.policiesChanged(welcome) }

  func answered(
    _ id: ClientMachine.ConnectionID, _ shipment: ClientMachine.Shipment,
    _ records: [DecisionRecord]
  ) { machine.answered(id, shipment, records, now) }

  func refused(
    _ id: ClientMachine.ConnectionID, _ shipment: ClientMachine.Shipment, _ error: ErrorReply
  ) { machine.refused(id, shipment, error, now) }

  func wentAway(_ id: ClientMachine.ConnectionID, _ goAway: GoAway) {
    machine.wentAway(id, goAway, now)
  }

  func writabilityChanged(_ id: ClientMachine.ConnectionID, _ isWritable: Bool) {
    machine.writabilityChanged(id, isWritable)
  }

  func closed(
    _ id: ClientMachine.ConnectionID, orphans: [ClientMachine.Shipment], trouble: String
  ) {
    guard live.remove(id) != nil else { return }
    handlers[id] = nil
    machine.closed(id, orphans: orphans, trouble: trouble, now)
  }

  // MARK: the turn

  func turn() {
    guard !isInTurn else { return }
    isInTurn = true
    var completions: [(ClientMachine.Token, Result<Decision, TollgateError>)] = []
    var touched: Set<ClientMachine.ConnectionID> = []
    machine.pump(now)
    var effects = machine.takeEffects()
    while !effects.isEmpty {
      for effect in effects { carryOut(effect, &completions, &touched) }
      machine.pump(now)
      effects = machine.takeEffects()
    }
    inbox.publish(machine.snapshot, completed: completions.count)
    for (token, result) in completions { resume(token, result) }
    isInTurn = false
    // A flush may find the connection broken; that is an event of its own.
    for id in touched { handlers[id]?.flush() }
    armTimer()
  }

  private func carryOut(
    _ effect: ClientMachine.Effect,
    _ completions: inout [(ClientMachine.Token, Result<Decision, TollgateError>)],
    _ touched: inout Set<ClientMachine.ConnectionID>
  ) {
    switch effect {
    case .connect(let id, let endpoint): connect(id, configuration.endpoints[endpoint])
    case .send(let id, let outgoing):
      if handlers[id]?.send(outgoing) == true {
        touched.insert(id)
      } else {
        machine.undelivered(outgoing.shipment)
      }
    case .close(let id):
      if let handler = handlers[id] {
        handler.close()
      } else {
        closed(id, orphans: [], trouble: "")
      }
    case .complete(let token, let result): completions.append((token, result))
    case .ready: for id in readyWaiters.keys { endReady(id, .success(())) }
    case .refusedPost(let record, let reason):
      configuration.onRefusedPost?(RefusedPost(operation: Request(record), reason: reason))
    case .refusedSettle(let record, let reason):
      configuration.onRefusedSettle?(RefusedSettle(use: UnsettledUse(record), reason: reason))
    case .letGo(let settle): release(settle)
    case .idle: finish()
    }
  }

  /// Asked once, with nobody waiting: what is held expires anyway.
  private func release(_ settle: SettleRecord) {
    guard let token = inbox.reserve(1) else { return }
    var random = SystemRandomNumberGenerator()
    let record = ReleaseRecord(
      id: OperationID(time: now.wall, using: &random), subject: settle.subject,
      reservation: settle.reservation, traceParent: settle.traceParent)
    waiters[token] = .nobody
    machine.submit(
      ClientMachine.Call(
        token: token, .release(record), group: token,
        deadline: now.monotonic + machine.settings.owedTimeout), now)
  }

  private func resume(_ token: ClientMachine.Token, _ result: Result<Decision, TollgateError>) {
    switch waiters.removeValue(forKey: token) {
    case .single(let continuation): continuation.resume(returning: result)
    case .batch(let group, let index):
      guard var batch = batches[group] else { return }
      batch.results[index] = result
      batch.left -= 1
      batches[group] = batch.left == 0 ? nil : batch
      if batch.left == 0 { batch.continuation.resume(returning: batch.results) }
    case .nobody: break
    case nil: preconditionFailure("a call completes once")
    }
  }

  private func armTimer() {
    guard finalWork == nil, let wake = machine.nextWake?.nanoseconds, wake < timerAt else { return }
    timer?.cancel()
    timerAt = wake
    let deadline = NIODeadline.uptimeNanoseconds(UInt64(max(0, wake)))
    timer = eventLoop.assumeIsolated().scheduleTask(deadline: deadline) { [weak self] in
      guard let self else { return }
      timerAt = .max
      timer = nil
      machine.wake(now)
      turn()
    }
  }

  // MARK: connecting

  private func connect(_ id: ClientMachine.ConnectionID, _ endpoint: Endpoint) {
    live.insert(id)
    let hello = Hello(
      role: .check, client: configuration.clientName, token: configuration.credential,
      features: .reservations)
    let keepAlive = configuration.keepAlive.nanoseconds(in: 10_000_000...600_000_000_000)
    let driver = NIOLoopBound(self, eventLoop: eventLoop)
    let bootstrap = ClientBootstrap(group: eventLoop)
      .connectTimeout(.nanoseconds(machine.settings.connectTimeout))
      .channelOption(.tcpOption(.tcp_nodelay), value: 1)
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(
            ClientChannelHandler(
              id: id, driver: driver.value, hello: hello, keepAlive: keepAlive))
        }
      }
    let channel =
      switch endpoint.address {
      case .unix(let path): bootstrap.connect(unixDomainSocketPath: path)
      case .tcp(let host, let port): bootstrap.connect(host: host, port: port)
      }
    channel.whenComplete { result in
      let driver = driver.value
      switch result {
      case .success(let channel): if !driver.live.contains(id) { channel.close(promise: nil) }
      case .failure(let error):
        driver.closed(id, orphans: [], trouble: "cannot connect to \(endpoint): \(error)")
        driver.turn()
      }
    }
  }
}

extension ClientMachine.Settings {
  init(_ configuration: ClientConfiguration) {
    let positive: ClosedRange<Int64> = 1...600_000_000_000
    endpoints = configuration.endpoints.count
    inFlightMax = max(1, configuration.inFlightMax)
    recordsPerFrameMax = min(max(1, configuration.recordsPerFrameMax), 256)
    unpostedMax = max(1, configuration.unpostedMax)
    uncancelledMax = max(1, configuration.uncancelledMax)
    unsettledMax = max(1, configuration.unsettledMax)
    dedupeWindow = configuration.dedupeWindow.nanoseconds(in: 0...Int64.max) / 1_000_000
    appliesFailurePolicies = configuration.appliesFailurePolicies
    connectTimeout = configuration.connectTimeout.nanoseconds(in: 1_000_000...60_000_000_000)
    reconnect = Pause(
      first: configuration.reconnectDelay.lowerBound.nanoseconds(in: positive),
      longest: configuration.reconnectDelay.upperBound.nanoseconds(in: positive))
    retry = Pause(
      first: configuration.retryDelay.lowerBound.nanoseconds(in: positive),
      longest: configuration.retryDelay.upperBound.nanoseconds(in: positive))
    seed = UInt64.random(in: .min ... .max)
  }
}
