// Empties the outboxes that were set aside when their bucket got a new epoch.
//
//   open ─▶ set aside ─▶ ask the ledger which ids are on record ─┬ on record: dropped
//                                                                └ unknown: moved to the outbox
//   all moved, and acknowledged ─▶ settled: accounts of the bucket are seeded
//
// An outbox may hold what the ledger never saw, although its epoch is closed: a sidecar that was
// started, or cut off, while the ledger was away worked on under the epoch that Redis named, and
// its own copies ended with it. So no outbox is dropped on anybody's word but the ledger's, id by
// id (promise 3). The state lies in Redis: a sidecar killed anywhere leaves it to the next.
//
// Until a bucket is settled none of its accounts is seeded: no limit is judged without units that
// were used (promise 1), and what is moved needs no counting, as the seed has it from the ledger.
// For the same reason it is bounded: nothing is admitted meanwhile, so all that is set aside
// together is no more than the first of these outboxes could hold, and changes of configuration.
//
// Where nothing was set aside all this is one read of the bucket's meta in each epoch.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

struct LateOutboxes: Sendable {
  let store: ColdStore
  let healer: Healer
  let reposter: Reposter
  let metrics: Metrics
  let logger: Logger

  /// Others than who opened the bucket leave it to that one for so long.
  static let graceMilliseconds: Int64 = 500

  /// One round over all buckets: those whose opener does not get on, or is gone.
  func round() async {
    for (bucket, epoch) in await healer.unsettled {
      guard !Task.isCancelled, await healer.unsettledTooLong(bucket, epoch) else { continue }
      await settle(bucket, epoch: epoch)
    }
  }

  /// Empties what was set aside of one bucket; a failure leaves the rest to the next round.
  func settle(_ bucket: Int, epoch: Int64) async {
    guard await healer.beginSettling(bucket) else { return }
    do {
      while !Task.isCancelled, let meta = try await store.meta(bucket: bucket),
        meta.fence.epoch == epoch, let late = meta.late.first
      {
        try await empty(late, of: bucket, epoch)
      }
    } catch StoreFailure.fenced {
      // Whoever fenced it opens it; the list goes along.
    } catch {
      logger.debug(
        "a late outbox is left for later", metadata: ["bucket": "\(bucket)", "error": "\(error)"])
    }
    await healer.endSettling(bucket)
  }

  private func empty(_ late: Int64, of bucket: Int, _ epoch: Int64) async throws {
    var moved: Int64 = 0
    while true {
      let page = try await store.lateOutbox(bucket: bucket, epoch: late, limit: Reposter.batchMax)
      let known = try await reposter.onRecord(page.entries.map(\.id), bucket: bucket)
      let done = try await store.moveLate(
        bucket: bucket, epoch: epoch, from: late, through: page.through,
        unknown: page.entries.filter { !known.contains($0.id) }.map(\.sequence))
      store.seen.saw(bucket: bucket, epoch: epoch, sequence: done.lastSequence)
      moved += done.count
      metrics.lateReposted.add(done.count)
      if page.unreadable > 0 {
        // Whoever presented this outbox could not read them either: they are in `loss`.
        metrics.retainedDropped.add(Int64(page.unreadable))
        logger.error(
          "entries of a late outbox cannot be read and are given up",
          metadata: ["bucket": "\(bucket)", "count": "\(page.unreadable)"])
      }
      if !done.isLeft || Task.isCancelled { break }
    }
    guard moved > 0 else { return }
    logger.notice(
      "deltas of a closed epoch posted anew",
      metadata: ["bucket": "\(bucket)", "epoch": "\(late)", "count": "\(moved)"])
  }
}

extension Healer {
  /// Whether the ledger has all that older outboxes of the bucket held. Once so in an epoch, it
  /// stays so: they are set aside by the opening of the next.
  func isSettled(_ bucket: Int, _ epoch: Int64) async throws -> Bool {
    if ledger == nil || notes.settled[bucket] == epoch { return true }
    guard let meta = try await store.meta(bucket: bucket), meta.fence.epoch == epoch,
      meta.isSettled
    else { return false }
    notes.settled[bucket] = epoch
    return true
  }

  /// The same, waited for; false: not in time, and the next load goes on.
  func isSettledInTime(_ bucket: Int, _ epoch: Int64) async throws -> Bool {
    let deadline = NIODeadline.now() + .milliseconds(Self.undeliveredWaitMilliseconds)
    while true {
      if try await isSettled(bucket, epoch) { return true }
      repeat {
        guard open[bucket] == epoch, NIODeadline.now() < deadline else { return false }
        try await Task.sleep(for: .milliseconds(10))
        // However many accounts wait, one of them looks.
      } while notes.settled[bucket] != epoch
        && NIODeadline.now() - (notes.looked[bucket] ?? .uptimeNanoseconds(0)) < .milliseconds(10)
      notes.looked[bucket] = .now()
    }
  }

  /// Open buckets of which it is not known that they are settled.
  var unsettled: [(bucket: Int, epoch: Int64)] {
    open.filter { notes.settled[$0.key] != $0.value }.map { ($0.key, $0.value) }
  }

  /// Whether it is this sidecar's turn to empty what was set aside, if anything was.
  func unsettledTooLong(_ bucket: Int, _ epoch: Int64) async -> Bool {
    guard let isSettled = try? await isSettled(bucket, epoch),
      !isSettled
    else { return false }
    let now = NIODeadline.now()
    guard let seen = notes.unsettled[bucket], seen.epoch == epoch else {
      notes.unsettled[bucket] = (epoch, now)
      return false
    }
    return now - seen.since > .milliseconds(LateOutboxes.graceMilliseconds)
  }

  func beginSettling(_ bucket: Int) -> Bool { notes.settling.insert(bucket).inserted }
  func endSettling(_ bucket: Int) { notes.settling.remove(bucket) }
}
