// `tollgate bench` and its audit against real processes: it finds no difference where there is
// none, and finds every difference that is made.

import Foundation
import Testing
import TollgateBench
import TollgateCore
import TollgateTesting

@Suite("Bench: audit", .serialized) struct BenchAuditTests {
  @Test("The command runs, audits against Redis and ledger, and exits 0 with difference 0")
  func command() throws {
    let stack = try BenchStack(sidecars: 2)
    let done = try stack.tool([
      "bench", "--target", "unix:" + stack.socket(0), "--target", "unix:" + stack.socket(1),
      "--token-file", stack.directory.file("check.token"), "--admin-token-file",
      stack.directory.file("admin.token"), "--redis", "unix:" + stack.redis.socketPath,
      "--ledger", "unix:" + stack.directory.file("l"), "--ledger-token-file",
      stack.directory.file("ledger.token"), "--subjects", "20", "--members", "5", "--requests",
      "3000", "--connections", "6", "--in-flight", "4", "--feature", "units=1", "--feature",
      "pings=2", "--json",
    ])
    #expect(done.status == .exited(0), "\(done.error) \(done.output)")
    let report = try Document(json: done.output)
    #expect(report["audit"]?["difference"] == .integer(0))
    #expect(report["completed"] == .integer(3000))
    guard case .list(let features)? = report["audit"]?["features"] else {
      Issue.record("no features in \(done.output)")
      return
    }
    #expect(features[0]["client"] == features[0]["redis"])
    #expect(features[0]["client"] == features[0]["ledger"])
    #expect(features[0]["client"] == report["allowed"])
  }

  @Test(
    "A trace and an open loop end with difference 0 too",
    arguments: [
      ["--synthetic-trace", "1500", "--speed", "max"],
      ["--synthetic-trace", "300", "--speed", "3000"],
      ["--rate", "2000", "--requests", "2000"],
    ])
  func arrivals(options: [String]) throws {
    let stack = try BenchStack()
    let done = try stack.tool(
      [
        "bench", "--target", "unix:" + stack.socket(0), "--token-file",
        stack.directory.file("check.token"), "--admin-token-file",
        stack.directory.file("admin.token"), "--redis", "unix:" + stack.redis.socketPath,
        "--subjects", "50", "--members", "5", "--distribution", "zipf", "--connections", "3",
        "--in-flight", "8", "--feature", "units=1", "--feature",
        options[0] == "--rate" ? "pings=1" : "pings=total", "--json",
      ] + options)
    #expect(done.status == .exited(0), "\(done.error) \(done.output)")
    let report = try Document(json: done.output)
    #expect(report["audit"]?["difference"] == .integer(0))
    #expect(report["completed"] == .integer(Int64(options[options[0] == "--rate" ? 3 : 1]) ?? 0))
    #expect(report["audit"]?["countersCompared"] != .integer(0))
  }

  @Test("A hard limit is hard, and the audit has checked it")
  func limits() throws {
    let stack = try BenchStack()
    let names = try stack.names("hard-")
    let auditor = try stack.auditor(names, rules: ["account:units:month=400"])
    // 10 accounts of 400 units each; 6,000 are asked for.
    let result = try stack.run(names, .requests(6000))
    #expect(result.tally.allowed == 4000)
    #expect(result.tally.denied == 2000)
    let report = auditor.audit(result.tally, drainWithin: 30)
    #expect(report.isClean, "\(report)")
    #expect(report.limits.checked >= 20)
    let stricter = try stack.auditor(names, rules: ["account:units:month=399"])
    let second = stricter.audit(
      Tally(subjects: names.count, features: 2), drainWithin: 0)
    #expect(second.limits.exceeded.count == 10)
    #expect(!second.isClean)
  }

  @Test("Units that the client did not see admitted are found in Redis, sidecar and ledger")
  func foreignUnits() throws {
    let stack = try BenchStack()
    let names = try stack.names("other-")
    let auditor = try stack.auditor(names)
    let result = try stack.run(names, .requests(500))
    #expect(result.tally.allowed == 500)
    // Somebody else uses the same accounts: seven units nobody here counted.
    _ = try stack.run(names, .requests(7), seed: 2)
    let report = auditor.audit(result.tally, drainWithin: 3)
    #expect(!report.isClean)
    #expect(report.rows[0].client == 500)
    #expect(report.rows[0].redis == 507)
    #expect(report.rows[0].difference >= 7)
  }

  @Test("A sidecar killed under load: every operation is settled, difference 0")
  func killedSidecar() throws {
    let stack = try BenchStack(sidecars: 2)
    let names = try stack.names("kill-", accounts: 200, members: 3)
    let auditor = try stack.auditor(names)
    let victim = stack.sidecars[1]
    let killer = Thread {
      // A moment in the middle of the load, not a wait for something.
      Thread.sleep(forTimeInterval: 0.7)
      victim.kill()
    }
    killer.start()
    let result = try stack.run(names, .seconds(2))
    #expect(result.tally.connectionsLost > 0)
    #expect(result.tally.unresolved == 0)
    let report = auditor.audit(result.tally, drainWithin: 30)
    #expect(report.isClean, "\(report)")
  }

  @Test("A bare Redis runs the sidecar's own script call on the state a sidecar left")
  func bareScript() throws {
    let stack = try BenchStack()
    let names = try stack.names("bare-")
    let before = try stack.run(names, .requests(200))
    #expect(before.tally.allowed == 200)
    stack.kill(sidecar: 0)
    let redis = try RedisReader(Target("unix:" + stack.redis.socketPath))
    let commands = try DecideCommands(
      redis, deployment: Name("bench-test"), names: names,
      items: [Item(feature: Name("units"), amount: 1), Item(feature: Name("pings"), amount: 1)])
    let features: Set<String> = ["units"]
    let books = try RedisBooks(
      reading: redis, deployment: "bench-test", names: names, features: features)
    let result = try Run(
      load: Load(connections: 3, inFlight: 4, arrival: .closed, end: .requests(5000)),
      targets: [Target("unix:" + stack.redis.socketPath)],
      workload: Workload(
        names: names, accounts: .uniform(10), amounts: [.constant(1), .constant(1)], seed: 1),
      seed: 1
    ).start(RedisDialect(.decide(commands)))
    #expect(result.tally.failed == 0)
    #expect(result.tally.allowed == 4000 - 200)
    #expect(result.tally.denied == 1200)
    // The counters moved by exactly what the replies admitted.
    let after = try RedisBooks(
      reading: redis, deployment: "bench-test", names: names, features: features)
    var added: Int64 = 0
    for (cell, reading) in after.counters where cell.window == "M" {
      added += reading.added(since: books.counters[cell], at: books.time) ?? 0
    }
    #expect(added == 3800)
  }
}
