// Puts deltas into the outbox that are not born there now, under their own identity: late ones,
// held here when their epoch was closed without them, and those of POSTs older than the dedupe
// window.
//
//   ask the ledger which ids are on record ─┬ on record: done
//                                           └ unknown ─▶ `repost` in Redis ─▶ retained, delivered
//
// Exactly once in effect without a claim of its own: whatever is asked or appended twice, because
// an answer was lost or a retry was faster, has one delta id. The ledger posts it once and answers
// DUPLICATE to the other, whose counter effect the shipper takes back (promise 3). Nothing is let
// go before the ledger or Redis has said that they have it. What leases let through is appended
// unasked where the ledger does not answer for long (Enforcer+LateExchanges).

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

struct Reposter: Sendable {
  let store: ColdStore
  let ledger: LedgerLink
  let healer: Healer
  let loops: [LoopUnit]
  let buckets: BucketMap
  let metrics: Metrics
  let logger: Logger

  static let roundMilliseconds: Int64 = 100
  /// While no late delta is known; the beat counts them.
  static let idleMilliseconds: Int64 = 1_000
  /// Ids in one question to the ledger, which takes 1,000.
  static let batchMax = 500
  /// Calls under way at once.
  static let parallelMax = 32
  static let attemptsMax = 5

  private enum Outcome {
    /// With its new sequence.
    case appended(OutboxEntry)
    case unseeded(Subject)
    case unreadable
    case fenced
    case overflow
    case failed(StoreFailure)
  }

  // MARK: - Late deltas

  func run() async {
    while !Task.isCancelled {
      if ledger.isUp {
        await healer.lateOutboxes?.round()
        for loop in loops {
          for bucket in await loop.value({ $0.retained.lateBuckets }) {
            while !Task.isCancelled, await drain(bucket, of: loop) {}
          }
        }
        await drainConfig()
      }
      for loop in loops {
        for (bucket, entries) in await loop.value({ $0.overdueDeltas }) where !Task.isCancelled {
          await postUnasked(entries, bucket, of: loop)
        }
      }
      if metrics.lateDeltas.current > 0, ledger.isUp {
        try? await Task.sleep(for: .milliseconds(Self.roundMilliseconds))
      } else {
        await healer.lateNap.rest(until: Nap.end(after: Self.idleMilliseconds))
      }
    }
  }

  /// The sidecar goes, and the ledger cannot be asked: late deltas are put into the outbox unasked.
  /// What the ledger has already it will answer with DUPLICATE; what stayed here would be lost.
  func handOver(until end: NIODeadline) async {
    for loop in loops {
      for bucket in await loop.value({ $0.retained.lateBuckets }) {
        while NIODeadline.now() < end, await drain(bucket, of: loop, asking: false) {}
      }
    }
    await drainConfig(asking: false)
  }

  // MARK: - Late changes of configuration

  /// Every change is in the ledger's history in the end, whichever of several stands.
  private func drainConfig(asking: Bool = true) async {
    for (bucket, entries) in await healer.lateConfig {
      guard let epoch = await healer.epoch(of: bucket) else { continue }
      if asking {
        guard await isSettled(bucket, epoch) else { continue }
        guard let known = try? await onRecord(entries.map(\.id), bucket: bucket) else { return }
        await healer.lateConfigSettled(known, bucket: bucket)
      }
      // In the order in which they were made; a failure leaves the rest for the next round.
      let asked = Set(entries.map(\.id))
      for entry in await healer.lateConfig[bucket] ?? [] where asked.contains(entry.id) {
        guard await repostConfig(entry, bucket, epoch) else { break }
        await healer.lateConfigSettled([entry.id], bucket: bucket)
      }
    }
  }

