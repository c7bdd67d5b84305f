// Thresholds in Redis: each is noted once for its limit and period, with a delta of its own; a
// raise and a reset arm them again; what was judged on older numbers notes nothing that is not so.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

extension StoreRig {
  /// What a watch that has just looked would ask for; `used` is only for the body.
  func thresholds(
    _ subject: String = "acme", _ feature: String = "tokens", _ limit: String = "tokens.month",
    window: Window = .month, amount: Int64 = 1000, forgiven: Int64 = 0,
    reached: [Int64] = [50, 80, 100], at: WallTime? = nil
  ) throws -> ThresholdCall {
    ThresholdCall(
      keySpace: keySpace, fence: fence,
      reading: ThresholdReading(
        subject: try Subject(subject), feature: try Name(feature), limit: try Name(limit),
        window: window, period: window.period(containing: at ?? now), amount: amount, used: 0,
        forgiven: forgiven, reached: reached), globalVersion: global.version,
      accountVersion: account.version, outboxEntriesMax: 1000)
  }
}

@Suite(.blocking) struct ScriptsThresholdTests {
  private func noted(_ rig: StoreRig, _ call: ThresholdCall) throws -> [Int64] {
    guard case .done(let outcome) = try rig.run(call) else {
      throw AdminlessFailure()
    }
    return outcome.entries.map { Int64($0.id.index) }
  }

  private struct AdminlessFailure: Error {}

  @Test func eachIsNotedOnceWithADeltaThatMovesNothing() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 799))
    // As a sidecar that has heard of that write.
    rig.fence.seenTime = rig.now
    let counters = try rig.counters("acme").cells
    guard case .done(let outcome) = try rig.run(rig.thresholds()) else {
      Issue.record("not done")
      return
    }
    // 80 and 100 % were judged reached, and are not.
    #expect(outcome.entries.map(\.id.index) == [50])
    let found = try rig.outbox()
    #expect(found.count == 2 && found[1] == outcome.entries[0])
    #expect(found[1].kind == .threshold && found[1].sequence == 2)
    #expect(found[1].actual == 0 && found[1].charged == 0 && found[1].absorbed == 0)
    let body = try ThresholdBody.decode(found[1].body)
    #expect(body.limit.text == "tokens.month" && body.percent == 50 && body.amount == 1000)
    #expect(try rig.counters("acme").cells == counters)

    #expect(try noted(rig, rig.thresholds()) == [])
    _ = try rig.consume("acme", ("tokens", 1))
    #expect(try noted(rig, rig.thresholds()) == [80])
    _ = try rig.consume("acme", ("tokens", 200))
    #expect(try noted(rig, rig.thresholds()) == [100])
    #expect(try noted(rig, rig.thresholds()) == [])
    #expect(try rig.outbox().filter { $0.kind == .threshold }.map(\.sequence) == [2, 4, 6])
  }

  @Test func severalAtOnceAreSeveralDeltas() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 1000))
    #expect(try noted(rig, rig.thresholds()) == [50, 80, 100])
    #expect(try rig.outbox().map(\.sequence) == [1, 2, 3, 4])
    // The sequence that decisions go on from.
    _ = try rig.consume("acme", ("spend", 1))
    #expect(try rig.outbox().map(\.sequence) == [1, 2, 3, 4, 5])
  }

  @Test func aRaiseArmsThemAgainAndALoweringDoesNot() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 900))
    #expect(try noted(rig, rig.thresholds()) == [50, 80])
    #expect(try noted(rig, rig.thresholds(amount: 900)) == [100])
    #expect(try noted(rig, rig.thresholds()) == [])
    #expect(try noted(rig, rig.thresholds(amount: 1500)) == [50])
    #expect(try noted(rig, rig.thresholds(amount: 1500)) == [])
    // All of them are deltas of their own.
    let ids = try rig.outbox().map(\.id)
    #expect(Set(ids).count == ids.count)
  }

  @Test func aResetArmsThemAgain() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 900))
    #expect(try noted(rig, rig.thresholds()) == [50, 80])
    let period = Window.month.period(containing: rig.now)
    guard
      case .done = try rig.run(
        ResetCall(
          keySpace: rig.keySpace, fence: rig.fence, change: rig.newChange(),
          subject: try Subject("acme"), feature: try Name("tokens"),
          target: .cell(.month, period, value: 0), body: [1], outboxEntriesMax: 1000))
    else {
      Issue.record("not reset")
      return
    }
    // Judged before the reset: looked at again, and nothing is noted.
    #expect(try rig.run(rig.thresholds()) == .stale)
    #expect(try noted(rig, rig.thresholds(forgiven: 900)) == [])
    _ = try rig.consume("acme", ("tokens", 500))
    #expect(try noted(rig, rig.thresholds(forgiven: 900)) == [50])
  }

  @Test func aNewPeriodStartsWithNone() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 900))
    let before = rig.now
    #expect(try noted(rig, rig.thresholds()) == [50, 80])
    try rig.advance(32 * 86_400_000)
    // The counter still stands at the period before; so does nothing of this one.
    #expect(try rig.run(rig.thresholds()) == .stale)
    _ = try rig.consume("acme", ("tokens", 500))
    #expect(try noted(rig, rig.thresholds()) == [50])
    #expect(try rig.run(rig.thresholds(at: before)) == .stale)
  }

  @Test func aMembersLimitIsNotedInItsOwnHash() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 3))
    _ = try rig.consume("acme/bob", ("chat", 3))
    for member in ["acme/ann", "acme/bob"] {
      let call = try rig.thresholds(
        member, "chat", "chat.member", window: .hour, amount: 6, reached: [50])
      #expect(try noted(rig, call) == [50])
      #expect(try noted(rig, call) == [])
    }
    let bodies = try rig.outbox().filter { $0.kind == .threshold }.map {
      try ThresholdBody.decode($0.body).subject.path
    }
    #expect(bodies == ["acme/ann", "acme/bob"])
  }

  @Test func whatWasJudgedUnderAnotherConfigurationIsLookedAtAgain() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 900))
    let before = try rig.dump()
    var call = try rig.thresholds()
    call.accountVersion += 1
    #expect(try rig.run(call) == .stale)
    call = try rig.thresholds()
    call.globalVersion += 1
    #expect(try rig.run(call) == .stale)
    call = try rig.thresholds("nobody")
    #expect(try rig.run(call) == .rebuild)
    call = try rig.thresholds()
    call.fence.seenSequence = 99
    guard case .fenced = try rig.run(call) else {
      Issue.record("not fenced")
      return
    }
    call = try rig.thresholds()
    call.fence.seenTime = rig.now + 60_000
    guard case .fenced = try rig.run(call) else {
      Issue.record("not fenced by time")
      return
    }
    call = try rig.thresholds()
    call.outboxEntriesMax = 1
    #expect(try rig.run(call) == .outboxFull)
    #expect(try rig.dump() == before)
  }

  /// Redis forgot that it was noted: the delta that comes again is the same one.
  @Test func afterALossItIsTheSameDelta() throws {
    func first() throws -> DeltaID? {
      let rig = try StoreRig.ready()
      _ = try rig.consume("acme", ("tokens", 500))
      #expect(try noted(rig, rig.thresholds()) == [50])
      return try rig.outbox().last?.id
    }
    let id = try first()
    #expect(try id != nil && id == first())
  }
}
