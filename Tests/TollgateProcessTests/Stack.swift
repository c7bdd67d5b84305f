// A whole deployment of real processes in a temporary directory: Redis, the ledger and N sidecars,
// from the built binary. Tests kill, freeze, restart and cut between its parts by process id; the
// proxies stand in front of Redis and the ledger only where a test asks for them, so that all other
// tests measure what users run. Everything ends with the stack.

import Foundation
import NIOConcurrencyHelpers
import Testing
import TollgateTesting

struct StackFailure: Error, CustomStringConvertible {
  let description: String
}

/// All suites that start processes stand below this one: they run one after another, because the
/// machine's few cores are what the tests' deadlines count on.
@Suite(.serialized) enum LiveTests {}

final class Stack: Sendable {
  struct Options: Sendable {
    var sidecars = 2
    var buckets = 4
    var persistence = RedisServerProcess.Persistence.appendAlways
    var ledger = true
    /// More words for redis-server.
    var redisWords: [String] = []
    /// Between the sidecars and Redis, and the sidecars and the ledger.
    var proxies = false
    /// This sidecar alone reaches the ledger through the proxy.
    var cutOff: Int?
    /// Each sidecar has a fallback journal.
    var journals = false
    /// More lines of every sidecar's configuration.
    var extra = ""
    var catalog = Stack.catalog
    /// Account → plan.
    var accounts: [String: String] = [:]
    /// A directory that lives as long as the stack, for files that `extra` names.
    var keeping: TemporaryDirectory?
  }

  /// Plans for every test: `big` never denies, `small` has room for 500.
  static let catalog = """
    levels: [account, member]
    features:
      calls: {metered: true, importance: money, unit: call}
      tokens: {metered: true, importance: money, unit: token}
      pings: {metered: false, importance: volume, unit: ping}
    plans:
      big:
        calls:
          - {id: calls.month, quota: 1000000000, per: month}
          - {id: calls.day, quota: 1000000000, per: day}
          - {id: calls.member, quota: 1000000000, per: month, level: member}
        tokens:
          - {id: tokens.month, quota: 1000000000, per: month}
        pings:
          - {id: pings.all, quota: 1000000000, per: month, on_failure: {open: 1000000}}
      small:
        calls:
          - {id: calls.month, quota: 500, per: month}
          - {id: calls.day, quota: 600, per: day}
          - {id: calls.member, quota: 550, per: month, level: member}
        tokens:
          - {id: tokens.month, quota: 700, per: month}
        pings:
          - {id: pings.all, quota: 1000, per: month}
      open:
        calls:
          - {id: calls.month, quota: 1000000000, per: month, on_failure: {open: 40}}
    """

  static let checkToken = "check-token"
  static let adminToken = "admin-token"

  let options: Options
  let directory: TemporaryDirectory
  let redis: RedisServerProcess
  let redisProxy: FaultProxy?
  let ledgerProxy: FaultProxy?
  let binary: String
  private let ledgerChild = NIOLockedValueBox<ChildProcess?>(nil)
  private let children: NIOLockedValueBox<[ChildProcess?]>
  private let ports: [UInt16]

  init(_ options: Options = Options()) throws {
    self.options = options
    directory = try TemporaryDirectory("tg-stack")
    binary = try ChildProcess.tollgateBinary()
    // The sidecars may do what deploy/redis/users.acl says and nothing else; the tests, all.
    redis = try RedisServerProcess(
      .init(
        persistence: options.persistence, acl: try Self.acl(), extra: options.redisWords))
    let ledgerEndpoint = TestEndpoint.unix(directory.file("ledger.sock"))
    redisProxy = options.proxies ? try FaultProxy(to: redis.unix) : nil
    ledgerProxy =
      options.proxies || options.cutOff != nil ? try FaultProxy(to: ledgerEndpoint) : nil
    children = NIOLockedValueBox(Array(repeating: nil, count: options.sidecars))
    ports = try (0..<options.sidecars).map { _ in try freePort() }
    do {
      if options.ledger { try startLedger() }
      for index in 0..<options.sidecars {
        try writeConfiguration(index)
        try startSidecar(index)
      }
      try apply()
    } catch {
      print(logs)
      end()
      throw error
    }
  }

  deinit { end() }

  /// Kills everything; idempotent.
  func end() {
    children.withLockedValue { for index in $0.indices { $0[index]?.kill() } }
    ledgerChild.withLockedValue { $0?.kill() }
    redis.kill()
  }

  // MARK: - Parts

