// What was used over time, summed from the deltas themselves: by day, by feature, by a level of the
// subject, by any attribute that they carry. One question reads at most so many deltas and goes on
// where it ended, so it is bounded however much an account used; whoever asks adds the pages up.
//
// Why no table of sums: an attribute is in a delta's body, and every combination that somebody may
// ask for would have to be kept for each account. A line of the books leads to its deltas by an
// index, in the order of their ids, which is nearly that of time: the ends of the span are found
// there, and exactly judged by the delta's own time.

internal import Foundation
internal import GRDB
package import TollgateCore

/// By what usage is grouped.
package enum UsageGrouping: Hashable, Sendable {
  case day
  case feature
  /// The subject, down to this level.
  case level(Int)
  case attribute(String)

  package init?(text: String) {
    switch text {
    case "day": self = .day
    case "feature": self = .feature
    default:
      let parts = text.split(separator: ":", maxSplits: 1)
      guard parts.count == 2 else { return nil }
      switch parts[0] {
      case "level":
        guard let level = Int(parts[1]), (1...Subject.levelsMax).contains(level) else {
          return nil
        }
        self = .level(level)
      case "attribute": self = .attribute(String(parts[1]))
      default: return nil
      }
    }
  }
}

package struct UsageGroup: Hashable, Sendable, Codable {
  package var key: [String]
  package var used: Int64 = 0
  package var charged: Int64 = 0
  package var absorbed: Int64 = 0
  package var refunded: Int64 = 0
  package var adjusted: Int64 = 0
  package var deltas: Int64 = 0
}

extension LedgerStore {
  /// Deltas read for one page.
  package static let usageDeltasMax = 10_000
  /// Groups in one page; it ends where there would be more.
  static let usageGroupsMax = 2_000
  package static let usageGroupingsMax = 4
  package static let usageDaysMax = 500
  /// A delta may be born so much later than its id was minted, and so much earlier.
  private static let idLagMax: Int64 = 90_000_000
  private static let idLeadMax: Int64 = 120_000

  package struct UsageFilter: Hashable, Sendable {
    package var account: String
    package var subject: String
    package var by: [UsageGrouping]
    package var from: Int64
    package var to: Int64
    package var days: [Int64]
    package var feature: String?

    package init(
      account: String, subject: String, by: [UsageGrouping], from: Int64, to: Int64,
      days: [Int64] = [], feature: String? = nil
    ) {
      self.account = account
      self.subject = subject
      self.by = by
      self.from = from
      self.to = to
      self.days = days
      self.feature = feature
    }
  }

  package struct UsagePageKey: Hashable, Sendable {
    package var series: Int64
    package var id: DeltaID

    package init(series: Int64, id: DeltaID) {
      self.series = series
      self.id = id
    }
  }

  /// Sums of the deltas behind `after`, in the order of the lines of the books.
  package func usage(
    _ filter: UsageFilter, after key: UsagePageKey? = nil, limit: Int = usageDeltasMax
  ) throws -> (rows: [UsageGroup], next: UsagePageKey?) {
    let limit = max(1, min(limit, Self.usageDeltasMax))
    var groups: [[String]: UsageGroup] = [:]
    let next: UsagePageKey? = try read { db in
      let lines = try Row.fetchAll(
        db,
        sql: """
          SELECT id, feature FROM series WHERE account = ?1 AND id >= ?2 AND deltas > 0
            AND (?3 IS NULL OR feature = ?3) ORDER BY id
          """, arguments: [filter.account, key?.series ?? Int64.min, filter.feature])
      var left = limit
      for line in lines {
        let series: Int64 = line[0]
        let first = Self.bound(filter.from - Self.idLagMax)
        let last = Self.bound(filter.to + Self.idLeadMax)
        var after = (op: first, index: Int64(-1))
        if let key, key.series == series {
          after = (key.id.operation.blob, Int64(key.id.index))
        }
        let rows = try Row.fetchCursor(
          try db.cachedStatement(
            sql: """
              SELECT op, idx, kind, time, actual, charged, absorbed, body FROM deltas
              WHERE series = ? AND (op, idx) > (?, ?) AND op < ? ORDER BY op, idx LIMIT ?
              """), arguments: [series, after.op, after.index, last, left])
        var end: DeltaID?
        while let row = try rows.next() {
          left -= 1
          guard let op = OperationID(blob: row[0]) else { continue }
          let index: Int64 = row[1]
          end = DeltaID(operation: op, index: UInt16(truncatingIfNeeded: index))
          add(row, of: line[1], filter, to: &groups)
          if groups.count >= Self.usageGroupsMax { left = 0 }
          if left == 0 { break }
        }
        if left <= 0 { return end.map { UsagePageKey(series: series, id: $0) } ?? key }
      }
      return nil
    }
    return (groups.values.sorted { $0.key.lexicographicallyPrecedes($1.key) }, next)
  }

  private func add(
    _ row: Row, of feature: String, _ filter: UsageFilter, to groups: inout [[String]: UsageGroup]
  ) {
    let time: Int64 = row[3]
    guard time >= filter.from, time < filter.to else { return }
    let data: Data = row[7]
    // One that cannot be read is parked, and its line of the books does not lead here.
    guard let body = try? bodies.usage([UInt8](data)) else { return }
    let path = body.subject.path
    guard path == filter.subject || path.hasPrefix(filter.subject + "/") else { return }
    let key = filter.by.map { grouping in
      switch grouping {
      case .day: Self.day(of: time, filter.days).map(String.init) ?? ""
      case .feature: feature
      case .level(let level):
        body.subject.depth >= level ? body.subject.prefix(level).path : ""
      case .attribute(let name): body.attributes[name] ?? ""
      }
    }
    var group = groups[key] ?? UsageGroup(key: key)
    let kind: Int64 = row[2]
    let (actual, charged, absorbed): (Int64, Int64, Int64) = (row[4], row[5], row[6])
    switch UInt8(truncatingIfNeeded: kind) {
    case DeltaKind.refund.rawValue: group.refunded = Self.sum(group.refunded, charged)
    case DeltaKind.adjustment.rawValue: group.adjusted = Self.sum(group.adjusted, charged)
    default:
      group.used = Self.sum(group.used, actual)
      group.charged = Self.sum(group.charged, charged)
      group.absorbed = Self.sum(group.absorbed, absorbed)
    }
    group.deltas += 1
    groups[key] = group
  }

  /// Each is a line of the books, which stays within the range; of all features it may not.
  private static func sum(_ a: Int64, _ b: Int64) -> Int64 {
    Quantity.adding(a, b) ?? (a < 0 ? -Quantity.maximum : Quantity.maximum)
  }

  /// The last first instant that is not later.
  private static func day(of time: Int64, _ days: [Int64]) -> Int64? {
    var (low, high) = (0, days.count)
    while low < high {
      let middle = (low + high) / 2
      if days[middle] <= time { low = middle + 1 } else { high = middle }
    }
    return low > 0 ? days[low - 1] : nil
  }

  /// The lowest id of that time.
  private static func bound(_ time: Int64) -> Data {
    OperationID(high: UInt64(max(0, min(time, (1 << 48) - 1))) << 16, low: 0).blob
  }
}
