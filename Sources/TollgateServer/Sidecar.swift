// One sidecar process: puts the pieces together, keeps them going, and takes them down in order.
//
// Start: event loops ─▶ Redis links ─▶ deployment record ─▶ ledger link ─▶ buckets opened ─▶
// configuration ─▶ listeners. It listens before everything is well: a sidecar that cannot reach
// Redis answers by policy, which needs configuration it has once heard.
// Stop (SIGTERM): listeners close ─▶ GOAWAY, what is in flight is answered ─▶ fallback posted ─▶
// outboxes handed over ─▶ links close. Everything within the grace time, whatever of Redis and the
// ledger is frozen: what does not end by then is cut off (`DrainPlan`).

import Logging
import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

struct StartFailure: Error, CustomStringConvertible {
  let description: String

  init(description: String) { self.description = description }
}

final class Sidecar: Sendable {
  let configuration: ServerConfiguration
  let metrics = Metrics()
  let healer: Healer
  let store: ColdStore
  let ledger: LedgerLink?
  /// nil: there is no ledger.
  let watch: LedgerWatch?
  let lag = LagBoard()
  private let owned = OwnedBuckets()
  let leases: LeaseHub
  private let subscription: LeaseSubscription
  let fallback: FallbackQueue
  let keys: KeySpace
  let buckets: BucketMap
  let loops: [LoopUnit]
  let startedAt = NIODeadline.now()
  private let group: MultiThreadedEventLoopGroup
  let logger: Logger
  private let sessions: [SessionUnit]
  private let links: [RedisLink]
  private let draining = NIOLockedValueBox(false)
  /// Between two beats; ended by word of another global configuration.
  private let beatNap = Nap()
  private let globalChanges = NIOLockedValueBox(0)
  private let pushes: PushQueue
  private let failures: AsyncStream<StartFailure>
  private let fastPath: @Sendable (Int) -> (any FastPath)?

  init(
    configuration: ServerConfiguration, logger: Logger,
    fastPath: @escaping @Sendable (Int) -> (any FastPath)? = { _ in nil },
    admin: @escaping @Sendable (Sidecar) -> AdminHandler
  ) async throws {
    self.fastPath = fastPath
    self.configuration = configuration
    self.logger = logger
    buckets = BucketMap(buckets: configuration.deployment.buckets)
    keys = KeySpace(deployment: configuration.deployment.id, map: buckets)
    group = MultiThreadedEventLoopGroup(numberOfThreads: configuration.eventLoops)
    let journal = try configuration.journal.map { [metrics] path throws(FallbackJournal.Failure) in
      try Self.journal(path, configuration, metrics, logger)
    }
    fallback = FallbackQueue(
      limits: configuration.limits.fallback, journal: journal,
      accountsMax: configuration.limits.accountsCachedMax)
    let seen = SeenBoard(buckets: buckets)
    let late = LateBound<AdminHandler>()
    let desk = AdminDesk { method, body, caller in
      guard let handler = late.value else {
        return .failure(AdminError(code: .notReady, message: "starting"))
      }
      return await handler(method, body, caller)
    }
    leases = try LeaseHub(configuration, buckets: buckets, startedAt: SystemClock.wallTime())
    if leases.table.region.isNotRead {
      logger.warning(
        """
        the leases' journal was written before this host started, elsewhere, or by another \
        version: it is not read, and what it says is not settled. Redis keeps holding it; \
        `tollgate lease release` frees it
        """)
    }
    if leases.table.region.geometry != LeaseHub.geometry(configuration) {
      logger.notice(
        """
        the leases' journal holds something and keeps its size: `leases.operations` is in force \
        from the first start after a stop that leaves nothing to be settled
        """)
    }
    let built = try await Self.buildLoops(
      group, configuration, keys, buckets, metrics, fallback, seen, leases, logger, admin: desk)
    loops = built.loops
    sessions = built.sessions
    links = built.links
    let (beatNap, globalChanges) = (beatNap, globalChanges)
    subscription = LeaseSubscription(
      configuration.redis, keys: keys, hub: leases, loops: built.loops, on: group.next(),
      logger: logger
    ) {
      globalChanges.withLockedValue { $0 += 1 }
      beatNap.wake()
    }
    let coldLink = RedisLink(
      configuration.redis, on: group.next(), seed: UInt64.random(in: .min ... .max),
      logger: logger)
    store = ColdStore(
      link: coldLink, keys: keys, deployment: configuration.deployment, seen: seen)
    let pushes = PushQueue(streams: configuration.deployment.buckets + 1)
    self.pushes = pushes
    let (group, sidecarID) = (group, configuration.sidecarID)
    ledger = try configuration.ledger.map { address in
      guard let name = try? Name(sidecarID) else {
        throw StartFailure(description: "sidecar_id \(sidecarID) is not a name")
      }
      return LedgerLink(
        address: address, token: configuration.ledgerToken ?? "",
        link: Link(
          deployment: configuration.deployment, sidecar: name,
          // Later incarnations have higher numbers: the ledger ends the link of an earlier one.
          incarnation: UInt64(max(1, SystemClock.wallTime().milliseconds))),
        group: group, logger: logger, onPush: { pushes.put($0) })
    }
    let (failures, failed) = AsyncStream.makeStream(
      of: StartFailure.self, bufferingPolicy: .bufferingOldest(1))
    self.failures = failures
    healer = Healer(
      configuration: configuration, store: store, ledger: ledger, loops: loops, metrics: metrics,
      logger: logger, buckets: buckets,
      deploymentCheck: DeploymentCheck(hasLedger: ledger != nil) { failed.yield($0) })
    let (store, healer, metrics) = (store, healer, metrics)
    watch = ledger.map {
      LedgerWatch(store: store, ledger: $0, healer: healer, metrics: metrics, logger: logger)
    }
    late.set(admin(self))
  }

