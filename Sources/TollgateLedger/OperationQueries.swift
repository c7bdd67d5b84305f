// One operation as the books have it: its deltas with everything they counted and charged, and the
// deltas that correct it. What Redis no longer remembers of an operation can be refunded from here,
// and never by more than is left of it.

internal import Foundation
internal import GRDB
package import TollgateCore

/// One delta, whole.
package struct OperationDelta: Hashable, Sendable, Codable {
  package struct Cell: Hashable, Sendable, Codable {
    package var level: Int
    package var window: String
    package var start: Int64
    package var end: Int64
    /// Of a part: what it counted. nil: the whole charged amount.
    package var amount: Int64?
  }
  package struct Charge: Hashable, Sendable, Codable {
    package var rate: String
    package var from: Int64
    package var units: Int64
    package var charge: Int64
  }

  package var id: String
  package var kind: UInt8
  package var time: Int64
  /// It is on record, and posts nothing for now; then only its numbers are sure.
  package var isParked: Bool
  package var actual: Int64
  package var charged: Int64
  package var absorbed: Int64
  package var subject: String?
  package var feature: String?
  package var start: Int64?
  package var end: Int64?
  package var catalogVersion: Int64?
  package var attributes: [String: String]?
  package var cells: [Cell] = []
  package var parts: [Cell] = []
  package var charges: [Charge] = []
  /// The operation that this one corrects, or whose reservation it settles.
  package var corrects: String?

  enum CodingKeys: String, CodingKey {
    case id, kind, time, actual, charged, absorbed, subject, feature, start, end, catalogVersion
    case attributes, cells, parts, charges, corrects
    case isParked = "parked"
  }
}

/// What is left of an operation's use of one feature in one period, after every correction.
package struct OperationLeft: Hashable, Sendable, Codable {
  package var feature: String
  package var start: Int64
  package var actual: Int64
  package var charged: Int64
  package var absorbed: Int64
}

package struct OperationAnswer: Hashable, Sendable, Codable {
  package var deltas: [OperationDelta]
  package var corrections: [OperationDelta]
  /// Of all its deltas and corrections, whatever the page.
  package var left: [OperationLeft]
  /// Who paid since what of it was owed; with its first page.
  package var payers: [OperationPayer] = []
}

extension LedgerStore {
  /// Deltas in one page: each may say 160 counters and 16 charges.
  package static let operationPageMax = 100

  package struct OperationPageKey: Hashable, Sendable {
    package var isCorrection: Bool
    package var id: DeltaID

    package init(isCorrection: Bool, id: DeltaID) {
      self.isCorrection = isCorrection
      self.id = id
    }
  }

  /// The deltas of an operation in a bucket, then those that name it as what they correct, each in
  /// the order of their ids.
  package func operation(
    _ operation: OperationID, bucket: Int, after key: OperationPageKey? = nil,
    limit: Int = operationPageMax
  ) throws -> (answer: OperationAnswer, next: OperationPageKey?) {
    let limit = max(1, min(limit, Self.operationPageMax))
    let (rows, left) = try read { db in
      // A file that an older release wrote corrects nothing.
      let hasParts = try Schema.hasParts(db)
      let corrections =
        "SELECT op, idx FROM corrections WHERE corrected = ?1 AND bucket = ?2"
      let both =
        """
        SELECT 0 AS part, op, idx FROM deltas WHERE op = ?1 AND bucket = ?2
        \(hasParts ? "UNION ALL SELECT 1, op, idx FROM (\(corrections))" : "")
        """
      let joined =
        "FROM (\(both)) AS o JOIN deltas AS d ON d.op = o.op AND d.idx = o.idx AND d.bucket = ?2"
      let rows = try Row.fetchAll(
        db,
        sql: """
          SELECT o.part AS part, d.*, p.op IS NOT NULL AS is_parked \(joined)
          LEFT JOIN parked AS p ON p.op = d.op AND p.idx = d.idx AND p.bucket = d.bucket
            AND p.replayed IS NULL
          WHERE (o.part, d.op, d.idx) > (?3, ?4, ?5) ORDER BY o.part, d.op, d.idx LIMIT ?6
          """,
        arguments: [
          operation.blob, bucket, key.map { $0.isCorrection ? 1 : 0 } ?? -1,
          key?.id.operation.blob ?? Data(), key.map { Int64($0.id.index) } ?? -1, limit,
        ])
      let left = try Row.fetchAll(
        db,
        sql: """
          SELECT s.feature, s.period_start, sum(d.actual), sum(d.charged), sum(d.absorbed)
          \(joined) JOIN series AS s ON s.id = d.series
          GROUP BY s.feature, s.period_start ORDER BY s.feature, s.period_start LIMIT ?3
          """, arguments: [operation.blob, bucket, Self.pageMax])
      return (
        rows,
        left.map {
          OperationLeft(
            feature: $0[0], start: $0[1], actual: $0[2], charged: $0[3], absorbed: $0[4])
        }
      )
    }
    var answer = OperationAnswer(deltas: [], corrections: [], left: left)
    var next: OperationPageKey?
    for row in rows {
      guard let entry = Self.entry(of: row) else { continue }
      let isCorrection: Bool = row["part"]
      let delta = operationDelta(entry, isParked: row["is_parked"])
      if isCorrection { answer.corrections.append(delta) } else { answer.deltas.append(delta) }
      next = OperationPageKey(isCorrection: isCorrection, id: entry.id)
    }
    if key == nil {
      answer.payers = try read { try Self.payers($0, bodies, of: answer.deltas, operation) }
    }
    return (answer, rows.count < limit ? nil : next)
  }

  private func operationDelta(_ entry: OutboxEntry, isParked: Bool) -> OperationDelta {
    var delta = OperationDelta(
      id: entry.id.description, kind: entry.kind.rawValue, time: entry.time.milliseconds,
      isParked: isParked, actual: entry.actual, charged: entry.charged, absorbed: entry.absorbed)
    guard entry.kind != .config, entry.kind != .threshold,
      let body = try? bodies.usage(entry.body)
    else { return delta }
    delta.subject = body.subject.path
    delta.feature = body.feature.text
    delta.start = body.period.start.milliseconds
    delta.end = body.period.end.milliseconds
    delta.catalogVersion = body.catalogVersion
    delta.attributes = body.attributes.isEmpty ? nil : body.attributes
    delta.cells = body.cells.map {
      .init(
        level: $0.level, window: $0.window.code, start: $0.period.start.milliseconds,
        end: $0.period.end.milliseconds)
    }
    delta.parts = body.parts.map {
      .init(
        level: $0.level, window: $0.window.code, start: $0.period.start.milliseconds,
        end: $0.period.end.milliseconds, amount: $0.amount)
    }
    delta.charges = body.charges.map {
      .init(rate: $0.rate.text, from: $0.from.milliseconds, units: $0.units, charge: $0.charge)
    }
    delta.corrects = body.corrects?.hex
    return delta
  }
}
