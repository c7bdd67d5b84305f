// What an open policy let through and could not be posted: fallback.list, fallback.retry,
// fallback.drop.

package import TollgateCore

package struct FallbackListReply: Hashable, Sendable, Codable {
  package struct Parked: Hashable, Sendable, Codable {
    package var operation: OperationID
    package var subject: Subject
    package var amounts: [String: Int64]
    package var reason: String
    package var time: WallTime

    package init(
      operation: OperationID, subject: Subject, amounts: [String: Int64], reason: String,
      time: WallTime
    ) {
      self.operation = operation
      self.subject = subject
      self.amounts = amounts
      self.reason = reason
      self.time = time
    }

    /// `chat.requests=3 tokens=10`.
    package var units: String {
      amounts.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }.joined(separator: " ")
    }
  }

  package var sidecar: String
  /// To be posted, and of them those that wait for what the store needs.
  package var pending: Int
  package var deferred: Int
  /// The oldest first.
  package var parked: [Parked]

  package init(sidecar: String, pending: Int, deferred: Int, parked: [Parked]) {
    self.sidecar = sidecar
    self.pending = pending
    self.deferred = deferred
    self.parked = parked
  }
}

package struct FallbackRequest: Hashable, Sendable, Codable {
  package var operation: OperationID
  package var change: ChangeOptions

  package init(operation: OperationID, change: ChangeOptions) {
    self.operation = operation
    self.change = change
  }
}

package enum FallbackAction: String, Hashable, Sendable { case retry, drop }

package struct FallbackReply: Hashable, Sendable, Codable {
  /// `applied` or `dry-run`.
  package var result: ChangeReply.Result
  package var parked: FallbackListReply.Parked

  package init(result: ChangeReply.Result, parked: FallbackListReply.Parked) {
    self.result = result
    self.parked = parked
  }
}
