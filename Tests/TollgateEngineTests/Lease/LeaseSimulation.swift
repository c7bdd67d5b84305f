// Many sidecars, one model Redis, virtual time, and everything that goes wrong between them. The
// auditor counts from the clients' replies only, and from the ledger.

import TollgateCore
import TollgateTesting

@testable import TollgateEngine

struct SimulationPlan {
  var sidecars = 4
  var accounts = 3
  var members = 2
  var steps = 150
  var operationsPerStep = 1.0
  var loss = 0.05
  var pauses = 0.004
  var kills = 0.004
  var hasJournal = true
  var changes = 0.005
  /// Steps in which much time passes at once.
  var leaps = 0.02
  var epochs = 0.0
  var cancels = 0.3
  var fault = ModelRedis.Fault.none
  /// The ring of a killed sidecar is thrown away although it had a journal.
  var forgetsRing = false
}

/// A client's operation.
struct SimulatedOperation {
  var shape: Shape
  var amount: Int64
  var id: OperationID
}

final class SimulatedSidecar {
  enum Message {
    case replies(LeaseExchange.Token, [LeaseReply])
    case lost(LeaseExchange.Token)
    case configChanged
    case heartbeat
    case epochChanged
  }

  var memory: LeaseMemory
  var scene: LeaseScene?
  var lessee: UInt64
  var pausedUntil: Int64 = 0
  var deadUntil: Int64 = 0
  var incarnation = 0
  var isSubscribed = true
  /// What came, with the time at which it is there.
  var inbox: [(at: Int64, incarnation: Int, message: Message)] = []
  /// Answers that did not reach their client.
  var retries: [SimulatedOperation] = []

  init(memory: LeaseMemory, lessee: UInt64) {
    self.memory = memory
    self.lessee = lessee
  }
}

final class Simulation {
  static let geometry = LeaseScene.geometry(slots: 128, log: 1 << 18)
  static let latency: Int64 = 20_000_000

  let plan: SimulationPlan
  var random: SeededRandom
  let redis: ModelRedis
  var now: Int64 = 50_000_000_000
  var sidecars: [SimulatedSidecar] = []
  /// Calls on their way to Redis.
  var calls: [(at: Int64, from: Int, incarnation: Int, exchange: LeaseExchange, isHeard: Bool)] = []
  var minted: UInt64 = 0
  /// By id: what clients were told was let through.
  var admitted: [OperationID: SimulatedOperation] = [:]
  /// Nobody was told.
  var unknown: [OperationID: SimulatedOperation] = [:]
  /// What journals that do not exist lost.
  var lostUnits: Int64 = 0
  var lostCredits: Int64 = 0
  var changes: [(at: Int64, version: Int64)] = []
  var findings: [String] = []
  var stats: [String: Int] = [:]
  var isQuiet = false

  init(_ plan: SimulationPlan, seed: UInt64) {
    self.plan = plan
    random = SeededRandom(seed: seed)
    redis = ModelRedis(fault: plan.fault)
    redis.ttl = 3_000
    redis.grace = 1_000
    for account in 0..<plan.accounts {
      redis.amounts["a\(account)"] = [40, 200, 2_000][account % 3]
      for member in 0..<plan.members {
        redis.amounts["a\(account)/m\(member)"] = [30, 1_000][member % 2]
      }
    }
    for index in 0..<plan.sidecars {
      let sidecar = SimulatedSidecar(
        memory: LeaseMemory(Self.geometry), lessee: UInt64(index + 1) << 32)
      sidecars.append(sidecar)
      start(index)
    }
  }

  var wall: Int64 { LeaseScene.wallStart + now / 1_000_000 }

  private static var configuration: LeaseConfiguration {
    var configuration = LeaseConfiguration()
    configuration.leaseMilliseconds = 3_000
    configuration.marginMilliseconds = 200
    return configuration
  }

