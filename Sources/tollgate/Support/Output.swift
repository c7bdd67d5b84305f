// What commands print: tables for people, one JSON document for programs. Numbers stand right,
// text left; nothing is cut, so that a row can be searched for and copied.

import Foundation
import TollgateCore
import TollgateServer

struct Table {
  struct Column {
    var title: String
    var isNumber: Bool

    static func text(_ title: String) -> Column { Column(title: title, isNumber: false) }
    static func number(_ title: String) -> Column { Column(title: title, isNumber: true) }
  }

  var columns: [Column]
  var rows: [[String]] = []

  init(_ columns: Column...) { self.columns = columns }
  init(_ columns: [Column]) { self.columns = columns }

  mutating func add(_ cells: String...) { add(cells) }

  mutating func add(_ cells: [String]) {
    precondition(cells.count == columns.count)
    rows.append(cells)
  }

  var text: String {
    var widths = columns.map(\.title.count)
    for row in rows {
      for (index, cell) in row.enumerated() { widths[index] = max(widths[index], cell.count) }
    }
    func line(_ cells: [String]) -> String {
      var line = ""
      for (index, cell) in cells.enumerated() {
        let padding = String(repeating: " ", count: widths[index] - cell.count)
        if index > 0 { line += "  " }
        line += columns[index].isNumber ? padding + cell : cell + padding
      }
      while line.last == " " { line.removeLast() }
      return line
    }
    return ([line(columns.map(\.title))] + rows.map(line)).joined(separator: "\n")
  }
}

enum Output {
  static func line(_ text: String) { print(text) }

  /// What was printed is seen at once, also through a pipe.
  static func flush() { fflush(nil) }

  static func error(_ text: String) {
    FileHandle.standardError.write(Data((text + "\n").utf8))
  }

  /// The reply as it came, indented; fields this release does not know stay in it.
  static func json(_ body: [UInt8]) {
    if let document = try? Document(json: body, bytesMax: AdminJSON.bytesMax) {
      print(document.json(pretty: true))
    } else {
      print(String(decoding: body, as: UTF8.self))
    }
  }

  static func json(_ value: some Encodable) {
    if let body = try? AdminJSON.encode(value) { json(body) }
  }

  /// `never`: the end of a lifetime.
  static func time(_ time: WallTime?) -> String {
    guard let time else { return "-" }
    return time.milliseconds >= Quantity.maximum ? "never" : CivilDate.text(time)
  }
  static func number(_ value: Int64?) -> String { value.map { "\($0)" } ?? "-" }

  /// The common part of what a change answers.
  static func change(_ reply: ChangeReply) {
    for line in reply.changes { print("  \(line)") }
    var text = reply.result.rawValue
    if !reply.detail.isEmpty { text += ": \(reply.detail)" }
    switch reply.result {
    case .applied, .replayed:
      // A reset has no version: it changes a counter, not a configuration.
      let version = reply.version > 0 ? "version \(reply.version), " : ""
      text += " (\(version)durable: \(reply.durable.rawValue), id \(reply.operation))"
    case .unchanged, .ignored: break
    case .dryRun: text += ": nothing was changed"
    }
    print(text)
    if let impact = reply.impact { print(self.impact(impact)) }
  }

  static func impact(_ impact: Impact) -> String {
    var text =
      "\(impact.accountsAffected) account\(impact.accountsAffected == 1 ? "" : "s") affected, "
      + "\(impact.deniedAtOnce) denied at once"
    if !impact.complete {
      text += " (at least: only \(impact.accountsExamined) accounts were looked at)"
    }
    if !impact.deniedExamples.isEmpty {
      text += "\n  denied at once: \(impact.deniedExamples.joined(separator: ", "))"
    }
    return text
  }
}
