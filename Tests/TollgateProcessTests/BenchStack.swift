// Redis, a ledger and sidecars as real processes, for the tests of `tollgate bench`.

import Foundation
import TollgateBench
import TollgateCore
import TollgateTesting

final class BenchStack {
  static let catalog = """
    levels: [account, member]
    unknown_account: {plan: bench}
    features:
      units: {metered: true, importance: money, unit: unit}
      pings: {metered: false, importance: volume, unit: ping}
    plans:
      bench:
        units:
          - {id: units.rate, rate: 1000000, per: 1s, burst: 1000000}
          - {id: units.month, quota: 400, per: month}
          - {id: units.member.day, quota: 1000000, per: day, level: member}
        pings:
          - {id: pings.day, quota: 1000000, per: day}
    """

  let directory: TemporaryDirectory
  let redis: RedisServerProcess
  private(set) var ledger: ChildProcess
  private(set) var sidecars: [ChildProcess] = []
  let binary: String

  init(
    sidecars count: Int = 1, persistence: RedisServerProcess.Persistence = .none
  ) throws {
    directory = try TemporaryDirectory("tg-stack")
    redis = try RedisServerProcess(.init(persistence: persistence))
    binary = try ChildProcess.tollgateBinary()
    for name in ["check", "admin", "ledger"] {
      try directory.write("\(name).token", "secret-\(name)\n")
    }
    ledger = try Self.startLedger(binary, directory)
    for index in 0..<count { sidecars.append(try startSidecar(index)) }
    try directory.write("catalog.yaml", Self.catalog)
    let apply = try tool([
      "catalog", "apply", directory.file("catalog.yaml"), "--unix", socket(0), "--token-file",
      directory.file("admin.token"), "--reason", "test",
    ])
    if apply.status != .exited(0) { throw BenchError("catalog apply: \(apply.error)") }
  }

  deinit {
    for sidecar in sidecars { sidecar.kill() }
    ledger.kill()
    redis.kill()
  }

  private static func startLedger(
    _ binary: String, _ directory: TemporaryDirectory
  ) throws -> ChildProcess {
    let ledger = try ChildProcess(
      binary,
      [
        "ledger", "run", "--database", directory.file("books.sqlite"), "--unix",
        directory.file("l"), "--token-file", directory.file("ledger.token"),
      ])
    try eventually(within: .seconds(20), "the ledger listens: \(ledger.standardError)") {
      guard let socket = try? Socket.connect(.unix(directory.file("l"))) else { return false }
      Socket.close(socket)
      return true
    }
    return ledger
  }

  func restartLedger() throws {
    ledger.kill()
    ledger = try Self.startLedger(binary, directory)
  }

  func socket(_ index: Int) -> String { directory.file("s\(index)") }

  private func startSidecar(_ index: Int) throws -> ChildProcess {
    let config = try directory.write(
      "sidecar\(index).yaml",
      """
      deployment: {id: bench-test, buckets: 4, mode: dev}
      sidecar_id: sidecar-\(index)
      listen: {unix: \(socket(index))}
      credentials: {check_file: \(directory.file("check.token")), admin_file: \(directory.file("admin.token"))}
      redis: {address: "unix:\(redis.socketPath)"}
      ledger: {address: "unix:\(directory.file("l"))", token_file: \(directory.file("ledger.token"))}
      limits: {deadline_default_ms: 5000}
      log_level: warning
      """)
    let sidecar = try ChildProcess(binary, ["serve", "--config", config])
    let path = socket(index)
    try eventually(within: .seconds(20), "sidecar \(index) answers: \(sidecar.standardError)") {
      (try? AdminLink(Target("unix:" + path), role: .check, token: "secret-check")) != nil
    }
    // The audit reads Redis itself, where a sidecar that has just started has nothing written yet.
    try eventually(within: .seconds(20), "the deployment is recorded") {
      try redis.connect().command("EXISTS", "tollgate:{bench-test}:deployment").integer == 1
    }
    return sidecar
  }

  func kill(sidecar index: Int) { sidecars[index].kill() }
  func restart(sidecar index: Int) throws {
    kill(sidecar: index)
    sidecars[index] = try startSidecar(index)
  }

  func tool(_ words: [String]) throws -> (status: ExitStatus, output: String, error: String) {
    let process = try ChildProcess(binary, words)
    let status = try process.wait(within: .seconds(120))
    return (status, process.standardOutput, process.standardError)
  }

  func names(_ prefix: String, accounts: Int = 10, members: Int = 4) throws -> SubjectNames {
    try SubjectNames(prefix: prefix, accounts: accounts, members: members)
  }

  func auditor(_ names: SubjectNames, rules: [String] = []) throws -> Auditor {
    try Auditor(
      names: names, features: [Name("units"), Name("pings")],
      rules: rules.map { try LimitRule($0) }, deployment: "bench-test",
      admin: AdminLink(Target("unix:" + socket(0)), role: .admin, token: "secret-admin"),
      redis: RedisReader(Target("unix:" + redis.socketPath)),
      ledger: AdminLink(
        Target("unix:" + directory.file("l")), role: .ledger, token: "secret-ledger"))
  }

  func run(
    _ names: SubjectNames, _ end: Load.End, units: Int64 = 1, arrival: Arrival = .closed,
    seed: UInt64 = 1
  ) throws -> RunResult {
    let dialect = try TollgateDialect(
      names: names, features: [Name("units"), Name("pings")], check: false, token: "secret-check",
      deadlineMilliseconds: 0)
    return try Run(
      load: Load(connections: 4, inFlight: 8, arrival: arrival, end: end),
      targets: sidecars.indices.map { try Target("unix:" + socket($0)) },
      workload: Workload(
        names: names, accounts: .uniform(names.accounts),
        amounts: [.constant(units), .constant(1)], seed: seed),
      seed: seed
    ).start(dialect)
  }
}
