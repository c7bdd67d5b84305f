// Events: deltas that move nothing and say that something happened. Today these are the thresholds
// of limits that were reached. Each is in the books once, by its identity, however often it came.

internal import GRDB
package import TollgateCore

package struct LedgerEvent: Hashable, Sendable {
  package var id: DeltaID
  package var time: WallTime
  package var body: ThresholdBody
}

extension LedgerStore {
  /// The newest first, of one account or of all, from one snapshot. Reads every delta: a report.
  ///
  /// - Parameter limit: nil: all of them.
  package func eachEvent(
    account: String? = nil, limit: Int? = nil, _ visit: (LedgerEvent) throws -> Void
  ) throws {
    try read { db in
      let rows = try Row.fetchCursor(
        db, sql: "SELECT * FROM deltas WHERE kind = ? ORDER BY time DESC, op DESC, idx DESC",
        arguments: [Int64(DeltaKind.threshold.rawValue)])
      var left = limit ?? .max
      while left > 0, let row = try rows.next() {
        // One that cannot be read is parked, and `verify` names it.
        guard let entry = Self.entry(of: row), let body = try? ThresholdBody.decode(entry.body),
          account == nil || body.subject.account.path == account
        else { continue }
        try visit(LedgerEvent(id: entry.id, time: entry.time, body: body))
        left -= 1
      }
    }
  }
}

extension DeltaBodies {
  /// An event posts nothing; what it says must be readable, and its numbers nothing.
  func eventMeaning(of entry: OutboxEntry) throws(Poison) -> Meaning {
    guard entry.actual == 0, entry.charged == 0, entry.absorbed == 0 else {
      throw Poison(reason: "an event with an amount of \(entry.actual)")
    }
    do { _ = try ThresholdBody.decode(entry.body) } catch {
      throw Poison(reason: "undecodable body: \(error)")
    }
    return Meaning()
  }
}
