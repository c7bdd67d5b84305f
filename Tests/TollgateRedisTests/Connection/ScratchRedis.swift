// A throw-away redis-server for the connection tests: a directory, a Unix socket and perhaps a
// loopback port of its own, no persistence, ended by its process id.

import Foundation
import NIOCore
import NIOPosix
import Synchronization
import Testing

final class ScratchRedis: Sendable {
  let socketPath: String
  let port: Int?
  private let directory: String
  private let password: String?
  private let process = Mutex<Process?>(nil)

  init(tcp: Bool = false, password: String? = nil) throws {
    directory = "/tmp/tg-conn-\(UUID().uuidString.prefix(8))"
    try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
    socketPath = "\(directory)/s"
    self.password = password
    port = tcp ? try Self.freePort() : nil
    try start()
  }

  deinit {
    kill()
    try? FileManager.default.removeItem(atPath: directory)
  }

  /// Starts the server; the link under test finds out by itself when it is ready.
  func start() throws {
    let child = Process()
    child.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    child.arguments =
      [
        "redis-server", "--port", "\(port ?? 0)", "--bind", "127.0.0.1", "--unixsocket", socketPath,
        "--dir", directory, "--save", "", "--repl-diskless-sync-delay", "0",
      ] + (password.map { ["--requirepass", $0] } ?? [])
    child.standardOutput = FileHandle.nullDevice
    child.standardError = FileHandle.nullDevice
    try child.run()
    process.withLock { $0 = child }
    let path = socketPath
    let deadline = ContinuousClock.now + .seconds(10)
    while !FileManager.default.fileExists(atPath: path) {
      guard child.isRunning, ContinuousClock.now < deadline else {
        throw ScratchRedisError.didNotStart
      }
      usleep(2000)
    }
  }

  func pause() { signal(SIGSTOP) }
  func resume() { signal(SIGCONT) }

  /// SIGKILL, reaped on return.
  func kill() {
    signal(SIGKILL)
    process.withLock { child in
      child?.waitUntilExit()
      child = nil
    }
    try? FileManager.default.removeItem(atPath: socketPath)
  }

  private func signal(_ number: Int32) {
    process.withLock { child in
      if let child, child.isRunning { _ = Foundation.kill(child.processIdentifier, number) }
    }
  }

  private static func freePort() throws -> Int {
    let channel = try ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
      .bind(host: "127.0.0.1", port: 0).wait()
    defer { try? channel.close().wait() }
    guard let port = channel.localAddress?.port else { throw ScratchRedisError.didNotStart }
    return port
  }
}

enum ScratchRedisError: Error {
  case didNotStart
}

struct NotInTime: Error {
  let what: String
}

/// Polls until the condition holds, for at most ten seconds.
func until(_ what: String, _ condition: () async throws -> Bool) async throws {
  let deadline = ContinuousClock.now + .seconds(10)
  while try await !condition() {
    guard ContinuousClock.now < deadline else { throw NotInTime(what: what) }
    try await Task.sleep(for: .milliseconds(2))
  }
}
