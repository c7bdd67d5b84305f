// The request path of one event loop: from a request to one script call to an answer.
//
//   submit ─▶ resolve limits ─▶ queue of the bucket ─▶ `decide` in Redis ─▶ decided ─▶ answer
//     ▲         (one call per turn)  │ STALE: newer configuration   ─▶ refresh ─┐
//     │                              │ REBUILD: account not seeded  ─▶ seed ────┤
//     │                              │ PERIOD: a boundary passed    ────────────┤
//     │                              │ FENCE: bucket is another     ─▶ recover ─┤
//     │                              │ connection lost              ─▶ link up ─┤
//     └──────────────────────────────┴──────────────────────────────────────────┘
//   deadline, or breaker open ─▶ the limits' failure policy answers
//
// Nothing here awaits, hops or allocates timers. What takes longer (reading configuration,
// seeding, recovery) is asked of the `EnforcerDelegate` once and the requests that need it are
// parked under the thing they wait for, until it comes or their deadline passes. An operation
// whose call was written and lost is *in doubt*: it is repeated with its own id, which the
// operation record makes safe, or answered OUTCOME_UNKNOWN; it is never guessed (promise 3).

import DequeModule
import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis

final class Enforcer {
  enum WaitKey: Hashable {
    case global
    case account(String)
    case bucket(Int)
    case link
    case late(LatePost)
    /// Reservations of the account that are to be expired, or brought into the epoch.
    case holds(String)
    case refund(RefundErrand.Key)
  }

  struct BucketState {
    enum Phase: Sendable, Hashable { case unknown, open, recovering }
    var phase = Phase.unknown
    var epoch: Int64 = 0
    var recoveryAskedAt = NIODeadline.uptimeNanoseconds(0)
    /// When this sidecar heard of the epoch first.
    var openedAt = NIODeadline.uptimeNanoseconds(0)
    /// Operations queued or sent and not yet answered.
    var inFlight = 0
    var decides = Lane()
    var checks = Lane()
  }

  let eventLoop: any EventLoop
  let metrics: Metrics
  let configuration: ServerConfiguration
  let keys: KeySpace
  let logger: Logger
  let wallClock: @Sendable () -> WallTime
  let storeLimits: StoreLimits
  weak var delegate: (any EnforcerDelegate)?
  var link: RedisLink?

  private(set) var global: GlobalConfig?
  var accounts: AccountCache
  var buckets: [BucketState]
  var waiting: [WaitKey: [Request]] = [:]
  private var wheel: DeadlineWheel<Request>
  private var ticking = false
  var clock = RedisClock()
  var breaker: BreakerMachine
  var retained: RetainedDeltas
  /// Reservations made or ended through this loop, as they are now.
  var heldHere = HoldBook()
  let fallback: FallbackQueue
  let seen: SeenBoard
  private var outstanding = 0
  /// Operations on their way to Redis: queued for a call, or sent and not answered.
  var planned = 0
  /// Records that wait before the enforcer.
  var intakeCount = 0
  /// Called when there is room again for what waits there.
  var onRoom: (() -> Void)?
  private(set) var load = LoadEstimator()
  private var plannedMax = LoadEstimator.always
  /// What is on its way to Redis does not come back: the failure policies answer whoever comes.
  private(set) var isStuck = false
  private var stalls = StallLog()
  /// When an account was last loaded for any loop.
  var loadedAt = NIODeadline.uptimeNanoseconds(0)
  var unknownAccounts = UnknownAccountPolicy()
  private var answeredWhileParked = 0
  var retryScheduled = false
  var callTime = CallTime()
  /// Operations that Redis was sent and has not answered.
  var sent = 0
  /// When Redis last answered a call of this loop.
  var answeredAt = NIODeadline.uptimeNanoseconds(0) { didSet { onReply?() } }
  var onReply: (() -> Void)?
  /// Batches of leases that Redis finds too old, and that the ledger may have.
  var lateExchanges: [LeaseExchange.Token: LateExchange] = [:]
  var hurriesLateExchanges = false
  var watchesLateExchanges = false
  var quiescing: [Int: [() -> Void]] = [:]
  private var breakerWasOpen = false
  var encoder = UsageBodyCache()
  var plans = PlanCache()
  /// Told of once.
  var unknownZones: Set<String> = []
  /// Buckets with operations to send at the end of this turn.
  var queued: [Int] = []
  var callsScheduled = false
  private var linkIsUp = false
  /// nil: nobody watches.
  var tail: DecisionTail? {
    didSet { if (tail == nil) != (oldValue == nil) { leases?.hub.watched(tail != nil) } }
  }
  /// nil: nothing is leased.
  var leases: LeaseKeeper?

