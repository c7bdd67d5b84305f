// Reservations in the evaluator: made, settled, released, extended, expired. What the scripts are
// held against, so written from the design's words:
//
//   - A hold remembers where it was counted, grants in the order of burning. Settling draws the
//     first burnt first, so what is freed goes back from the last.
//   - What a settle charges counts in the period that admitted it, as long as that is held here.
//   - Beyond the hold: `clamp` charges what every hard limit of the item still leaves; `overdraft`
//     that and up to so much more, which is owed; the rest is absorbed. `reject` is about what the
//     caller asked for itself, never about what rates made of it.
//   - Rates are applied to what is charged. A late settle is charged in full.

package enum HoldRefusal: Int64, Hashable, Sendable {
  case unknown = 0
  case committed, released, expired, otherItem, overrun
}

package struct EvaluatorHold: Hashable, Sendable {
  package struct Part: Hashable, Sendable {
    package var item: Int
    package var level: Int
    package var window: Window
    package var period: Period
    package var left: Int64
  }

  package struct Share: Hashable, Sendable {
    package var feature: Name
    package var left: Int64
    package var isMetered: Bool
    /// Charged beyond everything there was, by all of its settles.
    package var owed: Int64 = 0
  }

  package struct Charged: Hashable, Sendable {
    package var pricing: Pricing
    package var window: Window
    package var period: Period
  }

  package var state = HoldState.held
  package var subject: Subject
  package var created: WallTime
  package var expires: WallTime
  package var overrun: OverrunPolicy
  /// Those asked for, then derived ones.
  package var items: [Share]
  package var asked: Int
  package var parts: [Part]
  package var pricings: [Charged]
}

extension Evaluator {
  func live(_ account: Subject) -> [OperationID] {
    state.holds.filter { $0.value.state == .held && $0.value.subject.account == account }
      .map(\.key)
  }

  /// Grace is over too.
  package func due(_ account: Subject, at now: WallTime) -> [OperationID] {
    live(account).filter { (state.holds[$0]?.expires ?? now) + HoldBounds.grace <= now }.sorted()
  }

  /// Makes a hold of what was measured; the item that leaves the quantity range, if any.
  mutating func hold(
    _ request: Request, _ resolution: Resolution, _ view: View, now: WallTime, _ terms: Terms
  ) -> Int? {
    if let item = view.measure.overflow { return item }
    var next = state
    var parts: [EvaluatorHold.Part] = []
    func part(_ index: Int, _ amount: Int64) -> EvaluatorHold.Part {
      let cell = resolution.cells[index]
      return EvaluatorHold.Part(
        item: cell.item, level: cell.level, window: cell.window, period: cell.period, left: amount)
    }
    for burn in view.measure.burns { parts.append(part(burn.cell, burn.amount)) }
    for (index, cell) in resolution.cells.enumerated() {
      switch cell.window.tally {
      case .units, .inFlight: parts.append(part(index, view.measure.amounts[cell.item]))
      case .overage: parts.append(part(index, view.measure.overage[cell.item]))
      case .grant, .priced, .deficit: continue
      }
    }
    let features = resolution.items.map(\.feature)
    for part in parts {
      let key = CounterKey(
        subject: request.subject.prefix(part.level), feature: features[part.item],
        window: part.window)
      guard next.move(key, in: part.period.start, held: part.left) else { return part.item }
    }
    view.carryOver(into: &next)
    for limit in resolution.limits {
      if let arrival = view.nextArrival(limit), view.judge(limit).reason == nil {
        next.arrivals[view.rateKey(of: limit)] = arrival
      }
    }
    next.holds[request.id] = EvaluatorHold(
      subject: request.subject, created: now, expires: now + terms.ttlMilliseconds,
      overrun: terms.overrun,
      items: features.indices.map {
        .init(
          feature: features[$0], left: view.measure.amounts[$0],
          isMetered: resolution.metered[$0])
      },
      asked: request.items.count, parts: parts,
      pricings: resolution.pricings.map {
        let cell = resolution.cells[$0.cell]
        return .init(pricing: $0, window: cell.window, period: cell.period)
      })
    state = next
    return nil
  }

  /// What is due ends; what was used of it is charged when it becomes known.
  package mutating func expire(_ account: Subject, nowMicroseconds: Int64) {
    let micros = max(nowMicroseconds, state.latest)
    let gone = due(account, at: WallTime(milliseconds: micros / 1000))
    guard !gone.isEmpty else { return }
    state.latest = micros
    for id in gone {
      state.free(id)
      state.holds[id]?.state = .expired
    }
  }
}

extension EvaluatorState {
  /// Adds to a period of a counter, which is turned to it where it is older; to none where that
  /// period is not held any more. False: it would leave the quantity range.
  mutating func move(
    _ key: CounterKey, in start: WallTime, settled: Int64 = 0, held: Int64 = 0
  ) -> Bool {
    var counter = (counters[key] ?? CounterValue(start: start)).rotated(to: start)
    let bounds = -Quantity.maximum...Quantity.maximum
    if counter.start == start {
      counter.settled += settled
      counter.held += held
      guard bounds.contains(counter.settled), bounds.contains(counter.held) else { return false }
    } else if counter.previousStart == start {
      counter.previousSettled += settled
      counter.previousHeld += held
      guard bounds.contains(counter.previousSettled), bounds.contains(counter.previousHeld) else {
        return false
      }
    } else {
      return true
    }
    counters[key] = counter
    return true
  }

  /// Whatever a hold still holds.
  mutating func free(_ id: OperationID) {
    guard let hold = holds[id] else { return }
    for (index, part) in hold.parts.enumerated() where part.left != 0 {
      _ = move(hold.key(part), in: part.period.start, held: -part.left)
      holds[id]?.parts[index].left = 0
    }
  }
}

extension EvaluatorHold {
  func key(_ part: Part) -> CounterKey {
    CounterKey(
      subject: subject.prefix(part.level), feature: items[part.item].feature, window: part.window)
  }
}
