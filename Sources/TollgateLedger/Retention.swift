// How long the sum of a counter is kept after its period. A sum is dropped when no seed and no
// late delta can need it; deltas and books stay for good. proto/LEDGER.md, 5 has the rule as a
// table; the instant is written beside each sum when it is made, so that dropping needs no rule.

internal import TollgateCore

enum Retention {
  /// The instant from which the sum may go; nil: it stays.
  static func end(of window: Window, _ period: Period) -> Int64? {
    let end = period.end.milliseconds
    switch window.tally {
    // A grant is worth its amount less this sum, a deficit waits for the next grant.
    case .grant, .deficit, .inFlight: return nil
    case .priced: return end &+ LedgerStore.pricedHorizonMilliseconds
    case .units, .overage:
      switch window.span {
      case .month, .quarter, .year, .lifetime: return nil
      case .minute, .hour, .day, .week, .seconds:
        // A sliding limit looks at the period before for as long as it runs.
        return end &+ (end &- period.start.milliseconds) &+ LedgerStore.lateHorizonMilliseconds
      }
    }
  }
}
