// The admin methods: JSON in, JSON out, over one backend. This file takes a request apart and puts
// its answer together; what a method means stands in the handler files. A handler never reaches
// Redis but through AdminBackend, so every rule here is tested without one.

package import TollgateCore
package import TollgateWire

/// What the connection proved about who is asking, e.g. `token ops` or `uid 1000`.
package struct AdminCaller: Hashable, Sendable {
  package var proof: String

  package init(proof: String) { self.proof = proof }
}

package struct AdminAnswer: Hashable, Sendable {
  /// nil: done; `body` is the reply. Else `body` is an `AdminErrorReply`.
  package var status: ErrorCode?
  package var body: [UInt8]

  package init(status: ErrorCode?, body: [UInt8]) {
    self.status = status
    self.body = body
  }
}

package struct AdminService<Backend: AdminBackend>: Sendable {
  package let backend: Backend
  /// The sidecar's wall clock; Redis' time is asked for where it decides.
  let clock: @Sendable () -> WallTime

  package init(backend: Backend, clock: @escaping @Sendable () -> WallTime) {
    self.backend = backend
    self.clock = clock
  }

  /// Never throws and never traps on what the caller sent. Not bounded in time by itself: the
  /// session that calls it gives up at the request's deadline.
  package func answer(
    _ method: AdminMethod, body: [UInt8], caller: AdminCaller
  ) async -> AdminAnswer {
    do throws(AdminFailure) {
      return AdminAnswer(status: nil, body: try await run(method, body: body, caller: caller))
    } catch {
      return Self.answer(to: error)
    }
  }

  package static func answer(to failure: AdminFailure) -> AdminAnswer {
    let document = try? Document(encoding: AdminErrorReply(failure))
    return AdminAnswer(status: failure.code, body: document?.jsonBytes() ?? [])
  }

  private func run(
    _ method: AdminMethod, body: [UInt8], caller: AdminCaller
  ) async throws(AdminFailure) -> [UInt8] {
    switch method {
    case .catalogValidate: try encode(await catalogValidate(decode(body)))
    case .catalogDiff: try encode(await catalogDiff(decode(body)))
    case .catalogApply: try encode(await catalogApply(decode(body), caller))
    case .catalogShow: try encode(await catalogShow(decode(body)))
    case .catalogRollback: try encode(await catalogRollback(decode(body), caller))
    case .accountSet: try encode(await accountSet(decode(body), caller))
    case .accountShow: try encode(await accountShow(decode(body)))
    case .accountList: try encode(await accountList(decode(body)))
    case .accountImport: try encode(await accountImport(decode(body), caller))
    case .limitSet: try encode(await limitSet(decode(body), caller))
    case .limitUnset: try encode(await limitUnset(decode(body), caller))
    case .limitList: try encode(await limitList(decode(body)))
    case .usage: try encode(await usage(decode(body)))
    case .reset: try encode(await reset(decode(body), caller))
    case .explain: try encode(await explain(decode(body)))
    case .bypassSet: try encode(await bypassSet(decode(body), caller))
    case .bypassClear: try encode(await bypassClear(decode(body), caller))
    case .bypassList: try encode(await bypassList(decode(body)))
    case .auditLog: try encode(await auditLog(decode(body)))
    case .reconcile: try encode(await reconcile(decode(body)))
    case .status: try encode(await status(decode(body)))
    case .doctor: try encode(await doctor(decode(body)))
    case .resolveOperation: try encode(await resolveOperation(decode(body)))
    case .fallbackList: try encode(await fallbackList(decode(body)))
    case .fallbackRetry: try encode(await fallbackRetry(decode(body), caller))
    case .fallbackDrop: try encode(await fallbackDrop(decode(body), caller))
    case .leaseList: try encode(await leaseList(decode(body)))
    case .leaseRelease: try encode(await leaseRelease(decode(body), caller))
    case .accountPlan: try encode(await accountPlan(decode(body), caller))
    case .accountPastDue: try encode(await accountPastDue(decode(body), caller))
    case .grantAdd: try encode(await grantAdd(decode(body), caller))
    case .grantVoid: try encode(await grantVoid(decode(body), caller))
    case .grantList: try encode(await grantList(decode(body)))
    case .adjust: try encode(await adjust(decode(body), caller))
    case .usageHistory: try encode(await usageHistory(decode(body)))
    case .top: try encode(await top(decode(body)))
    case .tail: try encode(await tail(decode(body)))
    }
  }

  // MARK: JSON

  private func decode<Request: Decodable>(
    _ body: [UInt8]
  ) throws(AdminFailure) -> Request {
    try AdminJSON.decode(Request.self, from: body, strict: true)
  }

  private func encode(_ reply: some Encodable) throws(AdminFailure) -> [UInt8] {
    try AdminJSON.encode(reply)
  }
}

/// Both ends of the admin protocol read and write through here.
package enum AdminJSON {
  /// The largest reply that is read: paged answers stay far below it.
  package static let bytesMax = 16 << 20

  package static func encode(_ value: some Encodable) throws(AdminFailure) -> [UInt8] {
    do {
      return try Document(encoding: value).jsonBytes()
    } catch {
      throw AdminFailure(.internalError, "cannot be written as JSON: \(error)")
    }
  }

  package static func decode<Value: Decodable>(
    _: Value.Type, from body: [UInt8], strict: Bool = false
  ) throws(AdminFailure) -> Value {
    let document: Document
    do throws(InvalidJSON) {
      document = body.isEmpty ? .object([]) : try Document(json: body, bytesMax: bytesMax)
    } catch {
      throw AdminFailure(.badRequest, "the body is not JSON, \(error.description)")
    }
    do {
      return try document.decode(Value.self, strict: strict)
    } catch let DecodingError.dataCorrupted(context) {
      let path = context.codingPath.map(\.stringValue).joined(separator: "/")
      throw .badRequest(path, context.debugDescription)
    } catch let error as InvalidName {
      throw AdminFailure(
        .invalidName, "the request is not valid",
        problems: [.init(path: "", value: error.value, reason: error.reason)])
    } catch {
      throw AdminFailure(.badRequest, "the body does not have the form of the request: \(error)")
    }
  }
}