  /// True: done with, for good or, where it cannot be read, for bad.
  private func repostConfig(_ entry: OutboxEntry, _ bucket: Int, _ epoch: Int64) async -> Bool {
    // Found again by the next look at the account, under the same identity.
    if entry.kind == .threshold { return true }
    do {
      let delta = try ConfigDelta.decode(entry.body)
      guard let outcome = try await store.repost(entry, delta, bucket: bucket, epoch: epoch) else {
        logger.error("a late change names nothing", metadata: ["id": "\(entry.id)"])
        metrics.retainedDropped.add()
        return true
      }
      switch outcome {
      case .appended(let sequence), .alreadyThere(let sequence):
        var placed = entry
        placed.sequence = sequence
        await healer.retainConfig(placed, bucket: bucket, epoch: epoch)
        metrics.lateReposted.add()
        logger.notice(
          "a late change of configuration posted anew",
          metadata: [
            "scope": "\(delta.scope)", "key": "\(delta.key)", "version": "\(delta.version)",
          ])
        if delta.scope == .global { await healer.refresh() }
        return true
      case .unseeded:
        guard let account = try? Subject(delta.key).account else { return true }
        _ = await healer.load(account: account, bucket: bucket, epoch: epoch, purpose: .post)
        return false
      }
    } catch is WireError {
      logger.error("a late change cannot be read and is given up", metadata: ["id": "\(entry.id)"])
      metrics.retainedDropped.add()
      return true
    } catch StoreFailure.fenced {
      await healer.fenced(bucket: bucket, epoch: epoch)
      return false
    } catch {
      return false
    }
  }

  /// What is held here may lie in an outbox that was set aside as well: it is asked for when that
  /// has been delivered, and not before, and posted in the same epoch, so that no change is made
  /// twice.
  private func isSettled(_ bucket: Int, _ epoch: Int64) async -> Bool {
    (try? await healer.isSettled(bucket, epoch)) ?? false
  }

  /// What leases let through and the ledger was asked for in vain. Where accounts of the bucket may
  /// be seeded, whatever else of it there was in Redis is in the books.
  private func postUnasked(_ entries: [OutboxEntry], _ bucket: Int, of loop: LoopUnit) async {
    guard let epoch = await healer.epoch(of: bucket), await isSettled(bucket, epoch) else { return }
    _ = await append(entries, bucket, epoch, of: loop)
  }

  /// One batch of one bucket. True: there may be more, and it is worth trying at once.
  private func drain(
    _ bucket: Int, of loop: LoopUnit, asking: Bool = true
  ) async -> Bool {
    let entries = await loop.value {
      $0.retained.late(bucket: bucket, limit: Self.batchMax)
    }
    guard !entries.isEmpty, let epoch = await healer.epoch(of: bucket) else { return false }
    var known: Set<DeltaID> = []
    if asking {
      guard await isSettled(bucket, epoch),
        let answer = try? await onRecord(entries.map(\.id), bucket: bucket)
      else { return false }
      known = answer
    }
    if !known.isEmpty { await loop.value { [known] in $0.lateSettled(known, bucket: bucket) } }
    // Twice in the list after an append of unknown outcome, a delta is appended once.
    var taken = known
    var (isWell, unseeded) = await append(
      entries.filter { taken.insert($0.id).inserted }, bucket, epoch, of: loop)
    guard asking || unseeded.isEmpty else { return false }
    for account in unseeded {
      let outcome = await healer.load(
        account: account, bucket: bucket, epoch: epoch, purpose: .post)
      if outcome == .failed || outcome == .busy { isWell = false }
    }
    return isWell
  }

