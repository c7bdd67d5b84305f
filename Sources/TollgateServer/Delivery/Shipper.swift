// Carries outboxes to the ledger, one bucket at a time under an expiring ownership (DESIGN 7).
//
//   own the bucket ─▶ read after the cursor ─▶ BATCH ─┬ ACK: reverse duplicates, trim, go on
//        ▲                                           ├ GAP: read again from the ledger's cursor;
//        │                                           │      what Redis no longer has: recover
//        └──────────── idle, back off ◀──────────────┴ FENCED, FORKED: recover
//
// Ownership only saves work: two shippers at once post nothing twice, because the ledger skips what
// it knows. Progress is kept at the destination, and how far duplicates are taken back in Redis
// (`meta.ack`, from which whoever takes the bucket over starts), so a shipper that is killed
// anywhere loses nothing. A failure of any kind ends one round, never the task (PITFALL 46). What a
// round decides is `ShipperMachine`'s; this is its shell.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

struct Shipper: Sendable {
  let configuration: ServerConfiguration
  let store: ColdStore
  let ledger: LedgerLink
  let healer: Healer
  let metrics: Metrics
  let logger: Logger
  let buckets: BucketMap
  let lag: LagBoard
  let owned: OwnedBuckets
  let watch: LedgerWatch
  let thresholds: ThresholdWatch<LiveBackend>

  /// After a batch that was far from full: what comes meanwhile goes out together. One transaction
  /// of the ledger and three calls of Redis for each delta would cost more than the decisions.
  static let lingerMilliseconds: Int64 = 100
  /// An ownership not renewed for this long is free to take.
  static let ownershipMilliseconds: Int64 = 5_000
  static let renewMilliseconds: Int64 = 1_500
  /// How often who does not own a bucket looks at how far it was delivered: while that is not all
  /// that was seen here, and else. Thousands of sidecars look at each.
  static let awaitMilliseconds: Int64 = 400
  static let standbyMilliseconds: Int64 = 3_000

  /// One task per bucket, control included, until cancelled.
  func run() async {
    await withTaskGroup(of: Void.self) { group in
      for bucket in 0...buckets.control { group.addTask { await self.ship(bucket) } }
    }
  }

  /// A batch leaves this much of a frame to the message around its entries.
  static let frameReserveBytes = 1024

  static func limits(entriesMax: Int) -> ShipperMachine.Limits {
    ShipperMachine.Limits(
      entriesMax: min(entriesMax, WireLimits.entriesMax),
      bytesMax: WireLimits.frameBytesMax - frameReserveBytes, entryBytes: 96)
  }

  /// Where there was nothing to do, rests from here on end as soon as this sidecar sees the bucket
  /// written to.
  static let longMilliseconds: Int64 = 250
  static let rousedMilliseconds: Int64 = 200

  private struct Progress {
    var machine: ShipperMachine
    /// The bucket's sequence when it was last looked at.
    var known: Int64 = 0
    /// Nothing of it waits to be delivered, as far as is known here.
    var isQuiet = false
    var ownedUntil = NIODeadline.uptimeNanoseconds(0)
    var owned = false
    var measureAt = NIODeadline.uptimeNanoseconds(0)
  }

  private func ship(_ bucket: Int) async {
    var progress = Progress(
      machine: ShipperMachine(
        limits: Self.limits(entriesMax: configuration.outbox.batchEntriesMax)))
    while !Task.isCancelled {
      let rest = await round(bucket, &progress)
      guard rest > 0 else { continue }
      guard progress.isQuiet, rest >= Self.longMilliseconds else {
        try? await Task.sleep(for: .milliseconds(rest))
        continue
      }
      let end = Nap.end(after: rest)
      await store.seen.rest(
        bucket: bucket, epoch: progress.machine.epoch,
        beyond: max(progress.machine.cursor, progress.known), until: end)
      guard ContinuousClock.now < end else { continue }
      // Roused: more is to come, and a burst is not shipped delta by delta.
      try? await Task.sleep(for: .milliseconds(Self.rousedMilliseconds))
    }
    if progress.owned {
      _ = try? await store.own(bucket: bucket, owner: configuration.sidecarID, milliseconds: 0)
    }
  }

