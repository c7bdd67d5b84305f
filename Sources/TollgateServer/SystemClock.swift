// The only place where a sidecar reads the wall clock. It decides no window: Redis `TIME` does.

import Glibc
import TollgateCore

enum SystemClock {
  static func wallTime() -> WallTime {
    var time = timespec()
    unsafe clock_gettime(CLOCK_REALTIME, &time)
    return WallTime(milliseconds: Int64(time.tv_sec) * 1000 + Int64(time.tv_nsec) / 1_000_000)
  }
}