  /// A request repeats its call at most this often before it is answered UNAVAILABLE.
  static let attemptsMax = 12

  init(
    eventLoop: any EventLoop, configuration: ServerConfiguration, keys: KeySpace,
    metrics: Metrics, fallback: FallbackQueue, seen: SeenBoard, logger: Logger,
    wallClock: @escaping @Sendable () -> WallTime
  ) {
    self.eventLoop = eventLoop
    self.configuration = configuration
    self.keys = keys
    self.metrics = metrics
    self.fallback = fallback
    self.seen = seen
    self.logger = logger
    self.wallClock = wallClock
    storeLimits = configuration.storeLimits
    accounts = AccountCache(capacity: configuration.limits.accountsCachedMax)
    buckets = Array(repeating: BucketState(), count: configuration.deployment.buckets)
    wheel = DeadlineWheel(now: .now())
    breaker = BreakerMachine(
      limits: Self.breakerLimits(configuration), seed: UInt64.random(in: .min ... .max))
    retained = RetainedDeltas(entriesMax: configuration.limits.retainedDeltasMax)
  }

  var now: NIODeadline { .now() }
  var redisNow: WallTime { clock.now(at: .now(), wall: wallClock) }
  var outstandingCount: Int { outstanding }

  // MARK: - Requests

  /// Takes a request; its answer comes through the request, at once or later, always by its
  /// deadline.
  func submit(_ request: Request) {
    guard outstanding < configuration.limits.inFlightMax else {
      metrics.overloaded.add()
      request.complete(.error(.overloaded, "too many operations in flight"))
      return
    }
    outstanding += 1
    metrics.inFlight.add(1)
    wheel.insert(request)
    startTicking()
    attempt(request)
  }

  /// Every answer passes here.
  func finish(_ request: Request, _ outcome: Outcome) {
    guard request.complete(outcome) else { return }
    let now = NIODeadline.now()
    outstanding -= 1
    metrics.inFlight.add(-1)
    guard !request.isForShape else { return }
    metrics.requestLatency.record(nanoseconds: (now - request.arrived).nanoseconds)
    if tail != nil { noteTail(request, outcome, at: now) }
    switch outcome {
    case .decision(let decision):
      metrics.decided(decision.reason, decision.source)
      if decision.replayed { metrics.replayed.add() }
    case .error(let code, _): metrics.failed(code)
    }
  }

