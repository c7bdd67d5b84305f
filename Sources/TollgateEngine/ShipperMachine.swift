// What the shipper of one bucket decides; the shell reads, sends, trims and waits. One round is
//
//   entriesRead ─▶ send ─▶ replied ─┬ posted: take duplicates back, then trim, then read on
//        │                          ├ readAgain: the ledger stands elsewhere; read after its cursor
//        └──▶ rest (nothing there)  └ rebuild: this epoch cannot be delivered as it lies
//
// The only judge of what was delivered is the ledger: its cursor is adopted where it lies behind
// (it was put back). Where it lies ahead, somebody else delivered, and may have been killed before
// the duplicates among it were taken back: those are known only from the answer to their own batch.
// So a shipper starts at the acknowledgement noted in Redis, which moves after the duplicates are
// taken back, and goes through every batch from there itself; what the ledger has it skips, and
// names the duplicates again. What Redis holds is never called a gap here, since another shipper
// may have delivered and trimmed; only the ledger answering GAP to the entries right after its own
// cursor is one.

package import TollgateCore

package struct ShipperMachine: Sendable {
  package struct Limits: Hashable, Sendable {
    /// Entries in one batch.
    package var entriesMax: Int
    /// Bytes of all entries in one batch; the shell's frame has room for its own header beside.
    package var bytesMax: Int
    /// What one entry weighs beside its body.
    package var entryBytes: Int
    /// Milliseconds between reads of an empty outbox: doubling from the first to the longest.
    package var idleFirst: Int64
    package var idleLongest: Int64

    package init(
      entriesMax: Int, bytesMax: Int, entryBytes: Int, idleFirst: Int64 = 5,
      idleLongest: Int64 = 1_000
    ) {
      self.entriesMax = entriesMax
      self.bytesMax = bytesMax
      self.entryBytes = entryBytes
      self.idleFirst = idleFirst
      self.idleLongest = idleLongest
    }
  }

  package enum Step: Hashable, Sendable {
    case send(previous: Int64, entries: [OutboxEntry])
    case rest(milliseconds: Int64)
  }

  package enum Reply: Hashable, Sendable {
    case acknowledged(cursor: Int64, duplicates: [DeltaID])
    case gap(cursor: Int64)
    case fenced
    case forked(sequence: Int64)
  }

  package enum Trouble: Hashable, Sendable {
    /// Entries after `cursor` are neither in the ledger nor in the outbox, which begins at `first`.
    case gap(cursor: Int64, first: Int64)
    case fenced
    case forked(sequence: Int64)
  }

  package enum Verdict: Hashable, Sendable {
    /// The cursor moved by `delivered`. The counter effects of `duplicates` are taken back
    /// *before* the acknowledgement is noted and the entries are trimmed.
    case posted(delivered: Int64, duplicates: [OutboxEntry])
    case readAgain
    case rebuild(Trouble)
  }

  private enum State: Sendable {
    case idle
    /// These entries are with the ledger.
    case sent([OutboxEntry])
  }

  package let limits: Limits
  package private(set) var epoch: Int64 = -1
  /// The last entry of the epoch that is delivered and, where it was a duplicate, taken back; reads
  /// start after it.
  package private(set) var cursor: Int64 = 0
  private var state = State.idle
  private var gaps = 0
  private var idle: Int64

  package init(limits: Limits) {
    self.limits = limits
    idle = limits.idleFirst
  }

  /// The bucket is open under `epoch`. A new one begins at its first entry.
  package mutating func entered(epoch: Int64) {
    guard epoch != self.epoch else { return }
    self.epoch = epoch
    cursor = 0
    gaps = 0
    idle = limits.idleFirst
    state = .idle
  }

  /// This shipper takes the bucket over; `cursor` is the acknowledgement noted in Redis.
  package mutating func took(cursor: Int64) {
    self.cursor = cursor
    gaps = 0
    state = .idle
  }

  /// Another shipper brought the acknowledgement this far. False: that is not news.
  package mutating func learned(cursor: Int64) -> Bool {
    guard cursor > self.cursor else { return false }
    self.cursor = cursor
    return true
  }

  /// The outbox's entries after the cursor, in order.
  package mutating func entriesRead(_ entries: [OutboxEntry]) -> Step {
    guard let first = entries.first else {
      idle = min(idle * 2, limits.idleLongest)
      state = .idle
      return .rest(milliseconds: idle)
    }
    idle = limits.idleFirst
    let batch = fitting(entries)
    state = .sent(batch)
    return .send(previous: first.sequence - 1, entries: batch)
  }

  /// The longest run of consecutive entries that fits one batch; never none, or nothing would ever
  /// move again: a single delta is bounded where it is born.
  private func fitting(_ entries: [OutboxEntry]) -> [OutboxEntry] {
    var batch: [OutboxEntry] = []
    var bytes = 0
    for entry in entries {
      bytes += limits.entryBytes + entry.body.count
      if let last = batch.last {
        guard entry.sequence == last.sequence + 1, bytes <= limits.bytesMax,
          batch.count < limits.entriesMax
        else { break }
      }
      batch.append(entry)
    }
    return batch
  }

  /// No answer, or no connection. The same entries are read and sent again; what the ledger has of
  /// them it skips.
  package mutating func sendFailed() { state = .idle }

  package mutating func replied(_ reply: Reply) -> Verdict {
    guard case .sent(let batch) = state, let first = batch.first else {
      preconditionFailure("a reply is handed in once for each batch that was sent")
    }
    state = .idle
    switch reply {
    case .acknowledged(let reached, let known):
      gaps = 0
      let before = max(cursor, first.sequence - 1)
      // Not beyond the batch: of what follows only its own answer names the duplicates.
      cursor = max(cursor, min(reached, batch.last?.sequence ?? reached))
      return .posted(
        delivered: max(0, cursor - before),
        duplicates: Self.duplicates(in: batch, known))
    case .gap(let reached):
      cursor = reached
      gaps += 1
      // Once: the ledger stands behind us, or we had not heard its cursor. Twice in a row: what it
      // wants is no longer in the outbox.
      guard gaps > 1 else { return .readAgain }
      gaps = 0
      return .rebuild(.gap(cursor: reached, first: first.sequence))
    case .fenced: return .rebuild(.fenced)
    case .forked(let sequence): return .rebuild(.forked(sequence: sequence))
    }
  }

  /// The entries that an answer's delta ids mean. Of an id that stands more than once in the batch,
  /// where a delta was appended twice, the first may be the one that is posted: as many are meant
  /// as the answer names, the last ones. A config delta moves no counter, so there is nothing to
  /// take back; of a kind that this release does not know nobody here could say what to take back.
  private static func duplicates(in batch: [OutboxEntry], _ ids: [DeltaID]) -> [OutboxEntry] {
    guard !ids.isEmpty else { return [] }
    var named: [DeltaID: Int] = [:]
    for id in ids { named[id, default: 0] += 1 }
    var found: [OutboxEntry] = []
    for entry in batch.reversed() {
      guard let count = named[entry.id], count > 0 else { continue }
      named[entry.id] = count - 1
      if entry.kind == .usage || entry.kind == .reversal { found.append(entry) }
    }
    return found.reversed()
  }
}
