// Batches of leased units that are too old for Redis, and may have been done by it before: only the
// ledger can tell, so what they settle are late deltas (`Reposter`).
//
//   too old, in doubt ─▶ late ─┬ on record, or in the outbox again ───────────▶ over
//                              ├ 5 s, or the sidecar goes: appended unasked ──▶ over
//                              └ it stands in the way ──▶ given up, counted, and told of
//
// Until it is over the journal keeps the batch, so whoever is killed in between loses nothing, and
// its accounts are not exchanged: what they may have spent stays held. Appended unasked, what was
// done before counts twice, in Redis alone and only until the ledger answers DUPLICATE: limits may
// deny too early by one batch, and never let in too much. That is why it is asked at first.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis

/// A batch that is late, and what of it is not settled yet.
struct LateExchange {
  var entries: [DeltaID: OutboxEntry]
  let since: NIODeadline
}

extension Enforcer {
  /// So long the ledger may take to say which deltas of a batch it has.
  static var lateExchangeTime: TimeAmount { .seconds(5) }
  /// Between two looks whether one stands in the way.
  private static var lateLookTime: TimeAmount { .milliseconds(250) }

  /// Too old for Redis, and nobody here knows whether it was done.
  func isLate(_ token: LeaseExchange.Token, _ call: LeaseCall) {
    let entries = call.entries(bornAt: redisNow)
    lateExchanges[token] = LateExchange(
      entries: Dictionary(entries.map { ($0.id, $0) }) { first, _ in first }, since: .now())
    keepLate(entries, of: call)
    lateExchangesSettled([])
    watchLateExchanges()
  }

  /// Deltas of an epoch that is over: held until they are on record, or in the outbox again.
  func keepLate(_ entries: [OutboxEntry], of call: LeaseCall) {
    retained.opened(bucket: call.bucket, epoch: call.fence.epoch)
    let dropped = retained.dropped
    for entry in entries {
      retained.add(entry, bucket: call.bucket, epoch: call.fence.epoch - 1)
    }
    metrics.retainedDropped.add(retained.dropped - dropped)
  }

  /// These late deltas are in the books, or on their way there in an outbox: exchanges that have no
  /// other are over.
  func lateExchangesSettled(_ ids: Set<DeltaID>) {
    for token in lateExchanges.keys {
      for id in ids { lateExchanges[token]?.entries[id] = nil }
      if lateExchanges[token]?.entries.isEmpty ?? true { endLateExchange(token) }
    }
  }

  private func endLateExchange(_ token: LeaseExchange.Token) {
    guard lateExchanges.removeValue(forKey: token) != nil else { return }
    _ = leases?.hub.table.tooOld(token, wasDone: true, now: LeaseHub.now)
  }

  /// Nobody waits for the ledger any more: whoever can append late deltas does.
  func hurryLateExchanges() { hurriesLateExchanges = true }

  /// What the ledger was given time enough to tell of, by bucket.
  var overdueDeltas: [Int: [OutboxEntry]] {
    guard !lateExchanges.isEmpty else { return [:] }
    let asked = NIODeadline.now() - Self.lateExchangeTime
    var overdue: [Int: [OutboxEntry]] = [:]
    for (token, late) in lateExchanges where hurriesLateExchanges || late.since <= asked {
      overdue[token.bucket, default: []] += late.entries.values
    }
    return overdue
  }

  var lateExchangeDeltas: Int { lateExchanges.values.reduce(0) { $0 + $1.entries.count } }

  // MARK: - The bound

  /// The operations of a late batch are not forgotten before it is over. Where that leaves no room
  /// for others it is given up: its deltas are still posted when the ledger is back, but the
  /// journal does not have them any more.
  private func watchLateExchanges() {
    guard !watchesLateExchanges, !lateExchanges.isEmpty else { return }
    watchesLateExchanges = true
    eventLoop.assumeIsolated().scheduleTask(in: Self.lateLookTime) { [self] in
      watchesLateExchanges = false
      if let table = leases?.hub.table {
        giveUpLateExchanges { table.standsInTheWay($0) }
      }
      watchLateExchanges()
    }
  }

  func giveUpLateExchanges(where isHopeless: (LeaseExchange.Token) -> Bool = { _ in true }) {
    for (token, late) in lateExchanges where isHopeless(token) {
      metrics.leases.lateExchangesGivenUp.add()
      logger.error(
        "a batch of leases is not kept until the ledger has it: killed now, this sidecar loses it",
        metadata: ["bucket": "\(token.bucket)", "deltas": "\(late.entries.count)"])
      endLateExchange(token)
    }
  }
}
