// How far delivery is behind, per owned bucket; the exporter sums it up.

import NIOConcurrencyHelpers
import TollgateCore

final class LagBoard: Sendable {
  private struct Lag {
    var entries: Int64 = 0
    var oldest: WallTime?
  }

  private let lags: NIOLockedValueBox<[Int: Lag]> = NIOLockedValueBox([:])

  init() {}

  func set(bucket: Int, entries: Int64, oldest: WallTime?) {
    lags.withLockedValue { $0[bucket] = Lag(entries: entries, oldest: oldest) }
  }

  /// Entries not yet acknowledged, and the age of the oldest in milliseconds.
  func total(now: WallTime) -> (entries: Int64, oldestMilliseconds: Int64) {
    lags.withLockedValue { lags in
      var entries: Int64 = 0
      var oldest: Int64 = 0
      for lag in lags.values {
        entries += lag.entries
        if let time = lag.oldest { oldest = max(oldest, now - time) }
      }
      return (entries, oldest)
    }
  }
}
