// The circuit breaker in front of one Redis: it knows "slow" as well as "down".
//
// Why this shape: a store that answers every call after ten seconds holds every request, and a
// breaker that counts errors never sees it. So three things trip it: consecutive failures, the age
// of the oldest unanswered command (the only sign of a server that has stopped answering before
// any deadline passes), and the share of slow answers in a rolling window. It is a value: no clock,
// and its jitter comes from a seed, so a test is a transcript.
//
// Promises: while open it admits nothing until the jittered cool-down ends, then one probe at a
// time; results of calls admitted before the last change of state are ignored, so a burst of old
// timeouts cannot re-open what a probe has closed.

package import TollgateCore

/// Durations are nanoseconds.
package struct BreakerLimits: Hashable, Sendable {
  /// Failures or timeouts in a row that open it.
  package var consecutiveFailuresMax = 5
  /// An answer that took longer is slow.
  package var slowAnswer: Int64 = 20_000_000
  /// The oldest unanswered command may be this old. At least `slowAnswer`.
  package var unansweredMax: Int64 = 100_000_000
  /// Slow answers per thousand in the window that open it.
  package var slowPerThousandMax = 500
  /// Answers in the window before their share means anything.
  package var windowAnswersMin = 20
  /// The rolling window, in `windowSlots` equal slots.
  package var window: Int64 = 1_000_000_000
  /// The first cool-down; doubles with each failed probe up to `coolDownMax`.
  package var coolDown: Int64 = 100_000_000
  package var coolDownMax: Int64 = 5_000_000_000
  /// Successful probes in a row that close it.
  package var probesToClose = 3
  /// A probe without an outcome after this long is given up, so a lost one cannot wedge it.
  package var probeMax: Int64 = 2_000_000_000

  package static let windowSlots = 8

  package init() {}
}

