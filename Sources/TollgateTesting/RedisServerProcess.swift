// A real redis-server of its own for a test.
//
// Private directory, Unix socket (and a loopback port where asked), persistence as chosen, the
// process ended by id. Every fault a test needs is here: clean stop, kill -9, freeze, restart on
// the same files, and an older set of files put back. Readiness is an answered PING. Where
// redis-server is missing the suite fails; it never skips.

internal import Foundation
internal import NIOConcurrencyHelpers

package enum RedisServerError: Error, CustomStringConvertible {
  case missing
  case exitedAtStart(String)
  case notStopped

  package var description: String {
    switch self {
    case .missing:
      "redis-server is not in PATH; run `make setup` (the tests need a real Redis and do not skip)"
    case .exitedAtStart(let log): "redis-server ended while starting; its log:\n\(log)"
    case .notStopped: "stop or kill the server before its files are replaced"
    }
  }
}

package final class RedisServerProcess: Sendable {
  package enum Persistence: Sendable {
    /// Nothing on disk until a test asks for SAVE.
    case none
    /// Append-only file, fsync before each reply: an acknowledged write survives kill -9.
    case appendAlways
    /// Append-only file, fsync each second: kill -9 keeps writes, a power cut would not.
    case appendEverySecond
  }

  package struct Options: Sendable {
    package var persistence: Persistence = .none
    /// Listen on 127.0.0.1 too; the port stays the same over restarts.
    package var tcp = false
    package var password: String?
    /// Lines of an ACL file. The harness logs in as `aclUser`, who must be allowed PING.
    package var acl: [String]?
    package var aclUser: String?
    /// As in redis.conf: "64mb".
    package var maxmemory: String?
    /// More command-line words: ["--databases", "1"].
    package var extra: [String] = []

    package init(
      persistence: Persistence = .none, tcp: Bool = false, password: String? = nil,
      acl: [String]? = nil, aclUser: String? = nil, maxmemory: String? = nil,
      extra: [String] = []
    ) {
      self.persistence = persistence
      self.tcp = tcp
      self.password = password
      self.acl = acl
      self.aclUser = aclUser
      self.maxmemory = maxmemory
      self.extra = extra
    }
  }

  /// A copy of the persistence files, kept beside the server's directory.
  package struct Snapshot: Sendable {
    fileprivate let path: String
  }

  package let options: Options
  package let directory: TemporaryDirectory
  package let socketPath: String
  package let port: UInt16?
  private let child = NIOLockedValueBox<ChildProcess?>(nil)
  private let snapshots = NIOLockedValueBox(0)

  /// Starts the server and returns once it answers.
  package init(_ options: Options = Options()) throws {
    self.options = options
    directory = try TemporaryDirectory("tg-redis")
    socketPath = directory.file("s")
    port = options.tcp ? try freePort() : nil
    try FileManager.default.createDirectory(
      atPath: directory.file("data"), withIntermediateDirectories: false)
    if let acl = options.acl {
      try directory.write("users.acl", acl.joined(separator: "\n") + "\n")
    }
    try start()
  }

  deinit { kill() }

  package var unix: TestEndpoint { .unix(socketPath) }
  /// The TCP endpoint where one was asked for, otherwise the Unix socket.
  package var endpoint: TestEndpoint { port.map { .tcp("127.0.0.1", $0) } ?? unix }
  package var pid: Int32? { child.withLockedValue { $0?.pid } }
  package var isRunning: Bool { child.withLockedValue { $0?.isRunning ?? false } }
  /// The running process, for its CPU time and memory.
  package var process: ChildProcess? { child.withLockedValue { $0 } }
  package var log: String {
    (try? String(contentsOfFile: directory.file("log"), encoding: .utf8)) ?? ""
  }

  /// A new inspection connection, authenticated as the options say.
  package func connect(timeout: Duration = .seconds(10)) throws -> MiniRedis {
    try MiniRedis(unix, user: options.aclUser, password: options.password, timeout: timeout)
  }

  /// Starts it again on the same files, socket and port; no-op where it runs.
  package func start(within limit: Duration = .seconds(20)) throws {
    if isRunning { return }
    guard let executable = Self.executable() else { throw RedisServerError.missing }
    let process = try ChildProcess(
      executable, arguments(), stdout: directory.file("log"), stderr: directory.file("log"))
    child.withLockedValue { $0 = process }
    try eventually(within: limit, "redis-server answers PING") {
      if !process.isRunning { throw RedisServerError.exitedAtStart(String(log.suffix(2000))) }
      // Not listening yet, or still loading its files: both are "not ready".
      return (try? connect(timeout: .seconds(1)).command("PING").string) == "PONG"
    }
  }

  /// SIGTERM: Redis writes what its persistence asks for and exits.
  package func stop() throws {
    let process = child.withLockedValue { $0 }
    process?.resume()
    try process?.terminate()
    child.withLockedValue { $0 = nil }
  }

  /// SIGKILL, reaped on return.
  package func kill() {
    let process = child.withLockedValue { current in
      defer { current = nil }
      return current
    }
    process?.kill()
  }

  /// SIGSTOP: sockets stay open, nothing answers. Slow, not down.
  package func pause() throws { try child.withLockedValue { $0 }?.pause() }

  /// SIGCONT.
  package func resume() { child.withLockedValue { $0 }?.resume() }

  /// `kill` (or `stop` where `clean`) and `start`.
  package func restart(clean: Bool = false) throws {
    if clean { try stop() } else { kill() }
    try start()
  }

  /// Copies the persistence files as they are now, under load if need be. The append-only file is
  /// written before each reply, so a copy holds every write acknowledged before the call; with
  /// no append-only file it is a fresh SAVE.
  package func snapshot() throws -> Snapshot {
    if case .none = options.persistence, isRunning { try connect().command("SAVE") }
    let number = snapshots.withLockedValue { count in
      count += 1
      return count
    }
    let path = directory.file("snapshot-\(number)")
    try FileManager.default.copyItem(atPath: directory.file("data"), toPath: path)
    return Snapshot(path: path)
  }

  /// Puts older files back in place; the server must not run.
  package func restore(_ snapshot: Snapshot) throws {
    if isRunning { throw RedisServerError.notStopped }
    try FileManager.default.removeItem(atPath: directory.file("data"))
    try FileManager.default.copyItem(atPath: snapshot.path, toPath: directory.file("data"))
  }

  /// Kills the server, puts the older files back and starts it on them.
  package func rollBack(to snapshot: Snapshot) throws {
    kill()
    try restore(snapshot)
    try start()
  }

  private func arguments() -> [String] {
    var words = [
      "--port", "\(port ?? 0)", "--bind", "127.0.0.1", "--unixsocket", socketPath,
      "--unixsocketperm", "700", "--dir", directory.file("data"), "--save", "",
      "--daemonize", "no", "--loglevel", "notice", "--maxmemory-policy", "noeviction",
      // A rewrite in the middle of `snapshot` would tear the copied set of files.
      "--auto-aof-rewrite-percentage", "0",
    ]
    switch options.persistence {
    case .none: words += ["--appendonly", "no"]
    case .appendAlways: words += ["--appendonly", "yes", "--appendfsync", "always"]
    case .appendEverySecond: words += ["--appendonly", "yes", "--appendfsync", "everysec"]
    }
    if options.acl != nil {
      words += ["--aclfile", directory.file("users.acl")]
    } else if let password = options.password {
      words += ["--requirepass", password]
    }
    if let maxmemory = options.maxmemory { words += ["--maxmemory", maxmemory] }
    return words + options.extra
  }

  private static func executable() -> String? {
    let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
    return path.split(separator: ":").map { "\($0)/redis-server" }
      .first { FileManager.default.isExecutableFile(atPath: $0) }
  }
}
