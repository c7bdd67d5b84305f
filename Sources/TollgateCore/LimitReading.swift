// What every limit says of a request, read from counters that somebody else has stored: for
// `usage` and `explain`. It is the evaluator's own judgement, so that what people are told is what
// would be decided.

/// A stored counter, and what of it is forgiven.
package struct StoredCounter: Hashable, Sendable {
  package var value: CounterValue
  package var forgiven: Int64
  /// Of what is held in the period that runs, what sidecars hold in stock: nobody asked for it yet.
  package var leased: Int64

  package init(value: CounterValue, forgiven: Int64, leased: Int64 = 0) {
    self.value = value
    self.forgiven = forgiven
    self.leased = leased
  }
}

package struct LimitReading: Hashable, Sendable {
  package struct State: Hashable, Sendable {
    package var period: Period?
    package var settled: Int64?
    package var held: Int64?
    /// In `held`.
    package var leased: Int64?
    package var forgiven: Int64?
    package var amount: Int64?
    /// Before the request; never below 0; nil: unlimited or decided by configuration.
    package var remaining: Int64?
    package var reset: WallTime?
    /// nil: it passes.
    package var denial: Reason?
    package var retryAfter: Int64?
  }

  /// A grant, and what the request would burn from it.
  package struct Burn: Hashable, Sendable {
    package var grant: Name
    package var left: Int64
    package var burnt: Int64
    package var ends: WallTime?
    /// The instance as it stands.
    package var period: Period
    package var amount: Int64
    package var carried: Int64
    package var settled: Int64
    package var held: Int64
    package var isVoided: Bool
  }

  /// In the order of `resolution.limits`.
  package let states: [State]
  /// Per item, those included that others are charged to.
  package let amounts: [Int64]
  package let overage: [Int64]
  package let owed: [Int: Int64]
  package let burns: [Int: [Burn]]
  package let charges: [RateCharge]

  /// `counters` in the order of `resolution.cells`, `arrivals` in that of the rate limits.
  package init(
    subject: Subject, resolution: Resolution, counters: [StoredCounter], arrivals: [Int64],
    now: WallTime
  ) {
    precondition(counters.count == resolution.cells.count)
    var state = EvaluatorState()
    let request = Evaluator.Request(
      id: OperationID(high: 0, low: 0), subject: subject, items: resolution.items)
    func key(_ cell: Cell) -> CounterKey {
      CounterKey(
        subject: subject.prefix(cell.level), feature: resolution.items[cell.item].feature,
        window: cell.window)
    }
    for (cell, counter) in zip(resolution.cells, counters) {
      state.counters[key(cell)] = counter.value
      state.offsets[key(cell)] = CounterOffset(
        start: counter.value.start, units: counter.forgiven, time: counter.value.start)
    }
    var rates = arrivals.makeIterator()
    for limit in resolution.limits {
      guard case .rate = limit.rule, let arrival = rates.next() else { continue }
      state.arrivals[
        RateKey(
          subject: subject.prefix(limit.level), feature: resolution.items[limit.item].feature,
          limit: limit.id)] = arrival
    }
    let view = Evaluator.View(
      state: state, request: request, resolution: resolution, now: now.milliseconds * 1000)
    states = resolution.limits.map { limit in
      var state = view.reading(of: limit)
      if case .quota(let index, _) = limit.rule {
        let isCurrent = counters[index].value.start == resolution.cells[index].period.start
        state.leased = isCurrent ? counters[index].leased : 0
      }
      return state
    }
    amounts = view.measure.amounts
    overage = view.measure.overage
    owed = view.owed
    charges = view.measure.charges.map(\.charge)
    burns = resolution.draws.mapValues { draws in
      draws.map { draw in
        let period = resolution.cells[draw.cell].period
        let counter = view.reading(draw.cell).counter
        return Burn(
          grant: draw.grant, left: view.left(draw),
          burnt: view.measure.burns.first { $0.cell == draw.cell }?.amount ?? 0,
          ends: period.end.milliseconds < Quantity.maximum ? period.end : nil, period: period,
          amount: draw.amount, carried: view.carried(draw), settled: counter.settled,
          held: counter.held, isVoided: draw.isVoided)
      }
    }
  }
}

extension Evaluator.View {
  fileprivate func reading(of limit: AppliedLimit) -> LimitReading.State {
    let judgement = judge(limit)
    var state = LimitReading.State(
      remaining: judgement.remaining, denial: judgement.reason, retryAfter: judgement.retryAfter)
    switch limit.rule {
    case .deny, .unlimited: state.remaining = nil
    case .quota(let cell, let amount), .sliding(let cell, let amount, _),
      .concurrency(let cell, let amount), .spendCap(let cell, .some(let amount)):
      state.amount = amount
      stand(of: cell, in: &state)
    case .spendCap(let cell, nil):
      state.remaining = nil
      stand(of: cell, in: &state)
    case .credit(let allowsOverage):
      let draws = resolution.draws[limit.item] ?? []
      state.amount = draws.reduce(0) { $1.isVoided ? $0 : $0 + $1.amount + carried($1) }
      state.settled = draws.reduce(0) { $0 + reading($1.cell).counter.settled }
      state.held = draws.reduce(0) { $0 + reading($1.cell).counter.held }
      if allowsOverage { state.remaining = credit(limit.item) }
      let ends = draws.map { resolution.cells[$0.cell].period.end }.min()
      state.reset = ends.flatMap { $0.milliseconds < Quantity.maximum ? $0 : nil }
    case .rate(_, let tolerance, let interval):
      state.amount = tolerance / interval
      state.reset = WallTime(milliseconds: (arrival(limit) + 999) / 1000)
    }
    return state
  }

  private func stand(of index: Int, in state: inout LimitReading.State) {
    let (counter, forgiven) = reading(index)
    state.period = resolution.cells[index].period
    state.settled = counter.settled
    state.held = counter.held
    state.forgiven = forgiven
    state.reset = resolution.cells[index].period.end
  }
}
