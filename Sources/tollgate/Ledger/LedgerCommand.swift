// `tollgate ledger`: runs the reference ledger, or reads its books. The service and each report is
// a subcommand of its own; running is the default, so `tollgate ledger --database …` serves.

import ArgumentParser
import Dispatch
import Foundation
import Logging
import TollgateCore
import TollgateLedger
import TollgateServer

struct LedgerCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ledger",
    abstract: "Run the reference ledger, or read its books.",
    subcommands: [
      LedgerRun.self, LedgerExport.self, LedgerStatement.self, LedgerBalances.self,
      LedgerVerify.self, LedgerReplay.self, LedgerLosses.self, LedgerClose.self,
      LedgerEvents.self,
    ],
    defaultSubcommand: LedgerRun.self)
}

struct LedgerRun: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run",
    abstract: "Serve the ledger until SIGTERM or SIGINT.",
    discussion: """
      SIGTERM refuses what is new, writes and answers what was accepted, and exits 0. The first \
      sidecar to link decides whose books these are; others are refused from then on.
      """)

  @Option(
    help: ArgumentHelp("The books: an SQLite file, made where it is missing.", valueName: "path"))
  var database: String

  @Option(
    help: ArgumentHelp("TCP address to listen on; port 0 takes a free one.", valueName: "host:port")
  )
  var listen: String?

  @Option(help: ArgumentHelp("Unix socket to listen on.", valueName: "path"))
  var unix: String?

  @Option(
    help: ArgumentHelp("Credential of the sidecars. Prefer --token-file.", valueName: "token"))
  var token: String?

  @Option(
    help: ArgumentHelp(
      "File with the credential of the sidecars (or TOLLGATE_LEDGER_TOKEN).", valueName: "file"))
  var tokenFile: String?

  @Option(help: ArgumentHelp("How long stopping may take, in milliseconds.", valueName: "ms"))
  var grace: Int = 10_000

  @Option(
    help: ArgumentHelp(
      "How often sums of past short periods are dropped, in seconds; 0: never.",
      valueName: "seconds"))
  var pruneInterval: Int = Int(LedgerConfiguration.pruneDefaultMilliseconds / 1000)

  @Option(
    help: ArgumentHelp(
      "Close each month so many days after its end; without it, months are closed by hand.",
      valueName: "days"))
  var closeAfter: Int?

  @Flag(help: "Say that it is ready as one line of JSON.")
  var json = false

  func validate() throws {
    guard listen != nil || unix != nil else {
      throw ValidationError("Give --listen HOST:PORT, --unix PATH, or both.")
    }
    if let listen, Self.address(listen) == nil {
      throw ValidationError("--listen \(listen): give HOST:PORT, e.g. 127.0.0.1:7420.")
    }
    if token != nil && tokenFile != nil {
      throw ValidationError("--token and --token-file exclude each other.")
    }
    guard (0...600_000).contains(grace) else {
      throw ValidationError("--grace \(grace): give 0 … 600000 milliseconds.")
    }
    if let closeAfter, !(0...3650).contains(closeAfter) {
      throw ValidationError("--close-after \(closeAfter): give 0 … 3650 days.")
    }
    guard (0...86_400).contains(pruneInterval) else {
      throw ValidationError("--prune-interval \(pruneInterval): give 0 … 86400 seconds.")
    }
  }

  static func address(_ text: String) -> (host: String, port: Int)? {
    guard let colon = text.lastIndex(of: ":"), let port = Int(text[text.index(after: colon)...]),
      (0...65535).contains(port)
    else { return nil }
    var host = String(text[..<colon])
    if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
    return host.isEmpty ? nil : (host, port)
  }

  static func isLoopback(_ host: String) -> Bool {
    host.hasPrefix("127.") || host == "::1" || host == "localhost"
  }

  func run() async throws {
    LoggingSystem.bootstrap(StreamLogHandler.standardError)
    Allocator.configure(inBackground: true)
    let token = try credential()
    if let address = listen.flatMap(Self.address), token.isEmpty, !Self.isLoopback(address.host) {
      throw CommandFailure.usage(
        "--listen \(address.host): others can reach it, and without a credential they could read "
          + "and write the books", fix: "give --token-file, or listen on 127.0.0.1")
    }
    let configuration = LedgerConfiguration(
      database: database, listen: listen.flatMap(Self.address), unix: unix,
      token: token, graceMilliseconds: grace,
      pruneMilliseconds: Int64(pruneInterval) * 1000, closeAfterDays: closeAfter)
    let stop = LedgerStop()
    let signals = [SIGTERM, SIGINT].map { number in
      // The default action would end the process before the books are in order.
      _ = signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
      source.setEventHandler { stop.stop() }
      source.resume()
      return source
    }
    defer { for source in signals { source.cancel() } }
    try await LedgerCommandFailure.reported {
      try await runLedger(
        configuration: configuration, logger: Logger(label: "tollgate.ledger"), stop: stop
      ) { [json] endpoints in
        // Not through the buffer of `print`: whoever started it is waiting for this line.
        let line = Data((Self.readyLine(endpoints, json: json) + "\n").utf8)
        try? FileHandle.standardOutput.write(contentsOf: line)
      }
    }
  }

  private static func readyLine(_ endpoints: LedgerEndpoints, json: Bool) -> String {
    guard !json else {
      var fields = ["\"event\":\"ready\""]
      if let port = endpoints.port { fields.append("\"port\":\(port)") }
      if let unix = endpoints.unix {
        fields.append("\"unix\":\(LedgerCommandFailure.quoted(unix))")
      }
      return "{" + fields.joined(separator: ",") + "}"
    }
    let places = [endpoints.port.map { "port \($0)" }, endpoints.unix].compactMap { $0 }
    return "ledger ready on \(places.joined(separator: " and "))"
  }

  private func credential() throws(CommandFailure) -> String {
    if let token { return token }
    if let tokenFile {
      return try InputFile.text(tokenFile, bytesMax: 4096, option: "--token-file ")
        .trimmingCharacters(in: .whitespacesAndNewlines)
    }
    return ProcessInfo.processInfo.environment["TOLLGATE_LEDGER_TOKEN"] ?? ""
  }
}

/// How a ledger command fails: as every other command does, with the documented exit code.
enum LedgerCommandFailure {
  static func reported<Value>(_ body: () async throws -> Value) async throws -> Value {
    do { return try await body() } catch let error as LedgerError {
      throw CommandFailure(AdminFailure(code(error), "\(error)"))
    } catch {
      if error is ExitCode || error is CommandFailure || error is ValidationError { throw error }
      throw CommandFailure(.unavailable, "\(error)")
    }
  }

  /// 4 where the file or its owner is the wrong one, 3 where it could not be read now.
  private static func code(_ error: LedgerError) -> ErrorCode {
    switch error {
    case .deploymentMismatch: .deploymentMismatch
    case .noDeployment: .notFound
    case .unusable: .conflict
    case .overloaded: .overloaded
    case .draining: .draining
    case .storage: .unavailable
    }
  }

  static func quoted(_ text: String) -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = .withoutEscapingSlashes
    return (try? encoder.encode(text)).map { String(decoding: $0, as: UTF8.self) } ?? "\"\""
  }
}
