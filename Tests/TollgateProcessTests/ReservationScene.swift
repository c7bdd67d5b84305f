// One deployment and a client for the tests of reservations, with what they all look at.

import Foundation
import Testing
import TollgateClient
import TollgateTesting

struct CallState: Hashable {
  var settled: Int64
  var held: Int64
}

struct ReservationScene: Sendable {
  let stack: Stack
  /// Of sidecar 0 first.
  let client: TollgateClient
  let ann: Subject
  let tokens: Name
  let pings: Name
  private let calls: Name

  init(_ stack: Stack) throws {
    self.stack = stack
    client = try Self.makeClient(stack.endpoints)
    ann = try Subject("ann/m")
    calls = try Name("calls")
    tokens = try Name("tokens")
    pings = try Name("pings")
  }

  private static func makeClient(_ endpoints: [TestEndpoint]) throws -> TollgateClient {
    var configuration = ClientConfiguration(
      endpoints: try endpoints.map { try Endpoint($0.description) }, credential: Stack.checkToken)
    configuration.reconnectDelay = .milliseconds(5) ... .milliseconds(50)
    configuration.defaultDeadline = .seconds(10)
    configuration.settlePatience = .seconds(20)
    let client = TollgateClient(configuration: configuration)
    client.start()
    return client
  }

  /// One for each sidecar.
  func clients() async throws -> [TollgateClient] {
    let clients = try stack.endpoints.map { try Self.makeClient([$0]) }
    for client in clients { try await client.waitUntilReady(within: .seconds(10)) }
    return clients
  }

  func calls(_ amount: Int64) -> [Item] { [Item(feature: calls, amount: amount)] }

  /// What the store says of ann's calls.
  func state(_ other: TollgateClient? = nil) async throws -> CallState? {
    let decision = try await (other ?? client).check(ann, calls(0))
    guard decision.source == .redis, let item = decision.items.first else { return nil }
    return CallState(settled: item.settled, held: item.held)
  }

  func error(
    _ body: () async throws(TollgateError) -> Decision
  ) async -> ErrorCode? {
    do throws(TollgateError) {
      _ = try await body()
      return nil
    } catch {
      if case .rejected(let code, _) = error { return code }
      return nil
    }
  }

  /// Waits until nothing of ann's is held.
  func expiry() async throws {
    try await eventually(within: .seconds(30), every: .milliseconds(50), "the hold expires") {
      () async throws in try await state()?.held == 0
    }
  }

  /// What is left of each grant.
  func left(_ account: String) async throws -> [String: Int64] {
    struct List: Decodable {
      struct Grant: Decodable {
        var id: String
        var left: Int64?
      }
      var grants: [Grant]
    }
    let output = try await offThePool { [stack] in
      try stack.command(["grant", "list", account, "--json"])
    }
    let list = try JSONDecoder().decode(List.self, from: Data(output.utf8))
    return list.grants.reduce(into: [:]) { $0[$1.id] = $1.left }
  }

  /// Waits until the ledger has everything, changes of configuration included.
  func delivered() async throws {
    try await offThePool { [stack] in
      try eventually(within: .seconds(20), every: .milliseconds(100), "the outboxes are empty") {
        try Audit.reconcile(stack)?.undelivered == 0
      }
      try eventually(within: .seconds(20), "nothing is retained") {
        (0..<stack.options.sidecars).allSatisfy {
          stack.sidecar($0)?.isRunning != true
            || stack.metric("tollgate_retained_deltas", sidecar: $0) == 0
        }
      }
    }
  }

  func flush() async throws {
    try await offThePool { [stack] in _ = try stack.redis.connect().command("FLUSHALL") }
  }

  /// A process that makes a reservation and waits to be killed.
  func reserveInAChild(
    _ id: OperationID, _ amount: Int64, ttl: Int
  ) async throws -> ChildProcess {
    guard case .unix(let path) = stack.endpoint(0) else {
      throw StackFailure(description: "no Unix socket")
    }
    let program = """
      import sys, time
      sys.path.insert(0, sys.argv[1])
      import tollgate
      client = tollgate.Client.unix(sys.argv[2], token=sys.argv[3])
      held = client.reserve("ann/m", {"calls": int(sys.argv[5])}, ttl=int(sys.argv[6]),
                            id=sys.argv[4])
      open(sys.argv[7], "w").write(held.reason)
      time.sleep(600)
      """
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .deletingLastPathComponent().deletingLastPathComponent()
    let said = stack.directory.file("reserved-\(id.hex)")
    let child = try ChildProcess(
      "python3",
      [
        "-B", "-c", program, root.appendingPathComponent("proto/clients/python").path, path,
        Stack.checkToken, id.hex, "\(amount)", "\(ttl)", said,
      ])
    try await eventually(within: .seconds(20), "the child holds") { () async throws in
      guard child.isRunning else { throw StackFailure(description: child.standardError) }
      return (try? String(contentsOfFile: said, encoding: .utf8)) == "ALLOWED"
    }
    return child
  }

  /// Callers, Redis and ledger agree on ann's calls.
  func audit(_ calls: Int64, location: SourceLocation = #_sourceLocation) async throws {
    try await audit(["ann calls": calls], subjects: ["ann/m"], location: location)
  }

  func audit(
    _ admitted: [String: Int64], subjects: [String], touching feature: String = "calls",
    location: SourceLocation = #_sourceLocation
  ) async throws {
    var tally = LoadTally()
    tally.admitted = admitted
    let sum = tally
    try Audit.check(
      stack, sum, subjects: subjects, touching: feature, location: location)
  }
}

func withReservations(
  sidecars: Int = 1, accounts: [String: String] = ["ann": "small"],
  _ body: (ReservationScene) async throws -> Void
) async throws {
  let stack = try await offThePool {
    try Stack(
      .init(
        sidecars: sidecars, catalog: LiveTests.Reservations.catalog,
        accounts: accounts))
  }
  let scene = try ReservationScene(stack)
  try await scene.client.waitUntilReady(within: .seconds(10))
  do {
    try await body(scene)
  } catch {
    print(stack.logs)
    await scene.client.shutdown(grace: .zero)
    throw error
  }
  await scene.client.shutdown(grace: .zero)
}
