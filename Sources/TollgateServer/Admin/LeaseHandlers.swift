// lease.list | release: who holds what in stock, and an operator's word that a sidecar will not
// come back. A release is a change of the account: recorded first, under its id, with who and why;
// what it is about is done after, and done again where the same id comes again.

import TollgateCore

extension AdminService {
  func leaseList(_ request: LeaseListRequest) async throws(AdminFailure) -> LeaseListReply {
    let limit = request.limit ?? 100
    guard (1...LeaseListRequest.limitMax).contains(limit) else {
      throw .badRequest(
        "limit", "must be from 1 to \(LeaseListRequest.limitMax)", value: "\(limit)")
    }
    var reply: LeaseListReply
    if let account = request.account {
      try checkIsAccount(account)
      reply = try await backend.leases(of: account)
    } else {
      reply = try await backend.leases(after: request.after, limit: limit)
    }
    if request.inDoubt == true { reply.leases.removeAll { $0.state == .live } }
    return reply
  }

  func leaseRelease(
    _ request: LeaseReleaseRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    try checkIsAccount(request.account)
    guard request.lessee.utf8.count == 16, let number = UInt64(request.lessee, radix: 16) else {
      throw .badRequest("lessee", "must be 16 hex digits, as lease.list has", value: request.lessee)
    }
    let lessee = LesseeID(number)
    var record = try begin(
      request.change, action: "lease.release", request: request, caller: caller,
      reasonRequired: true)
    record.reason += " (lessee \(lessee))"
    let found = try await backend.leases(of: request.account).leases.first {
      $0.lessee == lessee.hex
    }
    var reply = try await changeAccount(request.account, request.change, record) {
      (before, _) throws(AdminFailure) in
      guard let found else {
        throw .notFound(
          "\(request.account) has no lease of \(lessee)",
          fix: "`tollgate lease list \(request.account)` names them")
      }
      switch found.state {
      case .inDoubt: break
      case .live:
        throw AdminFailure(
          .conflict, "the lease of \(lessee) is live: its sidecar may still let through from it",
          fix: "stop that sidecar; the lease is in doubt "
            + "\(LeaseRules.graceMilliseconds / 1000) s after its end")
      case .settling:
        throw AdminFailure(
          .conflict, "what \(lessee) let through is being settled by this sidecar",
          fix: "wait: it is released by itself when that is done")
      }
      return .change(before, ["lessee \(lessee): free again: \(found.text)"])
    } impact: { (_, _, _) throws(AdminFailure) in
      Impact(accountsAffected: 1, accountsExamined: 1)
    }
    if reply.result == .applied || reply.result == .replayed {
      let units = try await backend.releaseLease(of: lessee, account: request.account)
      reply.detail += (reply.detail.isEmpty ? "" : "; ") + "\(units) units are free"
    }
    return reply
  }
}
