// Data/zones.txt as values: zone files, and periods that Generators/zones.py computed from them.

import Foundation
import Testing
import TollgateCore

struct ZoneTable {
  struct Case {
    var line: Int
    var window: Window
    var instant: WallTime
    var period: Period
    var calendar: AccountCalendar
  }

  var zones: [String: ZoneRules] = [:]
  var files: [String: [UInt8]] = [:]
  var cases: [Case] = []

  static let loaded = Result { try ZoneTable() }

  private init() throws {
    let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .appendingPathComponent("Data/zones.txt")
    let lines = try String(contentsOf: file, encoding: .utf8).split(separator: "\n")
    for (index, line) in lines.enumerated() {
      let words = line.split(separator: " ").map(String.init)
      switch words.first {
      case "zone":
        let bytes = [UInt8](try #require(Data(base64Encoded: words[2])))
        files[words[1]] = bytes
        zones[words[1]] = try ZoneFile.read(name: words[1], bytes)
      case "case":
        cases.append(
          Case(
            line: index + 1, window: try #require(Window(word: "anchored " + words[1])),
            instant: try Self.instant(words[2]),
            period: Period(start: try Self.instant(words[3]), end: try Self.instant(words[4])),
            calendar: AccountCalendar(try words[5...].map { try rule($0) })))
      default: continue
      }
    }
  }

  private static func instant(_ word: String) throws -> WallTime {
    WallTime(milliseconds: try #require(Int64(word)))
  }

  private func rule(_ word: String) throws -> CalendarRule {
    let parts = word.split(separator: ",").map(String.init)
    try #require(parts.count == 4)
    var rule = CalendarRule(zone: try #require(zones[parts[0]]), restarts: parts[3] == "1")
    if parts[1] != "-" { rule.anchor = try Self.instant(parts[1]) }
    if parts[2] != "-" { rule.since = try Self.instant(parts[2]) }
    return rule
  }
}
