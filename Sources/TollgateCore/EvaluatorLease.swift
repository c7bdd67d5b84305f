// Leases in the evaluator: what the scripts of leases are held against, so written from the
// words of the design (DESIGN 6):
//
//   - A lessee holds portions of an account: of counters, each in a period, and of rates. What is
//     left of a counter's portion is held in the counter; what is left of a rate's was drawn.
//   - An exchange settles what was used, gives back down to a target or is granted up to it, and
//     prolongs. What it settles is settled once by its id. What else it wants is heard only from
//     the latest of a lessee's calls.
//   - Granted is at most the room of the tightest limit ÷ twice the live lessees; nothing near the
//     edge.
//   - A lease that is not prolonged, or whose lessee decides under another configuration, comes
//     into doubt: as much stays held as may have been spent. Then it only settles until it says
//     that this is all; at a horizon, or by an operator, what stays is free.

package struct LeaseOwner: Hashable, Comparable, Sendable {
  package var account: Subject
  package var lessee: LesseeID

  package init(account: Subject, lessee: LesseeID) {
    self.account = account
    self.lessee = lessee
  }

  package static func < (a: Self, b: Self) -> Bool {
    (a.account, a.lessee) < (b.account, b.lessee)
  }
}

package struct LeaseCalls: Hashable, Sendable {
  package var ids: [OperationID] = []
  /// The latest time of those that were dropped.
  package var forgotten = WallTime(milliseconds: 0)
}

package struct EvaluatorLease: Hashable, Sendable {
  package enum Place: Hashable, Sendable {
    case counter(CounterKey)
    case rate(RateKey)
  }

  package struct Portion: Hashable, Sendable {
    package var left: Int64
    /// Of a rate from 0 to 0.
    package var period: Period
  }

  package var expires: WallTime
  package var isInDoubt: Bool
  package var ordinal: Int64
  package var portions: [Place: Portion]

  /// When something becomes of it by itself.
  package var ends: WallTime {
    expires + LeaseRules.graceMilliseconds + (isInDoubt ? LeaseRules.horizonMilliseconds : 0)
  }
}

extension Evaluator {
  package enum LeaseBound: Hashable, Sendable {
    case quota(Int64)
    case sliding(Int64, lengthMilliseconds: Int64)
    /// Of a grant's instance: what it has, less what is owed. Shown is the credit of its item.
    case grant(Int64, deficit: CounterKey, others: [CounterKey: GrantShare])
  }

  package struct GrantShare: Hashable, Sendable {
    package var start: WallTime
    package var amount: Int64

    package init(start: WallTime, amount: Int64) {
      self.start = start
      self.amount = amount
    }
  }

  package struct LeaseTerm: Hashable, Sendable {
    package enum Of: Hashable, Sendable {
      /// Without bounds it is only counted.
      case counter(CounterKey, Period, [LeaseBound])
      case rate(RateKey, interval: Int64, tolerance: Int64)
    }

    package var of: Of
    package var settle: Int64
    package var target: Int64?

    package init(of: Of, settle: Int64, target: Int64?) {
      self.of = of
      self.settle = settle
      self.target = target
    }
  }

  package struct LeaseRequest: Hashable, Sendable {
    package var account: Subject
    package var versions: Versions
    package var ordinal: Int64
    package var isWhole: Bool
    package var terms: [LeaseTerm]

    package init(
      account: Subject, versions: Versions, ordinal: Int64, isWhole: Bool, terms: [LeaseTerm]
    ) {
      self.account = account
      self.versions = versions
      self.ordinal = ordinal
      self.isWhole = isWhole
      self.terms = terms
    }
  }

  package struct LeaseState: Hashable, Sendable {
    package struct Portion: Hashable, Sendable {
      package var left: Int64
      package var settled: Int64
      package var held: Int64

      package init(left: Int64, settled: Int64, held: Int64) {
        self.left = left
        self.settled = settled
        self.held = held
      }
    }

    package var isStale: Bool
    package var expires: WallTime?
    package var portions: [Portion]

    package init(isStale: Bool, expires: WallTime?, portions: [Portion]) {
      self.isStale = isStale
      self.expires = expires
      self.portions = portions
    }
  }

