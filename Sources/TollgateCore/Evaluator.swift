// The pure evaluator: what a decision is, written for reading. It is the oracle for the scripts
// (DESIGN 10): the same operations are put to both, and answers and counters must agree. It is
// deterministic, has no clock and knows nothing of Redis: no fence, no epoch, no outbox ceiling.
//
// Where the design's text leaves a choice, this is what was chosen; the scripts do the same:
//   - The age of an id is judged before its record is looked up, so that an answer does not depend
//     on when an old record is swept: older than the window → too old, even if still recorded.
//   - A time exactly at `notAfter` is still in time.
//   - Among limits of one reason the smaller remaining *before* the decision binds; a `deny` rule
//     counts as remaining 0; then the first in order.
//   - A would-deny rate moves no arrival time, whether it is shadow or soft. `post` moves none.
//   - `post` on a recorded denial applies: the units were let through elsewhere. After a cancel it
//     replays CANCELLED: the caller said that the operation has no effect.
//   - A metered item of amount 0 bears a delta like any other: an explicit zero is a statement.
//   - `settled` in an answer is what limits see: settled − forgiven.
//   - A counter that would leave the quantity range is an error and nothing changes.
//   - `retryAfter` is that of the binding limit.

package struct Evaluator: Hashable, Sendable {
  package struct Settings: Hashable, Sendable {
    /// How long an operation id is remembered, by the id's own time.
    package var windowMilliseconds: Int64
    /// How far an id's time may lie ahead.
    package var futureMilliseconds: Int64

    package init(windowMilliseconds: Int64 = 86_400_000, futureMilliseconds: Int64 = 60_000) {
      self.windowMilliseconds = windowMilliseconds
      self.futureMilliseconds = futureMilliseconds
    }
  }

  package enum Mode: Hashable, Sendable, CaseIterable {
    /// Asks; changes nothing.
    case check
    case consume
    /// Records what was let through elsewhere: no limit is asked.
    case post
  }

  package struct Request: Hashable, Sendable {
    package var id: OperationID
    package var subject: Subject
    package var items: [Item]
    /// The answer is worth nothing after this instant of Redis time.
    package var notAfter: WallTime?

    package init(id: OperationID, subject: Subject, items: [Item], notAfter: WallTime? = nil) {
      self.id = id
      self.subject = subject
      self.items = items
      self.notAfter = notAfter
    }
  }

  package struct Versions: Hashable, Sendable {
    package var global: Int64
    package var account: Int64

    package init(global: Int64, account: Int64) {
      self.global = global
      self.account = account
    }
  }

  /// A delta as it is born; where it lies in the stream is not the evaluator's business.
  package struct Birth: Hashable, Sendable {
    package var id: DeltaID
    package var kind: DeltaKind
    package var time: WallTime
    package var item: Int
    package var actual: Int64
    package var charged: Int64
    package var absorbed: Int64
    /// What was added where, and what rates made of the units.
    package var counted: [EvaluatorRecord.Counted]
    package var charges: [RateCharge]

    package init(
      id: DeltaID, kind: DeltaKind, time: WallTime, item: Int, actual: Int64, charged: Int64,
      absorbed: Int64, counted: [EvaluatorRecord.Counted] = [], charges: [RateCharge] = []
    ) {
      self.id = id
      self.kind = kind
      self.time = time
      self.item = item
      self.actual = actual
      self.charged = charged
      self.absorbed = absorbed
      self.counted = counted
      self.charges = charges
    }
  }

  /// What a reservation is made with.
  package struct Terms: Hashable, Sendable {
    package var ttlMilliseconds: Int64
    package var overrun: OverrunPolicy
    package var holdsMax: Int

    package init(ttlMilliseconds: Int64, overrun: OverrunPolicy, holdsMax: Int) {
      self.ttlMilliseconds = ttlMilliseconds
      self.overrun = overrun
      self.holdsMax = holdsMax
    }
  }

  package enum Outcome: Hashable, Sendable {
    case decided(Decision, [Birth])
    /// The id was used for another body; the field that differs: `subject`, `items`, `amounts`.
    case mismatch(field: String)
    case idTooOld
    case idFromFuture
    /// `notAfter` has passed; nothing was written.
    case expired(now: WallTime)
    /// The caller decided on an old configuration; these are the current versions.
    case stale(Versions)
    /// A cell's period does not hold the current instant: resolve again at `now`.
    case periodPassed(now: WallTime)
    /// Adding this item would leave the quantity range.
    case amountOutOfRange(item: Int)
    /// Reservations of the account are over time (`expire`).
    case holdsDue
    /// More was used than is held, or it comes late: resolve these features at that instant.
    case planWanted(created: WallTime, features: [Name])
    case notHeld(HoldRefusal)
  }

  package var settings: Settings
  package var state = EvaluatorState()

  package init(settings: Settings = Settings()) { self.settings = settings }

  /// `now` in microseconds since 1970, as Redis `TIME` has it. With `terms` a consume is a reserve.
  package mutating func decide(
    _ request: Request, resolution: Resolution, versions: Versions, nowMicroseconds: Int64,
    mode: Mode, terms: Terms? = nil
  ) -> Outcome {
    let micros = max(nowMicroseconds, state.latest)
    let now = WallTime(milliseconds: micros / 1000)
    if mode != .check, let early = recorded(request, now: now, mode: mode) { return early }
    if let notAfter = request.notAfter, now > notAfter { return .expired(now: now) }
    let current = Versions(
      global: state.globalVersion, account: state.accountVersions[request.subject.account] ?? 0)
    guard versions == current else { return .stale(current) }
    if resolution.isRich, !due(request.subject.account, at: now).isEmpty { return .holdsDue }
    for cell in resolution.cells where !cell.period.contains(now) {
      return .periodPassed(now: now)
    }

    let view = View(
      state: state, request: request, resolution: resolution, now: micros, isHold: terms != nil,
      isPost: mode == .post)
    var verdict = mode == .post ? view.posted() : view.verdict()
    if let terms, verdict.reason.isAllowed,
      live(request.subject.account).count >= terms.holdsMax
    {
      verdict = Verdict(reason: .holdsExceeded)
    }
    var births: [Birth] = []
    if verdict.reason.isAllowed, let terms {
      if let item = hold(request, resolution, view, now: now, terms) {
        return .amountOutOfRange(item: item)
      }
    } else if verdict.reason.isAllowed, mode != .check {
      switch apply(request, resolution, view, now: now, rates: mode == .consume) {
      case .failure(let item): return .amountOutOfRange(item: item)
      case .success(let born): births = born
      }
    }
    let after = View(state: state, request: request, resolution: resolution, now: micros)
    let decision = Decision(
      reason: verdict.reason, source: .redis, binding: verdict.limit?.id,
      bindingItem: verdict.limit?.item, retryAfter: verdict.retryAfter, time: now,
      globalVersion: current.global, accountVersion: current.account,
      items: resolution.items.indices.map { after.itemState($0) },
      expires: terms.flatMap { verdict.reason.isAllowed ? now + $0.ttlMilliseconds : nil },
      burns: verdict.reason.isAllowed ? view.burns : [],
      derived: resolution.items.dropFirst(request.items.count).map(\.feature))
    // A refusal that is not about what was asked passes by itself: the same id may come again.
    if mode != .check, verdict.reason != .unknownAccount, verdict.reason != .holdsExceeded,
      mode != .post || verdict.reason.isAllowed
    {
      state.latest = micros
      state.records[request.id] = EvaluatorRecord(
        subject: request.subject, items: request.items, decision: decision,
        effect: verdict.reason.isAllowed ? .applied : .none,
        counted: terms == nil ? view.counted : [], billed: terms == nil ? view.billed : [])
    }
    return .decided(decision, births)
  }

  /// What is answered from the id alone; nil: decide.
  func recorded(_ request: Request, now: WallTime, mode: Mode) -> Outcome? {
    if let refusal = judgeAge(of: request.id, now: now) { return refusal }
    guard let record = state.records[request.id] else { return nil }
    if let subject = record.subject {
      if subject != request.subject { return .mismatch(field: "subject") }
      if record.items.map(\.feature) != request.items.map(\.feature) {
        return .mismatch(field: "items")
      }
      if record.items != request.items { return .mismatch(field: "amounts") }
    }
    if mode == .post, record.effect == .none, record.decision.reason != .cancelled { return nil }
    var decision = record.decision
    decision.replayed = true
    return .decided(decision, [])
  }

  private func judgeAge(of id: OperationID, now: WallTime) -> Outcome? {
    let age = now - id.time
    if age > settings.windowMilliseconds { return .idTooOld }
    if age < -settings.futureMilliseconds { return .idFromFuture }
    return nil
  }

  private enum Applied {
    case success([Birth])
    case failure(item: Int)
  }

  private mutating func apply(
    _ request: Request, _ resolution: Resolution, _ view: View, now: WallTime, rates: Bool
  ) -> Applied {
    var next = state
    if let item = view.measure.overflow { return .failure(item: item) }
    for count in view.counts(view.measure) {
      let cell = resolution.cells[count.cell]
      let key = view.key(of: cell)
      var counter = state.reading(key, in: cell.period.start).counter
      guard let settled = Quantity.adding(counter.settled, count.amount) else {
        return .failure(item: cell.item)
      }
      counter.settled = settled
      next.counters[key] = counter
    }
    view.carryOver(into: &next)
    if rates {
      for limit in resolution.limits {
        if let arrival = view.nextArrival(limit), view.judge(limit).reason == nil {
          next.arrivals[view.rateKey(of: limit)] = arrival
        }
      }
    }
    state = next
    return .success(
      resolution.items.indices.compactMap { index in
        guard resolution.metered[index] else { return nil }
        let amount = view.measure.amounts[index]
        return Birth(
          id: DeltaID(operation: request.id, index: UInt16(index)), kind: .usage, time: now,
          item: index, actual: amount, charged: amount, absorbed: 0,
          counted: view.counted.filter { $0.cell.item == index },
          charges: view.measure.charges(to: index))
      })
  }
}

