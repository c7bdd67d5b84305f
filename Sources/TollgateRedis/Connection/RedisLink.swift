// An event loop's link to one Redis: a connection that comes back.
//
// Why this shape: the hot path is a plain call on the loop, with callbacks; everything the loop
// owns sits in `Core`, which only the loop can reach, so the link itself can be held anywhere.
// Async exists for cold paths only: it hops to the loop and back.
//
// Promises: at most one connection at a time; after a loss it reconnects with jittered backoff for
// as long as it is not stopped, whatever the error was; it identifies the server anew each time.

package import Logging
package import NIOCore

/// Told on the link's event loop.
package enum RedisLinkEvent: Hashable, Sendable {
  case connected(ServerIdentity)
  /// Same connection, but the replication id or role changed (promotion).
  case identityChanged(ServerIdentity)
  /// The connection, or an attempt to make one, ended.
  case disconnected(RedisCloseReason)
}

package final class RedisLink: Sendable {
  package let eventLoop: any EventLoop
  package let configuration: RedisLinkConfiguration
  private let core: NIOLoopBoundBox<Core>

  /// Makes an idle link; from any thread. `seed` decides the reconnect jitter.
  package init(
    _ configuration: RedisLinkConfiguration, on eventLoop: any EventLoop, seed: UInt64,
    logger: Logger, onEvent: @escaping @Sendable (RedisLinkEvent) -> Void = { _ in }
  ) {
    self.eventLoop = eventLoop
    self.configuration = configuration
    core = NIOLoopBoundBox.makeBoxSendingValue(
      Core(configuration, on: eventLoop, seed: seed, logger: logger, onEvent: onEvent),
      eventLoop: eventLoop)
  }

  // MARK: On the event loop

  /// The ready connection, if there is one. On the event loop only.
  package var connection: RedisConnection? { core.value.ready }

  /// Sends one command now or refuses it; on the event loop only. See `RedisConnection.send`.
  package func send(
    deadline: NIODeadline = .distantFuture, late: RedisCompletion? = nil,
    _ write: (inout ByteBuffer) -> Void, completion: @escaping RedisCompletion
  ) {
    guard let connection = core.value.ready else {
      completion(.failure(.notSent(.disconnected)))
      return
    }
    connection.send(deadline: deadline, late: late, write, completion: completion)
  }

  // MARK: From anywhere

  package func start() {
    let core = core
    eventLoop.execute { core.value.start() }
  }

  /// The server behind the ready connection.
  package func currentIdentity() async -> ServerIdentity? {
    await onLoop { core, answer in answer(core.ready?.identity) }
  }

  /// Sends a command and waits for its reply; for cold paths. A server error is returned as
  /// `.error`, not thrown.
  package func command(
    _ arguments: [RESPArgument], timeout: TimeAmount = .seconds(5)
  ) async throws(RedisFailure) -> RESPReply {
    let result: Result<RESPReply, RedisFailure> = await onLoop { core, answer in
      guard let connection = core.ready else {
        answer(.failure(.notSent(.disconnected)))
        return
      }
      connection.send(deadline: .now() + timeout) { buffer in
        RESPWriter.write(arguments, to: &buffer)
      } completion: { result in
        answer(result)
      }
    }
    return try result.get()
  }

  /// Stops for good: no new commands, replies owed are awaited for `drainMax`, then closed.
  package func stop() async {
    await onLoop { (core, answer: @escaping @Sendable (()) -> Void) in
      core.stop { answer(()) }
    }
  }

  /// Stops for good and drops the connection at once: every reply still owed is
  /// `.outcomeUnknown`, every command from now on `.notSent`. For an end that must not wait.
  package func abort() {
    let core = core
    eventLoop.execute { core.value.abort() }
  }

  private func onLoop<Value: Sendable>(
    _ body: @escaping @Sendable (Core, @escaping @Sendable (Value) -> Void) -> Void
  ) async -> Value {
    await withCheckedContinuation { continuation in
      let core = core
      eventLoop.execute {
        body(core.value) { continuation.resume(returning: $0) }
      }
    }
  }
}

extension RedisLink {
  /// What the event loop owns.
  private final class Core {
    private let configuration: RedisLinkConfiguration
    private let eventLoop: any EventLoop
    private let logger: Logger
    private let onEvent: @Sendable (RedisLinkEvent) -> Void
    private var machine: RedisLinkMachine
    private var current: RedisConnection?
    private var waitTask: Scheduled<Void>?
    private var stopped: [() -> Void] = []
    /// `current` while it is ready.
    private(set) var ready: RedisConnection?

    init(
      _ configuration: RedisLinkConfiguration, on eventLoop: any EventLoop, seed: UInt64,
      logger: Logger, onEvent: @escaping @Sendable (RedisLinkEvent) -> Void
    ) {
      self.configuration = configuration
      self.eventLoop = eventLoop
      self.logger = logger
      self.onEvent = onEvent
      machine = RedisLinkMachine(backoff: configuration.backoff, seed: seed)
    }

    func start() { perform(machine.started()) }

    func stop(_ done: @escaping () -> Void) {
      stopped.append(done)
      perform(machine.stopRequested())
      if current == nil { reportStopped() }
    }

    func abort() {
      stop {}
      current?.closeNow()
    }

    private func perform(_ action: RedisLinkMachine.Action) {
      switch action {
      case .connect:
        current = RedisConnection.open(configuration, on: eventLoop) { self.received($0) }
      case .wait(let nanoseconds):
        waitTask = eventLoop.assumeIsolated().scheduleTask(in: .nanoseconds(nanoseconds)) {
          self.perform(self.machine.waited())
        }
      case .drain:
        guard let connection = current else { return }
        ready = nil
        connection.closeGracefully()
        eventLoop.assumeIsolated().scheduleTask(in: .nanoseconds(configuration.drainMax)) {
          connection.closeNow()
        }
      case .cancelWait:
        waitTask?.cancel()
      case .none:
        break
      }
    }

    private func received(_ event: RedisConnectionEvent) {
      switch event {
      case .ready(let identity):
        machine.becameReady()
        ready = current
        logger.notice(
          "redis connected",
          metadata: [
            "endpoint": "\(configuration.endpoint)", "run_id": "\(identity.runID)",
            "version": "\(identity.version)", "role": "\(identity.role)",
          ])
        onEvent(.connected(identity))
      case .identityChanged(let identity):
        logger.notice(
          "redis identity changed",
          metadata: [
            "replication_id": "\(identity.replicationID)", "role": "\(identity.role)",
          ])
        onEvent(.identityChanged(identity))
      case .closed(let reason):
        let wasReady = ready != nil
        current = nil
        ready = nil
        // One notice per outage; the attempts in between are details.
        logger.log(
          level: wasReady ? .notice : .debug, "redis disconnected",
          metadata: ["endpoint": "\(configuration.endpoint)", "reason": "\(reason)"])
        onEvent(.disconnected(reason))
        perform(machine.lost())
        reportStopped()
      }
    }

    private func reportStopped() {
      guard machine.state == .stopped else { return }
      let callbacks = stopped
      stopped = []
      for callback in callbacks { callback() }
    }
  }
}
