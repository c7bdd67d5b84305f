// Reports over the books, read from the file itself: they work beside a running ledger, on a copy,
// and where no ledger runs at all. Only `replay` writes.

import ArgumentParser
import Foundation
import TollgateCore
import TollgateLedger

struct LedgerFileOptions: ParsableArguments {
  @Option(help: ArgumentHelp("The books: the ledger's SQLite file.", valueName: "path"))
  var database: String

  @Flag(help: "Print JSON.")
  var json = false

  func open() throws -> LedgerStore { try LedgerStore(readOnly: database, bodies: .wire) }

  func printJSON(_ value: some Encodable) throws { print(try text(value)) }

  func text(_ value: some Encodable) throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    return String(decoding: try encoder.encode(value), as: UTF8.self)
  }
}

/// One JSON document that holds a list, `{"NAME":[…]}`, written while the rows are read: one of
/// them a line, and an empty list where there is none. Nothing is written before the first row, so
/// that a file that cannot be read leaves room for the document that says so.
struct LedgerList {
  private let name: String
  private let file: LedgerFileOptions
  private var count = 0

  init(_ name: String, _ file: LedgerFileOptions) {
    self.name = name
    self.file = file
  }

  mutating func add(_ value: some Encodable) throws {
    let text = try file.text(value)
    print(count == 0 ? "{\"\(name)\":[" : ",")
    print(text, terminator: "")
    count += 1
  }

  func end() { print(count == 0 ? "{\"\(name)\":[]}" : "\n]}") }
}

/// A month on the command line. Which period of an account it means, the books know.
enum NamedMonth {
  /// `2026-11`, in UTC.
  static func period(_ text: String) -> Period? {
    let parts = text.split(separator: "-")
    guard parts.count == 2, let year = Int64(parts[0]), let month = Int(parts[1]),
      (1970...9999).contains(year), (1...12).contains(month)
    else { return nil }
    let start = CivilDate.days(year: year, month: month, day: 1) * 86_400_000
    return Window.month.period(containing: WallTime(milliseconds: start))
  }

  static func checked(_ text: String?) throws -> Period? {
    guard let text else { return nil }
    guard let period = period(text) else {
      throw ValidationError("--month \(text): give a month such as 2026-11.")
    }
    return period
  }
}

struct LedgerExport: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "export", abstract: "Print every posted delta, one a line.")

  @OptionGroup var file: LedgerFileOptions

  @Option(help: ArgumentHelp("Only this account.", valueName: "account"))
  var account: String?

  @Option(help: ArgumentHelp("Only this month, e.g. 2026-11.", valueName: "month"))
  var month: String?

  @Option(help: "csv or json (one object a line; --json means the same).")
  var format: String?

  func validate() throws {
    _ = try NamedMonth.checked(month)
    if let format, ExportFormat(rawValue: format) == nil {
      throw ValidationError("--format \(format): give csv or json.")
    }
  }

  func run() async throws {
    try await LedgerCommandFailure.reported {
      let starts = try NamedMonth.checked(month).map { BillingMonth.starts(in: $0) }
      let chosen = format.flatMap(ExportFormat.init) ?? (file.json ? .json : .csv)
      var pending = Data()
      _ = try file.open().export(
        format: chosen, account: account, from: starts?.lowerBound ?? .min,
        until: starts?.upperBound ?? .max
      ) { text in
        pending.append(contentsOf: text.utf8)
        if pending.count > 1 << 16 {
          try FileHandle.standardOutput.write(contentsOf: pending)
          pending.removeAll(keepingCapacity: true)
        }
      }
      try FileHandle.standardOutput.write(contentsOf: pending)
    }
  }
}