// MARK: - After the decision

extension Evaluator {
  package enum Cancellation: Hashable, Sendable {
    /// The operation has no effect now, and never will have one.
    case cancelled([Birth])
    case idTooOld
    case idFromFuture
    /// Taking it back would leave the quantity range; nothing was written.
    case amountOutOfRange(item: Int)
  }

  /// Annuls an operation of unknown outcome by its id. Doing it again changes nothing.
  package mutating func cancel(
    _ id: OperationID, nowMicroseconds: Int64
  ) -> Cancellation {
    let micros = max(nowMicroseconds, state.latest)
    let now = WallTime(milliseconds: micros / 1000)
    switch judgeAge(of: id, now: now) {
    case .idTooOld: return .idTooOld
    case .idFromFuture: return .idFromFuture
    default: break
    }
    guard var record = state.records[id] else {
      state.latest = micros
      state.records[id] = EvaluatorRecord(
        subject: nil, items: [], decision: Decision(reason: .cancelled, source: .redis, time: now),
        effect: .none)
      return .cancelled([])
    }
    guard record.effect == .applied, let subject = record.subject else {
      state.latest = micros
      return .cancelled([])
    }
    var changed: [(key: CounterKey, counter: CounterValue)] = []
    for counted in record.counted {
      let key = CounterKey(
        subject: subject.prefix(counted.cell.level), feature: counted.feature,
        window: counted.cell.window)
      guard var counter = state.counters[key] else { continue }
      guard counter.add(exactly: -counted.amount, in: counted.cell.period.start) else {
        return .amountOutOfRange(item: counted.cell.item)
      }
      changed.append((key, counter))
    }
    state.latest = micros
    for (key, counter) in changed { state.counters[key] = counter }
    for counted in record.counted {
      let cell = counted.cell
      // What came over into a grant's instance is no reset.
      if case .grant = cell.window.tally { continue }
      let key = CounterKey(
        subject: subject.prefix(cell.level), feature: counted.feature, window: cell.window)
      // Units that a reset had forgiven are forgiven no more: limits see what they saw.
      if let offset = state.offsets[key], offset.units != 0, offset.start == cell.period.start,
        state.counters[key]?.start == offset.start, record.decision.time <= offset.time
      {
        state.offsets[key]?.units -= counted.amount
      }
    }
    record.effect = .annulled
    record.decision.reason = .cancelled
    record.decision.binding = nil
    record.decision.bindingItem = nil
    record.decision.retryAfter = nil
    record.decision.burns = []
    state.records[id] = record
    return .cancelled(
      record.billed.enumerated().compactMap { index, amount in
        guard let amount else { return nil }
        return Birth(
          id: DeltaID(operation: id, index: DeltaID.reversalOffset + UInt16(index)),
          kind: .reversal, time: now, item: index, actual: -amount, charged: -amount, absorbed: 0)
      })
  }