  func attempt(_ request: Request) {
    guard !request.isAnswered, !answeredFromQueue(request) else { return }
    guard let global else { return park(request, .global) { $0.refreshGlobal(atLeast: 0) } }
    guard link?.connection != nil else {
      return answeredWithoutRedis(request, global) ? () : storeIsAway(request)
    }
    // Not a copy of the whole: what is queued would be copied with it, at every append.
    guard buckets[request.bucket].phase == .open else {
      if answeredWithoutRedis(request, global) { return }
      return park(request, .bucket(request.bucket)) {
        $0.recover(bucket: request.bucket, knownEpoch: buckets[request.bucket].epoch)
      }
    }
    guard request.attempts < Self.attemptsMax else {
      return finish(request, .error(.unavailable, "configuration changes faster than it is read"))
    }
    request.attempts += 1
    if answeredFromTable(request, global) { return }
    if request.mode == .cancel { return sendCancel(request, global: global) }
    if request.mode == .refund { return sendRefund(request) }
    let account = accounts[request.account] ?? AccountConfig(version: -1)
    if request.mode.tellsOnly, request.mode != .post {
      return sendStep(request, global: global, account: account)
    }
    let prepared = plans.plan(
      for: request, global: global, account: account, now: billedAt(request), keys: keys)
    if request.mayBeRefused, let refusal = prepared.resolution.refusal {
      return finish(request, .error(.tooManyItems, refusal))
    }
    if let zone = prepared.resolution.unknownZone {
      return zoneIsUnknown(zone, request)
    }
    if answeredFromLease(request, prepared.resolution) { return }
    switch prepared.plan {
    case .plain where request.mode == .reserve:
      let plan = RichPlan(resolution: prepared.resolution, depth: request.subject.depth)
      transact(request, plan, account: account, global: global)
    case .plain(let plan, let keys):
      let bodies = encoder.bodies(
        of: request, plan, prepared, catalogVersion: global.catalogVersion)
      enqueue(
        request, plan, keys: keys, bodies: bodies, versions: (global.version, account.version))
    case .rich(let plan): transact(request, plan, account: account, global: global)
    }
  }

  func park(
    _ request: Request, _ key: WaitKey, ask: (any EnforcerDelegate) -> Void
  ) {
    let isFirst = waiting[key] == nil
    waiting[key, default: []].append(request)
    if isFirst, let delegate { ask(delegate) }
  }

  func resume(_ key: WaitKey) {
    guard let requests = waiting.removeValue(forKey: key) else { return }
    for request in requests where !request.isAnswered { attempt(request) }
  }

  // MARK: - What the script answered

