// The way in for `tollgate serve`: a configuration text and an environment become a running
// sidecar, with signals and logging set up. The command itself only parses flags.

import Dispatch
import Glibc
import Logging
import TollgateCore
import TollgateWire

package enum ServeEntry {
  /// Reads a YAML configuration; all problems at once.
  package static func configuration(
    yaml: String, environment: [String: String]
  ) throws -> ServerConfiguration {
    let document = try YAMLDocument(yaml: yaml).document
    return try ServerConfiguration.read(
      document, environment: environment, readFile: { Self.firstLine(of: $0) }
    ).get()
  }

  /// Serves until SIGTERM or SIGINT, drains, returns. Throws what must keep a sidecar from
  /// starting.
  /// - Parameter fastPath: what answers on the local loop of that number; made on its thread.
  package static func run(
    _ configuration: ServerConfiguration,
    fastPath: @escaping @Sendable (Int) -> (any FastPath)? = { _ in nil },
    ready: @escaping @Sendable () -> Void = {}
  ) async throws {
    let level = Logger.Level(rawValue: configuration.logLevel) ?? .info
    LoggingSystem.bootstrap { label in
      var handler = StreamLogHandler.standardError(label: label)
      handler.logLevel = level
      return handler
    }
    let logger = Logger(label: "tollgate")
    Allocator.configure(inBackground: false)
    // A peer that went away is an error of the write, not the end of the process.
    _ = signal(SIGPIPE, SIG_IGN)
    let (signals, continuation) = AsyncStream.makeStream(
      of: Int32.self, bufferingPolicy: .bufferingOldest(1))
    var sources: [any DispatchSourceSignal] = []
    for number in [SIGTERM, SIGINT] {
      _ = signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
      source.setEventHandler { continuation.yield(number) }
      source.resume()
      sources.append(source)
    }
    defer { for source in sources { source.cancel() } }
    let sidecar = try await Sidecar(
      configuration: configuration, logger: logger, fastPath: fastPath
    ) { sidecar in
      let service = AdminService(
        backend: LiveBackend(sidecar: sidecar), clock: { SystemClock.wallTime() })
      return { method, body, caller in
        guard let method = AdminMethod(rawValue: method) else {
          return .failure(AdminError(code: .notFound, message: "no admin method \(method)"))
        }
        let answer = await service.answer(method, body: body, caller: caller)
        if let status = answer.status {
          return .failure(AdminError(code: status, body: answer.body))
        }
        return .success(answer.body)
      }
    }
    try await sidecar.run(
      until: {
        for await _ in signals { break }
      }, ready: ready)
  }

  private static func firstLine(of path: String) -> String? {
    guard let file = unsafe fopen(path, "r") else { return nil }
    defer { unsafe fclose(file) }
    var bytes = [UInt8](repeating: 0, count: 4096)
    let count = unsafe fread(&bytes, 1, bytes.count, file)
    return bytes.prefix(count).split(separator: 0x0A).first.map {
      String(decoding: $0, as: UTF8.self)
    }
  }
}