package struct BreakerMachine: Sendable {
  package enum State: Hashable, Sendable {
    case closed
    /// Nothing is admitted before this time.
    case open(until: MonotonicTime)
    /// `probeSince`: the probe in flight.
    case halfOpen(probeSince: MonotonicTime?, successes: Int)
  }

  /// What an admitted call hands back with its outcome.
  package struct Ticket: Hashable, Sendable {
    package let isProbe: Bool
    fileprivate let generation: UInt32
  }

  package enum Admission: Hashable, Sendable {
    case allowed(Ticket)
    /// Refused; `retryAt` is when a probe may be admitted, if that is known.
    case refused(retryAt: MonotonicTime?)
  }

  package enum Trip: Hashable, Sendable {
    case failures
    case unanswered
    case slow
    case probeFailed
  }

  package enum Transition: Hashable, Sendable {
    case opened(Trip, until: MonotonicTime)
    case closed
  }

  private struct WindowSlot: Sendable {
    var index: Int64 = Int64.min
    var answers = 0
    var slow = 0
  }

  package let limits: BreakerLimits
  package private(set) var state: State = .closed
  private var generation: UInt32 = 0
  private var failuresInARow = 0
  private var coolDownsInARow = 0
  private var window: [WindowSlot]
  private var jitterState: UInt64

  package init(limits: BreakerLimits = BreakerLimits(), seed: UInt64) {
    precondition(limits.unansweredMax >= limits.slowAnswer, "an unanswered command is slow first")
    precondition(limits.coolDown > 0 && limits.coolDownMax >= limits.coolDown)
    precondition(limits.window >= Int64(BreakerLimits.windowSlots))
    self.limits = limits
    window = Array(repeating: WindowSlot(), count: BreakerLimits.windowSlots)
    jitterState = seed
  }

  /// Whether a call may be made now.
  package mutating func admit(now: MonotonicTime) -> Admission {
    switch state {
    case .closed:
      return .allowed(Ticket(isProbe: false, generation: generation))
    case .open(let until):
      guard now >= until else { return .refused(retryAt: until) }
      return probe(successes: 0, now: now)
    case .halfOpen(let probeSince, let successes):
      if let probeSince {
        let givenUp = probeSince + limits.probeMax
        guard now >= givenUp else { return .refused(retryAt: givenUp) }
      }
      return probe(successes: successes, now: now)
    }
  }

  private mutating func probe(successes: Int, now: MonotonicTime) -> Admission {
    // A new generation: a probe that was given up cannot answer for this one.
    generation &+= 1
    state = .halfOpen(probeSince: now, successes: successes)
    return .allowed(Ticket(isProbe: true, generation: generation))
  }

  /// A call was answered, by a value or by a server error, `latency` nanoseconds after it was sent.
  package mutating func answered(
    _ ticket: Ticket, latency: Int64, now: MonotonicTime
  ) -> Transition? {
    guard ticket.generation == generation else { return nil }
    let isSlow = latency > limits.slowAnswer
    switch state {
    case .closed:
      failuresInARow = 0
      return record(isSlow: isSlow, now: now)
    case .open:
      return nil
    case .halfOpen(_, let successes):
      if isSlow { return open(.probeFailed, now: now) }
      guard successes + 1 >= limits.probesToClose else {
        state = .halfOpen(probeSince: nil, successes: successes + 1)
        return nil
      }
      close()
      return .closed
    }
  }

  /// A call timed out, or its connection was lost or absent.
  package mutating func failed(_ ticket: Ticket, now: MonotonicTime) -> Transition? {
    guard ticket.generation == generation else { return nil }
    switch state {
    case .closed:
      failuresInARow += 1
      if failuresInARow >= limits.consecutiveFailuresMax { return open(.failures, now: now) }
      return record(isSlow: true, now: now)
    case .open:
      return nil
    case .halfOpen:
      return open(.probeFailed, now: now)
    }
  }

  /// The owner looked at its oldest unanswered command.
  package mutating func observed(
    oldestUnansweredSince sentAt: MonotonicTime?, now: MonotonicTime
  ) -> Transition? {
    guard case .closed = state, let sentAt, now - sentAt > limits.unansweredMax else {
      return nil
    }
    return open(.unanswered, now: now)
  }

  private mutating func record(isSlow: Bool, now: MonotonicTime) -> Transition? {
    let slotLength = limits.window / Int64(BreakerLimits.windowSlots)
    let index = now.nanoseconds / slotLength
    let count = Int64(BreakerLimits.windowSlots)
    let place = Int(((index % count) + count) % count)
    if window[place].index != index { window[place] = WindowSlot(index: index) }
    window[place].answers += 1
    if isSlow { window[place].slow += 1 }
    guard isSlow else { return nil }
    var answers = 0
    var slow = 0
    for slot in window where slot.index > index - count && slot.index <= index {
      answers += slot.answers
      slow += slot.slow
    }
    guard answers >= limits.windowAnswersMin, slow * 1000 > answers * limits.slowPerThousandMax
    else { return nil }
    return open(.slow, now: now)
  }

  private mutating func open(_ trip: Trip, now: MonotonicTime) -> Transition {
    let ceiling = min(
      limits.coolDown << Int64(min(coolDownsInARow, 16)), limits.coolDownMax)
    coolDownsInARow += 1
    generation &+= 1
    // Uniform in [ceiling / 2, ceiling]: a fleet does not probe at one instant.
    let until = now + (ceiling - Int64(random() % UInt64(ceiling / 2 + 1)))
    state = .open(until: until)
    return .opened(trip, until: until)
  }

  private mutating func close() {
    generation &+= 1
    failuresInARow = 0
    coolDownsInARow = 0
    for place in window.indices { window[place] = WindowSlot() }
    state = .closed
  }

  /// SplitMix64.
  private mutating func random() -> UInt64 {
    jitterState &+= 0x9E37_79B9_7F4A_7C15
    var mixed = jitterState
    mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
    return mixed ^ (mixed >> 31)
  }
}