  func handle(
    _ reply: DecideReply, of request: Request, wasInDoubt: Bool, epoch: Int64,
    at now: NIODeadline, entries: (DecidedOperation) -> [OutboxEntry]
  ) {
    // The script looks for the operation's record before it answers anything but a fence: any
    // other answer settles what became of an earlier attempt. A fence or a server's error only
    // says that this attempt wrote nothing.
    switch reply {
    case .fenced, .error: request.inDoubt = wasInDoubt
    default: request.inDoubt = false
    }
    switch reply {
    case .decided(let decided):
      observed(decided.decision.time, at: now)
      if request.mode != .check, !isToBeRecalled(request, decided.decision) {
        noteSeen(decided, bucket: request.bucket, epoch: epoch)
      }
      retain(decided, entries(decided), of: request)
      tookBack(request)
      if leaseDecided(request, decided.decision) { return }
      finish(request, .decision(decided.decision))
    case .replayed(let decided):
      // The first reply was perhaps lost, and with it the only word of these deltas that anybody
      // but Redis had.
      retain(decided, entries(decided), of: request)
      if leaseDecided(request, decided.decision) { return }
      finish(request, .decision(decided.decision))
    case .mismatch(let field):
      finish(
        request,
        .error(.idempotencyMismatch, "\(field.name) differ from the first request of this id"))
    case .idTooOld where request.mode == .post && configuration.ledger != nil:
      // What a POST reports was used, however long ago.
      postLate(request)
    case .idTooOld where wasInDoubt:
      // Its record may be among those that were lost with an epoch.
      finish(
        request, .error(.outcomeUnknown, "an earlier attempt is older than what is remembered"))
    case .idTooOld:
      finish(request, .error(.idTooOld, "the id is older than the dedupe window"))
    case .idFromFuture:
      finish(request, .error(.idFromFuture, "the id's time is ahead of the server's"))
    case .expired(let time):
      // Redis saw the call after the deadline as it was told and wrote nothing. Where the deadline
      // has not passed, it was our idea of Redis's time that was behind; now it is right.
      observed(time, at: now)
      guard now >= request.deadline else { return attempt(request) }
      finish(request, .error(.deadlineExceeded, "not applied: the deadline had passed"))
    case .stale(let globalVersion, let accountVersion, let configuration):
      metrics.retriedStale.add()
      handleStale(request, globalVersion, accountVersion, configuration)
    case .rebuild:
      guard !request.isAnswered else { return }
      request.awaitsAccount = true
      park(request, .account(request.account)) {
        $0.rebuild(
          account: request.account, bucket: request.bucket, epoch: epoch,
          purpose: request.mode == .check ? .read : .write)
      }
    case .period(let time):
      metrics.retriedPeriod.add()
      observed(time, at: now)
      if isOfEarlierMonth(request) { return postLate(request) }
      attempt(request)
    case .young:
      // Nothing is let in before the holds are back; it is a matter of a second.
      eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(150)) { self.attempt(request) }
    case .holdsDue:
      park(request, .holds(request.account)) {
        $0.expireHolds(account: request.account, bucket: request.bucket, epoch: epoch)
      }
    case .holdsElsewhere: bringHolds(for: request, epoch: epoch)
    case .planWanted, .notHeld: refuseStep(request, reply)
    case .fenced:
      metrics.fences.add()
      fencedOff(request.bucket, epoch: epoch)
      attempt(request)
    case .error(let text) where text == "QUANTITY_OVERFLOW":
      finish(request, .error(.amountOutOfRange, "a counter would leave the quantity range"))
    case .error(let text):
      // A server error answers instead of the script (OOM, LOADING, READONLY …): nothing was
      // written, and the store is as good as away.
      logger.debug("script call refused", metadata: ["error": "\(text)"])
      if text.hasPrefix("NOSCRIPT"), request.attempts < 3 {
        loadAllScripts()
        return attempt(request)
      }
      let asks = request.mode == .consume || request.mode == .post
      if text.hasPrefix("OOM"), asks {
        return answerFromRecord(request, epoch: epoch) { _ in self.storeIsAway(request) }
      }
      storeIsAway(request)
    }
  }

  private func handleStale(
    _ request: Request, _ globalVersion: Int64, _ accountVersion: Int64?, _ text: String?
  ) {
    if let accountVersion, (accounts[request.account]?.version ?? -1) != accountVersion {
      // A header that nobody ever set has no text: an account without a plan of its own.
      if var config = AccountConfig(stored: text ?? "") {
        config.version = accountVersion
        accountChanged(request.account, config)
      } else {
        logger.error("account configuration in the store cannot be read")
        return finish(request, .error(.internalError, "account configuration cannot be read"))
      }
    }
    let ours = global?.version ?? 0
    if globalVersion > ours {
      return park(request, .global) { $0.refreshGlobal(atLeast: globalVersion) }
    }
    if globalVersion < ours { delegate?.pushVersion(bucket: request.bucket) }
    guard !request.isAnswered else { return }
    if globalVersion < ours && request.attempts > 2 {
      // Give the version push time instead of spinning on the answer: longer each time, so that the
      // attempts last for half a second.
      let pause = Int64(min(1 << (request.attempts - 2), 100))
      eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(pause)) { self.attempt(request) }
    } else {
      attempt(request)
    }
  }

  // MARK: - Time

  func monotonic(_ instant: NIODeadline) -> MonotonicTime {
    MonotonicTime(nanoseconds: Int64(clamping: instant.uptimeNanoseconds))
  }

  func monotonicNow() -> MonotonicTime { monotonic(.now()) }

  /// Time is watched while a deadline runs or Redis owes an answer: whoever sends for no request
  /// begins it, or the loop's own stalls would be taken for a slow store.
  func startTicking() {
    guard !ticking else { return }
    ticking = true
    stalls.turned(monotonicNow())
    scheduleTick()
  }

  private static func breakerLimits(_ configuration: ServerConfiguration) -> BreakerLimits {
    var limits = BreakerLimits()
    limits.unansweredMax = configuration.limits.redisSlowMilliseconds * 1_000_000
    limits.slowAnswer = limits.unansweredMax
    return limits
  }

  /// Operations are handed on only as far as they are done in this time and that of the way to
  /// Redis: behind it there is one line for all, and what waits before it waits in one of its own.
  private static let plannedNanoseconds: Int64 = 75_000_000

  /// So many replies came, or answers were given without Redis.
  func worked(_ count: Int, at now: NIODeadline) {
    load.completed(count, left: intakeCount, now: monotonic(now))
  }

  var hasRoom: Bool { planned < plannedMax || isStuck }

  /// How long Redis took of the time since then, and not this loop.
  func redisTime(since start: NIODeadline, to now: NIODeadline) -> Int64 {
    (now - start).nanoseconds
      - stalls.stalled(since: monotonic(start), now: monotonic(now))
  }

  var isBreakerOpen: Bool {
    switch breaker.state {
    case .closed: false
    case .open, .halfOpen: true
    }
  }

  func noteBreaker(_ transition: BreakerMachine.Transition?) {
    guard let transition else { return }
    load.interrupted()
    let open = isBreakerOpen
    if open != breakerWasOpen {
      breakerWasOpen = open
      metrics.breakerOpen.add(open ? 1 : -1)
      if open {
        metrics.breakerTrips.add()
        abandonQueued()
      }
    }
    logger.notice("redis breaker", metadata: ["transition": "\(transition)"])
    // Those in doubt may be asked again as soon as the store is believed.
    if !open { resume(.link) }
  }

  /// Asks Redis for a sign of life while the breaker is open. Requests probe as well, but what
  /// waits to be posted or resolved must not depend on new ones coming.
  func probeStore() {
    guard isBreakerOpen, let connection = link?.connection,
      case .allowed(let ticket) = breaker.admit(now: monotonicNow())
    else { return }
    let sentAt = NIODeadline.now()
    startTicking()
    connection.send(
      { RESPWriter.write(["PING"], to: &$0) },
      completion: { [self] result in
        let now = NIODeadline.now()
        switch result {
        case .success:
          noteBreaker(
            breaker.answered(
              ticket, latency: redisTime(since: sentAt, to: now), now: monotonic(now)))
        case .failure: noteBreaker(breaker.failed(ticket, now: monotonic(now)))
        }
      })
  }

  private func scheduleTick() {
    eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(1)) { self.tick() }
  }

  private func tick() {
    let now = NIODeadline.now()
    stalls.turned(monotonic(now))
    let planned = Self.plannedNanoseconds + callTime.quickest
    plannedMax = load.operations(in: planned, now: monotonic(now))
    // A reply that lay unread while the loop was busy with itself is not a slow one.
    let oldest = link?.connection?.oldestSentAt.map { sentAt in
      let sent = MonotonicTime(nanoseconds: sentAt)
      return sent + stalls.stalled(since: sent, now: monotonic(now))
    }
    noteBreaker(breaker.observed(oldestUnansweredSince: oldest, now: monotonic(now)))
    let silence = oldest.map { monotonic(now) - $0 }
    isStuck = isBreakerOpen || Self.isStuck(silence: silence, way: callTime.quickest)
    if intakeCount > 0, hasRoom { onRoom?() }
    let late = wheel.advance(to: now)
    for request in late { deadlinePassed(request) }
    forgetAnswered(late.count)
    if wheel.count > 0 || oldest != nil { return scheduleTick() }
    ticking = false
    stalls.rests()
  }

  /// Requests that were answered at their deadline may still be parked. Once there may be enough of
  /// them they are let go, so that an outage keeps no more than what is unanswered.
  private func forgetAnswered(_ count: Int) {
    answeredWhileParked += count
    guard answeredWhileParked >= 1024 else { return }
    answeredWhileParked = 0
    for (key, requests) in waiting {
      let left = requests.filter { !$0.isAnswered }
      // An empty list stays: it says that what the key waits for was asked for.
      if left.count < requests.count { waiting[key] = left }
    }
  }

  // MARK: - What the rest of the sidecar tells this loop

  func globalChanged(_ config: GlobalConfig) {
    if let global, global.version >= config.version { return resume(.global) }
    global = config
    metrics.configVersion.set(config.version)
    // What this loop had leased by the one before, also after everybody was told of the change.
    leases?.hub.table.configChanged(now: LeaseHub.now)
    resume(.global)
  }

  func accountChanged(_ account: String, _ config: AccountConfig?) {
    let kept = config.map { accounts.box($0) }
    accounts.keep(kept, of: account)
    fallback.learned(account, kept)
  }

  func rebuildFinished(account: String) {
    loadedAt = .now()
    resume(.account(account))
  }

  /// A request for this account that cannot be seeded now (no ledger): its policy answers.
  func rebuildFailed(account: String) {
    guard let requests = waiting.removeValue(forKey: .account(account)) else { return }
    for request in requests { storeIsAway(request) }
  }

  /// More accounts wait to be seeded than are kept.
  func rebuildRefused(account: String) {
    guard let requests = waiting.removeValue(forKey: .account(account)) else { return }
    for request in requests where !request.isAnswered {
      metrics.overloaded.add()
      finish(request, .error(.overloaded, "too many accounts are being loaded"))
    }
  }

  /// No account of this name exists, by the ledger's word; good for half a second at most.
  func accountUnknown(_ account: String) {
    loadedAt = .now()
    guard let requests = waiting.removeValue(forKey: .account(account)) else { return }
    for request in requests where !request.isAnswered {
      finish(
        request,
        .decision(
          Decision(
            reason: .unknownAccount, source: .redis, time: redisNow,
            globalVersion: global?.version ?? 0)))
    }
  }

  func bucketOpened(_ bucket: Int, epoch: Int64) {
    guard epoch >= buckets[bucket].epoch else { return }
    if epoch > buckets[bucket].epoch {
      buckets[bucket].openedAt = .now()
      leases?.epochChanged(bucket)
    }
    buckets[bucket].epoch = epoch
    enter(.open, bucket)
    retained.opened(bucket: bucket, epoch: epoch)
    bringHolds(of: bucket, epoch: epoch)
    resume(.bucket(bucket))
  }

  /// The gauge counts what is in the phase, however it came there.
  func enter(_ phase: BucketState.Phase, _ bucket: Int) {
    let before = buckets[bucket].phase == .recovering ? 1 : 0
    buckets[bucket].phase = phase
    metrics.bucketsFenced.add((phase == .recovering ? 1 : 0) - Int64(before))
  }

  /// Stops issuing calls to a bucket and calls back when none is in flight.
  func quiesce(_ bucket: Int, done: @escaping () -> Void) {
    enter(.recovering, bucket)
    if buckets[bucket].inFlight == 0 {
      done()
    } else {
      quiescing[bucket, default: []].append(done)
    }
  }

  func recoveryFailed(_ bucket: Int) {
    guard let requests = waiting.removeValue(forKey: .bucket(bucket)) else { return }
    for request in requests { storeIsAway(request) }
  }

  /// Whether a call would be sent now.
  var canReachStore: Bool { link?.connection != nil && !isBreakerOpen }

  /// Loads every script on the current connection; calls are pipelined behind it.
  func loadAllScripts() {
    for script in ScriptLibrary.shared.scripts {
      link?.send({ RESPWriter.write(["SCRIPT", "LOAD", .bytes(script.source)], to: &$0) }) { _ in }
    }
  }

  func linkLost() {
    if linkIsUp { metrics.redisUp.add(-1) }
    linkIsUp = false
  }

  func linkConnected() {
    linkIsUp = true
    callTime.linked()
    metrics.redisReconnects.add()
    resume(.link)
  }
}
