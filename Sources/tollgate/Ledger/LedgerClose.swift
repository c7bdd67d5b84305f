// `tollgate ledger close`: closes months. Like the reports it opens the file, beside a running
// ledger or without; it holds from the ledger's next transaction.

import ArgumentParser
import Foundation
import TollgateCore
import TollgateLedger
import TollgateServer

struct LedgerClose: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "close", abstract: "Close a month and all before it: its statements stay.",
    discussion: """
      What arrives for a closed month from then on stands in the statement of the month that is \
      open, as an adjustment that names the month it is of. Counters get what is theirs all the \
      same. An account's own month is closed as long after its end as the month was closed after \
      its own, in UTC. Closing is not undone.
      """)

  @OptionGroup var file: LedgerFileOptions

  @Option(help: ArgumentHelp("The last month to close, e.g. 2026-10.", valueName: "month"))
  var through: String

  @Option(help: "Only this account.") var account: Subject?

  @Option(help: "Why, e.g. the run of invoices; kept in the books.")
  var reason: String

  @Option(help: "Who says so; $USER where absent.")
  var actor: String?

  func validate() throws {
    guard NamedMonth.period(through) != nil else {
      throw ValidationError("--through \(through): give a month such as 2026-10.")
    }
    if let account, account.depth > 1 {
      throw ValidationError("--account \(account): months are closed for whole accounts.")
    }
    guard (1...LossesAcknowledge.reasonBytesMax).contains(reason.utf8.count) else {
      throw ValidationError("--reason must have 1 to \(LossesAcknowledge.reasonBytesMax) bytes.")
    }
    if let actor, !(1...LossesAcknowledge.actorBytesMax).contains(actor.utf8.count) {
      throw ValidationError("--actor must have 1 to \(LossesAcknowledge.actorBytesMax) bytes.")
    }
  }

  func run() async throws {
    guard let month = NamedMonth.period(through) else { return }
    try await LedgerCommandFailure.reported {
      // Opening for writing makes a file that is missing.
      try file.open().close()
      let store = try LedgerStore(path: file.database, bodies: .wire)
      let name = actor ?? ProcessInfo.processInfo.environment["USER"] ?? "uid \(getuid())"
      let isNew: Bool
      do {
        isNew = try store.close(
          through: month, account: account, actor: name, reason: reason,
          now: WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000)))
      } catch let refused as ClosingRefused {
        throw CommandFailure(
          AdminFailure(
            .badRequest, "--through \(through): \(refused)", fix: "name an earlier month"))
      }
      try store.close()
      let whose = account.map { "of \($0)" } ?? "of all accounts"
      if file.json {
        print("{\"through\":\"\(through)\",\"changed\":\(isNew)}")
      } else {
        let already = "\(through) \(whose) is closed already"
        print(isNew ? "months \(whose) are closed through \(through)" : already)
      }
    }
  }
}
