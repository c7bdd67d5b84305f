// PROTOCOL 6.1, sentence by sentence: what a retry of an operation of scope `sidecar` is told by
// the sidecar that had it first, and by two others. What the ledger bills in the end is the judge.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests.Leases {
  private final class Retries {
    let stack: Stack
    private var links: [WireConnection] = []
    private var random = SystemRandomNumberGenerator()

    init(_ options: Stack.Options) throws {
      stack = try Stack(options)
      links = try stack.endpoints.map { try WireConnection($0, token: Stack.checkToken) }
    }

    /// Killed, and asked again when it is back.
    func restart(_ index: Int) throws {
      try stack.restartSidecar(index)
      try stack.waitReady(index)
      links[index] = try WireConnection(stack.endpoint(index), token: Stack.checkToken)
    }

    func record(
      _ subject: String, _ amount: Int64 = 1, id: OperationID? = nil
    ) throws -> OperationRecord {
      OperationRecord(
        id: id
          ?? OperationID(
            time: WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000)),
            using: &random), subject: try Subject(subject),
        items: [Item(feature: try Name("edits"), amount: amount)])
    }

    func ask(
      _ index: Int, _ record: OperationRecord, as opcode: Opcode = .consume
    ) throws -> DecisionRecord {
      try #require(try links[index].operate([record], as: opcode, deadline: 2000).first)
    }

    func decision(
      _ index: Int, _ record: OperationRecord, as opcode: Opcode = .consume
    ) throws -> Decision {
      switch try ask(index, record, as: opcode) {
      case .decision(let decision): return decision
      case .error(let code, let message): throw WireFailure.refused(code, message)
      }
    }

    func refusal(_ index: Int, _ record: OperationRecord) throws -> ErrorCode? {
      guard case .error(let code, _) = try ask(index, record) else { return nil }
      return code
    }

    /// Asks until a lease answers: its operation, and what was let through on the way there.
    func leased(
      _ index: Int, _ subject: String, _ amount: Int64 = 1
    ) throws -> (OperationRecord, Decision, units: Int64) {
      var units: Int64 = 0
      var found: (OperationRecord, Decision)?
      try eventually(within: .seconds(20), "a lease answers") {
        let record = try self.record(subject, amount)
        let decision = try self.decision(index, record)
        if decision.isAllowed { units += amount }
        guard decision.source == .lease, decision.isAllowed else { return false }
        found = (record, decision)
        return true
      }
      let (record, decision) = try #require(found)
      return (record, decision, units)
    }

    /// By the first sidecar, all that it let through from leases.
    func waitUntilSettled() throws {
      try eventually(within: .seconds(10), "it is settled") {
        stack.metric("tollgate_lease_settled_units_total", sidecar: 0) ?? 0 > 0
          && stack.metric("tollgate_lease_unsettled_operations", sidecar: 0) == 0
      }
    }

    func expectBilled(
      _ units: [String: Int64], location: SourceLocation = #_sourceLocation
    ) throws {
      var tally = LeaseTally()
      tally.admitted = units
      try LiveTests.Leases.audit(
        stack, tally, subjects: Array(units.keys), location: location)
    }
  }

  private static func three(
    _ accounts: [String], limit: Int64 = 1_000_000, journals: Bool = false
  ) -> Stack.Options {
    var options = options(limit, sidecars: 3, accounts: accounts)
    options.journals = journals
    return options
  }

  @Test func whatALeaseAnsweredIsKnownThereAndDecidedAnewElsewhere() throws {
    let retries = try Retries(Self.three(["acme"]))
    // The second one has leases of this shape, too; the third one asks Redis.
    let (_, _, elsewhere) = try retries.leased(1, "acme/ann/7", 5)
    let (record, first, units) = try retries.leased(0, "acme/ann/7", 5)
    let again = try retries.decision(0, record)
    #expect(again.replayed && again.reason == first.reason && again.source == .lease)
    // Of the retry's moment.
    #expect(again.items[0].settled >= first.items[0].settled)
    let second = try retries.decision(1, record)
    #expect(second.isAllowed && !second.replayed && second.source == .lease)
    let third = try retries.decision(2, record)
    #expect(third.isAllowed && !third.replayed && third.source == .redis)
    // From then on each of them knows of its own.
    for (index, source) in [Source.lease, .lease, .redis].enumerated() {
      let answer = try retries.decision(index, record)
      #expect(answer.replayed && answer.source == source, "sidecar \(index)")
    }
    try retries.expectBilled(["acme": units + elsewhere + 2 * 5])
  }

  @Test func whatRedisAllowedIsKnownEverywhere() throws {
    let retries = try Retries(Self.three(["acme"]))
    let record = try retries.record("acme/bob/8", 4)
    let first = try retries.decision(0, record)
    #expect(first.isAllowed && !first.replayed && first.source == .redis)
    for index in 0...2 {
      let again = try retries.decision(index, record)
      #expect(again.replayed && again.isAllowed && again.source == .redis, "sidecar \(index)")
      #expect(again.items[0].settled == first.items[0].settled)
    }
    try retries.expectBilled(["acme": 4])
  }

  @Test func whatIsDeniedWithoutAnyLeaseIsDeniedEverywhere() throws {
    let retries = try Retries(Self.three(["acme"], limit: 3))
    #expect(try retries.decision(0, retries.record("acme", 3)).isAllowed)
    let record = try retries.record("acme", 1)
    #expect(try retries.decision(0, record).reason == .quotaExceeded)
    // Raised since: the id keeps its answer, another one is let through.
    try retries.stack.command([
      "limit", "set", "acme", "edits.day", "--amount", "100", "--reason", "test",
    ])
    for index in 0...2 {
      let again = try retries.decision(index, record)
      #expect(again.replayed && again.reason == .quotaExceeded, "sidecar \(index)")
    }
    try eventually(within: .seconds(5), "the raise is known") {
      try retries.decision(1, retries.record("acme", 2)).isAllowed
    }
    try retries.expectBilled(["acme": 5])
  }

  /// What another one holds is given back, and the same operation is let through: no denial of it
  /// is recorded before.
  @Test func whatLeasesHoldIsAskedBackBeforeADenialIsFinal() throws {
    let retries = try Retries(Self.three(["acme"], limit: 400))
    let (_, _, units) = try retries.leased(0, "acme/ann/7")
    let rest = try retries.record("acme/bob/8", 400 - units)
    let answer = try retries.decision(1, rest)
    #expect(answer.isAllowed && answer.source == .redis)
    #expect(try retries.decision(2, rest).replayed)
    let denied = try retries.record("acme/bob/8", 1)
    for index in [1, 2, 0] {
      #expect(try retries.decision(index, denied).reason == .quotaExceeded, "sidecar \(index)")
    }
    try retries.expectBilled(["acme": 400])
  }

  @Test func anotherBodyUnderTheIdIsAMismatchThere() throws {
    let retries = try Retries(Self.three(["acme"]))
    let (record, _, units) = try retries.leased(0, "acme/ann/7")
    #expect(
      try retries.refusal(0, retries.record("acme/ann/7", 2, id: record.id))
        == .idempotencyMismatch)
    #expect(
      try retries.refusal(0, retries.record("acme/ann/8", 1, id: record.id))
        == .idempotencyMismatch)
    try retries.expectBilled(["acme": units])
  }

  @Test func postAndCancelAreKnownThereAndNowhereElse() throws {
    let retries = try Retries(Self.three(["acme", "beta"]))
    var (record, _, units) = try retries.leased(0, "acme/ann/7", 3)
    #expect(try retries.decision(0, record, as: .post).isAllowed)
    // Elsewhere it is told of for the first time.
    #expect(try retries.decision(1, record, as: .post).isAllowed)
    #expect(try retries.decision(2, record, as: .post).replayed)
    let posted = units + 3

    (record, _, units) = try retries.leased(0, "beta/ann/7", 3)
    // Nothing of it is known there, so nothing is taken back.
    #expect(try retries.decision(1, record, as: .cancel).reason == .cancelled)
    #expect(try retries.decision(0, record).isAllowed)
    #expect(try retries.decision(0, record, as: .cancel).reason == .cancelled)
    #expect(try retries.decision(0, record).reason == .cancelled)
    try retries.expectBilled(["acme": posted, "beta": units - 3])
  }

  @Test func aSidecarWithAJournalKnowsItAfterAKill() throws {
    let retries = try Retries(Self.three(["acme"], journals: true))
    let (record, first, units) = try retries.leased(0, "acme/ann/7")
    try retries.restart(0)
    let again = try retries.decision(0, record)
    #expect(again.replayed && again.reason == first.reason)
    try retries.expectBilled(["acme": units])
  }

  /// Nobody asked for its shape since the restart, and all of it is settled: what is taken back is
  /// refunded.
  @Test func aCancelIsDoneWhereItsShapeIsForgotten() throws {
    let retries = try Retries(Self.three(["acme"], journals: true))
    let (record, _, units) = try retries.leased(0, "acme/ann/7", 3)
    try retries.waitUntilSettled()
    try retries.restart(0)
    #expect(try retries.decision(0, record, as: .cancel).reason == .cancelled)
    #expect(try retries.decision(0, record, as: .cancel).replayed)
    #expect(try retries.decision(0, record).reason == .cancelled)
    // What later spends would absorb waits for a second.
    try eventually(within: .seconds(10), "it is refunded") {
      retries.stack.metric("tollgate_lease_unsettled_operations", sidecar: 0) == 0
        && retries.stack.metric("tollgate_lease_settled_units_total", sidecar: 0) == -3
    }
    try retries.expectBilled(["acme": units - 3])
  }

  /// The account is known as it was before its limit was lowered when its shape is learnt. Redis says
  /// so, and what is learnt after that must not be leased under the limit of before.
  @Test func aShapeIsLearntUnderTheLimitsOfNow() throws {
    let retries = try Retries(Self.three(["acme"], journals: true))
    let (record, _, units) = try retries.leased(0, "acme", 3)
    try retries.waitUntilSettled()
    try retries.restart(0)
    #expect(try retries.decision(0, retries.record("acme", 1), as: .check).isAllowed)
    try retries.stack.command(
      ["limit", "set", "acme", "edits.day", "--amount", "400", "--reason", "test"], sidecar: 1)
    #expect(try retries.decision(0, record, as: .cancel).reason == .cancelled)
    var admitted = units - 3
    var denied = 0
    while denied < 20 {
      // So slowly that leases are refilled in time, and Redis is not asked before the edge.
      Thread.sleep(forTimeInterval: denied > 0 ? 0.05 : 0.002)
      if try retries.decision(0, retries.record("acme", 3)).isAllowed {
        admitted += 3
        denied = 0
      } else {
        denied += 1
      }
      if admitted > 500 { break }
    }
    #expect(admitted <= 400 && admitted > 397, "\(admitted)")
    try retries.expectBilled(["acme": admitted])
  }

  /// It names a feature that is never leased, too, so Redis decides it; what it is denied for is
  /// held idle by another sidecar.
  @Test func aRequestThatIsNotLeasedAsksLeasesBack() throws {
    var options = Self.three(["acme"])
    options.catalog = """
      levels: [account, member, run]
      features:
        edits: {metered: true, importance: volume, idempotency: sidecar, unit: edit}
        pages: {metered: true, importance: volume, unit: page}
      plans:
        plan:
          edits:
            - {id: edits.day, quota: 400, per: day}
          pages:
            - {id: pages.day, quota: 400, per: day}
      """
    let retries = try Retries(options)
    let (_, _, units) = try retries.leased(0, "acme/ann/7")
    // Where the other feature denies it, nobody's lease is to blame.
    var record = try retries.record("acme/ann/7", 1)
    record.items.append(Item(feature: try Name("pages"), amount: 401))
    let other = try retries.decision(1, record)
    #expect(other.binding?.text == "pages.day" && other.items[0].held > 0)
    #expect(retries.stack.metric("tollgate_lease_recalls_total", sidecar: 1) == 0)
    #expect(try retries.decision(2, record).replayed)
    record = try retries.record("acme/ann/7", 400 - units)
    record.items.append(Item(feature: try Name("pages"), amount: 1))
    let answer = try retries.decision(1, record)
    #expect(answer.isAllowed && answer.source == .redis, "\(answer)")
    #expect(try retries.decision(2, record).replayed)
    let denied = try retries.record("acme/ann/7", 1)
    #expect(try retries.decision(1, denied).reason == .quotaExceeded)
  }

  /// What a lease let through is in no record of Redis's: asked again when nothing is leased any
  /// more, it is not counted a second time.
  @Test(arguments: [0, 1], ["strict", "frozen"])
  func aRetryIsKnownWhereNothingIsLeasedAnyMore(localLoops: Int, change: String) throws {
    var options = Self.three(["acme"])
    options.extra += "\nlocal_loops: \(localLoops)"
    options.catalog = Self.becomesExact(limit: 100_000)
    let retries = try Retries(options)
    var (record, _, units) = try retries.leased(0, "acme/ann/7", 5)
    try retries.stack.command(
      change == "strict"
        ? ["account", "set", "acme", "--plan", "strict"]
        : ["account", "freeze", "acme", "--reason", "unpaid"])
    try eventually(within: .seconds(10), "it is heard of") {
      let decision = try retries.decision(0, retries.record("acme/ann/7"))
      if decision.isAllowed { units += 1 }
      return change == "strict" ? decision.source == .redis : decision.reason == .accountFrozen
    }
    for _ in 0..<2 {
      let again = try retries.decision(0, record)
      #expect(again.isAllowed && again.replayed, "\(again)")
    }
    let other = try retries.record("acme/ann/7", 6, id: record.id)
    #expect(try retries.refusal(0, other) == .idempotencyMismatch)
    record = try retries.record("acme/ann/7")
    let fresh = try retries.decision(0, record)
    if fresh.isAllowed { units += 1 }
    #expect(try retries.decision(0, record).isAllowed == fresh.isAllowed)
    if change == "frozen" {
      try retries.stack.command(["account", "unfreeze", "acme", "--reason", "paid"])
    }
    try retries.expectBilled(["acme": units])
  }

  /// The loop that hears of a shape is seldom the one that sends the exchanges of its bucket, which
  /// rests until it is told.
  @Test(arguments: [0, 1]) func theLoopOfTheBucketIsToldOfAShape(loop: Int) throws {
    let map = BucketMap(buckets: 4)
    let found = (0..<100).map { "a\($0)" }.first { account in
      map.bucket(ofAccount: account) % 2 == loop
    }
    let account = try #require(found)
    var options = Self.options(100_000, sidecars: 1, accounts: [account])
    options.extra += "\nevent_loops: 2\nlocal_loops: 0"
    let retries = try Retries(options)
    let (_, _, units) = try retries.leased(0, "\(account)/ann/7")
    try retries.expectBilled([account: units])
  }

  /// What no table remembers any more Redis would count again: only what it recorded is answered.
  @Test func anIdOlderThanTheTableIsNotCountedAgainWhereNothingIsLeasedAnyMore() throws {
    var options = Self.three(["acme"])
    options.catalog = Self.becomesExact(limit: 100_000)
    let retries = try Retries(options)
    let (record, _, leased) = try retries.leased(0, "acme/ann/7", 5)
    var units = leased
    try retries.waitUntilSettled()
    try retries.stack.command(["account", "set", "acme", "--plan", "strict"])
    var exact = record
    try eventually(within: .seconds(10), "it is heard of") {
      exact = try retries.record("acme/ann/7")
      let decision = try retries.decision(0, exact)
      if decision.isAllowed { units += 1 }
      return decision.source == .redis
    }
    // Without a journal it remembers nothing from before its start.
    try retries.restart(0)
    for _ in 0..<2 {
      #expect(try retries.refusal(0, record) == .idTooOld)
      let again = try retries.decision(0, exact)
      #expect(again.isAllowed && again.replayed && again.source == .redis, "\(again)")
    }
    let other = try retries.record("acme/ann/7", 6, id: exact.id)
    #expect(try retries.refusal(0, other) == .idempotencyMismatch)
    // What is new is decided as ever.
    let fresh = try retries.record("acme/ann/7", 3)
    #expect(try retries.decision(0, fresh).isAllowed)
    #expect(try retries.decision(0, fresh).replayed)
    try retries.expectBilled(["acme": units + 3])
  }

  @Test(arguments: [0, 1])
  func whatTheTableDeniedIsDeniedWhereNothingIsLeasedAnyMore(localLoops: Int) throws {
    var options = Self.three(["acme"])
    options.extra += "\nlocal_loops: \(localLoops)"
    options.catalog = Self.becomesExact(limit: 50)
    let retries = try Retries(options)
    var units: Int64 = 0
    var denied = try retries.record("acme/ann/7")
    try eventually(within: .seconds(20), "the table denies") {
      denied = try retries.record("acme/ann/7")
      let decision = try retries.decision(0, denied)
      if decision.isAllowed { units += 1 }
      return !decision.isAllowed && decision.source == .lease
    }
    try retries.stack.command(["account", "set", "acme", "--plan", "strict"])
    try eventually(within: .seconds(10), "the raise is heard of") {
      let isAllowed = try retries.decision(0, retries.record("acme/ann/7")).isAllowed
      if isAllowed { units += 1 }
      return isAllowed
    }
    for _ in 0..<2 {
      let again = try retries.decision(0, denied)
      #expect(again.reason == .quotaExceeded && again.replayed, "\(again)")
    }
    // Used elsewhere, it counts all the same.
    #expect(try retries.decision(0, denied, as: .post).isAllowed)
    try retries.expectBilled(["acme": units + 1])
  }

  /// A plan whose accounts are answered from leases, and one whose are not.
  private static func becomesExact(limit: Int64) -> String {
    """
    levels: [account, member, run]
    features:
      edits: {metered: true, importance: volume, idempotency: sidecar, unit: edit}
    plans:
      plan:
        edits: [{id: edits.day, quota: \(limit), per: day}]
      strict:
        edits: [{id: edits.day, quota: 100000, per: day, precision: exact}]
    """
  }

  @Test func oneWithoutAJournalRefusesWhatWasMintedBefore() throws {
    let retries = try Retries(Self.three(["acme"]))
    let (record, _, units) = try retries.leased(0, "acme/ann/7")
    // What is lost with it is another test's matter.
    try retries.waitUntilSettled()
    try retries.restart(0)
    #expect(try retries.refusal(0, record) == .idTooOld)
    try retries.expectBilled(["acme": units])
  }
}
