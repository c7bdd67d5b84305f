// fallback.list | retry | drop: what an open policy let through and the store refused for good. It
// lies in the sidecar that let it through and nowhere else, so these methods speak of that one.

import TollgateCore

extension AdminService {
  func fallbackList(_ request: EmptyRequest) async throws(AdminFailure) -> FallbackListReply {
    await backend.fallback()
  }

  func fallbackRetry(
    _ request: FallbackRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> FallbackReply {
    try await unpark(request, .retry, caller)
  }

  func fallbackDrop(
    _ request: FallbackRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> FallbackReply {
    try await unpark(request, .drop, caller)
  }

  private func unpark(
    _ request: FallbackRequest, _ action: FallbackAction, _ caller: AdminCaller
  ) async throws(AdminFailure) -> FallbackReply {
    let record = try begin(
      request.change, action: "fallback.\(action.rawValue)", request: request, caller: caller,
      reasonRequired: action == .drop)
    let found: FallbackListReply.Parked?
    if request.change.dryRun {
      found = await backend.fallback().parked.first { $0.operation == request.operation }
    } else {
      found = try await backend.unpark(request.operation, action, change: record)
    }
    guard let found else {
      throw .notFound(
        "no operation \(request.operation) is parked in this sidecar",
        fix: "`tollgate fallback list` names them; each sidecar has its own")
    }
    return FallbackReply(result: request.change.dryRun ? .dryRun : .applied, parked: found)
  }
}
