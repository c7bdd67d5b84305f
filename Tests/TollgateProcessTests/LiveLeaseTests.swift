// Leases in real processes: exact at the edge over several sidecars, through kills, stops, changes
// and a Redis that is away. The counts of callers, Redis and the ledger are one number.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Leases {
    /// TOLLGATE_LEASE_ROUNDS; 20 and 50 are the bars of a long run.
    static let rounds =
      ProcessInfo.processInfo.environment["TOLLGATE_LEASE_ROUNDS"].flatMap { Int($0) }

    static func catalog(_ limit: Int64, _ more: String = "") -> String {
      """
      levels: [account, member, run]
      features:
        edits: {metered: true, importance: volume, idempotency: sidecar, unit: edit}
      plans:
        plan:
          edits:
            - {id: edits.day, quota: \(limit), per: day\(more)}
            - {id: edits.member, quota: 1000000000, per: month, level: member}
            - {id: edits.run, quota: 1000000000, per: lifetime, level: run}
      """
    }

    private func options(_ limit: Int64, sidecars: Int, accounts: [String]) -> Stack.Options {
      Stack.Options(
        sidecars: sidecars, extra: ExactLimit.patient, catalog: Self.catalog(limit),
        accounts: Dictionary(uniqueKeysWithValues: accounts.map { ($0, "plan") }))
    }

    private func audit(
      _ stack: Stack, _ tally: LeaseTally, subjects: [String],
      location: SourceLocation = #_sourceLocation
    ) throws {
      var load = LoadTally()
      for (account, units) in tally.admitted { load.admitted["\(account) edits"] = units }
      load.violations = tally.violations
      try Audit.check(
        stack, load, subjects: subjects, touching: "edits", location: location)
    }

    /// TOLLGATE_LEASE_SIZE is sidecars, callers and units of the long run: 16 400 100000.
    @Test func sidecarsDrainOneLimitExactly() throws {
      var random = SeededRandom.fromEnvironment("sidecarsDrainOneLimitExactly")
      let size =
        (ProcessInfo.processInfo.environment["TOLLGATE_LEASE_SIZE"] ?? "4 32 20000")
        .split(separator: " ").compactMap { Int($0) }
      let limit = Int64(size[2])
      let rounds = Self.rounds ?? 2
      let accounts = (0..<rounds).map { "round-\($0)" }
      let stack = try Stack(options(limit, sidecars: size[0], accounts: accounts))
      var total = LeaseTally()
      for account in accounts {
        var load = LeaseDriver.Options(callers: size[1], subjects: ["\(account)/ann/7"])
        load.patience = .seconds(90)
        let driver = LeaseDriver(stack.endpoints, load, seed: &random)
        try eventually(within: .seconds(120), every: .milliseconds(20), "the limit is drained") {
          driver.soFar.admitted[account] ?? 0 >= limit
        }
        // Whoever goes on asking gets nothing more.
        let denied = driver.soFar.denied
        try eventually(within: .seconds(30), "everybody is denied") {
          driver.soFar.denied > denied + 2 * size[1]
        }
        let tally = try driver.finish()
        #expect(tally.admitted[account] == limit, "\(account)")
        #expect(tally.violations.isEmpty)
        print(
          "\(account): admitted \(tally.admitted[account] ?? 0) of \(limit), from leases "
            + "\(tally.sources[.lease] ?? 0) answers, from Redis \(tally.sources[.redis] ?? 0)")
        #expect(tally.sources[.lease] ?? 0 > 0)
        total.admitted.merge(tally.admitted) { $0 + $1 }
      }
      try audit(stack, total, subjects: accounts)
    }

    @Test func killedUnderLeasedLoadAJournalLosesNothing() throws {
      var random = SeededRandom.fromEnvironment("killedUnderLeasedLoad")
      var options = options(1_000_000_000, sidecars: 2, accounts: ["acme", "beta"])
      options.journals = true
      let stack = try Stack(options)
      var load = LeaseDriver.Options(
        callers: 8, subjects: ["acme/ann/7", "acme/bob/8", "beta/x/1"], amounts: 1...3)
      load.pause = .milliseconds(1)
      let driver = LeaseDriver(stack.endpoints, load, seed: &random)
      var leased = 0
      for kill in 0..<(Self.rounds ?? 8) {
        try eventually(within: .seconds(60), "leases answer before kill \(kill)") {
          driver.soFar.sources[.lease] ?? 0 > leased + 100
        }
        Thread.sleep(forTimeInterval: random.unit() * 0.1)
        try stack.restartSidecar(Int(random.next() % 2))
        leased = driver.soFar.sources[.lease] ?? 0
      }
      let tally = try driver.finish()
      #expect(tally.unresolved == 0)
      try audit(stack, tally, subjects: ["acme", "beta"])
    }

    @Test func aLoweredLimitBitesWithinASecond() throws {
      var random = SeededRandom.fromEnvironment("aLoweredLimitBites")
      let stack = try Stack(options(1_000_000_000, sidecars: 2, accounts: ["acme"]))
      let driver = LeaseDriver(
        stack.endpoints, LeaseDriver.Options(callers: 4), seed: &random)
      try eventually(within: .seconds(30), "leases answer") {
        driver.soFar.sources[.lease] ?? 0 > 2_000
      }
      try stack.command(["limit", "set", "acme", "edits.day", "--amount", "1", "--reason", "test"])
      let changed = ContinuousClock.now
      let before = driver.soFar.allowed
      try eventually(within: .seconds(10), every: .milliseconds(1), "it bites") {
        driver.soFar.denialsInRow > 20
      }
      let took = ContinuousClock.now - changed
      print("bit after \(took), let through meanwhile \(driver.soFar.allowed - before)")
      #expect(took < .seconds(1))
      try stack.command(["limit", "unset", "acme", "edits.day", "--reason", "test"])
      let denied = driver.soFar.allowed
      try eventually(within: .seconds(5), "a raise bites too") {
        driver.soFar.allowed > denied + 100
      }
      let tally = try driver.finish()
      try audit(stack, tally, subjects: ["acme"])
    }

    /// It is stopped past the end of its lease and what Redis frees of it others may take; what it
    /// let through is settled when it goes on, and none of it is beyond the limit.
    @Test func aSidecarStoppedPastItsLeaseTakesNothingOfOthers() throws {
      var random = SeededRandom.fromEnvironment("stoppedPastItsLease")
      let limit: Int64 = 40_000
      let rounds = Self.rounds ?? 1
      let accounts = (0..<rounds).map { "round-\($0)" }
      var options = options(limit, sidecars: 2, accounts: accounts)
      options.extra += "\nleases: {ttl_ms: 2000}"
      let stack = try Stack(options)
      var total = LeaseTally()
      for account in accounts {
        var load = LeaseDriver.Options(callers: 4, subjects: ["\(account)/ann/7"])
        load.pause = .milliseconds(1)
        let stopped = LeaseDriver([stack.endpoint(0)], load, seed: &random)
        try eventually(within: .seconds(30), "leases answer") {
          stopped.soFar.sources[.lease] ?? 0 > 500
        }
        try stack.sidecar(0)?.pause()
        load.pause = .zero
        load.callers = 8
        let other = LeaseDriver([stack.endpoint(1)], load, seed: &random)
        // The lease, the grace, and the round of the sweeper.
        Thread.sleep(forTimeInterval: 2 + 5 + 2.5)
        stack.sidecar(0)?.resume()
        try eventually(within: .seconds(60), "all of it is drained") {
          (stopped.soFar.admitted[account] ?? 0) + (other.soFar.admitted[account] ?? 0) >= limit
        }
        let tallies = [try stopped.finish(), try other.finish()]
        let sum = tallies.reduce(0) { $0 + ($1.admitted[account] ?? 0) }
        #expect(sum == limit, "\(account)")
        #expect(tallies.allSatisfy { $0.violations.isEmpty })
        total.admitted[account] = sum
      }
      try audit(stack, total, subjects: accounts)
    }

    /// Leases held go on answering for as long as they may; nothing is lost when Redis is back.
    @Test func aRedisThatGoesAndComesLosesNothing() throws {
      var random = SeededRandom.fromEnvironment("aRedisThatGoesAndComes")
      var options = options(1_000_000_000, sidecars: 2, accounts: ["acme", "beta"])
      options.extra = ""
      let stack = try Stack(options)
      var load = LeaseDriver.Options(callers: 6, subjects: ["acme/ann/7", "beta/x/1"])
      load.pause = .milliseconds(1)
      let driver = LeaseDriver(stack.endpoints, load, seed: &random)
      for _ in 0..<(Self.rounds ?? 2) {
        let leased = driver.soFar.sources[.lease] ?? 0
        try eventually(within: .seconds(60), "leases answer") {
          driver.soFar.sources[.lease] ?? 0 > leased + 500
        }
        try stack.redis.pause()
        let frozen = driver.soFar.sources[.lease] ?? 0
        Thread.sleep(forTimeInterval: 0.3)
        #expect(driver.soFar.sources[.lease] ?? 0 > frozen)
        stack.redis.resume()
      }
      try stack.redis.restart()
      let leased = driver.soFar.sources[.lease] ?? 0
      try eventually(within: .seconds(60), "leases answer again") {
        driver.soFar.sources[.lease] ?? 0 > leased + 500
      }
      let tally = try driver.finish()
      try audit(stack, tally, subjects: ["acme", "beta"])
    }
  }
}
