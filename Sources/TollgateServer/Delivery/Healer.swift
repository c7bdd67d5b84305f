// Keeps every bucket open under an epoch that Redis, this sidecar and the ledger agree on, and
// accounts seeded (DESIGN 5, promise 3).
//
//   FENCE or unknown ─▶ read the bucket's meta ─▶ it is good: adopt it
//                                             └▶ RECOVER to the ledger
//        ledger ─PRESENT_REQUEST─▶ every sidecar: stop calls, answer with what it retains, and
//                                  leave that epoch for good
//        ledger ─EPOCH──────────▶ every sidecar: `open` (compare and set; the old outbox is set
//                                  aside: LateOutboxes), adopt, go on
//        ledger ─LINKED─────────▶ a bucket that is open under another epoch than listed: RECOVER
//
// Which epoch may be worked under is `EpochBook`'s judgement; every way to adopt one asks it.
//
// The slow half of `EnforcerDelegate`: an actor, because none of this is on the request path. Each
// bucket, account and refresh is single-flight; requests wait parked in their enforcers.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

actor Healer {
  let configuration: ServerConfiguration
  let store: ColdStore
  let ledger: LedgerLink?
  let loops: [LoopUnit]
  let metrics: Metrics
  let logger: Logger
  let buckets: BucketMap
  /// Config deltas this sidecar caused, until the ledger has them.
  var retainedConfig: [Int: [(epoch: Int64, entry: OutboxEntry)]] = [:]
  /// How far the ledger was seen to have a bucket.
  var delivered: [Int: StreamPosition] = [:]
  /// Where the reposter rests while nothing is late.
  nonisolated let lateNap = Nap()
  var recovering: Set<Int> = []
  var grants: [Int: EpochNotice] = [:]
  var grantWaiters: [Int: CheckedContinuation<EpochNotice?, Never>] = [:]
  /// Accounts that are being seeded, and who else waits for the outcome.
  var loading: [String: [CheckedContinuation<LoadOutcome, Never>]] = [:]
  /// Accounts to be seeded, and groups of them that are.
  var seeds = SeedQueue()
  var seedingGroups = 0
  var refreshing = false
  var pushing: Set<Int> = []
  var open: [Int: Int64] = [:]
  var book: EpochBook
  /// What Redis was found to hold of a bucket, and since when.
  var found: [Int: (state: FenceState?, since: NIODeadline)] = [:]
  let deploymentCheck: DeploymentCheck
  var closedSince: [Int: NIODeadline] = [:]
  var notes = SeedingNotes()
  var global: GlobalConfig?
  var lastHeartbeat: NIODeadline?

  static let grantWaitMilliseconds: Int64 = 8_000
  static let attemptsMax = 200
  static let retainedConfigMax = 10_000

  init(
    configuration: ServerConfiguration, store: ColdStore, ledger: LedgerLink?, loops: [LoopUnit],
    metrics: Metrics, logger: Logger, buckets: BucketMap, deploymentCheck: DeploymentCheck
  ) {
    self.deploymentCheck = deploymentCheck
    book = EpochBook(count: buckets.control + 1)
    self.configuration = configuration
    self.store = store
    self.ledger = ledger
    self.loops = loops
    self.metrics = metrics
    self.logger = logger
    self.buckets = buckets
  }

  /// What appends deltas anew; nil: there is no ledger, and no deltas.
  nonisolated var reposter: Reposter? {
    ledger.map {
      Reposter(
        store: store, ledger: $0, healer: self, loops: loops, buckets: buckets, metrics: metrics,
        logger: logger)
    }
  }

  /// What gives back units, and adjusts them.
  nonisolated var corrector: Corrector {
    Corrector(
      store: store, ledger: ledger, healer: self, loops: loops, metrics: metrics, logger: logger,
      limits: configuration.storeLimits)
  }

  /// What empties outboxes that were set aside; nil: there is no ledger, and none are.
  nonisolated var lateOutboxes: LateOutboxes? {
    reposter.map {
      LateOutboxes(
        store: store, healer: self, reposter: $0, metrics: metrics, logger: logger)
    }
  }

  var currentGlobal: GlobalConfig? { global }
  func epoch(of bucket: Int) -> Int64? { open[bucket] }
  func epochs() -> [Int: Int64] { open }
  /// Those that are being recovered keep their epoch meanwhile, and are not among them.
  var openBuckets: Int { open.keys.count { !recovering.contains($0) } }

  // MARK: - Buckets

  /// Buckets that are closed and that nobody is opening: a recovery elsewhere that came to nothing
  /// leaves one so.
  func reopen() async {
    let now = NIODeadline.now()
    for bucket in 0...buckets.control where !recovering.contains(bucket) {
      guard open[bucket] == nil else {
        closedSince[bucket] = nil
        continue
      }
      let since = closedSince[bucket] ?? now
      closedSince[bucket] = since
      guard now - since > .milliseconds(Self.reopenMilliseconds), ledger?.isUp ?? true else {
        continue
      }
      closedSince[bucket] = nil
      Task { await self.recover(bucket: bucket, knownEpoch: 0) }
    }
  }

  static let reopenMilliseconds: Int64 = 4_000

  /// Opens every bucket at start; several at a time.
  func openAll() async {
    await withTaskGroup(of: Void.self) { group in
      var running = 0
      for bucket in 0...buckets.control {
        if running == 8 {
          await group.next()
          running -= 1
        }
        group.addTask { await self.recover(bucket: bucket, knownEpoch: 0) }
        running += 1
      }
    }
  }

  /// Brings a bucket under an epoch everybody agrees on, however long it takes; requests that wait
  /// for it are answered by their deadline or policy meanwhile.
  func recover(bucket: Int, knownEpoch: Int64) async {
    guard recovering.insert(bucket).inserted else { return }
    defer { recovering.remove(bucket) }
    for attempt in 0..<Self.attemptsMax {
      if Task.isCancelled { return }
      if await tryRecover(bucket, knownEpoch, attempt) { return }
      for loop in loops where bucket < buckets.control { loop.onLoop { $0.recoveryFailed(bucket) } }
      // Others may be opening it, or something is away: asked less and less often.
      try? await Task.sleep(for: .milliseconds(min(20 << min(attempt, 5), 500)))
    }
    open[bucket] = nil
    for loop in loops where bucket < buckets.control { loop.onLoop { $0.recoveryFailed(bucket) } }
  }

  /// The ledger's word of a new epoch may arrive a little after Redis has it.
  static let earlyAttemptsMax = 3

  func tryRecover(_ bucket: Int, _ knownEpoch: Int64, _ attempt: Int) async -> Bool {
    guard let identity = await store.identity() else { return false }
    // In this order: what was seen before the meta is read is in it, if Redis has lost nothing.
    // The other way round a bucket in use would be ahead of its own meta.
    let seen = store.seen[bucket]
    let meta: BucketMeta?
    do { meta = try await store.meta(bucket: bucket) } catch { return false }
    if found[bucket].map({ $0.state != meta?.fence }) ?? true {
      found[bucket] = (meta?.fence, .now())
    }
    // A Redis that lost everything lost the deployment record too: it is written again.
    guard await deploymentCheck.passes(store, identity, again: meta == nil) else { return false }
    let position = meta?.position ?? StreamPosition(epoch: 0, sequence: 0)
    if let meta, isCurrent(meta, identity), seen.isKept(by: meta),
      grants[bucket].map({ position.epoch >= $0.epoch }) ?? true
    {
      switch verdict(bucket, position) {
      case .work: return adopt(bucket, position)
      case .early where attempt < Self.earlyAttemptsMax: return false
      case .early, .recover: break
      }
    }
    let old = max(knownEpoch, seen.position.epoch, position.epoch, book.left(bucket: bucket))
    guard let granted = await grant(bucket, old: old, meta: meta) else { return false }
    do {
      let opened = try await store.open(
        bucket: bucket, epoch: granted, globalVersion: global?.version ?? 0,
        hadPredecessor: old > 0, records: records(bucket, meta),
        lateEpoch: ledger == nil ? nil : position.epoch)
      guard opened else {
        // Somebody opened a later epoch meanwhile: read it and adopt it in the next attempt.
        grants[bucket] = nil
        return false
      }
      metrics.recoveries.add()
      logger.notice(
        "bucket opened", metadata: ["bucket": "\(bucket)", "epoch": "\(granted)"])
      guard adopt(bucket, StreamPosition(epoch: granted, sequence: 0)) else { return false }
      // At once: until it is done nothing is admitted in this bucket.
      if let lateOutboxes { Task { await lateOutboxes.settle(bucket, epoch: granted) } }
      return true
    } catch {
      return false
    }
  }

  /// How far the operation records of the epoch that Redis names must reach: as far as the ledger
  /// closed it, from what everybody presented, and as far as this sidecar saw it.
  func records(_ bucket: Int, _ meta: BucketMeta?) -> OpenCall.Records {
    let since = found[bucket]?.since ?? .now()
    var records = OpenCall.Records(
      known: nil, found: meta?.fence,
      milliseconds: (NIODeadline.now() - since).nanoseconds / 1_000_000)
    guard let epoch = meta?.fence.epoch else { return records }
    let seen = store.seen[bucket]
    if let last = book.last(bucket: bucket, epoch: epoch) {
      records.known = StreamPosition(epoch: epoch, sequence: last)
    }
    if seen.position.epoch == epoch {
      records.known = max(records.known ?? seen.position, seen.position)
      records.knownTime = seen.time
    }
    return records
  }

  func isCurrent(_ meta: BucketMeta, _ identity: ServerIdentity) -> Bool {
    meta.fence.deployment == configuration.deployment.id.text
      && meta.fence.runID == identity.runID
      && meta.fence.replicationID == identity.replicationID
  }

  /// Goes over to the epochs that Redis names by now. A sidecar that is about to go without having
  /// heard of them from the ledger would take what it retains of the old ones for delivered.
  func followStore(until end: NIODeadline) async {
    guard let identity = await store.identity() else { return }
    for bucket in 0..<buckets.control {
      guard let known = open[bucket], let meta = try? await store.meta(bucket: bucket),
        isCurrent(meta, identity), meta.position.epoch > known
      else { continue }
      close(bucket)
    }
    repeat {
      await adoptCurrent()
      let missing = (0..<buckets.control).contains { open[$0] == nil }
      if !missing { return }
      // Buckets that others are opening stand in Redis when they are done.
      try? await Task.sleep(for: .milliseconds(20))
    } while NIODeadline.now() < end
  }

  /// Without a ledger connection a bucket can still be adopted where its meta is current.
  func adoptCurrent() async {
    guard let identity = await store.identity(),
      await deploymentCheck.passes(store, identity, again: false)
    else { return }
    for bucket in 0...buckets.control where open[bucket] == nil && !recovering.contains(bucket) {
      let seen = store.seen[bucket]
      guard let meta = try? await store.meta(bucket: bucket), isCurrent(meta, identity),
        case let position = meta.position, position.epoch > 0, seen.isKept(by: meta)
      else { continue }
      _ = adopt(bucket, position)
    }
  }

  /// The epoch to open: issued by the ledger, or, without one, the next after what is known.
  func grant(_ bucket: Int, old: Int64, meta: BucketMeta?) async -> Int64? {
    guard let ledger else { return max(old + 1, store.wallTime().milliseconds / 1000) }
    if let notice = grants[bucket], notice.epoch > old { return notice.epoch }
    do {
      try await ledger.push(
        Recover(
          bucket: UInt32(bucket), epoch: old, metaEpoch: meta?.fence.epoch ?? 0,
          metaSequence: meta?.fence.sequence ?? 0))
    } catch {
      return nil
    }
    // It may have come while that was on its way.
    if let notice = grants[bucket], notice.epoch > old { return notice.epoch }
    let notice = await withCheckedContinuation { continuation in
      grantWaiters.updateValue(continuation, forKey: bucket)?.resume(returning: nil)
      Task {
        try? await Task.sleep(for: .milliseconds(Self.grantWaitMilliseconds))
        self.grantTimedOut(bucket)
      }
    }
    guard let notice, notice.epoch > old || (meta == nil && notice.epoch >= old) else { return nil }
    return notice.epoch
  }

  func grantTimedOut(_ bucket: Int) {
    // A later wait for the same bucket may be the one that ends early; it simply asks again.
    grantWaiters.removeValue(forKey: bucket)?.resume(returning: nil)
  }

  /// The one way to work under an epoch. False: while it was being read or opened it was left.
  func adopt(_ bucket: Int, _ position: StreamPosition) -> Bool {
    guard verdict(bucket, position) == .work else { return false }
    let epoch = position.epoch
    open[bucket] = epoch
    found[bucket] = nil
    store.seen.saw(bucket: bucket, epoch: epoch, sequence: position.sequence)
    if let notice = grants[bucket], notice.epoch <= epoch { grants[bucket] = nil }
    // What was retained of an earlier epoch is late now.
    defer { lateNap.wake() }
    guard bucket < buckets.control else { return true }
    for loop in loops { loop.onLoop { $0.bucketOpened(bucket, epoch: epoch) } }
    return true
  }

  /// The link knows what the ledger listed a moment before the book does.
  func verdict(_ bucket: Int, _ position: StreamPosition) -> EpochBook.Verdict {
    if let issued = ledger?.issuedEpoch(bucket), position.epoch < issued { return .recover }
    return book.verdict(bucket: bucket, position)
  }

  /// Stops work on a bucket at once; calls in flight still land.
  func close(_ bucket: Int) {
    open[bucket] = nil
    guard bucket < buckets.control else { return }
    for loop in loops { loop.onLoop { $0.quiesce(bucket) {} } }
  }

  /// A script answered FENCE to a caller outside the enforcers (shipper, admin).
  func fenced(bucket: Int, epoch: Int64) async {
    if open[bucket] == epoch { open[bucket] = nil }
    await recover(bucket: bucket, knownEpoch: epoch)
  }

  /// What lies in the outbox of this epoch cannot be delivered as it is (a gap nobody fills, a
  /// fork, a Redis put back): the bucket goes on under a new epoch, whatever its meta says.
  func rebuildEpoch(bucket: Int, epoch: Int64) async {
    book.leave(bucket: bucket, epoch: epoch)
    if let current = open[bucket], current <= epoch { close(bucket) }
    await recover(bucket: bucket, knownEpoch: epoch)
  }

  // MARK: - Accounts

  enum LoadOutcome: Sendable, Hashable {
    /// The account is current.
    case loaded
    /// The ledger knows nothing of it, and neither does Redis.
    case unknown
    /// The bucket was fenced meanwhile, or it was seeded for another purpose: look again.
    case retry
    /// The ledger or Redis does not answer.
    case failed
    /// More accounts wait to be seeded than are kept.
    case busy
  }

  func rebuild(account: String, bucket: Int, epoch: Int64, purpose: SeedPurpose) async {
    guard let subject = try? Subject(account) else { return }
    let outcome = await load(account: subject, bucket: bucket, epoch: epoch, purpose: purpose)
    for loop in loops {
      loop.onLoop { enforcer in
        switch outcome {
        case .loaded: enforcer.rebuildFinished(account: account)
        case .unknown: enforcer.accountUnknown(account)
        case .retry: enforcer.rebuildFinished(account: account)
        case .failed: enforcer.rebuildFailed(account: account)
        case .busy: enforcer.rebuildRefused(account: account)
        }
      }
    }
  }

  /// How long after its end a period's counters are still seeded.
  static let lateHorizonMilliseconds: Int64 = 86_400_000

  func pushVersion(bucket: Int) async {
    guard let version = global?.version, pushing.insert(bucket).inserted else { return }
    defer { pushing.remove(bucket) }
    guard let epoch = open[bucket] else { return }
    try? await store.pushVersion(bucket: bucket, epoch: epoch, version: version)
  }
}

extension Healer: EnforcerDelegate {
  nonisolated func refreshGlobal(atLeast version: Int64) {
    Task { await self.beat() }
  }

  nonisolated func rebuild(account: String, bucket: Int, epoch: Int64, purpose: SeedPurpose) {
    Task { () async in
      await self.rebuild(account: account, bucket: bucket, epoch: epoch, purpose: purpose)
    }
  }

  nonisolated func recover(bucket: Int, knownEpoch: Int64) {
    Task { () async in await self.recover(bucket: bucket, knownEpoch: knownEpoch) }
  }

  nonisolated func postLate(_ operation: LatePost) {
    Task { () async in
      let outcome = await reposter?.post(operation) ?? .error(.idTooOld, "there is no ledger")
      for loop in loops { loop.onLoop { $0.latePosted(operation, outcome) } }
    }
  }

  nonisolated func refund(_ errand: RefundErrand) {
    Task { () async in
      let outcome = await corrector.refund(errand)
      for loop in loops { loop.onLoop { $0.refunded(errand.key, outcome) } }
    }
  }

  nonisolated func pushVersion(bucket: Int) {
    Task { () async in await self.pushVersion(bucket: bucket) }
  }
}