  func start(_ index: Int) {
    let sidecar = sidecars[index]
    sidecar.lessee += 1
    sidecar.incarnation += 1
    let hasMemory = plan.hasJournal && !plan.forgetsRing
    if !hasMemory { sidecar.memory = LeaseMemory(Self.geometry) }
    let scene = LeaseScene(
      sidecar.memory, lessee: sidecar.lessee, configuration: Self.configuration, now: now,
      horizon: hasMemory || plan.forgetsRing ? 0 : wall, minted: UInt64(index) << 12)
    scene.version = redis.version
    scene.table.subscribed(since: scene.monotonic)
    sidecar.scene = scene
    sidecar.isSubscribed = true
  }

  func run() {
    for _ in 0..<plan.steps { step() }
    isQuiet = true
    for sidecar in sidecars {
      sidecar.pausedUntil = 0
      sidecar.deadUntil = 0
    }
    var rounds = 0
    while rounds < 400, rounds < 20 || !isSettled {
      step()
      rounds += 1
    }
    stats["expiries"] = redis.expiries
    audit()
  }

  private var isSettled: Bool {
    calls.isEmpty
      && sidecars.allSatisfy { sidecar in
        guard let gauges = sidecar.scene?.table.gauges else { return false }
        return gauges.unsettledUnits == 0 && gauges.creditUnits == 0 && gauges.exchanges == 0
          && gauges.recovering == 0
          && gauges.unsettledOperations == 0 && sidecar.retries.isEmpty
      }
  }

  func count(_ what: String) { stats[what, default: 0] += 1 }

  // MARK: - One step

  func step() {
    now += Int64.random(in: 2...25, using: &random) * 1_000_000
    redis.now = wall
    if !isQuiet { disturb() }
    deliverCalls()
    redis.expireAll()
    for index in sidecars.indices { turn(index) }
  }

  private func disturb() {
    for sidecar in sidecars {
      if sidecar.scene != nil, random.chance(plan.pauses) {
        count("pauses")
        sidecar.pausedUntil = now + Int64.random(in: 10...15_000, using: &random) * 1_000_000
      }
      if let scene = sidecar.scene, random.chance(plan.kills) {
        count("kills")
        if !plan.hasJournal {
          lostUnits += scene.table.gauges.unsettledUnits
          lostCredits += scene.table.gauges.creditUnits
        }
        sidecar.scene = nil
        sidecar.pausedUntil = 0
        sidecar.deadUntil = now + Int64.random(in: 10...12_000, using: &random) * 1_000_000
      }
      if random.chance(plan.pauses), let scene = sidecar.scene {
        sidecar.isSubscribed.toggle()
        scene.now = now
        // A break is noticed by the silence alone.
        if sidecar.isSubscribed { scene.table.subscribed(since: scene.monotonic) }
      }
    }
    if random.chance(plan.changes) { change() }
    if random.chance(plan.epochs) {
      count("epochs")
      redis.lose()
      // Calls of the epoch before are fenced off: they come back undone, or as nobody knows.
      for call in calls { report(.lost(call.exchange.token), to: call.from, call.incarnation, 1) }
      calls = []
      for index in sidecars.indices {
        report(.epochChanged, to: index, sidecars[index].incarnation, Self.latency)
      }
    }
    // Now and then the time of a run is longer than that of a lease.
    if random.chance(plan.leaps) { now += Int64.random(in: 0...4_000, using: &random) * 1_000_000 }
  }

  private func change() {
    count("changes")
    redis.version += 1
    changes.append((now, redis.version))
    let cell = "a\(Int.random(in: 0..<plan.accounts, using: &random))"
    let before = redis.amounts[cell] ?? 0
    let after = Int64.random(in: 0...(before * 2 + 10), using: &random)
    redis.amounts[cell] = after
    if (redis.settled[cell] ?? 0) + redis.held(cell) > after { redis.excused.insert(cell) }
    publish(.configChanged)
  }

