// What other sidecars and the administration say on Redis's channels, brought to the lease table:
// that an account's configuration or counters were changed by hand, and that somebody needs units
// which this sidecar may be holding idle. As long as it stands and misses nothing, leases may be
// spent although nobody has confirmed their account's configuration for a while.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis

final class LeaseSubscription: Sendable {
  private let subscription: RedisSubscription

  /// How often it is made sure that nothing was missed; well within `freshNanoseconds`, also where
  /// nothing is leased: what is leased next was confirmed just then, and the next beat finds it.
  static let beat = TimeAmount.milliseconds(250)
  static let quietBeat = TimeAmount.milliseconds(750)

  init(
    _ redis: RedisLinkConfiguration, keys: KeySpace, hub: LeaseHub, loops: [LoopUnit],
    on eventLoop: any EventLoop, logger: Logger, onGlobalChange: @escaping @Sendable () -> Void
  ) {
    let changes = keys.changesChannel
    let recalls = keys.recallChannel(LesseeID(hub.lessee))
    subscription = RedisSubscription(
      redis, channels: [changes, recalls],
      beat: { hub.table.load <= .idle ? Self.quietBeat : Self.beat }, on: eventLoop,
      seed: UInt64.random(in: .min ... .max), logger: logger
    ) { event in
      switch event {
      case .live: hub.table.subscribed(since: LeaseHub.now)
      case .lost: hub.table.unsubscribed()
      case .fresh(let instant):
        // From the loop's clock to the one that counts while the machine sleeps.
        let age = (NIODeadline.now() - instant).nanoseconds
        hub.table.heard(at: MonotonicTime(nanoseconds: LeaseHub.bootNanoseconds() - age))
      case .message(let channel, let payload):
        if channel == changes, payload == [UInt8(ascii: "*")] {
          hub.table.configChanged(now: LeaseHub.now)
          return onGlobalChange()
        }
        let bucket = hub.buckets.bucket(ofAccount: String(decoding: payload, as: UTF8.self))
        if channel == changes {
          hub.table.configChanged(bucket: bucket, account: payload, now: LeaseHub.now)
        } else {
          hub.table.recall(bucket: bucket, account: payload, now: LeaseHub.now)
        }
        loops[bucket % loops.count].onLoop { $0.leases?.exchange(bucket) }
      }
    }
  }

  func start() { subscription.start() }

  func stop() async { await subscription.stop() }
}
