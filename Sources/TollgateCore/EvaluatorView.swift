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
    /// What the operation adds to which counter.
    private(set) var measure = Measure(amounts: [], overage: [], overdrawn: [])

    init(
      state: EvaluatorState, request: Request, resolution: Resolution, now: Int64,
      isHold: Bool = false, isPost: Bool = false
    ) {
      self.state = state
      self.request = request
      self.resolution = resolution
      self.now = now
      measure = measure(isHold: isHold, isPost: isPost)
    }

    func key(of cell: Cell) -> CounterKey {
      CounterKey(
        subject: request.subject.prefix(cell.level), feature: resolution.items[cell.item].feature,
        window: cell.window)
    }

    func rateKey(of limit: AppliedLimit) -> RateKey {
      RateKey(
        subject: request.subject.prefix(limit.level), feature: resolution.items[limit.item].feature,
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

    /// What is left is told as a quantity: where more was taken back than was used, a limit of the
    /// greatest amount leaves no more than that amount.
    func judge(_ limit: AppliedLimit) -> Judgement {
      var judgement = found(limit)
      judgement.remaining = min(judgement.remaining, Quantity.maximum)
      return judgement
    }

    private func found(_ limit: AppliedLimit) -> Judgement {
      switch limit.rule {
      case .deny(let reason): return Judgement(reason: reason, remaining: 0)
      case .unlimited: return Judgement(reason: nil, remaining: Quantity.maximum)
      case .quota(let index, let amount):
        return judge(
          measure.amounts[limit.item], against: amount, used: used(index), at: index,
          .quotaExceeded)
      case .sliding(let index, let amount, let length):
        return judgeSliding(measure.amounts[limit.item], against: amount, at: index, length)
      case .concurrency(let index, let amount):
        let room = amount - used(index)
        return Judgement(
          reason: measure.amounts[limit.item] > room ? .concurrencyExceeded : nil,
          remaining: max(0, room))
      case .credit(let allowsOverage):
        guard !allowsOverage else { return Judgement(reason: nil, remaining: Quantity.maximum) }
        let denies = measure.overage[limit.item] > 0
        return Judgement(
          reason: denies ? .creditExhausted : nil, remaining: credit(limit.item),
          retryAfter: denies ? nextCredit(limit.item) : nil)
      case .spendCap(let index, let amount):
        guard let amount else { return Judgement(reason: nil, remaining: Quantity.maximum) }
        var judgement = judge(
          measure.overage[limit.item], against: amount, used: used(index), at: index,
          .spendCapReached)
        judgement.remaining = min(judgement.remaining, Quantity.maximum) + credit(limit.item)
        return judgement
      case .rate(let cost, let tolerance, let interval):
        let arrival = arrival(limit)
        let wait = arrival + cost - now - tolerance
        return Judgement(
          reason: wait > 0 ? .rateLimited : nil,
          remaining: max(0, (tolerance - (arrival - now)) / interval),
          retryAfter: wait > 0 ? (wait + 999) / 1000 : nil)
      }
    }

    private func judge(
      _ units: Int64, against amount: Int64, used: Int64, at index: Int, _ reason: Reason
    ) -> Judgement {
      let cell = resolution.cells[index]
      let exceeded = used + units > amount
      return Judgement(
        reason: exceeded ? reason : nil, remaining: max(0, amount - used),
        // No time helps where one request asks for more than a whole period has.
        retryAfter: exceeded && units <= amount && !cell.isForever
          ? cell.period.end.milliseconds - now / 1000 : nil)
    }

    /// Units of the period before count by the share of it that a span of this length still
    /// reaches, in 2^20ths, rounded up twice: never too few.
    private func judgeSliding(
      _ units: Int64, against amount: Int64, at index: Int, _ length: Int64
    ) -> Judgement {
      let cell = resolution.cells[index]
      let (counter, _) = reading(index)
      var before: Int64 = 0
      if counter.previousStart.milliseconds == cell.period.start.milliseconds - length {
        before = counter.previousSettled + counter.previousHeld
      }
      let elapsed = now / 1000 - cell.period.start.milliseconds
      let weight = Sliding.weight(elapsed: elapsed, length: length)
      let current = used(index)
      let room = amount - current - Sliding.share(of: before, weight)
      return Judgement(
        reason: units > room ? .quotaExceeded : nil, remaining: max(0, room),
        retryAfter: units > room && units <= amount
          ? Sliding.wait(
            elapsed: elapsed, length: length, before: before, room: amount - current - units)
          : nil)
    }

    /// What the grants of an item still have beyond what is owed.
    func credit(_ item: Int) -> Int64 {
      let left = (resolution.draws[item] ?? []).reduce(0) { $0 + self.left($1) }
      return min(max(0, left - (owed[item] ?? 0)), Quantity.maximum)
    }

    /// When the first grant that is enough for this request by itself comes again.
    private func nextCredit(_ item: Int) -> Int64? {
      (resolution.draws[item] ?? [])
        .filter { $0.recurs && !$0.isVoided && $0.amount >= measure.amounts[item] }
        .map { resolution.cells[$0.cell].period.end.milliseconds - now / 1000 }.min()
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
        case .deny, .unlimited, .credit(allowsOverage: true), .spendCap(_, nil): continue
        case .quota(let index, _), .sliding(let index, _, _), .concurrency(let index, _),
          .spendCap(let index, .some):
          let cell = resolution.cells[index]
          let (counter, offset) = reading(index)
          least = (
            remaining,
            Decision.ItemState(
              limit: limit.id, remaining: remaining, settled: counter.settled - offset,
              held: counter.held, reset: cell.isForever ? nil : cell.period.end)
          )
        case .credit:
          let draws = resolution.draws[item] ?? []
          let ends = draws.map { resolution.cells[$0.cell].period.end }.min()
          least = (
            remaining,
            Decision.ItemState(
              limit: limit.id, remaining: remaining,
              settled: draws.reduce(0) { $0 + reading($1.cell).counter.settled },
              held: draws.reduce(0) { $0 + reading($1.cell).counter.held },
              reset: ends.flatMap { $0.milliseconds < Quantity.maximum ? $0 : nil })
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
