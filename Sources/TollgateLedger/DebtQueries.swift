// Who paid what was owed: the grants that cured debts of an account since an operation, less what
// went back to them. A refund of units that were owed, and paid since, gives them back to these.

internal import Foundation
internal import GRDB
internal import TollgateCore

/// One instance of a grant, and the units of debts that it paid and did not get back.
package struct OperationPayer: Hashable, Sendable, Codable {
  package var feature: String
  package var window: String
  package var start: Int64
  package var end: Int64
  package var units: Int64
}

extension LedgerStore {
  /// An id may be minted so long before what it does is settled.
  private static let payersReachMilliseconds: Int64 = 2 * 86_400_000

  /// Of the features of which an operation owed something, in the order of the last payment. Of
  /// `scannedMax` deltas at most.
  static func payers(
    _ db: Database, _ bodies: DeltaBodies, of deltas: [OperationDelta], _ operation: OperationID
  ) throws -> [OperationPayer] {
    let owing = deltas.filter { delta in
      delta.parts.contains { $0.window == Window.deficit.code && $0.amount ?? 0 > 0 }
    }
    guard let account = owing.first?.subject.flatMap({ try? Subject($0) })?.account.path else {
      return []
    }
    let since = max(0, operation.time.milliseconds - payersReachMilliseconds)
    let first = OperationID(high: UInt64(since) << 16, low: 0)
    var found: [OperationPayer] = []
    for feature in Set(owing.compactMap(\.feature)).sorted() {
      let rows = try Row.fetchCursor(
        db,
        sql: """
          SELECT d.* FROM deltas AS d WHERE d.series IN (
            SELECT id FROM series WHERE account = ? AND feature = ?) AND d.op >= ?
          ORDER BY d.op, d.idx LIMIT ?
          """, arguments: [account, feature, first.blob, scannedMax])
      var paid: [OperationPayer] = []
      while let row = try rows.next() {
        guard let entry = entry(of: row), let body = try? bodies.usage(entry.body) else { continue }
        note(body.counts(charged: entry.charged), of: feature, in: &paid)
      }
      found += paid.filter { $0.units > 0 }
    }
    return found
  }

  /// Less owed: grants paid, those first that are burnt first. More owed while a grant got some
  /// back: that was what it had paid.
  private static func note(
    _ counts: [CountedPart], of feature: String, in paid: inout [OperationPayer]
  ) {
    guard let owed = counts.filter({ $0.window.tally == .deficit }).min(by: { $0.level < $1.level })
    else { return }
    var rest = abs(owed.amount)
    for count in counts where count.level == owed.level && rest > 0 {
      guard case .grant = count.window.tally, count.amount.signum() == -owed.amount.signum()
      else { continue }
      let units = min(rest, abs(count.amount))
      rest -= units
      var payer = OperationPayer(
        feature: feature, window: count.window.code, start: count.period.start.milliseconds,
        end: count.period.end.milliseconds, units: 0)
      if let at = paid.firstIndex(where: { $0.window == payer.window && $0.start == payer.start }) {
        payer = paid.remove(at: at)
      }
      payer.units += owed.amount < 0 ? units : -units
      paid.append(payer)
    }
  }
}
