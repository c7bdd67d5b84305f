// Rows of an import file, read in pieces: a million of them never stand in memory at once. CSV
// (account,plan,frozen,source_version,zone,anchor, of which the first two are needed; a header line
// is known by its first word) or JSON lines ({"account":…,"plan":…}, with the same names).

import Foundation
import TollgateCore
import TollgateServer

struct ImportFile {
  static let lineBytesMax = 4096
  static let columns = ["account", "plan", "frozen", "source_version", "zone", "anchor"]

  enum Row {
    case row(AccountImportRequest.Row)
    case bad(String)
  }

  let path: String
  private let handle: FileHandle
  private var buffer: [UInt8] = []
  private var offset = 0
  private var ended = false
  private var columns: [String]?
  /// Number of the line that `next` read last.
  private(set) var line = 0

  init(path: String) throws(CommandFailure) {
    self.path = path
    if path == "-" {
      handle = .standardInput
    } else {
      do {
        handle = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
      } catch {
        throw .usage("\(path) cannot be read: \(error.localizedDescription)")
      }
    }
  }

  /// Rows that are blank or a header are passed over and not counted.
  mutating func next() throws(CommandFailure) -> Row? {
    while let whole = try nextLine() {
      let text = whole.hasSuffix("\r") ? String(whole.dropLast()) : whole
      if text.allSatisfy({ $0 == " " || $0 == "\t" }) || text.hasPrefix("#") { continue }
      if text.hasPrefix("{") { return Self.json(text) }
      let cells = Self.cells(text)
      if columns == nil {
        columns = Self.columns
        if cells.first == "account" {
          // A misspelt column would be passed over in every row.
          if let odd = cells.first(where: { !Self.columns.contains($0) }) {
            throw .usage(
              "\(path) has a column \(odd)",
              fix: "the columns are \(Self.columns.joined(separator: ","))")
          }
          columns = cells
          continue
        }
      }
      return Self.csv(cells, columns ?? [])
    }
    return nil
  }

  private mutating func nextLine() throws(CommandFailure) -> String? {
    while true {
      if let end = buffer[offset...].firstIndex(of: 0x0A) {
        let text = String(decoding: buffer[offset..<end], as: UTF8.self)
        offset = end + 1
        line += 1
        return text
      }
      if ended {
        guard offset < buffer.count else { return nil }
        let text = String(decoding: buffer[offset...], as: UTF8.self)
        offset = buffer.count
        line += 1
        return text
      }
      guard buffer.count - offset <= Self.lineBytesMax else {
        throw .usage("\(path) has a line longer than \(Self.lineBytesMax) bytes")
      }
      buffer.removeFirst(offset)
      offset = 0
      let more: Data?
      do {
        more = try handle.read(upToCount: 1 << 18)
      } catch {
        throw .usage("\(path) cannot be read: \(error.localizedDescription)")
      }
      if let more, !more.isEmpty { buffer += more } else { ended = true }
    }
  }

  /// Fields of a CSV line; a field in double quotes may hold commas, `""` in it is one quote.
  static func cells(_ line: String) -> [String] {
    if !line.utf8.contains(0x22) {
      return line.split(separator: ",", omittingEmptySubsequences: false).map {
        $0.trimmingSpaces
      }
    }
    var cells: [String] = []
    var cell = ""
    var quoted = false
    var index = line.startIndex
    while index < line.endIndex {
      let character = line[index]
      let after = line.index(after: index)
      if quoted {
        if character == "\"" {
          if after < line.endIndex, line[after] == "\"" {
            cell.append("\"")
            index = after
          } else {
            quoted = false
          }
        } else {
          cell.append(character)
        }
      } else if character == "\"" {
        quoted = true
      } else if character == "," {
        cells.append(cell.trimmingCharacters(in: .whitespaces))
        cell = ""
      } else {
        cell.append(character)
      }
      index = line.index(after: index)
    }
    return cells + [cell.trimmingCharacters(in: .whitespaces)]
  }

  private static func csv(_ cells: [String], _ columns: [String]) -> Row {
    func cell(_ name: String) -> String? {
      guard let index = columns.firstIndex(of: name), index < cells.count else { return nil }
      return cells[index].isEmpty ? nil : cells[index]
    }
    guard cells.count <= columns.count else {
      return .bad("has \(cells.count) fields; the columns are \(columns.joined(separator: ","))")
    }
    guard let account = cell("account"), let plan = cell("plan") else {
      return .bad("needs account,plan")
    }
    var row = AccountImportRequest.Row(account: account, plan: plan)
    if let text = cell("frozen") {
      guard text == "true" || text == "false" else {
        return .bad("frozen: \"\(text)\" must be true or false")
      }
      row.frozen = text == "true"
    }
    if let text = cell("source_version") {
      guard let version = Int64(text) else {
        return .bad("source_version: \"\(text)\" must be a whole number")
      }
      row.sourceVersion = version
    }
    row.zone = cell("zone")
    return anchored(row, cell("anchor"))
  }

  private static func anchored(_ row: AccountImportRequest.Row, _ anchor: String?) -> Row {
    guard let anchor else { return .row(row) }
    guard let instant = Durations.rfc3339(anchor) else {
      return .bad("anchor: \"\(anchor)\" must be an instant such as 2026-01-31T09:00:00Z")
    }
    var row = row
    row.anchor = instant
    return .row(row)
  }

  /// A row as people write it: the anchor is text.
  private struct JSONRow: Decodable {
    var account: String
    var plan: String
    var frozen: Bool?
    var sourceVersion: Int64?
    var zone: String?
    var anchor: String?
  }

  private static func json(_ text: String) -> Row {
    do throws(AdminFailure) {
      let row = try AdminJSON.decode(JSONRow.self, from: Array(text.utf8), strict: true)
      return anchored(
        .init(
          account: row.account, plan: row.plan, frozen: row.frozen, zone: row.zone,
          sourceVersion: row.sourceVersion), row.anchor)
    } catch {
      return .bad(error.problems.first?.description ?? error.message)
    }
  }
}

extension Substring {
  /// Without spaces and tabs at its ends.
  fileprivate var trimmingSpaces: String {
    func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || byte == 0x09 }
    var rest = self
    while let first = rest.utf8.first, isSpace(first) { rest = rest.dropFirst() }
    while let last = rest.utf8.last, isSpace(last) { rest = rest.dropLast() }
    return String(rest)
  }
}
