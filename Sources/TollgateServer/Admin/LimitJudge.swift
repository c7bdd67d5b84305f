// Reads a resolved limit against stored counters without touching them: what is left, and whether
// a request would be denied now and why. The script in Redis decides for real; this is its
// explanation, and the tests hold the two together through Core's evaluator.

package import TollgateCore

package struct LimitJudge: Hashable, Sendable {
  package struct State: Hashable, Sendable {
    package var period: Period?
    package var settled: Int64?
    package var held: Int64?
    package var forgiven: Int64?
    package var amount: Int64?
    /// Before the request; never below 0; nil: unlimited or decided by configuration.
    package var remaining: Int64?
    package var reset: WallTime?
    /// nil: it passes.
    package var denial: Reason?
    package var retryAfter: Int64?
  }

  package let subject: Subject
  package let items: [Item]
  package let resolution: Resolution
  package let snapshot: CountersSnapshot
  package let states: [State]
  package let outcome: Outcome

  package struct Outcome: Hashable, Sendable {
    package var reason: Reason
    /// Index into `resolution.limits`; nil where nothing but unlimited rules apply.
    package var binding: Int?
    package var retryAfter: Int64?
  }

  /// The counters that a resolution needs, in the order of its cells, then of its rate limits.
  package static func references(
    subject: Subject, items: [Item], resolution: Resolution
  ) -> (quotas: [CounterReference], rates: [RateReference]) {
    let quotas = resolution.cells.map { cell in
      CounterReference(
        subject: subject.prefix(cell.level), feature: items[cell.item].feature,
        window: cell.window)
    }
    var rates: [RateReference] = []
    for limit in resolution.limits {
      if case .rate = limit.rule {
        rates.append(
          RateReference(
            subject: subject.prefix(limit.level), feature: items[limit.item].feature,
            limit: limit.id))
      }
    }
    return (quotas, rates)
  }

  /// `snapshot` must hold what `references` named for this resolution.
  package init(
    subject: Subject, items: [Item], resolution: Resolution, snapshot: CountersSnapshot
  ) {
    precondition(snapshot.counters.count == resolution.cells.count)
    self.subject = subject
    self.items = items
    self.resolution = resolution
    self.snapshot = snapshot
    var states: [State] = []
    var rate = 0
    for limit in resolution.limits {
      let cost = items[limit.item].amount
      switch limit.rule {
      case .deny(let reason):
        states.append(State(denial: reason))
      case .unlimited:
        states.append(State())
      case .quota(let cell, let amount):
        states.append(
          Self.quota(
            amount: amount, cost: cost, period: resolution.cells[cell].period,
            counter: snapshot.counters[cell], now: snapshot.time))
      case .rate(let costMicroseconds, let tolerance, let interval):
        states.append(
          Self.rate(
            arrival: snapshot.rates[rate], cost: costMicroseconds, tolerance: tolerance,
            interval: interval, now: snapshot.time))
        rate += 1
      }
    }
    self.states = states
    outcome = Self.outcome(limits: resolution.limits, states: states)
  }

  private static func quota(
    amount: Int64, cost: Int64, period: Period, counter: CounterState, now: WallTime
  ) -> State {
    // A counter that still stands in an earlier period rotates with the next write: it is empty.
    let current = counter.start == period.start ? counter : .empty
    let used = max(0, current.settled - current.forgiven)
    let remaining = max(0, amount - used - current.held)
    let denied = cost > remaining
    return State(
      period: period, settled: current.settled, held: current.held, forgiven: current.forgiven,
      amount: amount, remaining: remaining, reset: period.end,
      denial: denied ? .quotaExceeded : nil, retryAfter: denied ? period.end - now : nil)
  }

  private static func rate(
    arrival: Int64, cost: Int64, tolerance: Int64, interval: Int64, now: WallTime
  ) -> State {
    let nowMicroseconds = now.milliseconds * 1000
    let start = max(arrival, nowMicroseconds)
    let backlog = start - nowMicroseconds
    let over = backlog + cost - tolerance
    return State(
      amount: tolerance / interval, remaining: max(0, (tolerance - backlog) / interval),
      reset: WallTime(milliseconds: (start + 999) / 1000), denial: over > 0 ? .rateLimited : nil,
      retryAfter: over > 0 ? (over + 999) / 1000 : nil)
  }

  /// The documented precedence: among denying hard limits the smallest reason number, then the
  /// smaller remainder, then the order of the catalog.
  private static func outcome(limits: [AppliedLimit], states: [State]) -> Outcome {
    var best: (index: Int, reason: Reason)?
    for (index, limit) in limits.enumerated() where limit.enforcement == .hard {
      guard let reason = states[index].denial else { continue }
      if let found = best {
        let closer = (states[index].remaining ?? 0) < (states[found.index].remaining ?? 0)
        guard
          reason.rawValue < found.reason.rawValue
            || (reason.rawValue == found.reason.rawValue && closer)
        else { continue }
      }
      best = (index, reason)
    }
    if let best {
      return Outcome(
        reason: best.reason, binding: best.index, retryAfter: states[best.index].retryAfter)
    }
    for (enforcement, reason) in [
      (Enforcement.shadow, Reason.allowedShadow), (.soft, .allowedSoft),
    ] {
      if let index = limits.indices.first(where: {
        limits[$0].enforcement == enforcement && states[$0].denial != nil
      }) {
        return Outcome(reason: reason, binding: index, retryAfter: nil)
      }
    }
    var tightest: Int?
    for index in limits.indices {
      guard let remaining = states[index].remaining else { continue }
      if let found = tightest, (states[found].remaining ?? .max) <= remaining { continue }
      tightest = index
    }
    return Outcome(reason: .allowed, binding: tightest, retryAfter: nil)
  }
}
