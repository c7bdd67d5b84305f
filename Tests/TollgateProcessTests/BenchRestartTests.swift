// `tollgate bench` while the servers it asks for its audit are restarted under it: there are always
// figures and an audit, and what could not be read is named.

import Foundation
import Testing
import TollgateBench
import TollgateCore
import TollgateTesting

@Suite("Bench: restarts", .serialized) struct BenchRestartTests {
  private func start(_ stack: BenchStack, _ words: [String]) throws -> ChildProcess {
    let bench = try ChildProcess(
      stack.binary,
      [
        "bench", "--target", "unix:" + stack.socket(0), "--target", "unix:" + stack.socket(1),
        "--token-file", stack.directory.file("check.token"), "--redis",
        "unix:" + stack.redis.socketPath, "--ledger", "unix:" + stack.directory.file("l"),
        "--ledger-token-file", stack.directory.file("ledger.token"), "--subjects", "10",
        "--connections", "4", "--rate", "200", "--warmup", "0", "--feature", "units=1", "--json",
      ] + words)
    // The baseline was read and the load has begun: its first line of progress.
    try eventually(within: .seconds(20), "the load runs: \(bench.standardError)") {
      bench.standardError.contains("1 s ")
    }
    return bench
  }

  private func end(
    _ bench: ChildProcess
  ) throws -> (status: TollgateTesting.ExitStatus, report: Document) {
    let status = try bench.wait(within: .seconds(150))
    return (status, try Document(json: bench.standardOutput))
  }

  @Test("Sidecar, ledger and Redis restarted during the run: figures, and an audit at 0")
  func restarted() throws {
    let stack = try BenchStack(sidecars: 2, persistence: .appendAlways)
    let bench = try start(
      stack, ["--admin-token-file", stack.directory.file("admin.token"), "--seconds", "8"])
    try stack.restart(sidecar: 0)
    try stack.restartLedger()
    try stack.redis.restart()
    #expect(bench.isRunning, "the load outlives the restarts")
    let (status, report) = try end(bench)
    let text = "\(bench.standardError) \(bench.standardOutput)"
    #expect(status == .exited(0), "\(text)")
    #expect(report["audit"]?["unreachable"] == .list([]), "\(text)")
    #expect(report["audit"]?["difference"] == .integer(0), "\(text)")
    #expect(report["audit"]?["countersCompared"] != .integer(0), "\(text)")
    #expect(report["connectionsLost"] != .integer(0), "\(text)")
    guard case .list(let features)? = report["audit"]?["features"] else {
      Issue.record("no features in \(text)")
      return
    }
    #expect(features[0]["client"] == features[0]["ledger"])
    #expect(features[0]["client"] == features[0]["sidecar"])
  }

  @Test("A sidecar that does not come back: another one is asked")
  func anotherSidecar() throws {
    let stack = try BenchStack(sidecars: 2)
    let bench = try start(
      stack, ["--admin-token-file", stack.directory.file("admin.token"), "--seconds", "3"])
    stack.kill(sidecar: 0)
    let (status, report) = try end(bench)
    #expect(status == .exited(0), "\(bench.standardError) \(bench.standardOutput)")
    #expect(report["audit"]?["clean"] == .bool(true))
  }

  @Test("A ledger that stays away: figures and the rest of the audit, the reason, exit 3")
  func unreachable() throws {
    let stack = try BenchStack(sidecars: 2)
    // Without the admin role, so that Redis and the ledger are each asked directly.
    let bench = try start(stack, ["--seconds", "3", "--drain", "1"])
    stack.ledger.kill()
    let (status, report) = try end(bench)
    let text = "\(bench.standardError) \(bench.standardOutput)"
    #expect(status == .exited(3), "\(text)")
    #expect(report["completed"] != .integer(0))
    #expect(report["audit"]?["difference"] == .integer(0), "\(text)")
    #expect(report["audit"]?["countersCompared"] != .integer(0), "\(text)")
    guard case .list(let reasons)? = report["audit"]?["unreachable"],
      case .string(let reason)? = reasons.first
    else {
      Issue.record("no reason in \(text)")
      return
    }
    #expect(reason.hasPrefix("ledger: cannot connect to unix:"), "\(reason)")
    #expect(bench.standardError.contains("the audit is not complete: \(reason)"))
  }
}

@Suite("Bench: usage") struct BenchUsageTests {
  @Test(
    "What cannot be used is a usage error that names it and what can, before anything is asked",
    arguments: [
      (["--limit", "bogus"], "--limit \"bogus\": write account|member:FEATURE:WINDOW=AMOUNT"),
      (["--limit", "account:units:month=4"], "give --redis too"),
      (["--target", "nowhere"], "--target \"nowhere\": write unix:PATH or HOST:PORT"),
      (["--redis", "example.org:1"], "--redis \"example.org:1\": the host must be an IPv4"),
      (["--ledger", "nowhere"], "--ledger \"nowhere\": write"),
      (["--trace", "/nonexistent"], "--trace /nonexistent: cannot read /nonexistent: No such"),
      (["--trace", "/etc/passwd"], "--trace /etc/passwd: trace line 1: the header must be"),
      (["--token-file", "/nonexistent"], "--token-file /nonexistent cannot be read: there is no"),
      (["--subjects", "0"], "--subjects 0: give 1 … 10000000"),
      (["--subjects", "10000000", "--members", "3"], "at most 20000000 in all"),
      (["--prefix", "a b"], "--prefix a b:"), (["--rate", "0"], "--rate 0.0: give 0.001 …"),
      (["--drain", "inf"], "--drain inf: give 0.0 …"), (["--seconds", "0"], "--seconds 0.0: give"),
      (["--distribution", "foo"], "--distribution foo: give uniform, zipf or each"),
      (["--speed", "fast"], "--speed fast: give a factor"),
      (["--feature", "units"], "--feature units: write NAME=AMOUNT"),
      (["--feature", "a b=1"], "--feature a b=1:"), (["--rate", "many"], "many"),
      (["--command", "get"], "--command get: give ping, incr or decide"),
    ])
  func usage(options: [String], wanted: String) throws {
    let directory = try TemporaryDirectory("tg-usage")
    let target = ["--target", "unix:" + directory.file("none")]
    let process = try ChildProcess(
      try ChildProcess.tollgateBinary(), ["bench"] + target + options + ["--json"])
    #expect(try process.wait(within: .seconds(30)) == .exited(2), "\(process.standardError)")
    #expect(process.standardError.contains(wanted), "\(process.standardError)")
    let document = try Document(json: process.standardOutput)
    #expect(document["name"] == .string("BAD_REQUEST"))
  }

  @Test("Nobody answered is 3, as a document where one is asked for")
  func nobody() throws {
    let directory = try TemporaryDirectory("tg-usage")
    let process = try ChildProcess(
      try ChildProcess.tollgateBinary(),
      ["bench", "--target", "unix:" + directory.file("none"), "--json"])
    #expect(try process.wait(within: .seconds(30)) == .exited(3))
    #expect(try Document(json: process.standardOutput)["name"] == .string("UNAVAILABLE"))
    #expect(process.standardError.contains("cannot connect to unix:"))
  }
}
