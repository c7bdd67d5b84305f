// The fence, and what comes after it: every way in which Redis can lose what it knew is seen by
// the first call, before anything is written.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsFenceTests {
  private func fenced(_ reply: DecideReply) -> FenceState? {
    if case .fenced(let state) = reply { state } else { nil }
  }

  @Test func pitfall04_aFlushedRedisIsFenced() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 1))
    try rig.redis.command("FLUSHALL")
    try rig.setNow(rig.now)
    let state = try #require(fenced(try rig.consume("acme", ("tokens", 1))))
    #expect(state.difference(from: rig.fence) == .missing)
    #expect(try rig.dump().isEmpty)
  }

  @Test func pitfall04_anOlderSnapshotPutBackIsFencedByTheSequenceSeen() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 1))
    let snapshot = try rig.server.snapshot()
    _ = try rig.consume("acme", ("tokens", 1))
    rig.fence.seenSequence = 2
    try rig.server.rollBack(to: snapshot)
    let redis = try rig.server.connect()
    for script in rig.library.scripts {
      _ = try redis.pipeline([[Array("SCRIPT".utf8), Array("LOAD".utf8), script.source]])
    }
    let call = try rig.call("acme", [("tokens", 1)])
    let reply = call.decode(
      RESPReply(try redis.pipeline([StoreRig.command(call, rig.library)])[0]))
    let state = try #require(fenced(reply))
    #expect(state.sequence == 1 && state.difference(from: rig.fence) == .sequence)
  }

  @Test(arguments: Fence.Difference.allFenced)
  func aBucketOfAnotherIncarnationIsFenced(_ difference: Fence.Difference) throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 1))
    switch difference {
    case .deployment: rig.fence.deployment = try Name("other")
    case .epoch: rig.fence.epoch = 2
    case .runID: rig.fence.runID = "other"
    case .replicationID: rig.fence.replicationID = "other"
    case .sequence: rig.fence.seenSequence = 2
    case .time: rig.fence.seenTime = rig.now + 1
    case .missing: try rig.redis.command("DEL", rig.keySpace.meta(0))
    }
    let before = try rig.dump()
    let state = try #require(fenced(try rig.consume("acme", ("tokens", 1))))
    #expect(state.difference(from: rig.fence) == difference)
    #expect(fenced(try rig.consume("acme", ("tokens", 1), mode: .check)) != nil)
    #expect(try rig.dump() == before)
  }

  @Test(
    arguments: Scenario.all.filter {
      ![.open, .own, .deployment, .readAccount].contains($0.script)
    })
  func everyMutatingScriptIsFencedBeforeItsFirstWrite(_ scenario: Scenario) throws {
    let rig = try StoreRig.ready()
    let command = try scenario.prepare(rig)
    for bucket in [0, 1]
    where try rig.redis.command("EXISTS", rig.keySpace.meta(bucket)).integer == 1 {
      try rig.redis.command("HSET", rig.keySpace.meta(bucket), "f", "test 1 another repl")
    }
    let before = try rig.dump()
    let reply = RESPReply(try rig.redis.pipeline([command])[0])
    #expect(reply.code == .fenced, "\(reply)")
    #expect(try rig.dump() == before)
  }

  /// By time alone: what was lost bore no delta.
  @Test(arguments: Scenario.fenced)
  func everyMutatingScriptIsFencedWhereTimeWentBack(_ scenario: Scenario) throws {
    let rig = try StoreRig.ready()
    rig.fence.seenTime = rig.now
    let command = try scenario.prepare(rig)
    for bucket in [0, 1]
    where try rig.redis.command("EXISTS", rig.keySpace.meta(bucket)).integer == 1 {
      let before = "\(rig.fence.seenTime.milliseconds * 1000 - 1)"
      try rig.redis.command("HSET", rig.keySpace.meta(bucket), "t", before)
    }
    let dump = try rig.dump()
    let reply = RESPReply(try rig.redis.pipeline([command])[0])
    #expect(reply.code == .fenced, "\(reply)")
    #expect(try rig.dump() == dump)
  }

  @Test func whatWasSeenAtTheTimeThatStandsIsNoReasonToFence() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 1))
    rig.fence.seenTime = rig.now
    #expect(try rig.consume("acme", ("tokens", 1)).reason == .allowed)
  }

  @Test func anEpochOnlyGoesUp() throws {
    let rig = try StoreRig.ready()
    #expect(try rig.open(epoch: 1) == .alreadyOpen)
    #expect(try rig.open(epoch: 3, hadPredecessor: true) == .opened)
    rig.fence.runID = "later"
    guard case .refused(let state) = try rig.open(epoch: 3) else {
      Issue.record("an epoch was opened twice")
      return
    }
    #expect(state.epoch == 3)
    guard case .refused = try rig.open(epoch: 2) else {
      Issue.record("an epoch went down")
      return
    }
  }

  @Test func pitfall25_aNewEpochStartsAnEmptyOutboxAndNotesTheOldOne() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 1))
    _ = try rig.consume("acme", ("tokens", 1))
    try rig.open(epoch: 2, hadPredecessor: true)
    #expect(try rig.outbox(epoch: 1).isEmpty)
    let meta = try #require(try rig.read(Reads.meta(rig.keySpace, bucket: 0)))
    #expect(meta.fence.epoch == 2 && meta.fence.sequence == 0)
    #expect(meta.predecessor == StreamPosition(epoch: 1, sequence: 2))
    try rig.seed()
    #expect(try rig.consume("acme", ("tokens", 1)).decided?.entries[0].sequence == 1)
    #expect(try rig.outbox(epoch: 2).map(\.sequence) == [1])
  }

  @Test func theAnswerOfAnOperationSurvivesANewEpoch() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 1)])
    _ = try rig.run(call)
    try rig.open(epoch: 2, hadPredecessor: true)
    var again = call
    again.fence = rig.fence
    #expect(try rig.run(again).replayed?.epoch == 1)
  }

  @Test func pitfall07_seedingTwiceOrByTwoSidecarsCountsOnce() throws {
    let rig = try StoreRig.ready()
    try rig.open(epoch: 2, hadPredecessor: true)
    #expect(try rig.consume("acme/ann", ("chat", 1)) == .rebuild)
    let calls = try Scenario.seeding(rig)
    #expect(try rig.run(calls[0]) == .done(.seeded))
    #expect(try rig.run(calls[0]) == .done(.seeded))
    #expect(try rig.consume("acme/ann", ("chat", 1)) == .rebuild)
    #expect(try rig.run(calls[1]) == .done(.seeded))
    #expect(try rig.run(calls[1]) == .done(.alreadyCurrent))
    #expect(try rig.run(calls[0]) == .done(.alreadyCurrent))
    rig.account.version = 5
    try rig.advance(20_000)
    _ = try rig.consume("acme/ann", ("chat", 1))
    #expect(try rig.run(calls[0]) == .done(.alreadyCurrent))
    #expect(try rig.settled("acme/ann", "chat", .hour) == 5)
    #expect(try rig.settled("acme", "chat", .day) == 5)
  }

  @Test func countersOfAnOlderEpochCountAsEmpty() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 6))
    try rig.open(epoch: 2, hadPredecessor: true)
    try rig.seed()
    try rig.advance(20_000)
    let decision = try #require(try rig.consume("acme/ann", ("chat", 1)).decided).decision
    #expect(decision.reason == .allowed && decision.items[0].settled == 1)
  }

  @Test func aRateRestartsWithoutBurst() throws {
    let rig = try StoreRig.ready()
    #expect(try rig.consume("acme", ("ping", 2)).reason == .allowed)
    try rig.open(epoch: 2, hadPredecessor: true)
    try rig.seed()
    #expect(try rig.consume("acme", ("ping", 1)).reason == .rateLimited)
    try rig.advance(500)
    #expect(try rig.consume("acme", ("ping", 1)).reason == .allowed)
  }

  @Test func anAccountOfManyCellsIsSeededInOneLastChunk() throws {
    let rig = try StoreRig.ready()
    try rig.open(epoch: 2, hadPredecessor: true)
    let cells = try (0..<2304).map {
      SeedCell(
        subject: try Subject("acme"), feature: try Name("f\($0)"), window: .month,
        period: Window.month.period(containing: rig.now), settled: Int64($0))
    }
    try rig.seed(cells: cells)
    #expect(try rig.counters("acme").cells.count == 2304)
    #expect(try rig.settled("acme", "f2303", .month) == 2303)
  }

  @Test func trimmingKeepsCountingAndIsBoundedByTheAcknowledged() throws {
    let rig = try StoreRig.ready()
    for _ in 0..<5 { _ = try rig.consume("acme", ("tokens", 1)) }
    func trim(_ acknowledged: Int64, tail: Int64) throws -> StoreReply<Int64> {
      try rig.run(
        TrimCall(
          keySpace: rig.keySpace, bucket: 0, fence: rig.fence, acknowledged: acknowledged,
          tail: tail))
    }
    #expect(try trim(3, tail: 1) == .done(2))
    #expect(try trim(2, tail: 1) == .done(0))
    #expect(try trim(6, tail: 0).value == nil)
    #expect(try rig.outbox().map(\.sequence) == [3, 4, 5])
    #expect(try trim(5, tail: 0) == .done(3))
    #expect(try rig.consume("acme", ("tokens", 1)).decided?.entries[0].sequence == 6)
  }

  @Test func pitfall28_aBucketHasOneOwnerAtATime() throws {
    let rig = try StoreRig.ready()
    func own(_ who: String, _ ttl: Int64) throws -> OwnCall.Outcome {
      let call = OwnCall(
        keySpace: rig.keySpace, bucket: 0, owner: who, timeToLiveMilliseconds: ttl)
      return try #require(try rig.run(call).value)
    }
    #expect(try own("a", 60_000) == .mine)
    guard case .owned(by: "a", _) = try own("b", 60_000) else {
      Issue.record("two owners")
      return
    }
    #expect(try own("a", 60_000) == .mine)
    #expect(try own("b", 0) == .free)
    guard case .owned(by: "a", _) = try own("b", 60_000) else {
      Issue.record("another one's ownership was given up")
      return
    }
    #expect(try own("a", 0) == .free)
    #expect(try own("b", 60_000) == .mine)
  }

  @Test func theDeploymentRecordIsWrittenOnceAndCompared() throws {
    let rig = try StoreRig.ready()
    let ours = Deployment(id: rig.keySpace.deployment, buckets: 1, mode: .prod)
    #expect(
      try rig.run(DeploymentCall(keySpace: rig.keySpace, deployment: ours)) == .done(ours))
    let other = Deployment(id: rig.keySpace.deployment, buckets: 64, mode: .dev)
    let recorded = try #require(
      try rig.run(DeploymentCall(keySpace: rig.keySpace, deployment: other)).value)
    #expect(other.differences(from: recorded).map(\.field) == ["buckets", "mode"])
  }
}

extension Scenario {
  /// `own` and `deployment` know no epoch, `open` makes it, `read_account` reports it.
  static let fenced = all.filter {
    ![.open, .own, .deployment, .readAccount].contains($0.script)
  }
}

extension Fence.Difference {
  static let allFenced: [Fence.Difference] = [
    .missing, .deployment, .epoch, .runID, .replicationID, .sequence, .time,
  ]
}
