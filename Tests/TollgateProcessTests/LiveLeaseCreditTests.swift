// Prepaid credit from leases: burnt grant by grant in its order, to the last unit and not one more;
// what is voided is gone within a second; what a killed sidecar let through is in the books.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests.Leases {
  private static let included: Int64 = 3_000
  private static let first: Int64 = 4_000
  private static let later: Int64 = 5_000

  /// `credits` of `acme` are burnt from `first`, then from what the plan includes, then from `later`.
  private static func credit(
    sidecars: Int, included: Int64 = included, journals: Bool = false
  ) throws -> Stack {
    var options = Stack.Options(
      sidecars: sidecars, extra: LiveTests.ExactLimit.patient,
      catalog: """
        levels: [account, member, run]
        features:
          credits: {metered: true, importance: volume, idempotency: sidecar, unit: credit}
        plans:
          plan:
            credits:
              - {id: credits.month, credit: {every: month, amount: \(included)}, overage: deny}
              - {id: credits.member, quota: 1000000000, per: day, level: member}
        """, accounts: ["acme": "plan"])
    options.journals = journals
    return try Stack(options)
  }

  private static func add(
    _ grant: String, _ amount: Int64, priority: Int, to stack: Stack
  ) throws {
    try stack.command([
      "grant", "add", "acme", "credits", "\(amount)", "--grant", grant, "--priority",
      "\(priority)", "--reason", "x",
    ])
  }

  private static func load(_ callers: Int) -> LeaseDriver.Options {
    var load = LeaseDriver.Options(callers: callers)
    load.feature = "credits"
    return load
  }

  private static func check(_ stack: Stack, _ tally: LeaseTally) throws {
    var load = LoadTally()
    load.admitted["acme credits"] = tally.admitted["acme"] ?? 0
    load.violations = tally.violations
    load.unresolved = tally.open
    try Audit.check(stack, load, subjects: ["acme"], touching: "credits")
  }

  private static func record(
    _ random: inout SeededRandom, _ amount: Int64 = 5
  ) throws -> OperationRecord {
    OperationRecord(
      id: OperationID(
        time: WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000)), using: &random),
      subject: try Subject("acme/ann/7"),
      items: [Item(feature: try Name("credits"), amount: amount)])
  }

  private static func ask(
    _ connection: WireConnection, _ record: OperationRecord, _ opcode: Opcode = .consume
  ) throws -> Decision {
    guard
      case .decision(let found)? =
        try connection.operate([record], as: opcode, deadline: 2_000).first
    else { throw StackFailure(description: "no decision") }
    return found
  }

  @Test func grantsAreBurntInOrderToTheLastUnit() throws {
    var random = SeededRandom.fromEnvironment("grantsAreBurntInOrder")
    let stack = try Self.credit(sidecars: 3)
    try Self.add("first", Self.first, priority: 10, to: stack)
    try Self.add("later", Self.later, priority: 200, to: stack)
    func watch(_ grant: String, _ amount: Int64) throws -> CellWatch {
      try CellWatch(stack.redis, accounts: ["acme"], cell: "credits|$\(grant)", amount: amount)
    }
    let watches = [try watch("first", Self.first), try watch("credits.month", Self.included)]
    let last = try watch("later", Self.later)
    let driver = LeaseDriver(stack.endpoints, Self.load(24), seed: &random)
    let sum = Self.first + Self.included + Self.later
    try eventually(within: .seconds(60), every: .milliseconds(1), "the last one is burnt") {
      last.soFar.now["acme"]?.sum ?? 0 > 0
    }
    // All of those before it is used, or set aside for who uses it.
    let taken = watches.map { $0.soFar.now["acme"]?.sum ?? 0 }
    #expect(taken[0] >= Self.first * 9 / 10)
    #expect(taken[1] >= Self.included * 9 / 10)
    try eventually(within: .seconds(60), every: .milliseconds(20), "it is drained") {
      driver.soFar.admitted["acme"] ?? 0 >= sum
    }
    let denied = driver.soFar.denied
    try eventually(within: .seconds(30), "everybody is denied") {
      driver.soFar.denied > denied + 48
    }
    let tally = try driver.finish()
    #expect(tally.admitted["acme"] == sum)
    // Nothing of it is held by anybody any more: that is known without Redis.
    let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
    try eventually(within: .seconds(5), every: .milliseconds(5), "a denial from memory") {
      let answer = try Self.ask(connection, try Self.record(&random))
      return answer.source == .lease && !answer.isAllowed
    }
    #expect(tally.sources[.lease] ?? 0 > sum / 2, "\(tally.sources)")
    for watch in watches + [last] { #expect(try watch.finish().violations.prefix(3).isEmpty) }
    try Self.check(stack, tally)
    #expect(
      try Audit.burnt(stack)
        == ["first": Self.first, "credits.month": Self.included, "later": Self.later])
    print("\(tally.sources) of \(sum), denied \(tally.denied)")
  }

  @Test func aVoidedGrantIsGoneWithinASecond() throws {
    var random = SeededRandom.fromEnvironment("aVoidedGrantIsGone")
    let stack = try Self.credit(sidecars: 2, included: 100)
    try Self.add("first", 1_000_000_000, priority: 10, to: stack)
    let driver = LeaseDriver(stack.endpoints, Self.load(4), seed: &random)
    try eventually(within: .seconds(30), "leases answer") {
      driver.soFar.sources[.lease] ?? 0 > 2_000
    }
    try stack.command(["grant", "void", "acme", "first", "--reason", "test"])
    let voided = ContinuousClock.now
    // What the plan includes is burnt from then on.
    try eventually(within: .seconds(20), every: .milliseconds(1), "it bites") {
      driver.soFar.denialsInRow > 20
    }
    let took = ContinuousClock.now - voided
    let tally = try driver.finish()
    try Self.check(stack, tally)
    print("denied after \(took)")
    #expect(try Audit.burnt(stack)["credits.month"] == 100)
    #expect(took < .seconds(1))
  }

  @Test func whatIsTakenBackGoesToItsGrant() throws {
    var random = SeededRandom.fromEnvironment("whatIsTakenBackGoesToItsGrant")
    let stack = try Self.credit(sidecars: 1)
    try Self.add("first", Self.first, priority: 10, to: stack)
    let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
    var count: Int64 = 0
    func ask() throws -> Decision {
      let answer = try Self.ask(connection, try Self.record(&random))
      count += answer.isAllowed ? 5 : 0
      return answer
    }
    try eventually(within: .seconds(20), "a lease answers") { try ask().source == .lease }
    #expect(
      try stack.command(["explain", "acme/ann/7", "credits"]).contains("in grant first"))
    // Of both grants, as Redis would say it: what it decided itself while the lease was taken is
    // known from the next exchange on.
    try eventually(within: .seconds(10), "the numbers are those of Redis") {
      let answer = try ask()
      return answer.source == .lease
        && answer.items.first?.remaining == Self.first + Self.included - count
    }
    for settles in [false, true] {
      let one = try Self.record(&random)
      #expect(try Self.ask(connection, one).source == .lease)
      if settles {
        try eventually(within: .seconds(10), "it is settled") {
          try Audit.burnt(stack)["first"] == count + 5
        }
      }
      #expect(try Self.ask(connection, one, .cancel).reason == .cancelled)
    }
    try eventually(within: .seconds(10), "all of it is taken back") {
      try Audit.burnt(stack)["first"] == count
    }
    // Nothing is held, and there is less than is asked for: who asks for as much as there is goes on.
    try eventually(within: .seconds(10), "it is given back") {
      try !stack.command(["explain", "acme/ann/7", "credits"]).contains("lease of")
    }
    #expect(try !Self.ask(connection, try Self.record(&random, 100_000)).isAllowed)
    #expect(try Self.ask(connection, try Self.record(&random)).isAllowed)
    count += 5
    var tally = LeaseTally()
    tally.admitted["acme"] = count
    try Self.check(stack, tally)
    #expect(try Audit.burnt(stack) == ["first": count, "credits.month": 0])
  }

  /// Its shape is gone with the process that let it through, and there is no credit to ask for the
  /// like of it with.
  @Test func whatIsCancelledAfterTheLastCreditIsTakenBack() throws {
    var random = SeededRandom.fromEnvironment("whatIsCancelledAfterTheLastCredit")
    let stack = try Self.credit(sidecars: 1, included: 200, journals: true)
    var connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
    var leased: OperationRecord?
    var count: Int64 = 0
    try eventually(within: .seconds(20), every: .milliseconds(1), "all of it is burnt") {
      let one = try Self.record(&random)
      let answer = try Self.ask(connection, one)
      if answer.isAllowed {
        count += 5
        if answer.source == .lease { leased = leased ?? one }
      }
      return !answer.isAllowed && count == 200
    }
    let one = try #require(leased)
    try eventually(within: .seconds(10), "it is settled") {
      try Audit.burnt(stack)["credits.month"] == 200
    }
    try stack.restartSidecar(0)
    try stack.waitReady(0)
    connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
    #expect(try Self.ask(connection, one, .cancel).reason == .cancelled)
    try eventually(within: .seconds(10), "it is taken back") {
      try Audit.burnt(stack)["credits.month"] == 195
    }
    #expect(try Self.ask(connection, try Self.record(&random)).isAllowed)
    var tally = LeaseTally()
    tally.admitted["acme"] = 200
    try Self.check(stack, tally)
  }

  @Test func killedWhileCreditIsLeasedAJournalLosesNothing() throws {
    var random = SeededRandom.fromEnvironment("killedWhileCreditIsLeased")
    let stack = try Self.credit(sidecars: 2, journals: true)
    try Self.add("first", 1_000_000, priority: 10, to: stack)
    var load = Self.load(6)
    load.amounts = 1...3
    load.pause = .milliseconds(1)
    let driver = LeaseDriver(stack.endpoints, load, seed: &random)
    try Self.kill(Self.rounds ?? 4, stack, under: driver, &random)
    let tally = try driver.finish()
    #expect(tally.unresolved == 0)
    try Self.check(stack, tally)
    #expect(try Audit.burnt(stack)["first"] == tally.admitted["acme"])
  }

  /// What is settled of a lease after its epoch is burnt from the grant it was of.
  @Test func aFlushedRedisBurnsLeasedCreditOnce() throws {
    var random = SeededRandom.fromEnvironment("aFlushedRedisBurnsLeasedCreditOnce")
    let stack = try Self.credit(sidecars: 2)
    try Self.add("first", 1_000_000_000, priority: 10, to: stack)
    var load = Self.load(6)
    load.amounts = 1...3
    load.pause = .milliseconds(1)
    load.replayRate = 0
    let driver = LeaseDriver(stack.endpoints, load, seed: &random)
    for flush in 0..<(Self.rounds ?? 3) {
      let leased = driver.soFar.sources[.lease] ?? 0
      try eventually(within: .seconds(60), "leases answer before flush \(flush)") {
        driver.soFar.sources[.lease] ?? 0 > leased + 500
      }
      Thread.sleep(forTimeInterval: random.unit() * 0.1)
      try stack.redis.connect().command("FLUSHALL")
    }
    let tally = try driver.finish()
    try Self.check(stack, tally)
    #expect(try Audit.burnt(stack)["first"] == tally.admitted["acme"])
  }
}
