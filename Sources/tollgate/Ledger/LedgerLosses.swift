// `tollgate ledger losses`: what was closed as lost, and the word of whoever has looked at it. Like
// the other reports it reads the file, beside a running ledger or without; acknowledging writes.

import ArgumentParser
import Foundation
import TollgateCore
import TollgateLedger
import TollgateServer

struct LedgerLosses: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "losses",
    abstract: "List what was closed as lost, and acknowledge it.",
    subcommands: [LossesList.self, LossesAcknowledge.self],
    defaultSubcommand: LossesList.self)
}

struct LossesList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Every range of positions that nobody held.",
    discussion: """
      LATE counts the deltas of the bucket that were born in the 25 hours before the range was \
      closed and arrived in a later epoch: up to that many of its positions are made good, and are \
      on the bill. Which ones cannot be told, because a delta keeps its id and not its old \
      position; ranges of one bucket share the count. FIRST 0 stands for a ledger that went \
      backwards: how much is missing nobody can say.

      Exit code 0: every one is acknowledged, 1: some are not.
      """)

  @OptionGroup var file: LedgerFileOptions

  func run() async throws {
    try await LedgerCommandFailure.reported {
      let store = try file.open()
      var isOpen = false
      if file.json {
        var list = LedgerList("losses", file)
        try store.eachLoss(countingLate: true) { loss in
          if loss.acknowledged == nil { isOpen = true }
          try list.add(Row(loss))
        }
        list.end()
      } else {
        isOpen = try printTable(store)
      }
      if isOpen { throw ExitCode(1) }
    }
  }

  /// Whether there is one that nobody acknowledged.
  private func printTable(_ store: LedgerStore) throws -> Bool {
    var isOpen = false
    var table = LedgerTable([
      "id", "bucket", "epoch", "first", "last", "recorded", "late", "acknowledged",
    ])
    try store.eachLoss(countingLate: true) { loss in
      if loss.acknowledged == nil { isOpen = true }
      let word = loss.acknowledged.map { "\(Self.text($0.time)) by \($0.actor): \($0.reason)" }
      table.add([
        loss.id, "\(loss.bucket)", "\(loss.epoch)", "\(loss.first)", "\(loss.last)",
        Self.text(loss.time), "\(loss.late ?? 0)", word ?? "no",
      ])
    }
    if table.isEmpty { print("nothing was lost") } else { table.write() }
    return isOpen
  }

  private static func text(_ time: Int64) -> String {
    CivilDate.text(WallTime(milliseconds: time))
  }

  private struct Row: Encodable {
    var id: String
    var bucket: Int
    var epoch: Int64
    var first: Int64
    var last: Int64
    var time: Int64
    var late: Int64
    var acknowledged: LossRecord.Acknowledgement?

    init(_ loss: LossRecord) {
      id = loss.id
      bucket = loss.bucket
      epoch = loss.epoch
      first = loss.first
      last = loss.last
      time = loss.time
      late = loss.late ?? 0
      acknowledged = loss.acknowledged
    }
  }
}

struct LossesAcknowledge: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "acknowledge", abstract: "Say that a loss was looked at; kept in the books.",
    discussion: """
      `tollgate status` then counts it as acknowledged (within 10 s) and is no longer degraded by \
      it. Nothing else changes: the row stays, the bill stays short by what was lost, and counters \
      of the bucket are still not lowered by a rebuild. What was acknowledged keeps its first word.
      """)

  @OptionGroup var file: LedgerFileOptions

  @Argument(help: ArgumentHelp("BUCKET/EPOCH/FIRST, as the list names them.", valueName: "id"))
  var ids: [String] = []

  @Flag(help: "Every loss that is not acknowledged yet.")
  var all = false

  @Option(help: "Why it is settled, e.g. the incident; kept in the books.")
  var reason: String

  @Option(help: "Who says so; $USER where absent.")
  var actor: String?

  static let actorBytesMax = 128
  static let reasonBytesMax = 256

  func validate() throws {
    guard ids.isEmpty == all else {
      throw ValidationError("Name one or several losses, or give --all.")
    }
    guard (1...Self.reasonBytesMax).contains(reason.utf8.count) else {
      throw ValidationError("--reason must have 1 to \(Self.reasonBytesMax) bytes.")
    }
    if let actor, !(1...Self.actorBytesMax).contains(actor.utf8.count) {
      throw ValidationError("--actor must have 1 to \(Self.actorBytesMax) bytes.")
    }
  }

  func run() async throws {
    try await LedgerCommandFailure.reported {
      // Opening for writing makes a file that is missing.
      try file.open().close()
      let store = try LedgerStore(path: file.database, bodies: .wire)
      let name = actor ?? ProcessInfo.processInfo.environment["USER"] ?? "uid \(getuid())"
      let now = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      let count: Int
      do {
        count = try store.acknowledge(all ? nil : ids, actor: name, reason: reason, now: now)
      } catch let unknown as LossNotFound {
        let code: ErrorCode = if case .unreadable = unknown { .badRequest } else { .notFound }
        throw CommandFailure(
          AdminFailure(
            code, "\(unknown); nothing was acknowledged",
            fix: "name them as `tollgate ledger losses list` does"))
      }
      try store.close()
      print(file.json ? "{\"acknowledged\":\(count)}" : "\(count) acknowledged")
    }
  }
}
