// The two clocks of the generator. Latencies come from the monotonic one; operation ids carry the
// wall clock, because their age is judged by the server.

internal import Glibc

package enum Clocks {
  /// Nanoseconds of CLOCK_MONOTONIC.
  package static func monotonic() -> Int64 { read(CLOCK_MONOTONIC) }

  /// Milliseconds since 1970.
  package static func wallMilliseconds() -> Int64 { read(CLOCK_REALTIME) / 1_000_000 }

  private static func read(_ clock: clockid_t) -> Int64 {
    var time = timespec()
    unsafe clock_gettime(clock, &time)
    return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
  }
}
