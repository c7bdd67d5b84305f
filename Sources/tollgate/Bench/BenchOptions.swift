// The options of a run. What cannot be used is said before anything is connected to, as a usage
// error that names the value and what is allowed in its place.

import ArgumentParser
import Foundation
import TollgateBench
import TollgateCore
import TollgateWire

struct BenchTargets: ParsableArguments {
  @Option(
    name: .customLong("target"),
    help: ArgumentHelp(
      "A sidecar: unix:PATH or HOST:PORT; repeat it for several.", valueName: "address"))
  var addresses: [String] = []

  @Option(help: ArgumentHelp("Drive this bare Redis instead of sidecars.", valueName: "address"))
  var resp: String?

  @Option(
    help: ArgumentHelp(
      "Drive a peer that sends back what it gets: the limit of the transport.",
      valueName: "address"))
  var echo: String?

  @Option(
    help: ArgumentHelp(
      "What to send to a bare Redis: ping, incr, or decide: the script call of a sidecar, on "
        + "state that a sidecar prepared and left.",
      valueName: "name"))
  var command: String = "ping"

  @Option(help: ArgumentHelp("The deployment that decide works on.", valueName: "id"))
  var deployment: String?

  @Option(help: ArgumentHelp("File with the credential of the sidecars.", valueName: "file"))
  var tokenFile: String?

  @Option(
    help: ArgumentHelp(
      "File with an admin credential, for the audit; the other one by default.",
      valueName: "file"))
  var adminTokenFile: String?

  @Option(
    help: ArgumentHelp(
      "The sidecar to audit through, where the targets answer too slowly; by default they.",
      valueName: "address"))
  var auditTarget: String?

  @Option(help: ArgumentHelp("Read counters from this Redis in the audit.", valueName: "address"))
  var redis: String?

  @Option(help: ArgumentHelp("User of that Redis.", valueName: "name"))
  var redisUser: String?

  @Option(help: ArgumentHelp("File with the password of that Redis.", valueName: "file"))
  var redisPasswordFile: String?

  @Option(help: ArgumentHelp("Read totals from this ledger in the audit.", valueName: "address"))
  var ledger: String?

  @Option(help: ArgumentHelp("File with the credential of the ledger.", valueName: "file"))
  var ledgerTokenFile: String?

  @Option(
    name: .customLong("server-pid"),
    help: ArgumentHelp(
      "A server whose CPU time to measure; repeat it. On Unix sockets they are found.",
      valueName: "pid"))
  var serverPIDs: [Int32] = []

  static let commands = ["ping", "incr", "decide"]

  func validate() throws {
    for address in addresses { _ = try BenchUsage.of("--target", Target(address)) }
    if let resp { _ = try BenchUsage.of("--resp", Target(resp)) }
    if let auditTarget { _ = try BenchUsage.of("--audit-target", Target(auditTarget)) }
    if let echo { _ = try BenchUsage.of("--echo", Target(echo)) }
    if let redis { _ = try BenchUsage.of("--redis", Target(redis)) }
    if let ledger { _ = try BenchUsage.of("--ledger", Target(ledger)) }
    if let deployment { _ = try BenchUsage.of("--deployment", Name(deployment)) }
    if !Self.commands.contains(command) {
      throw ValidationError("--command \(command): give ping, incr or decide.")
    }
    if resp != nil && command == "decide" && deployment == nil {
      throw ValidationError("--command decide needs --deployment.")
    }
  }

  /// A credential: from the file, or from the environment where none is named.
  func secret(
    _ option: String, _ path: String?, _ variable: String
  ) throws(CommandFailure) -> String? {
    guard let path else { return ProcessInfo.processInfo.environment[variable] }
    return try InputFile.text(path, bytesMax: 4096, option: "\(option) ")
      .trimmingCharacters(in: .whitespacesAndNewlines)
  }
}

