// What a run prints: figures and audit, as text for people or as one JSON document.

import Foundation
import TollgateBench
import TollgateCore

struct BenchReport {
  var result: RunResult
  var audit: AuditReport?
  var rows: Int
  var shape: BenchShape

  static let percentiles: [(String, Double)] = [
    ("p50", 50), ("p90", 90), ("p99", 99), ("p999", 99.9), ("max", 100),
  ]

  var text: String {
    let tally = result.tally
    var lines: [String] = []
    if rows > 0 { lines.append("replayed \(rows) rows") }
    lines.append(
      String(
        format: "throughput   %.0f/s over %.2f s (%d answers measured, %d in all)",
        result.perSecond, result.seconds, tally.measured, tally.completed))
    lines.append(
      "latency      "
        + Self.percentiles.map { String(format: "%@ %.0f µs", $0.0, result.percentile($0.1)) }
        .joined(separator: "  "))
    lines.append("decisions    allowed \(tally.allowed)  denied \(tally.denied)")
    for (name, count) in reasons { lines.append("  \(name) \(count)") }
    if !errors.isEmpty {
      lines.append("errors       \(tally.failed)")
      for (name, count) in errors { lines.append("  \(name) \(count)") }
    }
    if tally.connectionsLost + tally.retries + tally.dropped > 0 {
      lines.append(
        "connections  lost \(tally.connectionsLost)  sent again \(tally.retries)  settled by "
          + "retry \(tally.resolved)  answered from the record \(tally.replayed)  dropped "
          + "\(tally.dropped)")
    }
    lines.append(
      String(format: "generator    %.2f µs CPU per answer", result.ownMicroseconds))
    for server in result.servers {
      lines.append(
        String(
          format: "server       %@ (pid %d) %.2f µs CPU per answer", server.name, server.pid,
          Double(server.cpuNanoseconds) / 1000 / Double(max(1, tally.measured))))
    }
    if let audit { lines += Self.lines(audit) }
    return lines.joined(separator: "\n")
  }

  static func lines(_ audit: AuditReport) -> [String] {
    func column(_ value: Int64?) -> String { pad(value.map { "\($0)" } ?? "-", 14) }
    func pad(_ text: String, _ width: Int) -> String {
      String(repeating: " ", count: max(0, width - text.count)) + text
    }
    var lines = [
      "", "audit: units admitted by the replies against what was counted and billed",
      "  " + "feature".padding(toLength: 24, withPad: " ", startingAt: 0) + pad("accounts", 9)
        + pad("client", 14) + pad("redis", 14) + pad("sidecar", 14) + pad("ledger", 14)
        + pad("difference", 14),
    ]
    for row in audit.rows {
      lines.append(
        "  "
          + row.feature.padding(toLength: max(24, row.feature.count), withPad: " ", startingAt: 0)
          + pad("\(row.accounts)", 9) + column(row.client) + column(row.redis)
          + column(row.sidecar) + column(row.ledger) + column(row.difference))
    }
    lines.append(
      "  counters compared \(audit.cellsCompared), too short a window \(audit.cellsTooShort); "
        + "limits checked \(audit.limits.checked), exceeded \(audit.limits.exceeded.count); "
        + "let through by policy \(audit.failOpen); "
        + "undelivered \(audit.undelivered); unknown \(audit.unresolved)"
    )
    lines += audit.limits.exceeded.prefix(20).map { "  exceeded: \($0)" }
    lines += audit.problems.map { "  problem: \($0)" }
    lines += audit.unreachable.map { "  not audited: \($0)" }
    let part = audit.unreachable.isEmpty ? "" : " in the part that could be read"
    lines.append("difference \(audit.difference)\(part)")
    return lines
  }

  private var reasons: [(String, Int)] {
    named(result.tally.reasons) { Reason(rawValue: $0)?.name }
  }

  private var errors: [(String, Int)] {
    named(result.tally.errors) { $0 == 0 ? "REDIS_ERROR" : ErrorCode(rawValue: $0)?.name }
  }

  private func named(_ counts: [Int], _ name: (UInt16) -> String?) -> [(String, Int)] {
    counts.enumerated().compactMap { number, count in
      count == 0 ? nil : (name(UInt16(number)) ?? "number \(number)", count)
    }
  }

  private static func decimal(_ value: Double) -> Document {
    .number(String(format: "%.3f", value.isFinite ? value : 0))
  }

  var document: Document {
    let tally = result.tally
    func object(_ pairs: [(String, Int)]) -> Document {
      .object(pairs.map { Document.Member($0.0, .integer(Int64($0.1))) })
    }
    return .fields([
      "connections": .integer(Int64(shape.connections)),
      "inFlight": .integer(Int64(shape.inFlight)),
      "records": .integer(Int64(shape.records)),
      "rows": .integer(Int64(rows)),
      "seconds": Self.decimal(result.seconds),
      "throughput": Self.decimal(result.perSecond),
      "measured": .integer(Int64(tally.measured)),
      "completed": .integer(Int64(tally.completed)),
      "latencyMicroseconds": .object(
        Self.percentiles.map { Document.Member($0.0, Self.decimal(result.percentile($0.1))) }),
      "allowed": .integer(Int64(tally.allowed)),
      "denied": .integer(Int64(tally.denied)),
      "reasons": object(reasons),
      "errors": object(errors),
      "connectionsLost": .integer(Int64(tally.connectionsLost)),
      "retries": .integer(Int64(tally.retries)),
      "resolvedByRetry": .integer(Int64(tally.resolved)),
      "replayed": .integer(Int64(tally.replayed)),
      "generatorMicrosecondsPerAnswer": Self.decimal(result.ownMicroseconds),
      "serverMicrosecondsPerAnswer": Self.decimal(result.serverMicroseconds),
      "servers": .list(
        result.servers.map {
          .fields([
            "pid": .integer(Int64($0.pid)), "name": .string($0.name),
            "cpuNanoseconds": .integer($0.cpuNanoseconds),
          ])
        }),
      "audit": audit.map { Self.document($0) },
    ])
  }

  static func document(_ audit: AuditReport) -> Document {
    .fields([
      "difference": .integer(audit.difference),
      "clean": .bool(audit.isClean),
      "unresolved": .integer(Int64(audit.unresolved)),
      "undelivered": .integer(audit.undelivered),
      "failOpen": .integer(audit.failOpen),
      "countersCompared": .integer(Int64(audit.cellsCompared)),
      "countersTooShort": .integer(Int64(audit.cellsTooShort)),
      "limitsChecked": .integer(Int64(audit.limits.checked)),
      "limitsExceeded": .strings(audit.limits.exceeded.prefix(100)),
      "problems": .strings(audit.problems),
      "unreachable": .strings(audit.unreachable),
      "features": .list(
        audit.rows.map {
          .fields([
            "feature": .string($0.feature), "accounts": .integer(Int64($0.accounts)),
            "client": .integer($0.client), "redis": $0.redis.map { .integer($0) },
            "sidecar": $0.sidecar.map { .integer($0) }, "ledger": $0.ledger.map { .integer($0) },
            "difference": .integer($0.difference),
          ])
        }),
    ])
  }
}
