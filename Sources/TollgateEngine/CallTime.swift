// How long a call to Redis takes, on the safe side: what is sent so late that its answer misses the
// caller's deadline is in doubt, and nobody can tell the caller what became of it. A mean would
// send too late whatever meets a slow call; so the slowest of late counts, and is forgotten slowly.

package struct CallTime: Sendable {
  /// Nanoseconds that a call is expected to take at most.
  package private(set) var nanoseconds: Int64 = 0

  package init() {}

  /// A call was answered after `took` nanoseconds: up at once, down by an eighth of the way.
  package mutating func note(_ took: Int64) {
    nanoseconds = took > nanoseconds ? took : nanoseconds - (nanoseconds - took) / 8
  }

  /// Whether Redis would probably answer after the deadline: `left` is the time until then, and
  /// `waited` how long the request has waited already. One that comes fresh is sent whatever
  /// time it has: else nobody would ever learn that Redis has become quicker.
  package func missesDeadline(left: Int64, waited: Int64) -> Bool {
    left < 2 * nanoseconds && waited > left
  }
}