  private static func journal(
    _ path: String, _ configuration: ServerConfiguration, _ metrics: Metrics, _ logger: Logger
  ) throws(FallbackJournal.Failure) -> FallbackJournal {
    let journal = try FallbackJournal(
      path: path, deployment: configuration.deployment,
      bytesMax: configuration.limits.fallback.journalFileBytesMax)
    if journal.tornBytes > 0 {
      logger.notice(
        "the journal ended in half a line, whose answer was never given",
        metadata: ["bytes": "\(journal.tornBytes)"])
    }
    for line in journal.damaged.prefix(100) {
      logger.error("a damaged line in the journal", metadata: ["line": "\(line.prefix(2000))"])
    }
    metrics.journalDamaged.add(Int64(journal.damaged.count) + (journal.tornBytes > 0 ? 1 : 0))
    return journal
  }

  // MARK: - Life

  /// Runs until `stop` ends, then drains and returns. Throws where it must not run at all: another
  /// deployment in Redis or in the ledger, also where that is found out later; a port that is
  /// taken.
  func run(
    until stop: @escaping @Sendable () async -> Void,
    ready: @escaping @Sendable () -> Void = {}
  ) async throws {
    store.start()
    for (loop, link) in zip(loops, links) {
      let healer = healer
      loop.onLoop {
        $0.delegate = healer
        // What an earlier incarnation let through is settled first of all.
        $0.leases?.wake()
      }
      link.start()
    }
    subscription.start()
    let services = Task { await self.services() }
    defer { services.cancel() }
    try await checkDeployment()
    leases.table.region.opened()
    let listening = try await listen()
    let http = try await startHTTP()
    logger.notice(
      "tollgate serves",
      metadata: [
        "deployment": "\(configuration.deployment.id)", "sidecar": "\(configuration.sidecarID)",
        "unix": "\(configuration.listenUnix ?? "-")",
        "tcp": "\(configuration.listenTCP?.description ?? "-")",
      ])
    ready()
    let failure = await ended(by: stop)
    // Where it must not go on, nothing that waits could ever be posted from here; the journal keeps
    // it, and the grace is only for goodbyes.
    let grace = configuration.limits.drainMilliseconds
    let plan = DrainPlan(
      from: .now(), graceMilliseconds: failure == nil ? grace : min(grace, Self.refusedGrace))
    await drain(listening, until: plan.workEnd)
    services.cancel()
    await close(services, http, listening, plan)
    if let failure { throw failure }
  }

