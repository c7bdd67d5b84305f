// What a seed must know beside the ledger's balances: whether the ledger is whole, what of the
// account is still on its way to it, and which deeper subjects Redis holds.
//
// A whole ledger is the truth: its sums replace what an older epoch left in Redis. One that lost
// entries (its file put back or lost, or a range closed as LOSS) knows less than those counters,
// and lowering them would let a hard limit admit its amount again (promise 1): then the greater
// stands.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

/// What `Healer` remembers between seeds, for each bucket.
struct SeedingNotes {
  /// Whether the ledger lost entries; asked once for each epoch, since losses are written only
  /// where one is closed.
  var lossy: [Int: (epoch: Int64, isLossy: Bool)] = [:]
  var undelivered: [Int: UndeliveredIndex] = [:]
  /// The epoch in which the ledger was found to have all that older outboxes held.
  var settled: [Int: Int64] = [:]
  /// Since when outboxes that were set aside were seen to stand in an epoch.
  var unsettled: [Int: (epoch: Int64, since: NIODeadline)] = [:]
  /// When a bucket that is not settled was looked at last.
  var looked: [Int: NIODeadline] = [:]
  /// Buckets whose outboxes this sidecar is emptying.
  var settling: Set<Int> = []
}

/// Why an account is seeded.
enum SeedPurpose: Sendable {
  /// It is looked at: of one of which nothing is known, nothing stays in Redis.
  case read
  case write
  /// Units that were used are to be counted, even for one that nobody set.
  case post
}

extension Healer {
  /// Entries of an outbox read for one load; what lies beyond is read by the next.
  static var undeliveredPagesMax: Int { 50 }
  static var undeliveredPage: Int { 1000 }
  static var undeliveredWaitMilliseconds: Int64 { 2_000 }

  func isLossy(_ bucket: Int, _ epoch: Int64, _ account: Subject) async throws -> Bool {
    guard let ledger else { return false }
    if let known = notes.lossy[bucket], known.epoch == epoch { return known.isLossy }
    let question = Document.fields(["account": .string(account.path), "count": .integer(1)])
    let pages = try await ledger.pages(
      QueryRequest(.totals, body: question.jsonBytes()), as: QueryReply.self)
    guard pages.first?.status == nil, let answer = try? Document(json: pages.flatMap(\.body)) else {
      throw LedgerFailure(kind: .refused(.badFrame), description: "an unreadable answer")
    }
    let isLossy = (answer["lost"]?.whole ?? 0) > 0
    notes.lossy[bucket] = (epoch, isLossy)
    return isLossy
  }

  /// Reads on in the outbox: accounts without a header have lost it, and nothing is counted for
  /// them until they are seeded, but units counted before may lie there. False: not all of it is
  /// read, or the bucket is at another epoch, and the next attempt goes on.
  func readUndelivered(_ bucket: Int, _ epoch: Int64) async throws -> Bool {
    guard let meta = try await store.meta(bucket: bucket), meta.fence.epoch == epoch else {
      return false
    }
    let end = meta.fence.sequence ?? 0
    notes.undelivered[bucket, default: .init()].stands(
      epoch: epoch, acknowledged: meta.acknowledged)
    for _ in 0..<Self.undeliveredPagesMax {
      let after = notes.undelivered[bucket]?.read ?? 0
      if after >= end { break }
      let page = try await store.outbox(
        bucket: bucket, epoch: epoch, after: after, limit: Self.undeliveredPage)
      // Trimmed meanwhile: all of it is delivered.
      guard !page.isEmpty else { break }
      for entry in page { note(entry, bucket) }
    }
    return (notes.undelivered[bucket]?.read ?? 0) >= end || meta.acknowledged >= end
  }

  /// Whether something that was read of the account is not in the ledger yet.
  func awaitsDelivery(_ account: Subject, _ bucket: Int, _ stored: AccountHeader) -> Bool {
    guard let index = notes.undelivered[bucket] else { return true }
    // A header that is there without an epoch holds configuration, and only that; one that was
    // made for a read holds none.
    let hasNone = stored.version == nil || stored.lookedAt != nil
    return index.lastCounted(account.path) != nil
      || (hasNone && index.lastChanged(account.path) != nil)
  }

  private func note(_ entry: OutboxEntry, _ bucket: Int) {
    var account: String?
    var movesCounters = true
    if entry.kind == .config {
      let delta = try? ConfigDelta.decode(entry.body)
      account = delta.flatMap { delta in
        delta.scope == .global ? nil : (try? Subject(delta.key))?.account.path
      }
      movesCounters = delta?.scope == .counter
    } else if entry.kind == .threshold {
      movesCounters = false
    } else {
      account = (try? UsageBody.decode(entry.body))?.subject.account.path
    }
    notes.undelivered[bucket]?.found(entry.sequence, of: account, movesCounters: movesCounters)
  }

  /// The ledger lost the account's configuration: it is written into the books again.
  func sendAgain(
    _ account: Subject, _ bucket: Int, _ epoch: Int64, version: Int64, config: String
  ) {
    // What was undelivered in an epoch before is in the books, or lost.
    notes.undelivered[bucket]?.stands(epoch: epoch, acknowledged: 0)
    guard notes.undelivered[bucket]?.lastChanged(account.path) == nil else { return }
    remember(
      ConfigDelta(
        scope: .account, key: account.path, version: version, action: "restore",
        actor: "tollgate", reason: "the ledger had lost it", before: "", after: config),
      bucket: bucket)
  }

  /// The same for the global configuration, where the ledger holds an older one, or none.
  func sendGlobalAgain() async {
    let control = buckets.control
    guard let ledger, let global, let meta = try? await store.meta(bucket: control),
      meta.fence.sequence == meta.acknowledged, meta.isSettled,
      epoch(of: control) == meta.fence.epoch,
      let held = try? await ledger.request(ConfigRequest(account: nil), as: ConfigReply.self),
      held.version < global.version, lateConfig[control] == nil
    else { return }
    logger.notice(
      "the ledger gets the configuration it lost", metadata: ["version": "\(global.version)"])
    remember(
      ConfigDelta(
        scope: .global, key: "", version: global.version, action: "restore", actor: "tollgate",
        reason: "the ledger had lost it", before: "", after: global.document.json()),
      bucket: control)
  }

  private func remember(_ delta: ConfigDelta, bucket: Int) {
    let time = store.wallTime()
    var random = SystemRandomNumberGenerator()
    retainLate(
      OutboxEntry(
        sequence: 0, kind: .config,
        id: DeltaID(change: OperationID(time: time, using: &random)), time: time,
        actual: 0, charged: 0, absorbed: 0, body: delta.encode()), bucket: bucket)
  }
}