  var endpoints: [TestEndpoint] { (0..<options.sidecars).map(endpoint) }
  func endpoint(_ index: Int) -> TestEndpoint { .unix(directory.file("t\(index).sock")) }
  func journal(_ index: Int) -> String { directory.file("t\(index).journal") }
  var database: String { directory.file("ledger.db") }
  func sidecar(_ index: Int) -> ChildProcess? { children.withLockedValue { $0[index] } }
  var ledger: ChildProcess? { ledgerChild.withLockedValue { $0 } }

  func startLedger() throws {
    var environment = ProcessInfo.processInfo.environment
    environment["TOLLGATE_LEDGER_TOKEN"] = "ledger-token"
    let log = directory.file("ledger.log")
    let socket = directory.file("ledger.sock")
    let child = try ChildProcess(
      binary, ["ledger", "--database", database, "--unix", socket], environment: environment,
      stdout: log, stderr: log)
    ledgerChild.withLockedValue { $0 = child }
    try eventually(within: .seconds(20), "the ledger listens") {
      guard child.isRunning else { throw StackFailure(description: "ledger ended:\n\(logs)") }
      guard let fd = try? Socket.connect(.unix(socket)) else { return false }
      Socket.close(fd)
      return true
    }
  }

  @discardableResult
  func spawnSidecar(_ index: Int) throws -> ChildProcess {
    let log = directory.file("t\(index).log")
    let child = try ChildProcess(
      binary, ["serve", "--config", directory.file("t\(index).yaml")], stdout: log, stderr: log)
    children.withLockedValue { $0[index] = child }
    return child
  }

  func startSidecar(_ index: Int) throws {
    let child = try spawnSidecar(index)
    try eventually(within: .seconds(20), "sidecar \(index) listens") {
      guard child.isRunning else {
        throw StackFailure(description: "sidecar \(index) ended:\n\(logs)")
      }
      guard let fd = try? Socket.connect(endpoint(index)) else { return false }
      Socket.close(fd)
      return true
    }
  }

  func restartSidecar(_ index: Int) throws {
    sidecar(index)?.kill()
    try startSidecar(index)
  }

  func restartLedger() throws {
    ledger?.kill()
    try startLedger()
  }

  // MARK: - The books' files

  private var bookFiles: [String] {
    let name = URL(fileURLWithPath: database).lastPathComponent
    let found = try? FileManager.default.contentsOfDirectory(atPath: directory.file("."))
    return (found ?? []).filter { $0.hasPrefix(name) }
  }

  /// Stops the ledger, copies its books and starts it again.
  func copyBooks() throws {
    try ledger?.terminate()
    for name in bookFiles {
      try FileManager.default.copyItem(
        atPath: directory.file(name), toPath: directory.file("copy-" + name))
    }
    try startLedger()
  }

  /// Kills the ledger and removes its books, or puts the copied ones in their place. The ledger
  /// stays down.
  func replaceBooks(byCopy: Bool) throws {
    ledger?.kill()
    for name in bookFiles { try FileManager.default.removeItem(atPath: directory.file(name)) }
    guard byCopy else { return }
    let found = try FileManager.default.contentsOfDirectory(atPath: directory.file("."))
    for name in found where name.hasPrefix("copy-") {
      try FileManager.default.copyItem(
        atPath: directory.file(name), toPath: directory.file(String(name.dropFirst(5))))
    }
  }

  /// `buckets`: other than the deployment's.
  func writeConfiguration(_ index: Int, buckets: Int? = nil) throws {
    let redisAddress = redisProxy?.endpoint.description ?? "unix:\(redis.socketPath)"
    let proxied = options.proxies || options.cutOff == index
    let ledgerAddress =
      (proxied ? ledgerProxy?.endpoint.description : nil)
      ?? "unix:\(directory.file("ledger.sock"))"
    try directory.write(
      "t\(index).yaml",
      """
      deployment: {id: live, buckets: \(buckets ?? options.buckets), mode: dev}
      sidecar_id: side-\(index)
      listen: {unix: "\(directory.file("t\(index).sock"))"}
      http: "127.0.0.1:\(ports[index])"
      credentials:
        check: \(Self.checkToken)
        admin: \(Self.adminToken)
        admins: {ann: {token: ann-token}, bob: {token: bob-token}}
      redis: {address: "\(redisAddress)", username: tollgate, password: change-me}
      ledger: \(options.ledger ? "{address: \"\(ledgerAddress)\", token: ledger-token}" : "none")
      log_level: info
      \(options.journals ? "journal: \"\(journal(index))\"" : "")
      \(options.extra)

      """)
  }

