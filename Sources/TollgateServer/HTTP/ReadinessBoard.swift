// What `/readyz` says: ready means "can answer by policy" (DESIGN 9). A sidecar becomes ready once
// it has heard a configuration; an outage of Redis or of the ledger after that is degradation,
// written out line by line, and does not take the pod out of service. Draining does.

import NIOCore

struct ReadinessBoard: Sendable {
  let sidecar: Sidecar

  func report() -> ReadinessReport {
    let metrics = sidecar.metrics
    var lines: [String] = []
    var ready = true
    if sidecar.isDraining {
      ready = false
      lines.append("draining")
    }
    if metrics.configVersion.current == 0 {
      ready = false
      lines.append("no configuration heard yet: apply a catalog, or let Redis be reached once")
    }
    if metrics.redisUp.current == 0 { lines.append("degraded: redis is not connected") }
    if metrics.breakerOpen.current > 0 { lines.append("degraded: redis is slow or failing") }
    if sidecar.ledger != nil, metrics.ledgerUp.current == 0 {
      lines.append("degraded: the ledger is not connected; usage waits in the outbox")
    }
    if metrics.bucketsFenced.current > 0 {
      lines.append("degraded: \(metrics.bucketsFenced.current) buckets wait for recovery")
    }
    if metrics.fallbackPending.current > 0 {
      lines.append("\(metrics.fallbackPending.current) operations wait to be posted")
    }
    if metrics.fallbackRefused.current > 0 {
      lines.append(
        "\(metrics.fallbackRefused.current) operations let through are refused: see status")
    }
    return ReadinessReport(ready: ready, lines: lines)
  }
}
