// The steps of a reservation after it is made (`EvaluatorHolds` has the words).

extension Evaluator {
  package enum Step: Hashable, Sendable {
    case settle(isFinal: Bool)
    case release
    case extend(ttlMilliseconds: Int64)
  }

  /// `request.items`: what was used, of a settle; of any other step, nothing. `resolution`: of the
  /// hold's items as of its creation, where `planWanted` was answered before.
  package mutating func step(
    _ step: Step, of reservation: OperationID, _ request: Request, resolution: Resolution?,
    versions: Versions, nowMicroseconds: Int64
  ) -> Outcome {
    let micros = max(nowMicroseconds, state.latest)
    let now = WallTime(milliseconds: micros / 1000)
    if let early = recorded(request, now: now, mode: .consume) { return early }
    if let notAfter = request.notAfter, now > notAfter { return .expired(now: now) }
    guard due(request.subject.account, at: now).isEmpty else { return .holdsDue }
    guard let hold = state.holds[reservation] else { return .notHeld(.unknown) }
    var isLate = false
    switch (hold.state, step) {
    case (.held, _): break
    case (.expired, .settle): isLate = true
    case (.expired, _): return .notHeld(.expired)
    case (.committed, _): return .notHeld(.committed)
    case (.released, _): return .notHeld(.released)
    }
    guard hold.subject == request.subject else { return .notHeld(.unknown) }

    var settling = Settling(
      state: state, hold: hold, isLate: isLate, resolution: resolution, now: micros)
    var reason = Reason.settled
    switch step {
    case .settle:
      if let refusal = settling.settle(request.items, versions, in: self) { return refusal }
      reason = isLate ? .settledLate : settling.isClamped ? .settledClamped : .settled
    case .release: reason = .released
    case .extend(let ttl):
      reason = .extended
      settling.hold.expires = max(hold.expires, now + ttl)
    }
    // Nothing is held any more of what comes late: it is the last, whatever it says.
    let ends =
      switch step {
      case .settle(let isFinal): isFinal || isLate
      case .release: true
      case .extend: false
      }
    settling.finish(reservation, ends: ends, released: step == .release)
    state = settling.state
    let held = settling.hold
    let decision = Decision(
      reason: reason, source: .redis, time: now, globalVersion: versions.global,
      accountVersion: versions.account,
      items: held.items.indices.map {
        .init(settled: settling.charged[$0], held: ends ? 0 : held.items[$0].left)
      },
      expires: ends ? nil : held.expires,
      settlements: reason.isSettlement
        ? held.items.indices.map {
          .init(actual: settling.actual[$0] ?? 0, charged: settling.charged[$0])
        } : [],
      burns: settling.burns, derived: held.items.dropFirst(held.asked).map(\.feature))
    state.latest = micros
    state.records[request.id] = EvaluatorRecord(
      subject: request.subject, items: request.items, decision: decision, effect: .none)
    return .decided(decision, settling.births(request.id, now))
  }
}

/// One settle on its way.
private struct Settling {
  var state: EvaluatorState
  var hold: EvaluatorHold
  let isLate: Bool
  let resolution: Resolution?
  let now: Int64
  /// nil: not named, and nothing was charged to it.
  var actual: [Int64?]
  var charged: [Int64]
  var isClamped = false
  var burns: [Decision.Burn] = []
  private var counted: [EvaluatorRecord.Counted] = []
  private var charges: [(target: Int, charge: RateCharge)] = []
  private var derived: [Int64]

  init(
    state: EvaluatorState, hold: EvaluatorHold, isLate: Bool, resolution: Resolution?, now: Int64
  ) {
    self.state = state
    self.hold = hold
    self.isLate = isLate
    self.resolution = resolution
    self.now = now
    actual = Array(repeating: nil, count: hold.items.count)
    charged = Array(repeating: 0, count: hold.items.count)
    derived = charged
  }

