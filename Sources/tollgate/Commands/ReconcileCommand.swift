// reconcile: proves that the number on the screen is the number on the bill. Its last line is
// `difference N`; exit code 1 unless N is 0 and everything could be compared.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct ReconcileCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "reconcile",
    abstract: "Compare Redis with the ledger, per account, feature and period.",
    discussion: """
      Redis settled = ledger settled + undelivered. Every difference is listed down to the delta \
      ids that explain it. Exit code 0: no difference, 1: a difference, 3: something could not be \
      compared now.
      """)

  @Option(help: "Only this account.") var account: Subject?
  @Flag(help: "Also list totals without a difference.") var verbose = false
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  static let rowsMax = 10_000

  func run() async throws {
    let server = try await connection.open()
    var total = ReconcileReply()
    var cursor: String?
    repeat {
      let request = ReconcileRequest(account: account, after: cursor, verbose: verbose)
      let page = try await server.admin(.reconcile, request, as: ReconcileReply.self).reply
      total.add(page, rowsMax: Self.rowsMax)
      cursor = page.next
    } while cursor != nil
    await server.close()
    if output.json { Output.json(total) } else { Output.line(Self.text(of: total)) }
    if total.difference != 0 { try ExitStatus.denied.leave() }
    if !total.unsettled.isEmpty { try ExitStatus.unavailable.leave() }
  }

  static func text(of reply: ReconcileReply) -> String {
    var lines: [String] = []
    if !reply.rows.isEmpty {
      var table = Table(
        .text("ACCOUNT"), .text("FEATURE"), .text("PERIOD"), .number("REDIS"), .number("LEDGER"),
        .number("UNDELIVERED"), .number("DIFFERENCE"))
      for row in reply.rows {
        table.add(
          row.account.path, row.name, String(CivilDate.text(row.period.start).prefix(7)),
          "\(row.redis)", "\(row.ledger)", "\(row.undelivered)", "\(row.difference)")
      }
      lines.append(table.text)
      for row in reply.rows where !row.explanation.isEmpty {
        lines.append("\(row.account) \(row.name):")
        lines += row.explanation.map { "  \($0)" }
      }
    }
    for skipped in reply.unsettled {
      lines.append("not compared: \(skipped.account): \(skipped.why)")
    }
    let idle = reply.skipped.count - reply.unsettled.count
    if idle > 0 {
      lines.append("\(idle) accounts are not loaded in Redis: the ledger alone has their numbers")
    }
    lines.append(
      "\(reply.accounts) accounts, \(reply.totals) totals: redis \(reply.redis) = ledger "
        + "\(reply.ledger) + undelivered \(reply.undelivered)"
        + (reply.difference == 0 ? "" : " does not hold"))
    lines.append("difference \(reply.difference)")
    return lines.joined(separator: "\n")
  }
}

extension ReconcileReply.Row {
  /// `chat.requests`, or with the counter beside the bill: `spend, grant promo`.
  fileprivate var name: String {
    guard let window else { return feature.text }
    return "\(feature), \(Window(code: window)?.word ?? window)"
  }
}

extension ReconcileReply {
  mutating func add(_ page: ReconcileReply, rowsMax: Int) {
    rows += page.rows.prefix(max(0, rowsMax - rows.count))
    skipped += page.skipped
    accounts += page.accounts
    totals += page.totals
    difference += page.difference
    redis += page.redis
    ledger += page.ledger
    undelivered += page.undelivered
  }

  /// Skipped for a reason that passes; an account that merely is not loaded is no such case.
  var unsettled: [Skipped] { skipped.filter { !$0.idle } }
}