  package enum Exchange: Hashable, Sendable {
    case answered([LeaseState], now: WallTime, isReplay: Bool)
    case tooOld
    case fromFuture
    case outOfRange(account: Int, portion: Int)
  }

  package mutating func exchange(
    _ lessee: LesseeID, id: OperationID, timeToLive: Int64, isCrowded: Bool = false,
    _ requests: [LeaseRequest], nowMicroseconds: Int64
  ) -> Exchange {
    let micros = max(nowMicroseconds, state.latest)
    let now = WallTime(milliseconds: micros / 1000)
    var calls = state.leaseCalls[lessee] ?? LeaseCalls()
    if now - id.time > LeaseRules.callWindowMilliseconds { return .tooOld }
    if id.time - now > settings.futureMilliseconds { return .fromFuture }
    let isReplay = calls.ids.contains(id)
    if !isReplay, state.leaseCalls[lessee] != nil, id.time <= calls.forgotten { return .tooOld }
    let before = state
    var answers: [LeaseState] = []
    var wrote = !isReplay
    for (at, request) in requests.enumerated() {
      var turn = LeaseTurn(
        state: state, lessee: lessee, request: request, micros: micros, isReplay: isReplay,
        isCrowded: isCrowded, timeToLive: timeToLive)
      if let portion = turn.run() {
        state = before
        return .outOfRange(account: at, portion: portion)
      }
      state = turn.state
      wrote = wrote || turn.applies
      answers.append(turn.answer)
    }
    if !isReplay {
      calls.ids.append(id)
      if calls.ids.count > LeaseRules.callsKept {
        calls.forgotten = max(calls.forgotten, calls.ids.removeFirst().time)
      }
      state.leaseCalls[lessee] = calls
    }
    if wrote { state.latest = micros }
    return .answered(answers, now: now, isReplay: isReplay)
  }

  /// None of a lessee's calls does anything any more: it is gone, and settled everything.
  package mutating func close(_ lessee: LesseeID, nowMicroseconds: Int64) {
    let micros = max(nowMicroseconds, state.latest)
    var calls = state.leaseCalls[lessee] ?? LeaseCalls()
    calls.forgotten = max(
      calls.forgotten, WallTime(milliseconds: micros / 1000 + settings.futureMilliseconds))
    state.leaseCalls[lessee] = calls
    state.latest = micros
  }

  /// Ends what is due, the doubts of those whom an operator released, and everything of those that
  /// are closed. How many came into doubt, how many leases are over, units that are free.
  package mutating func endLeases(
    _ account: Subject, releases: Set<LesseeID> = [], closed: Set<LesseeID> = [],
    nowMicroseconds: Int64
  ) -> (ended: Int64, released: Int64, units: Int64) {
    let micros = max(nowMicroseconds, state.latest)
    let now = WallTime(milliseconds: micros / 1000)
    var sums: (ended: Int64, released: Int64, units: Int64) = (0, 0, 0)
    for (owner, found) in state.leases where owner.account == account {
      let isOver =
        closed.contains(owner.lessee)
        || found.isInDoubt && (found.ends <= now || releases.contains(owner.lessee))
      guard isOver || found.ends <= now else { continue }
      if isOver { sums.released += 1 } else { sums.ended += 1 }
      state.latest = micros
      var lease = found
      lease.isInDoubt = true
      for (place, portion) in found.portions {
        guard case .counter(let key) = place else {
          lease.portions[place] = nil
          continue
        }
        let keeps = isOver ? 0 : LeaseRules.ceiling(left: portion.left)
        lease.portions[place]?.left = keeps
        if keeps == 0 { lease.portions[place] = nil }
        sums.units += portion.left - keeps
        state.counters[key]?.hold(keeps - portion.left, in: portion.period.start)
      }
      state.leases[owner] = lease.portions.isEmpty ? nil : lease
    }
    forgetRecall(account)
    return sums
  }

