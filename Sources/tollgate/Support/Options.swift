// Options that several commands share.

public import ArgumentParser
import Foundation
public import TollgateCore
import TollgateServer
import TollgateWire

struct ConnectionOptions: ParsableArguments {
  @Option(help: ArgumentHelp("Unix socket of the sidecar.", valueName: "path"))
  var unix: String?

  @Option(help: ArgumentHelp("TCP address of the sidecar.", valueName: "host:port"))
  var tcp: String?

  @Option(
    help: ArgumentHelp(
      "Credential. Prefer --token-file: others can read a command line.", valueName: "token"))
  var token: String?

  @Option(help: ArgumentHelp("File that holds the credential.", valueName: "file"))
  var tokenFile: String?

  @Option(help: ArgumentHelp("How long to wait for one answer, e.g. 500ms, 5s.", valueName: "time"))
  var timeout: String = "10s"

  static let defaultSocket = "/run/tollgate/tollgate.sock"

  func validate() throws {
    if unix != nil && tcp != nil { throw ValidationError("--unix and --tcp exclude each other.") }
    if let unix, let trouble = SocketPath.trouble(unix) {
      throw ValidationError("--unix \(trouble).")
    }
    if token != nil && tokenFile != nil {
      throw ValidationError("--token and --token-file exclude each other.")
    }
    if let tcp, Self.split(tcp) == nil {
      throw ValidationError("--tcp \(tcp): give HOST:PORT, e.g. 127.0.0.1:7410.")
    }
    guard let time = Durations.milliseconds(timeout), time >= 1, time <= 600_000 else {
      throw ValidationError("--timeout \(timeout): give 1ms … 10m, e.g. 5s.")
    }
  }

  var timeoutMilliseconds: Int64 { Durations.milliseconds(timeout) ?? 10_000 }

  private static func split(_ text: String) -> (host: String, port: Int)? {
    guard let colon = text.lastIndex(of: ":"), let port = Int(text[text.index(after: colon)...]),
      (1...65535).contains(port)
    else { return nil }
    var host = String(text[..<colon])
    if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
    return host.isEmpty ? nil : (host, port)
  }

  func endpoint() throws(CommandFailure) -> Endpoint {
    let environment = ProcessInfo.processInfo.environment
    var credential = token ?? ""
    if let tokenFile {
      credential = try InputFile.text(tokenFile, bytesMax: 4096, option: "--token-file ")
        .trimmingCharacters(in: .whitespacesAndNewlines)
    } else if token == nil, let variable = environment["TOLLGATE_TOKEN"] {
      credential = variable
    }
    if let tcp = tcp ?? (unix == nil ? environment["TOLLGATE_TCP"] : nil) {
      guard let (host, port) = Self.split(tcp) else {
        throw .usage("TOLLGATE_TCP=\(tcp) is not HOST:PORT")
      }
      return Endpoint(address: .tcp(host: host, port: port), token: credential)
    }
    let path = unix ?? environment["TOLLGATE_UNIX"] ?? Self.defaultSocket
    if let trouble = SocketPath.trouble(path) { throw .usage("TOLLGATE_UNIX=\(trouble)") }
    return Endpoint(address: .unix(path), token: credential)
  }

  func open(_ role: Role = .admin) async throws(CommandFailure) -> ServerConnection {
    try await ServerConnection.open(
      endpoint(), role: role, timeoutMilliseconds: timeoutMilliseconds)
  }
}

struct OutputOptions: ParsableArguments {
  @Flag(help: "Print one JSON document instead of a table.")
  var json = false
}

/// What every change takes.
struct ChangeFlags: ParsableArguments {
  @Option(help: "Why; kept in the audit log.")
  var reason: String = ""

  @Option(help: "Who asks; $USER where absent.")
  var actor: String?

  @Flag(help: "Say what would happen; change nothing.")
  var dryRun = false

  @Option(
    help: ArgumentHelp(
      "Operation id, 32 hex digits: repeated with the same id, a change happens once.",
      valueName: "hex"))
  var id: OperationID?

  @Option(help: "How far the change must have got: redis or ledger.")
  var wait: Durability = .redis

  /// The id is fixed here, before the first send, and printed where the outcome stays unknown.
  func options(
    waitMilliseconds: Int64, reasonRequired: Bool = false
  ) throws(CommandFailure) -> ChangeOptions {
    if reasonRequired && reason.isEmpty {
      throw .usage("--reason is required", fix: "say why with --reason TEXT; it is audited")
    }
    var generator = SystemRandomNumberGenerator()
    return ChangeOptions(
      operation: id ?? OperationID(time: .now, using: &generator), actor: Self.name(actor),
      reason: reason, dryRun: dryRun, wait: wait,
      waitMilliseconds: max(0, min(waitMilliseconds - 500, ChangeOptions.waitMillisecondsMax)))
  }
}

extension ChangeFlags {
  /// Who asks, where --actor does not say.
  static func name(_ actor: String?) -> String {
    actor ?? ProcessInfo.processInfo.environment["USER"] ?? "uid \(getuid())"
  }
}

extension OperationID: ExpressibleByArgument {
  public init?(argument: String) { self.init(hex: argument) }
}

extension Subject: ExpressibleByArgument {
  public init?(argument: String) {
    guard let subject = try? Subject(argument) else { return nil }
    self = subject
  }
}

extension Name: ExpressibleByArgument {
  public init?(argument: String) {
    guard let name = try? Name(argument) else { return nil }
    self = name
  }
}

extension Enforcement: ExpressibleByArgument {}

extension Grant.Kind: ExpressibleByArgument {}

extension Durability: ExpressibleByArgument {}

extension WallTime {
  static var now: WallTime {
    var time = timespec()
    unsafe clock_gettime(CLOCK_REALTIME, &time)
    return WallTime(milliseconds: Int64(time.tv_sec) * 1000 + Int64(time.tv_nsec) / 1_000_000)
  }
}

enum SocketPath {
  /// Of `sun_path`, without the zero at its end.
  static let bytesMax = 107

  /// Why this cannot be the path of a Unix socket; nil: it can.
  static func trouble(_ path: String) -> String? {
    if path.isEmpty { return "is empty: give the path of the sidecar's socket" }
    guard path.utf8.count > bytesMax else { return nil }
    return "\(path): the path of a Unix socket has at most \(bytesMax) bytes, and this one "
      + "has \(path.utf8.count); use a shorter path, or a symbolic link to its directory"
  }
}

enum InputFile {
  /// Why a file cannot be read, in words.
  static func trouble(_ error: any Error) -> String {
    switch (error as? CocoaError)?.code {
    case .fileReadNoSuchFile?, .fileNoSuchFile?: "there is no such file"
    case .fileReadNoPermission?: "this user may not read it"
    default:
      // What lies below it is the system's own word.
      ((error as NSError).userInfo[NSUnderlyingErrorKey] as? any Error)
        .map { $0.localizedDescription } ?? error.localizedDescription
    }
  }

  static func text(
    _ path: String, bytesMax: Int, option: String = ""
  ) throws(CommandFailure) -> String {
    let bytes: [UInt8]
    do {
      bytes =
        path == "-"
        ? [UInt8](FileHandle.standardInput.readDataToEndOfFile())
        : [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    } catch {
      throw .usage("\(option)\(path) cannot be read: \(trouble(error))")
    }
    guard bytes.count <= bytesMax else {
      throw .usage("\(option)\(path) has \(bytes.count) bytes; at most \(bytesMax) are read")
    }
    guard let text = String(validating: bytes, as: UTF8.self) else {
      throw .usage("\(path) is not UTF-8 text")
    }
    return text
  }
}
