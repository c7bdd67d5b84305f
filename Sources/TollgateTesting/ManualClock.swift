// A clock that moves only when a test says so.
//
// Machines take `now` as a value and handlers take a clock, so a test that owns the clock owns
// every deadline and window. Wall time is milliseconds (windows), monotonic time is nanoseconds
// (deadlines): two numbers, because they may move apart, and `stepWall` lets a test do just that.

internal import NIOConcurrencyHelpers

/// A hand-driven pair of clocks. Safe to share between threads.
package final class ManualClock: Sendable {
  private struct Reading {
    var wallMilliseconds: Int64
    var monotonicNanoseconds: Int64
  }

  private let reading: NIOLockedValueBox<Reading>

  /// - Parameters:
  ///   - wallMilliseconds: since the Unix epoch; the default is 2026-01-15T12:00:00Z.
  ///   - monotonicNanoseconds: since an arbitrary origin; not 0, so that "unset" shows.
  package init(
    wallMilliseconds: Int64 = 1_768_478_400_000, monotonicNanoseconds: Int64 = 1_000_000_000
  ) {
    reading = NIOLockedValueBox(
      Reading(
        wallMilliseconds: wallMilliseconds, monotonicNanoseconds: monotonicNanoseconds))
  }

  package var wallMilliseconds: Int64 { reading.withLockedValue { $0.wallMilliseconds } }
  package var monotonicNanoseconds: Int64 { reading.withLockedValue { $0.monotonicNanoseconds } }

  /// Moves both clocks forward by the same time.
  package func advance(milliseconds: Int64) {
    precondition(milliseconds >= 0, "monotonic time does not run backwards")
    reading.withLockedValue {
      $0.wallMilliseconds += milliseconds
      $0.monotonicNanoseconds += milliseconds * 1_000_000
    }
  }

  /// Moves the monotonic clock by less than a wall millisecond can say; the wall clock stays.
  package func advance(nanoseconds: Int64) {
    precondition(nanoseconds >= 0, "monotonic time does not run backwards")
    reading.withLockedValue { $0.monotonicNanoseconds += nanoseconds }
  }

  /// Steps the wall clock alone, forwards or backwards, as an NTP correction does.
  package func stepWall(milliseconds: Int64) {
    reading.withLockedValue { $0.wallMilliseconds += milliseconds }
  }
}
