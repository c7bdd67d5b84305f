// The public client. Async at this edge only: a call becomes a command in the inbox, the event loop
// does the rest, a continuation brings the answer. See ClientMachine for the rules.

internal import NIOCore
internal import NIOPosix
internal import TollgateWire

/// A client of Tollgate sidecars: asks whether a subject may use an amount of a feature now, and
/// counts what it used.
///
/// One connection serves any number of concurrent calls; all methods may be called from any task
/// or thread. A call ends by its deadline, in exactly one of four ways: a `Decision` (allowed or
/// denied), or one of the three failures of `TollgateError`.
///
/// Retries happen inside the call, until its deadline, and only where they are safe: what was not
/// sent; what a sidecar refused without applying it (OVERLOADED, DRAINING, NOT_READY, UNAVAILABLE),
/// after a jittered pause; and, under the same id, an operation whose outcome is not known.
///
/// When no sidecar answers, the failure policies learnt in the last welcome decide: see
/// `ClientConfiguration.appliesFailurePolicies`. Such a decision has source `.clientFallback`. What
/// was let through is posted when a sidecar is back; what was denied though it may have been
/// applied is taken back. Both are kept in memory only: call `shutdown(grace:)` before the process
/// ends, and hand over what it returns. A process that is killed while no sidecar answers loses
/// what it owes: usage of at most the allowance of each account and feature that was asked for, in
/// at most `unpostedMax` operations, and at most `uncancelledMax` operations may stay counted
/// though they were denied.
public final class TollgateClient: Sendable {
  let configuration: ClientConfiguration
  private let inbox: Inbox
  private let eventLoop: any EventLoop
  private let driver: NIOLoopBoundBox<ClientDriver>

  /// Makes a client that does nothing yet. The configuration names at least one endpoint.
  public init(configuration: ClientConfiguration) {
    precondition(!configuration.endpoints.isEmpty, "a client needs at least one endpoint")
    self.configuration = configuration
    let inbox = Inbox(outstandingMax: configuration.outstandingMax)
    let eventLoop = MultiThreadedEventLoopGroup.singleton.next()
    self.inbox = inbox
    self.eventLoop = eventLoop
    driver = NIOLoopBoundBox.makeBoxSendingValue(
      ClientDriver(eventLoop: eventLoop, configuration: configuration, inbox: inbox),
      eventLoop: eventLoop)
  }

  /// A client that was not shut down closes its connection; what it owed is lost.
  deinit { put(.abandon) }

  // MARK: life

  /// Begins to connect, in the background, and never gives up. Once is enough; after `shutdown` it
  /// has no effect.
  public func start() { put(.start) }

