// What an enforcer holds of the deltas it caused, until the ledger has them (promise 3): from every
// reply that tells of some, the repeated ones too, and from those who append deltas anew beside the
// request path.

import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

extension Enforcer {
  /// `told`: the deltas as the call that was answered names them.
  func retain(_ decided: DecidedOperation, _ told: [OutboxEntry], of request: Request) {
    guard !decided.entries.isEmpty, configuration.ledger != nil else { return }
    let isTold = !decided.decision.replayed && told.count == decided.entries.count
    guard let entries = isTold ? told : recorded(decided, told, of: request) else {
      return readBack(decided, of: request)
    }
    keep(entries, bucket: request.bucket, epoch: decided.epoch)
  }

  func keep(_ entries: [OutboxEntry], bucket: Int, epoch: Int64) {
    let dropped = retained.dropped
    for entry in entries { retained.add(entry, bucket: bucket, epoch: epoch) }
    // Of an answer that was given before, too: whoever waits for the bucket to be written to.
    if let last = entries.last { seen.saw(bucket: bucket, epoch: epoch, sequence: last.sequence) }
    metrics.retainedDropped.add(retained.dropped - dropped)
  }

  /// What only the script knew when it wrote them (which grants were burnt, what rates charged) is
  /// read where it lies, by its position. What is no longer there was delivered, or was set aside
  /// with its epoch's outbox and is delivered from there.
  private func readBack(_ decided: DecidedOperation, of request: Request, attempt: Int = 0) {
    guard let first = decided.entries.first?.sequence,
      buckets[request.bucket].epoch == decided.epoch
    else { return }
    guard attempt < Self.readBacksMax else {
      return metrics.retainedDropped.add(Int64(decided.entries.count))
    }
    guard let connection = link?.connection else {
      return readBackLater(decided, of: request, attempt: attempt)
    }
    let command = Reads.outbox(
      keys, bucket: request.bucket,
      after: StreamPosition(epoch: decided.epoch, sequence: first - 1),
      count: decided.entries.count)
    // As long as it is on its way the bucket is not quiet: what is presented must hold it.
    buckets[request.bucket].inFlight += 1
    planned += 1
    connection.send(
      { command.write(into: &$0) },
      completion: { [self] result in
        let reply = (try? result.get()).map { command.decode($0) }
        if case .done(let found)? = reply {
          let sequences = Set(decided.entries.map(\.sequence))
          keep(
            found.filter { sequences.contains($0.sequence) && $0.id.operation == request.id },
            bucket: request.bucket, epoch: decided.epoch)
        } else {
          readBackLater(decided, of: request, attempt: attempt)
        }
        landed(1, request.bucket)
      })
  }

  private static let readBacksMax = 20

  private func readBackLater(_ decided: DecidedOperation, of request: Request, attempt: Int) {
    eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(Int64(20 << min(attempt, 5)))) {
      self.readBack(decided, of: request, attempt: attempt + 1)
    }
  }

  /// How far the bucket was, and at what time, for every call that follows from this sidecar.
  func noteSeen(_ decided: DecidedOperation, bucket: Int, epoch: Int64) {
    // What is not recorded leaves no time behind either: only answers that always are count.
    let isRecorded = !Self.seldomRecorded.contains(decided.decision.reason)
    seen.saw(
      bucket: bucket, epoch: epoch, sequence: decided.entries.last?.sequence ?? 0,
      time: isRecorded ? decided.decision.time : nil)
  }

  private static let seldomRecorded: Set<Reason> = [
    .unknownAccount, .unknownFeature, .outboxFull, .dedupeFull, .storeUnavailable,
    .fallbackExhausted, .holdsExceeded,
  ]

  /// The deltas of an operation that was decided earlier. Its repetition may name later periods,
  /// and that of a cancel names none. nil: they cannot be worked out here.
  private func recorded(
    _ decided: DecidedOperation, _ told: [OutboxEntry], of request: Request
  ) -> [OutboxEntry]? {
    let isRight =
      told.count == decided.entries.count
      && told.allSatisfy { entry in
        guard let body = try? UsageBody.decode(entry.body) else { return false }
        return body.parts.isEmpty
          && body.cells.allSatisfy { $0.period.contains(decided.bornAt) }
      }
    if isRight { return told }
    switch request.mode {
    case .consume, .post, .cancel: break
    // What a hold or an earlier operation was charged only what was written then tells.
    case .check, .reserve, .settle, .release, .extend, .refund: return nil
    }
    guard let global,
      case .known(let born) = LatePost(request).deltas(
        global: global, account: accounts[request.account] ?? AccountConfig(), at: decided.bornAt)
    else { return nil }
    let offset = DeltaID.reversalOffset
    return decided.entries.compactMap { place in
      let isReversal = place.index >= offset
      let index = isReversal ? place.index - offset : place.index
      guard var entry = born.first(where: { $0.entry.id.index == index })?.entry else { return nil }
      entry.sequence = place.sequence
      guard isReversal else { return entry }
      entry.kind = .reversal
      entry.id = DeltaID(operation: request.id, index: place.index)
      (entry.actual, entry.charged) = (-entry.actual, -entry.charged)
      return entry
    }
  }

  /// The ledger has everything of this bucket's epoch up to `sequence`.
  func acknowledged(bucket: Int, epoch: Int64, sequence: Int64) {
    retained.acknowledged(bucket: bucket, epoch: epoch, through: sequence)
  }

  /// Deltas that were appended beside the request path: held like any other from here on.
  func reposted(_ entries: [OutboxEntry], bucket: Int, epoch: Int64) {
    let dropped = retained.dropped
    for entry in entries {
      retained.add(entry, bucket: bucket, epoch: epoch)
      seen.saw(bucket: bucket, epoch: epoch, sequence: entry.sequence)
    }
    metrics.retainedDropped.add(retained.dropped - dropped)
  }

  /// These late deltas are on record, or in the outbox again.
  func lateSettled(_ ids: Set<DeltaID>, bucket: Int) {
    retained.settledLate(bucket: bucket, ids)
    lateExchangesSettled(ids)
  }

  /// What became of a POST beyond the dedupe window.
  func latePosted(_ operation: LatePost, _ outcome: Outcome) {
    for request in waiting.removeValue(forKey: .late(operation)) ?? [] { finish(request, outcome) }
  }
}