  /// Puts them into the outbox, each once. Answers whether it goes on well, and which accounts have
  /// to be seeded before theirs can be counted.
  private func append(
    _ entries: [OutboxEntry], _ bucket: Int, _ epoch: Int64, of loop: LoopUnit
  ) async -> (isWell: Bool, unseeded: Set<Subject>) {
    var rest = entries[...]
    var isWell = true
    var unseeded: Set<Subject> = []
    while !rest.isEmpty, isWell {
      let outcomes = await repost(Array(rest.prefix(Self.parallelMax)), bucket, epoch)
      rest = rest.dropFirst(Self.parallelMax)
      var placed: [OutboxEntry] = []
      var settled: Set<DeltaID> = []
      for (id, outcome) in outcomes {
        switch outcome {
        case .appended(let entry):
          placed.append(entry)
          settled.insert(id)
        case .unseeded(let account): unseeded.insert(account)
        case .unreadable:
          logger.error("a late delta cannot be read and is given up", metadata: ["id": "\(id)"])
          metrics.retainedDropped.add()
          settled.insert(id)
        case .fenced:
          if isWell { await healer.fenced(bucket: bucket, epoch: epoch) }
          isWell = false
        case .overflow:
          // It was counted once, so there was room for it: an operator's reset may have made more.
          logger.error("a late delta would overflow a counter", metadata: ["id": "\(id)"])
          isWell = false
        case .failed: isWell = false
        }
      }
      if !placed.isEmpty {
        logger.notice(
          "late deltas posted anew", metadata: ["bucket": "\(bucket)", "count": "\(placed.count)"])
        metrics.lateReposted.add(Int64(placed.count))
      }
      let (entries, ids) = (placed.sorted { $0.sequence < $1.sequence }, settled)
      await loop.value {
        $0.reposted(entries, bucket: bucket, epoch: epoch)
        $0.lateSettled(ids, bucket: bucket)
      }
    }
    return (isWell, unseeded)
  }

  private func repost(
    _ entries: [OutboxEntry], _ bucket: Int, _ epoch: Int64
  ) async -> [(DeltaID, Outcome)] {
    return await withTaskGroup(of: (DeltaID, Outcome).self) { group in
      for entry in entries {
        group.addTask {
          guard let body = try? UsageBody.decode(entry.body) else { return (entry.id, .unreadable) }
          return (entry.id, await repost(entry, body, epoch))
        }
      }
      return await group.reduce(into: []) { $0.append($1) }
    }
  }

  private func repost(
    _ entry: OutboxEntry, _ body: UsageBody, _ epoch: Int64
  ) async -> Outcome {
    do throws(StoreFailure) {
      switch try await store.repost(entry, body, epoch: epoch, global: await healer.currentGlobal) {
      case .appended(let sequence):
        var placed = entry
        placed.sequence = sequence
        return .appended(placed)
      case .unseeded: return .unseeded(body.subject.account)
      case .overflow: return .overflow
      }
    } catch {
      if case .fenced = error { return .fenced }
      return .failed(error)
    }
  }

  // MARK: - Posts beyond the dedupe window

  /// Settles a POST that Redis can no longer place by its id. Its answer is given when each of its
  /// deltas is on record or in the outbox.
  func post(_ late: LatePost) async -> TollgateServer.Outcome {
    for _ in 0..<Self.attemptsMax {
      if let outcome = await attempt(late) { return outcome }
      try? await Task.sleep(for: .milliseconds(20))
    }
    return Self.unavailable("the account's bucket is being recovered")
  }

  static func unavailable(_ text: String) -> TollgateServer.Outcome {
    .error(.unavailable, "older than the dedupe window, and \(text); repeat with the same id")
  }