  static let refusedGrace: Int64 = 500

  /// nil: told to stop. Otherwise why it must not go on.
  private func ended(by stop: @escaping @Sendable () async -> Void) async -> StartFailure? {
    await withTaskGroup(of: StartFailure?.self) { group in
      group.addTask {
        await stop()
        return nil
      }
      group.addTask { [failures] in
        for await failure in failures { return failure }
        return nil
      }
      let first = await group.next()
      group.cancelAll()
      return first ?? nil
    }
  }

  /// Ends what runs and what is connected. The services end by themselves as soon as the calls
  /// they have made are answered; where Redis or the ledger is silent those calls are cut off, and
  /// what has not ended by the end of the grace time ends with the process.
  private func close(
    _ services: Task<Void, Never>, _ http: (any Channel)?, _ listening: Listening,
    _ plan: DrainPlan
  ) async {
    if !(await Bounded.ended(by: plan.workEnd, { await services.value })) {
      store.link.abort()
      for link in links { link.abort() }
    }
    let (links, store, group, subscription, leases) = (links, store, group, subscription, leases)
    let isClosed = await Bounded.ended(by: plan.end) {
      try? await http?.close().get()
      await services.value
      // Before the event loops: their conversations are told.
      await listening.local?.stop()
      await subscription.stop()
      leases.endKeeping()
      for link in links { await link.stop() }
      await store.stop()
      try? await group.shutdownGracefully()
      leases.table.end()
    }
    if !isClosed { logger.notice("the drain's grace time is over; leaving what is unanswered") }
  }

  private func services() async {
    await withTaskGroup(of: Void.self) { group in
      if let ledger, let watch {
        group.addTask { await ledger.run() }
        let thresholds = ThresholdWatch(
          LiveBackend(sidecar: self), clock: { SystemClock.wallTime() }, logger: logger)
        let shipper = Shipper(
          configuration: configuration, store: store, ledger: ledger, healer: healer,
          metrics: metrics, logger: logger, buckets: buckets, lag: lag, owned: owned,
          watch: watch, thresholds: thresholds)
        group.addTask { await shipper.run() }
        group.addTask { await thresholds.run() }
        if let reposter = healer.reposter { group.addTask { await reposter.run() } }
        group.addTask {
          for await _ in self.pushes.signals {
            while let push = self.pushes.take() {
              if case .connected(let linked) = push {
                let worked = await self.healer.epochs()
                Task { await watch.linked(linked, worked: worked) }
              }
              await self.healer.received(push)
            }
          }
        }
      }
      group.addTask { await self.beats() }
      group.addTask { await self.watchLosses() }
      let sweeper = Sweeper(
        configuration: configuration, store: store, healer: healer, buckets: buckets,
        owned: owned)
      group.addTask { await sweeper.run() }
      group.addTask { await self.openBuckets() }
      let predecessors = LeasePredecessors(
        hub: leases, healer: healer, loops: loops, logger: logger)
      group.addTask { await predecessors.run() }
      let poster = FallbackPoster(
        loop: loops[0], queue: fallback, buckets: buckets, metrics: metrics, logger: logger)
      group.addTask { await poster.run() }
    }
  }

  static let beatMilliseconds: Int64 = 100
  /// Between beats while nobody asks for anything and nothing is owed: each beat is a question to
  /// Redis and a turn of every loop, ten times a second in every pod.
  static let quietBeatMilliseconds: Int64 = 1_000

