// `status`: the sidecar's own state, from memory.

import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis

struct HealthReporter: Sendable {
  let sidecar: Sidecar

  func report() async -> HealthReport {
    let configuration = sidecar.configuration
    let metrics = sidecar.metrics
    let deployment = configuration.deployment
    let global = await sidecar.healer.currentGlobal
    let heartbeat = await sidecar.healer.lastHeartbeat
    let open = await sidecar.healer.openBuckets
    let total = sidecar.buckets.buckets + 1
    let connected = metrics.redisUp.current > 0
    var decisions: [String: Int64] = [:]
    for reason in Reason.allCases {
      let count = metrics.decisionCount(reason)
      if count > 0 { decisions[reason.name] = count }
    }
    return HealthReport(
      sidecar: .init(
        id: configuration.sidecarID, version: SidecarVersion.current,
        uptimeMilliseconds: (NIODeadline.now() - sidecar.startedAt).nanoseconds / 1_000_000,
        ready: metrics.configVersion.current > 0 && !sidecar.isDraining,
        draining: sidecar.isDraining, connections: Int(metrics.connections.current),
        inFlight: Int(metrics.inFlight.current)),
      deployment: DeploymentReport(
        id: deployment.id.text, buckets: deployment.buckets, hash: deployment.hash,
        keyVersion: deployment.keyVersion, mode: deployment.mode.rawValue),
      redis: .init(
        address: "\(configuration.redis.endpoint)", connected: connected,
        breaker: metrics.breakerOpen.current > 0 ? "open" : "closed",
        runID: await sidecar.store.identity()?.runID,
        error: connected ? "" : "not connected"),
      ledger: .init(
        address: configuration.ledger.map { "\($0)" }, connected: sidecar.ledger?.isUp ?? false,
        error: sidecar.ledger?.isUp == false ? "not connected" : sidecar.watch?.problem ?? ""),
      configuration: .init(
        globalVersion: global?.version ?? 0, catalogVersion: global?.catalogVersion ?? 0,
        heartbeatAgeMilliseconds: heartbeat.map {
          (NIODeadline.now() - $0).nanoseconds / 1_000_000
        } ?? -1),
      buckets: .init(
        total: total, ready: open, fenced: Int(metrics.bucketsFenced.current),
        recovering: max(0, total - open), owned: Int(metrics.bucketsOwned.current)),
      delivery: .init(
        undeliveredEntries: metrics.outboxEntries.current,
        oldestMilliseconds: metrics.outboxLagMilliseconds.current,
        retained: Int(metrics.retainedDeltas.current),
        retainedMax: configuration.limits.retainedDeltasMax * sidecar.loops.count,
        retainedDropped: metrics.retainedDropped.current,
        duplicatesAbsorbed: metrics.duplicatesAbsorbed.current,
        losses: metrics.ledgerLost.current,
        lossesAcknowledged: metrics.ledgerLostAcknowledged.current),
      fallback: fallback(), leases: leases(),
      decisions: decisions)
  }

  static let refusalsShown = 100

  private func leases() -> HealthReport.Leases {
    let table = sidecar.leases.table
    let gauges = table.gauges
    return .init(
      lessee: LesseeID(sidecar.leases.lessee).hex, accounts: Int64(gauges.accounts),
      shapes: Int64(gauges.entries), unsettledUnits: gauges.unsettledUnits,
      unsettledOperations: gauges.unsettledOperations, recovering: Int64(gauges.recovering),
      predecessors: table.region.predecessors.map { LesseeID($0).hex },
      unresolvedUnits: gauges.unresolvedUnits)
  }

  private func fallback() -> HealthReport.Fallback {
    let status = sidecar.fallback.status
    return .init(
      unitsAdmitted: sidecar.metrics.fallbackUnits.current, operationsToPost: status.pending,
      deferred: status.deferred, refused: status.refused,
      refusals: sidecar.fallback.refusals(Self.refusalsShown).map { refusal in
        let operation = refusal.operation
        return .init(
          operation: operation.id.hex, subject: operation.subject.path,
          amounts: Dictionary(
            operation.items.map { ($0.feature.text, $0.amount) }, uniquingKeysWith: { $1 }),
          reason: refusal.reason, atMilliseconds: refusal.time.milliseconds)
      }, journalBytes: status.journalBytes)
  }
}

package enum SidecarVersion {
  package static let current = "0.1.0"
}