/// Turns the reason why a value cannot be used into a usage error.
enum BenchUsage {
  static func of<Value>(_ option: String, _ value: @autoclosure () throws -> Value) throws -> Value
  {
    do { return try value() } catch { throw ValidationError("\(option) \(error).") }
  }
}

struct BenchShape: ParsableArguments {
  @Option(help: "Connections over all targets.")
  var connections = 50

  @Option(help: "Requests in flight on each connection.")
  var inFlight = 1

  @Option(help: "Operations in each frame; --in-flight then counts frames.")
  var records = 1

  @Option(help: "Measured seconds.")
  var seconds: Double?

  @Option(help: "End after so many operations instead.")
  var requests: Int?

  @Option(help: "Operations per second at a fixed schedule; latency counts from the schedule.")
  var rate: Double?

  @Option(help: "Seconds before the measured time; audited, not measured.")
  var warmup = 1.0

  @Option(help: "Accounts.")
  var subjects = 1000

  @Option(help: "Members of each account; 0: the account itself asks.")
  var members = 0

  @Option(help: "What follows each subject, for a level below members, e.g. /run.")
  var suffix = ""

  @Option(help: "How subjects are drawn: uniform, zipf, or each: one after another.")
  var distribution = "uniform"

  @Option(help: "With --distribution each: how often each is asked for before the next one.")
  var times = 1

  @Option(help: "Exponent of zipf.")
  var exponent = 1.1

  @Option(help: "What account names start with.")
  var prefix = "bench-"

  @Option(
    name: .customLong("feature"),
    help: ArgumentHelp(
      "A feature and its amount: a number, or context, generated, total of a trace row.",
      valueName: "name=amount"))
  var features: [String] = []

  @Option(
    help: ArgumentHelp("Replay TIMESTAMP,ContextTokens,GeneratedTokens rows.", valueName: "file"))
  var trace: String?

  @Option(help: ArgumentHelp("Replay a generated trace of so many rows.", valueName: "rows"))
  var syntheticTrace: Int?

  @Option(help: "How many times faster than real time a trace runs, or max.")
  var speed = "max"

  @Option(help: "Seed of subjects and of a generated trace.")
  var seed: UInt64 = 1

  @Option(help: "Threads of the generator.")
  var threads = 1

  @Flag(help: "Ask without consuming.")
  var check = false

  @Option(help: "Deadline of each request in milliseconds; 0: the server's.")
  var deadline: UInt32 = 0

  @Option(
    name: .customLong("limit"),
    help: ArgumentHelp(
      "A limit to hold against Redis, e.g. account:tokens.total:month=1000000.",
      valueName: "rule"))
  var limits: [String] = []

  @Option(help: "Seconds in which the ledger must have everything after the run.")
  var drain = 60.0

  @Option(help: "Seconds in which unknown outcomes must be settled after the run.")
  var resolve = 30.0

  @Flag(help: "Print one JSON document.")
  var json = false

  @Flag(help: "No progress line.")
  var quiet = false

  static let secondsMax = 86_400.0
  static let rowsMax = 10_000_000

