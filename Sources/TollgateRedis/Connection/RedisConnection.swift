// One connection to Redis, bound to one event loop: opens the transport, owns the handler.
//
// Why this shape: opening answers at once and everything later is an event, so the owner has one
// place where it learns of success and failure.

package import NIOCore

package final class RedisConnection {
  package let eventLoop: any EventLoop
  private let handler: RedisChannelHandler

  private init(eventLoop: any EventLoop, handler: RedisChannelHandler) {
    self.eventLoop = eventLoop
    self.handler = handler
  }

  /// Starts to open a connection; call on `eventLoop`. `onEvent` is called on it too, and not
  /// before this returns.
  package static func open(
    _ configuration: RedisLinkConfiguration, on eventLoop: any EventLoop,
    onEvent: @escaping (RedisConnectionEvent) -> Void
  ) -> RedisConnection {
    eventLoop.preconditionInEventLoop()
    let handler = RedisChannelHandler(
      eventLoop: eventLoop, limits: configuration.limits, credentials: configuration.credentials,
      onEvent: onEvent)
    // A Unix socket can be refused at once: started in a later turn, so that no event comes before
    // the owner holds the connection.
    eventLoop.assumeIsolated().execute {
      guard !handler.isFinished else { return }
      configuration.open(on: eventLoop, for: handler) { handler.closeNow($0) }
    }
    return RedisConnection(eventLoop: eventLoop, handler: handler)
  }

  /// Who answers; nil until the handshake is done.
  package var identity: ServerIdentity? { handler.identity }
  package var isReady: Bool { handler.isReady }
  package var pendingCount: Int { handler.pendingCount }
  /// When the oldest unanswered command was written, in nanoseconds of `NIODeadline`'s clock.
  package var oldestSentAt: Int64? { handler.oldestSentAt }

  /// Sends one command; call on the event loop.
  ///
  /// `write` must append exactly one command (`RESPWriter`) and must not call back into this
  /// connection. `completion` is called exactly once: at once if the command is refused, else from
  /// a later event. After `.outcomeUnknown(.timedOut)`, `late` is called exactly once.
  @inline(__always)
  package func send(
    deadline: NIODeadline = .distantFuture, late: RedisCompletion? = nil,
    _ write: (inout ByteBuffer) -> Void, completion: @escaping RedisCompletion
  ) {
    eventLoop.assertInEventLoop()
    handler.send(deadline: deadline, late: late, completion: completion, write: write)
  }

  /// Takes no more commands and closes once the replies owed have come.
  package func closeGracefully() { handler.closeGracefully() }

  /// Closes now; pending commands fail.
  package func closeNow() { handler.closeNow(.requested) }
}
