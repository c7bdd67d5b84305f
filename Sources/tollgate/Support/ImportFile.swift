// Rows of an import file, read in pieces: a million of them never stand in memory at once. CSV
// (account,plan[,frozen[,source_version]]; a header line is known by its first word) or JSON lines
// ({"account":…,"plan":…}). And the progress file, written after each batch that was answered, so
// that an import that was stopped goes on where it was.

import Foundation
import TollgateCore
import TollgateServer

struct ImportFile {
  static let lineBytesMax = 4096

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
    while let line = try nextLine() {
      let text = line.hasSuffix("\r") ? String(line.dropLast()) : line
      if text.allSatisfy({ $0 == " " || $0 == "\t" }) || text.hasPrefix("#") { continue }
      if text.hasPrefix("{") { return Self.json(text) }
      let cells = Self.cells(text)
      if columns == nil {
        columns = ["account", "plan", "frozen", "source_version"]
        if cells.first == "account" {
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
        let line = String(decoding: buffer[offset..<end], as: UTF8.self)
        offset = end + 1
        return line
      }
      if ended {
        guard offset < buffer.count else { return nil }
        let line = String(decoding: buffer[offset...], as: UTF8.self)
        offset = buffer.count
        return line
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
    guard let account = cell("account"), let plan = cell("plan") else {
      return .bad("needs account,plan")
    }
    var row = AccountImportRequest.Row(account: account, plan: plan)
    if let text = cell("frozen") {
      guard text == "true" || text == "false" else { return .bad("frozen must be true or false") }
      row.frozen = text == "true"
    }
    if let text = cell("source_version") {
      guard let version = Int64(text) else { return .bad("source_version must be a whole number") }
      row.sourceVersion = version
    }
    return .row(row)
  }

  private static func json(_ text: String) -> Row {
    do throws(AdminFailure) {
      return .row(
        try AdminJSON.decode(AccountImportRequest.Row.self, from: Array(text.utf8), strict: true))
    } catch {
      return .bad(error.problems.first?.description ?? error.message)
    }
  }
}

/// How far an import has come: every row before `rows` is answered.
struct ImportProgress: Codable, Equatable {
  var file: String
  var bytes: Int64
  var rows: Int

  static func path(for file: String) -> String { file + ".progress" }

  static func read(for file: String) -> ImportProgress? {
    guard let data = FileManager.default.contents(atPath: path(for: file)) else { return nil }
    return try? AdminJSON.decode(ImportProgress.self, from: [UInt8](data))
  }

  static func size(of file: String) -> Int64 {
    let attributes = try? FileManager.default.attributesOfItem(atPath: file)
    return (attributes?[.size] as? NSNumber)?.int64Value ?? 0
  }

  func write() throws(CommandFailure) {
    do throws(AdminFailure) {
      let body = try AdminJSON.encode(self)
      do {
        try Data(body).write(to: URL(fileURLWithPath: Self.path(for: file)), options: .atomic)
      } catch {
        throw AdminFailure(
          .unavailable, "\(Self.path(for: file)) cannot be written: \(error.localizedDescription)",
          fix: "make the folder writable, or pass --no-progress-file")
      }
    } catch {
      throw CommandFailure(error)
    }
  }

  static func remove(for file: String) {
    try? FileManager.default.removeItem(atPath: path(for: file))
  }
}
