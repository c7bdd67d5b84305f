// The reference configuration in deploy/ is one the sidecar reads, and names every key it knows.

import Foundation
import Testing
import TollgateServer
import TollgateTesting

@Suite(.blocking) struct ExampleConfigurationTests {
  static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()
  /// The environment wins over the secret files the example names.
  static let secrets = [
    "TOLLGATE_CHECK_TOKEN": "c", "TOLLGATE_ADMIN_TOKEN": "a", "TOLLGATE_REDIS_PASSWORD": "r",
    "TOLLGATE_LEDGER_TOKEN": "l",
  ]

  static func example() throws -> String {
    try String(
      contentsOf: root.appendingPathComponent("deploy/tollgate.example.yaml"), encoding: .utf8)
  }

  @Test func theExampleIsAccepted() throws {
    _ = try ServeEntry.configuration(yaml: try Self.example(), environment: Self.secrets)
  }

  @Test func anUnknownKeyInItIsRefused() throws {
    let wrong = try Self.example() + "\nno_such_key: 1\n"
    #expect(throws: (any Error).self) {
      try ServeEntry.configuration(yaml: wrong, environment: Self.secrets)
    }
  }
}
