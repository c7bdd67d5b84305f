// One request's view of the counters at one instant: what each limit says, which of them decides,
// and the state of an item as it is reported.

extension Evaluator {
  struct Verdict {
    var reason: Reason
    var limit: AppliedLimit?
    var retryAfter: Int64?

    init(reason: Reason, limit: AppliedLimit? = nil, retryAfter: Int64? = nil) {
      self.reason = reason
      self.limit = limit
      self.retryAfter = retryAfter
    }
  }

  /// What one limit says: nil reason lets the request pass.
  struct Judgement {
    var reason: Reason?
    var remaining: Int64
    var retryAfter: Int64?
  }

  struct View {
    let state: EvaluatorState
    let request: Request
    let resolution: Resolution
    /// Microseconds.
    let now: Int64

    func key(of cell: Cell) -> CounterKey {
      CounterKey(
        subject: request.subject.prefix(cell.level), feature: request.items[cell.item].feature,
        window: cell.window)
    }

    func rateKey(of limit: AppliedLimit) -> RateKey {
      RateKey(
        subject: request.subject.prefix(limit.level), feature: request.items[limit.item].feature,
        limit: limit.id)
    }

    /// The arrival time as it stands: never before now, since an idle bucket is only full.
    func arrival(_ limit: AppliedLimit) -> Int64 {
      max(state.arrivals[rateKey(of: limit)] ?? 0, now)
    }

    func nextArrival(_ limit: AppliedLimit) -> Int64? {
      guard case .rate(let cost, _, _) = limit.rule else { return nil }
      return arrival(limit) + cost
    }

    func judge(_ limit: AppliedLimit) -> Judgement {
      switch limit.rule {
      case .deny(let reason): return Judgement(reason: reason, remaining: 0)
      case .unlimited: return Judgement(reason: nil, remaining: Quantity.maximum)
      case .quota(let index, let amount):
        let cell = resolution.cells[index]
        let (counter, offset) = state.reading(key(of: cell), in: cell.period.start)
        let used = counter.settled - offset + counter.held
        let exceeded = used + request.items[limit.item].amount > amount
        return Judgement(
          reason: exceeded ? .quotaExceeded : nil, remaining: max(0, amount - used),
          retryAfter: exceeded && request.items[limit.item].amount <= amount && !cell.isForever
            ? cell.period.end.milliseconds - now / 1000 : nil)
      case .rate(let cost, let tolerance, let interval):
        let arrival = arrival(limit)
        let wait = arrival + cost - now - tolerance
        return Judgement(
          reason: wait > 0 ? .rateLimited : nil,
          remaining: max(0, (tolerance - (arrival - now)) / interval),
          retryAfter: wait > 0 ? (wait + 999) / 1000 : nil)
      }
    }

    /// What was let through elsewhere counts, whatever limits say; only a feature that the catalog
    /// does not know has no counter to be posted to.
    func posted() -> Verdict {
      let unknown = resolution.limits.contains {
        if case .deny(.unknownFeature) = $0.rule { true } else { false }
      }
      return Verdict(reason: unknown ? .unknownFeature : .allowedPosted)
    }

    /// The smallest reason binds; then the smaller remaining; then the first in order.
    func verdict() -> Verdict {
      var binding: (reason: Reason, judgement: Judgement, limit: AppliedLimit)?
      for hard in [true, false] {
        for limit in resolution.limits where (limit.enforcement == .hard) == hard {
          let judgement = judge(limit)
          guard let denial = judgement.reason else { continue }
          let reason: Reason =
            switch limit.enforcement {
            case .hard: denial
            case .shadow: .allowedShadow
            case .soft: .allowedSoft
            }
          if let found = binding,
            (found.reason.rawValue, found.judgement.remaining)
              <= (reason.rawValue, judgement.remaining)
          {
            continue
          }
          binding = (reason, judgement, limit)
        }
        // A hard denial comes before anything that soft and shadow limits have to say.
        if binding != nil { break }
      }
      guard let binding else { return Verdict(reason: .allowed) }
      return Verdict(
        reason: binding.reason, limit: binding.limit,
        retryAfter: binding.reason.isAllowed ? nil : binding.judgement.retryAfter)
    }

    func itemState(_ item: Int) -> Decision.ItemState {
      var least: (remaining: Int64, state: Decision.ItemState)?
      for limit in resolution.limits where limit.item == item {
        let remaining = judge(limit).remaining
        guard least.map({ remaining < $0.remaining }) ?? true else { continue }
        switch limit.rule {
        case .deny, .unlimited: continue
        case .quota(let index, _):
          let cell = resolution.cells[index]
          let (counter, offset) = state.reading(key(of: cell), in: cell.period.start)
          least = (
            remaining,
            Decision.ItemState(
              limit: limit.id, remaining: remaining, settled: counter.settled - offset,
              held: counter.held, reset: cell.isForever ? nil : cell.period.end)
          )
        case .rate:
          least = (
            remaining,
            Decision.ItemState(
              limit: limit.id, remaining: remaining,
              reset: WallTime(milliseconds: (arrival(limit) + 999) / 1000))
          )
        }
      }
      if let least { return least.state }
      guard resolution.metered[item],
        let billing = resolution.cells.first(where: {
          $0.item == item && $0.level == 1 && $0.window == .month
        })
      else { return Decision.ItemState() }
      let (counter, offset) = state.reading(key(of: billing), in: billing.period.start)
      return Decision.ItemState(settled: counter.settled - offset, held: counter.held)
    }
  }
}

extension Cell {
  /// Its period has no end.
  fileprivate var isForever: Bool { period.end.milliseconds >= Quantity.maximum }
}