  /// Returns once a sidecar has welcomed the client. Throws `.notSent`: with the last trouble when
  /// `limit` (1 ms … 10 min) passes first, or when the task is cancelled. The client goes on
  /// connecting all the same.
  public func waitUntilReady(within limit: Duration) async throws(TollgateError) {
    let id = inbox.number()
    let nanoseconds = limit.nanoseconds(in: 1_000_000...600_000_000_000)
    let result = await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        put(.awaitReady(id, nanoseconds: nanoseconds, continuation))
        if Task.isCancelled { put(.cancelReady(id)) }
      }
    } onCancel: {
      put(.cancelReady(id))
    }
    try result.get()
  }

  /// Takes no more calls, finishes what is outstanding, pays back what is owed, and closes. After
  /// `grace` (0 … 10 min) what is left ends as `.notSent` or `.outcomeUnknown`, and what is still
  /// owed is returned: keep it and hand it to the next client with `adopt(_:)`. May be called more
  /// than once.
  @discardableResult
  public func shutdown(grace: Duration = .seconds(5)) async -> UnfinishedWork {
    let grace = grace.nanoseconds(in: 0...600_000_000_000)
    return await withCheckedContinuation { put(.stop(grace: grace, $0)) }
  }

  /// Takes over what an earlier client still owed. Requests without an id are ignored. It may
  /// exceed `unpostedMax`, `uncancelledMax` and `unsettledMax`: what is owed is never dropped.
  public func adopt(_ work: UnfinishedWork) {
    let settles = work.unsettled.map(\.record).filter { record in
      do throws(WireError) { try record.validate() } catch { return false }
      return true
    }
    put(
      .adopt(
        posts: Self.records(work.unposted), cancels: Self.records(work.uncancelled),
        settles: settles))
  }

  private static func records(_ requests: [Request]) -> [Record] {
    requests.compactMap { request in
      guard let id = request.id else { return nil }
      let record = request.record(id: id)
      do throws(WireError) { try record.validate() } catch { return nil }
      return record
    }
  }

  // MARK: calls

  /// Asks whether `items` would be allowed to `subject` now, as one. Changes nothing.
  ///
  /// - Parameters:
  ///   - items: 1 … 16, each feature once, amounts 0 … 2^53 − 1.
  ///   - deadline: how long the call may take, 1 ms … 10 min; nil: the configuration's default.
  public func check(
    _ subject: Subject, _ items: [Item], deadline: Duration? = nil
  ) async throws(TollgateError) -> Decision {
    try await ask(Request(.check, subject: subject, items: items), deadline)
  }

  /// Asks whether `items` are allowed to `subject` now, as one, and if so counts them at once.
  ///
  /// - Parameters:
  ///   - items: 1 … 16, each feature once, amounts 0 … 2^53 − 1.
  ///   - id: the identity of the operation; nil: a fresh one. After `.outcomeUnknown`, pass the id
  ///     of the error, with the same subject and items.
  ///   - attributes: carried into the ledger; at most 16.
  ///   - traceParent: W3C trace parent, or empty.
  ///   - deadline: how long the call may take, 1 ms … 10 min; nil: the configuration's default.
  public func consume(
    _ subject: Subject, _ items: [Item], id: OperationID? = nil,
    attributes: [String: String] = [:], traceParent: String = "", deadline: Duration? = nil
  ) async throws(TollgateError) -> Decision {
    let request = Request(
      .consume, subject: subject, items: items, id: id, attributes: attributes,
      traceParent: traceParent)
    return try await ask(request, deadline)
  }

  /// Asks many independent questions at once; they travel together. The answers are in the order of
  /// the requests. Cancelling the task ends each that is not answered yet.
  public func decide(
    _ requests: [Request], deadline: Duration? = nil
  ) async -> [Result<Decision, TollgateError>] {
    if requests.isEmpty { return [] }
    guard let first = inbox.reserve(requests.count) else {
      return Array(repeating: .failure(.notSent(.queueFull)), count: requests.count)
    }
    let due = due(deadline)
    var calls: [ClientMachine.Call] = []
    calls.reserveCapacity(requests.count)
    for (index, request) in requests.enumerated() {
      calls.append(
        ClientMachine.Call(
          token: first + UInt64(index), ask(request), group: first, deadline: due))
    }
    let tokens = calls.map(\.token)
    return await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        put(.submitBatch(calls, group: first, continuation))
        if Task.isCancelled { put(.cancel(tokens)) }
      }
    } onCancel: {
      put(.cancel(tokens))
    }
  }

  /// A fresh id, minted from the sidecar's clock where ours is seconds away from it. To be able to
  /// retry an operation after a crash, keep its id before making the call.
  public func newOperationID() -> OperationID {
    var random = SystemRandomNumberGenerator()
    return OperationID(time: Clock.wall + inbox.clockOffset, using: &random)
  }

  /// What the client has done so far. A consistent snapshot, taken without waiting.
  public var statistics: ClientStatistics { inbox.statistics }

  // MARK: inside

  private func ask(
    _ request: Request, _ deadline: Duration?
  ) async throws(TollgateError) -> Decision {
    try await ask(ask(request), deadline)
  }

  func ask(_ ask: Ask, _ deadline: Duration?) async throws(TollgateError) -> Decision {
    guard let token = inbox.reserve(1) else { throw .notSent(.queueFull) }
    let call = ClientMachine.Call(token: token, ask, group: token, deadline: due(deadline))
    let result = await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        put(.submit(call, continuation))
        if Task.isCancelled { put(.cancel([token])) }
      }
    } onCancel: {
      put(.cancel([token]))
    }
    return try result.get()
  }

  private func due(_ deadline: Duration?) -> MonotonicTime {
    let span = deadline ?? configuration.defaultDeadline
    return Clock.monotonic + span.nanoseconds(in: 1_000_000...600_000_000_000)
  }

  private func ask(_ request: Request) -> Ask {
    let record = request.record(id: request.id ?? newOperationID())
    return switch request.kind {
    case .check: .check(record)
    case .consume: .consume(record)
    }
  }

  private func put(_ command: Inbox.Command) {
    guard inbox.put(command) else { return }
    let driver = driver
    eventLoop.execute { driver.value.drain() }
  }
}
