// `tollgate bench run`: one run, its figures, its audit.

import ArgumentParser
import Foundation
import Synchronization
import TollgateBench
import TollgateCore
import TollgateWire

struct BenchRun: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run", abstract: "One run against sidecars, or against a bare Redis.")

  @OptionGroup(title: "Targets") var targets: BenchTargets
  @OptionGroup(title: "Load") var shape: BenchShape

  func validate() throws {
    let kinds = [!targets.addresses.isEmpty, targets.resp != nil, targets.echo != nil]
    if kinds.count(where: { $0 }) != 1 {
      throw ValidationError(
        "Give --target for sidecars, --resp for a bare Redis, or --echo for an echo.")
    }
    if targets.resp != nil && shape.records > 1 {
      throw ValidationError("--records is for sidecars: Redis has no frames; use --in-flight.")
    }
    if targets.resp == nil && targets.redis == nil && !shape.limits.isEmpty {
      throw ValidationError(
        "--limit \(shape.limits[0]) is held against Redis: give --redis too.")
    }
  }

  func run() throws {
    do {
      if let echo = targets.echo {
        try runEcho(Target(echo))
      } else {
        try targets.resp == nil ? runTollgate() : runRedis()
      }
    } catch let error as BenchError {
      throw CommandFailure(.unavailable, "\(error)")
    }
  }

  private func runTollgate() throws {
    let addresses = try targets.addresses.map { try Target($0) }
    let workload = try shape.workload()
    let features = try shape.items().map(\.name)
    let token = try targets.secret("--token-file", targets.tokenFile, "TOLLGATE_TOKEN") ?? ""
    let dialect = try TollgateDialect(
      names: workload.names, features: features, check: shape.check, token: token,
      deadlineMilliseconds: shape.deadline)
    let auditor = try makeAuditor(addresses, workload.names, features, token)
    let result = try makeRun(addresses, workload).start(dialect, progress: Interrupt.progress())
    // From here on there are figures, and nothing may keep them back.
    let audit = auditor.audit(result.tally, drainWithin: shape.drain)
    let report = BenchReport(result: result, audit: audit, rows: workload.rows.count, shape: shape)
    print(shape.json ? report.document.json() : report.text)
    for reason in audit.unreachable {
      Output.error("Error: the audit is not complete: \(reason)")
    }
    try (audit.isSound ? audit.isClean ? .ok : .unavailable : ExitStatus.denied).leave()
  }

  private func runRedis() throws {
    let address = try Target(targets.resp ?? "")
    let password = try redisPassword()
    let workload = try shape.workload()
    let command: RedisDialect.Command
    switch targets.command {
    case "ping": command = .constant(RESP.command(["PING"]))
    case "incr": command = .constant(RESP.command(["INCR", "tollgate-bench"]))
    default: command = .decide(try decideCommands(address, password, workload))
    }
    let dialect = try RedisDialect(command, user: targets.redisUser, password: password)
    let result = try makeRun([address], workload)
      .start(dialect, progress: Interrupt.progress())
    let report = BenchReport(result: result, audit: nil, rows: 0, shape: shape)
    print(shape.json ? report.document.json() : report.text)
  }

  private func runEcho(_ address: Target) throws {
    let workload = try shape.workload()
    let dialect = try TollgateDialect(
      names: workload.names, features: shape.items().map(\.name), check: shape.check, token: "",
      deadlineMilliseconds: shape.deadline, echo: true)
    let result = try makeRun([address], workload)
      .start(dialect, progress: Interrupt.progress())
    let report = BenchReport(result: result, audit: nil, rows: 0, shape: shape)
    print(shape.json ? report.document.json() : report.text)
  }

  private func decideCommands(
    _ address: Target, _ password: String?, _ workload: Workload
  ) throws -> DecideCommands {
    let items = try shape.items().map { item -> Item in
      guard case .constant(let amount) = item.amount else {
        throw ValidationError("--command decide takes constant amounts only.")
      }
      return Item(feature: item.name, amount: amount)
    }
    return try DecideCommands(
      RedisReader(address, user: targets.redisUser, password: password),
      deployment: Name(targets.deployment ?? ""), names: workload.names, items: items)
  }

  private func makeRun(_ addresses: [Target], _ workload: Workload) -> Run {
    var pids = targets.serverPIDs
    if pids.isEmpty { pids = Array(Set(addresses.compactMap { $0.peerProcess() })).sorted() }
    var run = Run(
      load: shape.load, targets: addresses, workload: workload, seed: shape.seed,
      threads: shape.threads, serverPIDs: pids)
    if !shape.quiet {
      run.report = { line in FileHandle.standardError.write(Data((line + "\n").utf8)) }
    }
    return run
  }

  /// The baseline is read here, before the first request.
  private func makeAuditor(
    _ addresses: [Target], _ names: SubjectNames, _ features: [Name], _ token: String
  ) throws -> Auditor {
    let adminToken =
      try targets.secret("--admin-token-file", targets.adminTokenFile, "TOLLGATE_ADMIN_TOKEN")
      ?? token
    let redis = try targets.redis.map {
      try RedisReader(Target($0), user: targets.redisUser, password: redisPassword())
    }
    let ledger = try targets.ledger.map {
      try AdminLink(
        Target($0), role: .ledger,
        token: targets.secret(
          "--ledger-token-file", targets.ledgerTokenFile, "TOLLGATE_LEDGER_TOKEN") ?? "")
    }
    let admin: AdminLink?
    do {
      let sidecars = try targets.auditTarget.map { [try Target($0)] } ?? addresses
      admin = try AdminLink(sidecars, role: .admin, token: adminToken)
    } catch {
      // With another source the audit is possible without the admin role.
      guard redis != nil || ledger != nil else { throw error }
      admin = nil
    }
    var deployment = admin?.deployment ?? ""
    if deployment.isEmpty {
      deployment = try AdminLink(addresses, role: .check, token: token).deployment
    }
    return try Auditor(
      names: names, features: features, rules: shape.limits.map { try LimitRule($0) },
      deployment: deployment, admin: admin, redis: redis, ledger: ledger)
  }

  private func redisPassword() throws -> String? {
    try targets.secret(
      "--redis-password-file", targets.redisPasswordFile, "TOLLGATE_REDIS_PASSWORD")
  }
}

/// Ctrl-C ends the load early; the audit still runs. A second one ends the program.
enum Interrupt {
  private static let shared = RunProgress()

  static func progress() -> RunProgress {
    signal(SIGINT) { number in
      Interrupt.shared.endEarly()
      signal(number, SIG_DFL)
    }
    return shared
  }
}