  mutating func settle(
    _ used: [Item], _ versions: Evaluator.Versions, in evaluator: Evaluator
  ) -> Evaluator.Outcome? {
    for item in used {
      let asked = hold.items.prefix(hold.asked)
      guard let index = asked.firstIndex(where: { $0.feature == item.feature }) else {
        return .notHeld(.otherItem)
      }
      actual[index] = item.amount
    }
    if resolution != nil {
      let current = Evaluator.Versions(
        global: evaluator.state.globalVersion,
        account: evaluator.state.accountVersions[hold.subject.account] ?? 0)
      guard versions == current else { return .stale(current) }
    }
    let targets = Set(hold.pricings.map(\.pricing.target))
    for item in hold.items.indices where !targets.contains(item) && actual[item] != nil {
      if let refusal = settle(item) { return refusal }
    }
    for item in hold.items.indices where targets.contains(item) && actual[item] != nil {
      guard let sum = Quantity.adding(actual[item] ?? 0, derived[item]) else {
        return .amountOutOfRange(item: item)
      }
      actual[item] = sum
      if let refusal = settle(item) { return refusal }
    }
    return nil
  }

  private mutating func settle(_ item: Int) -> Evaluator.Outcome? {
    let used = actual[item] ?? 0
    let within = isLate ? 0 : min(used, hold.items[item].left)
    var beyond: Int64 = 0
    var owed: Int64 = 0
    let isBurnable = isBurnable(item)
    if used > within || isLate || (isBurnable && within > heldOfGrants(item)) {
      if !isLate, used > within, hold.overrun == .reject, item < hold.asked {
        return .notHeld(.overrun)
      }
      guard let resolution else {
        return .planWanted(created: hold.created, features: hold.items.map(\.feature))
      }
      beyond = isLate ? used : min(used - within, room(item, resolution))
      if !isLate, case .overdraft(let bound) = hold.overrun {
        owed = min(used - within - beyond, bound - hold.items[item].owed)
        hold.items[item].owed += owed
      }
    }
    hold.items[item].left -= within
    charged[item] = within + beyond + owed
    if used > within + beyond { isClamped = true }

    // Grants that the hold drew on, in their order; the rest of what it held was overage.
    var uncovered = within
    for index in hold.parts.indices where hold.parts[index].item == item {
      guard case .grant(let grant) = hold.parts[index].window.tally else { continue }
      let drawn = min(uncovered, hold.parts[index].left)
      guard drawn > 0 else { continue }
      uncovered -= drawn
      hold.parts[index].left -= drawn
      guard count(hold.parts[index], drawn, held: -drawn) else { return out(item) }
      burns.append(.init(item: item, grant: grant, amount: drawn))
    }
    // Of what it held beyond every grant, those that have something by now cover that much.
    var overage = uncovered + beyond
    let open = isBurnable ? overage : beyond
    if open > 0, let resolution {
      guard let left = burn(open, item, resolution) else { return out(item) }
      overage += left - open
      // Late, it is owed where nothing may be had beyond the grants.
      if isLate, resolution.isPrepaid(item) { (owed, overage) = (overage, 0) }
    }
    if owed > 0, let resolution, let deficit = resolution.deficits[item] {
      guard count(part(of: resolution.cells[deficit]), owed) else { return out(item) }
    }
    for index in hold.parts.indices where hold.parts[index].item == item {
      switch hold.parts[index].window.tally {
      case .units:
        hold.parts[index].left -= within
        guard count(hold.parts[index], charged[item], held: -within) else { return out(item) }
      case .overage:
        hold.parts[index].left -= uncovered
        guard count(hold.parts[index], overage, held: -uncovered) else { return out(item) }
      case .inFlight, .grant, .priced, .deficit: continue
      }
    }
    if isBurnable, overage > 0 { burns.append(.init(item: item, grant: nil, amount: overage)) }
    return charge(item, overage)
  }

  /// Grants or a cap are about this item.
  private func isBurnable(_ item: Int) -> Bool {
    hold.parts.contains { part in
      switch part.window.tally {
      case .grant, .overage: part.item == item
      case .units, .inFlight, .priced, .deficit: false
      }
    }
  }

