// The client library against real sidecars that are killed, told to go, and come back: whatever a
// caller was told is what Redis counts and what the ledger bills (promises 1, 3, 4).

import Foundation
import Testing
import TollgateClient
import TollgateTesting

extension LiveTests {
  @Suite(.serialized) struct Client {
    /// `edits` is let through when nobody can be asked, within an allowance; `calls` is not.
    static let allowance: Int64 = 60
    static let catalog = """
      levels: [account, member]
      features:
        calls: {metered: true, importance: money, unit: call}
        edits: {metered: true, importance: money, unit: edit}
      plans:
        team:
          calls:
            - {id: calls.month, quota: 1000000000, per: month}
            - {id: calls.day, quota: 1000000000, per: day}
          edits:
            - {id: edits.month, quota: 1000000000, per: month, on_failure: {open: \(allowance)}}
      """
    static let accounts = ["acme": "team", "beta": "team", "gamma": "team"]

    /// TOLLGATE_CLIENT_KILLS; 10 is the bar.
    static let kills =
      ProcessInfo.processInfo.environment["TOLLGATE_CLIENT_KILLS"].flatMap { Int($0) } ?? 12

    private func makeStack(_ sidecars: Int) async throws -> Stack {
      try await offThePool {
        // What a sidecar lets through by its own policy outlives it in the journal.
        let directory = try TemporaryDirectory("tg-journal")
        var options = Stack.Options(
          sidecars: sidecars, catalog: Self.catalog, accounts: Self.accounts)
        options.keeping = directory
        options.extra =
          sidecars == 1
          ? "journal: \(directory.file("journal"))"
          : "limits: {redis_slow_ms: 10000, drain_ms: 5000}"
        return try Stack(options)
      }
    }

    private func makeClient(
      _ endpoints: [TestEndpoint], _ adjust: (inout ClientConfiguration) -> Void = { _ in }
    ) throws -> TollgateClient {
      var configuration = ClientConfiguration(
        endpoints: try endpoints.map { try Endpoint($0.description) },
        credential: Stack.checkToken)
      configuration.reconnectDelay = .milliseconds(5) ... .milliseconds(50)
      adjust(&configuration)
      let client = TollgateClient(configuration: configuration)
      client.start()
      return client
    }