  private func beats() async {
    var frames: Int64 = -1
    var quietBeats = 0
    while !Task.isCancelled {
      let changes = globalChanges.withLockedValue { $0 }
      let before = metrics.frames.current
      let isQuiet =
        before == frames && metrics.retainedDeltas.current == 0
        && metrics.breakerOpen.current == 0
      frames = before
      quietBeats = isQuiet ? quietBeats + 1 : 0
      // What the start or a burst needed goes back to the system, once nobody would wait for it.
      if quietBeats == 3 {
        Allocator.giveBack()
        ProgramText.letGoOfStart()
      }
      await healer.beat()
      await healer.reopen()
      for unit in sessions { unit.onLoop { $0.timePassed() } }
      for loop in loops {
        loop.onLoop {
          $0.probeStore()
          $0.forgetSilentListeners()
        }
      }
      await refreshGauges()
      if isQuiet {
        await beatNap.rest(until: Nap.end(after: Self.quietBeatMilliseconds)) {
          globalChanges.withLockedValue { $0 } == changes
        }
      } else {
        try? await Task.sleep(for: .milliseconds(Self.beatMilliseconds))
      }
    }
  }

  /// What the ledger had to close as lost must never be silent: it is asked now and then.
  private func watchLosses() async {
    let backend = LiveBackend(sidecar: self)
    while !Task.isCancelled, ledger != nil {
      if ledger?.isUp == true, let answer = try? await backend.query(.status, .object([])),
        let lost = answer["status"]?["lostSequences"]?.whole
      {
        metrics.ledgerLost.set(lost)
        metrics.ledgerLostAcknowledged.set(
          answer["status"]?["acknowledgedSequences"]?.whole ?? 0)
        await watch?.heard(answer)
      }
      try? await Task.sleep(for: .milliseconds(Self.lossesMilliseconds))
    }
  }

  static let lossesMilliseconds: Int64 = 10_000

  private func openBuckets() async {
    while !Task.isCancelled {
      if await store.identity() != nil, ledger == nil || ledger?.isUp == true {
        await healer.openAll()
        return
      }
      // Without the ledger a bucket whose meta is current can still be opened.
      if await store.identity() != nil { await healer.adoptCurrent() }
      try? await Task.sleep(for: .milliseconds(100))
    }
  }

  /// Answers what is retained, and how much of it is late.
  @discardableResult
  private func refreshGauges() async -> (retained: Int64, late: Int64) {
    let now = store.wallTime()
    let total = lag.total(now: now)
    metrics.outboxEntries.set(total.entries)
    metrics.outboxLagMilliseconds.set(total.oldestMilliseconds)
    var retained: Int64 = 0
    var late: Int64 = 0
    var lateExchanges: Int64 = 0
    var oldest: WallTime?
    for loop in loops {
      let state = await loop.value {
        ($0.retained.count, $0.retained.oldestTime, $0.retained.lateCount, $0.lateExchanges.count)
      }
      lateExchanges += Int64(state.3)
      retained += Int64(state.0)
      late += Int64(state.2)
      if let time = state.1 { oldest = min(oldest ?? time, time) }
    }
    let leased = leases.table.gauges
    let bound = leases.table.unsettledMax
    metrics.leases.unsettledUnitsMax.set(bound.units)
    metrics.leases.unsettledOperationsMax.set(bound.operations)
    metrics.leases.unsettledUnits.set(leased.unsettledUnits)
    metrics.leases.unsettledOperations.set(leased.unsettledOperations)
    metrics.leases.creditUnits.set(leased.creditUnits)
    metrics.leases.accounts.set(Int64(leased.accounts))
    metrics.leases.shapes.set(Int64(leased.entries))
    metrics.leases.reachMilliseconds.set(leases.reach(since: leased.horizon))
    metrics.leases.recovering.set(Int64(leased.recovering))
    metrics.leases.lateExchanges.set(lateExchanges)
    if ledger != nil { retained += Int64(await healer.retainedConfigCount) }
    metrics.retainedDeltas.set(retained)
    late += await healer.lateConfig.values.reduce(0) { $0 + Int64($1.count) }
    metrics.lateDeltas.set(late)
    metrics.note(fallback.status)
    metrics.meteringLagMilliseconds.set(oldest.map { max(0, now - $0) } ?? 0)
    return (retained, late)
  }

