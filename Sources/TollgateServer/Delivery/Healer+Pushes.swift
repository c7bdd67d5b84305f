// What the ledger pushes, and what this sidecar presents when a bucket's epoch is closed.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

extension Healer {
  // MARK: - The ledger's pushes

  /// In the order in which the ledger sent them: what each says of an epoch holds before the next
  /// is looked at. What takes longer runs beside: a PRESENT_REQUEST is answered while a recovery
  /// waits.
  func received(_ push: LedgerPush) {
    switch push {
    case .connected(let linked):
      metrics.ledgerUp.set(1)
      deploymentCheck.linked()
      compare(linked)
      // It can be asked what of that it has.
      lateNap.wake()
    case .disconnected:
      metrics.ledgerUp.set(0)
      book.unlinked()
      let waiters = grantWaiters
      grantWaiters.removeAll()
      for waiter in waiters.values { waiter.resume(returning: nil) }
    case .presentRequest(let request):
      let bucket = Int(request.bucket)
      guard bucket <= buckets.control else { return }
      book.leave(bucket: bucket, epoch: request.epoch)
      open[bucket] = nil
      Task { await self.present(request) }
    case .epoch(let notice):
      let bucket = Int(notice.bucket)
      guard bucket <= buckets.control else { return }
      book.announced(
        bucket: bucket, epoch: notice.epoch,
        previous: StreamPosition(epoch: notice.previousEpoch, sequence: notice.previousLast))
      if let current = open[bucket], current < notice.epoch { close(bucket) }
      grants[bucket] = notice
      if let waiter = grantWaiters.removeValue(forKey: bucket) {
        waiter.resume(returning: notice)
      } else if !recovering.contains(bucket) {
        Task { await self.recover(bucket: bucket, knownEpoch: notice.previousEpoch) }
      }
    case .refused(let code, let text):
      logger.critical(
        "the ledger refuses this sidecar",
        metadata: [
          "code": "\(code.name)", "reason": "\(text)",
        ])
      if code == .deploymentMismatch { deploymentCheck.ledgerDiffers(text) }
    }
  }

  /// The ledger's epochs are the ones to work under: a bucket that is open under another, or under
  /// one that it does not list, stops until the ledger has issued the next.
  func compare(_ linked: Linked) {
    book.linked(
      linked.buckets.map {
        (Int($0.bucket), StreamPosition(epoch: $0.epoch, sequence: $0.cursor))
      })
    grants.removeAll()
    for (bucket, epoch) in open {
      let delivered = book.cursor(bucket: bucket, epoch: epoch)
      if delivered > 0 { store.seen.saw(bucket: bucket, epoch: epoch, sequence: delivered) }
      let position = store.seen[bucket].position
      guard verdict(bucket, position) != .work else { continue }
      logger.warning(
        "the ledger names another epoch", metadata: ["bucket": "\(bucket)", "ours": "\(epoch)"])
      close(bucket)
      Task { await self.recover(bucket: bucket, knownEpoch: epoch) }
    }
  }

  /// Stops calls to the bucket everywhere, then tells the ledger what is retained here, at once and
  /// whatever Redis does, because only this process has it; and then what survives in the outbox,
  /// which closes the answer. Where Redis stays silent the answer stays open: the ledger must not
  /// take an outbox that nobody could read for an empty one.
  func present(_ request: PresentRequest) async {
    guard let ledger else { return }
    let bucket = Int(request.bucket)
    var known: [Int64: DeltaID] = [:]
    var entries: [OutboxEntry] = []
    if bucket < buckets.control {
      for loop in loops {
        entries += await loop.quiesced(bucket) {
          // After a fork the ledger's cursor says nothing of what is held here: all of it is
          // presented, and what the ledger knows is skipped there.
          $0.retained.present(bucket: bucket, epoch: request.epoch, after: 0)
        }
      }
    }
    entries += (retainedConfig[bucket] ?? [])
      .filter { $0.epoch == request.epoch }.map(\.entry)
    for entry in entries { known[entry.sequence] = entry.id }
    do {
      try await push(entries, for: request, to: ledger)
      try await push(await surviving(request, beside: known), for: request, to: ledger)
      try await ledger.push(
        Present(bucket: request.bucket, epoch: request.epoch, entries: []))
    } catch {
      logger.warning(
        "the outbox was not presented",
        metadata: ["bucket": "\(bucket)", "error": "\(error)"])
    }
  }

