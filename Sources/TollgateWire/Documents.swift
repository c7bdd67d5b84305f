// ADMIN and QUERY: a numbered method and a JSON document, there and back. These calls are rare,
// read by people and likely to grow, so the frame carries a document and not a layout. A long
// answer comes in several frames, each a piece of the document's bytes, all but the last with the
// flag `more`.

package import NIOCore
package import TollgateCore

/// What an operator can ask of a sidecar. The number is on the wire, the name in documents.
package enum AdminMethod: UInt16, Sendable, Hashable, CaseIterable {
  case catalogValidate = 1
  case catalogDiff = 2
  case catalogApply = 3
  case catalogShow = 4
  case catalogRollback = 5
  case accountSet = 6
  case accountShow = 7
  case accountList = 8
  case accountImport = 9
  case limitSet = 10
  case limitUnset = 11
  case limitList = 12
  case usage = 13
  case reset = 14
  case explain = 15
  case bypassSet = 16
  case bypassClear = 17
  case bypassList = 18
  case auditLog = 19
  case reconcile = 20
  case status = 21
  case doctor = 22
  case resolveOperation = 23
  case fallbackList = 24
  case fallbackRetry = 25
  case fallbackDrop = 26
  case leaseList = 27
  case leaseRelease = 28
  case accountPlan = 32
  case accountPastDue = 33
  case grantAdd = 34
  case grantVoid = 35
  case grantList = 36
  case adjust = 40
  case usageHistory = 41
  case top = 42
  case tail = 43

  package var name: String {
    switch self {
    case .catalogValidate: "catalog.validate"
    case .catalogDiff: "catalog.diff"
    case .catalogApply: "catalog.apply"
    case .catalogShow: "catalog.show"
    case .catalogRollback: "catalog.rollback"
    case .accountSet: "account.set"
    case .accountShow: "account.show"
    case .accountList: "account.list"
    case .accountImport: "account.import"
    case .limitSet: "limit.set"
    case .limitUnset: "limit.unset"
    case .limitList: "limit.list"
    case .usage: "usage"
    case .reset: "reset"
    case .explain: "explain"
    case .bypassSet: "bypass.set"
    case .bypassClear: "bypass.clear"
    case .bypassList: "bypass.list"
    case .auditLog: "audit.log"
    case .reconcile: "reconcile"
    case .status: "status"
    case .doctor: "doctor"
    case .resolveOperation: "resolve.operation"
    case .fallbackList: "fallback.list"
    case .fallbackRetry: "fallback.retry"
    case .fallbackDrop: "fallback.drop"
    case .leaseList: "lease.list"
    case .leaseRelease: "lease.release"
    case .accountPlan: "account.plan"
    case .accountPastDue: "account.past_due"
    case .grantAdd: "grant.add"
    case .grantVoid: "grant.void"
    case .grantList: "grant.list"
    case .adjust: "adjust"
    case .usageHistory: "usage.history"
    case .top: "top"
    case .tail: "tail"
    }
  }
}

/// What a sidecar or a tool can ask of a ledger.
package enum QueryMethod: UInt16, Sendable, Hashable, CaseIterable {
  /// Settled sums per account, feature and period, paged.
  case totals = 1
  case statement = 2
  case configHistory = 3
  /// Which of these delta ids are posted; or the ids of one account, feature and period, paged.
  case deltaIDs = 4
  case status = 5
  /// The newest configuration of some accounts, or the global one, with its latest changes.
  case configCurrent = 6
  /// The deltas of one operation with all they counted, and those that correct it, paged.
  case operation = 7
  /// Sums over the deltas of an account, grouped, page by page of deltas.
  case usage = 12

  package var name: String {
    switch self {
    case .totals: "totals"
    case .statement: "statement"
    case .configHistory: "config.history"
    case .deltaIDs: "delta.ids"
    case .status: "status"
    case .configCurrent: "config.current"
    case .operation: "operation"
    case .usage: "usage"
    }
  }
}

