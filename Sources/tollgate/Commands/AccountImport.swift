// account import FILE: many accounts at once, in batches that travel side by side. Rows are
// independent; a row that is refused is listed and the others go on.

import ArgumentParser
import Foundation
import TollgateCore
import TollgateServer
import TollgateWire

struct AccountImport: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "import", abstract: "Put many accounts on their plans.",
    discussion: """
      FILE is CSV (account,plan[,frozen[,source_version]], with or without that header) or JSON \
      lines. Stopped, it is run again and goes on after the last answered batch (FILE.progress); \
      rows that are already as asked change nothing. With --source-id, rows carry a \
      source_version and an older one than applied is ignored. Exit code 4 where rows were refused.
      """)

  @Argument(help: "The file; - is standard input.") var file: String
  @Option(help: "Rows in one request, 1 … 1000.") var batch: Int = 500
  @Option(help: "Requests in flight, 1 … 16.") var inFlight: Int = 4
  @Option(help: "The outside system whose versions the rows carry.") var sourceId: String?
  @Flag(help: "Start at the first row, whatever FILE.progress says.") var restart = false
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
  }

  private typealias Flight = (last: Int, task: Task<AccountImportReply, any Error>)

  func run() async throws {
    var rows = try ImportFile(path: file)
    let keepsProgress = progressFile && !flags.dryRun && file != "-"
    var progress = ImportProgress(file: file, bytes: ImportProgress.size(of: file), rows: 0)
    if keepsProgress && !restart, let earlier = ImportProgress.read(for: file) {
      guard earlier.bytes == progress.bytes else {
        throw CommandFailure.usage(
          "\(file) changed since the import that \(ImportProgress.path(for: file)) tells of",
          fix: "pass --restart to begin again; rows that are as asked are passed over")
      }
      progress.rows = earlier.rows
    }
    let skipped = progress.rows
    let server = try await connection.open()
    var total = AccountImportReply(dryRun: flags.dryRun, durable: flags.wait)
    var flights: [Flight] = []
    var batchRows: [AccountImportRequest.Row] = []
    var number = 0
    var shownAt = WallTime.now

    func land() async throws {
      let flight = flights.removeFirst()
      let reply: AccountImportReply
      do {
        reply = try await flight.task.value
      } catch var failure as CommandFailure {
        for other in flights { other.task.cancel() }
        failure.failure.message += " (rows 1 … \(progress.rows) are done)"
        failure.failure.fix = "run it again: it goes on from there"
        throw failure
      }
      total.add(reply)
      progress.rows = flight.last
      if keepsProgress { try progress.write() }
      if WallTime.now - shownAt >= 1000, isatty(2) == 1 {
        shownAt = .now
        Output.error("\(progress.rows) rows …")
      }
    }
    func depart() async throws {
      guard !batchRows.isEmpty else { return }
      if flights.count >= inFlight { try await land() }
      let request = AccountImportRequest(
        rows: batchRows, firstRow: number - batchRows.count + 1, sourceID: sourceId,
        change: try flags.options(waitMilliseconds: connection.timeoutMilliseconds))
      batchRows = []
      flights.append(
        (
          number,
          Task {
            try await server.admin(.accountImport, request, as: AccountImportReply.self).reply
          }
        ))
    }

    while let row = try rows.next() {
      if number < skipped {
        number += 1
        continue
      }
      switch row {
      case .row(let row):
        number += 1
        batchRows.append(row)
        if batchRows.count == batch { try await depart() }
      case .bad(let reason):
        // A batch is a run of numbered rows: close it before the one that is left out.
        try await depart()
        number += 1
        total.failed.append(
          .init(row: number, account: "", code: ErrorCode.badRequest.name, reason: reason))
      }
    }
    try await depart()
    while !flights.isEmpty { try await land() }
    await server.close()
    if keepsProgress { ImportProgress.remove(for: file) }
    report(total, skipped: skipped)
    try (total.failed.isEmpty ? ExitStatus.ok : .refused).leave()
  }

  private func report(_ total: AccountImportReply, skipped: Int) {
    if output.json { return Output.json(total) }
    Output.line(Self.text(of: total, skipped: skipped))
  }

  static func text(of total: AccountImportReply, skipped: Int) -> String {
    var text = "\(total.applied) \(total.dryRun ? "would change" : "applied")"
    text += ", \(total.unchanged) unchanged, \(total.ignored) ignored (older)"
    text += ", \(total.replayed) replayed, \(total.failed.count) failed"
    if skipped > 0 { text += "; \(skipped) rows were done before" }
    if total.dryRun { text += "; \(total.deniedAtOnce) denied at once; nothing was changed" }
    var lines = [text]
    for failure in total.failed.prefix(failuresShown) {
      lines.append(
        "  row \(failure.row) \(failure.account): \(failure.reason) (\(failure.code))")
    }
    if total.failed.count > failuresShown {
      lines.append("  … and \(total.failed.count - failuresShown) more (all with --json)")
    }
    return lines.joined(separator: "\n")
  }
}

extension AccountImportReply {
  mutating func add(_ other: AccountImportReply) {
    applied += other.applied
    unchanged += other.unchanged
    ignored += other.ignored
    replayed += other.replayed
    failed += other.failed
    deniedAtOnce += other.deniedAtOnce
    if other.durable == .redis { durable = .redis }
  }
}
