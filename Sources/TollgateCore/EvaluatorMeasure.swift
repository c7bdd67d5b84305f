// How much an operation adds to which counter, before anybody asks whether it may: what an item's
// units are charged to others, which grants they are burnt from, and what no grant covers.

extension Evaluator {
  /// One counter's share of an operation.
  struct Count: Hashable {
    /// Index into `Resolution.cells`.
    var cell: Int
    var amount: Int64
  }

  struct Measure {
    /// Per item of the resolution.
    var amounts: [Int64]
    /// Per item: what no grant covers, of an item that grants or caps are about.
    var overage: [Int64]
    /// Per item: posted though there was no credit for it, and none may be had on account.
    var overdrawn: [Int64]
    /// Burnt from grants, in the order of burning. With them what was owed is paid.
    var burns: [Count] = []
    var cures: [Count] = []
    /// What rates made of units, with the item that is charged.
    var charges: [(target: Int, charge: RateCharge)] = []
    /// The first item whose amount leaves the quantity range.
    var overflow: Int?

    func charges(to item: Int) -> [RateCharge] {
      charges.filter { $0.target == item }.map(\.charge)
    }
  }
}

extension Evaluator.View {
  /// The counter of a cell as it stands at the cell's period, and what is to be forgiven there.
  func reading(_ index: Int) -> (counter: CounterValue, offset: Int64) {
    let cell = resolution.cells[index]
    return state.reading(key(of: cell), in: cell.period.start)
  }

  /// What limits see.
  func used(_ index: Int) -> Int64 {
    let (counter, offset) = reading(index)
    return counter.settled - offset + counter.held
  }

  /// What came over into a grant's instance from the one before.
  func carried(_ draw: Draw) -> Int64 {
    let cell = resolution.cells[draw.cell]
    let key = key(of: cell)
    let stored = state.counters[key]
    if let stored, stored.start == cell.period.start { return reading(draw.cell).offset }
    guard draw.rollover != .none, let before = draw.before else { return 0 }
    // Nobody touched the instance before: all of it is left.
    guard let stored, stored.start == before else {
      return draw.wasWhole
        ? draw.rollover.carried(left: draw.amountBefore, amount: draw.amountBefore) : 0
    }
    let offset = state.offsets[key].map { $0.start == before ? $0.units : 0 } ?? 0
    let left = draw.amountBefore + offset - stored.settled - stored.held
    return draw.rollover.carried(left: max(0, left), amount: draw.amountBefore)
  }

  /// What a grant still has.
  func left(_ draw: Draw) -> Int64 {
    guard !draw.isVoided else { return 0 }
    let (counter, _) = reading(draw.cell)
    return max(0, draw.amount + carried(draw) - counter.settled - counter.held)
  }

  var owed: [Int: Int64] { resolution.deficits.mapValues { max(0, used($0)) } }

  /// `isHold`: charges are the most they can be, since others may come in between.
  func measure(isHold: Bool = false, isPost: Bool = false) -> Evaluator.Measure {
    let none = [Int64](repeating: 0, count: resolution.items.count)
    var measure = Evaluator.Measure(
      amounts: resolution.items.map(\.amount), overage: none, overdrawn: none)
    for item in order {
      cover(item, &measure)
      if isPost, resolution.isPrepaid(item) {
        measure.overdrawn[item] = measure.overage[item]
        measure.overage[item] = 0
      }
      for pricing in resolution.pricings where pricing.source == item {
        charge(pricing, isHold: isHold, &measure)
      }
    }
    return measure
  }

  /// What others are charged to comes after them.
  private var order: [Int] {
    let targets = Set(resolution.pricings.map(\.target))
    return resolution.items.indices.filter { !targets.contains($0) }
      + resolution.items.indices.filter { targets.contains($0) }
  }

