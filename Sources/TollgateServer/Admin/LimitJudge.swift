// Resolved limits against stored counters, without touching them: what is left, whether a request
// would be denied now, and why. Core's evaluator judges; the script in Redis decides for real, and
// the tests hold the two together.

package import TollgateCore

package struct LimitJudge: Hashable, Sendable {
  package typealias State = LimitReading.State

  package let subject: Subject
  /// Those asked for, then those that they are charged to.
  package let items: [Item]
  package let resolution: Resolution
  package let snapshot: CountersSnapshot
  package let reading: LimitReading
  package var states: [State] { reading.states }
  package let outcome: Outcome

  package struct Outcome: Hashable, Sendable {
    package var reason: Reason
    /// Index into `resolution.limits`; nil where nothing but unlimited rules apply.
    package var binding: Int?
    package var retryAfter: Int64?
  }

  /// The counters that a resolution needs, in the order of its cells, then of its rate limits.
  package static func references(
    subject: Subject, resolution: Resolution
  ) -> (quotas: [CounterReference], rates: [RateReference]) {
    let quotas = resolution.cells.map { cell in
      CounterReference(
        subject: subject.prefix(cell.level), feature: resolution.items[cell.item].feature,
        window: cell.window)
    }
    // Not the request's items: those that they are charged to have limits too.
    var rates: [RateReference] = []
    for limit in resolution.limits {
      if case .rate = limit.rule {
        rates.append(
          RateReference(
            subject: subject.prefix(limit.level), feature: resolution.items[limit.item].feature,
            limit: limit.id))
      }
    }
    return (quotas, rates)
  }

  /// `snapshot` must hold what `references` named for this resolution.
  package init(subject: Subject, resolution: Resolution, snapshot: CountersSnapshot) {
    precondition(snapshot.counters.count == resolution.cells.count)
    self.subject = subject
    self.items = resolution.items
    self.resolution = resolution
    self.snapshot = snapshot
    reading = LimitReading(
      subject: subject, resolution: resolution, counters: snapshot.counters.map(\.reading),
      arrivals: snapshot.rates, now: snapshot.time)
    outcome = Self.outcome(limits: resolution.limits, states: reading.states)
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
