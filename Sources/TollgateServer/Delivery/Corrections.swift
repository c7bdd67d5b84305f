// What a correction is asked for, as it travels from the request path or from an admin handler to
// the `Corrector`, and the books it is worked out from.

import Foundation
import NIOCore
import TollgateCore
import TollgateLedger
import TollgateRedis

/// A REFUND, as it waits for the ledger's word. Two are the same where id and fingerprint are: the
/// same refund asked for twice is answered once.
struct RefundErrand: Sendable {
  struct Key: Hashable, Sendable {
    var id: OperationID
    var fingerprint: OperationFingerprint
  }

  var key: Key
  var subject: Subject
  var corrected: OperationID
  var items: [Item]
  var attributes: [String: String]
  var traceParent: String
  var reason: String
  var bucket: Int
  var deadline: NIODeadline

  /// nil: a refund that names no operation.
  init?(_ request: Request) {
    guard let terms = request.terms, let corrected = terms.reservation else { return nil }
    key = Key(id: request.id, fingerprint: request.fingerprint)
    subject = request.subject
    self.corrected = corrected
    items = request.items
    attributes = request.attributes
    traceParent = request.traceParent
    reason = terms.reason
    bucket = request.bucket
    deadline = request.deadline
  }
}

/// One operation and what corrects it, from the ledger.
struct OperationBooks: Sendable {
  var recorded: [RecordedDelta] = []
  var corrections: [RecordedDelta] = []
  /// Some delta of it posts nothing for now, so nobody can say what is left.
  var isParked = false
  /// The operation is a reservation: its settles were charged.
  var settles: [OperationID] = []
  /// Who paid since what of it was owed, the last to pay last.
  var payers: [OperationPayer] = []

  struct Page: Decodable {
    var deltas: [OperationDelta]
    var corrections: [OperationDelta]
    var payers: [OperationPayer]?
    var next: String?
  }

  mutating func add(_ page: Page) {
    for delta in page.deltas + page.corrections where delta.isParked { isParked = true }
    payers += page.payers ?? []
    recorded += page.deltas.compactMap { RecordedDelta($0) }
    for delta in page.corrections.compactMap({ RecordedDelta($0) }) {
      if delta.kind == .usage {
        settles.append(delta.id.operation)
      } else {
        corrections.append(delta)
      }
    }
  }
}

extension RecordedDelta {
  /// nil: not a delta of units, or of a form that this release cannot read.
  init?(_ delta: OperationDelta) {
    guard let dot = delta.id.lastIndex(of: "."), let operation = OperationID(hex: delta.id[..<dot]),
      let index = UInt16(delta.id[delta.id.index(after: dot)...]),
      let subject = delta.subject.flatMap({ try? Subject($0) }),
      let feature = delta.feature.flatMap({ try? Name($0) }), let start = delta.start,
      let end = delta.end
    else { return nil }
    var cells: [CellReference] = []
    for cell in delta.cells {
      guard let window = Window(code: cell.window) else { return nil }
      cells.append(CellReference(level: cell.level, window: window, period: cell.period))
    }
    var parts: [CountedPart] = []
    for part in delta.parts {
      guard let window = Window(code: part.window), let amount = part.amount else { return nil }
      parts.append(
        CountedPart(level: part.level, window: window, period: part.period, amount: amount))
    }
    var charges: [RateCharge] = []
    for charge in delta.charges {
      guard let rate = try? Name(charge.rate) else { return nil }
      charges.append(
        RateCharge(
          rate: rate, from: WallTime(milliseconds: charge.from), units: charge.units,
          charge: charge.charge))
    }
    self.init(
      id: DeltaID(operation: operation, index: index), kind: DeltaKind(rawValue: delta.kind),
      time: WallTime(milliseconds: delta.time), actual: delta.actual, charged: delta.charged,
      body: UsageBody(
        subject: subject, feature: feature,
        period: Period(
          start: WallTime(milliseconds: start), end: WallTime(milliseconds: end)),
        cells: cells, catalogVersion: delta.catalogVersion ?? 0, source: .redis,
        attributes: delta.attributes ?? [:], parts: parts, charges: charges,
        corrects: delta.corrects.flatMap { OperationID(hex: $0) }))
  }
}

extension OperationDelta.Cell {
  fileprivate var period: Period {
    Period(start: WallTime(milliseconds: start), end: WallTime(milliseconds: end))
  }
}
