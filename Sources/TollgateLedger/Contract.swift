// The contract of the delta stream, as a pure value: what the ledger answers to a batch, given what
// it has recorded. This file decides; `Poster` writes. It keeps promise 3 of DESIGN: a gap or a
// fork is always named, an entry is skipped only where the very same delta is on record, and no
// delta is posted twice, however batches are cut, repeated or raced.

package import TollgateCore
internal import TollgateWire

/// The answer to one batch, and what was done with its entries.
package struct BatchOutcome: Hashable, Sendable {
  package enum Answer: Hashable, Sendable {
    /// Everything up to `cursor` is on disk.
    case acknowledged(cursor: Int64)
    /// Entries between the cursor and the batch are missing: resend from `cursor` + 1.
    case gap(cursor: Int64)
    /// The epoch is over; of it, entries up to `lastSequence` are accepted and no others.
    case fenced(epoch: Int64, lastSequence: Int64)
    /// The entry at `sequence` contradicts the record: the stream was rewound.
    case forked(cursor: Int64, sequence: Int64)
    /// Not a batch at all (sequence numbers out of order, an unknown bucket): never retry it.
    case refused(String)
  }

  package var answer: Answer
  /// Deltas posted earlier under another position of the *current* epoch's counters: each moved
  /// the counter a second time, and that effect is to be reversed, once, by id.
  package var duplicates: [DeltaID]
  package var posted: Int
  package var skipped: Int
  package var parked: Int

  package init(
    answer: Answer, duplicates: [DeltaID] = [], posted: Int = 0, skipped: Int = 0, parked: Int = 0
  ) {
    self.answer = answer
    self.duplicates = duplicates
    self.posted = posted
    self.skipped = skipped
    self.parked = parked
  }
}

/// What is on record about the id of an entry, seen from the entry's position.
enum Recorded: Hashable, Sendable {
  case unknown
  /// Posted or parked at this very position.
  case here
  /// Met at this position before, and answered DUPLICATE then.
  case hereAsDuplicate
  /// Posted at another position only.
  case elsewhere
}

/// Where a bucket stands.
struct BucketState: Hashable, Sendable {
  /// The current epoch; 0: none was ever issued.
  var epoch: Int64
  /// The cursor of the batch's epoch.
  var cursor: Int64
  /// What the fence of the batch's epoch recorded; nil: that epoch has none.
  var fence: Int64?
}

enum Contract {
  enum Verdict: Hashable, Sendable {
    case answer(BatchOutcome.Answer)
    /// `entries[0 ..< known]` are on record; `entries[known ..< end]` are to be posted. Where
    /// `end` is not the last entry, the rest lies behind the fence.
    case accept(known: Int, end: Int, duplicates: [DeltaID])
  }

  /// - Parameter recorded: looks up one entry; asked only for entries at or below the cursor.
  static func judge(
    _ batch: DeltaBatch, state: BucketState, recorded: (OutboxEntry) throws -> Recorded
  ) rethrows -> Verdict {
    if let problem = shapeProblem(batch) { return .answer(.refused(problem)) }
    let isCurrent = batch.epoch == state.epoch && state.epoch > 0
    var end = batch.entries.count
    if !isCurrent {
      // An epoch that was never issued here, or one without a fence, has no accepted entries.
      guard batch.epoch < state.epoch, let last = state.fence else {
        return .answer(.fenced(epoch: state.epoch, lastSequence: 0))
      }
      end = Int(max(0, min(Int64(end), last - batch.previous)))
      if end == 0 && !batch.entries.isEmpty {
        return .answer(.fenced(epoch: state.epoch, lastSequence: last))
      }
    }
    if batch.previous > state.cursor { return .answer(.gap(cursor: state.cursor)) }
    let known = Int(min(Int64(end), state.cursor - batch.previous))
    var duplicates: [DeltaID] = []
    for entry in batch.entries[..<known] {
      switch try recorded(entry) {
      case .here: break
      case .hereAsDuplicate: if isCurrent { duplicates.append(entry.id) }
      case .elsewhere:
        // In the current epoch another delta is on record at this position, so this stream is not
        // the one that was read. In an old epoch the position was written off as lost and the
        // delta came in by another way: its counters are gone, so nothing is left to reverse.
        if isCurrent { return .answer(.forked(cursor: state.cursor, sequence: entry.sequence)) }
      case .unknown:
        return .answer(.forked(cursor: state.cursor, sequence: entry.sequence))
      }
    }
    return .accept(known: known, end: end, duplicates: duplicates)
  }

  private static func shapeProblem(_ batch: DeltaBatch) -> String? {
    if batch.epoch < 1 || batch.epoch > Quantity.maximum { return "epoch \(batch.epoch)" }
    if batch.previous < 0 || batch.previous > Quantity.maximum - Int64(WireLimits.entriesMax) {
      return "previous sequence \(batch.previous)"
    }
    if batch.entries.count > WireLimits.entriesMax {
      return "\(batch.entries.count) entries; at most \(WireLimits.entriesMax)"
    }
    for (offset, entry) in batch.entries.enumerated()
    where entry.sequence != batch.previous + 1 + Int64(offset) {
      return
        "entry \(offset) has sequence \(entry.sequence), not \(batch.previous + 1 + Int64(offset))"
    }
    return nil
  }
}