  private func publish(_ message: SimulatedSidecar.Message) {
    for (index, sidecar) in sidecars.enumerated() where sidecar.isSubscribed {
      report(message, to: index, sidecar.incarnation, Self.latency)
    }
  }

  private func report(
    _ message: SimulatedSidecar.Message, to index: Int, _ incarnation: Int, _ delay: Int64
  ) {
    sidecars[index].inbox.append((now + delay, incarnation, message))
  }

  private func deliverCalls() {
    let due = calls.filter { $0.at <= now }
    calls.removeAll { $0.at <= now }
    for call in due {
      let replies = redis.exchange(call.exchange)
      guard call.isHeard else { continue }
      report(
        .replies(call.exchange.token, replies), to: call.from, call.incarnation,
        Int64.random(in: 0...Self.latency, using: &random))
    }
  }

  private func turn(_ index: Int) {
    let sidecar = sidecars[index]
    if sidecar.scene == nil, now >= sidecar.deadUntil { start(index) }
    guard let scene = sidecar.scene, now >= sidecar.pausedUntil else { return }
    scene.now = now
    // One that was stopped may serve a client before it hears what has happened meanwhile.
    let servesFirst = random.chance(0.5)
    if servesFirst { serve(index, scene) }
    hear(sidecar, scene)
    if !servesFirst { serve(index, scene) }
    send(index, scene)
    for lessee in scene.table.finishedPredecessors {
      redis.close(lessee)
      scene.table.region.closed(lessee)
    }
  }

  private func hear(_ sidecar: SimulatedSidecar, _ scene: LeaseScene) {
    if sidecar.isSubscribed {
      scene.table.heard(at: MonotonicTime(nanoseconds: now - Self.latency))
    }
    let due = sidecar.inbox.filter { $0.at <= now && $0.incarnation == sidecar.incarnation }
    sidecar.inbox.removeAll { $0.at <= now || $0.incarnation != sidecar.incarnation }
    for (_, _, message) in due {
      switch message {
      case .replies(let token, let replies):
        scene.table.replied(token, replies, now: scene.monotonic)
        if replies.contains(.stale) {
          count("stale")
          for account in 0..<plan.accounts {
            scene.table.versions(
              bucket: 0, account: Array("a\(account)".utf8), globalVersion: redis.version,
              accountVersion: 1)
          }
        }
      case .lost(let token): scene.table.lost(token)
      case .configChanged: scene.table.configChanged(now: scene.monotonic)
      case .heartbeat: break
      case .epochChanged: scene.table.epochChanged(bucket: 0)
      }
    }
  }

  private func send(_ index: Int, _ scene: LeaseScene) {
    let incarnation = sidecars[index].incarnation
    var sent = 0
    // Now and then there is more to settle than is settled early, or in time.
    let isSpare = isQuiet || random.chance(0.75)
    let settle: Int64 = isQuiet || random.chance(0.75) ? 0 : 4_000
    while sent < 8, let exchange = scene.collect(isSpare: isSpare, settle: settle) {
      sent += 1
      let fate = isQuiet ? 1 : random.unit()
      let delay = Int64.random(in: 0...Self.latency, using: &random)
      if fate < plan.loss / 3 {
        // It never arrives.
        report(.lost(exchange.token), to: index, incarnation, 200_000_000)
      } else if fate < plan.loss * 2 / 3 {
        // It is done, and nobody hears of it.
        calls.append((now + delay, index, incarnation, exchange, false))
        report(.lost(exchange.token), to: index, incarnation, 200_000_000)
      } else if fate < plan.loss {
        // It is given up, and done much later.
        let late = Int64.random(in: 200...12_000, using: &random) * 1_000_000
        calls.append((now + late, index, incarnation, exchange, false))
        report(.lost(exchange.token), to: index, incarnation, 200_000_000)
        count("late copies")
      } else {
        calls.append((now + delay, index, incarnation, exchange, true))
      }
    }
  }
}
