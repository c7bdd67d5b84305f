// How long an operation that arrives now will wait behind those that an event loop has, and how
// many may be let in so that the last of them is still answered in time.
//
// Why this shape: a bound on the number in flight says nothing about time. 16,000 operations are
// a second of work on one machine and a tenth of it on another, and the time is what a deadline is
// about. So the loop measures what one operation takes while it has enough to do (elapsed ÷ done:
// whatever the time goes into), and admits by the delay that follows from it. A time measured while
// nothing waits would be the length of the way to the store, not the loop's speed: such stretches
// are not looked at.
//
// It is a value without a clock. Promise 8: overload is refused early, not at the deadline.

package import TollgateCore

package struct LoadEstimator: Sendable {
  /// Taken for one operation until it has been measured, nanoseconds.
  package static let assumed: Int64 = 50_000
  /// Where fewer than this wait, nothing is learnt about speed.
  package static let busyMin = 16
  /// A stretch that is measured lasts at least so long, and ends so many operations.
  package static let stretchMin: Int64 = 10_000_000
  package static let completedMin = 64
  /// An estimate that nothing has confirmed for so long is at most what is assumed of a fresh one.
  package static let confirmedMax: Int64 = 2_000_000_000
  /// So many are let in whatever the estimate says: enough to measure it anew.
  package static let always = 64

  private var measured: Int64?
  private var confirmedAt = MonotonicTime(nanoseconds: 0)
  private var stretch: (since: MonotonicTime, completed: Int)?

  package init() {}

  /// `count` operations are done; `left` wait for their turn to begin.
  package mutating func completed(_ count: Int, left: Int, now: MonotonicTime) {
    guard var current = stretch else {
      if left >= Self.busyMin { stretch = (now, 0) }
      return
    }
    current.completed += count
    stretch = left >= Self.busyMin ? current : nil
    let elapsed = now - current.since
    guard elapsed >= Self.stretchMin, current.completed >= Self.completedMin else { return }
    let sample = max(1, elapsed / Int64(current.completed))
    measured = measured.map { $0 + (sample - $0) / 4 } ?? sample
    confirmedAt = now
    if stretch != nil { stretch = (now, 0) }
  }

  /// What is under way does not end by being done: the stretch says nothing.
  package mutating func interrupted() { stretch = nil }

  /// Nanoseconds for one operation.
  package func perOperation(now: MonotonicTime) -> Int64 {
    guard let measured else { return Self.assumed }
    return now - confirmedAt > Self.confirmedMax ? min(measured, Self.assumed) : measured
  }

  /// How many operations are done in that time.
  package func operations(in nanoseconds: Int64, now: MonotonicTime) -> Int {
    max(Self.always, Int(clamping: nanoseconds / perOperation(now: now)))
  }
}

/// Who is let in: half of an operation's time may be spent in waiting, so that an estimate that is
/// off by a factor of two still keeps the deadline; a sender that has less under way than its share
/// of that is let in even where others have used it up.
package struct AdmissionRule: Sendable {
  /// Operations of this loop that wait or are under way.
  package var waiting: Int
  /// How many are done in half of the time that the new ones are given.
  package var allowed: Int
  /// Of those that are waiting, the sender's own.
  package var own: Int
  /// Senders that have something waiting, this one included.
  package var senders: Int
  /// Room below the fixed bound of the loop.
  package var room: Int

  package init(waiting: Int, allowed: Int, own: Int, senders: Int, room: Int) {
    self.waiting = waiting
    self.allowed = allowed
    self.own = own
    self.senders = senders
    self.room = room
  }

  /// How many of `count` new operations are let in, in their order.
  package func admitted(of count: Int) -> Int {
    let free = allowed - waiting
    let share = max(1, allowed / max(1, senders)) - own
    return max(0, min(count, room, max(free, share)))
  }
}