  /// Ships what is there; answers how long to rest before the next round, in milliseconds.
  private func round(_ bucket: Int, _ progress: inout Progress) async -> Int64 {
    progress.isQuiet = false
    guard let epoch = await healer.epoch(of: bucket) else { return 100 }
    progress.machine.entered(epoch: epoch)
    guard ledger.isUp else {
      await measure(bucket, epoch, &progress)
      return 100
    }
    do {
      guard let meta = try await standing(bucket, epoch, progress.machine.cursor) else {
        return Self.lingerMilliseconds
      }
      progress.known = meta.position.sequence
      guard try await own(bucket, epoch: epoch, &progress) else {
        lag.set(bucket: bucket, entries: 0, oldest: nil)
        // Somebody else ships it; what they delivered lets our retained copies go.
        let acked = meta.acknowledged
        if progress.machine.learned(cursor: acked) {
          await healer.acknowledged(bucket: bucket, epoch: epoch, sequence: acked)
        }
        let seen = store.seen.seen(bucket: bucket, epoch: epoch).position.sequence
        progress.isQuiet = seen <= acked
        return progress.isQuiet ? Self.standbyMilliseconds : Self.awaitMilliseconds
      }
      if let cursor = watch.resend(bucket: bucket, epoch: epoch) {
        progress.machine.took(cursor: cursor)
      }
      let after = progress.machine.cursor
      let entries =
        meta.position.sequence == after
        ? []
        : try await store.outbox(
          bucket: bucket, epoch: epoch, after: after,
          limit: configuration.outbox.batchEntriesMax)
      // A full page says nothing of what lies behind it.
      let last =
        entries.count < configuration.outbox.batchEntriesMax
        ? entries.last?.sequence : meta.position.sequence
      lag.set(
        bucket: bucket, entries: last.map { max(0, $0 - after) } ?? 0, oldest: entries.first?.time)
      await thresholds.saw(entries)
      switch progress.machine.entriesRead(entries) {
      case .rest(let milliseconds):
        progress.isQuiet = true
        return milliseconds
      case .send(let previous, let batch):
        do {
          let reply = try await ledger.request(
            DeltaBatch(bucket: UInt32(bucket), epoch: epoch, previous: previous, entries: batch),
            as: BatchReply.self)
          watch.answered()
          return await received(reply, bucket, &progress)
        } catch {
          watch.failed(error)
          progress.machine.sendFailed()
          throw error
        }
      }
    } catch {
      logger.debug("shipping paused", metadata: ["bucket": "\(bucket)", "error": "\(error)"])
      return 100
    }
  }

  /// The bucket's meta, where it is what everybody here and the ledger have seen. One that is not
  /// is healed before anybody needs it; one that went back in its own epoch shows in nothing but
  /// its sequence and its time, and what is read after the cursor would never tell.
  private func standing(
    _ bucket: Int, _ epoch: Int64, _ cursor: Int64
  ) async throws -> BucketMeta? {
    // In this order: what was seen before the meta is read is in it.
    let seen = store.seen.seen(bucket: bucket, epoch: epoch)
    let meta = try await store.meta(bucket: bucket)
    guard let meta, meta.fence.epoch == epoch else {
      await healer.fenced(bucket: bucket, epoch: epoch)
      return nil
    }
    guard meta.position.sequence >= cursor, seen.isKept(by: meta) else {
      metrics.forks.add()
      logger.warning(
        "redis was put back",
        metadata: [
          "bucket": "\(bucket)", "epoch": "\(epoch)", "sequence": "\(meta.position.sequence)",
          "seen": "\(max(cursor, seen.position.sequence))",
        ])
      await healer.rebuildEpoch(bucket: bucket, epoch: epoch)
      return nil
    }
    return meta
  }

