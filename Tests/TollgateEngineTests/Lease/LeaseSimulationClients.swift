// The clients of the simulation: they ask, ask again where no answer came, take back what they gave
// up on, and remember what they were told. And the audit at the end.

import TollgateCore
import TollgateTesting

@testable import TollgateEngine

extension Simulation {
  func serve(_ index: Int, _ scene: LeaseScene) {
    let sidecar = sidecars[index]
    let retries = sidecar.retries
    sidecar.retries = []
    for operation in retries {
      if !isQuiet, random.chance(0.7) {
        sidecar.retries.append(operation)
      } else if !isQuiet, random.chance(plan.cancels) {
        cancel(operation, index, scene)
      } else {
        ask(operation, index, scene, isLossy: !isQuiet)
      }
    }
    guard !isQuiet else { return }
    var wanted = plan.operationsPerStep
    while wanted >= 1 || random.chance(wanted) {
      wanted -= 1
      ask(fresh(), index, scene, isLossy: true)
      if wanted <= 0 { break }
    }
  }

  func fresh() -> SimulatedOperation {
    minted += 1
    let account = Int.random(in: 0..<plan.accounts, using: &random)
    let member =
      random.chance(0.5) ? "m\(Int.random(in: 0..<plan.members, using: &random))" : nil
    let amount = random.chance(0.1) ? Int64.random(in: 0...20, using: &random) : 1
    return SimulatedOperation(
      shape: .simple("a\(account)", member: member), amount: amount,
      id: OperationID(high: UInt64(wall) << 16, low: minted))
  }

  func ask(
    _ operation: SimulatedOperation, _ index: Int, _ scene: LeaseScene, isLossy: Bool
  ) {
    let outcome = scene.spend(operation.shape, [operation.amount], id: operation.id)
    // The client may not hear of it.
    let isHeard = !isLossy || !random.chance(0.1)
    switch outcome {
    case .allowed, .replayed:
      count(outcome.isAllowed ? "allowed" : "replayed")
      checkVersion(scene, outcome)
      admit(operation, index, isHeard)
    case .known:
      count("known")
      admit(operation, index, isHeard)
    case .tooOld:
      count("too old")
      unknown[operation.id] = operation
    case .cancelled, .denied, .knownDenied: break
    case .mismatch: findings.append("\(operation.id): a mismatch with itself")
    case .miss(let reason):
      count("miss \(reason)")
      if reason == .unknownKey, !scene.table.mark(bucket: 0, id: operation.id) {
        findings.append("\(operation.id): marked, but not known")
      }
      decide(operation, index, scene, isHeard)
    }
  }

  /// The atomic path.
  private func decide(
    _ operation: SimulatedOperation, _ index: Int, _ scene: LeaseScene, _ isHeard: Bool
  ) {
    let isAllowed = redis.decide(
      operation.id, account: operation.shape.account, cells: operation.shape.allCells,
      amount: operation.amount)
    scene.version = redis.version
    if isAllowed {
      count("atomic")
      scene.register(operation.shape, demand: operation.amount)
      admit(operation, index, isHeard)
    } else if !isHeard {
      sidecars[index].retries.append(operation)
    }
  }

  private func admit(_ operation: SimulatedOperation, _ index: Int, _ isHeard: Bool) {
    if isHeard {
      admitted[operation.id] = operation
    } else {
      sidecars[index].retries.append(operation)
    }
  }

  private func cancel(_ operation: SimulatedOperation, _ index: Int, _ scene: LeaseScene) {
    var result = scene.cancel(operation.shape, operation.amount, id: operation.id)
    if result == .unregistered {
      scene.version = redis.version
      scene.register(operation.shape)
      result = scene.cancel(operation.shape, operation.amount, id: operation.id)
    }
    count("cancel \(result)")
    switch result {
    case .cancelled, .already, .denied: break
    case .unknown:
      redis.cancel(operation.id, cells: operation.shape.allCells, amount: operation.amount)
    case .tooOld: unknown[operation.id] = operation
    case .unregistered, .full: sidecars[index].retries.append(operation)
    case .mismatch: findings.append("\(operation.id): a mismatch with itself")
    }
  }

  /// Nothing is answered from a configuration that was replaced more than a second ago.
  private func checkVersion(_ scene: LeaseScene, _ outcome: LeaseOutcome) {
    let version = scene.number(5)
    let bound = now - 1_000_000_000 - 2 * Self.latency
    guard let last = changes.last(where: { $0.at < bound }), version < last.version else { return }
    guard outcome.isAllowed else { return }
    findings.append("let through by version \(version), \(last.version) is in force")
  }

  // MARK: - The audit

  func audit() {
    findings += redis.violations.prefix(3)
    for index in sidecars.indices {
      guard let gauges = sidecars[index].scene?.table.gauges else { continue }
      if gauges.unsettledUnits != 0 || gauges.unsettledOperations != 0
        || gauges.unresolvedUnits != 0 || gauges.exchanges != 0 || gauges.recovering != 0
      {
        findings.append("sidecar \(index) is not settled: \(gauges)")
      }
    }
    var sure: [String: Int64] = [:]
    var perhaps: [String: Int64] = [:]
    for operation in admitted.values where unknown[operation.id] == nil {
      for cell in operation.shape.allCells { sure[cell, default: 0] += operation.amount }
    }
    for operation in unknown.values {
      for cell in operation.shape.allCells { perhaps[cell, default: 0] += operation.amount }
    }
    for cell in Set(sure.keys).union(redis.ledger.keys) {
      let counted = redis.ledger[cell] ?? 0
      let least = (sure[cell] ?? 0) - lostUnits
      let most = (sure[cell] ?? 0) + (perhaps[cell] ?? 0) + lostCredits
      if counted < least || counted > most {
        findings.append("\(cell): the ledger has \(counted), clients know of \(least)…\(most)")
      }
      if counted != redis.settled[cell] ?? 0, plan.epochs == 0 {
        findings.append("\(cell): ledger \(counted), Redis \(redis.settled[cell] ?? 0)")
      }
    }
  }

  /// Somebody keeps asking for one unit until nothing comes for as long as anybody may hold what
  /// nobody uses: two leases and the grace. Then nothing is left but what is in doubt.
  func askToTheLast(_ account: String) {
    let patience = (2 * redis.ttl + redis.grace) * 1_000_000
    var admittedAt = now
    var rounds = 0
    while now - admittedAt < patience, rounds < 6_000 {
      rounds += 1
      let before = admitted.count
      minted += 1
      let operation = SimulatedOperation(
        shape: .simple(account), amount: 1, id: OperationID(high: UInt64(wall) << 16, low: minted))
      if let scene = sidecars[0].scene {
        scene.now = now
        ask(operation, 0, scene, isLossy: false)
      }
      step()
      if admitted.count > before { admittedAt = now }
    }
    while !isAtRest, rounds < 7_000 {
      rounds += 1
      step()
    }
    let used = redis.settled[account] ?? 0
    let doubt = (redis.lessees[account] ?? [:]).values.reduce(0) {
      $0 + ($1.isInDoubt ? $1.left[account] ?? 0 : 0)
    }
    if used + doubt != redis.amounts[account] {
      findings.append(
        "\(account): settled \(used), in doubt \(doubt), of \(redis.amounts[account] ?? 0)")
    }
  }

  private var isAtRest: Bool {
    calls.isEmpty && sidecars.allSatisfy { $0.scene?.isUnsettled != true }
  }
}
