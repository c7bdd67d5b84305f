// The audit log as the handlers see it: entries of one order, whichever side holds them.

package import TollgateCore

/// Where a page of the audit log ended: everything older is below it. Two changes of one
/// millisecond are told apart by their ids.
package struct AuditPlace: Hashable, Sendable, Comparable {
  package var time: WallTime
  /// nil: everything of that millisecond is above the place.
  package var operation: OperationID?

  package init(time: WallTime, operation: OperationID? = nil) {
    self.time = time
    self.operation = operation
  }

  package static func < (a: Self, b: Self) -> Bool {
    let least = OperationID(high: 0, low: 0)
    return a.time != b.time
      ? a.time < b.time : (a.operation ?? least) < (b.operation ?? least)
  }

  /// `<milliseconds>` or `<milliseconds>.<32 hex>`.
  package init?(text: String) {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard let time = Int64(parts[0]), time >= 0, parts.count <= 2 else { return nil }
    self.time = WallTime(milliseconds: time)
    guard parts.count == 2 else { return }
    guard let operation = OperationID(hex: parts[1]) else { return nil }
    self.operation = operation
  }

  package var text: String {
    operation.map { "\(time.milliseconds).\($0)" } ?? "\(time.milliseconds)"
  }
}

package struct AuditPage: Hashable, Sendable {
  package enum History: Hashable, Sendable {
    /// The ledger's history is in the list.
    case read
    /// This deployment has no ledger.
    case none
    /// The ledger could not be asked: only recent changes are in the list.
    case unreachable(String)
  }

  package var entries: [AuditEntry]
  package var history: History
  /// nil: that was all.
  package var next: AuditPlace?

  package init(entries: [AuditEntry], history: History, next: AuditPlace?) {
    self.entries = entries
    self.history = history
    self.next = next
  }
}

package struct AuditEntry: Hashable, Sendable {
  package var time: WallTime
  /// nil: the source does not hold it.
  package var operation: OperationID?
  package var change: ConfigDelta
  /// Whether the ledger has it.
  package var delivered: Bool

  package init(time: WallTime, operation: OperationID?, change: ConfigDelta, delivered: Bool) {
    self.time = time
    self.operation = operation
    self.change = change
    self.delivered = delivered
  }
}

extension AuditEntry {
  package var place: AuditPlace { AuditPlace(time: time, operation: operation) }
}