  private mutating func forgetRecall(_ account: Subject) {
    if !state.leases.keys.contains(where: { $0.account == account }) {
      state.recalled[account] = nil
    }
  }

  /// What others, the asker and those in doubt hold of each.
  package mutating func recall(
    _ account: Subject, by asker: LesseeID, _ wanted: [EvaluatorLease.Place], nowMicroseconds: Int64
  ) -> [[Int64]] {
    let micros = max(nowMicroseconds, state.latest)
    let now = WallTime(milliseconds: micros / 1000)
    let sums = wanted.map { place in
      var sum: [Int64] = [0, 0, 0]
      for (owner, lease) in state.leases where owner.account == account {
        let at = owner.lessee == asker ? 1 : lease.isInDoubt ? 2 : 0
        sum[at] += lease.portions[place]?.left ?? 0
      }
      return sum
    }
    let isMarked = state.recalled[account].map { now < $0 } ?? false
    if !isMarked, sums.contains(where: { $0[0] > 0 }) {
      state.recalled[account] = now + LeaseRules.recallMilliseconds
      state.latest = micros
    }
    return sums
  }
}

/// One account's part of an exchange.
private struct LeaseTurn {
  var state: EvaluatorState
  let owner: LeaseOwner
  let request: Evaluator.LeaseRequest
  let micros: Int64
  let isReplay: Bool
  let timeToLive: Int64
  let isStale: Bool
  /// What is wanted is heard.
  let applies: Bool
  private let grants: Bool
  private let lessees: Int64
  private var portions: [EvaluatorLease.Place: EvaluatorLease.Portion]
  /// Brought to the periods that were asked about; stored where they change.
  private var counters: [CounterKey: CounterValue] = [:]
  private var changed: Set<CounterKey> = []
  private(set) var answer = Evaluator.LeaseState(isStale: false, expires: nil, portions: [])

  private var now: WallTime { WallTime(milliseconds: micros / 1000) }

  init(
    state: EvaluatorState, lessee: LesseeID, request: Evaluator.LeaseRequest, micros: Int64,
    isReplay: Bool, isCrowded: Bool, timeToLive: Int64
  ) {
    self.state = state
    self.request = request
    self.micros = micros
    self.isReplay = isReplay
    self.timeToLive = timeToLive
    let account = request.account
    owner = LeaseOwner(account: account, lessee: lessee)
    isStale =
      request.versions
      != Evaluator.Versions(
        global: state.globalVersion, account: state.accountVersions[account] ?? 0)
    let lease = state.leases[owner]
    applies =
      lease.map { request.ordinal > $0.ordinal && (!$0.isInDoubt || request.isWhole) } ?? !isReplay
    portions = lease?.portions ?? [:]
    let others = state.leases.count {
      $0.key.account == account && $0.key.lessee != lessee && !$0.value.isInDoubt
    }
    lessees = Int64(others) + 1
    let isRecalled = state.recalled[account].map { micros / 1000 < $0.milliseconds } ?? false
    grants = applies && !isStale && !isCrowded && !isRecalled
  }

  /// The portion whose counter would leave the quantity range, if any.
  mutating func run() -> Int? {
    for (at, term) in request.terms.enumerated() {
      switch term.of {
      case .counter(let key, let period, let bounds):
        guard counter(term, key, period, bounds) else { return at }
      case .rate(let key, let interval, let tolerance):
        rate(term, key, interval: interval, tolerance: tolerance)
      }
    }
    for key in changed { state.counters[key] = counters[key] }
    finish()
    return nil
  }

  private mutating func finish() {
    answer.isStale = isStale
    let found = state.leases[owner]
    var lease: EvaluatorLease?
    if !portions.isEmpty {
      var next =
        found ?? EvaluatorLease(expires: now, isInDoubt: false, ordinal: 0, portions: [:])
      next.portions = portions
      if applies {
        next.isInDoubt = isStale
        next.expires = isStale ? now : now + timeToLive
      }
      if applies || !isReplay { next.ordinal = max(next.ordinal, request.ordinal) }
      lease = next
    }
    state.leases[owner] = lease
    if let lease, !lease.isInDoubt { answer.expires = lease.expires }
    if found != nil, lease == nil,
      !state.leases.keys.contains(where: { $0.account == owner.account })
    {
      state.recalled[owner.account] = nil
    }
  }

