// What a sidecar must refuse, whenever it finds it out, and what it must bring back by itself: another
// deployment ends it with both values named; a configuration that Redis lost comes back, with and
// without a ledger, also where only a living sidecar still has it (promises 5, 6).

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Start {
    static let unmetered = """
      levels: [account]
      unknown_account: {plan: free}
      features:
        pings: {metered: false, importance: volume, unit: ping}
      plans:
        free:
          pings:
            - {id: pings.minute, quota: 1000, per: minute}
      """

    private func log(_ stack: Stack, _ sidecar: Int) -> String {
      (try? String(contentsOfFile: stack.directory.file("t\(sidecar).log"), encoding: .utf8)) ?? ""
    }

    private func reason(_ stack: Stack, _ sidecar: Int, _ feature: String) throws -> Reason? {
      var random = SeededRandom.fromEnvironment("start")
      let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      let connection = try WireConnection(stack.endpoint(sidecar), token: Stack.checkToken)
      let record = OperationRecord(
        id: OperationID(time: time, using: &random), subject: try Subject("acme"),
        items: [Item(feature: try Name(feature), amount: 1)])
      guard
        case .decision(let decision)? = try connection.operate([record], deadline: 2000).first
      else { return nil }
      return decision.reason
    }

    /// An id minted before a loss was seen is refused: asked anew until it is served.
    private func served(_ stack: Stack, _ sidecar: Int, _ feature: String) throws {
      try eventually(within: .seconds(10), every: .milliseconds(50), "\(feature) is served") {
        try reason(stack, sidecar, feature) == .allowed
      }
    }

    private func endsNaming(
      _ stack: Stack, _ sidecar: Int, _ values: [String]
    ) throws {
      let child = try #require(stack.sidecar(sidecar))
      let status = try child.wait(within: .seconds(15))
      #expect(status != .exited(0) && status != .signaled(SIGKILL), "\(status)")
      let text = log(stack, sidecar)
      for value in values { #expect(text.contains(value), "\(text.suffix(600))") }
    }

    /// The gauge counts the buckets that wait, however they came to: also those that were never
    /// open here.
    @Test func bucketsThatWaitAreCountedFromTheStartOn() throws {
      let stack = try Stack(.init(sidecars: 1, buckets: 4, accounts: ["acme": "big"]))
      func fenced() -> Double? { stack.metric("tollgate_buckets_fenced", sidecar: 0) }
      stack.ledger?.kill()
      stack.sidecar(0)?.kill()
      try stack.redis.stop()
      try stack.redis.start()
      try stack.startSidecar(0)
      try stack.startLedger()
      try stack.waitReady(0)
      try served(stack, 0, "calls")
      try eventually(within: .seconds(10), "none waits") { fenced() == 0 }
      // And when they wait again, it is seen.
      stack.ledger?.kill()
      try stack.redis.connect().command("FLUSHALL")
      try eventually(within: .seconds(10), every: .milliseconds(50), "one waits") {
        _ = try? reason(stack, 0, "calls")
        return (fenced() ?? 0) > 0
      }
      let doctor = try stack.cli(["doctor", "--json"]).output
      #expect(!doctor.contains("5 ready"))
    }

    /// Whoever compares everything is told of what could not be compared.
    @Test func accountsThatOnlyTheLedgerHasAreNamed() throws {
      let names = ["ann", "bob", "cid"]
      let stack = try Stack(
        .init(
          sidecars: 1, buckets: 2,
          accounts: Dictionary(uniqueKeysWithValues: names.map { ($0, "big") })))
      for name in names {
        _ = try stack.command(["consume", "\(name)/m", "calls=2", "tokens=3"])
      }
      try eventually(within: .seconds(10), "all of it is in the books") {
        try Audit.totals(stack).values.reduce(0, +) == 15
      }
      #expect(try stack.command(["reconcile"]).hasPrefix("3 accounts, 6 totals"))
      try stack.redis.connect().command("FLUSHALL")
      try stack.waitReady(0)
      try eventually(within: .seconds(10), "one is loaded again") {
        try stack.cli(["consume", "ann/m", "calls=0"]).status == .exited(0)
      }
      let said = try stack.command(["reconcile"])
      #expect(said.contains("2 accounts are not loaded in Redis"), "\(said)")
      #expect(said.contains("1 accounts, 2 totals"), "\(said)")
    }

    @Test func anotherDeploymentFoundWhenRedisComesBackEndsTheSidecar() throws {
      let stack = try Stack(
        .init(
          sidecars: 2, buckets: 1, ledger: false, proxies: true, catalog: Self.unmetered))
      let proxy = try #require(stack.redisProxy)
      stack.sidecar(1)?.kill()
      proxy.mode = .refuse
      proxy.cutNow()
      try stack.writeConfiguration(1, buckets: 4)
      try stack.startSidecar(1)
      try eventually(within: .seconds(10), "it serves without Redis") {
        log(stack, 1).contains("starting by policy")
      }
      proxy.mode = .forward
      try endsNaming(stack, 1, ["buckets", "4", "1", "recorded in Redis"])
      // The right one goes on.
      try stack.waitReady(0)
      try served(stack, 0, "pings")
    }

    @Test func anotherDeploymentInTheLedgerEndsTheSidecarAndLeavesRedisAlone() throws {
      let stack = try Stack(.init(sidecars: 2, buckets: 1, accounts: ["acme": "big"]))
      try eventually(within: .seconds(10), "catalog and account are in the books") {
        try Audit.verify(stack).deltas >= 2
      }
      stack.sidecar(0)?.kill()
      stack.sidecar(1)?.kill()
      try stack.redis.connect().command("FLUSHALL")
      try stack.writeConfiguration(1, buckets: 4)
      // It may end before it ever listens.
      try stack.spawnSidecar(1)
      try endsNaming(stack, 1, ["the ledger refuses this sidecar", "buckets", "4", "1"])
      // The wrong one was there first, and wrote nothing that keeps the right one out.
      try stack.startSidecar(0)
      try stack.waitReady(0)
      try served(stack, 0, "calls")
    }

    @Test func withoutALedgerTheConfigurationOutlivesALostRedis() throws {
      let stack = try Stack(
        .init(sidecars: 2, buckets: 1, ledger: false, catalog: Self.unmetered))
      #expect(try reason(stack, 0, "pings") == .allowed)
      try stack.redis.connect().command("FLUSHALL")
      try served(stack, 0, "pings")
      let file = try stack.directory.write(
        "next.yaml", Self.unmetered.replacing("1000", with: "2000"))
      try eventually(within: .seconds(10), every: .milliseconds(50), "a catalog is applied") {
        try stack.cli(["catalog", "apply", file, "--reason", "test"]).status == .exited(0)
      }
      #expect(try stack.command(["catalog", "show", "--version", "1"]).contains("1000"))
      #expect(try stack.command(["catalog", "show"]).contains("2000"))
    }

    /// An edit was answered, its sidecar killed before the ledger had it, and Redis lost it; another
    /// sidecar decides on it. And the catalogs of before can be rolled back to.
    @Test func anEditThatOnlyALivingSidecarKnowsIsPutBackWithItsHistory() throws {
      let stack = try Stack(.init(sidecars: 2, buckets: 1, accounts: ["acme": "big"]))
      func apply(_ amount: String, sidecar: Int) throws {
        let file = try stack.directory.write(
          "\(amount).yaml", Stack.catalog.replacing("500", with: amount))
        try stack.command(["catalog", "apply", file, "--reason", "test"], sidecar: sidecar)
      }
      func limits(_ sidecar: Int) throws -> String {
        // Empty while it is being restored.
        try stack.cli(["catalog", "show"], sidecar: sidecar).output
      }
      try apply("501", sidecar: 0)
      try eventually(within: .seconds(10), "everything is delivered") {
        try Audit.reconcile(stack)?.undelivered == 0
          && stack.metric("tollgate_retained_deltas", sidecar: 0) == 0
      }
      stack.ledger?.kill()
      try apply("502", sidecar: 1)
      let version = stack.metric("tollgate_config_version", sidecar: 1)
      try eventually(within: .seconds(10), "the other one heard of it") {
        stack.metric("tollgate_config_version", sidecar: 0) == version
      }
      stack.sidecar(1)?.kill()
      try stack.redis.connect().command("FLUSHALL")
      try stack.startLedger()
      try stack.startSidecar(1)
      for index in 0..<2 {
        try stack.waitReady(index)
        try eventually(within: .seconds(10), "sidecar \(index) decides on the edit") {
          stack.metric("tollgate_config_version", sidecar: index) == version
        }
        try served(stack, index, "calls")
        try eventually(within: .seconds(10), every: .milliseconds(50), "it is shown") {
          try limits(index).contains("502")
        }
      }
      #expect(try Audit.verify(stack).findings.isEmpty)
      try eventually(within: .seconds(10), every: .milliseconds(50), "the first catalog") {
        let shown = try stack.cli(["catalog", "show", "--version", "1"])
        return shown.status == .exited(0) && shown.output.contains("500")
      }
      try stack.command(["catalog", "rollback", "1", "--reason", "test"])
      #expect(try limits(1).contains("500"))
    }
  }
}
