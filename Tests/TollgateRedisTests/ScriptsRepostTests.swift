// A delta put into the outbox anew: same identity, same words, counted in its own period, once in
// effect however often it is repeated.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsRepostTests {
  /// A delta as a sidecar would still hold it, borne at `time`.
  struct Late {
    var keySpace: KeySpace
    var entry: OutboxEntry
    var subject: Subject
    var feature: Name
    var cells: [CellReference]
    var call: RepostCall

    func call(under fence: Fence) -> RepostCall {
      var call = call
      call.fence = fence
      return call
    }
  }

  static func late(
    _ rig: StoreRig, _ path: String, _ feature: String, _ amount: Int64, at time: WallTime? = nil,
    kind: DeltaKind = .usage
  ) throws -> Late {
    let time = time ?? rig.now
    let subject = try Subject(path)
    let resolution = Resolution.resolve(
      subject: subject, items: [Item(feature: try Name(feature), amount: amount)],
      global: rig.global, account: rig.account, now: time, zones: .utcOnly)
    let cells = resolution.cells.map {
      CellReference(level: $0.level, window: $0.window, period: $0.period)
    }
    let entry = OutboxEntry(
      sequence: 0, kind: kind,
      id: DeltaID(
        operation: OperationID(time: time, using: &rig.random), index: kind == .reversal ? 64 : 0),
      time: time, actual: amount, charged: amount, absorbed: 0, body: Array("late".utf8))
    return Late(
      keySpace: rig.keySpace, entry: entry, subject: subject, feature: try Name(feature),
      cells: cells,
      call: RepostCall(
        keySpace: rig.keySpace, fence: rig.fence, entry: entry, subject: subject,
        feature: try Name(feature), cells: cells))
  }

  @Test func itLiesInTheOutboxWordForWordAndCounts() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 1))
    let late = try Self.late(rig, "acme/ann", "chat", 3, at: rig.now + (-500))
    #expect(try rig.run(late.call) == .done(.appended(sequence: 2)))
    var expected = late.entry
    expected.sequence = 2
    #expect(try rig.outbox().last == expected)
    #expect(try rig.settled("acme", "chat", .day) == 4)
    #expect(try rig.settled("acme", "chat", .month) == 4)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 4)
    #expect(try rig.read(Reads.meta(rig.keySpace, bucket: 0))?.fence.sequence == 2)
    // The limits see it: 10 a day.
    #expect(try rig.consume("acme/bob", ("chat", 6)).reason == .allowed)
    #expect(try rig.consume("acme/bob", ("chat", 1)).reason == .quotaExceeded)
  }

  @Test func aLimitThatIsFullDoesNotKeepItOut() throws {
    let rig = try StoreRig.ready()
    rig.limits.outboxEntriesMax = 0
    _ = try rig.run(try Self.late(rig, "acme", "tokens", 900).call)
    _ = try rig.run(try Self.late(rig, "acme", "tokens", 900).call)
    #expect(try rig.settled("acme", "tokens", .month) == 1800)
  }

  @Test func aReversalTakesItsUnitsOff() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 10))
    _ = try rig.run(try Self.late(rig, "acme", "tokens", -10, kind: .reversal).call)
    #expect(try rig.settled("acme", "tokens", .month) == 0)
    #expect(try rig.outbox().map(\.kind) == [.usage, .reversal])
  }

  @Test func itNeedsAnAccountSeededInThisEpoch() throws {
    let rig = try StoreRig.ready()
    let late = try Self.late(rig, "acme/ann", "chat", 2)
    try rig.open(epoch: 2, hadPredecessor: true)
    let before = try rig.dump()
    #expect(try rig.run(late.call(under: rig.fence)) == .done(.unseeded))
    #expect(try rig.dump() == before)
    try rig.seed()
    #expect(try rig.run(late.call(under: rig.fence)) == .done(.appended(sequence: 1)))
    #expect(try rig.outbox(epoch: 2).map(\.id) == [late.entry.id])
    #expect(try rig.settled("acme/ann", "chat", .hour) == 2)
  }

  @Test func anotherEpochOrAnotherServerIsFenced() throws {
    let rig = try StoreRig.ready()
    let late = try Self.late(rig, "acme", "tokens", 2)
    let before = try rig.dump()
    var fence = rig.fence
    fence.epoch = 9
    guard case .fenced = try rig.run(late.call(under: fence)) else {
      Issue.record("not fenced")
      return
    }
    fence = rig.fence
    fence.seenSequence = 1
    guard case .fenced = try rig.run(late.call(under: fence)) else {
      Issue.record("a sequence that was lost is not fenced")
      return
    }
    #expect(try rig.dump() == before)
  }

  @Test func itCountsInThePeriodItWasBornIn() throws {
    let rig = try StoreRig.ready()
    let birth = rig.now
    _ = try rig.consume("acme/ann", ("chat", 1))
    try rig.setNow(Window.hour.period(containing: birth).end + 1000)
    _ = try rig.consume("acme/ann", ("chat", 1))
    _ = try rig.run(try Self.late(rig, "acme/ann", "chat", 2, at: birth).call)
    var cell = try #require(try rig.counters("acme/ann").cell(feature: Name("chat"), window: .hour))
    #expect(cell.settled == 1 && cell.previousSettled == 3)
    // A cell that slept through the hours since rolls forward, and keeps what it had as previous.
    try rig.setNow(rig.now + 10 * 3_600_000)
    _ = try rig.run(try Self.late(rig, "acme/ann", "chat", 2).call)
    cell = try #require(try rig.counters("acme/ann").cell(feature: Name("chat"), window: .hour))
    #expect(cell.settled == 2 && cell.previousSettled == 1)
    // Between the current period and the one before that was used: it becomes the one before.
    _ = try rig.run(
      try Self.late(rig, "acme/ann", "chat", 5, at: rig.now + (-3_600_000)).call)
    cell = try #require(try rig.counters("acme/ann").cell(feature: Name("chat"), window: .hour))
    #expect(cell.settled == 2 && cell.previousSettled == 5)
    // No longer held: the delta is delivered, nothing is counted.
    let before = try rig.counters("acme/ann")
    _ = try rig.run(try Self.late(rig, "acme/ann", "chat", 7, at: birth).call)
    #expect(try rig.counters("acme/ann").cells == before.cells)
    #expect(try rig.outbox().last?.charged == 7)
  }

  /// After a seed Redis holds no part of such a period, and must not look as if it held the whole.
  @Test func aPeriodThatNoSeedWouldHoldIsNotBegun() throws {
    let rig = try StoreRig.ready()
    let old = Window.month.period(containing: rig.now).start + (-86_400_000 * 3)
    try rig.setNow(Window.month.period(containing: rig.now).start + 86_400_000 * 2)
    _ = try rig.run(try Self.late(rig, "acme", "tokens", 9, at: old).call)
    #expect(try rig.counters("acme").cell(feature: Name("tokens"), window: .month) == nil)
    #expect(try rig.outbox().count == 1)
  }

  /// A reply was lost and the repost made again: the ledger posts one, and the other is taken back.
  @Test func twiceAppendedItIsOneDeltaAndTheSecondEffectIsTakenBack() throws {
    let rig = try StoreRig.ready()
    let late = try Self.late(rig, "acme/ann", "chat", 3)
    for _ in 0..<2 { _ = try rig.run(late.call) }
    #expect(try rig.settled("acme/ann", "chat", .hour) == 6)
    let duplicates = try rig.outbox()
    #expect(Set(duplicates.map(\.id)).count == 1)
    let reverse = ReverseCall(
      keySpace: rig.keySpace, fence: rig.fence,
      position: StreamPosition(epoch: 1, sequence: duplicates[1].sequence), subject: late.subject,
      feature: late.feature, cells: late.cells, amount: duplicates[1].charged)
    for _ in 0..<2 { _ = try rig.run(reverse) }
    #expect(try rig.settled("acme/ann", "chat", .hour) == 3)
    #expect(try rig.settled("acme", "chat", .month) == 3)
  }

  @Test func aSumBeyondTheRangeIsRefusedWhole() throws {
    let rig = try StoreRig.ready()
    _ = try rig.run(try Self.late(rig, "acme", "tokens", Quantity.maximum).call)
    let before = try rig.dump()
    #expect(
      try rig.run(try Self.late(rig, "acme", "tokens", 1).call) == .done(.overflow))
    #expect(try rig.dump() == before)
  }

  @Test func aMembersHashLivesAsLongAsItsLongestPeriod() throws {
    let rig = try StoreRig.ready()
    _ = try rig.run(try Self.late(rig, "acme/ann", "chat", 1).call)
    let end = Window.hour.period(containing: rig.now).end + 86_400_000
    let key = rig.keySpace.subject(0, try Subject("acme/ann"))
    #expect(try rig.redis.command("PEXPIRETIME", key).integer == end.milliseconds)
    let index = rig.keySpace.index(0, account: try Subject("acme"))
    #expect(
      try rig.redis.command("ZSCORE", index, "acme/ann").string == "\(end.milliseconds)")
  }

  // MARK: - Configuration

  /// A change as a sidecar would still hold it; of scope `counter` it forgives 3 of chat's hour.
  static func lateConfig(
    _ rig: StoreRig, _ scope: ConfigDelta.Scope, version: Int64, subject: String = "acme",
    after: String = "{\"late\":1}"
  ) throws -> RepostConfigCall {
    var after = after
    if scope == .counter {
      let start = Window.hour.period(containing: rig.now).start.milliseconds
      after =
        "{\"subject\":\"\(subject)\",\"feature\":\"chat\",\"window\":\"h\",\"start\":\(start)}"
    }
    let amount: Int64 = scope == .counter ? -3 : 0
    let entry = OutboxEntry(
      sequence: 0, kind: .config, id: DeltaID(operation: rig.newID(), index: 0),
      time: rig.now + (-900), actual: amount, charged: 0, absorbed: amount, body: [1, 2, 3])
    let delta = ConfigDelta(
      scope: scope, key: scope == .global ? "" : subject, version: version, action: "x",
      actor: "ops", reason: "", before: "", after: after)
    return try #require(
      RepostConfigCall(keySpace: rig.keySpace, fence: rig.fence, entry: entry, delta: delta))
  }

  @Test func aLateChangeIsInForceAgainWhereNothingNewerStands() throws {
    let rig = try StoreRig.ready()
    let late = try Self.lateConfig(rig, .account, version: 7)
    #expect(try rig.run(late) == .done(.appended(sequence: 1)))
    let header = try rig.read(Reads.header(rig.keySpace, account: try Subject("acme")))
    #expect(header.version == 7 && header.config == "{\"late\":1}" && header.epoch == 1)
    var expected = late.entry
    expected.sequence = 1
    #expect(try rig.outbox() == [expected])
    // Once per epoch, however often it is called.
    #expect(try rig.run(late) == .done(.alreadyThere(sequence: 1)))
    #expect(try rig.outbox().count == 1)
  }

  @Test func aNewerChangeStandsAndTheLateOneIsHistory() throws {
    let rig = try StoreRig.ready()
    _ = try rig.run(try Self.lateConfig(rig, .account, version: 7))
    let before = try rig.read(Reads.header(rig.keySpace, account: try Subject("acme")))
    for version: Int64 in [6, 7] {
      let older = try Self.lateConfig(rig, .account, version: version, after: "{\"older\":1}")
      guard case .done(.appended) = try rig.run(older) else {
        Issue.record("a change was lost for the ledger")
        continue
      }
    }
    let after = try rig.read(Reads.header(rig.keySpace, account: try Subject("acme")))
    #expect(after.version == before.version && after.config == before.config)
    #expect(try rig.outbox().count == 3)
  }

  @Test func aLateGlobalChangeBitesAtOnce() throws {
    let rig = try StoreRig.ready()
    try Scenario.openControl(rig)
    #expect(
      try rig.run(try Self.lateConfig(rig, .global, version: 7)) == .done(.appended(sequence: 1)))
    #expect(try rig.read(Reads.global(rig.keySpace))?.version == 7)
    #expect(try rig.read(Reads.meta(rig.keySpace, bucket: 1))?.globalVersion == 7)
  }

  @Test func aLateResetForgivesOnceInItsOwnPeriod() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 5))
    let late = try Self.lateConfig(rig, .counter, version: 0, subject: "acme/ann")
    for _ in 0..<2 { _ = try rig.run(late) }
    func cell() throws -> CounterCell? {
      try rig.counters("acme/ann").cell(feature: Name("chat"), window: .hour)
    }
    #expect(try cell()?.settled == 5)
    #expect(try cell()?.forgiven == 3)
    // The mark goes with the acknowledgement; the ledger is asked before anybody comes again.
    _ = try rig.run(
      TrimCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, acknowledged: 2, tail: 9))
    #expect(try rig.redis.command("EXISTS", rig.keySpace.takenBack(0)).integer == 0)
    // In a later hour there is nothing to forgive.
    let old = try Self.lateConfig(rig, .counter, version: 0, subject: "acme/ann")
    try rig.advance(3_600_000)
    _ = try rig.consume("acme/ann", ("chat", 1))
    _ = try rig.run(old)
    #expect(try cell()?.settled == 1)
    #expect(try cell()?.forgiven == 0)
  }
}
