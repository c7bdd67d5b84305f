// audit-log: who changed what, when and why. Recent changes come from Redis, older ones from the
// ledger; where the ledger cannot be asked, that is said, because a short list would look complete.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct AuditLogCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "audit-log", abstract: "Who changed what, when and why; newest first.",
    discussion: """
      The history is the ledger's, with what is not delivered yet. Where there are more, the last \
      line names the --after that continues.
      """)

  @Argument(help: "Only this account's changes.") var account: Subject?
  @Flag(help: "Only catalog and bypass changes.") var global = false
  @Option(help: "How many, 1 … 1000.") var limit: Int = 50
  @Option(help: ArgumentHelp("Only older than this instant.", valueName: "when"))
  var before: String?
  @Option(help: ArgumentHelp("Continue where the last page ended.", valueName: "cursor"))
  var after: String?
  @Flag(help: "Show the whole state before and after.") var full = false
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard account == nil || !global else {
      throw ValidationError("An account and --global exclude each other.")
    }
    guard before == nil || after == nil else {
      throw ValidationError("--before and --after exclude each other.")
    }
    guard (1...AuditRequest.limitMax).contains(limit) else {
      throw ValidationError("--limit must be from 1 to \(AuditRequest.limitMax).")
    }
    if let before, Durations.rfc3339(before) == nil {
      throw ValidationError("--before \(before): give an instant, e.g. 2026-12-01T00:00:00Z.")
    }
  }

  func run() async throws {
    let request = AuditRequest(
      account: global ? "" : account?.path, before: before.flatMap { Durations.rfc3339($0) },
      after: after, limit: limit)
    let (reply, body) = try await Changing.ask(
      .auditLog, request, as: AuditReply.self, over: connection)
    if output.json { return Output.json(body) }
    Output.line(Self.text(of: reply, full: full))
    if reply.ledger == "unreachable" {
      Output.error(
        "the ledger cannot be reached (\(reply.ledgerProblem)): only recent changes are listed")
    }
    if let next = reply.next { Output.line("more: --after \(next)") }
  }

  static func text(of reply: AuditReply, full: Bool) -> String {
    guard !reply.entries.isEmpty else { return "no changes" }
    func inLedger(_ row: AuditReply.Row) -> String {
      switch reply.ledger {
      case "none": "-"
      case "unreachable": "unknown"
      default: row.delivered ? "yes" : "not yet"
      }
    }
    if full {
      return reply.entries.map { row in
        """
        \(CivilDate.text(row.time)) \(row.action) \(row.key) version \(row.version) by \(row.actor)\
        \(row.reason.isEmpty ? "" : ": \(row.reason)")
          id         \(row.operation?.hex ?? "-")
          in ledger  \(inLedger(row))
          before     \(row.before)
          after      \(row.after)
        """
      }.joined(separator: "\n")
    }
    var table = Table(
      .text("TIME"), .text("ACTION"), .text("OF"), .number("VERSION"), .text("BY"), .text("ID"),
      .text("IN LEDGER"), .text("REASON"))
    for row in reply.entries {
      table.add(
        CivilDate.text(row.time), row.action, row.key.isEmpty ? "global" : row.key,
        row.scope == "counter" ? "-" : "\(row.version)", row.actor, row.operation?.hex ?? "-",
        inLedger(row), row.reason)
    }
    return table.text
  }
}
