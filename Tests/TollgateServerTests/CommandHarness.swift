// Runs the built `tollgate` binary against a mini sidecar.

import Foundation
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateServer

struct CommandRun {
  var code: Int32
  var out: String
  var error: String

  var lines: [String] { out.split(separator: "\n").map(String.init) }
}

struct CommandHarness {
  let directory: TemporaryDirectory
  let fixture: AdminFixture
  let sidecar: MiniSidecar

  init(
    decision: @escaping @Sendable (TollgateWire.OperationRecord) -> DecisionRecord = { _ in
      .error(.unavailable, message: "no decision prepared")
    },
    features: ProtocolFeatures = .reservations,
    hold: @escaping @Sendable (RequestMode, AskedRecord) -> DecisionRecord = { _, _ in
      .error(.unavailable, message: "no decision prepared")
    }
  ) async throws {
    directory = try TemporaryDirectory("cli")
    fixture = try AdminFixture()
    sidecar = try await MiniSidecar(
      fixture, directory: directory, decision: decision, features: features,
      hold: hold)
  }

  func run(_ arguments: String..., environment: [String: String] = [:]) async throws -> CommandRun {
    try await CommandHarness.run(
      arguments, directory, environment.merging(["TOLLGATE_UNIX": sidecar.path]) { a, _ in a })
  }

  static func run(
    _ arguments: [String], _ directory: TemporaryDirectory, _ environment: [String: String] = [:]
  ) async throws -> CommandRun {
    var all = ["PATH": "/usr/bin:/bin", "USER": "ann"]
    for (key, value) in environment { all[key] = value }
    let process = try ChildProcess(
      ChildProcess.tollgateBinary(), arguments, environment: all)
    let status = try await process.waitAsync()
    guard case .exited(let code) = status else {
      throw AdminFailure(.internalError, "tollgate \(arguments) ended by \(status)")
    }
    return CommandRun(code: code, out: process.standardOutput, error: process.standardError)
  }
}