  private func heldOfGrants(_ item: Int) -> Int64 {
    hold.parts.reduce(0) { sum, part in
      if case .grant = part.window.tally, part.item == item { sum + part.left } else { sum }
    }
  }

  private func out(_ item: Int) -> Evaluator.Outcome { .amountOutOfRange(item: item) }

  private mutating func charge(_ item: Int, _ overage: Int64) -> Evaluator.Outcome? {
    for rate in hold.pricings where rate.pricing.source == item {
      let units = rate.pricing.portion == .all ? charged[item] : overage
      let part = EvaluatorHold.Part(
        item: item, level: 1, window: rate.window, period: rate.period, left: 0)
      let target = rate.pricing.target
      let before = slot(hold.key(part), rate.period.start).settled
      guard let cost = rate.pricing.price.charge(units, after: before),
        let sum = Quantity.adding(derived[target], cost)
      else { return out(target) }
      derived[target] = sum
      if actual[target] == nil { actual[target] = 0 }
      charges.append(
        (
          target,
          RateCharge(
            rate: rate.pricing.rate, from: rate.pricing.from, units: units, charge: cost)
        ))
      guard count(part, units) else { return out(item) }
    }
    return nil
  }

  // MARK: - Counters

  private func part(of cell: Cell) -> EvaluatorHold.Part {
    .init(item: cell.item, level: cell.level, window: cell.window, period: cell.period, left: 0)
  }

  private mutating func count(
    _ part: EvaluatorHold.Part, _ amount: Int64, held: Int64 = 0
  ) -> Bool {
    counted.append(
      .init(
        feature: hold.items[part.item].feature,
        cell: Cell(item: part.item, level: part.level, window: part.window, period: part.period),
        amount: amount))
    return state.move(hold.key(part), in: part.period.start, settled: amount, held: held)
  }

  /// What stands in a period of a counter, and what is forgiven there (of the running one).
  private func slot(
    _ key: CounterKey, _ start: WallTime
  ) -> (settled: Int64, held: Int64, forgiven: Int64) {
    guard let counter = state.counters[key]?.rotated(to: start) else { return (0, 0, 0) }
    if counter.start == start {
      let offset = state.offsets[key].flatMap { $0.start == start ? $0.units : nil }
      return (counter.settled, counter.held, offset ?? 0)
    }
    guard counter.previousStart == start else { return (0, 0, 0) }
    return (counter.previousSettled, counter.previousHeld, 0)
  }

  private func isHeldHere(_ key: CounterKey, _ start: WallTime) -> Bool {
    guard let counter = state.counters[key]?.rotated(to: start) else { return true }
    return counter.start == start || counter.previousStart == start
  }

  private func key(_ cell: Cell) -> CounterKey {
    CounterKey(
      subject: hold.subject.prefix(cell.level), feature: hold.items[cell.item].feature,
      window: cell.window)
  }

  /// What is not known any more leaves no room.
  private func used(_ cell: Cell) -> Int64 {
    guard isHeldHere(key(cell), cell.period.start) else { return Quantity.maximum }
    let slot = slot(key(cell), cell.period.start)
    return slot.settled - slot.forgiven + slot.held
  }

  // MARK: - What there is beyond the hold

  private func room(_ item: Int, _ resolution: Resolution) -> Int64 {
    var room = Quantity.maximum
    for limit in resolution.limits where limit.item == item && limit.enforcement == .hard {
      switch limit.rule {
      case .deny: room = 0
      case .quota(let cell, let amount): room = min(room, amount - used(resolution.cells[cell]))
      case .sliding(let index, let amount, let length):
        room = min(room, amount - slidingUsed(resolution.cells[index], length))
      case .credit(allowsOverage: false): room = min(room, credit(item, resolution))
      case .spendCap(let cell, .some(let cap)):
        room = min(room, credit(item, resolution) + max(0, cap - used(resolution.cells[cell])))
      case .rate, .concurrency, .unlimited, .credit, .spendCap: continue
      }
    }
    return max(0, room)
  }

