// Records that must reach a sidecar however long it takes: operations let through by policy (POST),
// operations to take back (CANCEL), and what was used of reservations (SETTLE). One frame at a
// time, oldest first, until each record is acknowledged or finally refused. Repeating is harmless:
// the id makes the effect happen once.
//
// Promise: a record that was taken in leaves only by an acknowledgement or a final refusal.

internal import DequeModule
internal import TollgateCore

struct Backlog<Record: OwedRecord> {
  private enum Phase: Hashable {
    case idle
    case resting(until: MonotonicTime)
    case sent(number: UInt64, until: MonotonicTime)
  }

  private struct Entry {
    var record: Record
    var sends = 0
  }

  let capacity: Int
  private var entries: [OperationID: Entry] = [:]
  /// Ids to send, oldest first. May name entries that are gone already.
  private var order: Deque<OperationID> = []
  private var phase = Phase.idle
  private var failures = 0

  init(capacity: Int) { self.capacity = max(1, capacity) }

  var count: Int { entries.count }
  var isEmpty: Bool { entries.isEmpty }
  var hasRoom: Bool { entries.count < capacity }

  /// In no particular order but by id, which is by time.
  var records: [Record] {
    entries.values.map(\.record).sorted { $0.id < $1.id }
  }

  func record(_ id: OperationID) -> Record? { entries[id]?.record }

  var wake: MonotonicTime? {
    switch phase {
    case .idle: nil
    case .resting(let until), .sent(_, let until): until
    }
  }

  /// False where the id is known already.
  @discardableResult
  mutating func add(_ record: Record) -> Bool {
    guard entries[record.id] == nil else { return false }
    entries[record.id] = Entry(record: record)
    order.append(record.id)
    return true
  }

  /// The records of the next frame; empty where none is due. `number` names this sending.
  mutating func nextFrame(
    number: UInt64, recordsMax: Int, bytesMax: Int, now: MonotonicTime, timeout: Int64
  ) -> (records: [Record], resent: Int) {
    switch phase {
    case .sent: return ([], 0)
    case .resting(let until): if until > now { return ([], 0) }
    case .idle: break
    }
    phase = .idle
    var frame: [Record] = []
    var bytes = 0
    var resent = 0
    while frame.count < recordsMax, let id = order.first {
      guard var entry = entries[id] else {
        order.removeFirst()
        continue
      }
      bytes += entry.record.frameBytes
      if bytes > bytesMax, !frame.isEmpty { break }
      order.removeFirst()
      if entry.sends > 0 { resent += 1 }
      entry.sends += 1
      entries[id] = entry
      frame.append(entry.record)
    }
    if !frame.isEmpty { phase = .sent(number: number, until: now + timeout) }
    return (frame, resent)
  }

  /// An answer to one record; nil where it is not waited for any more. Several sendings may be
  /// answered: the first that settles a record does.
  mutating func settle(
    _ id: OperationID, _ acknowledgement: Acknowledgement
  ) -> Record? {
    switch acknowledgement {
    case .done, .refused: return entries.removeValue(forKey: id)?.record
    case .later: return nil
    }
  }

  /// A whole sending was dealt with: what is left of it goes back in line, and where something is,
  /// or the sending failed as a whole, there is a pause.
  mutating func finished(
    number: UInt64, ids: [OperationID], failed: Bool, now: MonotonicTime, pause: Pause,
    using random: inout Jitter
  ) {
    guard case .sent(number, _) = phase else { return }
    var left = false
    for id in ids.reversed() where entries[id] != nil {
      order.prepend(id)
      left = true
    }
    if left || failed {
      phase = .resting(until: now + pause.length(attempt: failures, using: &random))
      failures = min(failures + 1, 62)
    } else {
      phase = .idle
      failures = 0
    }
  }

  /// The pause is over, or the sending got no answer in time: the records may be sent (again).
  mutating func wake(_ now: MonotonicTime) {
    switch phase {
    case .idle: break
    case .resting(let until): if until <= now { phase = .idle }
    case .sent(let number, let until): if until <= now { lost(number: number) }
    }
  }

  /// The sending will not be answered: its records go back in line at once.
  mutating func lost(number: UInt64) {
    guard case .sent(number, _) = phase else { return }
    phase = .idle
    let queued = Set(order)
    for record in records.reversed() where !queued.contains(record.id) {
      order.prepend(record.id)
    }
  }

  /// It was answered on another way.
  mutating func remove(_ id: OperationID) { entries[id] = nil }
}