  /// What is left after settling and giving back; what was settled from it and given back.
  private func reduced(_ left: Int64, _ term: Evaluator.LeaseTerm) -> (
    left: Int64, spent: Int64, freed: Int64
  ) {
    let spent = isReplay ? 0 : min(max(term.settle, 0), left)
    let rest = left - spent
    guard applies else { return (rest, spent, 0) }
    var keeps = min(rest, term.target ?? rest)
    if isStale {
      keeps = LeaseRules.ceiling(left: rest)
      if let target = term.target { keeps = min(keeps, LeaseRules.ceiling(left: target)) }
      if request.isWhole { keeps = 0 }
    }
    return (keeps, spent, rest - keeps)
  }

  private func granted(_ room: Int64, _ wanted: Int64) -> Int64 {
    room < 2 * lessees + 2 ? 0 : min(wanted, room / (2 * lessees))
  }

  /// False: it would leave the quantity range.
  private mutating func counter(
    _ term: Evaluator.LeaseTerm, _ key: CounterKey, _ period: Period,
    _ bounds: [Evaluator.LeaseBound]
  ) -> Bool {
    var value = counters[key] ?? state.counters[key] ?? CounterValue(start: .init(milliseconds: 0))
    defer { counters[key] = value }
    let place = EvaluatorLease.Place.counter(key)
    var stored = portions[place]
    var isOurs = !bounds.isEmpty
    if let other = stored, other.period.start != period.start {
      if other.period.start < period.start, applies {
        // That period is over: nobody can use what was left of it.
        if value.hold(-other.left, in: other.period.start) { changed.insert(key) }
        stored = nil
        portions[place] = nil
      } else {
        isOurs = false
      }
    }
    let isThere = value.makePlace(for: period, key.window, at: now)
    let before = isOurs ? stored?.left ?? 0 : 0
    var (left, spent, freed) = isOurs ? reduced(before, term) : (0, 0, 0)
    let settles = isReplay ? 0 : term.settle
    if isThere, settles != 0 || spent + freed > 0 {
      guard value.settle(settles, in: period.start) else { return false }
      value.hold(-spent - freed, in: period.start)
      changed.insert(key)
      // What came over into a grant's instance is not forgiven.
      if settles < 0, value.start == period.start, !bounds.contains(where: \.isGrant) {
        clamp(key, value)
      }
    }
    let offset = state.offsets[key].flatMap { $0.start == value.start ? $0.units : nil } ?? 0
    if isOurs, grants, let target = term.target, target > left, period.contains(now),
      value.start == period.start
    {
      let free = bounds.map { bound -> Int64 in
        let used = value.settled - offset + value.held
        switch bound {
        case .grant(let amount, let deficit, _): return amount - used - owed(deficit)
        case .quota(let amount): return amount - used
        case .sliding(let amount, let length):
          let isBefore = value.previousStart.milliseconds == period.start.milliseconds - length
          let weight = Sliding.weight(elapsed: now - period.start, length: length)
          return amount - used
            - (isBefore
              ? Sliding.share(of: value.previousSettled + value.previousHeld, weight) : 0)
        }
      }
      let grant = granted(free.min() ?? 0, target - left)
      if grant > 0 {
        left += grant
        value.hold(grant, in: period.start)
        changed.insert(key)
      }
    }
    if isOurs {
      portions[place] = left > 0 ? EvaluatorLease.Portion(left: left, period: period) : nil
    }
    let isCurrent = value.start == period.start
    var shown = Evaluator.LeaseState.Portion(
      left: left,
      settled: !isThere ? 0 : isCurrent ? value.settled - offset : value.previousSettled,
      held: !isThere ? 0 : isCurrent ? value.held : value.previousHeld)
    if isThere { showCredit(bounds, in: &shown) }
    answer.portions.append(shown)
    return true
  }