/// ADMIN and QUERY have one layout; so have their replies.
private enum DocumentLayout {
  static func encode(_ number: UInt16, _ body: [UInt8], into buffer: inout ByteBuffer) {
    buffer.put(number)
    buffer.put(UInt16(0))
    buffer.put(bytes: body)
  }

  static func decode(
    from buffer: inout ByteBuffer, what: String
  ) throws(WireError) -> (UInt16, [UInt8]) {
    let number = try buffer.take(UInt16.self)
    try buffer.takeReserved(2)
    let body = try buffer.takeBytes(max: WireLimits.documentBytesMax, of: "a document")
    try buffer.requireEnd(of: what)
    return (number, body)
  }
}

package struct AdminRequest: OpcodeMessage {
  package static let opcode = Opcode.admin
  /// As it stood on the wire; `method` is nil where this side does not know it (NOT_FOUND).
  package var rawMethod: UInt16
  /// JSON, UTF-8; empty means `{}`.
  package var body: [UInt8]

  package init(_ method: AdminMethod, body: [UInt8]) {
    rawMethod = method.rawValue
    self.body = body
  }

  package init(rawMethod: UInt16, body: [UInt8]) {
    self.rawMethod = rawMethod
    self.body = body
  }

  package var method: AdminMethod? { AdminMethod(rawValue: rawMethod) }

  package func encode(into buffer: inout ByteBuffer) {
    DocumentLayout.encode(rawMethod, body, into: &buffer)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> AdminRequest {
    let (method, body) = try DocumentLayout.decode(from: &buffer, what: "ADMIN")
    return AdminRequest(rawMethod: method, body: body)
  }
}

/// One piece of an answer. The flag `more` in the frame header says that another follows.
package struct AdminReply: OpcodeMessage {
  package static let opcode = Opcode.adminReply
  /// nil: done. An error's document says more: `{"message":…, "problems":[…]}`.
  package var status: ErrorCode?
  package var body: [UInt8]

  package init(status: ErrorCode? = nil, body: [UInt8]) {
    self.status = status
    self.body = body
  }

  package func encode(into buffer: inout ByteBuffer) {
    DocumentLayout.encode(status?.rawValue ?? 0, body, into: &buffer)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> AdminReply {
    let (status, body) = try DocumentLayout.decode(from: &buffer, what: "ADMIN_REPLY")
    return AdminReply(
      status: status == 0 ? nil : ErrorCode(rawValue: status) ?? .internalError, body: body)
  }
}

package struct QueryRequest: OpcodeMessage {
  package static let opcode = Opcode.query
  package var rawMethod: UInt16
  package var body: [UInt8]

  package init(_ method: QueryMethod, body: [UInt8]) {
    rawMethod = method.rawValue
    self.body = body
  }

  package init(rawMethod: UInt16, body: [UInt8]) {
    self.rawMethod = rawMethod
    self.body = body
  }

  package var method: QueryMethod? { QueryMethod(rawValue: rawMethod) }

  package func encode(into buffer: inout ByteBuffer) {
    DocumentLayout.encode(rawMethod, body, into: &buffer)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> QueryRequest {
    let (method, body) = try DocumentLayout.decode(from: &buffer, what: "QUERY")
    return QueryRequest(rawMethod: method, body: body)
  }
}

/// One piece of an answer; the flag `more` as in AdminReply.
package struct QueryReply: OpcodeMessage {
  package static let opcode = Opcode.queryReply
  package var status: ErrorCode?
  package var body: [UInt8]

  package init(status: ErrorCode? = nil, body: [UInt8]) {
    self.status = status
    self.body = body
  }

  package func encode(into buffer: inout ByteBuffer) {
    DocumentLayout.encode(status?.rawValue ?? 0, body, into: &buffer)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> QueryReply {
    let (status, body) = try DocumentLayout.decode(from: &buffer, what: "QUERY_REPLY")
    return QueryReply(
      status: status == 0 ? nil : ErrorCode(rawValue: status) ?? .internalError, body: body)
  }
}