  func push(
    _ entries: [OutboxEntry], for request: PresentRequest, to ledger: LedgerLink
  ) async throws {
    let sorted = entries.sorted { $0.sequence < $1.sequence }
    for start in stride(from: 0, to: sorted.count, by: Self.presentChunk) {
      let end = min(start + Self.presentChunk, sorted.count)
      try await ledger.push(
        Present(
          bucket: request.bucket, epoch: request.epoch, entries: Array(sorted[start..<end])),
        more: true)
    }
  }

  /// What the outbox holds beyond what is presented already. An entry whose number another delta
  /// has here is told too: the store re-issued the number, and both are real. Redis may be just
  /// starting, so it is asked until the ledger's window is nearly over.
  func surviving(
    _ request: PresentRequest, beside known: [Int64: DeltaID]
  ) async throws -> [OutboxEntry] {
    let end = NIODeadline.now() + .milliseconds(Self.presentMilliseconds)
    while true {
      do {
        var found: [OutboxEntry] = []
        var after = request.cursor
        while true {
          let page = try await store.outbox(
            bucket: Int(request.bucket), epoch: request.epoch, after: after, limit: 1000)
          found += page.filter { known[$0.sequence] != $0.id }
          guard let last = page.last, page.count == 1000 else { return found }
          after = last.sequence
        }
      } catch {
        guard NIODeadline.now() < end else { throw error }
        // Redis is away: until it is back, or the time is over.
        try? await Task.sleep(for: .milliseconds(20))
      }
    }
  }

  /// Within the ledger's window of 3 s.
  static let presentMilliseconds: Int64 = 2_500
  static let presentChunk = 500

  func retainConfig(_ entry: OutboxEntry, bucket: Int, epoch: Int64) {
    store.seen.saw(bucket: bucket, epoch: epoch, sequence: entry.sequence)
    // Appended by somebody else, and delivered before this was heard.
    if let known = delivered[bucket], known.epoch == epoch, entry.sequence <= known.sequence {
      return
    }
    retainedConfig[bucket, default: []].append((epoch, entry))
    if let count = retainedConfig[bucket]?.count, count > Self.retainedConfigMax {
      retainedConfig[bucket]?.removeFirst(count - Self.retainedConfigMax)
      metrics.retainedDropped.add()
    }
  }

  /// Config deltas that the ledger has not been seen to have.
  var retainedConfigCount: Int { retainedConfig.values.reduce(0) { $0 + $1.count } }

  /// Config deltas of epochs that are over and that the ledger has not been seen to have.
  var lateConfig: [Int: [OutboxEntry]] {
    retainedConfig.compactMapValues { $0.isEmpty ? nil : $0 }.reduce(into: [:]) { late, held in
      guard let epoch = open[held.key] else { return }
      let entries = held.value.filter { $0.epoch < epoch }.map(\.entry)
      if !entries.isEmpty { late[held.key] = entries }
    }
  }

  /// A change that is in force and lies in no outbox: it is appended to the current one.
  func retainLate(_ entry: OutboxEntry, bucket: Int) {
    retainedConfig[bucket, default: []].append((0, entry))
  }

  /// The ledger has these, or they lie in the outbox again.
  func lateConfigSettled(_ ids: Set<DeltaID>, bucket: Int) {
    guard let epoch = open[bucket] else { return }
    retainedConfig[bucket]?.removeAll { $0.epoch < epoch && ids.contains($0.entry.id) }
  }

  func retainConfigs(_ entries: [(bucket: Int, epoch: Int64, entry: OutboxEntry)]) {
    for item in entries { retainConfig(item.entry, bucket: item.bucket, epoch: item.epoch) }
  }

  /// The ledger has everything of the bucket's epoch up to `sequence`.
  func acknowledged(bucket: Int, epoch: Int64, sequence: Int64) {
    store.seen.saw(bucket: bucket, epoch: epoch, sequence: sequence)
    retainedConfig[bucket]?.removeAll { $0.epoch == epoch && $0.entry.sequence <= sequence }
    let position = StreamPosition(epoch: epoch, sequence: sequence)
    if position > delivered[bucket] ?? StreamPosition(epoch: 0, sequence: 0) {
      delivered[bucket] = position
    }
    guard bucket < buckets.control else { return }
    for loop in loops {
      loop.onLoop { $0.acknowledged(bucket: bucket, epoch: epoch, sequence: sequence) }
    }
  }
}
