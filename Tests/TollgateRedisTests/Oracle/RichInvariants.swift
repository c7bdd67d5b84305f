// What must hold after every operation of the rich oracle, whatever was answered; and that Redis
// holds what the evaluator holds.

import Testing
import TollgateCore

@testable import TollgateRedis

extension EvaluatorState {
  /// A deeper subject in which nothing is counted any more goes when what it held ends, which the
  /// evaluator does not know: a counter that is not there counts nothing.
  func mayBeGone(_ key: CounterKey) -> Bool {
    key.subject.depth > 1 && offsets[key]?.units ?? 0 == 0
      && counters[key] == CounterValue(start: WallTime(milliseconds: 0))
  }

  /// What should be in Redis of a subject and is not among what is `stored`. Counter by counter: once
  /// it is gone, the next thing counted there brings the subject back without its other counters.
  func lost(of subject: Subject, stored: Set<CounterKey>) -> [CounterKey] {
    counters.keys.filter { $0.subject == subject && !stored.contains($0) && !mayBeGone($0) }
      .sorted()
  }
}

extension RichRound {
  struct Usage {
    var limit: Name
    var most: Int64
    var used: Int64
  }

  /// Every counter's held is what the live holds hold there, nothing is below zero that cannot be.
  func invariants() -> String? {
    if let problem = grantProblem() { return problem }
    var held: [CounterKey: [WallTime: Int64]] = [:]
    for hold in evaluator.state.holds.values where hold.state == .held {
      for part in hold.parts {
        guard part.left >= 0 else { return "a hold of less than nothing: \(part)" }
        let key = CounterKey(
          subject: hold.subject.prefix(part.level), feature: hold.items[part.item].feature,
          window: part.window)
        held[key, default: [:]][part.period.start, default: 0] += part.left
      }
    }
    for (key, counter) in evaluator.state.counters {
      let now = held[key]?[counter.start] ?? 0
      let before = held[key]?[counter.previousStart] ?? 0
      guard counter.held == now else { return "\(key) holds \(counter.held), its holds \(now)" }
      if counter.previousStart.milliseconds != 0, counter.previousHeld != before {
        return "\(key) held \(counter.previousHeld) before, its holds \(before)"
      }
    }
    return nil
  }

  /// What hard limits of units, of overage and of what is in flight have used and held.
  func usage(_ resolution: Resolution, _ subject: Subject) -> [Usage] {
    resolution.limits.compactMap { limit in
      guard limit.enforcement == .hard else { return nil }
      switch limit.rule {
      case .quota(let index, let amount), .concurrency(let index, let amount),
        .spendCap(let index, .some(let amount)):
        let cell = resolution.cells[index]
        let key = CounterKey(
          subject: subject.prefix(cell.level), feature: resolution.items[cell.item].feature,
          window: cell.window)
        let (counter, offset) = evaluator.state.reading(key, in: cell.period.start)
        return Usage(limit: limit.id, most: amount, used: counter.settled - offset + counter.held)
      case .deny, .rate, .sliding, .credit, .spendCap, .unlimited: return nil
      }
    }
  }

  /// A hard limit that has more used and held than it allows. What was more before (posted, owed,
  /// settled late, or under a limit that was lowered) may stand, but is not added to.
  func exceeded(_ resolution: Resolution, _ subject: Subject, since before: [Usage]) -> Name? {
    zip(before, usage(resolution, subject)).first { before, now in
      now.used > now.most && now.used > before.used
    }?.1.limit
  }

  /// What was given = what is left + what is held + what was burnt, none of them below zero.
  private func grantProblem() -> String? {
    for (key, counter) in evaluator.state.counters {
      guard case .grant(let id) = key.window.tally,
        let grant = account.grants.first(where: { $0.id == id })
      else { continue }
      let carried = evaluator.state.offsets[key].flatMap {
        $0.start == counter.start ? $0.units : nil
      }
      let left = grant.amount + (carried ?? 0) - counter.settled - counter.held
      guard left >= 0, counter.settled >= 0, counter.held >= 0 else {
        return "\(key): of \(grant.amount) and \(carried ?? 0) carried \(counter)"
      }
    }
    return nil
  }

  /// Every counter, hold and arrival time of the evaluator is in Redis, and nothing else is.
  func compareState() throws -> String? {
    var stored: [CounterKey: CounterCell] = [:]
    for subject in Set(evaluator.state.counters.keys.map(\.subject)) {
      for (field, cell) in try rig.counters(subject.path).cells {
        let parts = field.split(separator: "|", maxSplits: 1)
        stored[
          CounterKey(
            subject: subject, feature: try Name(String(parts[0])),
            window: try #require(Window(code: parts[1])))] = cell
      }
    }
    for (key, counter) in evaluator.state.counters {
      let offset = evaluator.state.offsets[key].flatMap {
        $0.start == counter.start ? $0.units : nil
      }
      if stored[key] == nil, evaluator.state.mayBeGone(key) { continue }
      guard let cell = stored[key], cell.start == counter.start, cell.settled == counter.settled,
        cell.held == counter.held, cell.forgiven == offset ?? 0,
        cell.previousStart == counter.previousStart,
        cell.previousSettled == counter.previousSettled,
        cell.previousHeld == counter.previousHeld
      else {
        return "\(key): \(counter) offset \(offset ?? 0) against \(String(describing: stored[key]))"
      }
    }
    for key in stored.keys where evaluator.state.counters[key] == nil {
      return "\(key) is too much"
    }
    let holds = try rig.read(Reads.holds(rig.keySpace, account: subjects[0]))
    let live = evaluator.state.holds.filter { $0.value.state == .held }
    guard Set(holds.map(\.reservation)) == Set(live.keys) else {
      return "holds \(holds.map(\.reservation)) against \(live.keys)"
    }
    for hold in holds where live[hold.reservation]?.expires != hold.expires {
      return "hold \(hold)"
    }
    return nil
  }
}