struct LedgerBalances: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "balances", abstract: "Print the totals of the books, or an account's counters.")

  @OptionGroup var file: LedgerFileOptions

  @Option(help: ArgumentHelp("Only this account.", valueName: "account"))
  var account: String?

  @Flag(help: "The counters Redis is seeded with, instead of the totals; needs --account.")
  var counters = false

  func validate() throws {
    if counters && account == nil { throw ValidationError("--counters needs --account.") }
  }

  func run() async throws {
    try await LedgerCommandFailure.reported {
      let store = try file.open()
      if counters, let account { try printCounters(store, account) } else { try printTotals(store) }
    }
  }

  private func printTotals(_ store: LedgerStore) throws {
    var table = LedgerTable([
      "account", "feature", "period", "charged", "absorbed", "actual", "deltas",
    ])
    var list = LedgerList("totals", file)
    var key: LedgerStore.TotalPageKey?
    repeat {
      let page = try store.totals(.init(account: account), after: key).page
      for total in page.elements {
        if file.json {
          try list.add(total)
        } else {
          let start = CivilDate.text(WallTime(milliseconds: total.start)).prefix(10)
          table.add([
            total.account, total.feature, "\(start)\(total.adjustment ? " (adjustment)" : "")",
            "\(total.charged)", "\(total.absorbed)", "\(total.actual)", "\(total.deltas)",
          ])
        }
      }
      key = page.next
    } while key != nil
    if file.json { list.end() } else { table.write() }
  }

  private func printCounters(_ store: LedgerStore, _ account: String) throws {
    var table = LedgerTable(["subject", "feature", "window", "from", "settled", "forgiven"])
    var list = LedgerList("counters", file)
    var key: LedgerStore.CellPageKey?
    repeat {
      let page = try store.balances(
        account: account, endingAfter: WallTime(milliseconds: .min), after: key)
      for cell in page.elements {
        if file.json {
          try list.add(cell)
        } else {
          table.add([
            cell.subject, cell.feature, Window(code: cell.window)?.word ?? cell.window,
            CivilDate.text(WallTime(milliseconds: cell.start)), "\(cell.settled)",
            "\(cell.forgiven)",
          ])
        }
      }
      key = page.next
    } while key != nil
    if file.json { list.end() } else { table.write() }
  }
}

struct LedgerVerify: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "verify", abstract: "Audit the books; exit 1 where they are not sound.",
    discussion: """
      Recomputes every sum from the deltas, checks that each double entry is balanced, and walks \
      every stream for gaps. Losses and parked deltas are on record and counted, not faults.
      """)

  @OptionGroup var file: LedgerFileOptions

  func run() async throws {
    try await LedgerCommandFailure.reported {
      let report = try file.open().verify()
      if file.json {
        try file.printJSON(report)
      } else {
        for finding in report.findings { print("fault: \(finding)") }
        if report.findingsCount > report.findings.count {
          print("… and \(report.findingsCount - report.findings.count) more")
        }
        print(
          "\(report.deltas) deltas, \(report.postings) postings, \(report.cells) counters,",
          "\(report.charges) sums of rates (\(report.priced) held against a price),",
          "\(report.streams) streams; \(report.duplicates) duplicates, \(report.parked) parked,",
          "\(report.lostSequences) lost: \(report.isSound ? "sound" : "NOT SOUND")")
      }
      if !report.isSound { throw ExitCode(1) }
    }
  }
}

struct LedgerReplay: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "replay", abstract: "Try parked deltas again, after their cause was mended.",
    discussion: "Writes to the books; exit 1 where some could still not be posted.")

  @OptionGroup var file: LedgerFileOptions

  func run() async throws {
    try await LedgerCommandFailure.reported {
      // Opening for writing makes a file that is missing; replaying one makes no sense.
      try file.open().close()
      let store = try LedgerStore(path: file.database, bodies: .wire)
      let now = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      let (posted, left) = try store.replayParked(now: now)
      try store.close()
      if file.json {
        print("{\"posted\":\(posted),\"parked\":\(left)}")
      } else {
        print("\(posted) posted, \(left) still parked")
      }
      if left > 0 { throw ExitCode(1) }
    }
  }
}

/// Columns for people: the first left, numbers right.
struct LedgerTable {
  private var rows: [[String]]

  init(_ titles: [String]) { rows = [titles] }

  var isEmpty: Bool { rows.count == 1 }

  mutating func add(_ cells: [String]) { rows.append(cells) }

  func write() {
    guard let titles = rows.first else { return }
    let widths = titles.indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    let isNumber = titles.indices.map { column in
      rows.dropFirst().allSatisfy { Int64($0[column]) != nil }
    }
    for row in rows {
      let cells = row.indices.map { column in
        let space = String(repeating: " ", count: widths[column] - row[column].count)
        return isNumber[column] ? space + row[column] : row[column] + space
      }
      print(cells.joined(separator: "  "))
    }
  }
}
