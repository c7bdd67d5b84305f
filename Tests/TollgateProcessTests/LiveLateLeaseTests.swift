// Batches of leased use that Redis does not know any more, while the ledger cannot say whether it
// has them: whatever ends the sidecar then, they are in the books once.

import Foundation
import Testing
import TollgateCore
import TollgateRedis
import TollgateTesting
import TollgateWire

extension LiveTests.Leases {
  struct LateBatch: Sendable, CustomTestStringConvertible {
    /// Redis had done it, and nobody heard.
    var wasDone = true
    /// Accounts are known in Redis, so it can be appended there without the ledger.
    var isSeeded = true
    var hasJournal = true

    static let all = [
      LateBatch(), LateBatch(wasDone: false), LateBatch(isSeeded: false),
      LateBatch(wasDone: false, isSeeded: false),
    ]

    static let appended = [
      LateBatch(hasJournal: false), LateBatch(wasDone: false, hasJournal: false),
    ]

    var testDescription: String {
      (wasDone ? "done" : "not done") + (isSeeded ? ", seeded" : ", not seeded")
        + (hasJournal ? "" : ", no journal")
    }
  }

  /// The ledger is away; batches of all accounts are in doubt, and too old for Redis.
  private final class LateScene {
    let stack: Stack
    let accounts = (0..<4).map { "a\($0)" }
    private var total = LeaseTally()

    init(_ batch: LateBatch, more: String = "", _ random: inout SeededRandom) throws {
      var options = LiveTests.Leases.options(1_000_000_000, sidecars: 1, accounts: accounts)
      options.journals = batch.hasJournal
      options.proxies = true
      options.extra = "limits: {drain_ms: 5000, redis_slow_ms: 10000}\n" + more
      stack = try Stack(options)
      try lease(&random)
      stack.ledger?.kill()
      try eventually(within: .seconds(10), "the ledger is away") {
        stack.metric("tollgate_ledger_up", sidecar: 0) == 0
      }
      try batch.wasDone ? leave(toClient: 2_000, &random) : leave(toServer: 2_000, &random)
      try forget(isSeeded: batch.isSeeded)
      let proxy = try #require(stack.redisProxy)
      proxy.dropAll()
      proxy.delay()
      try eventually(within: .seconds(5), every: .milliseconds(2), "batches are late") {
        lateExchanges > 0
      }
    }

    var lateExchanges: Double {
      stack.metric("tollgate_lease_late_exchanges", sidecar: 0) ?? 0
    }

    private func lease(_ random: inout SeededRandom) throws {
      var load = LeaseDriver.Options(callers: 4, subjects: accounts.map { "\($0)/ann/7" })
      load.replayRate = 0
      let driver = LeaseDriver(stack.endpoints, load, seed: &random)
      try eventually(within: .seconds(60), "leases answer") {
        driver.soFar.sources[.lease] ?? 0 > 1_000
      }
      total = try driver.finish()
      // All of that is in the books: it is not what this is about.
      try eventually(within: .seconds(30), "the ledger has it") {
        stack.metric("tollgate_retained_deltas", sidecar: 0) == 0
          && stack.metric("tollgate_lease_unsettled_units", sidecar: 0) == 0
      }
    }

    /// Something is let through, and sent on a way that is longer than it has time for.
    private func leave(
      toServer: Int64 = 0, toClient: Int64 = 0, _ random: inout SeededRandom
    ) throws {
      try #require(stack.redisProxy).delay(
        toServer: .milliseconds(toServer), toClient: .milliseconds(toClient))
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      for account in accounts {
        let sources = try ask(connection, account, 1, deadline: 5_000, &random)
        #expect(sources == [.lease])
      }
      // Of a few accounts what is used is sent a tick later.
      Thread.sleep(forTimeInterval: 0.7)
    }

    /// Whence came the answers that let it through.
    @discardableResult
    func ask(
      _ connection: WireConnection, _ account: String, _ count: Int, deadline: UInt32,
      _ random: inout SeededRandom
    ) throws -> [Source] {
      let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      let records = try (0..<count).map { _ in
        OperationRecord(
          id: OperationID(time: time, using: &random), subject: try Subject("\(account)/ann/7"),
          items: [Item(feature: try Name("edits"), amount: 3)])
      }
      var sources: [Source] = []
      for answer in try connection.operate(records, deadline: deadline) {
        guard case .decision(let decision) = answer, decision.isAllowed else { continue }
        total.admitted[account, default: 0] += 3
        sources.append(decision.source)
      }
      return sources
    }