  // MARK: - Deployment

  /// Compares with what Redis has recorded, or records it. A Redis that is away is asked before any
  /// bucket is opened in it; the ledger compares on its own when it is linked.
  private func checkDeployment() async throws {
    for _ in 0..<20 {
      guard await store.identity() != nil else {
        try? await Task.sleep(for: .milliseconds(50))
        continue
      }
      if let failure = try await DeploymentCheck.failure(store, writing: ledger == nil) {
        throw failure
      }
      return
    }
    logger.warning("redis is not reached; starting by policy")
  }

  // MARK: - HTTP

  private func startHTTP() async throws -> (any Channel)? {
    guard case .tcp(let host, let port)? = configuration.http else { return nil }
    let board = ReadinessBoard(sidecar: self)
    let gauges = SharedRound { await self.refreshGauges() }
    return try await Listener.bound("http", "\(host):\(port)") {
      try await HealthServer.start(
        host: host, port: port, group: MultiThreadedEventLoopGroup.singleton,
        report: { board.report() },
        metrics: {
          // As they are now; where a loop stands still, as they were.
          await gauges.done()
          return self.metrics.exposition()
        })
    }
  }

  // MARK: - Listening

  /// What carries the data path: local loops, or channels where there are none.
  private struct Listening: Sendable {
    var local: LocalLoops?
    var channels: [any Channel] = []
  }

  private func listen() async throws -> Listening {
    guard configuration.localLoops > 0 else {
      return Listening(
        channels: try await Listener.bind(configuration, group: group, sessions: sessions))
    }
    return Listening(
      local: try await LocalLoops.start(
        configuration, sessions: sessions, metrics: metrics
      ) { [fastPath, leases, metrics] loop in
        fastPath(loop) ?? LeaseFastPath(leases, metrics: metrics)
      })
  }

  var isDraining: Bool { draining.withLockedValue { $0 } }

  // MARK: - Drain

  private func drain(_ listening: Listening, until end: NIODeadline) async {
    draining.withLockedValue { $0 = true }
    logger.notice("draining")
    await listening.local?.stopListening()
    for channel in listening.channels { try? await channel.close().get() }
    for unit in sessions { unit.onLoop { $0.drain() } }
    while NIODeadline.now() < end {
      let open = metrics.connections.current
      let inFlight = metrics.inFlight.current
      if open == 0 && inFlight == 0 && fallback.owed == 0 { break }
      try? await Task.sleep(for: .milliseconds(10))
    }
    for unit in sessions { unit.onLoop { $0.closeAll() } }
    await returnLeases(until: end)
    // Hand over: what this sidecar let through should be in the ledger, if the ledger is there.
    while NIODeadline.now() < end, ledger?.isUp == true {
      if await refreshGauges().retained == 0 { break }
      healer.lateNap.wake()
      try? await Task.sleep(for: .milliseconds(20))
    }
    // What lies in the outbox another sidecar delivers; late deltas lie nowhere but here, and which
    // they are shows only once this sidecar knows the epochs of now.
    if let ledger, !ledger.isUp {
      let limit = min(end, .now() + .seconds(1))
      await healer.followStore(until: limit)
    }
    if await refreshGauges().late > 0 {
      await healer.reposter?.handOver(until: end)
      await awaitReturn(until: end)
      let kept = configuration.journal == nil ? 0 : await lateExchangeDeltas()
      let left = await refreshGauges().late - kept
      if left > 0 { logger.critical("late deltas are lost", metadata: ["count": "\(left)"]) }
      if kept > 0 {
        logger.warning(
          "late deltas of leases stay in the journal: this sidecar has to be started here again",
          metadata: ["count": "\(kept)"])
      }
    }
    if let path = configuration.listenUnix { Listener.removeSocket(path) }
  }

