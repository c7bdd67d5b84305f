// `tollgate ledger events`: thresholds of limits that were reached, newest first, from the books.

import ArgumentParser
import TollgateCore
import TollgateLedger

struct LedgerEvents: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "events", abstract: "Thresholds of limits that were reached, newest first.",
    discussion: """
      Each is listed once for its limit, period and threshold; a raised limit and a reset arm the \
      thresholds again. Thresholds are percents that a catalog's limits name.
      """)

  @OptionGroup var file: LedgerFileOptions
  @Argument(help: "Only this account.") var account: Subject?
  @Option(help: "How many at most.") var limit: Int = 1000

  func validate() throws {
    guard limit > 0 else { throw ValidationError("--limit must be at least 1.") }
    if let account, account.depth != 1 {
      throw ValidationError("\(account): give an account, the first segment only.")
    }
  }

  func run() async throws {
    try await LedgerCommandFailure.reported {
      let store = try file.open()
      if file.json {
        var list = LedgerList("events", file)
        try store.eachEvent(account: account?.path, limit: limit) { try list.add(Row($0)) }
        list.end()
        return
      }
      var table = LedgerTable([
        "time", "subject", "feature", "limit", "percent", "used", "amount", "period", "until",
      ])
      try store.eachEvent(account: account?.path, limit: limit) { event in
        let row = Row(event)
        table.add([
          row.time, row.subject, row.feature, row.limit, "\(row.threshold)", "\(row.used)",
          "\(row.amount)", row.start, row.end,
        ])
      }
      if table.isEmpty { print("no events") } else { table.write() }
    }
  }

  private struct Row: Encodable {
    var id: String
    var time: String
    var timeMilliseconds: Int64
    var subject: String
    var feature: String
    var limit: String
    var threshold: Int64
    var used: Int64
    var amount: Int64
    var start: String
    var end: String

    init(_ event: LedgerEvent) {
      let body = event.body
      id = event.id.description
      time = CivilDate.text(event.time)
      timeMilliseconds = event.time.milliseconds
      subject = body.subject.path
      feature = body.feature.text
      limit = body.limit.text
      threshold = body.percent
      used = body.used
      amount = body.amount
      start = CivilDate.text(body.period.start)
      end = body.period.end.milliseconds < Quantity.maximum ? CivilDate.text(body.period.end) : "-"
    }
  }
}