    /// What was sent until now is forgotten in Redis, as after ten minutes; and the accounts are.
    private func forget(isSeeded: Bool) throws {
      let redis = try stack.redis.connect()
      let keys = KeySpace(
        deployment: try Name("live"), map: BucketMap(buckets: stack.options.buckets))
      let now = Int64(Date().timeIntervalSince1970 * 1000)
      for account in accounts {
        let lessee = try #require(try LiveTests.Leases.lessees(stack, account).first)
        let subject = try Subject(account)
        let bucket = keys.bucket(of: subject)
        try redis.command(
          "EVAL", "return redis.call('SET', KEYS[1], struct.pack('>dd', ARGV[1], ARGV[2]))", "1",
          keys.leaseCalls(bucket, lessee), "\(now)", "\(now + 720_000)")
        if !isSeeded { try redis.command("HDEL", keys.subject(bucket, subject), "e") }
      }
    }

    /// With the ledger, and whoever comes after a sidecar that is gone, the books are what callers
    /// were told.
    func audit(startsSidecar: Bool = true) throws {
      try stack.startLedger()
      if startsSidecar { try stack.startSidecar(0) }
      try stack.waitReady(0)
      let open = ["lease_recovering", "lease_late_exchanges", "late_deltas", "retained_deltas"]
      try eventually(within: .seconds(30), "nothing of it is left") {
        open.allSatisfy { stack.metric("tollgate_\($0)", sidecar: 0) == 0 }
      }
      try LiveTests.Leases.audit(stack, total, subjects: accounts)
    }
  }

  /// Where Redis can count them they are appended unasked; where not, the journal has them.
  @Test(arguments: LateBatch.all) func aKillWhileTheLedgerIsLongAwayLosesNoLateBatch(
    _ batch: LateBatch
  ) throws {
    var random = SeededRandom.fromEnvironment("aKillWhileTheLedgerIsLongAway")
    let scene = try LateScene(batch, &random)
    let found = scene.lateExchanges
    if batch.isSeeded {
      try eventually(within: .seconds(10), "they are appended") { scene.lateExchanges == 0 }
    } else {
      Thread.sleep(forTimeInterval: 7)
      #expect(scene.lateExchanges == found)
    }
    scene.stack.sidecar(0)?.kill()
    try scene.audit()
  }

  @Test(arguments: LateBatch.all + LateBatch.appended)
  func aSidecarThatGoesWithoutALedgerLosesNoLateBatch(_ batch: LateBatch) throws {
    var random = SeededRandom.fromEnvironment("aSidecarThatGoesWithoutALedger")
    let scene = try LateScene(batch, &random)
    let child = try #require(scene.stack.sidecar(0))
    child.signal(SIGTERM)
    #expect(try child.wait(within: .seconds(9)) == .exited(0))
    #expect(!scene.stack.logs.contains("late deltas are lost"))
    try scene.audit()
  }
  /// It is told of, and what else there is to do on the way down is done.
  @Test func withoutAJournalABatchThatNobodyCanCountIsLostWithASidecarThatGoes() throws {
    var random = SeededRandom.fromEnvironment("withoutAJournalABatchThatNobodyCanCount")
    let scene = try LateScene(
      LateBatch(wasDone: false, isSeeded: false, hasJournal: false), &random)
    let child = try #require(scene.stack.sidecar(0))
    child.signal(SIGTERM)
    #expect(try child.wait(within: .seconds(9)) == .exited(0))
    #expect(scene.stack.logs.contains("late deltas are lost"))
  }

  /// Operations that Redis decides meanwhile take the room that a late batch keeps: before there is
  /// none it is given up, which is told; and posted all the same if the sidecar lives.
  @Test func aLateBatchThatStandsInTheWayIsGivenUpAndToldOf() throws {
    var random = SeededRandom.fromEnvironment("aLateBatchThatStandsInTheWay")
    let scene = try LateScene(
      LateBatch(wasDone: false, isSeeded: false), more: "leases: {operations: 65536}", &random)
    func givenUp() -> Double {
      scene.stack.metric("tollgate_lease_late_exchanges_given_up_total", sidecar: 0) ?? -1
    }
    #expect(givenUp() == 0)
    let connection = try WireConnection(scene.stack.endpoint(0), token: Stack.checkToken)
    try eventually(within: .seconds(30), every: .zero, "one is given up") {
      try scene.ask(connection, scene.accounts[0], 128, deadline: 20, &random)
      return givenUp() > 0
    }
    #expect(scene.stack.logs.contains("is not kept until the ledger has it"))
    try scene.audit(startsSidecar: false)
  }
}
