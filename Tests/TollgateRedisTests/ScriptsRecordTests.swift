// What Redis remembers of an operation: the same id gives the same answer, and nothing twice.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsRecordTests {
  @Test func pitfall08_aRetryGetsItsAnswerBackWordForWordAndCountsOnce() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 2), ("tokens", 10)])
    let first = try #require(try rig.run(call).decided)
    let before = try rig.dump()
    try rig.advance(1000)
    var expected = first
    expected.decision.replayed = true
    #expect(try rig.run(call) == .replayed(expected))
    #expect(try rig.dump() == before)
  }

  @Test func aDenialIsReplayedEvenWhenItWouldBeAllowedNow() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 1001)])
    let first = try #require(try rig.run(call).decided)
    #expect(first.decision.reason == .quotaExceeded)
    rig.account.overrides = [
      Override(
        subject: try Subject("acme"), limit: try Name("tokens.month"), change: .unlimited,
        expires: nil, reason: "", author: "")
    ]
    let replayed = try #require(
      try rig.consume("acme", ("tokens", 1001), id: call.operation).replayed)
    #expect(replayed.decision.reason == .quotaExceeded)
    #expect(replayed.decision.items == first.decision.items)
  }

  @Test func aReplayComesBeforeTheDeadlineVersionsAndPeriods() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("chat", 1)], notAfter: rig.now)
    _ = try rig.run(call)
    try rig.advance(3_000_000)
    #expect(try rig.run(call).replayed != nil)
  }

  @Test(arguments: [
    (OperationFingerprint.Field.subject, "acme/bob", "chat", Int64(1)),
    (.features, "acme/ann", "tokens", 1), (.amounts, "acme/ann", "chat", 2),
  ])
  func anotherBodyUnderTheSameIdIsAMismatchNamingTheField(
    field: OperationFingerprint.Field, subject: String, feature: String, amount: Int64
  ) throws {
    let rig = try StoreRig.ready()
    let id = rig.newID()
    _ = try rig.consume("acme/ann", ("chat", 1), id: id)
    let before = try rig.dump()
    #expect(try rig.consume(subject, (feature, amount), id: id) == .mismatch(field))
    #expect(try rig.dump() == before)
  }

  @Test func otherAttributesAreAMismatchToo() throws {
    let rig = try StoreRig.ready()
    var call = try rig.call("acme", [("chat", 1)])
    _ = try rig.run(call)
    call.asked = call.asked.with(
      fingerprint: OperationFingerprint(
        subject: call.subject, items: call.plan.items, attributes: ["model": "x"]))
    #expect(try rig.run(call) == .mismatch(.attributes))
  }

  @Test func pitfall22_anIdOlderThanTheWindowIsTooOldAndOneAtItsEdgeIsNot() throws {
    let rig = try StoreRig.ready()
    let window = rig.limits.dedupeWindowMilliseconds
    let edge = OperationID(time: rig.now + (-window), using: &rig.random)
    let old = OperationID(time: rig.now + (-window - 1), using: &rig.random)
    #expect(try rig.consume("acme", ("tokens", 1), id: edge).reason == .allowed)
    let before = try rig.dump()
    #expect(try rig.consume("acme", ("tokens", 1), id: old) == .idTooOld)
    #expect(try rig.dump() == before)
  }

  @Test func anIdFromTheFutureIsRefused() throws {
    let rig = try StoreRig.ready()
    let edge = OperationID(time: rig.now + 60_000, using: &rig.random)
    let future = OperationID(time: rig.now + 60_001, using: &rig.random)
    #expect(try rig.consume("acme", ("tokens", 1), id: edge).reason == .allowed)
    #expect(try rig.consume("acme", ("tokens", 1), id: future) == .idFromFuture)
  }

  @Test func aRetryFindsItsRecordAfterTheFeatureBecameMoney() throws {
    let rig = try StoreRig.ready()
    let id = rig.newID()
    _ = try rig.consume("acme", ("tokens", 1), id: id)
    rig.global.catalog.features[try Name("tokens")]?.importance = .money
    rig.global.version = 2
    try rig.advance(10_000)
    _ = try rig.run(
      PushVersionCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, globalVersion: 2))
    #expect(try rig.consume("acme", ("tokens", 1), id: id).replayed != nil)
    #expect(try rig.settled("acme", "tokens", .month) == 1)
  }

  @Test func aFullDedupeTableDeniesMoneyAndWritesNothing() throws {
    let rig = try StoreRig.ready()
    rig.limits.moneyRecordBytesMax = 1
    #expect(try rig.consume("acme", ("spend", 1)).reason == .allowed)
    let before = try rig.dump()
    #expect(try rig.consume("acme", ("spend", 1)).reason == .dedupeFull)
    #expect(try rig.dump() == before)
    #expect(try rig.consume("acme", ("tokens", 1)).reason == .allowed)
  }

  @Test func aFullDedupeTableShortensTheWindowOfVolume() throws {
    let rig = try StoreRig.ready()
    let old = try rig.call("acme", [("tokens", 1)])
    _ = try rig.run(old)
    try rig.advance(600_000)
    let recent = try rig.call("acme", [("tokens", 1)])
    _ = try rig.run(recent)
    rig.limits.volumeRecordBytesMax = 200
    var report = try #require(
      try rig.run(
        SweepCall(
          keySpace: rig.keySpace, bucket: 0, fence: rig.fence, limits: rig.limits, after: nil)
      ).value)
    #expect(report.slices.count == 2 && report.dropped == 0)
    report = try #require(
      try rig.run(
        SweepCall(
          keySpace: rig.keySpace, bucket: 0, fence: rig.fence, limits: rig.limits, after: report)
      ).value)
    #expect(report.dropped == 1 && report.slices.count == 1)
    #expect(report.volumeHorizon == OperationSlice.end(OperationSlice.of(old.operation.time)))
    #expect(try rig.run(old) == .idTooOld)
    #expect(try rig.run(recent).replayed != nil)
    #expect(
      try rig.read(Reads.meta(rig.keySpace, bucket: 0))?.volumeRecordBytes
        == report.bytes(.volume))
  }

  @Test func theSweepDropsMoneyOnlyAfterItsWindow() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("spend", 1))
    rig.limits.moneyRecordBytesMax = 1
    rig.limits.volumeRecordBytesMax = 1
    func sweep() throws -> SweepCall.Report {
      let list = SweepCall(
        keySpace: rig.keySpace, bucket: 0, fence: rig.fence, limits: rig.limits, after: nil)
      let report = try #require(try rig.run(list).value)
      return try #require(
        try rig.run(
          SweepCall(
            keySpace: rig.keySpace, bucket: 0, fence: rig.fence, limits: rig.limits,
            after: report)
        ).value)
    }
    try rig.advance(rig.limits.dedupeWindowMilliseconds)
    #expect(try sweep().dropped == 0)
    try rig.advance(OperationSlice.milliseconds + 1)
    #expect(try sweep().dropped == 1)
    #expect(try rig.redis.command("KEYS", "*:op:*").strings.isEmpty)
  }

  @Test func recordsExpireByThemselvesAfterTheLongestWindow() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 1)])
    _ = try rig.run(call)
    let slice = OperationSlice.of(call.operation.time)
    let key = rig.keySpace.operations(0, .volume, slice: slice)
    #expect(
      try rig.redis.command("PEXPIRETIME", key).integer
        == OperationSlice.end(slice).milliseconds + 90_000_000)
  }

  @Test func aCancelledOperationLeavesNothingBehindAndIsCancelledForEver() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 2), ("ping", 1), ("tokens", 30)])
    _ = try rig.run(call)
    try rig.advance(5)
    let cancel = rig.cancelCall(call)
    let cancelled = try #require(try rig.cancel(call).decided)
    #expect(cancelled.decision.reason == .cancelled)
    #expect(cancelled.entries.map(\.index) == [64, 66])
    #expect(try rig.settled("acme", "tokens", .month) == 0)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 0)
    #expect(try Array(rig.outbox().dropFirst(2)) == cancel.entries(cancelled))
    #expect(try rig.outbox().reduce(0) { $0 + $1.actual } == 0)
    let before = try rig.dump()
    #expect(try rig.cancel(call).replayed?.decision.reason == .cancelled)
    #expect(try rig.run(call).replayed?.decision.reason == .cancelled)
    #expect(try rig.dump() == before)
  }

  @Test func cancellingAnOperationThatNeverCameTakesItsId() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 1)])
    #expect(try rig.cancel(call).decided?.entries.isEmpty == true)
    #expect(try rig.run(call).replayed?.decision.reason == .cancelled)
    #expect(try rig.outbox().isEmpty)
  }

  @Test func cancellingADenialChangesNothing() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 2000)])
    _ = try rig.run(call)
    let before = try rig.dump()
    #expect(try rig.cancel(call).replayed?.decision.reason == .quotaExceeded)
    #expect(try rig.dump() == before)
  }

  /// A sidecar asks for the periods of the month in which units were used. The id decides first; what
  /// is not known cannot be counted in a period that is over, and goes by the ledger.
  @Test func aPostOfAnEarlierMonthCountsNothingHere() throws {
    let rig = try StoreRig.ready()
    rig.limits.dedupeWindowMilliseconds = OperationSlice.windowMaxMilliseconds * 90
    let used = try rig.call("acme", [("tokens", 5)], mode: .post)
    let known = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(known)
    let next = Window.month.period(containing: rig.now).end
    try rig.setNow(next)
    let before = try rig.dump()
    #expect(try rig.run(used) == .period(now: next))
    var again = known
    again.asked = known.asked.with(mode: .post)
    #expect(try rig.run(again).replayed?.decision.reason == .allowed)
    #expect(try rig.dump() == before)
  }

  @Test func aCancelLandsInThePeriodThatAdmitted() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 2)])
    _ = try rig.run(call)
    try rig.setNow(Window.hour.period(containing: rig.now).end)
    _ = try rig.consume("acme/ann", ("chat", 1))
    _ = try rig.cancel(call)
    let cell = try #require(
      try rig.counters("acme/ann").cell(feature: Name("chat"), window: .hour))
    #expect(cell.settled == 1 && cell.previousSettled == 0)
    #expect(try rig.settled("acme", "chat", .day) == 1)
  }

  /// What is taken back is what the record says was added, not what the plan would count now.
  @Test func aCancelUnderAnotherPlanTakesBackWhatWasCounted() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 2), ("tokens", 5)])
    _ = try rig.run(call)
    try rig.setNow(Window.month.period(containing: rig.now).end + 40 * 86_400_000)
    rig.global.catalog.plans[Catalog.name("pro")]?.entitlements[Catalog.name("chat")] = [
      Catalog.limit("chat.minute", .quota(amount: 3, window: .minute))
    ]
    rig.limits.dedupeWindowMilliseconds = OperationSlice.windowMaxMilliseconds * 90
    let now = try rig.call("acme/ann", [("chat", 2), ("tokens", 5)], id: call.operation)
    #expect(try rig.consume("acme/ann", ("chat", 1)).reason == .allowed)
    guard case .bodiesWanted(let items) = try rig.run(rig.cancelCall(now, bodies: false)) else {
      Issue.record("the record was not asked")
      return
    }
    #expect(
      items.map(\.cells)
        == call.plan.meteredItems.map { item in
          call.plan.resolution.cells.filter { $0.item == item }
            .map { CellReference(level: $0.level, window: $0.window, period: $0.period) }
        })
    #expect(try rig.cancel(now).reason == .cancelled)
    #expect(try rig.settled("acme", "chat", .minute) == 1)
    #expect(try rig.settled("acme", "chat", .day) == 0)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 0)
    #expect(try rig.settled("acme", "tokens", .month) == 0)
  }

  @Test func aRefusalThatPassesIsNotRemembered() throws {
    let rig = try StoreRig.ready()
    rig.limits.outboxEntriesMax = 0
    let call = try rig.call("acme", [("tokens", 1)])
    #expect(try rig.run(call).reason == .outboxFull)
    rig.limits.outboxEntriesMax = 10
    #expect(try rig.consume("acme", ("tokens", 1), id: call.operation).reason == .allowed)
    rig.account.plan = nil
    let unknown = try rig.call("acme", [("tokens", 1)])
    #expect(try rig.run(unknown).reason == .unknownAccount)
    rig.account.plan = Catalog.name("pro")
    #expect(try rig.consume("acme", ("tokens", 1), id: unknown.operation).reason == .allowed)
  }

  @Test func aPostAppliesOverADenialButNotOverACancel() throws {
    let rig = try StoreRig.ready()
    let denied = try rig.call("acme", [("tokens", 2000)])
    _ = try rig.run(denied)
    #expect(
      try rig.consume("acme", ("tokens", 2000), id: denied.operation, mode: .post).reason
        == .allowedPosted)
    let unknown = try rig.call("acme", [("tokens", 1)])
    _ = try rig.cancel(unknown)
    #expect(
      try rig.consume("acme", ("tokens", 1), id: unknown.operation, mode: .post).replayed?.decision
        .reason == .cancelled)
    let annulled = try rig.call("acme", [("free", 1)])
    _ = try rig.run(annulled)
    _ = try rig.cancel(annulled)
    #expect(
      try rig.consume("acme", ("free", 1), id: annulled.operation, mode: .post).replayed?.decision
        .reason == .cancelled)
  }

  @Test func aDuplicateDeltaIsReversedOnce() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 2)])
    let decided = try #require(try rig.run(call).decided)
    let cells = call.plan.resolution.cells.map {
      CellReference(level: $0.level, window: $0.window, period: $0.period)
    }
    var reverse = ReverseCall(
      keySpace: rig.keySpace, fence: rig.fence,
      position: StreamPosition(epoch: 1, sequence: decided.entries[0].sequence),
      subject: call.subject, feature: try Name("chat"), cells: cells, amount: 2)
    #expect(try rig.run(reverse) == .done(.reversed))
    #expect(try rig.settled("acme", "chat", .month) == 0)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 0)
    #expect(try rig.run(reverse) == .done(.nothing))
    #expect(try rig.settled("acme", "chat", .month) == 0)
    #expect(try rig.outbox().count == 1)
    reverse.position.epoch = 0
    #expect(try rig.run(reverse) == .done(.nothing))
  }

  /// However old the entry is and however long its answer was on the way.
  @Test func aDuplicateIsReversedOnceBeforeAndAfterItsAcknowledgement() throws {
    let rig = try StoreRig.ready()
    for _ in 0..<3 { _ = try rig.consume("acme", ("tokens", 5)) }
    func reverse(_ sequence: Int64) throws -> ReverseCall.Effect? {
      let period = Window.month.period(containing: rig.now)
      return try rig.run(
        ReverseCall(
          keySpace: rig.keySpace, fence: rig.fence,
          position: StreamPosition(epoch: 1, sequence: sequence), subject: try Subject("acme"),
          feature: try Name("tokens"),
          cells: [CellReference(level: 1, window: .month, period: period)], amount: 5)
      ).value
    }
    #expect(try reverse(2) == .reversed)
    let sweep = SweepCall(
      keySpace: rig.keySpace, bucket: 0, fence: rig.fence, limits: rig.limits, after: nil)
    let report = try #require(try rig.run(sweep).value)
    try rig.advance(200_000_000)
    _ = try rig.run(
      SweepCall(
        keySpace: rig.keySpace, bucket: 0, fence: rig.fence, limits: rig.limits, after: report))
    #expect(try reverse(2) == .nothing, "the mark must not age with operation records")
    _ = try rig.run(
      TrimCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, acknowledged: 2, tail: 9))
    #expect(try rig.redis.command("EXISTS", rig.keySpace.takenBack(0)).integer == 0)
    #expect(try reverse(2) == .nothing, "what is acknowledged was taken back before")
    #expect(try rig.settled("acme", "tokens", .month) == 10)
  }

  @Test func theMemoryOfARecordIsMeasured() throws {
    let rig = try StoreRig.ready()
    rig.limits.outboxEntriesMax = .max / 4096
    let count = 20_000
    func used() throws -> Int64 {
      let total = try rig.redis.command("KEYS", "*:op:*").strings.reduce(Int64(0)) {
        $0 + (try rig.redis.command("MEMORY", "USAGE", $1, "SAMPLES", "0").integer ?? 0)
      }
      return total
    }
    for _ in 0..<(count / 100) {
      _ = try rig.redis.pipeline(
        try (0..<100).map { _ in
          StoreRig.command(try rig.call("acme/ann", [("chat", 1)]), rig.library)
        })
    }
    let real = try used() / Int64(count)
    let counted =
      (try rig.read(Reads.meta(rig.keySpace, bucket: 0))?.volumeRecordBytes ?? 0) / Int64(count)
    print("operation record: \(real) bytes in Redis, \(counted) counted against the ceiling")
    #expect(real <= 240)
    #expect(abs(real - counted) <= counted / 3, "the ceiling must mean bytes")
  }
}

extension DecideOperation {
  /// The same, but for what is given.
  fileprivate func with(mode: Mode? = nil, fingerprint: OperationFingerprint? = nil)
    -> DecideOperation
  {
    DecideOperation(
      id: id, fingerprint: fingerprint ?? self.fingerprint, mode: mode ?? self.mode, plan: plan,
      keys: keys, bodies: bodies, globalVersion: globalVersion, accountVersion: accountVersion,
      notAfter: notAfter)
  }
}
