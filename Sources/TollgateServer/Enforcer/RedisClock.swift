// What time it is in Redis, as far as this event loop can tell: the last reply's `now` plus the
// time since. Windows are judged by Redis itself; this estimate only picks the candidate period to
// send, and states a call's deadline in Redis's time. An estimate that is off costs a round trip,
// never a wrong decision.

import NIOCore
import TollgateCore

struct RedisClock {
  private var base: Int64?
  private var readAt = NIODeadline.uptimeNanoseconds(0)

  mutating func observed(_ now: WallTime, at instant: NIODeadline) {
    base = now.milliseconds
    readAt = instant
  }

  func now(at instant: NIODeadline, wall: () -> WallTime) -> WallTime {
    guard let base else { return wall() }
    return WallTime(milliseconds: base + (instant - readAt).nanoseconds / 1_000_000)
  }
}
