// What a sidecar can cost that ends, stops or comes back at the worst moment: without a journal no
// more than the bound that it exports; stopped past its lease, or with a journal that is read after
// it, nothing beyond any limit. TOLLGATE_LEASE_ROUNDS is how often; 50 is the bar.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests.Leases {
  /// `edits` is judged by limits and asked for one by one; `notes` has none, and is asked for by
  /// the hundred: of it nothing is held in Redis.
  private static let boundCatalog = catalog(
    edits: "{id: edits.day, quota: 1000000000000, per: day}",
    notes: "{id: notes.unlimited, unlimited: true}")

  private static func total(_ stack: Stack, _ feature: String) throws -> Int64 {
    try Audit.totals(stack).filter { $0.key.hasSuffix(" \(feature)") }.values.reduce(0, +)
  }

  /// Everything that any sidecar let through is in Redis and in the ledger.
  private static func waitSettled(_ stack: Stack) throws {
    try waitUnexposed(stack)
    var last: Audit.Reconciliation?
    do {
      try eventually(within: .seconds(30), every: .milliseconds(100), "it is delivered") {
        last = try Audit.reconcile(stack)
        return last?.difference == 0 && last?.undelivered == 0 && last?.skipped.isEmpty == true
      }
    } catch {
      throw StackFailure(description: "\(error): \(String(describing: last))")
    }
  }

  private static func waitUnexposed(_ stack: Stack) throws {
    // The gauges are a tenth of a second old.
    Thread.sleep(forTimeInterval: 0.25)
    try eventually(within: .seconds(30), every: .milliseconds(50), "everything is settled") {
      (0..<stack.options.sidecars).allSatisfy {
        stack.metric("tollgate_lease_unsettled_operations", sidecar: $0) == 0
          && stack.metric("tollgate_lease_recovering", sidecar: $0) == 0
      }
    }
  }

  @Test func aKillWithoutAJournalLosesNoMoreThanTheBound() throws {
    var random = SeededRandom.fromEnvironment("aKillWithoutAJournal")
    let accounts = (0..<24).map { "a\($0)" }
    let stack = try Stack(
      Stack.Options(
        sidecars: 2, buckets: 16,
        extra: """
          leases: {tick_ms: 1000, unsettled_units: 131072, unsettled_operations: 2048}
          """, catalog: Self.boundCatalog,
        accounts: Dictionary(uniqueKeysWithValues: accounts.map { ($0, "plan") })))
    var worst: (units: Int64, operations: Int64) = (0, 0)
    var before: (edits: Int64, notes: Int64) = (0, 0)
    let kills = Self.rounds ?? 3
    for kill in 0..<kills {
      let victim = Int(random.next() % 2)
      let units = try #require(
        stack.metric("tollgate_lease_unsettled_units_max", sidecar: victim))
      let operations = try #require(
        stack.metric("tollgate_lease_unsettled_operations_max", sidecar: victim))
      var load = LeaseDriver.Options(callers: 4, subjects: accounts)
      let edits = LeaseDriver(stack.endpoints, load, seed: &random)
      load.feature = "notes"
      // Of one unit each, so many units are so many operations; of many, they come near the units.
      let isOfOne = kill % 2 == 1
      load.amounts = isOfOne ? 1...1 : 1...300
      let notes = LeaseDriver(stack.endpoints, load, seed: &random)
      try eventually(within: .seconds(30), "leases answer before kill \(kill)") {
        [edits, notes].allSatisfy { $0.soFar.sources[.lease] ?? 0 > 500 }
      }
      Thread.sleep(forTimeInterval: random.unit() * 1.5)
      stack.sidecar(victim)?.kill()
      edits.stop()
      notes.stop()
      try stack.startSidecar(victim)
      let tallies = (edits: try edits.finish(), notes: try notes.finish())
      try stack.waitReady(victim)
      try Self.waitSettled(stack)
      let after = (edits: try Self.total(stack, "edits"), notes: try Self.total(stack, "notes"))
      let lost = (
        edits: tallies.edits.admitted.values.reduce(0, +) - (after.edits - before.edits),
        notes: tallies.notes.admitted.values.reduce(0, +) - (after.notes - before.notes)
      )
      before = after
      let least = lost.edits + (isOfOne ? lost.notes : max(0, lost.notes) / 300)
      #expect(Double(least) <= operations, "kill \(kill)")
      #expect(Double(lost.edits + lost.notes) <= units, "kill \(kill)")
      // What is in the books and was answered to nobody is of callers who were cut off.
      #expect(lost.edits >= -tallies.edits.unresolved, "kill \(kill)")
      #expect(lost.notes >= -tallies.notes.unresolved, "kill \(kill)")
      #expect((tallies.edits.violations + tallies.notes.violations).isEmpty)
      worst.operations = max(worst.operations, least)
      worst.units = max(worst.units, lost.edits + lost.notes)
      print(
        "kill \(kill): lost \(lost.edits) edits, \(lost.notes) notes; bound \(Int64(operations)) "
          + "operations, \(Int64(units)) units; unresolved \(tallies.edits.unresolved) and "
          + "\(tallies.notes.unresolved)")
    }
    print("\(kills) kills without a journal lost at most \(worst)")
    // A bound that is never near says nothing: a second of this load is far above it.
    #expect(worst.units > 0)
  }

  // MARK: - Past the lease

  private static let wave = 5
  private static let limit: Int64 = 6_000

  /// `wave` sidecars, each with an account of its own, and one more that asks for all of them.
  private static func past(
    _ accounts: [String], journals: Bool
  ) throws -> Stack {
    var options = options(limit, sidecars: wave + 1, accounts: accounts)
    options.journals = journals
    options.extra += "\nleases: {ttl_ms: 2000, tick_ms: 100}"
    return try Stack(options)
  }

  private struct Wave {
    let accounts: [String]
    let own: [LeaseDriver]
    let other: LeaseDriver
    /// Freed of leases while nobody heard of their owners.
    let freed: Int64
  }

  /// Load on every sidecar's own account; `silence` them; the other one then spends what is free,
  /// also what Redis frees when their leases end.
  private static func silence(
    _ stack: Stack, _ watch: CellWatch, _ accounts: [String], _ random: inout SeededRandom,
    _ silence: (Int) throws -> Void
  ) throws -> Wave {
    var own: [LeaseDriver] = []
    for (index, account) in accounts.enumerated() {
      var load = LeaseDriver.Options(callers: 2, subjects: ["\(account)/ann/7"])
      load.pause = .milliseconds(1)
      load.patience = .seconds(120)
      own.append(LeaseDriver([stack.endpoint(index)], load, seed: &random))
    }
    try eventually(within: .seconds(30), "leases answer") {
      own.allSatisfy { $0.soFar.sources[.lease] ?? 0 > 200 }
    }
    Thread.sleep(forTimeInterval: random.unit() * 0.2)
    for index in accounts.indices { try silence(index) }
    // Another one's grants are not counted: it is asked after this.
    let polls = watch.soFar.polls
    try eventually("a look at what they hold") {
      watch.soFar.polls > polls + 2 * accounts.count
    }
    let held = watch.soFar.now
    let load = LeaseDriver.Options(callers: 5, subjects: accounts.map { "\($0)/ann/7" })
    let other = LeaseDriver([stack.endpoint(wave)], load, seed: &random)
    // The lease, the grace, and the round of the sweeper. Then the other one has all of the rest.
    try eventually(within: .seconds(60), every: .milliseconds(20), "what is free is spent") {
      let now = watch.soFar.now
      return other.soFar.denialsInRow > 50
        && accounts.allSatisfy {
          now[$0]?.sum == limit && now[$0]?.held ?? 0 < held[$0]?.held ?? 0
        }
    }
    let now = watch.soFar.now
    let freed = accounts.reduce(Int64(0)) { $0 + (held[$1]?.held ?? 0) - (now[$1]?.held ?? 0) }
    return Wave(accounts: accounts, own: own, other: other, freed: freed)
  }

  /// It is stopped past the end of its lease and what Redis frees of it others may take; what it
  /// let through is settled when it goes on, and none of it is beyond the limit.
  @Test func sidecarsStoppedPastTheirLeasesTakeNothingOfOthers() throws {
    var random = SeededRandom.fromEnvironment("stoppedPastTheirLeases")
    let waves = ((Self.rounds ?? 1) + Self.wave - 1) / Self.wave
    let accounts = (0..<waves).map { wave in (0..<Self.wave).map { "w\(wave)-\($0)" } }
    let stack = try Self.past(accounts.flatMap { $0 }, journals: false)
    var total = LeaseTally()
    for accounts in accounts {
      let watch = try CellWatch(
        stack.redis, accounts: accounts, cell: "edits|d", amount: Self.limit)
      let wave = try Self.silence(stack, watch, accounts, &random) {
        try stack.sidecar($0)?.pause()
      }
      for index in accounts.indices { stack.sidecar(index)?.resume() }
      // What stayed held in doubt comes back, and is spent.
      try eventually(within: .seconds(60), "all of it is drained") {
        accounts.enumerated().allSatisfy { index, account in
          (wave.own[index].soFar.admitted[account] ?? 0)
            + (wave.other.soFar.admitted[account] ?? 0) >= Self.limit
        }
      }
      let tallies = try (wave.own + [wave.other]).map { try $0.finish() }
      let seen = try watch.finish()
      #expect(seen.violations.prefix(5).isEmpty)
      #expect(wave.freed > 0, "leases ended and freed nothing")
      for account in accounts {
        let sum = tallies.reduce(0) { $0 + ($1.admitted[account] ?? 0) }
        #expect(sum == Self.limit, "\(account)")
        total.admitted[account] = sum
      }
      for tally in tallies { #expect(tally.violations.prefix(5).isEmpty) }
      print(
        "\(accounts.count) stopped: \(wave.freed) freed meanwhile, \(seen.polls) looks, at most "
          + "\(seen.most.values.max() ?? 0) settled and held of \(Self.limit)")
    }
    try Self.audit(stack, total, subjects: accounts.flatMap { $0 })
  }

  /// A journal that is read after its lease ended, and after others spent what was freed of it.
  @Test func journalsReadPastTheirLeasesTakeNothingOfOthers() throws {
    var random = SeededRandom.fromEnvironment("journalsReadPastTheirLeases")
    let waves = ((Self.rounds ?? 1) + Self.wave - 1) / Self.wave
    let accounts = (0..<waves).map { wave in (0..<Self.wave).map { "j\(wave)-\($0)" } }
    let stack = try Self.past(accounts.flatMap { $0 }, journals: true)
    var total = LeaseTally()
    var recovered = 0.0
    for accounts in accounts {
      let watch = try CellWatch(
        stack.redis, accounts: accounts, cell: "edits|d", amount: Self.limit)
      let wave = try Self.silence(stack, watch, accounts, &random) {
        stack.sidecar($0)?.kill()
      }
      // They ask for what they asked for last, and for nothing more: what is settled from here on
      // is what the journals tell.
      for driver in wave.own { driver.stop() }
      let tail = try wave.other.finish()
      for index in accounts.indices { try stack.startSidecar(index) }
      let tallies = try wave.own.map { try $0.finish() } + [tail]
      for index in accounts.indices { try stack.waitReady(index) }
      try Self.waitUnexposed(stack)
      for index in accounts.indices {
        recovered += stack.metric("tollgate_lease_settled_units_total", sidecar: index) ?? 0
      }
      let seen = try watch.finish()
      #expect(seen.violations.prefix(5).isEmpty)
      #expect(wave.freed > 0, "leases ended and freed nothing")
      for account in accounts {
        let sum = tallies.reduce(0) { $0 + ($1.admitted[account] ?? 0) }
        #expect(sum <= Self.limit, "\(account)")
        total.admitted[account] = sum
      }
      for tally in tallies {
        #expect(tally.violations.prefix(5).isEmpty)
        #expect(tally.unresolved == 0)
      }
      print(
        "\(accounts.count) read later: \(wave.freed) freed meanwhile, \(Int64(recovered)) units "
          + "recovered so far, \(seen.polls) looks, at most \(seen.most.values.max() ?? 0) settled "
          + "and held of \(Self.limit)")
    }
    #expect(recovered > 0, "there was nothing in the journals")
    // Nothing admitted is lost: callers, Redis and the ledger have one number.
    try Self.audit(stack, total, subjects: accounts.flatMap { $0 })
  }
}
