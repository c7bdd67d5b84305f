// A journal of leases is its deployment's as long as it may hold something, and anybody's after a
// stop that left nothing.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests.Leases {
  /// What a sidecar of one bucket more says as it ends.
  private static func refusal(_ stack: Stack) throws -> String {
    let file = stack.directory.file("t0.log")
    let before = (try? Data(contentsOf: URL(fileURLWithPath: file)).count) ?? 0
    try stack.writeConfiguration(0, buckets: stack.options.buckets + 1)
    let status = try stack.spawnSidecar(0).wait(within: .seconds(20))
    #expect(status != .exited(0) && status != .signaled(SIGKILL) && status != .signaled(SIGILL))
    try stack.writeConfiguration(0)
    let log = try Data(contentsOf: URL(fileURLWithPath: file))
    return String(decoding: log.count > before ? log.dropFirst(before) : log, as: UTF8.self)
  }

  @Test func aJournalThatMayHoldSomethingIsItsDeploymentsAlone() throws {
    var random = SeededRandom.fromEnvironment("aJournalThatMayHoldSomething")
    var options = Self.options(1_000_000, sidecars: 1, accounts: ["acme"])
    options.journals = true
    let stack = try Stack(options)
    let driver = LeaseDriver(
      stack.endpoints, LeaseDriver.Options(callers: 2, subjects: ["acme/ann/7"]), seed: &random)
    try eventually(within: .seconds(20), "leases answer") {
      driver.soFar.sources[.lease] ?? 0 > 200
    }
    driver.stop()
    stack.sidecar(0)?.kill()
    let buckets = stack.options.buckets
    let refused = try Self.refusal(stack)
    #expect(refused.contains("may hold what another deployment's sidecar let through"))
    #expect(
      refused.contains("configured \(buckets + 1)") && refused.contains("recorded \(buckets)"))
    // The right one finds all of it, also when it is stopped at once.
    try stack.startSidecar(0)
    try stack.waitReady(0)
    #expect(try stack.sidecar(0)?.terminate() == .exited(0))
    // Redis does not take it for its own, which is another matter.
    let other = try Self.refusal(stack)
    #expect(!other.contains("may hold what another") && other.contains("recorded in Redis"))
    try stack.startSidecar(0)
    try stack.waitReady(0)
    try Self.audit(stack, try driver.finish(), subjects: ["acme"])
  }
}