  private static func acl() throws -> [String] {
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .deletingLastPathComponent().deletingLastPathComponent()
    let file = root.appendingPathComponent("deploy/redis/users.acl")
    let text = try String(contentsOf: file, encoding: .utf8)
    return ["user default on nopass ~* &* +@all"]
      + text.split(separator: "\n").map(String.init).filter { $0.hasPrefix("user tollgate ") }
  }

  private func apply() throws {
    let file = try directory.write("catalog.yaml", options.catalog)
    try eventually(within: .seconds(20), every: .milliseconds(50), "the catalog is applied") {
      try cli(["catalog", "apply", file, "--reason", "test"]).status == .exited(0)
    }
    for (account, plan) in options.accounts.sorted(by: { $0.key < $1.key }) {
      try command(["account", "set", account, "--plan", plan])
    }
    for index in 0..<options.sidecars { try waitReady(index) }
  }

  // MARK: - Looking and acting

  struct CommandResult {
    let status: TollgateTesting.ExitStatus
    let output: String
    let errors: String
  }

  /// Runs `tollgate …` against a sidecar, with the admin credential.
  func cli(
    _ arguments: [String], sidecar index: Int = 0, token: String = adminToken
  ) throws -> CommandResult {
    let child = try start(arguments, sidecar: index, token: token)
    let status: TollgateTesting.ExitStatus
    do {
      status = try child.wait(within: .seconds(30))
    } catch {
      throw StackFailure(description: "\(arguments): \(error)\n\(logs)")
    }
    return CommandResult(
      status: status, output: child.standardOutput, errors: child.standardError)
  }

  /// Starts `tollgate …` and does not wait for its end.
  func start(
    _ arguments: [String], sidecar index: Int = 0, token: String = adminToken
  ) throws -> ChildProcess {
    try ChildProcess(
      binary, arguments + ["--unix", directory.file("t\(index).sock"), "--token", token])
  }

  /// The same, where anything but success is an error.
  @discardableResult
  func command(_ arguments: [String], sidecar index: Int = 0) throws -> String {
    let result = try cli(arguments, sidecar: index)
    guard result.status == .exited(0) else {
      throw StackFailure(
        description: "\(arguments): \(result.status)\n\(result.output)\(result.errors)")
    }
    return result.output
  }

  /// `tollgate ledger REPORT` on the books.
  func books(_ report: String, _ arguments: [String] = []) throws -> CommandResult {
    let child = try ChildProcess(
      binary, ["ledger", report, "--database", database, "--json"] + arguments)
    let status = try child.wait(within: .seconds(30))
    return CommandResult(
      status: status, output: child.standardOutput, errors: child.standardError)
  }

  /// The body of one HTTP GET on a sidecar's health port; nil where it does not answer.
  func http(_ path: String, sidecar index: Int) -> String? {
    guard let fd = try? Socket.connect(.tcp("127.0.0.1", ports[index])) else { return nil }
    defer { Socket.close(fd) }
    let request = "GET \(path) HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    guard (try? Socket.write(fd, Array(request.utf8)[...])) == request.utf8.count else {
      return nil
    }
    var bytes: [UInt8] = []
    while Socket.wait(fd, for: POLLIN, milliseconds: 2000),
      let more = try? Socket.read(fd), !more.isEmpty
    {
      bytes += more
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  /// Ready, and nothing degraded.
  func waitReady(_ index: Int, within limit: Duration = .seconds(30)) throws {
    try eventually(within: limit, every: .milliseconds(20), "sidecar \(index) is ready") {
      guard let text = http("/readyz", sidecar: index) else { return false }
      return text.contains(" 200 ") && !text.contains("degraded")
    }
  }

  /// One metric of one sidecar, by its exact name and labels.
  func metric(_ name: String, sidecar index: Int) -> Double? {
    guard let text = http("/metrics", sidecar: index) else { return nil }
    for line in text.split(separator: "\n") where line.hasPrefix(name + " ") {
      return Double(line.dropFirst(name.utf8.count + 1).trimmingCharacters(in: .whitespaces))
    }
    return nil
  }

  /// The end of every log, for a failure to quote.
  var logs: String {
    var text = ""
    for name in ["ledger"] + (0..<options.sidecars).map({ "t\($0)" }) {
      let log = (try? String(contentsOfFile: directory.file("\(name).log"), encoding: .utf8)) ?? ""
      text += "--- \(name)\n\(log.suffix(3000))\n"
    }
    return text
  }
}