  /// nil: the bucket or the account changed meanwhile; to be tried again.
  private func attempt(_ late: LatePost) async -> TollgateServer.Outcome? {
    let account = late.operation.subject.account
    guard let epoch = await healer.epoch(of: late.bucket), let global = await healer.currentGlobal
    else { return nil }
    var isOpen = false
    do {
      let header = try await store.header(account: account)
      guard header.epoch == epoch, var config = AccountConfig(stored: header.config ?? "") else {
        return await load(account, late.bucket, epoch, global)
      }
      config.version = header.version ?? 0
      if try await namesUnknown(late, global) {
        return .decision(
          Decision(
            reason: .unknownFeature, source: .redis, time: store.wallTime(),
            globalVersion: global.version, accountVersion: config.version))
      }
      // The id tells when the operation was admitted.
      let deltas: [(entry: OutboxEntry, body: UsageBody)]
      var isOnRecord = false
      switch late.deltas(global: global, account: config, at: late.operation.id.time) {
      case .known(let found): deltas = found
      case .unknownZone:
        return Self.unavailable("the account's zone is not installed beside this sidecar")
      case .rich:
        // Whether it counts the ledger can say; what it would have burnt and cost then nobody can,
        // so it is burnt and priced as of now.
        let ids = late.operation.items.indices.map {
          DeltaID(operation: late.operation.id, index: UInt16($0))
        }
        guard try await !onRecord(ids, bucket: late.bucket).isEmpty else {
          return try await postRich(late, global, config, epoch)
        }
        deltas = []
        isOnRecord = true
      }
      let known = try await onRecord(deltas.map(\.entry.id), bucket: late.bucket)
      for (entry, body) in deltas where !known.contains(entry.id) {
        switch await repost(entry, body, epoch) {
        case .appended(let entry):
          isOpen = true
          metrics.lateReposted.add()
          await loops[0].value { $0.reposted([entry], bucket: late.bucket, epoch: epoch) }
        case .unseeded, .unreadable: return nil
        case .fenced:
          await healer.fenced(bucket: late.bucket, epoch: epoch)
          return nil
        case .overflow:
          return .error(.amountOutOfRange, "a counter would leave the quantity range")
        case .failed(let failure):
          if case .unavailable(_, false) = failure, !isOpen {
            return Self.unavailable("redis does not answer")
          }
          return .error(.outcomeUnknown, "\(failure); repeat with the same id")
        }
      }
      metrics.latePosts.add()
      return .decision(
        Decision(
          reason: .allowedPosted, source: .redis, time: store.wallTime(),
          globalVersion: global.version, accountVersion: config.version,
          replayed: isOnRecord
            || (!deltas.isEmpty && deltas.allSatisfy { known.contains($0.entry.id) })))
    } catch is LedgerFailure {
      return Self.unavailable("the ledger cannot be asked whether it counts")
    } catch {
      return Self.unavailable("redis does not answer")
    }
  }

  /// A feature that the catalog does not know has no counter and no line on the bill, so nothing
  /// is posted, like in the window; unless it was, all of it, while the catalog still knew it.
  private func namesUnknown(_ late: LatePost, _ global: GlobalConfig) async throws -> Bool {
    let items = late.operation.items
    guard items.contains(where: { global.catalog.features[$0.feature] == nil }) else {
      return false
    }
    let ids = items.indices.map { DeltaID(operation: late.operation.id, index: UInt16($0)) }
    return try await onRecord(ids, bucket: late.bucket).isEmpty
  }

  private func load(
    _ account: Subject, _ bucket: Int, _ epoch: Int64, _ global: GlobalConfig
  ) async -> TollgateServer.Outcome? {
    switch await healer.load(account: account, bucket: bucket, epoch: epoch) {
    case .loaded, .retry: return nil
    case .failed, .busy: return Self.unavailable("the account cannot be loaded")
    case .unknown:
      return .decision(
        Decision(
          reason: .unknownAccount, source: .redis, time: store.wallTime(),
          globalVersion: global.version))
    }
  }

  // MARK: - The ledger's word

  /// Which of these the ledger holds, posted or parked.
  func onRecord(_ ids: [DeltaID], bucket: Int) async throws -> Set<DeltaID> {
    guard !ids.isEmpty else { return [] }
    let question = Document.fields([
      "bucket": .integer(Int64(bucket)), "ids": .list(ids.map { .string($0.description) }),
    ])
    let pages = try await ledger.pages(
      QueryRequest(.deltaIDs, body: question.jsonBytes()), as: QueryReply.self)
    guard pages.first?.status == nil, let answer = try? Document(json: pages.flatMap(\.body)) else {
      throw LedgerFailure(kind: .refused(.badFrame), description: "an unreadable answer")
    }
    var found: Set<DeltaID> = []
    for list in ["posted", "parked"] {
      for text in (answer[list]?.elements ?? []).compactMap(\.text) {
        guard let dot = text.lastIndex(of: "."), let operation = OperationID(hex: text[..<dot]),
          let index = UInt16(text[text.index(after: dot)...])
        else { continue }
        found.insert(DeltaID(operation: operation, index: index))
      }
    }
    return found
  }
}
