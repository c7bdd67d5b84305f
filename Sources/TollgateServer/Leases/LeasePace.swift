// How much of the leases' settling is done at once. What is used is settled a tick later while that
// is cheap; where many subjects are hot, each settle bears little and costs what a decision costs
// several times over, so beyond this pace it waits and gathers (`LeaseConfiguration.settle` at
// most). What has to go (a refill, a return, what has waited long enough) is not held up by it.
//
// Why a fixed pace and not the share of some clock: it is the same on a busy machine, and whoever
// sizes a Redis for many sidecars can multiply by it.

struct LeasePace {
  /// Accounts a second that one event loop settles early.
  static let accountsPerSecond: Int64 = 500
  /// A call costs as much as so many accounts of it.
  static let accountsPerCall: Int64 = 3
  static let burst: Int64 = 100

  /// Billionths of an account.
  private var spare = Self.burst * 1_000_000_000
  private var at: Int64 = .min

  /// - Parameter now: nanoseconds of a clock that does not go back.
  mutating func isSpare(at now: Int64) -> Bool {
    if at == .min { at = now }
    let elapsed = min(max(0, now &- at), 1_000_000_000)
    at = max(at, now)
    spare = min(Self.burst * 1_000_000_000, spare + elapsed * Self.accountsPerSecond)
    return spare > 0
  }

  /// What has to go takes of it, too: a loop that is busy refilling settles nothing early. Its debt
  /// is bounded, so that this ends with it.
  mutating func sent(accounts: Int) {
    spare = max(
      -Self.burst * 1_000_000_000,
      spare - (Int64(clamping: accounts) + Self.accountsPerCall) * 1_000_000_000)
  }
}