  /// While the period runs, the share of the one before counts as for any other operation.
  private func slidingUsed(_ cell: Cell, _ length: Int64) -> Int64 {
    let (start, milliseconds) = (cell.period.start, now / 1000)
    guard let counter = state.counters[key(cell)]?.rotated(to: start), counter.start == start,
      milliseconds < start.milliseconds + length,
      counter.previousStart.milliseconds == start.milliseconds - length
    else { return used(cell) }
    return used(cell)
      + Sliding.share(
        of: counter.previousSettled + counter.previousHeld,
        Sliding.weight(elapsed: milliseconds - start.milliseconds, length: length))
  }

  private func credit(_ item: Int, _ resolution: Resolution) -> Int64 {
    let left = (resolution.draws[item] ?? []).reduce(0) { $0 + self.left($1, resolution) }
    let owed = resolution.deficits[item].map { max(0, used(resolution.cells[$0])) } ?? 0
    return max(0, left - owed)
  }

  private func left(_ draw: Draw, _ resolution: Resolution) -> Int64 {
    let cell = resolution.cells[draw.cell]
    let start = cell.period.start
    guard !draw.isVoided, isHeldHere(key(cell), start) else { return 0 }
    let slot = slot(key(cell), start)
    return max(0, draw.amount + carried(draw, resolution) - slot.settled - slot.held)
  }

  /// Of the running instance; of one that is over it is not known any more.
  private func carried(_ draw: Draw, _ resolution: Resolution) -> Int64 {
    let cell = resolution.cells[draw.cell]
    let key = key(cell)
    let stored = state.counters[key]
    if let stored, stored.start > cell.period.start { return 0 }
    if let stored, stored.start == cell.period.start {
      return slot(key, cell.period.start).forgiven
    }
    guard draw.rollover != .none, let before = draw.before else { return 0 }
    var remains = draw.amountBefore
    if let stored, stored.start == before {
      let own = slot(key, before)
      remains = max(0, draw.amountBefore + own.forgiven - own.settled - own.held)
    } else if !draw.wasWhole {
      return 0
    }
    return draw.rollover.carried(left: remains, amount: draw.amountBefore)
  }

  /// Burns what grants there are; the rest is overage. nil: out of range.
  private mutating func burn(
    _ units: Int64, _ item: Int, _ resolution: Resolution
  ) -> Int64? {
    var rest = min(units, credit(item, resolution))
    let beyond = units - rest
    for draw in resolution.draws[item] ?? [] {
      let burnt = min(rest, left(draw, resolution))
      guard burnt > 0 else { continue }
      rest -= burnt
      let cell = resolution.cells[draw.cell]
      let came = carried(draw, resolution)
      let isNew = state.counters[key(cell)].map { $0.start < cell.period.start } ?? true
      guard count(part(of: cell), burnt) else { return nil }
      if isNew {
        state.offsets[key(cell)] = CounterOffset(
          start: cell.period.start, units: came, time: WallTime(milliseconds: now / 1000))
      }
      burns.append(.init(item: item, grant: draw.grant, amount: burnt))
    }
    return beyond
  }

  // MARK: - The end

  mutating func finish(_ id: OperationID, ends: Bool, released: Bool) {
    if ends {
      state.holds[id] = hold
      state.free(id)
      hold = state.holds[id] ?? hold
      hold.state = released ? .released : .committed
    }
    state.holds[id] = hold
  }

  func births(_ id: OperationID, _ now: WallTime) -> [Evaluator.Birth] {
    hold.items.indices.compactMap { index in
      guard hold.items[index].isMetered, let used = actual[index] else { return nil }
      return Evaluator.Birth(
        id: DeltaID(operation: id, index: UInt16(index)), kind: .usage, time: now, item: index,
        actual: used, charged: charged[index], absorbed: used - charged[index],
        counted: counted.filter { $0.cell.item == index },
        charges: charges.filter { $0.target == index }.map(\.charge))
    }
  }
}
