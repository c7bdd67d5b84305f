// Leases in real processes: exact at the edge over several sidecars, through kills, stops, changes
// and a Redis that is away. The counts of callers, Redis and the ledger are one number.

import Foundation
import Testing
import TollgateCore
import TollgateRedis
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

    /// Two features that leases answer, `edits` and `notes`, with a limit each.
    static func catalog(edits: String, notes: String) -> String {
      """
      levels: [account, member, run]
      features:
        edits: {metered: true, importance: volume, idempotency: sidecar, unit: edit}
        notes: {metered: true, importance: volume, idempotency: sidecar, unit: note}
      plans:
        plan:
          edits: [\(edits)]
          notes: [\(notes)]
      """
    }

    /// Who holds something of an account, as its header says.
    static func lessees(_ stack: Stack, _ account: String) throws -> Set<LesseeID> {
      let keys = KeySpace(
        deployment: try Name("live"), map: BucketMap(buckets: stack.options.buckets))
      let subject = try Subject(account)
      let fields = try stack.redis.connect().command(
        "HKEYS", keys.subject(keys.bucket(of: subject), subject))
      guard case .array(let names) = fields else { return [] }
      return Set(
        names.compactMap {
          guard case .bulk(let name) = $0, name.count == 9, name[0] == UInt8(ascii: "^") else {
            return nil
          }
          return LesseeID(bytes: name.dropFirst())
        })
    }

    static func options(_ limit: Int64, sidecars: Int, accounts: [String]) -> Stack.Options {
      Stack.Options(
        sidecars: sidecars, extra: ExactLimit.patient, catalog: Self.catalog(limit),
        accounts: Dictionary(uniqueKeysWithValues: accounts.map { ($0, "plan") }))
    }

    static func audit(
      _ stack: Stack, _ tally: LeaseTally, subjects: [String],
      location: SourceLocation = #_sourceLocation
    ) throws {
      var load = LoadTally()
      for (account, units) in tally.admitted { load.admitted["\(account) edits"] = units }
      load.violations = tally.violations
      load.unresolved = tally.open
      // What is on its way to Redis is in neither of the books: they agree without it.
      try eventually(within: .seconds(20), every: .milliseconds(20), "leases are settled") {
        (0..<stack.options.sidecars).allSatisfy { index in
          ["unsettled_operations", "credit_units"].allSatisfy {
            stack.metric("tollgate_lease_\($0)", sidecar: index) ?? 0 == 0
          }
        }
      }
      try Audit.check(
        stack, load, subjects: subjects, touching: "edits", location: location)
    }

    /// For a failure to quote: what callers were told, and how each sidecar is.
    private static func state(_ stack: Stack, _ tally: LeaseTally) -> String {
      let names = ["accounts", "shapes", "unsettled_units", "exchanges_total", "recalls_total"]
      var text =
        "admitted \(tally.admitted), denied \(tally.denied), \(tally.denialsInRow) in a row, "
        + "retries \(tally.retries), \(tally.sources), \(tally.violations.prefix(3))\n"
      for index in 0..<stack.options.sidecars {
        let ready = stack.http("/readyz", sidecar: index)?.split(separator: "\n").last ?? "silent"
        let figures = names.map {
          "\($0) \(stack.metric("tollgate_lease_\($0)", sidecar: index) ?? -1)"
        }
        text += "\(index): \(ready) \(figures)\n"
      }
      return text + stack.logs
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
      let stack = try Stack(Self.options(limit, sidecars: size[0], accounts: accounts))
      var total = LeaseTally()
      for account in accounts {
        var load = LeaseDriver.Options(callers: size[1], subjects: ["\(account)/ann/7"])
        load.patience = .seconds(90)
        let driver = LeaseDriver(stack.endpoints, load, seed: &random)
        do {
          try eventually(within: .seconds(120), every: .milliseconds(20), "the limit is drained") {
            driver.soFar.admitted[account] ?? 0 >= limit
          }
        } catch {
          throw StackFailure(description: "\(error)\n\(Self.state(stack, driver.soFar))")
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
      try Self.audit(stack, total, subjects: accounts)
    }

    /// One of two sidecars after another, at any moment in which leases answer.
    static func kill(
      _ times: Int, _ stack: Stack, under driver: LeaseDriver, _ random: inout SeededRandom
    ) throws {
      var leased = 0
      for kill in 0..<times {
        try eventually(within: .seconds(60), "leases answer before kill \(kill)") {
          driver.soFar.sources[.lease] ?? 0 > leased + 100
        }
        Thread.sleep(forTimeInterval: random.unit() * 0.1)
        try stack.restartSidecar(Int(random.next() % 2))
        leased = driver.soFar.sources[.lease] ?? 0
      }
    }

    @Test func killedUnderLeasedLoadAJournalLosesNothing() throws {
      var random = SeededRandom.fromEnvironment("killedUnderLeasedLoad")
      var options = Self.options(1_000_000_000, sidecars: 2, accounts: ["acme", "beta"])
      options.journals = true
      let stack = try Stack(options)
      var load = LeaseDriver.Options(
        callers: 8, subjects: ["acme/ann/7", "acme/bob/8", "beta/x/1"], amounts: 1...3)
      load.pause = .milliseconds(1)
      var total = LeaseTally()
      var kills = 0
      // The books are compared after each; now and then its successor is killed before, or its
      // neighbour.
      while kills < Self.rounds ?? 8 {
        let driver = LeaseDriver(stack.endpoints, load, seed: &random)
        let times = random.chance(0.25) ? 2 : 1
        try Self.kill(times, stack, under: driver, &random)
        kills += times
        let tally = try driver.finish()
        #expect(tally.unresolved == 0)
        total.admitted.merge(tally.admitted) { $0 + $1 }
        total.violations += tally.violations
        try Self.audit(stack, total, subjects: ["acme", "beta"])
      }
      print("\(kills) kills, \(total.admitted) admitted")
    }

    /// What a killed sidecar held is free as soon as its successor has settled what it let
    /// through, also where successors are killed before they come to it: nobody waits for the horizon.
    @Test func nothingIsHeldForAKilledSidecarWhoseJournalIsSettled() throws {
      var random = SeededRandom.fromEnvironment("nothingIsHeldForAKilled")
      let limit: Int64 = 100_000
      let accounts = ["acme", "beta", "idle"]
      var options = Self.options(limit, sidecars: 1, accounts: accounts)
      options.journals = true
      let stack = try Stack(options)
      var load = LeaseDriver.Options(callers: 4, subjects: ["acme/ann/7", "beta/bob/8"])
      load.pause = .milliseconds(1)
      let driver = LeaseDriver(stack.endpoints, load, seed: &random)
      load.subjects = ["idle/ann/7"]
      let idle = LeaseDriver(stack.endpoints, load, seed: &random)
      try eventually(within: .seconds(60), every: .milliseconds(2), "leases are held of all") {
        try accounts.allSatisfy { try !Self.lessees(stack, $0).isEmpty }
          && driver.soFar.sources[.lease] ?? 0 > 500 && idle.soFar.sources[.lease] ?? 0 > 500
      }
      // Of what is idle nothing is to be settled any more, and nothing is given back yet.
      var tally = try idle.finish()
      Thread.sleep(forTimeInterval: 0.1)
      driver.stop()
      stack.sidecar(0)?.kill()
      #expect(try Self.lessees(stack, "idle").count == 1)
      let gone = try Set(accounts.flatMap { try Self.lessees(stack, $0) })
      #expect(gone.count == 1)
      // Two that hardly begin, and one that may.
      for _ in 0..<2 {
        try stack.startSidecar(0)
        Thread.sleep(forTimeInterval: random.unit() * 0.3)
        stack.sidecar(0)?.kill()
      }
      try stack.startSidecar(0)
      let started = ContinuousClock.now
      try eventually(within: .seconds(30), every: .milliseconds(10), "nothing is held for it") {
        try accounts.allSatisfy { try gone.isDisjoint(with: Self.lessees(stack, $0)) }
      }
      print("nothing is held after \(ContinuousClock.now - started)")
      tally.admitted.merge(try driver.finish().admitted) { $0 + $1 }
      try Self.audit(stack, tally, subjects: accounts)
    }

    /// Without a journal nobody comes back to settle: an operator sees who holds what and frees it.
    @Test func anOperatorFreesWhatALostSidecarHeld() throws {
      var random = SeededRandom.fromEnvironment("anOperatorFrees")
      var options = Self.options(1_000, sidecars: 2, accounts: ["acme"])
      options.extra += "\nleases: {ttl_ms: 2000}"
      let stack = try Stack(options)
      var load = LeaseDriver.Options(callers: 2, subjects: ["acme/ann/7"])
      load.pause = .milliseconds(2)
      load.patience = .milliseconds(200)
      let driver = LeaseDriver([stack.endpoint(0)], load, seed: &random)
      try eventually(within: .seconds(60), every: .milliseconds(2), "a lease is held") {
        driver.soFar.sources[.lease] ?? 0 > 50
      }
      let gone = try #require(try Self.lessees(stack, "acme").first)
      stack.sidecar(0)?.kill()
      driver.stop()
      let now = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      let id = OperationID(time: now, using: &random)
      let why = ["--reason", "the node is lost", "--id", id.hex]
      let early = try stack.cli(["lease", "release", "acme", gone.hex] + why, sidecar: 1)
      #expect(early.status == .exited(4), "it is live")
      try eventually(within: .seconds(60), every: .milliseconds(200), "it is in doubt") {
        let list = try stack.cli(["lease", "list", "acme", "--in-doubt"], sidecar: 1)
        return list.status == .exited(1) && list.output.contains(gone.hex)
      }
      let shown = try stack.cli(["explain", "acme/ann/7", "edits"], sidecar: 1)
      #expect(shown.output.contains("lease of \(gone.hex), in doubt until"))
      #expect(try stack.cli(["lease", "list"], sidecar: 1).output.contains("edits"))
      for _ in 0..<2 {
        try stack.command(["lease", "release", "acme", gone.hex] + why, sidecar: 1)
        #expect(try !Self.lessees(stack, "acme").contains(gone))
      }
      let log = try stack.command(["audit-log", "--json"], sidecar: 1)
      #expect(log.contains("lease.release") && log.contains("(lessee \(gone.hex))"))
      #expect(try stack.command(["status"], sidecar: 1).contains("leases      lessee "))
      _ = try driver.finish()
    }

    @Test func aLoweredLimitBitesWithinASecond() throws {
      var random = SeededRandom.fromEnvironment("aLoweredLimitBites")
      let stack = try Stack(Self.options(1_000_000_000, sidecars: 2, accounts: ["acme"]))
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
      try Self.audit(stack, tally, subjects: ["acme"])
    }

    /// An exchange that was refused as fenced is, on its next way, older than what Redis remembers:
    /// it was never done, and is counted once. What leases let through meanwhile is in no Redis.
    @Test func aFlushedRedisCountsLeasedUseOnce() throws {
      var random = SeededRandom.fromEnvironment("aFlushedRedisCountsLeasedUseOnce")
      let stack = try Stack(
        Self.options(1_000_000_000, sidecars: 2, accounts: ["acme", "beta", "gamma"]))
      var load = LeaseDriver.Options(
        callers: 8, subjects: ["acme/ann/7", "acme/bob/8", "beta/x/1", "gamma/y/2"],
        amounts: 1...3)
      load.pause = .milliseconds(1)
      // A record of Redis's goes with Redis.
      load.replayRate = 0
      let driver = LeaseDriver(stack.endpoints, load, seed: &random)
      for flush in 0..<(Self.rounds ?? 4) {
        let leased = driver.soFar.sources[.lease] ?? 0
        try eventually(within: .seconds(60), "leases answer before flush \(flush)") {
          driver.soFar.sources[.lease] ?? 0 > leased + 1_000
        }
        Thread.sleep(forTimeInterval: random.unit() * 0.1)
        try stack.redis.connect().command("FLUSHALL")
      }
      let leased = driver.soFar.sources[.lease] ?? 0
      try eventually(within: .seconds(60), "leases answer after the last") {
        driver.soFar.sources[.lease] ?? 0 > leased + 500
      }
      let tally = try driver.finish()
      try Self.audit(stack, tally, subjects: ["acme", "beta", "gamma"])
    }

    /// A batch that may have been done before Redis was lost is too old for it afterwards, and only
    /// the sidecar can tell the ledger of it. It is killed before it has.
    @Test func aKillBeforeLateUseIsPostedLosesNothing() throws {
      var random = SeededRandom.fromEnvironment("aKillBeforeLateUseIsPosted")
      let accounts = (0..<8).map { "a\($0)" }
      var options = Self.options(1_000_000_000, sidecars: 1, accounts: accounts)
      options.journals = true
      options.proxies = true
      let stack = try Stack(options)
      let proxy = try #require(stack.redisProxy)
      var load = LeaseDriver.Options(callers: 4, subjects: accounts.map { "\($0)/ann/7" })
      load.replayRate = 0
      var total = LeaseTally()
      var late = 0.0
      for round in 0..<(Self.rounds ?? 2) {
        let driver = LeaseDriver(stack.endpoints, load, seed: &random)
        try eventually(within: .seconds(60), "leases answer before round \(round)") {
          driver.soFar.sources[.lease] ?? 0 > 1_000
        }
        total.admitted.merge(try driver.finish().admitted) { $0 + $1 }
        // All of that is in the books: it is not what this test is about.
        try eventually(within: .seconds(30), "the ledger has it") {
          stack.metric("tollgate_retained_deltas", sidecar: 0) == 0
            && stack.metric("tollgate_lease_unsettled_units", sidecar: 0) == 0
        }
        proxy.delay(toClient: .milliseconds(400))
        let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
        let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
        for account in accounts {
          let records = try (1...3).map { amount in
            OperationRecord(
              id: OperationID(time: time, using: &random),
              subject: try Subject("\(account)/ann/7"),
              items: [Item(feature: try Name("edits"), amount: Int64(amount))])
          }
          for (record, answer) in zip(records, try connection.operate(records, deadline: 5_000)) {
            guard case .decision(let decision) = answer, decision.isAllowed else { continue }
            total.admitted[account, default: 0] += record.items[0].amount
          }
        }
        // Sent, done, and the answer under way: it is lost with the link, and then Redis is.
        Thread.sleep(forTimeInterval: random.unit() * 0.3)
        proxy.dropAll()
        proxy.delay(toClient: .zero)
        try stack.redis.connect().command("FLUSHALL")
        let end = ContinuousClock.now + .seconds(5)
        var found = 0.0
        while found == 0, ContinuousClock.now < end {
          found = stack.metric("tollgate_lease_late_exchanges", sidecar: 0) ?? 0
        }
        late += found
        stack.sidecar(0)?.kill()
        try stack.startSidecar(0)
        try stack.waitReady(0)
      }
      #expect(late > 0)
      try Self.audit(stack, total, subjects: accounts)
    }

    /// Leases held go on answering for as long as they may; nothing is lost when Redis is back.
    @Test func aRedisThatGoesAndComesLosesNothing() throws {
      var random = SeededRandom.fromEnvironment("aRedisThatGoesAndComes")
      var options = Self.options(1_000_000_000, sidecars: 2, accounts: ["acme", "beta"])
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
      try Self.audit(stack, tally, subjects: ["acme", "beta"])
    }
  }
}
