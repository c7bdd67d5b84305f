// The ledger as a service: opens the books, listens, and, when asked to stop, refuses what is new,
// writes what was accepted, answers it, and closes the file in order.

internal import Foundation
package import Logging
internal import NIOConcurrencyHelpers
internal import NIOCore
internal import NIOPosix
internal import TollgateCore

package struct LedgerConfiguration: Sendable {
  package var database: String
  /// A TCP address to listen on; port 0: any free one. nil: none.
  package var listen: (host: String, port: Int)?
  /// A Unix socket to listen on; nil: none.
  package var unix: String?
  /// What a hello must carry; empty: nothing is asked for.
  package var token: String
  /// How long stopping waits for connections to empty.
  package var graceMilliseconds: Int
  /// How often sums of past short periods are dropped; 0: never.
  package var pruneMilliseconds: Int64
  /// Months are closed so many days after their end; nil: by hand.
  package var closeAfterDays: Int?
  /// When a connection that says nothing is given up.
  package var silence = LedgerSilence()

  package static let pruneDefaultMilliseconds: Int64 = 600_000

  package init(
    database: String, listen: (host: String, port: Int)? = nil, unix: String? = nil,
    token: String = "", graceMilliseconds: Int = 10_000,
    pruneMilliseconds: Int64 = pruneDefaultMilliseconds, closeAfterDays: Int? = nil
  ) {
    self.database = database
    self.listen = listen
    self.unix = unix
    self.token = token
    self.graceMilliseconds = graceMilliseconds
    self.pruneMilliseconds = pruneMilliseconds
    self.closeAfterDays = closeAfterDays
  }
}

/// Where a running ledger can be reached.
package struct LedgerEndpoints: Hashable, Sendable {
  package var port: Int?
  package var unix: String?
}

/// The clocks; only this shell reads them.
struct LedgerClock: Sendable {
  var wall: @Sendable () -> WallTime
  var monotonic: @Sendable () -> MonotonicTime

  static let system = LedgerClock(
    wall: { WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000)) },
    monotonic: { MonotonicTime(nanoseconds: Int64(NIODeadline.now().uptimeNanoseconds)) })
}

/// Tells a running ledger to stop; may be told more than once, from anywhere.
package final class LedgerStop: Sendable {
  private enum State {
    case running([CheckedContinuation<Void, Never>])
    case stopped
  }
  private let state = NIOLockedValueBox(State.running([]))

  package init() {}

  package func stop() {
    let waiting = state.withLockedValue { state -> [CheckedContinuation<Void, Never>] in
      guard case .running(let waiting) = state else { return [] }
      state = .stopped
      return waiting
    }
    for continuation in waiting { continuation.resume() }
  }

  func wait() async {
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let isStopped = state.withLockedValue { state in
          guard case .running(let waiting) = state else { return true }
          state = .running(waiting + [continuation])
          return false
        }
        if isStopped { continuation.resume() }
      }
    } onCancel: {
      stop()
    }
  }
}

/// Runs a ledger until `stop` is told, or the task is cancelled.
package func runLedger(
  configuration: LedgerConfiguration, logger: Logger, stop: LedgerStop,
  ready: @escaping @Sendable (LedgerEndpoints) -> Void
) async throws {
  let lock = try LedgerLock(database: configuration.database)
  let store = try LedgerStore(path: configuration.database, bodies: .wire)
  let clock = LedgerClock.system
  let writer = LedgerWriter(store: store, logger: logger, clock: clock.wall)
  let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
  do {
    try await serve(configuration, store, writer, group, clock, logger, stop, ready)
  } catch {
    try? await group.shutdownGracefully()
    try? store.close()
    throw error
  }
  try await group.shutdownGracefully()
  try store.close()
  _ = consume lock
}

private func serve(
  _ configuration: LedgerConfiguration, _ store: LedgerStore, _ writer: LedgerWriter,
  _ group: MultiThreadedEventLoopGroup, _ clock: LedgerClock, _ logger: Logger, _ stop: LedgerStop,
  _ ready: @escaping @Sendable (LedgerEndpoints) -> Void
) async throws {
  let eventLoop = group.next()
  let hub = try await eventLoop.submit {
    NIOLoopBound(
      try LedgerHub(
        store: store, writer: writer, token: configuration.token, eventLoop: eventLoop,
        clock: clock, silence: configuration.silence, logger: logger),
      eventLoop: eventLoop)
  }.get()
  let bootstrap = ServerBootstrap(group: eventLoop)
    .serverChannelOption(.backlog, value: 256)
    .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
    .childChannelOption(.maxMessagesPerRead, value: 4)
    .childChannelOption(.writeBufferWaterMark, value: .init(low: 256 << 10, high: 4 << 20))
    .childChannelInitializer { channel in
      channel.eventLoop.makeCompletedFuture {
        try channel.pipeline.syncOperations.addHandler(LedgerHandler(hub: hub.value))
      }
    }
  var listeners: [any Channel] = []
  var endpoints = LedgerEndpoints()
  var socket: SocketFile?
  do {
    if let (host, port) = configuration.listen {
      let channel = try await bootstrap.childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
        .childChannelOption(.socketOption(.so_keepalive), value: 1)
        .bind(host: host, port: port).get()
      listeners.append(channel)
      endpoints.port = channel.localAddress?.port
    }
    if let path = configuration.unix {
      let bound = try SocketFile.bind(path)
      socket = bound.file
      listeners.append(try await bootstrap.withBoundSocket(bound.socket).get())
      endpoints.unix = path
    }
  } catch {
    for listener in listeners { try? await listener.close() }
    throw error
  }
  logger.notice(
    "ledger ready",
    metadata: [
      "port": "\(endpoints.port ?? 0)", "unix": "\(endpoints.unix ?? "")",
      "database": "\(configuration.database)",
    ])
  ready(endpoints)
  let upkeep = Task {
    await LedgerUpkeep(
      store: store, intervalMilliseconds: configuration.pruneMilliseconds,
      closeAfterDays: configuration.closeAfterDays, logger: logger, clock: clock.wall
    ).run()
  }
  await stop.wait()
  upkeep.cancel()
  logger.notice("ledger stopping")
  for listener in listeners { try? await listener.close() }
  socket?.remove()
  try await eventLoop.submit {
    hub.value.drain(graceMilliseconds: UInt32(clamping: configuration.graceMilliseconds))
  }.get()
  await writer.drain()
  await emptied(hub, eventLoop, graceMilliseconds: configuration.graceMilliseconds)
  await upkeep.value
}

/// Waits until the last connection has got its answers, at most for the grace time.
private func emptied(
  _ hub: NIOLoopBound<LedgerHub>, _ eventLoop: any EventLoop, graceMilliseconds: Int
) async {
  let deadline = NIODeadline.now() + .milliseconds(Int64(graceMilliseconds))
  while NIODeadline.now() < deadline {
    let count = try? await eventLoop.submit { hub.value.connectionCount }.get()
    if count ?? 0 == 0 { return }
    // Connections end each by itself; looked at until none is left.
    try? await Task.sleep(for: .milliseconds(5))
  }
}