  private func reading(_ key: CounterKey) -> (value: CounterValue, offset: Int64) {
    let value = counters[key] ?? state.counters[key] ?? CounterValue(start: .init(milliseconds: 0))
    return (value, state.offsets[key].flatMap { $0.start == value.start ? $0.units : nil } ?? 0)
  }

  private func owed(_ deficit: CounterKey) -> Int64 {
    let (value, offset) = reading(deficit)
    return max(0, value.settled - offset + value.held)
  }

  /// All amounts less settled and held are what grants have beyond what is owed.
  private func showCredit(
    _ bounds: [Evaluator.LeaseBound], in shown: inout Evaluator.LeaseState.Portion
  ) {
    for case .grant(let amount, let deficit, let others) in bounds {
      var sum = amount
      var left = max(0, amount - shown.settled - shown.held) - owed(deficit)
      for (key, share) in others {
        sum += share.amount
        let (value, offset) = reading(key)
        if value.start == share.start {
          shown.held += value.held
          left += max(0, share.amount + offset - value.settled - value.held)
        } else {
          left += share.amount
        }
      }
      shown.settled = sum - left - shown.held
    }
  }

  /// Nothing can be forgiven that was not counted.
  private mutating func clamp(_ key: CounterKey, _ value: CounterValue) {
    guard let offset = state.offsets[key], offset.start == value.start, offset.units > 0 else {
      return
    }
    state.offsets[key]?.units = min(offset.units, max(0, value.settled))
  }

  private mutating func rate(
    _ term: Evaluator.LeaseTerm, _ key: RateKey, interval: Int64, tolerance: Int64
  ) {
    let place = EvaluatorLease.Place.rate(key)
    var (left, _, freed) = reduced(portions[place]?.left ?? 0, term)
    var arrival = state.arrivals[key] ?? micros
    if freed > 0 {
      arrival -= freed * interval
      state.arrivals[key] = arrival
    }
    if grants, let target = term.target, target > left {
      let room = (tolerance - max(0, arrival - micros)) / interval
      let grant = tolerance < max(0, arrival - micros) ? 0 : granted(room, target - left)
      if grant > 0 {
        left += grant
        arrival = max(arrival, micros) + grant * interval
        state.arrivals[key] = arrival
      }
    }
    let none = Period(start: WallTime(milliseconds: 0), end: WallTime(milliseconds: 0))
    portions[place] = left > 0 ? EvaluatorLease.Portion(left: left, period: none) : nil
    answer.portions.append(
      .init(left: left, settled: (max(arrival, micros) + 999) / 1000, held: 0))
  }
}

extension CounterValue {
  /// False: the period is not held here any more.
  @discardableResult
  fileprivate mutating func hold(_ change: Int64, in start: WallTime) -> Bool {
    if start == self.start {
      held += change
    } else if start == previousStart {
      previousHeld += change
    } else {
      return false
    }
    return true
  }

  /// False: it would leave the quantity range.
  fileprivate mutating func settle(_ change: Int64, in start: WallTime) -> Bool {
    let isCurrent = start == self.start
    guard let sum = Quantity.adding(isCurrent ? settled : previousSettled, change) else {
      return false
    }
    if isCurrent { settled = sum } else { previousSettled = sum }
    return true
  }

  /// Whether the period is held here: the one that runs, the one before, or one that comes to be
  /// held now, which is so until a day after the last limit looks at it.
  fileprivate mutating func makePlace(
    for period: Period, _ window: Window, at now: WallTime
  ) -> Bool {
    if start == period.start { return true }
    if previousStart == period.start, period.start < start { return true }
    var seen = period.end
    if case .seconds = window.span { seen = seen + (period.end - period.start) }
    guard seen.milliseconds > Quantity.maximum - 86_400_000 || now < seen + 86_400_000 else {
      return false
    }
    if start < period.start {
      self = rotated(to: period.start)
      return true
    }
    guard previousStart < period.start else { return false }
    previousStart = period.start
    previousSettled = 0
    previousHeld = 0
    return true
  }
}

extension Evaluator.LeaseBound {
  fileprivate var isGrant: Bool { if case .grant = self { true } else { false } }
}
