// How much of the leases' settling is done at once, and how long the rest of it may wait. What is
// used is settled a tick later while that is cheap; where many subjects are hot, each settle bears
// little and costs what a decision costs several times over, so beyond this pace it waits and
// gathers. What has to go (a refill, a return, what has waited long enough) is not held up by it.
//
// How long it may wait follows from the same pace: so long that all that is hot is settled in it,
// within bounds. And so long that Redis answers several times in it, and many times where it does
// not answer at once for being asked too much. What is leased follows from that in turn: a lease is
// worth its price where it is used about once between two settles, or more. Without that, subjects
// that share an overloaded Redis would each be asked for too seldom to be leased, because none is.
//
// Why a fixed pace and not the share of some clock: it is the same on a busy machine, and whoever
// sizes a Redis for many sidecars can multiply by it.

struct LeasePace {
  /// Accounts a second that one event loop settles early.
  static let accountsPerSecond: Int64 = 500
  /// A call costs as much as so many accounts of it.
  static let accountsPerCall: Int64 = 3
  static let burst: Int64 = 100
  /// What has waited so long is settled, at least and at most (ns). The table waits no longer than
  /// a third of a lease.
  static let settleLeast: Int64 = 500_000_000
  static let settleMost: Int64 = 4_000_000_000
  /// So many times the way to Redis and back fits into it, and what a call waits there so many.
  static let waysPerSettle: Int64 = 10
  static let waitsPerSettle: Int64 = 60
  static let measureNanoseconds: Int64 = 250_000_000

  /// Billionths of an account.
  private var spare = Self.burst * 1_000_000_000
  private var at: Int64 = .min
  /// Nanoseconds: of the way; and that calls take beyond it, a mean in which the last eight weigh
  /// most.
  private var way: Int64 = 0
  private var wait: Int64 = 0
  private var measuredAt: Int64 = .min
  private var measured = Self.settleLeast

  /// How old usage may become before it has to go (ns).
  var settle: Int64 {
    max(measured, min(Self.settleMost, Self.waysPerSettle * way + Self.waitsPerSettle * wait))
  }

  /// What is asked for with pauses no longer than this (ns) is leased. Of what comes more seldom,
  /// each settle would bear about one operation, and the lease would cost two calls more.
  var demand: Int64 { max(1_000_000_000, settle) }

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

  /// A call was answered after `took`, of which the way takes `way` when nothing else is asked.
  mutating func called(_ took: Int64, way: Int64) {
    self.way = min(max(0, way), Self.settleMost)
    wait += (min(max(0, took - self.way), Self.settleMost) - wait) / 8
  }

  /// Whether it is time to count what waits.
  mutating func isToMeasure(at now: Int64) -> Bool {
    guard measuredAt == .min || now &- measuredAt >= Self.measureNanoseconds else { return false }
    measuredAt = now
    return true
  }

  /// So many accounts have usage that is not settled. Up at once, down by a sixteenth.
  mutating func measured(waiting: Int) {
    let wanted = min(
      Self.settleMost,
      max(
        Self.settleLeast,
        Int64(clamping: min(waiting, 1 << 30)) * 1_000_000_000 / Self.accountsPerSecond))
    measured = wanted > measured ? wanted : measured - (measured - wanted) / 16
  }
}