  /// While the ledger is away the backlog grows, and whoever owns the bucket says by how much.
  private func measure(_ bucket: Int, _ epoch: Int64, _ progress: inout Progress) async {
    let now = NIODeadline.now()
    guard now >= progress.measureAt else { return }
    progress.measureAt = now + .milliseconds(Self.measureMilliseconds)
    guard (try? await own(bucket, epoch: epoch, &progress)) == true,
      let meta = try? await store.meta(bucket: bucket), meta.fence.epoch == epoch,
      let first = try? await store.outbox(
        bucket: bucket, epoch: epoch, after: meta.acknowledged, limit: 1)
    else { return lag.set(bucket: bucket, entries: 0, oldest: nil) }
    lag.set(
      bucket: bucket, entries: max(0, (meta.fence.sequence ?? 0) - meta.acknowledged),
      oldest: first.first?.time)
  }

  static let measureMilliseconds: Int64 = 1_000

  /// The ledger had this delta already: its second effect on the counters is undone. False: it is
  /// not, and the acknowledgement must not pass it, so that the next shipper does it. A bucket that
  /// is fenced meanwhile gets new counters, seeded from the ledger.
  private func takeBack(_ entry: OutboxEntry, _ bucket: Int, _ epoch: Int64) async -> Bool {
    guard entry.kind != .threshold, let body = try? UsageBody.decode(entry.body) else {
      return true
    }
    while !Task.isCancelled {
      do {
        _ = try await store.reverse(entry, body, bucket: bucket, epoch: epoch)
        return true
      } catch StoreFailure.fenced {
        return false
      } catch {
        try? await Task.sleep(for: .milliseconds(100))
      }
    }
    return false
  }

  private func own(
    _ bucket: Int, epoch: Int64, _ progress: inout Progress
  ) async throws -> Bool {
    let now = NIODeadline.now()
    if progress.owned, now < progress.ownedUntil { return true }
    let owned = try await store.own(
      bucket: bucket, owner: configuration.sidecarID, milliseconds: Self.ownershipMilliseconds)
    if owned && !progress.owned {
      guard let meta = try await store.meta(bucket: bucket), meta.fence.epoch == epoch else {
        return false
      }
      progress.machine.took(cursor: meta.acknowledged)
    }
    note(owned, bucket, &progress)
    progress.ownedUntil = now + .milliseconds(Self.renewMilliseconds)
    return owned
  }

  private func note(_ isOwned: Bool, _ bucket: Int, _ progress: inout Progress) {
    guard isOwned != progress.owned else { return }
    progress.owned = isOwned
    owned.set(bucket, isOwned)
    metrics.bucketsOwned.add(isOwned ? 1 : -1)
  }

  private func received(
    _ reply: BatchReply, _ bucket: Int, _ progress: inout Progress
  ) async -> Int64 {
    let epoch = progress.machine.epoch
    switch progress.machine.replied(reply.verdict) {
    case .posted(let delivered, let duplicates):
      metrics.deltasDelivered.add(delivered)
      metrics.duplicatesAbsorbed.add(Int64(duplicates.count))
      for entry in duplicates {
        guard await takeBack(entry, bucket, epoch) else {
          // Whoever takes the bucket next, this shipper too, starts at the noted acknowledgement.
          note(false, bucket, &progress)
          return Self.lingerMilliseconds
        }
      }
      let cursor = progress.machine.cursor
      try? await store.trim(
        bucket: bucket, epoch: epoch, through: cursor,
        keeping: configuration.outbox.tailEntries)
      await healer.acknowledged(bucket: bucket, epoch: epoch, sequence: cursor)
      return delivered < Int64(configuration.outbox.batchEntriesMax / 2)
        ? Self.lingerMilliseconds : 0
    case .readAgain:
      metrics.gaps.add()
      return 0
    case .rebuild(let trouble):
      switch trouble {
      case .gap: metrics.gaps.add()
      case .forked: metrics.forks.add()
      case .fenced: break
      }
      logger.warning(
        "the outbox cannot be delivered as it is",
        metadata: ["bucket": "\(bucket)", "epoch": "\(epoch)", "trouble": "\(trouble)"])
      await healer.rebuildEpoch(bucket: bucket, epoch: epoch)
      return 50
    }
  }
}

extension BatchReply {
  fileprivate var verdict: ShipperMachine.Reply {
    switch status {
    case .ack: .acknowledged(cursor: cursor, duplicates: duplicates)
    case .gap: .gap(cursor: cursor)
    case .fenced: .fenced
    case .forked: .forked(sequence: lastSequence)
    }
  }
}
