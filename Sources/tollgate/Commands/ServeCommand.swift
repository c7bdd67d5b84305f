// `tollgate serve`: one sidecar, in the foreground, until SIGTERM.

import ArgumentParser
import Foundation
import TollgateCore
import TollgateServer

struct ServeCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "serve",
    abstract: "Run a sidecar in the foreground until SIGTERM.",
    discussion: """
      Secrets may come from the environment: TOLLGATE_CHECK_TOKEN, TOLLGATE_ADMIN_TOKEN, \
      TOLLGATE_REDIS_PASSWORD, TOLLGATE_LEDGER_TOKEN; TOLLGATE_SIDECAR_ID names the sidecar.
      Exit codes: 0 drained and stopped, 2 bad configuration (every problem is listed), \
      4 refused to start (another deployment, a taken socket).
      """)

  @Option(name: .long, help: "The configuration file (deploy/tollgate.example.yaml explains it).")
  var config: String

  @Flag(name: .long, help: "Read the configuration, say what is wrong with it, and end.")
  var checkConfig = false

  mutating func run() async throws {
    guard let data = FileManager.default.contents(atPath: config) else {
      try fail("\(config): cannot be read", code: 2)
    }
    let configuration: ServerConfiguration
    do {
      configuration = try ServeEntry.configuration(
        yaml: String(decoding: data, as: UTF8.self),
        environment: ProcessInfo.processInfo.environment)
    } catch let error as InvalidDocument {
      for problem in error.problems { write("\(config): \(problem)") }
      throw ExitCode(2)
    }
    if checkConfig {
      print("\(config): ok")
      return
    }
    do {
      try await ServeEntry.run(configuration)
    } catch {
      try fail("refused to start: \(error)", code: 4)
    }
  }

  private func fail(_ text: String, code: Int32) throws -> Never {
    write(text)
    throw ExitCode(code)
  }

  private func write(_ text: String) {
    FileHandle.standardError.write(Data("tollgate serve: \(text)\n".utf8))
  }
}
