// How long a call to Redis takes, on the safe side: what is sent so late that its answer misses the
// caller's deadline is in doubt, and nobody can tell the caller what became of it. A mean would
// send too late whatever meets a slow call; so the slowest of late counts. It is forgotten by the
// clock, not by the number of calls: in a burst a hundred quick ones follow within milliseconds.

#if canImport(Glibc)
  internal import Glibc
#else
  internal import Darwin
#endif

package struct CallTime: Sendable {
  /// In this time half of what is remembered is forgotten.
  package static let halfLifeNanoseconds: Int64 = 500_000_000
  /// What was quick is remembered for one to two of these.
  package static let stretchNanoseconds: Int64 = 5_000_000_000

  /// Nanoseconds that calls take as a rule: a mean in which the last eight weigh most.
  package private(set) var usual: Int64 = 0
  /// The least of the present stretch of time and of the one before it.
  private var least: Int64 = 0
  private var leastBefore: Int64 = 0
  private var stretch: Int64 = 0
  private var slowest: Int64 = 0
  private var notedAt: Int64 = 0
  /// Whether a call over the present link was answered.
  private var knowsWay = false

  package init() {}

  /// There is a new link to Redis, maybe to another one: what was quick over the old one may never
  /// be again, and whoever never has a call alone would hold it against the new one for ever.
  package mutating func linked() { knowsWay = false }

  /// A call was answered at `now`, after `took`; both in nanoseconds, of one monotonic clock.
  /// - Parameter isAlone: nothing else was under way when it was sent. One that stood behind others
  ///   says nothing of the way, unless it was quicker all the same: under load without a pause the
  ///   way would come to be the queue.
  package mutating func note(_ took: Int64, at now: Int64, isAlone: Bool = true) {
    let number = now / Self.stretchNanoseconds
    if !knowsWay {
      (least, leastBefore, stretch, knowsWay) = (took, took, number, true)
    } else if isAlone && number > stretch {
      leastBefore = number == stretch + 1 ? least : took
      least = took
      stretch = number
    } else {
      least = min(least, took)
    }
    usual = notedAt == 0 ? took : usual + (took - usual) / 8
    slowest = max(took, expected(at: now))
    notedAt = max(notedAt, now)
  }

  /// Nanoseconds of the quickest call of late, which is the way to Redis and back. Over a new link
  /// that of the old one until the first answer.
  package var quickest: Int64 { min(least, leastBefore) }

  /// Nanoseconds that a call is expected to take at most.
  package func expected(at now: Int64) -> Int64 {
    Int64(Double(slowest) * exp2(-Double(max(0, now - notedAt)) / Double(Self.halfLifeNanoseconds)))
  }

  /// Whether Redis would probably answer after the deadline: `left` is the time until then,
  /// `waited` how long the request has waited already, and `behind` what the operations that were
  /// sent before it still take: a burst tells of itself only when its first call is answered. One
  /// that comes fresh is sent whatever time it has: else nobody would ever learn that Redis has
  /// become quicker.
  package func missesDeadline(left: Int64, waited: Int64, behind: Int64, at now: Int64) -> Bool {
    left < 2 * expected(at: now) + behind && waited > left
  }
}
