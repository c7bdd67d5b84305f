// What time it is in Redis, as far as this event loop can tell: the last reply's `now` plus the
// time since. Windows are judged by Redis itself; this estimate only picks the candidate period to
// send, and states a call's deadline in Redis's time. An estimate that is off costs a round trip,
// never a wrong decision.

import NIOCore
import TollgateCore

struct RedisClock {
  private var base: Int64?
  private var readAt = NIODeadline.uptimeNanoseconds(0)

  /// For so long the best estimate stands against later ones that say less.
  static let holdNanoseconds: Int64 = 1_000_000_000

  /// A reply tells what time it was when Redis wrote it; how long it lay unread nobody knows. So
  /// it is a lower bound, and of the bounds of one second the highest is the best. What is older
  /// gives way to any, because Redis may be another host by now, or its clock set back.
  mutating func observed(_ now: WallTime, at instant: NIODeadline) {
    if let base {
      let age = (instant - readAt).nanoseconds
      if age < Self.holdNanoseconds, now.milliseconds < base + age / 1_000_000 { return }
    }
    base = now.milliseconds
    readAt = instant
  }

  func now(at instant: NIODeadline, wall: () -> WallTime) -> WallTime {
    guard let base else { return wall() }
    return WallTime(milliseconds: base + (instant - readAt).nanoseconds / 1_000_000)
  }
}
