// One event loop and what lives on it. Everybody else reaches the enforcer through here.

import NIOCore
import TollgateCore
import TollgateRedis

struct LoopUnit: Sendable {
  let eventLoop: any EventLoop
  private let bound: NIOLoopBound<Enforcer>

  /// On the event loop.
  init(_ enforcer: Enforcer) {
    eventLoop = enforcer.eventLoop
    bound = NIOLoopBound(enforcer, eventLoop: enforcer.eventLoop)
  }

  func onLoop(_ body: @escaping @Sendable (Enforcer) -> Void) {
    let bound = bound
    eventLoop.execute { body(bound.value) }
  }

  func value<Value: Sendable>(
    _ body: @escaping @Sendable (Enforcer) -> Value
  ) async -> Value {
    let bound = bound
    return await withCheckedContinuation { continuation in
      eventLoop.execute { continuation.resume(returning: body(bound.value)) }
    }
  }

  /// Stops calls to a bucket, waits until none is in flight, then reads.
  func quiesced<Value: Sendable>(
    _ bucket: Int, _ body: @escaping @Sendable (Enforcer) -> Value
  ) async -> Value {
    let bound = bound
    return await withCheckedContinuation { continuation in
      eventLoop.execute {
        bound.value.quiesce(bucket) { continuation.resume(returning: body(bound.value)) }
      }
    }
  }

  /// What the loop's Redis link tells, on the loop. Scripts are loaded first of all on every new
  /// connection; whatever is sent after is pipelined behind them.
  func linkEvent(_ event: RedisLinkEvent, metrics: Metrics) {
    switch event {
    case .connected:
      metrics.redisUp.add(1)
      bound.value.loadAllScripts()
      bound.value.linkConnected()
    case .identityChanged: break
    case .disconnected:
      bound.value.linkLost()
    }
  }
}
