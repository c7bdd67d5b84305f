// Rates and sliding windows through leases, over several sidecars: tokens are drawn before they are
// asked for, and still no more are given than the rate has.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests.Leases {
  private static let rate: Int64 = 200
  private static let burst: Int64 = 100
  private static let window: Int64 = 5_000
  private static let leaseSeconds = 2.0

  private static func windows(_ account: String, _ plan: String) -> Stack.Options {
    Stack.Options(
      sidecars: 3,
      extra: LiveTests.ExactLimit.patient + "\nleases: {ttl_ms: \(Int(leaseSeconds * 1000))}",
      catalog: """
        levels: [account, member, run]
        features:
          edits: {metered: true, importance: volume, idempotency: sidecar, unit: edit}
        plans:
          rated:
            edits: [{id: edits.second, rate: \(rate), per: 1s, burst: \(burst)}]
          sliding:
            edits: [{id: edits.day, sliding: \(window), per: day}]
        """,
      accounts: [account: plan])
  }

  /// For what has a rate.
  private static func ask(
    _ stack: Stack, callers: Int, pause: Duration, _ random: inout SeededRandom
  ) -> LeaseDriver {
    var load = LeaseDriver.Options(callers: callers, subjects: ["acme/ann/7"])
    load.denial = .rateLimited
    load.pause = pause
    return LeaseDriver(stack.endpoints, load, seed: &random)
  }

  /// Three sidecars, each asked for all of it: burst + rate × (time + age of a lease) is the bound
  /// that DESIGN states, and three rates of their own would be far beyond it. Nor is it wasted: while
  /// somebody asks, what the rate gives is admitted.
  @Test func aRateIsSharedBySidecarsThatLeaseOfIt() throws {
    var random = SeededRandom.fromEnvironment("aRateIsShared")
    let stack = try Stack(Self.windows("acme", "rated"))
    let started = ContinuousClock.now
    let driver = Self.ask(stack, callers: 9, pause: .milliseconds(1), &random)
    try eventually(within: .seconds(60), "the rate was given for some seconds") {
      driver.soFar.admitted["acme"] ?? 0 >= 1_700
    }
    let tally = try driver.finish()
    let took = ContinuousClock.now - started
    let seconds = Double(took.components.seconds) + Double(took.components.attoseconds) / 1e18
    let admitted = Double(tally.admitted["acme"] ?? 0)
    let given = Double(Self.burst) + Double(Self.rate) * seconds
    print("a rate: \(Int(admitted)) admitted of \(Int(given)), \(tally.sources)")
    #expect(admitted <= given + Double(Self.rate) * Self.leaseSeconds)
    #expect(admitted >= given * 0.8)
    // Denials, too, are known for up to 10 ms, or until the next token.
    #expect(tally.deniedFromLeases > 1_000)
    try Self.audit(stack, tally, subjects: ["acme"])
  }

  /// Half of the rate is asked for, in turn of three sidecars: nobody is denied what is there, though
  /// each has drawn some of it beforehand.
  @Test func aRateWithRoomIsAnsweredFromLeases() throws {
    var random = SeededRandom.fromEnvironment("aRateWithRoom")
    let stack = try Stack(Self.windows("acme", "rated"))
    let driver = Self.ask(stack, callers: 6, pause: .milliseconds(60), &random)
    try eventually(within: .seconds(60), "it was asked for some seconds") {
      driver.soFar.allowed >= 600
    }
    let tally = try driver.finish()
    print("half a rate: \(tally.allowed) allowed, \(tally.denied) denied, \(tally.sources)")
    #expect(tally.denied == 0)
    #expect(tally.sources[.lease] ?? 0 > tally.sources[.redis] ?? 0)
    try Self.audit(stack, tally, subjects: ["acme"])
  }

  /// A window that does not slide on while it is drained is drained as a quota is: exactly.
  @Test func aSlidingWindowIsDrainedExactly() throws {
    var random = SeededRandom.fromEnvironment("aSlidingWindowIsDrained")
    let stack = try Stack(Self.windows("beta", "sliding"))
    let load = LeaseDriver.Options(callers: 9, subjects: ["beta/bob/8"])
    let driver = LeaseDriver(stack.endpoints, load, seed: &random)
    try eventually(within: .seconds(60), every: .milliseconds(20), "the window is drained") {
      driver.soFar.admitted["beta"] ?? 0 >= Self.window
    }
    let denied = driver.soFar.denied
    try eventually(within: .seconds(30), "everybody is denied") {
      driver.soFar.denied > denied + 30
    }
    let tally = try driver.finish()
    #expect(tally.admitted["beta"] == Self.window)
    #expect(tally.sources[.lease] ?? 0 > 100)
    try Self.audit(stack, tally, subjects: ["beta"])
  }

  /// Nobody is let through who would be learnt by it, and yet it is not Redis that denies it.
  @Test func whatIsUsedUpIsKnownAgainAfterAChange() throws {
    var random = SeededRandom.fromEnvironment("whatIsUsedUpIsKnown")
    let stack = try Stack(Self.options(500, sidecars: 1, accounts: ["acme"]))
    var load = LeaseDriver.Options(callers: 2, subjects: ["acme/ann/7"])
    load.pause = .milliseconds(2)
    let driver = LeaseDriver(stack.endpoints, load, seed: &random)
    try eventually(within: .seconds(30), "it is used up, and known to be") {
      driver.soFar.deniedFromLeases > 100
    }
    try stack.command([
      "limit", "set", "acme", "edits.member", "--amount", "999999999", "--reason", "test",
    ])
    // Of the second after a change the memory of before says nothing.
    let before = driver.soFar.deniedFromLeases
    try eventually(within: .seconds(30), "it is known again") {
      driver.soFar.deniedFromLeases > before + 500
    }
    let tally = try driver.finish()
    #expect(tally.admitted["acme"] == 500)
    try Self.audit(stack, tally, subjects: ["acme"])
  }
}