    /// Two clients of one sidecar: one applies the failure policies, one leaves it to its callers.
    @Test func aSidecarKilledUnderALiveClientLosesAndRepeatsNothing() async throws {
      var random = SeededRandom.fromEnvironment("client kills")
      let stack = try await makeStack(1)
      let applying = ClientLoad(
        // No deadline passes here, so that what the policies answer is an outage and nothing else.
        try makeClient(stack.endpoints),
        .init(tasks: 24, deadline: .seconds(30), pause: .milliseconds(1)))
      let plain = ClientLoad(
        try makeClient(stack.endpoints) { $0.appliesFailurePolicies = false },
        .init(tasks: 24, cancels: 0.1, pause: .milliseconds(1)))
      let loads = [applying, plain]
      for load in loads { try await load.client.waitUntilReady(within: .seconds(10)) }
      try await withThrowingTaskGroup(of: Void.self) { group in
        for load in loads {
          let stream = random.fork()
          group.addTask { await load.run(stream) }
        }
        defer { loads.forEach { $0.stop() } }
        for number in 0..<Self.kills {
          try await eventually("answers come before kill \(number)") { () async throws in
            loads.allSatisfy { $0.tally.answered > 20 }
          }
          try await Task.sleep(for: .milliseconds(Int(random.unit() * 120)))
          loads.forEach { $0.outageBegan() }
          try await offThePool { stack.sidecar(0)?.kill() }
          // Some outages are long enough to exhaust the allowance, some are over at once.
          let patience = Int(random.next() % 3) * 40
          try await eventually("callers go on during outage \(number)") { () async throws in
            applying.tally.byPolicy >= patience
          }
          try await offThePool { try stack.startSidecar(0) }
          try await eventually("all is paid back after kill \(number)") { () async throws in
            let now = applying.client.statistics
            return now.isConnected && now.unposted == 0 && now.uncancelled == 0
          }
          // Paid back, the outage is over: nothing let through was beyond its allowance.
          for (key, units) in applying.tally.outage where units > Self.allowance {
            Issue.record("outage \(number): \(units) units of \(key) let through")
          }
        }
        loads.forEach { $0.stop() }
        try await group.waitForAll()
      }
      for load in loads { #expect(await load.client.shutdown(grace: .seconds(20)).isEmpty) }
      try Self.audit(stack, loads)

      let told = applying.tally
      let statistics = applying.client.statistics
      print(
        "client kills: \(told.answers), \(told.unknown) unknown: \(told.resolved), "
          + "\(statistics.retries) repeated, \(statistics.cancelled) taken back")
      print(
        "client kills, no policies: \(plain.tally.answers), \(plain.tally.unknown) unknown: "
          + "\(plain.tally.resolved), \(plain.tally.notSent) not sent, "
          + "\(plain.tally.rejected) rejected")
      #expect(!told.letThrough.isEmpty)
      #expect(statistics.posted == statistics.fallbackAllowed)
      #expect(statistics.posted == Int64(told.letThrough.count))
      #expect(statistics.postsRefused == 0)
      #expect(statistics.cancelled > 0)
      #expect((told.answers["clientFallback STORE_UNAVAILABLE"] ?? 0) > 0)
      // Each of the three failures has been met, and where policies apply none by an outage.
      #expect(plain.tally.notSent > 0 && plain.tally.unknown > 0)
      #expect(plain.tally.letThrough.isEmpty)
    }

    /// SIGTERM, one sidecar after the other: GOAWAY sends the client to the other one, and no caller
    /// notices.
    @Test func aRollingRestartIsNotNoticedByCallers() async throws {
      var random = SeededRandom.fromEnvironment("client rolling restart")
      let stack = try await makeStack(2)
      let load = ClientLoad(
        try makeClient(stack.endpoints), .init(cancels: 0, deadline: .seconds(20)))
      try await load.client.waitUntilReady(within: .seconds(10))
      let restarts = 6
      try await withThrowingTaskGroup(of: Void.self) { group in
        let stream = random.fork()
        group.addTask { await load.run(stream) }
        defer { load.stop() }
        for number in 0..<restarts {
          load.outageBegan()
          try await eventually("answers come before restart \(number)") { () async throws in
            load.tally.answered > 50
          }
          // The client is on the sidecar that goes: it leaves the other one only when that one goes.
          let index = number % 2
          let status = try await offThePool {
            let status = try stack.sidecar(index)?.terminate(within: .seconds(15))
            try stack.startSidecar(index)
            try stack.waitReady(index)
            return status
          }
          #expect(status == .exited(0))
        }
        load.stop()
        try await group.waitForAll()
      }
      #expect(await load.client.shutdown().isEmpty)
      try Self.audit(stack, [load])
      let told = load.tally
      let statistics = load.client.statistics
      print(
        "rolling restart: \(told.operations) operations over \(statistics.connections) connections,"
          + " \(statistics.retries) repeated, \(told.answers)")
      #expect(statistics.connections >= restarts)
      #expect(told.rejected + told.notSent + told.unknown + told.byPolicy == 0)
      #expect(told.letThrough.isEmpty)
    }

    /// The three counts are one, and each operation that was let through was billed under its own
    /// id, once per item, with its own amount. On the test's own task, whose issues they are.
    private static func audit(_ stack: Stack, _ loads: [ClientLoad]) throws {
      var sum = LoadTally()
      for load in loads {
        let tally = load.tally
        sum.operations += tally.operations
        sum.violations += tally.violations
        sum.admitted.merge(tally.admitted, uniquingKeysWith: +)
      }
      try Audit.check(stack, sum, subjects: ["acme/a", "beta", "gamma"])
      let lines = try stack.books("export").output.split(separator: "\n").map {
        try JSONDecoder().decode(Line.self, from: Data($0.utf8))
      }
      var billed: [String: [String: Int64]] = [:]
      for line in lines {
        billed[String(line.id.prefix(32)), default: [:]][
          "\(line.account) \(line.feature)", default: 0] += line.charged
      }
      var count = 0
      for load in loads {
        for (id, units) in load.tally.letThrough {
          count += 1
          #expect(billed[id.hex] == units, "\(id) was let through")
        }
      }
      print("client audit: \(count) let through, each billed under its id")
    }

    private struct Line: Decodable {
      var id: String
      var account: String
      var feature: String
      var charged: Int64
    }

    // MARK: - The example

    private static let editor = """
      levels: [account, member]
      features:
        chat.requests: {metered: true, importance: money, unit: request}
        tokens.total: {metered: true, importance: money, unit: token}
      plans:
        team:
          chat.requests: [{id: chat.month, quota: 4, per: month}]
          tokens.total: [{id: tokens.month, quota: 100000, per: month}]
      """

    private static func example(_ arguments: [String]) throws -> (
      TollgateTesting.ExitStatus, [String]
    ) {
      let binary = URL(fileURLWithPath: try ChildProcess.tollgateBinary())
        .deletingLastPathComponent().appendingPathComponent("tollgate-example-editor").path
      let child = try ChildProcess(binary, arguments)
      let status = try child.wait(within: .seconds(30))
      return (status, child.standardOutput.split(separator: "\n").map(String.init))
    }

    @Test func theExampleSaysWhatIsTrue() throws {
      let stack = try Stack(
        .init(sidecars: 1, catalog: Self.editor, accounts: ["acme": "team"]))
      let address = stack.endpoint(0).description
      let (status, lines) = try Self.example([address, "acme/ada", "5", Stack.checkToken])
      #expect(status == .exited(0))
      // 200, 250, 300 and 350 tokens; the fifth request is one too many, and counts nothing.
      #expect(
        lines.prefix(4) == [
          "200 ALLOWED, left: 3, 99800", "200 ALLOWED, left: 2, 99550",
          "200 ALLOWED, left: 1, 99250", "200 ALLOWED, left: 0, 98900",
        ])
      #expect(lines.count == 5)
      #expect(lines.last?.hasPrefix("429 QUOTA_EXCEEDED by chat.month, retry after ") == true)
      var tally = LoadTally()
      tally.admitted = ["acme chat.requests": 4, "acme tokens.total": 1100]
      try Audit.check(stack, tally, subjects: ["acme/ada"], touching: "chat.requests")

      // Killed, and nothing is open here: each line says so, and nothing is counted.
      stack.sidecar(0)?.kill()
      let (gone, silence) = try Self.example([address, "acme/ada", "2", Stack.checkToken])
      #expect(gone == .exited(0))
      #expect(silence.count == 2)
      #expect(silence.allSatisfy { $0.hasPrefix("503, try again: ") })
      try stack.startSidecar(0)
      try Audit.check(stack, tally, subjects: ["acme/ada"], touching: "chat.requests")
      let (usage, _) = try Self.example([])
      #expect(usage == .exited(2))
    }
  }
}
