// The counters of a subject, as its hash holds them, and reading those of a whole account.

package import TollgateCore

package struct CounterCell: Hashable, Sendable {
  package var start: WallTime
  package var settled: Int64
  package var held: Int64
  /// What limits do not see of `settled`.
  package var forgiven: Int64
  package var previousStart: WallTime
  package var previousSettled: Int64
  package var previousHeld: Int64

  package init?(_ bytes: [UInt8]) {
    var reader = MessagePackReader(bytes)
    guard let start = reader.integer(), let settled = reader.integer(),
      let held = reader.integer(), let forgiven = reader.integer(),
      let previousStart = reader.integer(), let previousSettled = reader.integer(),
      let previousHeld = reader.integer()
    else { return nil }
    self.start = WallTime(milliseconds: start)
    self.settled = settled
    self.held = held
    self.forgiven = forgiven
    self.previousStart = WallTime(milliseconds: previousStart)
    self.previousSettled = previousSettled
    self.previousHeld = previousHeld
  }

  /// What was settled in the period that starts then; 0 for a period the cell does not hold.
  package func settled(start: WallTime) -> Int64 {
    start == self.start ? settled : start == previousStart ? previousSettled : 0
  }
}

package struct SubjectCounters: Hashable, Sendable {
  /// The epoch of these counters: others than the bucket's mean "empty".
  package var epoch: Int64?
  package var cells: [String: CounterCell]
  /// Rate field → theoretical arrival time, microseconds.
  package var rates: [String: Int64]

  /// From a flat field, value, … reply.
  package init(flat: [RESPReply]) {
    epoch = nil
    cells = [:]
    rates = [:]
    for index in stride(from: 0, to: flat.count - 1, by: 2) {
      guard let field = flat[index].text, let value = flat[index + 1].bytes else { continue }
      if field == "e" {
        epoch = flat[index + 1].number
      } else if field.hasPrefix("^") {
        continue  // A lease, whose lessee may be any eight bytes.
      } else if field.contains("|") {
        cells[field] = CounterCell(value)
      } else if field.contains("~") {
        rates[field] = flat[index + 1].number
      }
    }
  }

  package func cell(feature: Name, window: Window) -> CounterCell? {
    cells[KeySpace.field(feature: feature, window: window)]
  }
}

/// One moment of an account: its counters, the outbox position they stand for, and which deeper
/// subjects are live. Compared with the ledger at a cursor ≥ `position`, nothing is undelivered.
package struct ReadAccountCall: ScriptCall {
  package struct Snapshot: Hashable, Sendable {
    package var fence: FenceState
    package var acknowledged: Int64
    package var now: WallTime
    package var header: AccountHeader
    package var counters: SubjectCounters
    /// By lessee; what they hold is in the counters too.
    package var leases: [StoredLease]
    package var subjects: [Subject]
  }

  /// Deeper subjects listed at most.
  package static let subjectsMax: Int64 = 10_000

  package var keySpace: KeySpace
  package var bucket: Int
  package var account: Subject

  package init(keySpace: KeySpace, account: Subject) {
    self.keySpace = keySpace
    self.account = account.account
    bucket = keySpace.bucket(of: account)
  }

  package var script: ScriptName { .readAccount }
  package var keys: [String] {
    [
      keySpace.meta(bucket), keySpace.subject(bucket, account),
      keySpace.index(bucket, account: account),
    ]
  }
  package var arguments: [RESPArgument] { [.integer(Self.subjectsMax)] }

  package func decode(_ reply: RESPReply) -> StoreReply<Snapshot> {
    guard reply.code == .done, let now = reply[4].number, let flat = reply[5].array,
      let paths = reply[6].array
    else { return .error(reply.problem) }
    var header = AccountHeader(epoch: nil, version: nil, config: nil)
    for index in stride(from: 0, to: flat.count - 1, by: 2) {
      switch flat[index].text {
      case "e"?: header.setEpoch(flat[index + 1].text)
      case "v"?: header.version = flat[index + 1].number
      case "cfg"?: header.config = flat[index + 1].text
      default: continue
      }
    }
    return .done(
      Snapshot(
        fence: reply.fenceState, acknowledged: reply[3].number ?? 0,
        now: WallTime(milliseconds: now), header: header,
        counters: SubjectCounters(flat: flat),
        leases: StoredLease.all(flat: flat, account: account),
        subjects: paths.compactMap { $0.text.flatMap { try? Subject($0) } }))
  }
}