  private func cover(_ item: Int, _ measure: inout Evaluator.Measure) {
    var rest = measure.amounts[item]
    guard let draws = resolution.draws[item] else {
      measure.overage[item] = rest
      return
    }
    var owed = owed[item] ?? 0
    for draw in draws {
      var left = left(draw)
      let cure = min(owed, left)
      if cure > 0 {
        measure.cures.append(Evaluator.Count(cell: draw.cell, amount: cure))
        owed -= cure
        left -= cure
      }
      let burnt = min(rest, left)
      if burnt > 0 {
        measure.burns.append(Evaluator.Count(cell: draw.cell, amount: burnt))
        rest -= burnt
      }
    }
    measure.overage[item] = rest
  }

  private func charge(
    _ pricing: Pricing, isHold: Bool, _ measure: inout Evaluator.Measure
  ) {
    let units =
      pricing.portion == .all ? measure.amounts[pricing.source] : measure.overage[pricing.source]
    let before = reading(pricing.cell).counter.settled
    let charge = isHold ? pricing.price.ceiling(units) : pricing.price.charge(units, after: before)
    guard let charge, let sum = Quantity.adding(measure.amounts[pricing.target], charge) else {
      measure.overflow = measure.overflow ?? pricing.target
      return
    }
    measure.amounts[pricing.target] = sum
    measure.charges.append(
      (
        pricing.target,
        RateCharge(rate: pricing.rate, from: pricing.from, units: units, charge: charge)
      ))
  }

  /// Every counter's share, in the order of the cells.
  func counts(_ measure: Evaluator.Measure) -> [Evaluator.Count] {
    var shares = [Int64?](repeating: nil, count: resolution.cells.count)
    for (index, cell) in resolution.cells.enumerated() {
      switch cell.window.tally {
      case .units: shares[index] = measure.amounts[cell.item]
      case .overage: shares[index] = measure.overage[cell.item]
      case .inFlight, .grant, .priced, .deficit: break
      }
    }
    for pricing in resolution.pricings {
      shares[pricing.cell] =
        pricing.portion == .all ? measure.amounts[pricing.source] : measure.overage[pricing.source]
    }
    for burn in measure.burns + measure.cures {
      shares[burn.cell] = (shares[burn.cell] ?? 0) + burn.amount
    }
    for cure in measure.cures {
      let item = resolution.cells[cure.cell].item
      guard let deficit = resolution.deficits[item] else { continue }
      shares[deficit] = (shares[deficit] ?? 0) - cure.amount
    }
    for (item, units) in measure.overdrawn.enumerated() where units > 0 {
      guard let deficit = resolution.deficits[item] else { continue }
      shares[deficit] = (shares[deficit] ?? 0) + units
    }
    return shares.enumerated().compactMap { index, share in
      share.map { Evaluator.Count(cell: index, amount: $0) }
    }
  }
}

extension Evaluator.View {
  /// What comes over into an instance is noted where the instance is first written.
  func carryOver(into next: inout EvaluatorState) {
    for draws in resolution.draws.values {
      for draw in draws {
        let cell = resolution.cells[draw.cell]
        let key = key(of: cell)
        guard next.counters[key]?.start == cell.period.start,
          state.counters[key]?.start != cell.period.start
        else { continue }
        next.offsets[key] = CounterOffset(
          start: cell.period.start, units: carried(draw), time: WallTime(milliseconds: now / 1000))
      }
    }
  }
}

extension Evaluator.View {
  /// What covered the units, as an answer tells it.
  var burns: [Decision.Burn] {
    measure.burns.map { count in
      let cell = resolution.cells[count.cell]
      var grant: Name?
      if case .grant(let id) = cell.window.tally { grant = id }
      return Decision.Burn(item: cell.item, grant: grant, amount: count.amount)
    }
      + resolution.items.indices.filter { resolution.draws[$0] != nil && measure.overage[$0] > 0 }
      .map { Decision.Burn(item: $0, grant: nil, amount: measure.overage[$0]) }
  }

  /// For the record: what was added where.
  var counted: [EvaluatorRecord.Counted] {
    counts(measure).map { count in
      let cell = resolution.cells[count.cell]
      return EvaluatorRecord.Counted(
        feature: resolution.items[cell.item].feature, cell: cell, amount: count.amount)
    }
  }

  var billed: [Int64?] {
    resolution.items.indices.map { resolution.metered[$0] ? measure.amounts[$0] : nil }
  }
}
