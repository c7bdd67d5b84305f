// The state that the evaluator works on: one bucket's counters, offsets, arrival times and
// operation records, as plain values that a test can compare with what Redis holds.

/// A counter's identity. Two limits over the same window of one feature share it.
package struct CounterKey: Hashable, Comparable, Sendable, CustomStringConvertible {
  package var subject: Subject
  package var feature: Name
  package var window: Window

  package init(subject: Subject, feature: Name, window: Window) {
    self.subject = subject
    self.feature = feature
    self.window = window
  }

  package var description: String { "\(subject) \(feature)|\(window.code)" }

  package static func < (a: Self, b: Self) -> Bool {
    (a.subject, a.feature, a.window.code) < (b.subject, b.feature, b.window.code)
  }
}

/// One counter: the current period and the one before it, as the field in Redis has them. It
/// rotates when something is written in a later period, never by itself.
package struct CounterValue: Hashable, Sendable {
  package var start: WallTime
  package var settled: Int64
  package var held: Int64
  package var previousStart: WallTime
  package var previousSettled: Int64
  package var previousHeld: Int64

  package init(
    start: WallTime, settled: Int64 = 0, held: Int64 = 0,
    previousStart: WallTime = WallTime(milliseconds: 0), previousSettled: Int64 = 0,
    previousHeld: Int64 = 0
  ) {
    self.start = start
    self.settled = settled
    self.held = held
    self.previousStart = previousStart
    self.previousSettled = previousSettled
    self.previousHeld = previousHeld
  }

  /// This counter as it stands in a period that starts at `start`.
  package func rotated(to start: WallTime) -> CounterValue {
    guard start > self.start else { return self }
    return CounterValue(
      start: start, previousStart: self.start, previousSettled: settled, previousHeld: held)
  }

  /// Adds to the period that starts at `start`; to neither where both have gone by.
  package mutating func add(_ change: Int64, in start: WallTime) {
    if start == self.start {
      settled += change
    } else if start == previousStart {
      previousSettled += change
    }
  }

  /// The same, where the sum is a quantity: false, and nothing added, where it is none.
  package mutating func add(exactly change: Int64, in start: WallTime) -> Bool {
    if start == self.start {
      guard let sum = Quantity.adding(settled, change) else { return false }
      settled = sum
    } else if start == previousStart {
      guard let sum = Quantity.adding(previousSettled, change) else { return false }
      previousSettled = sum
    }
    return true
  }
}

/// Units that an operator forgave in one period: limits see settled − units, the bill does not.
package struct CounterOffset: Hashable, Sendable {
  package var start: WallTime
  package var units: Int64
  /// When: an operation decided by then was forgiven too.
  package var time: WallTime

  package init(start: WallTime, units: Int64, time: WallTime) {
    self.start = start
    self.units = units
    self.time = time
  }
}

/// The state of one rate limit for one subject.
package struct RateKey: Hashable, Comparable, Sendable, CustomStringConvertible {
  package var subject: Subject
  package var feature: Name
  package var limit: Name

  package init(subject: Subject, feature: Name, limit: Name) {
    self.subject = subject
    self.feature = feature
    self.limit = limit
  }

  package var description: String { "\(subject) \(feature)~\(limit)" }

  package static func < (a: Self, b: Self) -> Bool {
    (a.subject, a.feature, a.limit) < (b.subject, b.feature, b.limit)
  }
}

/// What is remembered of an operation: enough to answer a retry and to take the effect back.
package struct EvaluatorRecord: Hashable, Sendable {
  package enum Effect: Hashable, Sendable {
    /// A denial, or the tombstone of an operation that never came.
    case none
    /// Units were added.
    case applied
    /// They were added and taken back.
    case annulled
  }

  /// What was added to one counter.
  package struct Counted: Hashable, Sendable {
    package var feature: Name
    package var cell: Cell
    package var amount: Int64
  }

  /// nil: a tombstone, made by a cancel that came before the operation.
  package var subject: Subject?
  package var items: [Item]
  package var decision: Decision
  package var effect: Effect
  package var counted: [Counted] = []
  /// What became of each item, those included that others were charged to; nil: not metered.
  package var billed: [Int64?] = []
}

package struct EvaluatorState: Hashable, Sendable {
  package var counters: [CounterKey: CounterValue] = [:]
  package var offsets: [CounterKey: CounterOffset] = [:]
  /// Theoretical arrival times in microseconds since 1970.
  package var arrivals: [RateKey: Int64] = [:]
  package var records: [OperationID: EvaluatorRecord] = [:]
  package var holds: [OperationID: EvaluatorHold] = [:]
  package var leases: [LeaseOwner: EvaluatorLease] = [:]
  /// The latest calls of a lessee.
  package var leaseCalls: [LesseeID: LeaseCalls] = [:]
  /// Until when nothing is granted of an account.
  package var recalled: [Subject: WallTime] = [:]
  /// Deltas whose counter effect was taken back after the ledger answered DUPLICATE.
  package var reversed: Set<DeltaID> = []
  package var globalVersion: Int64 = 0
  /// Absent: 0.
  package var accountVersions: [Subject: Int64] = [:]
  /// The latest time seen, in microseconds: time never runs backwards.
  package var latest: Int64 = 0

  package init() {}

  /// The counter as a limit sees it at the start of `period`, and the units forgiven in it.
  package func reading(_ key: CounterKey, in start: WallTime) -> (
    counter: CounterValue, offset: Int64
  ) {
    let counter = (counters[key] ?? CounterValue(start: start)).rotated(to: start)
    guard let offset = offsets[key], offset.start == counter.start else { return (counter, 0) }
    return (counter, offset.units)
  }
}
