// `usage --history`: what was used over time, from the ledger's deltas, page by page.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

/// `2026-11-21` (its first instant in UTC), or an instant.
struct Moment: ExpressibleByArgument {
  var time: WallTime

  init?(argument: String) {
    if let time = CivilDate.instant(argument) {
      self.time = time
    } else if argument.utf8.count == 10, let time = CivilDate.instant(argument + "T00:00:00Z") {
      self.time = time
    } else {
      return nil
    }
  }
}

struct HistoryOptions: ParsableArguments {
  @Flag(help: "What was used over time, from the ledger.")
  var history = false

  @Option(
    help: ArgumentHelp(
      "With --history: day, feature, a level of the catalog (member), the key of an attribute "
        + "(model); several with commas.", valueName: "keys"))
  var by: String?

  @Option(
    help: ArgumentHelp("With --history: from then on, e.g. 2026-11-01.", valueName: "time"))
  var from: Moment?

  @Option(help: ArgumentHelp("With --history: until then.", valueName: "time"))
  var to: Moment?

  @Option(help: ArgumentHelp("With --history: this feature only.", valueName: "name"))
  var feature: Name?

  func validate() throws {
    guard !history, by != nil || from != nil || to != nil || feature != nil else { return }
    throw ValidationError("--by, --from, --to and --feature go with --history.")
  }
}

enum UsageHistory {
  /// Pages in one command: each reads up to 10,000 deltas.
  static let pagesMax = 10_000
  static let rowsMax = 100_000

  static func run(
    _ subject: Subject, _ options: HistoryOptions, over connection: ConnectionOptions,
    _ output: OutputOptions
  ) async throws {
    let by = (options.by ?? "day,feature").split(separator: ",").map(String.init)
    var request = HistoryRequest(
      subject: subject, by: by, from: options.from?.time, to: options.to?.time,
      feature: options.feature)
    let server = try await connection.open()
    var whole: HistoryReply?
    var rows: [[String]: HistoryReply.Row] = [:]
    var pages = 0
    repeat {
      let page: HistoryReply
      do throws(CommandFailure) {
        page = try await server.admin(.usageHistory, request, as: HistoryReply.self).reply
      } catch {
        await server.close()
        throw error
      }
      for row in page.rows { rows[row.key, default: .init(key: row.key)].add(row) }
      whole = whole ?? page
      request.from = page.from
      request.to = page.to
      request.cursor = page.next
      pages += 1
      guard rows.count <= rowsMax, pages < pagesMax else {
        await server.close()
        throw CommandFailure.usage(
          "there are more than \(rowsMax) rows",
          fix: "group by less, or ask for a shorter time with --from and --to")
      }
    } while request.cursor != nil
    await server.close()
    guard var reply = whole else { return }
    reply.rows = rows.values.sorted { $0.key.lexicographicallyPrecedes($1.key) }
    reply.next = nil
    if output.json { Output.json(reply) } else { Output.line(text(of: reply)) }
  }

  static func text(of reply: HistoryReply) -> String {
    let columns = reply.by.map { Table.Column.text($0.uppercased()) }
    var table = Table(
      columns + [
        .number("USED"), .number("CHARGED"), .number("ABSORBED"), .number("REFUNDED"),
        .number("ADJUSTED"), .number("BILLED"), .number("DELTAS"),
      ])
    for row in reply.rows {
      table.add(
        row.key.map { $0.isEmpty ? "-" : $0 } + [
          "\(row.used)", "\(row.charged)", "\(row.absorbed)", "\(row.refunded)",
          "\(row.adjusted)", "\(row.billed)", "\(row.deltas)",
        ])
    }
    let span = "\(CivilDate.text(reply.from)) … \(CivilDate.text(reply.to))"
    return "\(reply.subject), \(span), as delivered to the ledger\n"
      + (reply.rows.isEmpty ? "nothing was used" : table.text)
  }
}