  func validate() throws {
    func require(_ holds: Bool, _ text: String) throws {
      if !holds { throw ValidationError(text) }
    }
    func within<Value: Comparable>(
      _ option: String, _ value: Value?, _ range: ClosedRange<Value>
    ) throws {
      guard let value, !range.contains(value) else { return }
      throw ValidationError(
        "--\(option) \(value): give \(range.lowerBound) … \(range.upperBound).")
    }
    try within("connections", connections, 1...10_000)
    try within("in-flight", inFlight, 1...4096)
    try within("records", records, 1...WireLimits.recordsMax)
    try within("threads", threads, 1...64)
    try within("seconds", seconds, 0.001...Self.secondsMax)
    try within("requests", requests, 1...Int(Int32.max))
    try within("rate", rate, 0.001...1e8)
    try within("warmup", warmup, 0...3600)
    try within("exponent", exponent, 0.001...10)
    try within("drain", drain, 0...Self.secondsMax)
    try within("resolve", resolve, 0...Self.secondsMax)
    try within("subjects", subjects, 1...SubjectNames.accountsMax)
    try within("members", members, 0...SubjectNames.membersMax)
    try within("synthetic-trace", syntheticTrace, 1...Self.rowsMax)
    try require(seconds == nil || requests == nil, "--seconds and --requests exclude each other.")
    try require(
      subjects * max(1, members) <= SubjectNames.subjectsMax,
      "--subjects \(subjects) with --members \(members): give at most "
        + "\(SubjectNames.subjectsMax) in all."
    )
    _ = try BenchUsage.of(
      "--prefix \(prefix):",
      SubjectNames(prefix: prefix, accounts: subjects, members: members, suffix: suffix))
    try require(
      ["uniform", "zipf", "each"].contains(distribution),
      "--distribution \(distribution): give uniform, zipf or each.")
    try require(
      times == 1 || distribution == "each" && times > 1,
      "--times \(times): from 1, and with --distribution each.")
    try require(
      !isTrace || distribution != "each", "a trace draws its subjects: give uniform or zipf.")
    try require(
      trace == nil || syntheticTrace == nil, "--trace and --synthetic-trace exclude each other.")
    try require(
      records == 1 || (!isTrace && rate == nil),
      "--records is for a closed loop: an open one sends each operation when it is due.")
    try require(
      !isTrace || rate == nil, "a trace has its own times: use --speed instead of --rate.")
    try require(
      speed == "max" || Double(speed).map { (0.001...1e9).contains($0) } ?? false,
      "--speed \(speed): give a factor of 0.001 … 1e9, or max.")
    for limit in limits { _ = try BenchUsage.of("--limit", LimitRule(limit)) }
    _ = try items()
  }

  var isTrace: Bool { trace != nil || syntheticTrace != nil }

  func rows() throws -> [TraceRow] {
    if let trace {
      do { return try Trace.parse(File.bytes(trace)) } catch {
        throw CommandFailure.usage(
          "--trace \(trace): \(error)", fix: "give a file with the header \(Trace.header)")
      }
    }
    guard let syntheticTrace else { return [] }
    var random = SplitMix(seed: seed)
    return TraceGenerator.rows(syntheticTrace, using: &random)
  }

  func items() throws -> [(name: Name, amount: AmountRule)] {
    let texts =
      !features.isEmpty
      ? features : isTrace ? ["chat.requests=1", "tokens.total=total"] : ["chat.requests=1"]
    return try texts.map { text in
      let parts = text.split(separator: "=", maxSplits: 1)
      guard parts.count == 2, let amount = AmountRule(String(parts[1])) else {
        throw ValidationError(
          "--feature \(text): write NAME=AMOUNT, with a number, context, generated or total.")
      }
      return (try BenchUsage.of("--feature \(text):", Name(String(parts[0]))), amount)
    }
  }

  var load: Load {
    let arrival: Arrival =
      if let rate { .rate(rate) } else if isTrace, let speed = Double(speed) {
        .trace(speed: speed)
      } else { .closed }
    let end: Load.End =
      if let requests { .requests(requests) } else if isTrace && seconds == nil { .trace } else {
        .seconds(seconds ?? 10)
      }
    // A bounded run measures all of itself.
    let warmup = if case .seconds = end { self.warmup } else { 0.0 }
    return Load(
      connections: connections, inFlight: inFlight, records: records, arrival: arrival, end: end,
      warmup: warmup, resolveWithin: resolve)
  }

  func workload() throws -> Workload {
    let names = try SubjectNames(
      prefix: prefix, accounts: subjects, members: members, suffix: suffix)
    return Workload(
      names: names,
      accounts: distribution == "zipf"
        ? .zipf(subjects, exponent: exponent)
        : distribution == "each" ? nil : .uniform(subjects), times: times,
      amounts: try items().map(\.amount), rows: try rows(), seed: seed)
  }
}
