// Corrections in Redis: counters and deltas move together, once per id, and no two from one look.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsCorrectTests {
  /// A consume as its ledger would know it.
  static func recorded(_ rig: StoreRig, _ call: DecideCall) -> [RecordedDelta] {
    call.plan.meteredItems.map { item in
      let cells = call.plan.resolution.cells.filter { $0.item == item }
      return RecordedDelta(
        id: DeltaID(operation: call.operation, index: UInt16(item)), kind: .usage, time: rig.now,
        actual: call.plan.items[item].amount, charged: call.plan.items[item].amount,
        body: UsageBody(
          subject: call.subject, feature: call.plan.items[item].feature,
          period: Window.month.period(containing: rig.now),
          cells: cells.map {
            CellReference(level: $0.level, window: $0.window, period: $0.period)
          }, catalogVersion: 1, source: .redis))
    }
  }

  /// A refund of one operation, as a sidecar would make it.
  struct Refund {
    var call: CorrectCall
    var recorded: [RecordedDelta]
    var earlier: [RecordedDelta] = []

    init(
      _ rig: StoreRig, of call: DecideCall, _ items: [(String, Int64)] = [], id: OperationID? = nil
    ) throws {
      let asked = try items.map { Item(feature: try Name($0.0), amount: $0.1) }
      let id = id ?? rig.newID()
      self.call = CorrectCall(
        keySpace: rig.keySpace, fence: rig.fence, operation: id,
        fingerprint: OperationFingerprint(
          subject: call.subject, items: asked, verb: .refund,
          terms: HoldTerms(reservation: call.operation)),
        subject: call.subject, corrected: call.operation, items: asked, recordClass: .money,
        limits: rig.limits)
      recorded = ScriptsCorrectTests.recorded(rig, call)
    }

    func look(_ rig: StoreRig) throws -> CorrectCall.Look {
      guard case .looked(let look) = try rig.run(call) else {
        throw Unexpected(text: "\(try rig.run(call))")
      }
      return look
    }

    func planned(_ look: CorrectCall.Look) throws -> CorrectCall {
      guard
        let correction = Correction.refund(
          of: call.corrected ?? call.operation, recorded: recorded, earlier: earlier,
          items: call.items)
      else { throw Unexpected(text: "nothing is left") }
      var planned = call
      planned.plan = CorrectCall.Plan(
        correction: correction, look: look, kind: .refund, reason: .refunded, globalVersion: 3,
        accountVersion: 4, bodies: correction.shares.map { Array("back\($0.amount)".utf8) })
      return planned
    }

    /// Both rounds.
    func run(_ rig: StoreRig) throws -> CorrectCall.Reply {
      try rig.run(planned(look(rig)))
    }
  }

  struct Unexpected: Error { var text: String }

  static func decided(_ reply: CorrectCall.Reply) throws -> DecidedOperation {
    guard case .answered(.decided(let decided)) = reply else {
      throw Unexpected(text: "\(reply)")
    }
    return decided
  }

  static func replayed(_ reply: CorrectCall.Reply) throws -> Decision {
    guard case .answered(.replayed(let decided)) = reply else {
      throw Unexpected(text: "\(reply)")
    }
    return decided.decision
  }

  /// What is owed was paid, or owed anew, since the correction was worked out.
  @Test func aDebtThatMovedSinceTheLookIsLookedAtAgain() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 5)])
    _ = try rig.run(call)
    let tokens = try Name("tokens")
    let refund = try Refund(rig, of: call)
    var planned = try refund.planned(try refund.look(rig))
    let debt = CountedPart(
      level: 1, window: .deficit, period: Window.deficit.period(containing: rig.now), amount: -1)
    planned.plan?.correction.shares[0].body.parts.append(debt)
    planned.plan?.owed = [tokens: 3]
    #expect(try rig.run(planned) == .overtaken)
    // One that only moves takes nothing from a grant that has nothing burnt.
    var move = try #require(planned.plan?.correction.shares.first)
    move.amount = 0
    move.body.charges = []
    move.body.parts = [
      CountedPart(
        level: 1, window: .month, period: Window.month.period(containing: rig.now), amount: -1)
    ]
    planned.plan?.owed = [tokens: 0]
    planned.plan?.correction.shares.append(move)
    planned.plan?.bodies.append([9])
    #expect(try rig.run(planned) == .overtaken)
    planned.plan?.correction.shares.removeLast()
    planned.plan?.bodies.removeLast()
    _ = try Self.decided(try rig.run(planned))
  }

  @Test func countersAtEveryLevelLoseWhatComesBackAndADeltaIsBorn() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 5), ("tokens", 7)])
    _ = try rig.run(call)
    let refund = try Refund(rig, of: call, [("chat", 2)])
    let decided = try Self.decided(try refund.run(rig))
    #expect(decided.decision.reason == .refunded)
    #expect(decided.decision.settlements == [.init(actual: -2, charged: -2)])
    #expect(decided.decision.derived == [])
    #expect(decided.decision.items.map(\.settled) == [3])
    #expect(decided.decision.globalVersion == 3 && decided.decision.accountVersion == 4)
    #expect(try rig.settled("acme", "chat", .day) == 3)
    #expect(try rig.settled("acme", "chat", .month) == 3)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 3)
    #expect(try rig.settled("acme", "tokens", .month) == 7)
    let born = try #require(try rig.outbox().last)
    #expect(
      born
        == OutboxEntry(
          sequence: 3, kind: .refund, id: DeltaID(operation: refund.call.operation, index: 0),
          time: rig.now, actual: -2, charged: -2, absorbed: 0, body: Array("back-2".utf8)))
    #expect(try refund.planned(refund.fakeLook).entries(decided) == [born])
    #expect(try rig.read(Reads.meta(rig.keySpace, bucket: 0))?.fence.sequence == 3)
    // What came back can be used again.
    #expect(try rig.consume("acme/ann", ("chat", 3)).reason == .allowed)
  }

  @Test func allOfAnOperationComesBackInOneCall() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 5), ("tokens", 7)])
    _ = try rig.run(call)
    let decision = try Self.decided(try Refund(rig, of: call).run(rig)).decision
    #expect(decision.settlements.map(\.charged) == [-5, -7])
    #expect(decision.derived.map(\.text) == ["chat", "tokens"])
    #expect(try rig.settled("acme/ann", "chat", .hour) == 0)
    #expect(try rig.settled("acme", "tokens", .month) == 0)
    #expect(try rig.outbox().suffix(2).map(\.charged) == [-5, -7])
  }

  @Test func theSameIdIsAnsweredTheSameAndHasOneEffect() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(call)
    let refund = try Refund(rig, of: call, [("tokens", 3)])
    let first = try Self.decided(try refund.run(rig)).decision
    let before = try rig.dump()
    var expected = first
    expected.replayed = true
    // With a plan, or looking.
    #expect(try Self.replayed(try rig.run(refund.call)) == expected)
    #expect(try Self.replayed(try rig.run(refund.planned(refund.fakeLook))) == expected)
    #expect(try rig.dump() == before)
  }

  @Test func theSameIdForAnotherRefundIsAMismatch() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(call)
    let refund = try Refund(rig, of: call, [("tokens", 3)])
    _ = try refund.run(rig)
    let more = try Refund(rig, of: call, [("tokens", 4)], id: refund.call.operation)
    #expect(try rig.run(more.call) == .answered(.mismatch(.amounts)))
    let other = try rig.call("acme", [("tokens", 7)])
    let another = try Refund(rig, of: other, [("tokens", 3)], id: refund.call.operation)
    #expect(try rig.run(another.call) == .answered(.mismatch(.attributes)))
  }

  @Test func twoFromOneLookAreNotBothMade() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(call)
    let one = try Refund(rig, of: call)
    let two = try Refund(rig, of: call)
    let looks = (try one.look(rig), try two.look(rig))
    #expect(looks.0.mark == 0 && looks.1.mark == 0)
    _ = try Self.decided(try rig.run(one.planned(looks.0)))
    let before = try rig.dump()
    #expect(try rig.run(two.planned(looks.1)) == .overtaken)
    #expect(try rig.dump() == before)
    #expect(try two.look(rig).mark > 0)
  }

  @Test func twoInOneMillisecondMoveTheMarkTwice() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(call)
    _ = try Refund(rig, of: call, [("tokens", 1)]).run(rig)
    let late = try Refund(rig, of: call, [("tokens", 1)])
    let look = try late.look(rig)
    var second = try Refund(rig, of: call, [("tokens", 1)])
    second.call.operation = rig.newID()
    _ = try second.run(rig)
    #expect(try rig.run(late.planned(look)) == .overtaken)
  }

  @Test func aLookIsGoodForAMinuteAndAMarkOutlivesIt() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(call)
    let refund = try Refund(rig, of: call, [("tokens", 1)])
    let look = try refund.look(rig)
    try rig.advance(60_001)
    #expect(try rig.run(refund.planned(look)) == .overtaken)
    _ = try Self.decided(try refund.run(rig))
    // A mark goes when no look from before it is good any more.
    try rig.advance(600_001)
    let other = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(other)
    _ = try Refund(rig, of: other, [("tokens", 1)]).run(rig)
    #expect(try rig.redis.command("ZCARD", rig.keySpace.corrected(0)).string == "1")
    #expect(try Refund(rig, of: call, [("tokens", 1)]).look(rig).mark == 0)
  }

  @Test func thePeriodThatAdmittedGetsItBackAndOneThatIsNotHeldOnlyInTheDelta() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 5)])
    _ = try rig.run(call)
    var refund = try Refund(rig, of: call)
    // The next day has begun, and many hours.
    try rig.advance(90_000_000)
    refund.call.operation = rig.newID()
    _ = try rig.consume("acme/ann", ("chat", 1))
    _ = try Self.decided(try refund.run(rig))
    let day = try #require(try rig.counters("acme").cell(feature: try Name("chat"), window: .day))
    #expect(day.settled == 1 && day.previousSettled == 0)
    // 25 hours later the hour of the operation is not even the one before.
    let hour = try #require(
      try rig.counters("acme/ann").cell(feature: try Name("chat"), window: .hour))
    #expect(hour.settled == 1)
    #expect(try rig.outbox().last?.charged == -5)
  }

  @Test func unitsThatAResetForgaveAreForgivenNoMore() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 900)])
    _ = try rig.run(call)
    let refund = try Refund(rig, of: call)
    try rig.advance(1_000)
    _ = try rig.run(try Scenario.reset(rig, "acme", "tokens", .month))
    _ = try rig.consume("acme", ("tokens", 400))
    _ = try refund.run(rig)
    // Limits saw 400 before and see 400 now; the bill lost 900.
    #expect(try rig.settled("acme", "tokens", .month) == 400)
    #expect(try rig.consume("acme", ("tokens", 601), mode: .check).reason == .quotaExceeded)
    #expect(try rig.consume("acme", ("tokens", 600), mode: .check).reason == .allowed)
  }

  @Test func itNeedsTheAccountSeededAndTheBucketOpen() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(call)
    var refund = try Refund(rig, of: call)
    try rig.open(epoch: 2, hadPredecessor: true)
    guard case .answered(.fenced) = try rig.run(refund.call) else {
      Issue.record("not fenced")
      return
    }
    refund.call.fence = rig.fence
    let look = try refund.look(rig)
    let before = try rig.dump()
    #expect(try rig.run(refund.planned(look)) == .answered(.rebuild))
    #expect(try rig.dump() == before)
  }

  @Test func anOldIdIsTooOldAndOneFromTheFutureIsNot() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(call)
    let refund = try Refund(rig, of: call)
    try rig.advance(rig.limits.dedupeWindowMilliseconds + 1)
    #expect(try rig.run(refund.call) == .answered(.idTooOld))
    let early = try Refund(
      rig, of: call, id: OperationID(time: rig.now + 61_000, using: &rig.random))
    #expect(try rig.run(early.call) == .answered(.idFromFuture))
    // The operation itself may be as old as it likes.
    _ = try Self.decided(try Refund(rig, of: call).run(rig))
  }

  @Test func whatWasRefundedIsNotAnnulledOnceMore() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 7)])
    let decided = try #require(try rig.run(call).decided)
    _ = try Self.decided(try Refund(rig, of: call, [("tokens", 3)]).run(rig))
    let before = try rig.dump()
    // Long after the mark is gone.
    try rig.advance(700_000)
    var expected = decided
    expected.decision.replayed = true
    #expect(try rig.run(rig.cancelCall(call)) == .answered(.replayed(expected)))
    #expect(try rig.dump() == before)
  }

  @Test func whatWasAnnulledSinceTheLookIsNotRefunded() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(call)
    let refund = try Refund(rig, of: call)
    let look = try refund.look(rig)
    #expect(try rig.cancel(call).reason == .cancelled)
    let before = try rig.dump()
    #expect(try rig.run(refund.planned(look)) == .overtaken)
    #expect(try rig.dump() == before)
    #expect(try rig.settled("acme", "tokens", .month) == 0)
  }

  @Test func aFullOutboxRefusesIt() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(call)
    rig.limits.outboxEntriesMax = 1
    let refund = try Refund(rig, of: call)
    let look = try refund.look(rig)
    let before = try rig.dump()
    #expect(try rig.run(refund.planned(look)) == .full)
    #expect(try rig.dump() == before)
  }

  /// What the tests above are worth: without the mark, and without the field that keeps `cancel`
  /// away, the same steps give back more than there was.
  @Test func withoutItsMechanismsMoreComesBackThanThereWas() throws {
    let rig = try StoreRig.ready { name, text in
      let text = StoreRig.testClock(text)
      switch name {
      case .correct: return text.replacing("if last ~= mark or ", with: "if ")
      case .cancel:
        return text.replacing(" or call('HEXISTS', recordKey, id .. 'r') == 1", with: "")
      default: return text
      }
    }
    let call = try rig.call("acme", [("tokens", 7)])
    _ = try rig.run(call)
    let (one, two) = (try Refund(rig, of: call), try Refund(rig, of: call))
    let look = try one.look(rig)
    _ = try Self.decided(try rig.run(one.planned(look)))
    _ = try Self.decided(try rig.run(two.planned(look)))
    #expect(try rig.settled("acme", "tokens", .month) == -7)
    #expect(try rig.cancel(call).reason == .cancelled)
    #expect(try rig.settled("acme", "tokens", .month) == -14)
  }

  // MARK: - Adjustments

  static func adjust(
    _ rig: StoreRig, _ amount: Int64, feature: String = "tokens", at time: WallTime? = nil
  ) throws -> CorrectCall {
    let subject = try Subject("acme")
    let month = Window.month.period(containing: time ?? rig.now)
    let body = UsageBody(
      subject: subject, feature: try Name(feature), period: month,
      cells: [CellReference(level: 1, window: .month, period: month)], catalogVersion: 1,
      source: .redis)
    let item = Item(feature: try Name(feature), amount: amount.magnitude == 0 ? 0 : 1)
    var call = CorrectCall(
      keySpace: rig.keySpace, fence: rig.fence, operation: rig.newID(),
      fingerprint: OperationFingerprint(subject: subject, items: [item]), subject: subject,
      corrected: nil, items: [], recordClass: .money, limits: rig.limits)
    guard case .looked(let look) = try rig.run(call) else { throw Unexpected(text: "no look") }
    call.plan = CorrectCall.Plan(
      correction: Correction(shares: [.init(born: rig.now, amount: amount, body: body)]),
      look: look, kind: .adjustment, reason: .allowedPosted, globalVersion: 1, accountVersion: 1,
      bodies: [Array("adjusted".utf8)], change: Array("why".utf8))
    return call
  }

  @Test func anAdjustmentMovesTheBillItsDeltaAndTheAudit() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 100))
    let decided = try Self.decided(try rig.run(try Self.adjust(rig, -30)))
    #expect(try rig.settled("acme", "tokens", .month) == 70)
    let born = try rig.outbox().suffix(2)
    #expect(born.map(\.kind) == [.adjustment, .config])
    #expect(born.map(\.charged) == [-30, 0])
    #expect(born.last?.id.index == DeltaID.changeIndex)
    #expect(decided.entries.map(\.sequence) == [2])
    #expect(
      try rig.read(Reads.audit(rig.keySpace, bucket: 0, count: 10, from: "+")).map(\.body) == [
        Array("why".utf8)
      ])
  }

  @Test func anAdjustmentCanBeTheFirstOfItsPeriodAndNeverMakesTheBillNegative() throws {
    let rig = try StoreRig.ready()
    _ = try Self.decided(try rig.run(try Self.adjust(rig, 30)))
    #expect(try rig.settled("acme", "tokens", .month) == 30)
    let before = try rig.dump()
    #expect(try rig.run(try Self.adjust(rig, -31)) == .answered(.error("QUANTITY_OVERFLOW")))
    #expect(try rig.dump() == before)
    _ = try Self.decided(try rig.run(try Self.adjust(rig, -30)))
    #expect(try rig.settled("acme", "tokens", .month) == 0)
  }

  @Test func anAdjustmentOfALongGonePeriodIsOnlyADelta() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 100))
    let long = rig.now + -100 * 86_400_000
    _ = try Self.decided(try rig.run(try Self.adjust(rig, -30, at: long)))
    #expect(try rig.settled("acme", "tokens", .month) == 100)
    #expect(try rig.outbox().dropLast().last?.charged == -30)
  }
}

extension ScriptsCorrectTests.Refund {
  /// Where the answer is on record, the look does not matter.
  var fakeLook: CorrectCall.Look {
    .init(mark: 0, sequence: 0, acknowledged: 0, time: WallTime(milliseconds: 1))
  }
}
