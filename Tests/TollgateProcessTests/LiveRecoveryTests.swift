// Epochs change hands while there is load: older books put back under the ledger, books that know
// nothing, Redis put back in place. Whatever a caller was told lands in the counters and in the
// books once, no limit is exceeded, and LOSS names what was truly lost and nothing else
// (promises 1, 3, 5).

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateRedis
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Recovery {
    static let subjects = ["acme/alice", "acme/bob", "beta"]
    static let accounts = ["acme": "big", "beta": "big"]

    private static func record(
      _ subject: String, _ amount: Int64, _ random: inout SeededRandom
    ) throws -> OperationRecord {
      let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      return OperationRecord(
        id: OperationID(time: time, using: &random), subject: try Subject(subject),
        items: [Item(feature: try Name("calls"), amount: amount)])
    }

    private func delivered(_ stack: Stack) throws {
      try eventually(within: .seconds(20), "nothing is retained") {
        (0..<stack.options.sidecars).allSatisfy {
          stack.metric("tollgate_retained_deltas", sidecar: $0) == 0
        }
      }
    }

    private func load(
      _ stack: Stack, _ subjects: [String], amounts: ClosedRange<Int64> = 1...3,
      _ random: inout SeededRandom
    ) -> LoadDriver {
      var load = LoadDriver.Options(threads: 8, subjects: subjects, amounts: amounts)
      load.replayRate = 0.2
      load.recordsMayBeLost = true
      load.pause = .milliseconds(1)
      return LoadDriver(stack.endpoints, load, seed: &random)
    }

    private func pass(_ driver: LoadDriver, _ count: Int, _ what: String) throws {
      let before = driver.soFar.decided
      try eventually(within: .seconds(40), "load passes \(what)") {
        driver.soFar.decided > before + count
      }
    }

    private func sum(_ stack: Stack, _ metric: String) -> Double {
      (0..<stack.options.sidecars).reduce(0) { $0 + (stack.metric(metric, sidecar: $1) ?? 0) }
    }

    private static let keys: KeySpace? = (try? Name("live")).map {
      KeySpace(deployment: $0, map: BucketMap(buckets: 1))
    }

    /// The epoch of every bucket, control included, as Redis has it.
    private func epochs(_ stack: Stack) throws -> [Int64] {
      let keys = try #require(Self.keys)
      let redis = try stack.redis.connect()
      return try (0...keys.map.control).map { bucket in
        let text = try redis.command("HGET", keys.meta(bucket), "f").string ?? ""
        return FenceState(text: text, sequence: nil).epoch ?? 0
      }
    }

    /// Older books come back under load: the ledger's cursor is behind, nobody can fill the gap, and
    /// the epoch is closed in a gathering that is held open by a link that never answers. Whatever a
    /// sidecar lets through after it presented would be thrown away with the outbox.
    @Test func olderBooksPutBackUnderLoadLoseOnlyWhatOnlyTheyHad() throws {
      var random = SeededRandom.fromEnvironment("older books")
      let stack = try Stack(
        .init(
          sidecars: 2, buckets: 1, extra: "outbox: {entries: 1000000, tail: 0, batch: 100}",
          accounts: Self.accounts.merging(["gone": "big"]) { first, _ in first }))
      let gone = try (0..<2).map {
        try WireConnection(stack.endpoint($0), token: Stack.checkToken)
      }
      func consume(_ count: Int) throws {
        for number in 0..<count {
          let record = try Self.record("gone/m", 1, &random)
          guard
            case .decision(let decision)? = try gone[number % 2].operate([record], deadline: 5000)
              .first, decision.isAllowed
          else { throw StackFailure(description: "not allowed") }
        }
      }
      // Loaded before the ledger goes: without it nobody could be.
      try Audit.touch(stack, Self.subjects)
      func posted(_ units: Int64) throws {
        try eventually(within: .seconds(20), "\(units) units are posted") {
          try Audit.totals(stack)["gone calls"] == units
        }
      }
      try consume(20)
      try posted(20)
      try stack.copyBooks()
      for index in 0..<2 { try stack.waitReady(index) }
      // Delivered, acknowledged, and in the books that are about to be lost.
      try consume(60)
      try posted(80)
      try delivered(stack)
      try stack.replaceBooks(byCopy: true)
      let driver = load(stack, Self.subjects, &random)
      try pass(driver, 200, "without a ledger")
      try stack.startLedger()
      let silent = try WireConnection(
        .unix(stack.directory.file("ledger.sock")), token: "ledger-token", role: .ledger)
      var buffer = ByteBuffer()
      buffer.writeFrame(
        Link(
          deployment: Deployment(id: try Name("live"), buckets: 1, mode: .dev),
          sidecar: try Name("silent"), incarnation: 1), correlation: 90)
      try silent.send(buffer)
      _ = try silent.frame(.linked, within: 5000)
      try eventually(within: .seconds(30), "a new epoch") { try epochs(stack)[0] >= 2 }
      try pass(driver, 200, "after the recovery")
      var tally = try driver.finish()
      let lost = try Audit.verify(stack).lostSequences
      tally.admitted["gone calls"] = 80 - lost
      try Audit.check(
        stack, tally, subjects: Self.subjects + ["gone/m"], lossesAllowed: true,
        ahead: ["gone calls": lost])
      let reposted = sum(stack, "tollgate_late_reposted_total")
      print("older books: \(lost) lost, \(reposted) reposted, epochs \(try epochs(stack))")
      // All sixty, but for those that were still retained somewhere.
      #expect(lost > 0 && lost <= 60)
      #expect(reposted == 0, "something was let through in an epoch that was presented")
    }

    /// What a ledger does not list, or lists under another epoch, is recovered at once: nobody has
    /// to ask for anything.
    @Test func booksThatKnowOtherEpochsAreToldOfThemWithoutLoad() throws {
      var random = SeededRandom.fromEnvironment("other epochs")
      let stack = try Stack(.init(sidecars: 2, buckets: 1, accounts: ["acme": "big"]))
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      func consume() throws -> Reason? {
        guard
          case .decision(let decision)? = try connection.operate(
            [try Self.record("acme/m", 1, &random)], deadline: 8000
          ).first
        else { return nil }
        return decision.reason
      }
      #expect(try consume() == .allowed)
      #expect(try epochs(stack) == [1, 1])
      try delivered(stack)
      try stack.copyBooks()
      for index in 0..<2 { try stack.waitReady(index) }
      try stack.redis.connect().command("FLUSHALL")
      try eventually(within: .seconds(20), "second epochs, without load") {
        try epochs(stack) == [2, 2]
      }
      // The books of the first epoch.
      try stack.replaceBooks(byCopy: true)
      try stack.startLedger()
      try eventually(within: .seconds(20), "third epochs, without load") {
        try epochs(stack) == [3, 3]
      }
      // Books that know nothing at all.
      try stack.replaceBooks(byCopy: false)
      try stack.startLedger()
      try eventually(within: .seconds(20), "fourth epochs, without load") {
        try epochs(stack) == [4, 4]
      }
      for index in 0..<2 { try stack.waitReady(index) }
    }

    static let rewindable = ["--enable-debug-command", "yes"]

    /// Redis goes back to an older state of itself, in place: same run id, same replication id, same
    /// epoch. Only the sequence tells, and the time.
    @Test func redisPutBackInPlaceUnderLoadTenTimes() throws {
      var random = SeededRandom.fromEnvironment("put back in place")
      var accounts = Self.accounts
      for number in 0..<8 { accounts["tiny-\(number)"] = "small" }
      let stack = try Stack(
        .init(
          sidecars: 2, buckets: 2, persistence: .none, redisWords: Self.rewindable,
          extra: "event_loops: 2", accounts: accounts))
      let subjects = Self.subjects + (0..<8).map { "tiny-\($0)/m" }
      let driver = load(stack, subjects, amounts: 1...5, &random)
      for number in 0..<10 {
        try pass(driver, 60, "before snapshot \(number)")
        try stack.redis.connect().command("SAVE")
        try pass(driver, 60, "after snapshot \(number)")
        Thread.sleep(forTimeInterval: random.unit() * 0.1)
        try stack.redis.connect().command("DEBUG", "RELOAD", "NOSAVE")
      }
      try eventually(within: .seconds(40), "load passes, up to the limits") {
        (driver.soFar.denied[.quotaExceeded] ?? 0) > 100
      }
      let tally = try driver.finish()
      for number in 0..<8 { #expect(tally.units("tiny-\(number)", "calls") <= 500) }
      // Both sidecars live: between them they hold everything.
      try Audit.check(stack, tally, subjects: subjects)
    }

    /// One connection saw how far the bucket was; the loops that did not, the shipper and the other
    /// sidecar must know it too.
    @Test func whatOneLoopSawFencesEveryOther() throws {
      var random = SeededRandom.fromEnvironment("one loop saw")
      let stack = try Stack(
        .init(
          sidecars: 2, buckets: 1, persistence: .none, redisWords: Self.rewindable,
          extra: "event_loops: 2", accounts: ["tiny": "small"]))
      var admitted: Int64 = 0
      var answers: [Reason: Int] = [:]
      var tooOld = 0
      func use(_ connection: WireConnection, _ count: Int, _ amount: Int64) throws {
        var left = count
        while left > 0 {
          let record = try Self.record("tiny/m", amount, &random)
          switch try connection.operate([record], deadline: 8000).first {
          case .decision(let decision)?:
            left -= 1
            answers[decision.reason, default: 0] += 1
            if decision.isAllowed { admitted += amount }
          // Minted before the loss was seen: refused, and asked anew.
          case .error(.idTooOld, _)?: tooOld += 1
          default: throw StackFailure(description: "no decision")
          }
        }
      }
      let first = try WireConnection(stack.endpoint(1), token: Stack.checkToken)
      try use(first, 20, 5)
      try delivered(stack)
      try stack.redis.connect().command("SAVE")
      // Of these the second loop of this sidecar hears nothing.
      try use(try WireConnection(stack.endpoint(0), token: Stack.checkToken), 40, 5)
      try use(first, 30, 5)
      try delivered(stack)
      try stack.redis.connect().command("DEBUG", "RELOAD", "NOSAVE")
      for _ in 0..<4 {
        try use(try WireConnection(stack.endpoint(1), token: Stack.checkToken), 30, 5)
      }
      print("one loop saw: \(admitted) admitted of 500, \(answers), \(tooOld) too old")
      #expect(tooOld <= 1)
      #expect(admitted == 500)
      var tally = LoadTally()
      tally.admitted = ["tiny calls": admitted]
      try Audit.check(stack, tally, subjects: ["tiny/m"])
    }

    /// Nothing is lost but denials, which bear no delta: the sequence stands where it stood.
    @Test func redisPutBackInPlaceThatLostOnlyDenialsIsNoticed() throws {
      var random = SeededRandom.fromEnvironment("put back, denials")
      let stack = try Stack(
        .init(
          sidecars: 1, buckets: 1, persistence: .none, redisWords: Self.rewindable,
          accounts: ["tiny": "small"]))
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      func use(_ record: OperationRecord) throws -> DecisionRecord? {
        try connection.operate([record], deadline: 8000).first
      }
      _ = try use(try Self.record("tiny/m", 500, &random))
      try delivered(stack)
      try stack.redis.connect().command("SAVE")
      let refused = try (0..<5).map { _ in try Self.record("tiny/m", 1, &random) }
      for record in refused {
        guard case .decision(let decision)? = try use(record) else {
          throw StackFailure(description: "no decision")
        }
        #expect(decision.reason == .quotaExceeded && !decision.replayed)
      }
      try stack.redis.connect().command("DEBUG", "RELOAD", "NOSAVE")
      for record in refused {
        guard case .error(.idTooOld, _)? = try use(record) else {
          Issue.record("a denial that was lost was decided anew")
          continue
        }
      }
      #expect(try epochs(stack)[0] == 2)
      // Once: the time is seen anew in the new epoch, and what is denied there is remembered.
      let record = try Self.record("tiny/m", 1, &random)
      for isAgain in [false, true] {
        guard case .decision(let decision)? = try use(record) else {
          throw StackFailure(description: "no decision")
        }
        #expect(decision.reason == .quotaExceeded && decision.replayed == isAgain)
      }
      #expect(try epochs(stack)[0] == 2)
    }

    /// Nobody asks for anything: the shipper's round sees it.
    @Test func redisPutBackInPlaceIsSeenWithoutLoad() throws {
      var random = SeededRandom.fromEnvironment("put back, no load")
      let stack = try Stack(
        .init(
          sidecars: 1, buckets: 1, persistence: .none, redisWords: Self.rewindable,
          accounts: ["acme": "big"]))
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      func consume() throws {
        _ = try connection.operate([try Self.record("acme/m", 1, &random)], deadline: 5000)
      }
      for _ in 0..<10 { try consume() }
      try delivered(stack)
      try stack.redis.connect().command("SAVE")
      for _ in 0..<10 { try consume() }
      try delivered(stack)
      try stack.redis.connect().command("DEBUG", "RELOAD", "NOSAVE")
      try eventually(within: .seconds(10), "a new epoch") { try epochs(stack)[0] == 2 }
      var tally = LoadTally()
      tally.admitted = ["acme calls": 20]
      try Audit.check(stack, tally, subjects: ["acme/m"])
    }
  }
}
