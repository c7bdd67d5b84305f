// The batches of an import that are under way. They land in the order in which they departed, so
// that the progress noted is always "everything before this row".

import Foundation
import TollgateCore
import TollgateServer
import TollgateWire

struct ImportFlight {
  private struct Batch {
    var last: Int
    var lines: [Int]
    var accounts: [String]
    var bad: [AccountImportReply.Failure]
    var task: Task<AccountImportReply, any Error>
  }

  private let server: ServerConnection
  private let change: ChangeOptions
  private let sourceID: String?
  private let inFlight: Int
  private let patience: Int64
  private let keepsProgress: Bool
  private(set) var progress: ImportProgress
  private var batches: [Batch] = []
  private var accountsInFlight: Set<String> = []
  private var rows: [AccountImportRequest.Row] = []
  private var lines: [Int] = []
  private var bad: [AccountImportReply.Failure] = []
  private var last: Int
  private var shownAt = WallTime.now

  init(
    server: ServerConnection, change: ChangeOptions, sourceID: String?, inFlight: Int,
    patience: Int64, keepsProgress: Bool, progress: ImportProgress
  ) {
    self.server = server
    self.change = change
    self.sourceID = sourceID
    self.inFlight = inFlight
    self.patience = patience
    self.keepsProgress = keepsProgress
    self.progress = progress
    last = progress.rows
  }

  /// Rows that have not departed yet.
  var waiting: Int { rows.count }

  mutating func add(_ row: AccountImportRequest.Row, line: Int, number: Int) async throws {
    while accountsInFlight.contains(row.account) { try await land() }
    rows.append(row)
    lines.append(line)
    last = number
  }

  mutating func addBad(_ reason: String, line: Int) {
    bad.append(
      .init(row: last, line: line, account: "", code: ErrorCode.badRequest.name, reason: reason))
    if bad.count >= AccountImportRequest.rowsMax { noteBad() }
  }

  private mutating func noteBad() {
    guard batches.isEmpty, rows.isEmpty else { return }
    progress.done.add(AccountImportReply(failed: bad, durable: change.wait))
    bad = []
  }

  mutating func depart() async throws {
    guard !rows.isEmpty else { return }
    if batches.count >= inFlight { try await land() }
    let request = AccountImportRequest(
      rows: rows, firstRow: last - rows.count + 1, sourceID: sourceID, change: change)
    let (server, patience) = (server, patience)
    let accounts = rows.map(\.account)
    accountsInFlight.formUnion(accounts)
    batches.append(
      Batch(
        last: last, lines: lines, accounts: accounts, bad: bad,
        task: Task { try await Self.send(request, over: server, patience: patience) }))
    (rows, lines, bad) = ([], [], [])
  }

  /// A batch that has to wait for Redis or the ledger is sent again, with the same ids.
  private static func send(
    _ request: AccountImportRequest, over server: ServerConnection, patience: Int64
  ) async throws -> AccountImportReply {
    let end = WallTime.now + patience
    var pause: Int64 = 100
    while true {
      do throws(CommandFailure) {
        return try await server.admin(.accountImport, request, as: AccountImportReply.self).reply
      } catch {
        switch error.failure.code {
        case .overloaded, .unavailable, .notReady: break
        default: throw error
        }
        guard WallTime.now < end, server.isOpen else { throw error }
        try await Task.sleep(for: .milliseconds(pause))
        pause = min(pause * 2, 2_000)
      }
    }
  }

  private mutating func land() async throws {
    let batch = batches.removeFirst()
    var reply: AccountImportReply
    do {
      reply = try await batch.task.value
    } catch var failure as CommandFailure {
      for other in batches { other.task.cancel() }
      failure.failure.message += " (rows 1 … \(progress.rows) are done)"
      failure.failure.fix =
        keepsProgress
        ? "run it again: it goes on from there"
        : "run it again with --id \(progress.operation): what is done is not done twice"
      throw failure
    }
    for index in reply.failed.indices {
      let at = reply.failed[index].row - (batch.last - batch.lines.count + 1)
      if batch.lines.indices.contains(at) { reply.failed[index].line = batch.lines[at] }
    }
    reply.failed = (batch.bad + reply.failed).sorted { ($0.line ?? 0) < ($1.line ?? 0) }
    accountsInFlight.subtract(batch.accounts)
    progress.done.add(reply)
    progress.rows = batch.last
    if keepsProgress {
      var kept = progress
      let failed = kept.done.failed
      kept.done.failed = Array(failed.prefix(ImportProgress.failuresKept))
      kept.done.failedUnlisted += failed.count - kept.done.failed.count
      try kept.write()
    }
    if WallTime.now - shownAt >= 1000, isatty(2) == 1 {
      shownAt = .now
      Output.error("\(progress.rows) rows …")
    }
  }

  mutating func finish() async throws {
    try await depart()
    while !batches.isEmpty { try await land() }
    progress.done.add(AccountImportReply(failed: bad, durable: change.wait))
    bad = []
  }
}
