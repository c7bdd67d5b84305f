// account import FILE: many accounts at once, in batches that travel side by side. Rows are
// independent; a row that is refused is listed with its line and the others go on.
//
// One operation id stands for the whole import and each row's own is derived from it. It is written
// to FILE.progress before the first row is sent, so that an import that was killed goes on under
// the same ids: what was sent and not yet noted is sent again and answered `replayed`. Rows of one
// account are never in flight in two batches, so they take effect in the order of the file.

import ArgumentParser
import Foundation
import TollgateCore
import TollgateServer
import TollgateWire

struct AccountImport: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "import", abstract: "Put many accounts on their plans.",
    discussion: """
      FILE is CSV (account,plan,frozen,source_version,zone,anchor, of which the first two are \
      needed; a header may name fewer or order them otherwise) or JSON lines with these names. \
      An empty field leaves what is. An anchor is an instant such as 2026-01-31T09:00:00Z.

      Stopped, it is run again and goes on after the last answered batch (FILE.progress), \
      under the same operation ids. With --source-id, rows carry a source_version and an older one \
      than applied is ignored. Where the ledger is behind it slows down and waits. Exit code 4 \
      where rows were refused; they are listed with their lines.
      """)

  @Argument(help: "The file; - is standard input.") var file: String
  @Option(help: "Rows in one request, 1 … 1000.") var batch: Int = 500
  @Option(help: "Requests in flight, 1 … 16.") var inFlight: Int = 4
  @Option(help: "The outside system whose versions the rows carry.") var sourceId: String?
  @Option(
    help: ArgumentHelp("How long to wait for a ledger that is behind.", valueName: "time"))
  var patience: String = "10m"
  @Flag(help: "Start at the first row under new ids, whatever FILE.progress says.")
  var restart = false
  @Flag(inversion: .prefixedNo, help: "Keep FILE.progress while it runs.") var progressFile = true
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  static let failuresShown = 20

  func validate() throws {
    guard (1...AccountImportRequest.rowsMax).contains(batch) else {
      throw ValidationError("--batch must be from 1 to \(AccountImportRequest.rowsMax).")
    }
    guard (1...16).contains(inFlight) else {
      throw ValidationError("--in-flight must be from 1 to 16.")
    }
    guard Durations.milliseconds(patience) != nil else {
      throw ValidationError("--patience \(patience): give a time, e.g. 10m.")
    }
  }

  func run() async throws {
    let options = try flags.options(waitMilliseconds: connection.timeoutMilliseconds)
    let keepsProgress = progressFile && !flags.dryRun && file != "-"
    var progress = ImportProgress(
      file: file, bytes: ImportProgress.size(of: file),
      content: ImportProgress.content(of: file), rows: 0,
      operation: options.operation ?? OperationID(high: 0, low: 0),
      done: AccountImportReply(dryRun: flags.dryRun, durable: flags.wait))
    if keepsProgress, !restart, let earlier = try ImportProgress.read(for: file) {
      guard earlier.bytes == progress.bytes, earlier.content == progress.content else {
        throw CommandFailure.usage(
          "\(file) changed since the import that \(ImportProgress.path(for: file)) tells of",
          fix: "pass --restart to begin again; rows that are as asked are passed over")
      }
      guard flags.id == nil || flags.id == earlier.operation else {
        throw CommandFailure.usage(
          "\(ImportProgress.path(for: file)) goes on under operation \(earlier.operation)",
          fix: "leave --id out, or pass --restart to begin again")
      }
      progress = earlier
    }
    let skipped = progress.rows
    var rows = try ImportFile(path: file)
    if keepsProgress { try progress.write() }
    let server = try await connection.open()
    var change = options
    change.operation = progress.operation
    var flight = ImportFlight(
      server: server, change: change, sourceID: sourceId, inFlight: inFlight,
      patience: Durations.milliseconds(patience) ?? 0, keepsProgress: keepsProgress,
      progress: progress)
    var good = 0
    while let row = try rows.next() {
      switch row {
      case .row(let row):
        good += 1
        guard good > skipped else { continue }
        try await flight.add(row, line: rows.line, number: good)
        if flight.waiting == batch { try await flight.depart() }
      case .bad(let reason):
        // Not numbered; noted with the batch that follows it.
        if good >= skipped { flight.addBad(reason, line: rows.line) }
      }
    }
    try await flight.finish()
    await server.close()
    if keepsProgress { ImportProgress.remove(for: file) }
    let total = flight.progress.done
    if output.json {
      Output.json(total)
    } else {
      Output.line(Self.text(of: total, skipped: skipped))
    }
    try (total.failed.isEmpty ? ExitStatus.ok : .refused).leave()
  }

  static func text(of total: AccountImportReply, skipped: Int) -> String {
    let failed = total.failed.count + total.failedUnlisted
    var text = "\(total.applied) \(total.dryRun ? "would change" : "applied")"
    text += ", \(total.unchanged) unchanged, \(total.ignored) ignored (older)"
    text += ", \(total.replayed) replayed, \(failed) failed"
    if skipped > 0 { text += "; of these \(skipped) rows were done before" }
    if total.dryRun { text += "; \(total.deniedAtOnce) denied at once; nothing was changed" }
    var lines = [text]
    for failure in total.failed.prefix(failuresShown) {
      let place = failure.line.map { "line \($0)" } ?? "row \(failure.row)"
      let account = failure.account.isEmpty ? "" : " \(failure.account)"
      lines.append("  \(place)\(account): \(failure.reason) (\(failure.code))")
    }
    if failed > failuresShown {
      lines.append("  … and \(failed - failuresShown) more (--json lists them)")
    }
    return lines.joined(separator: "\n")
  }
}

extension AccountImportReply {
  /// Failed rows that are listed; of the others only the number is kept.
  static let failedMax = 10_000

  mutating func add(_ other: AccountImportReply) {
    applied += other.applied
    unchanged += other.unchanged
    ignored += other.ignored
    replayed += other.replayed
    let room = max(0, Self.failedMax - failed.count)
    failed += other.failed.prefix(room)
    failedUnlisted += other.failedUnlisted + max(0, other.failed.count - room)
    deniedAtOnce += other.deniedAtOnce
    if other.durable == .redis { durable = .redis }
  }
}
