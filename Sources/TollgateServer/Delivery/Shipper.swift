// Carries outboxes to the ledger, one bucket at a time under an expiring ownership (DESIGN 7).
//
//   own the bucket ─▶ read after the cursor ─▶ BATCH ─┬ ACK: reverse duplicates, trim, go on
//        ▲                                           ├ GAP: read again from the ledger's cursor;
//        │                                           │      what Redis no longer has: recover
//        └──────────── idle, back off ◀──────────────┴ FENCED, FORKED: recover
//
// Ownership only saves work: two shippers at once post nothing twice, because the ledger skips what
// it knows. Progress is kept at the destination, so a shipper that is killed anywhere loses
// nothing. A failure of any kind ends one round, never the task (PITFALL 46).

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

  /// Idle rounds back off between these.
  static let idleMilliseconds: (first: Int64, max: Int64) = (5, 150)
  /// An ownership not renewed for this long is free to take.
  static let ownershipMilliseconds: Int64 = 5_000
  static let renewMilliseconds: Int64 = 1_500

  /// One task per bucket, control included, until cancelled.
  func run() async {
    await withTaskGroup(of: Void.self) { group in
      for bucket in 0...buckets.control { group.addTask { await self.ship(bucket) } }
    }
  }

  private struct Progress {
    var epoch: Int64 = -1
    var cursor: Int64 = 0
    var gaps = 0
    var ownedUntil = NIODeadline.uptimeNanoseconds(0)
    var owned = false
    var idle = Shipper.idleMilliseconds.first
  }

  private func ship(_ bucket: Int) async {
    var progress = Progress()
    while !Task.isCancelled {
      let rest = await round(bucket, &progress)
      if rest > 0 { try? await Task.sleep(for: .milliseconds(rest)) }
    }
    if progress.owned {
      _ = try? await store.own(bucket: bucket, owner: configuration.sidecarID, milliseconds: 0)
    }
  }

  /// Ships what is there; answers how long to rest before the next round, in milliseconds.
  private func round(_ bucket: Int, _ progress: inout Progress) async -> Int64 {
    guard ledger.isUp, let epoch = await healer.epoch(of: bucket) else { return 100 }
    if progress.epoch != epoch {
      progress.epoch = epoch
      progress.cursor = 0
      progress.gaps = 0
    }
    do {
      guard try await own(bucket, &progress) else {
        // Somebody else ships it; what they delivered lets our retained copies go.
        if let meta = try await store.meta(bucket: bucket), meta.fence.epoch == epoch,
          case let acked = meta.acknowledged, acked > progress.cursor
        {
          progress.cursor = acked
          await healer.acknowledged(bucket: bucket, epoch: epoch, sequence: acked)
        }
        return 400
      }
      let entries = try await store.outbox(
        bucket: bucket, epoch: epoch, after: progress.cursor,
        limit: configuration.outbox.batchEntriesMax)
      guard let first = entries.first, let last = entries.last else {
        lag.set(bucket: bucket, entries: 0, oldest: nil)
        progress.idle = min(progress.idle * 2, Self.idleMilliseconds.max)
        return progress.idle
      }
      progress.idle = Self.idleMilliseconds.first
      lag.set(
        bucket: bucket, entries: last.sequence - progress.cursor, oldest: first.time)
      let reply = try await ledger.request(
        DeltaBatch(
          bucket: UInt32(bucket), epoch: epoch, previous: first.sequence - 1,
          entries: Self.fitting(entries)), as: BatchReply.self)
      return await received(reply, bucket, entries, &progress)
    } catch {
      logger.debug("shipping paused", metadata: ["bucket": "\(bucket)", "error": "\(error)"])
      return 100
    }
  }

  /// The ledger had this delta already: its second effect on the counters is undone. Not undone
  /// now means never, because the acknowledgement was given; so until it is done or fenced away.
  private func takeBack(_ entry: OutboxEntry, _ bucket: Int, _ epoch: Int64) async {
    guard let body = try? UsageBody.decode(entry.body) else { return }
    while !Task.isCancelled {
      do {
        _ = try await store.reverse(entry, body, bucket: bucket, epoch: epoch)
        return
      } catch StoreFailure.fenced {
        return
      } catch {
        try? await Task.sleep(for: .milliseconds(100))
      }
    }
  }

  /// The longest prefix that fits one frame.
  static func fitting(_ entries: [OutboxEntry]) -> [OutboxEntry] {
    var bytes = 1024
    var count = 0
    for entry in entries {
      bytes += entry.body.count + 96
      guard bytes <= WireLimits.frameBytesMax, count < WireLimits.entriesMax else { break }
      count += 1
    }
    return Array(entries.prefix(max(1, count)))
  }

  private func own(_ bucket: Int, _ progress: inout Progress) async throws -> Bool {
    let now = NIODeadline.now()
    if progress.owned, now < progress.ownedUntil { return true }
    let owned = try await store.own(
      bucket: bucket, owner: configuration.sidecarID, milliseconds: Self.ownershipMilliseconds)
    if owned != progress.owned { metrics.bucketsOwned.add(owned ? 1 : -1) }
    progress.owned = owned
    progress.ownedUntil = now + .milliseconds(Self.renewMilliseconds)
    return owned
  }

  private func received(
    _ reply: BatchReply, _ bucket: Int, _ entries: [OutboxEntry], _ progress: inout Progress
  ) async -> Int64 {
    let epoch = progress.epoch
    let first = entries.first?.sequence ?? 0
    switch reply.status {
    case .ack:
      progress.gaps = 0
      metrics.deltasDelivered.add(max(0, reply.cursor - max(progress.cursor, first - 1)))
      for id in reply.duplicates {
        metrics.duplicatesAbsorbed.add()
        if let entry = entries.first(where: { $0.id == id && $0.kind != .config }) {
          await takeBack(entry, bucket, epoch)
        }
      }
      progress.cursor = max(progress.cursor, reply.cursor)
      try? await store.trim(
        bucket: bucket, epoch: epoch, through: progress.cursor,
        keeping: configuration.outbox.tailEntries)
      await healer.acknowledged(bucket: bucket, epoch: epoch, sequence: progress.cursor)
      return 0
    case .gap:
      metrics.gaps.add()
      progress.cursor = reply.cursor
      progress.gaps += 1
      guard progress.gaps > 1 else { return 0 }
      logger.warning(
        "entries are missing in the outbox",
        metadata: [
          "bucket": "\(bucket)", "cursor": "\(reply.cursor)", "first": "\(first)",
        ])
      progress.gaps = 0
      await healer.rebuildEpoch(bucket: bucket, epoch: epoch)
      return 50
    case .forked:
      metrics.forks.add()
      logger.warning(
        "the outbox forked",
        metadata: [
          "bucket": "\(bucket)", "sequence": "\(reply.lastSequence)",
        ])
      await healer.rebuildEpoch(bucket: bucket, epoch: epoch)
      return 50
    case .fenced:
      await healer.rebuildEpoch(bucket: bucket, epoch: epoch)
      return 50
    }
  }
}
