// An outbox outlives its epoch: opening the next sets it aside, and what is moved out of it lies in
// exactly one place at every moment, whoever moves it and how often.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsLateTests {
  /// A bucket whose epoch 1 ended with this many deltas in its outbox, open under epoch 2.
  static func reopened(_ count: Int) throws -> StoreRig {
    let rig = try StoreRig.ready()
    for amount in 0..<count { _ = try rig.consume("acme", ("tokens", Int64(amount + 1))) }
    try rig.open(epoch: 2, hadPredecessor: true)
    return rig
  }

  static func move(
    _ rig: StoreRig, from epoch: Int64 = 1, through: Int64, unknown: [Int64]
  ) -> MoveLateCall {
    MoveLateCall(
      keySpace: rig.keySpace, bucket: 0, fence: rig.fence, epoch: epoch, through: through,
      unknown: unknown)
  }

  private func meta(_ rig: StoreRig) throws -> BucketMeta {
    try #require(try rig.read(Reads.meta(rig.keySpace, bucket: 0)))
  }

  private func late(_ rig: StoreRig, _ epoch: Int64 = 1) throws -> [OutboxEntry] {
    try rig.read(Reads.lateOutbox(rig.keySpace, bucket: 0, epoch: epoch, count: 1000)).entries
  }

  @Test func aNewEpochSetsTheOutboxAside() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 3))
    let held = try rig.outbox()
    try rig.open(epoch: 2, hadPredecessor: true)
    #expect(try late(rig) == held)
    #expect(try rig.outbox(epoch: 2).isEmpty)
    #expect(try meta(rig).late == [1])
    #expect(try !meta(rig).isSettled)
  }

  @Test func withoutALedgerItIsDropped() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 3))
    try rig.open(epoch: 2, hadPredecessor: true, hasLedger: false)
    #expect(try late(rig).isEmpty)
    #expect(try meta(rig).isSettled)
  }

  @Test func whereNothingLayInTheOutboxNothingIsSetAside() throws {
    let rig = try Self.reopened(0)
    #expect(try meta(rig).isSettled)
    #expect(try rig.redis.command("EXISTS", rig.keySpace.late(0, epoch: 1)).integer == 0)
  }

  @Test func aBucketThatStandsElsewhereThanItWasFoundIsNotOpened() throws {
    let rig = try Self.reopened(1)
    rig.fence.epoch = 3
    let before = try rig.dump()
    let call = OpenCall(
      keySpace: rig.keySpace, bucket: 0, fence: rig.fence, globalVersion: 1, hadPredecessor: true,
      records: .init(known: nil, found: nil, milliseconds: 0), lateEpoch: 1)
    guard case .done(.refused(let state)) = try rig.run(call) else {
      Issue.record("the outbox of another epoch was set aside under a wrong name")
      return
    }
    #expect(state.epoch == 2)
    #expect(try rig.dump() == before)
  }

  @Test func whatIsUnknownIsMovedWordForWordAndTheRestIsDropped() throws {
    let rig = try Self.reopened(4)
    let held = try late(rig)
    let moved = try rig.run(Self.move(rig, through: 4, unknown: [2, 4]))
    #expect(moved == .done(.init(lastSequence: 2, count: 2, isLeft: false)))
    var expected = [held[1], held[3]]
    for index in expected.indices { expected[index].sequence = Int64(index + 1) }
    #expect(try rig.outbox(epoch: 2) == expected)
    #expect(try late(rig).isEmpty)
    let meta = try meta(rig)
    #expect(meta.late.isEmpty && meta.moved == 2 && meta.fence.sequence == 2)
    #expect(!meta.isSettled)
    // No counter has moved: the account is seeded from the ledger afterwards.
    #expect(try rig.settled("acme", "tokens", .month) == 10)
    _ = try rig.run(
      TrimCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, acknowledged: 2, tail: 0))
    #expect(try self.meta(rig).isSettled)
  }

  @Test func whereTheLedgerHasAllNothingIsMoved() throws {
    let rig = try Self.reopened(3)
    let moved = try rig.run(Self.move(rig, through: 3, unknown: []))
    #expect(moved == .done(.init(lastSequence: 0, count: 0, isLeft: false)))
    #expect(try rig.outbox(epoch: 2).isEmpty)
    #expect(try meta(rig).isSettled)
    #expect(try rig.redis.command("EXISTS", rig.keySpace.late(0, epoch: 1)).integer == 0)
  }

  @Test func pageByPageAndTwiceByTwoSidecarsEachIsMovedOnce() throws {
    let rig = try Self.reopened(5)
    let first = Self.move(rig, through: 2, unknown: [1, 2])
    #expect(try rig.run(first) == .done(.init(lastSequence: 2, count: 2, isLeft: true)))
    #expect(try rig.run(first) == .done(.init(lastSequence: 2, count: 0, isLeft: true)))
    #expect(try meta(rig).late == [1])
    let rest = Self.move(rig, through: 5, unknown: [3, 5])
    #expect(try rig.run(rest) == .done(.init(lastSequence: 4, count: 2, isLeft: false)))
    #expect(try rig.run(rest) == .done(.init(lastSequence: 4, count: 0, isLeft: false)))
    #expect(try rig.outbox(epoch: 2).map(\.actual) == [1, 2, 3, 5])
    #expect(try meta(rig).late.isEmpty)
  }

  @Test func severalEpochsAreKeptUntilEachIsEmpty() throws {
    let rig = try Self.reopened(2)
    _ = try rig.run(Self.move(rig, through: 1, unknown: [1]))
    try rig.open(epoch: 3, hadPredecessor: true)
    #expect(try meta(rig).late == [1, 2])
    #expect(try late(rig, 1).map(\.actual) == [2])
    #expect(try late(rig, 2).map(\.actual) == [1])
    _ = try rig.run(Self.move(rig, from: 2, through: 1, unknown: [1]))
    #expect(try meta(rig).late == [1])
    _ = try rig.run(Self.move(rig, from: 1, through: 2, unknown: [2]))
    #expect(try meta(rig).late.isEmpty)
    #expect(try rig.outbox(epoch: 3).map(\.actual) == [1, 2])
  }

  @Test func itWorksWhenMemoryIsFull() throws {
    let rig = try Self.reopened(2)
    try rig.redis.command("CONFIG", "SET", "maxmemory", "1mb")
    #expect(try rig.run(Self.move(rig, through: 2, unknown: [1, 2])).value?.count == 2)
  }

  @Test func anEntryThatCannotBeReadDoesNotHoldUpTheRest() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 1))
    try rig.redis.command("XADD", rig.keySpace.outbox(0), "1-2", "d", "x", "b", "y")
    try rig.open(epoch: 2, hadPredecessor: true)
    let page = try rig.read(Reads.lateOutbox(rig.keySpace, bucket: 0, epoch: 1, count: 10))
    #expect(page.entries.map(\.sequence) == [1] && page.through == 2 && page.unreadable == 1)
  }
}
