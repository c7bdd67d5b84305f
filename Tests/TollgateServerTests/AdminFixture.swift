// A catalog, two accounts and shorthands for admin tests.

import Testing
import TollgateCore
import TollgateServer
import TollgateWire

struct AdminFixture {
  static let catalogYAML = """
    levels: [account, member]
    features:
      chat.requests: {metered: true, unit: request}
      tokens.output: {metered: true, importance: volume, unit: token}
      beta: {metered: false}
    plans:
      free:
        chat.requests:
          - {id: chat.month, quota: 100, per: month}
          - {id: chat.rpm, rate: 10, per: minute, burst: 10}
        beta:
          - {id: beta.gate, gate: false}
      pro:
        chat.requests:
          - {id: chat.month, quota: 1000, per: month}
          - {id: chat.member, quota: 50, per: day, level: member}
        tokens.output:
          - {id: tokens.month, quota: 5000, per: month, enforcement: shadow}
        beta:
          - {id: beta.gate, gate: true}
    """

  let backend: FakeBackend
  var service: AdminService<FakeBackend> { backend.service }
  let acme: Subject

  init(hasLedger: Bool = true) throws {
    backend = try FakeBackend(hasLedger: hasLedger)
    acme = try Subject("acme")
    let catalog = try Self.catalog(Self.catalogYAML)
    let account = AccountConfig(version: 1, plan: try Name("free"))
    let subject = acme
    backend.edit { state in
      state.global = GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: [])
      state.catalogs = [1: catalog]
      state.accounts[subject] = account
    }
  }

  static func document(_ yaml: String) throws -> Document { try YAMLDocument(yaml: yaml).document }

  static func catalog(_ yaml: String) throws -> Catalog { try Catalog(document: document(yaml)) }

  static func id(_ low: UInt64) -> OperationID {
    OperationID(high: 1_763_700_000_000 << 16, low: low)
  }

  static func options(
    _ id: UInt64? = nil, reason: String = "test", dryRun: Bool = false, wait: Durability = .redis
  ) -> ChangeOptions {
    ChangeOptions(
      operation: id.map { Self.id($0) }, actor: "ann", reason: reason, dryRun: dryRun, wait: wait)
  }

  static let caller = AdminCaller(proof: "uid 0")

  /// Sends a request through the service as JSON, as a session does.
  func send<Reply: Decodable & Sendable>(
    _ method: AdminMethod, _ request: some Encodable, as _: Reply.Type = ChangeReply.self
  ) async throws -> Reply {
    let answer = await service.answer(
      method, body: try AdminJSON.encode(request), caller: Self.caller)
    guard answer.status == nil else {
      throw try AdminJSON.decode(AdminErrorReply.self, from: answer.body).failure
    }
    return try AdminJSON.decode(Reply.self, from: answer.body)
  }

  /// The failure that a request is answered with.
  func refusal(_ method: AdminMethod, _ request: some Encodable) async throws -> AdminFailure {
    let answer = await service.answer(
      method, body: try AdminJSON.encode(request), caller: Self.caller)
    let failure = try AdminJSON.decode(AdminErrorReply.self, from: answer.body).failure
    #expect(answer.status == failure.code)
    return failure
  }

  func use(_ subject: Subject, _ feature: String, _ window: Window, settled: Int64) throws {
    let reference = CounterReference(subject: subject, feature: try Name(feature), window: window)
    backend.edit { state in
      state.counters[reference] = CounterState(
        start: window.period(containing: state.now).start, settled: settled)
    }
  }

  func account(_ subject: Subject? = nil) -> AccountConfig? {
    let subject = subject ?? acme
    return backend.read { $0.accounts[subject] }
  }
}