  /// What leases hold is free for others at once, and what was let through from them is settled.
  private func returnLeases(until end: NIODeadline) async {
    leases.table.close(now: LeaseHub.now)
    for loop in loops {
      loop.onLoop {
        $0.hurryLateExchanges()
        $0.leases?.wake()
      }
    }
    await awaitReturn(until: end)
    let limit = NIODeadline.now() + .milliseconds(Self.lateReturnMilliseconds)
    await leases.predecessorsClosed(until: min(end, limit))
    // Without a journal nobody comes back to them: what else their accounts used is settled.
    guard configuration.journal == nil, await lateExchangeDeltas() > 0 else { return }
    for loop in loops { loop.onLoop { $0.giveUpLateExchanges() } }
    // Not longer: what is handed over after this needs time as well.
    await awaitReturn(until: min(end, .now() + .milliseconds(Self.lateReturnMilliseconds)))
  }

  /// Late batches are waited for only so long: what else is to be done needs the time.
  private func awaitReturn(until end: NIODeadline) async {
    let lateEnd = NIODeadline.now() + .milliseconds(Self.lateReturnMilliseconds)
    while NIODeadline.now() < end, !leases.table.isReturned {
      if await lateExchangeDeltas() > 0 {
        if NIODeadline.now() > lateEnd { return }
        healer.lateNap.wake()
      }
      try? await Task.sleep(for: .milliseconds(5))
    }
  }

  static let lateReturnMilliseconds: Int64 = 1_000

  /// What late batches of leases have to settle.
  private func lateExchangeDeltas() async -> Int64 {
    var count = 0
    for loop in loops { count += await loop.value { $0.lateExchangeDeltas } }
    return Int64(count)
  }

  // MARK: - Loops

  private struct Built {
    var loops: [LoopUnit] = []
    var sessions: [SessionUnit] = []
    var links: [RedisLink] = []
  }

  private static func buildLoops(
    _ group: MultiThreadedEventLoopGroup, _ configuration: ServerConfiguration, _ keys: KeySpace,
    _ buckets: BucketMap, _ metrics: Metrics, _ fallback: FallbackQueue, _ seen: SeenBoard,
    _ hub: LeaseHub, _ logger: Logger, admin: AdminDesk
  ) async throws -> Built {
    var built = Built()
    for (index, eventLoop) in group.makeIterator().enumerated() {
      let made = try await eventLoop.submit {
        let enforcer = Enforcer(
          eventLoop: eventLoop, configuration: configuration, keys: keys, metrics: metrics,
          fallback: fallback, seen: seen, logger: logger, wallClock: { SystemClock.wallTime() })
        enforcer.leases = LeaseKeeper(
          hub, enforcer: enforcer,
          own: stride(from: index, to: buckets.buckets, by: configuration.eventLoops).map { $0 })
        let unit = LoopUnit(enforcer)
        hub.keep { unit.onLoop { $0.leases?.wake() } }
        let link = RedisLink(
          configuration.redis, on: eventLoop, seed: UInt64.random(in: .min ... .max),
          logger: logger
        ) { event in
          unit.linkEvent(event, metrics: metrics)
        }
        enforcer.link = link
        let context = SessionContext(
          enforcer: enforcer, configuration: configuration, buckets: buckets, admin: admin,
          logger: logger)
        return (unit, SessionUnit(context, on: eventLoop), link)
      }.get()
      built.loops.append(made.0)
      built.sessions.append(made.1)
      built.links.append(made.2)
    }
    return built
  }
}

/// Set once, after the object that its value needs exists.
final class LateBound<Value: Sendable>: Sendable {
  private let held: NIOLockedValueBox<Value?> = NIOLockedValueBox(nil)

  var value: Value? { held.withLockedValue { $0 } }
  func set(_ value: Value) { held.withLockedValue { $0 = value } }
}
