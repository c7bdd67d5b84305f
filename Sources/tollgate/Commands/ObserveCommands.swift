// status, doctor.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct StatusCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "How one sidecar is.",
    discussion: """
      Exit code 0: in order, 1: degraded. Losses that were acknowledged (`tollgate ledger losses`) \
      are counted and do not degrade.
      """)

  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (report, body) = try await Changing.ask(
      .status, EmptyRequest(), as: HealthReport.self, over: connection)
    if output.json { Output.json(body) } else { Output.line(Self.text(of: report)) }
    try (Self.isDegraded(report) ? ExitStatus.denied : .ok).leave()
  }

  static func isDegraded(_ report: HealthReport) -> Bool {
    !report.redis.connected || report.redis.breaker != "closed"
      || (report.ledger.address != nil
        && (!report.ledger.connected || !report.ledger.error.isEmpty))
      || report.delivery.lossesOpen > 0
      || report.buckets.ready < report.buckets.total || report.sidecar.draining
      || !report.sidecar.ready
  }

  static func text(of report: HealthReport) -> String {
    let sidecar = report.sidecar
    var state = sidecar.ready ? "ready" : "not ready"
    if sidecar.draining { state = "draining" }
    if isDegraded(report) && !sidecar.draining { state += ", degraded" }
    var redis = report.redis.connected ? "connected" : "NOT CONNECTED"
    redis += ", breaker \(report.redis.breaker)"
    if !report.redis.error.isEmpty { redis += ": \(report.redis.error)" }
    var ledger = "none: unmetered features only, a lost Redis starts afresh"
    if let address = report.ledger.address {
      ledger = "\(address) \(report.ledger.connected ? "connected" : "NOT CONNECTED")"
      if !report.ledger.error.isEmpty { ledger += ": \(report.ledger.error)" }
    }
    let deployment = report.deployment
    let config = report.configuration
    let buckets = report.buckets
    let delivery = report.delivery
    var lines = [
      "sidecar     \(sidecar.id) \(sidecar.version), \(state), up "
        + LimitText.span(sidecar.uptimeMilliseconds),
      "deployment  \(deployment.id), \(deployment.buckets) buckets, \(deployment.hash), "
        + "keys v\(deployment.keyVersion), \(deployment.mode)",
      "redis       \(report.redis.address) \(redis)",
      "ledger      \(ledger)",
      "catalog     version \(config.catalogVersion) (global \(config.globalVersion)), heard "
        + "\(config.heartbeatAgeMilliseconds) ms ago",
      "buckets     \(buckets.ready) of \(buckets.total) ready, \(buckets.fenced) fenced, "
        + "\(buckets.recovering) recovering; ships \(buckets.owned)",
      "delivery    \(delivery.undeliveredEntries) undelivered, oldest "
        + "\(delivery.oldestMilliseconds) ms; \(delivery.retained) retained, "
        + "\(delivery.duplicatesAbsorbed) duplicates absorbed, \(delivery.losses) losses"
        + (delivery.losses > 0 ? " (\(delivery.lossesAcknowledged) acknowledged)" : ""),
      "fallback    \(report.fallback.unitsAdmitted) units let through, "
        + "\(report.fallback.operationsToPost) operations to post, "
        + "\(report.fallback.deferred) of them deferred, \(report.fallback.refused) refused",
    ]
    if let leases = report.leases {
      lines.append(
        "leases      lessee \(leases.lessee), of \(leases.accounts) accounts; "
          + "\(leases.unsettledUnits) units to settle"
          + (leases.unresolvedUnits > 0
            ? ", \(leases.unresolvedUnits) that cannot be" : "")
          + (leases.predecessors.isEmpty
            ? "" : "; closing \(leases.predecessors.joined(separator: " "))"))
    }
    lines += [
      "sessions    \(sidecar.connections) connections, \(sidecar.inFlight) in flight"
    ]
    if report.delivery.lossesOpen > 0 {
      lines.append(
        "attention   the ledger closed \(report.delivery.lossesOpen) entries as lost that nobody "
          + "acknowledged: `tollgate doctor` says what to do")
    }
    if !report.decisions.isEmpty {
      let counts = report.decisions.sorted { ($1.value, $0.key) < ($0.value, $1.key) }
      lines.append(
        "decisions   " + counts.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
    }
    for refusal in report.fallback.refusals {
      let amounts = refusal.amounts.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }
      lines.append(
        "refused     \(refusal.operation) \(refusal.subject) "
          + "\(amounts.joined(separator: " ")): \(refusal.reason)")
    }
    return lines.joined(separator: "\n")
  }
}

struct DoctorCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "doctor",
    abstract: "Check Redis, its settings, clocks, ledger and permissions; say what to do.",
    discussion: "Exit code 0: nothing worse than advice, 1: warnings or errors.")

  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let before = WallTime.now
    let server = try await connection.open()
    let after = WallTime.now
    let answer = try await server.admin(.doctor, EmptyRequest(), as: DoctorReply.self)
    await server.close()
    var reply = answer.reply
    reply.findings.insert(
      Self.ownClock(server: server.welcome.time, sent: before, received: after), at: 0)
    if output.json { Output.json(reply) } else { Output.line(Self.text(of: reply)) }
    let worst = reply.findings.map(\.severity).max() ?? .ok
    try (worst > .advice ? ExitStatus.denied : .ok).leave()
  }

  /// Ids minted here carry this machine's time, so it is a finding like the others.
  static func ownClock(server: WallTime, sent: WallTime, received: WallTime) -> Finding {
    let offset = server < sent ? sent - server : received < server ? server - received : 0
    return offset <= Doctor.clockOffsetMillisecondsMax
      ? Finding("this clock", .ok, "within \(Doctor.clockOffsetMillisecondsMax) ms of the sidecar")
      : Finding(
        "this clock", .warning, "\(offset) ms from the sidecar",
        fix: "synchronize this machine's clock (NTP)")
  }

  static func text(of reply: DoctorReply) -> String {
    var table = Table(.text("CHECK"), .text(""), .text("FOUND"))
    for finding in reply.findings {
      table.add(finding.check, finding.severity.rawValue, finding.found)
      if !finding.fix.isEmpty { table.add("", "", "→ \(finding.fix)") }
    }
    return table.text
  }
}
