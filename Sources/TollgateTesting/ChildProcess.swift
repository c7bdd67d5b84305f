// A real process under test: spawned, watched, killed, and never left behind.
//
// Crash tests kill by process id only, and an id is signalled only while its process has not
// been reaped, so a recycled id is never hit: `waitpid` and `kill` happen under one lock. The
// child leads its own process group (a terminal's Ctrl-C reaches the test, which then ends its
// children), holds no descriptor of the parent, and writes its output to files that a failure
// can quote.

internal import Foundation
internal import NIOConcurrencyHelpers

/// How a process ended.
package enum ExitStatus: Sendable, Equatable {
  case exited(Int32)
  case signaled(Int32)
}

package enum ChildProcessError: Error, CustomStringConvertible {
  case spawnFailed(executable: String, code: Int32)
  case stillRunning(executable: String, waited: Duration, output: String)
  case binaryMissing(searched: [String])

  package var description: String {
    switch self {
    case .spawnFailed(let executable, let code):
      "cannot start \(executable): \(PosixError(call: "posix_spawn", code: code))"
    case .stillRunning(let executable, let waited, let output):
      "\(executable) still runs after \(waited); its output ends in:\n\(output)"
    case .binaryMissing(let searched):
      "no built tollgate binary; run swift build first or set TOLLGATE_BINARY. "
        + "Looked at: \(searched.joined(separator: ", "))"
    }
  }
}

