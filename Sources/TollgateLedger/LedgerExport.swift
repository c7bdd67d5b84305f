// Every delta as a line of text, for spreadsheets and warehouses: CSV (RFC 4180) or JSON, one
// object a line. Streamed in the order of the ids, from one snapshot, in bounded memory.

internal import Foundation
internal import GRDB
internal import TollgateCore

package enum ExportFormat: String, Sendable, CaseIterable { case csv, json }

/// One exported line. Instants are RFC 3339 in UTC and, exactly, milliseconds.
struct ExportLine: Codable {
  var id: String
  var kind: String
  var time: String
  var timeMilliseconds: Int64
  var account: String
  var subject: String
  var feature: String
  var periodStart: String
  var periodEnd: String
  var actual: Int64
  var charged: Int64
  var absorbed: Int64
  var adjustment: Bool
  /// The start of the period in whose statement it stands: its own, unless that was closed.
  var billedStart: String
  var catalogVersion: Int64
  var source: String
  var bucket: Int
  var epoch: Int64
  var sequence: Int64
  var attributes: [String: String]
  var included: Int64
  /// Of each grant, by its id.
  var grants: [String: Int64]
  var overage: Int64
  var deficit: Int64
  /// `<rate>@<from, milliseconds>`: what it charged.
  var charges: [String: Int64]
  /// The operation that it corrects, or whose reservation it settles.
  var corrects: String

  static let columns = [
    "id", "kind", "time", "time_milliseconds", "account", "subject", "feature", "period_start",
    "period_end", "actual", "charged", "absorbed", "adjustment", "billed_start", "catalog_version",
    "source", "bucket", "epoch", "sequence", "attributes", "included", "grants", "overage",
    "deficit", "charges", "corrects",
  ]

  var csv: String {
    func pairs(_ values: [String: some CustomStringConvertible]) -> String {
      values.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }.joined(separator: ";")
    }
    return [
      id, kind, time, "\(timeMilliseconds)", account, subject, feature, periodStart, periodEnd,
      "\(actual)", "\(charged)", "\(absorbed)", adjustment ? "true" : "false",
      billedStart, "\(catalogVersion)", source, "\(bucket)", "\(epoch)", "\(sequence)",
      pairs(attributes), "\(included)", pairs(grants), "\(overage)", "\(deficit)", pairs(charges),
      corrects,
    ].map(Self.field).joined(separator: ",")
  }

  /// Quoted where it must be. A leading `=`, `+`, `-` or `@` in text would be run as a formula by a
  /// spreadsheet, so such text is quoted behind an apostrophe; numbers stay as they are.
  static func field(_ text: String) -> String {
    var text = text
    if let first = text.first, "=+-@".contains(first), Int64(text) == nil { text = "'" + text }
    guard text.contains(where: { ",\"\r\n".contains($0) }) else { return text }
    return "\"" + text.replacing("\"", with: "\"\"") + "\""
  }
}

extension LedgerStore {
  /// Writes every delta but changes of configuration, of one account or of all, of periods that
  /// start in `from ..< until`. Answers the number of deltas written.
  package func export(
    format: ExportFormat, account: String? = nil, from: Int64 = .min, until: Int64 = .max,
    write: (String) throws -> Void
  ) throws -> Int {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    return try read { db in
      if format == .csv { try write(ExportLine.columns.joined(separator: ",") + "\r\n") }
      let rows = try Row.fetchCursor(
        db,
        sql: """
          SELECT d.*, s.account AS account, s.feature AS feature, s.period_start AS start,
            s.period_end AS end, s.adjustment AS adjustment,
            \(try Schema.billed(db).start) AS billed
          FROM deltas AS d JOIN series AS s ON s.id = d.series
          WHERE (?1 IS NULL OR s.account = ?1) AND s.period_start >= ?2 AND s.period_start < ?3
          ORDER BY d.op, d.idx, d.bucket
          """, arguments: [account, from, until])
      var count = 0
      while let row = try rows.next() {
        guard let line = exportLine(row) else { continue }
        switch format {
        case .csv: try write(line.csv + "\r\n")
        case .json:
          try write(String(decoding: try encoder.encode(line), as: UTF8.self) + "\n")
        }
        count += 1
      }
      return count
    }
  }

  private static func word(_ kind: DeltaKind) -> String {
    switch kind {
    case .usage: "usage"
    case .reversal: "reversal"
    case .config: "config"
    case .refund: "refund"
    case .adjustment: "adjustment"
    case .threshold: "threshold"
    default: "kind-\(kind.rawValue)"
    }
  }

  private func exportLine(_ row: Row) -> ExportLine? {
    guard let entry = Self.entry(of: row) else { return nil }
    // The body was decodable when it was posted; should it not be now, the line still appears.
    let body = try? bodies.usage(entry.body)
    let usage = (try? bodies.meaning(of: entry))?.usage
    var included: Int64 = usage == nil ? entry.charged : 0
    var grants: [String: Int64] = [:]
    var (overage, deficit): (Int64, Int64) = (0, 0)
    for row in usage?.breakdown.rows ?? [] {
      switch row.line.part {
      case .included: included = row.amount
      case .grant(let id): grants[id] = row.amount
      case .overage: overage = row.amount
      case .deficit: deficit = row.amount
      case .absorbed: break
      }
    }
    let charges = (body?.charges ?? []).map { ("\($0.rate)@\($0.from.milliseconds)", $0.charge) }
    func text(_ milliseconds: Int64) -> String {
      CivilDate.text(WallTime(milliseconds: milliseconds))
    }
    return ExportLine(
      id: entry.id.description, kind: Self.word(entry.kind), time: text(entry.time.milliseconds),
      timeMilliseconds: entry.time.milliseconds, account: row["account"],
      subject: body?.subject.path ?? row["account"], feature: row["feature"],
      periodStart: text(row["start"]), periodEnd: text(row["end"]), actual: entry.actual,
      charged: entry.charged, absorbed: entry.absorbed, adjustment: row["adjustment"],
      billedStart: text(row["billed"]), catalogVersion: body?.catalogVersion ?? 0,
      source: body?.source.name ?? "",
      bucket: row["bucket"], epoch: row["epoch"], sequence: entry.sequence,
      attributes: body?.attributes ?? [:], included: included, grants: grants, overage: overage,
      deficit: deficit, charges: Dictionary(charges, uniquingKeysWith: +),
      corrects: body?.corrects?.hex ?? "")
  }
}
