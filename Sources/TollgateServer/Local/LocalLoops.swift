// The local loops of a sidecar: their listening sockets, their threads, and their end.
//
// The first loop listens and hands connections on in turn; each connection stays with its loop for
// life, and with the NIO loop that its conversation was given to, in turn as well.

import Foundation
import Glibc
import NIOCore
import TollgateCore

final class LocalLoops: Sendable {
  private let inboxes: [LoopInbox]
  private let sessions: [SessionUnit]

  /// - Parameter fastPath: makes the fast path of the loop of that number, on its thread.
  static func start(
    _ configuration: ServerConfiguration, sessions: [SessionUnit], metrics: Metrics,
    fastPath: @escaping @Sendable (Int) -> (any FastPath)?
  ) async throws -> LocalLoops {
    var settings = LocalLoop.Settings(
      // Those over the bound have a place too for as long as it takes to tell them.
      connectionsMax: configuration.limits.connectionsMax * sessions.count + refusedMax)
    let descriptors = max(1, LocalSystem.descriptorsMax - descriptorsKept)
    settings.connectionsMax = min(settings.connectionsMax, descriptors)
    return try await start(
      settings, count: configuration.localLoops, listeners: listen(configuration),
      sessions: sessions, metrics: metrics, fastPath: fastPath)
  }

  /// Descriptors that clients do not get. The runtime opens some of its own when it first needs
  /// them, and traps where there is none.
  static let descriptorsKept = 64

  /// Connections over the bound that are being told so.
  static let refusedMax = 256

  static func start(
    _ settings: LocalLoop.Settings, count: Int, listeners: [LocalListener],
    sessions: [SessionUnit], metrics: Metrics,
    fastPath: @escaping @Sendable (Int) -> (any FastPath)?
  ) async throws -> LocalLoops {
    var inboxes: [LoopInbox] = []
    for _ in 0..<count { inboxes.append(try LoopInbox()) }
    let homes = sessions.map { SessionInbox($0) }
    let loops = LocalLoops(inboxes, sessions)
    for (index, inbox) in inboxes.enumerated() {
      let peers = index == 0 ? inboxes : []
      let own = index == 0 ? listeners : []
      try await begin(index) {
        LocalLoop(
          settings: settings, inbox: inbox, homes: homes, poller: try LoopPoller(),
          listeners: own, peers: peers, fast: fastPath(index), metrics: metrics)
      }
    }
    return loops
  }

  private init(_ inboxes: [LoopInbox], _ sessions: [SessionUnit]) {
    self.inboxes = inboxes
    self.sessions = sessions
  }

  /// Makes the loop on a thread of its own, and lets it run.
  private static func begin(
    _ index: Int, _ make: @escaping @Sendable () throws -> LocalLoop
  ) async throws {
    try await withCheckedThrowingContinuation { (started: CheckedContinuation<Void, any Error>) in
      let thread = Thread {
        let loop: LocalLoop
        do {
          loop = try make()
        } catch {
          return started.resume(throwing: error)
        }
        started.resume()
        loop.run()
      }
      thread.name = "local-\(index)"
      thread.start()
    }
  }

  /// Returns when no connection is accepted any more.
  func stopListening() async {
    guard let first = inboxes.first else { return }
    await withCheckedContinuation { done in
      first.put(.stopListening(done: { done.resume() }))
    }
  }

  /// Ends what connections are left, and the threads. The NIO loops must still run: they are told,
  /// and when this returns they know.
  func stop() async {
    for inbox in inboxes {
      await withCheckedContinuation { done in inbox.put(.stop(done: { done.resume() })) }
    }
    for session in sessions {
      await withCheckedContinuation { done in
        session.onLoop { context in context.breather.run { done.resume() } }
      }
    }
  }

  // MARK: - Listening

  static func listen(_ configuration: ServerConfiguration) throws -> [LocalListener] {
    var listeners: [LocalListener] = []
    do {
      if let path = configuration.listenUnix {
        try Listener.removeStaleSocket(path)
        let descriptor = LocalSystem.listen(unix: path)
        guard descriptor >= 0 else { throw Self.failure("listen.unix", path, -descriptor) }
        listeners.append(LocalListener(descriptor: descriptor, isTCP: false))
        try Listener.setMode(path, configuration.unixMode)
      }
      if case .tcp(let host, let port)? = configuration.listenTCP {
        let descriptor = LocalSystem.listen(host: host, port: port)
        guard descriptor >= 0 else {
          throw Self.failure("listen.tcp", "\(host):\(port)", -descriptor)
        }
        listeners.append(LocalListener(descriptor: descriptor, isTCP: true))
      }
    } catch {
      for listener in listeners { LocalSystem.close(listener.descriptor) }
      throw error
    }
    return listeners
  }

  private static func failure(_ key: String, _ address: String, _ error: Int32) -> ListenFailure {
    ListenFailure(
      description: "\(key): \(address) cannot be bound: "
        + (error == EADDRINUSE ? "it is in use" : "errno \(error)"))
  }
}
