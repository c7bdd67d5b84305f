// The client library with several endpoints, over sidecars that lease: an operation that may have
// been applied at one of them is asked again there, or nowhere. What the ledger bills is the judge.

import Foundation
import Testing
import TollgateClient
import TollgateTesting

extension LiveTests.Leases {
  private static func makeClient(_ endpoints: [TestEndpoint]) throws -> TollgateClient {
    var configuration = ClientConfiguration(
      endpoints: try endpoints.map { try Endpoint($0.description) },
      credential: Stack.checkToken)
    configuration.reconnectDelay = .milliseconds(5) ... .milliseconds(50)
    configuration.appliesFailurePolicies = false
    let client = TollgateClient(configuration: configuration)
    client.start()
    return client
  }

  /// Whoever has the link answers, and is cut off with its answers on their way, now and then killed
  /// besides, and is away for a while: the others take what is new, and what is in doubt waits.
  @Test func aClientOfThreeKeepsItsDoubtsWithTheSidecarThatHasThem() async throws {
    var random = SeededRandom.fromEnvironment("aClientOfThree")
    let stack = try await offThePool {
      var options = Self.options(1_000_000_000, sidecars: 3, accounts: ["acme", "beta"])
      options.journals = true
      return try Stack(options)
    }
    let proxies = try stack.endpoints.map { try FaultProxy(to: $0) }
    let client = try Self.makeClient(proxies.map(\.endpoint))
    let load = ClientLoad(
      client,
      .init(
        tasks: 24, subjects: ["acme/ann/7", "acme/bob/8", "beta/x/1"], features: ["edits"],
        together: 0, cancels: 0.05, pause: .milliseconds(1)))
    try await client.waitUntilReady(within: .seconds(10))
    let cuts = Self.rounds ?? 9
    try await withThrowingTaskGroup(of: Void.self) { group in
      let stream = random.fork()
      group.addTask { await load.run(stream) }
      defer { load.stop() }
      for cut in 0..<cuts {
        let leased = load.tally.answers["lease ALLOWED"] ?? 0
        try await eventually(within: .seconds(30), "leases answer") { () async throws in
          load.tally.answers["lease ALLOWED"] ?? 0 > leased + 200
        }
        // The link went on from the one before.
        let index = cut % 3
        proxies[index].delay(toClient: .milliseconds(200))
        try await Task.sleep(for: .milliseconds(20 + Int(random.unit() * 60)))
        proxies[index].mode = .refuse
        let isKilled = random.chance(0.3)
        if isKilled { try await offThePool { stack.sidecar(index)?.kill() } }
        // Callers in doubt wait for it; the others go on with somebody else.
        try await Task.sleep(for: .milliseconds(50 + Int(random.unit() * 300)))
        if isKilled { try await offThePool { try stack.startSidecar(index) } }
        proxies[index].delay()
        proxies[index].mode = .forward
      }
      load.stop()
      try await group.waitForAll()
    }
    #expect(await client.shutdown().isEmpty)
    let tally = load.tally
    print(
      "client of three: \(tally.operations) operations, \(tally.answers), of unknown outcome "
        + "\(tally.unknown), then \(tally.resolved)")
    #expect(tally.resolved["allowed before", default: 0] > 0, "no doubt was ever resolved")
    let told = LoadTally(client: tally)
    try await offThePool {
      try Audit.check(stack, told, subjects: ["acme", "beta"], touching: "edits")
    }
  }

  /// It never comes back: its doubts stay doubts, whoever else is there.
  @Test func whatWasWithASidecarThatIsGoneStaysUnknown() async throws {
    let stack = try await offThePool {
      try Stack(Self.options(1_000_000_000, sidecars: 2, accounts: ["acme"]))
    }
    let client = try Self.makeClient(stack.endpoints)
    try await client.waitUntilReady(within: .seconds(10))
    let subject = try Subject("acme/ann/7")
    let items = [Item(feature: try Name("edits"), amount: 1)]
    // Frozen, it does not answer; killed then, it never will.
    try await offThePool { try stack.sidecar(0)?.pause() }
    let id = client.newOperationID()
    let asked = await outcome { () async throws(TollgateError) in
      try await client.consume(subject, items, id: id, deadline: .milliseconds(300))
    }
    #expect(asked == .failure(.outcomeUnknown(id)))
    try await offThePool { stack.sidecar(0)?.kill() }
    try await eventually(within: .seconds(20), "the other one answers") { () async throws in
      if case .success = await outcome({ () async throws(TollgateError) in
        try await client.consume(subject, items, deadline: .milliseconds(300))
      }) {
        return true
      }
      return false
    }
    // Under its id it goes to nobody else.
    for _ in 0..<3 {
      let again = await outcome { () async throws(TollgateError) in
        try await client.consume(subject, items, id: id, deadline: .milliseconds(200))
      }
      #expect(again == .failure(.outcomeUnknown(id)))
    }
    let told = await client.shutdown()
    #expect(told.isEmpty)
    var tally = LoadTally()
    tally.admitted["acme edits"] = 1
    let billed = tally
    try await offThePool {
      try Audit.check(
        stack, billed, subjects: ["acme"], touching: "edits", sidecar: 1)
    }
  }

  private func outcome(
    _ body: () async throws(TollgateError) -> Decision
  ) async -> Result<Decision, TollgateError> {
    do throws(TollgateError) { return .success(try await body()) } catch { return .failure(error) }
  }
}

extension LoadTally {
  fileprivate init(client: ClientTally) {
    self.init()
    operations = client.operations
    violations = client.violations
    admitted = client.admitted
  }
}
