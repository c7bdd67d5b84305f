// What must hold after every operation of the rich oracle, whatever was answered; and that Redis
// holds what the evaluator holds.

import Testing
import TollgateCore

@testable import TollgateRedis

extension RichRound {
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

  /// A hard limit that has more used and held than it allows, right after something was let in.
  func exceeded(_ resolution: Resolution, _ subject: Subject) -> Name? {
    for limit in resolution.limits where limit.enforcement == .hard {
      let cell: Cell
      let most: Int64
      switch limit.rule {
      case .quota(let index, let amount), .concurrency(let index, let amount),
        .spendCap(let index, .some(let amount)):
        (cell, most) = (resolution.cells[index], amount)
      case .deny, .rate, .sliding, .credit, .spendCap, .unlimited: continue
      }
      let key = CounterKey(
        subject: subject.prefix(cell.level), feature: resolution.items[cell.item].feature,
        window: cell.window)
      let (counter, offset) = evaluator.state.reading(key, in: cell.period.start)
      // What added nothing may stand where more was posted, owed or settled late before.
      let added = resolution.items[cell.item].amount > 0
      if added, cell.window.tally == .units, counter.settled - offset + counter.held > most {
        return limit.id
      }
    }
    return nil
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

  /// A deeper subject in which nothing is counted any more is gone, and its periods with it; one that
  /// is made anew for a hold of an older period may then hold what the evaluator turned away.
  private static func reads(_ cell: CounterCell?, like counter: CounterValue) -> Bool {
    func counted(_ now: (WallTime, [Int64]), _ before: (WallTime, [Int64])) -> [WallTime: [Int64]] {
      Dictionary([now, before]) { now, _ in now }.filter { $0.value != [0, 0] }
    }
    let expected = counted(
      (counter.start, [counter.settled, counter.held]),
      (counter.previousStart, [counter.previousSettled, counter.previousHeld]))
    guard let cell else { return expected.isEmpty }
    var stored = counted(
      (cell.start, [cell.settled, cell.held]),
      (cell.previousStart, [cell.previousSettled, cell.previousHeld]))
    let older = stored.keys.filter { expected[$0] == nil }
    for period in older { stored[period] = nil }
    return cell.forgiven == 0 && stored == expected
      && older.allSatisfy { $0 < counter.previousStart }
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
      if key.subject.depth > 1 {
        guard Self.reads(stored[key], like: counter) else {
          return "\(key): \(counter) against \(String(describing: stored[key]))"
        }
        continue
      }
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
