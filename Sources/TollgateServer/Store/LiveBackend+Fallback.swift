// The parked operations of this sidecar's fallback queue, for the admin handlers. Who retries or
// drops one is in the structured log, with enough to bill it by hand.

import Logging
import TollgateCore

extension LiveBackend {
  func fallback() async -> FallbackListReply {
    let status = sidecar.fallback.status
    return FallbackListReply(
      sidecar: sidecar.configuration.sidecarID, pending: status.pending, deferred: status.deferred,
      parked: sidecar.fallback.refusals(.max).map { Self.parked($0) })
  }

  func unpark(
    _ operation: OperationID, _ action: FallbackAction, change: ChangeRecord
  ) async throws(AdminFailure) -> FallbackListReply.Parked? {
    let found: FallbackRefusal?
    switch action {
    case .drop: found = sidecar.fallback.drop(operation)
    case .retry:
      switch sidecar.fallback.retry(operation) {
      case .waits(let refusal): found = refusal
      case .unknown: found = nil
      case .full:
        throw AdminFailure(
          .overloaded, "the fallback queue or its journal is full; the operation stays parked",
          fix: "repeat when some of what is to be posted is posted (tollgate fallback list)")
      }
    }
    guard let found else { return nil }
    sidecar.logger.notice(
      "a parked operation is \(action == .drop ? "dropped" : "posted again") by an operator",
      metadata: [
        "operation": "\(found.operation.text)", "refusal": "\(found.reason)",
        "actor": "\(change.actor)", "reason": "\(change.reason)",
      ])
    return Self.parked(found)
  }

  static func parked(_ refusal: FallbackRefusal) -> FallbackListReply.Parked {
    let operation = refusal.operation
    return .init(
      operation: operation.id, subject: operation.subject,
      amounts: Dictionary(
        operation.items.map { ($0.feature.text, $0.amount) }, uniquingKeysWith: { $1 }),
      reason: refusal.reason, time: refusal.time)
  }
}