package final class ChildProcess: Sendable {
  package let executable: String
  package let pid: Int32
  package let stdoutPath: String
  package let stderrPath: String

  private let state: NIOLockedValueBox<ExitStatus?>
  /// Keeps the output files while the process lives, when the caller named no directory.
  private let ownDirectory: TemporaryDirectory?

  /// Starts `executable` (an absolute path, or a name looked up in PATH).
  ///
  /// - Parameters:
  ///   - environment: nil inherits; otherwise it is the whole environment.
  ///   - stdout: where standard output is appended; nil makes a private file.
  ///   - stderr: the same for standard error.
  package init(
    _ executable: String, _ arguments: [String] = [], environment: [String: String]? = nil,
    stdout: String? = nil, stderr: String? = nil
  ) throws {
    let directory = stdout == nil || stderr == nil ? try TemporaryDirectory("tg-out") : nil
    let outPath = stdout ?? directory?.file("stdout") ?? "/dev/null"
    let errPath = stderr ?? directory?.file("stderr") ?? "/dev/null"
    let variables = environment ?? ProcessInfo.processInfo.environment
    pid = try Spawn.start(
      executable, [executable] + arguments, variables.map { "\($0.key)=\($0.value)" },
      stdout: outPath, stderr: errPath)
    self.executable = executable
    stdoutPath = outPath
    stderrPath = errPath
    ownDirectory = directory
    state = NIOLockedValueBox(nil)
  }

  deinit { kill() }

  /// How it ended; nil while it runs.
  package var status: ExitStatus? { state.withLockedValue { refresh(&$0) } }

  package var isRunning: Bool { status == nil }

  /// Sends a signal; false where the process has already ended.
  @discardableResult
  package func signal(_ number: Int32) -> Bool {
    state.withLockedValue { status in
      guard refresh(&status) == nil else { return false }
      return Glibc.kill(pid, number) == 0
    }
  }

  /// Waits for the end; throws `stillRunning` at the deadline and leaves the process alone.
  @discardableResult
  package func wait(within limit: Duration = .seconds(30)) throws -> ExitStatus {
    let end = ContinuousClock.now.advanced(by: limit)
    while true {
      if let status { return status }
      if ContinuousClock.now >= end { throw stillRunning(limit) }
      Thread.sleep(forTimeInterval: 0.002)
    }
  }

  /// The same for async code.
  @discardableResult
  package func waitAsync(within limit: Duration = .seconds(30)) async throws -> ExitStatus {
    let end = ContinuousClock.now.advanced(by: limit)
    while true {
      if let status { return status }
      if ContinuousClock.now >= end { throw stillRunning(limit) }
      try await Task.sleep(for: .milliseconds(2))
    }
  }

  /// SIGTERM, then waits; SIGKILL where it does not end in time, which is thrown as an error.
  @discardableResult
  package func terminate(within limit: Duration = .seconds(30)) throws -> ExitStatus {
    signal(SIGTERM)
    do {
      return try wait(within: limit)
    } catch {
      kill()
      throw error
    }
  }

  /// SIGKILL, and reaps. Idempotent; this is also what `deinit` does.
  package func kill() {
    signal(SIGKILL)
    _ = try? wait(within: .seconds(10))
  }

  /// SIGSTOP, returning once the kernel reports every thread stopped.
  package func pause() throws {
    signal(SIGSTOP)
    try eventually(within: .seconds(5), "pid \(pid) stopped") { !isRunning || procState == "T" }
  }

  /// SIGCONT.
  package func resume() { signal(SIGCONT) }

  /// All it wrote to standard output so far.
  package var standardOutput: String { Self.text(stdoutPath) }
  /// All it wrote to standard error so far.
  package var standardError: String { Self.text(stderrPath) }

  /// Resident memory in bytes; nil once it has ended.
  package var residentBytes: Int? {
    guard isRunning else { return nil }
    let fields = Self.text("/proc/\(pid)/statm").split(separator: " ")
    guard fields.count > 1, let pages = Int(fields[1]) else { return nil }
    return pages * sysconf(Int32(_SC_PAGESIZE))
  }

  /// User and system CPU time used so far, in nanoseconds; nil once it has ended.
  package var cpuNanoseconds: Int64? {
    guard isRunning, let fields = statFields, fields.count > 12,
      let user = Int64(fields[11]), let system = Int64(fields[12])
    else { return nil }
    return (user + system) * (1_000_000_000 / Int64(sysconf(Int32(_SC_CLK_TCK))))
  }

  private var procState: Substring? { statFields?.first }

  /// The fields of /proc/PID/stat after the command name, which may itself hold spaces.
  private var statFields: [Substring]? {
    let text = Self.text("/proc/\(pid)/stat")
    guard let end = text.lastIndex(of: ")") else { return nil }
    return text[text.index(after: end)...].split(separator: " ")
  }

  private func refresh(_ status: inout ExitStatus?) -> ExitStatus? {
    if let status { return status }
    var raw: Int32 = 0
    var result: Int32
    repeat { result = unsafe waitpid(pid, &raw, WNOHANG) } while result < 0 && errno == EINTR
    if result == pid {
      let signal = raw & 0x7f
      status = signal == 0 ? .exited((raw >> 8) & 0xff) : .signaled(signal)
    } else if result < 0 {
      // Somebody else reaped it: it is gone, and its id must not be signalled any more.
      status = .exited(-1)
    }
    return status
  }

  private func stillRunning(_ limit: Duration) -> ChildProcessError {
    .stillRunning(
      executable: executable, waited: limit,
      output: String((standardOutput + standardError).suffix(2000)))
  }

  private static func text(_ path: String) -> String {
    guard let handle = FileHandle(forReadingAtPath: path) else { return "" }
    defer { try? handle.close() }
    return String(decoding: (try? handle.readToEnd()) ?? Data(), as: UTF8.self)
  }

  /// The built `tollgate`: TOLLGATE_BINARY, or beside the running test bundle, or in a folder
  /// above it. Works for any configuration and scratch path, because tests and product share one.
  package static func tollgateBinary() throws -> String {
    if let named = ProcessInfo.processInfo.environment["TOLLGATE_BINARY"] { return named }
    let manager = FileManager.default
    let starts = [
      (try? manager.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? "",
      CommandLine.arguments.first ?? "",
    ]
    var searched: [String] = []
    for start in starts where !start.isEmpty {
      var folder = URL(fileURLWithPath: start).deletingLastPathComponent().standardizedFileURL
      for _ in 0..<6 {
        let candidate = folder.appendingPathComponent("tollgate").path
        searched.append(candidate)
        var isFolder: ObjCBool = false
        if unsafe manager.fileExists(atPath: candidate, isDirectory: &isFolder),
          !isFolder.boolValue,
          manager.isExecutableFile(atPath: candidate)
        {
          return candidate
        }
        folder.deleteLastPathComponent()
      }
    }
    throw ChildProcessError.binaryMissing(searched: searched)
  }
}
