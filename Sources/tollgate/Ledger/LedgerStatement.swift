// `tollgate ledger statement`: what one account used in one month, who paid for it, what rates made
// of it, and what became of its grants. As tables for people, or every number as JSON or CSV.

import ArgumentParser
import Foundation
import TollgateCore
import TollgateLedger

struct LedgerStatement: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "statement", abstract: "Print what an account used in one month.",
    discussion: """
      The month is that of the account's zone: the period on record that begins closest to the \
      first of the month.

      CHARGED is what is billed: included + grants + overage + deficit + refunds + adjusted. But \
      for AFTER CLOSE it is the number that `tollgate reconcile` compares with Redis. ABSORBED was \
      used and is not billed; AFTER CLOSE is the part of CHARGED that is of earlier months, which \
      were closed when it came: these are listed below, and their own statements stay as they were.
      """)

  @OptionGroup var file: LedgerFileOptions

  @Argument(help: "The account.")
  var account: String

  @Option(help: ArgumentHelp("The month, e.g. 2026-11; without it, this one.", valueName: "month"))
  var month: String?

  @Option(help: "table, csv or json (--json means the same).")
  var format: String?

  func validate() throws {
    _ = try NamedMonth.checked(month)
    if let format, !["table", "csv", "json"].contains(format) {
      throw ValidationError("--format \(format): give table, csv or json.")
    }
  }

  func run() async throws {
    try await LedgerCommandFailure.reported {
      let now = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      let store = try file.open()
      let start =
        try NamedMonth.checked(month)?.start.milliseconds
        ?? store.runningMonth(of: account, now: now)
      let statement = try store.statement(account: account, start: start, now: now)
      switch format ?? (file.json ? "json" : "table") {
      case "json": try file.printJSON(statement)
      case "csv": print(statement.csv, terminator: "")
      default: Self.write(statement)
      }
    }
  }

  private static func write(_ statement: Statement) {
    print("deployment \(statement.deployment)")
    print("account    \(statement.account)")
    print("period     \(time(statement.start)) to \(time(statement.end))")
    var lines = LedgerTable([
      "feature", "used", "reversed", "included", "grants", "overage", "deficit", "refunds",
      "adjusted", "charged", "absorbed", "after close", "deltas",
    ])
    for line in statement.lines {
      lines.add(
        [line.feature]
          + [
            line.used, line.reversed, line.included, line.granted, line.overage, line.deficit,
            line.refunds, line.adjusted, line.charged, line.absorbed, line.adjustments,
            line.deltas,
          ].map { "\($0)" })
    }
    lines.write()
    if !statement.closed.isEmpty {
      print("")
      var closed = LedgerTable(["closed period", "to", "feature", "used", "charged", "absorbed"])
      for line in statement.closed {
        closed.add([
          time(line.start), time(line.end), line.feature, "\(line.actual)", "\(line.charged)",
          "\(line.absorbed)",
        ])
      }
      closed.write()
    }
    if !statement.rates.isEmpty {
      print("")
      var rates = LedgerTable(["rate", "from", "charged to", "price", "units", "charge"])
      for rate in statement.rates {
        let price = rate.price.flatMap { price in rate.per.map { "\(price) per \($0)" } }
        rates.add([
          rate.rate, time(rate.from), rate.feature, price ?? "not on record", "\(rate.units)",
          "\(rate.charge)",
        ])
      }
      rates.write()
    }
    guard !statement.grants.isEmpty else { return }
    print("")
    var grants = LedgerTable([
      "grant", "feature", "state", "issued", "this month", "burnt", "remaining", "lapsed",
      "expires",
    ])
    for grant in statement.grants {
      // Of a grant that recurs, what counts is the instance that runs.
      let left = grant.remaining ?? grant.instances.last?.remaining
      grants.add([
        grant.id, grant.feature, grant.state.rawValue, text(grant.amount),
        "\(grant.burntInPeriod)", "\(grant.burnt)", text(left), text(grant.lapsed),
        grant.expires.map(time) ?? (grant.amount == nil ? "" : "never"),
      ])
    }
    grants.write()
    if statement.moreGrants { print("… and more grants") }
  }

  private static func text(_ amount: Int64?) -> String { amount.map { "\($0)" } ?? "" }

  private static func time(_ milliseconds: Int64) -> String {
    CivilDate.text(WallTime(milliseconds: milliseconds))
  }
}