  /// The ledger knew this delta already: its effect on the counters is taken back, once.
  /// False: it had been taken back before.
  @discardableResult
  package mutating func reverse(
    _ delta: DeltaID, actual: Int64, subject: Subject, feature: Name, cells: [CellReference]
  ) -> Bool {
    guard state.reversed.insert(delta).inserted else { return false }
    for cell in cells {
      let key = CounterKey(
        subject: subject.prefix(cell.level), feature: feature, window: cell.window)
      state.counters[key]?.add(-actual, in: cell.period.start)
      // Nothing can be forgiven that was not counted.
      if let offset = state.offsets[key], let counter = state.counters[key], offset.units > 0,
        offset.start == cell.period.start, counter.start == offset.start
      {
        state.offsets[key]?.units = min(offset.units, max(0, counter.settled))
      }
    }
    return true
  }

  /// An operator sets what limits see of a counter; the counter itself, which the bill is compared
  /// with, does not move. 0 is a reset.
  package mutating func setCounter(
    _ key: CounterKey, to units: Int64, calendar: AccountCalendar = .utc, nowMicroseconds: Int64
  ) {
    let micros = max(nowMicroseconds, state.latest)
    state.latest = micros
    let now = WallTime(milliseconds: micros / 1000)
    let start = calendar.period(of: key.window, containing: now).start
    let counter = state.reading(key, in: start).counter
    state.counters[key] = counter
    state.offsets[key] = CounterOffset(
      start: start, units: counter.settled - units, time: now)
  }
}
