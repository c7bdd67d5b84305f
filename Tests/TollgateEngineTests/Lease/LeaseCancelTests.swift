// Operations that are taken back, and denials that are remembered.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct LeaseCancelTests {
  private let redis = ModelRedis()

  init() { redis.amounts = ["acme": 1_000] }

  @Test func whatIsNotSettledIsUnspent() {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    #expect(scene.cancel(.simple(), 3, id: id) == .cancelled)
    #expect(!scene.isUnsettled)
    scene.run(20, redis)
    #expect(redis.ledger["acme"] ?? 0 == 0)
  }

  @Test func theIdStaysCancelled() {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    _ = scene.cancel(.simple(), 3, id: id)
    #expect(scene.spend(.simple(), 3, id: id) == .cancelled)
    #expect(scene.cancel(.simple(), 3, id: id) == .already)
  }

  @Test func laterSpendsAbsorbWhatWasSettled() throws {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    scene.run(20, redis)
    #expect(scene.cancel(.simple(), 3, id: id) == .cancelled)
    scene.spend(.simple(), 5)
    scene.run(20, redis)
    #expect(redis.ledger["acme"] == 5 && redis.settled["acme"] == 5)
    #expect(scene.table.gauges.creditUnits == 0 && !scene.isUnsettled)
  }

  @Test func whatNothingAbsorbsBecomesARefund() {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    scene.run(20, redis)
    _ = scene.cancel(.simple(), 3, id: id)
    scene.run(500, redis)
    #expect(redis.ledger["acme"] == 3)
    scene.run(600, redis)
    #expect(redis.ledger["acme"] == 0 && redis.settled["acme"] == 0)
    #expect(scene.table.gauges.creditUnits == 0)
  }

  @Test func whatWasSettledLendsNothingBeforeRedisKnows() {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 30, id: id)
    scene.run(10, redis)
    _ = scene.cancel(.simple(), 30, id: id)
    var spent: Int64 = 0
    while scene.spend(.simple(), 1).isAllowed { spent += 1 }
    #expect(spent <= LeaseRules.ceiling(left: redis.lessees["acme"]?[1]?.left["acme"] ?? 0))
  }

  @Test func anUnknownOneIsLeftToRedisAndMarked() {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    #expect(scene.cancel(.simple(), 3, id: id) == .unknown)
    #expect(scene.spend(.simple(), 3, id: id) == .miss(.marked))
  }

  @Test func anotherBodyIsNotCancelled() {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    #expect(scene.cancel(.simple(), 4, id: id) == .mismatch(item: 0, keyOffset: 0))
    #expect(scene.table.gauges.unsettledUnits == 3)
  }

  @Test func anEntryThatIsGoneIsRegisteredAgainFirst() {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    scene.run(70_000, redis, step: 200)
    #expect(scene.cancel(.simple(), 3, id: id) == .unregistered)
    scene.begin(redis)
    #expect(scene.cancel(.simple(), 3, id: id) == .cancelled)
    scene.run(1_100, redis)
    #expect(redis.ledger["acme"] == 0)
  }

  // MARK: - Over the end of a period

  /// The same request in another period: the same key, other cells.
  private func day(_ number: Int) -> Shape {
    redis.amounts["acme@\(number)"] = 1_000
    return Shape(
      account: "acme", key: "acme", cells: ["acme@\(number)"], counted: ["acme.bill@\(number)"])
  }

  @Test(arguments: [false, true])
  func whatAnEarlierPeriodCountedIsTakenBackThere(isSettled: Bool) {
    let scene = LeaseScene().begin(redis, day(1))
    let id = scene.mint()
    scene.spend(day(1), 3, id: id)
    scene.spend(day(1), 4)
    if isSettled { scene.run(20, redis) }
    scene.begin(redis, day(2))
    scene.spend(day(2), 5)
    scene.run(30, redis)
    #expect(scene.cancel(day(2), 3, id: id) == .cancelled)
    scene.run(1_200, redis)
    #expect(redis.ledger["acme@1"] == 4 && redis.settled["acme@1"] == 4)
    #expect(redis.ledger["acme@2"] == 5 && redis.settled["acme@2"] == 5)
    #expect(redis.ledger["acme.bill@1"] == 4 && redis.ledger["acme.bill@2"] == 5)
    #expect(redis.violations.isEmpty && !scene.isUnsettled)
    #expect(scene.table.gauges.creditUnits == 0)
  }

  /// The old entry is forgotten in the same moment, and was the last to refer to what both count in.
  @Test func whatThePeriodsShareOutlivesTheEarlierOne() {
    func month(_ day: Int) -> Shape {
      redis.amounts["acme@\(day)"] = 1_000
      return Shape(
        account: "acme", key: "acme", cells: ["acme@\(day)"], counted: ["acme.month"])
    }
    let scene = LeaseScene().begin(redis, month(1))
    redis.amounts["b"] = 10_000
    scene.begin(redis, .simple("b"))
    for day in 1...4 {
      scene.begin(redis, month(day))
      scene.spend(month(day), 1)
      scene.run(20, redis)
      // Nobody remembers an operation of that day any more.
      for _ in 0..<300 {
        scene.spend(.simple("b"), 1)
        scene.run(10, redis)
      }
    }
    #expect(redis.ledger["acme.month"] == 4 && redis.settled["acme.month"] == 4)
    #expect((1...4).allSatisfy { redis.ledger["acme@\($0)"] == 1 })
    #expect(redis.ledger["b"] == 1_200 && redis.violations.isEmpty && !scene.isUnsettled)
  }

  /// It is kept as long as the ring remembers an operation of it, and no longer.
  @Test func anEarlierPeriodIsForgottenWithItsOperations() {
    let scene = LeaseScene().begin(redis, day(1))
    for number in 1...5 {
      scene.begin(redis, day(number))
      scene.spend(day(number), 1)
      scene.run(20, redis)
    }
    #expect(scene.table.gauges.entries == 5)
    for _ in 0..<300 {
      scene.spend(day(5), 1)
      scene.run(10, redis)
    }
    #expect(scene.table.gauges.entries == 1)
    #expect(redis.ledger["acme@5"] == 301)
  }

  @Test func anEarlierPeriodIsForgottenWhereNothingElseIsAsked() {
    let scene = LeaseScene().begin(redis, day(1))
    scene.spend(day(1), 1)
    scene.run(20, redis)
    scene.begin(redis, day(2))
    scene.run(100_000, redis, step: 200)
    #expect(scene.table.gauges.entries == 1)
    scene.run(60_000, redis, step: 200)
    #expect(scene.table.gauges.entries == 0)
  }

  /// Where there is no room for what is asked now, it goes before its time.
  @Test func anEarlierPeriodStandsInNobodysWay() {
    var configuration = LeaseConfiguration()
    configuration.entriesMax = 64
    let scene = LeaseScene(configuration: configuration)
    for number in 1...200 {
      scene.begin(redis, day(number))
      #expect(scene.spend(day(number), 1).isAllowed, "\(number)")
      scene.run(20, redis)
    }
    #expect(scene.table.gauges.entries <= 64)
    #expect((1...200).allSatisfy { redis.ledger["acme@\($0)"] == 1 })
  }

  // MARK: - Denials

  private func deny(
    _ scene: LeaseScene, settledAlone: Bool, amount: Int64 = 1, amountMax: Int64 = .max,
    reason: LeaseDenialReason = .quota
  ) {
    _ = scene.table.noteDenial(
      bucket: 0,
      LeaseDenialNote(
        key: Array("acme".utf8), reason: reason, amount: amount, amountMax: amountMax,
        isSettledAlone: settledAlone,
        reset: scene.wall + 10_000, confirmedAt: scene.now,
        template: LeaseTemplate(
          bytes: Array(repeating: 7, count: 24),
          patches: [
            LeasePatch(.time, at: 0), LeasePatch(.retryAfter, at: 8),
            LeasePatch(.replayed, at: 16),
          ])))
  }

  @Test func aDenialBySettledAloneIsRemembered() {
    let scene = LeaseScene()
    scene.register()
    deny(scene, settledAlone: true)
    scene.pass(900)
    #expect(scene.spend(.simple(), 5) == .denied(bytes: 24))
    #expect(scene.number(1) == 9_100)
  }

  /// Of a refund through another sidecar nobody tells; so Redis is asked again.
  @Test func aDenialBySettledAloneIsForgottenAfterASecond() {
    let scene = LeaseScene()
    scene.register()
    deny(scene, settledAlone: true)
    scene.pass(999)
    #expect(scene.spend(.simple(), 5) == .denied(bytes: 24))
    scene.pass(1)
    #expect(scene.spend(.simple(), 5) == .miss(.ended))
  }

  @Test func aDenialIsDroppedByACancel() {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    deny(scene, settledAlone: true)
    #expect(scene.spend(.simple(), 1) == .denied(bytes: 24))
    scene.pass(1)
    #expect(scene.cancel(.simple(), 3, id: id) == .cancelled)
    #expect(scene.spend(.simple(), 1).isAllowed)
  }

  /// What was settled is back when the refund is: a denial of the time in between says nothing then.
  @Test func aDenialIsDroppedWhenACancelIsSettled() {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    scene.run(100, redis)
    #expect(scene.cancel(.simple(), 3, id: id) == .cancelled)
    scene.run(900, redis)
    deny(scene, settledAlone: true)
    #expect(scene.spend(.simple(), 1) == .denied(bytes: 24))
    scene.run(200, redis)
    #expect(redis.ledger["acme"] == 0)
    #expect(scene.spend(.simple(), 1).isAllowed)
  }

  @Test func aDenialIsDroppedByWhatRedisTookBack() {
    let scene = LeaseScene()
    scene.register()
    deny(scene, settledAlone: true)
    scene.pass(1)
    let asked = scene.now
    scene.pass(1)
    scene.table.corrected(bucket: 0, account: Array("acme".utf8), now: scene.monotonic)
    #expect(scene.spend(.simple(), 1) == .miss(.ended))
    // The answer to what was asked before that says nothing, either.
    let now = scene.now
    scene.now = asked
    deny(scene, settledAlone: true)
    scene.now = now
    #expect(scene.spend(.simple(), 1) == .miss(.ended))
    deny(scene, settledAlone: true)
    #expect(scene.spend(.simple(), 1) == .denied(bytes: 24))
  }

  @Test func aDenialByHoldsIsForgottenAfterTenMilliseconds() {
    let scene = LeaseScene()
    scene.register()
    deny(scene, settledAlone: false, amount: 3)
    scene.pass(9)
    #expect(scene.spend(.simple(), 3) == .denied(bytes: 24))
    #expect(scene.spend(.simple(), 2) == .miss(.ended))
    scene.pass(1)
    #expect(scene.spend(.simple(), 3) == .miss(.ended))
  }

  @Test func aDenialIsDroppedByAChange() {
    let scene = LeaseScene()
    scene.register()
    deny(scene, settledAlone: true)
    scene.pass(1)
    scene.table.configChanged(bucket: 0, account: Array("acme".utf8), now: scene.monotonic)
    #expect(scene.spend(.simple(), 1) == .miss(.outdated))
    scene.register()
    #expect(scene.spend(.simple(), 1) == .miss(.ended))
  }

  @Test func aRetryOfADeniedOneIsDenied() {
    let scene = LeaseScene()
    scene.register()
    deny(scene, settledAlone: false)
    let id = scene.mint()
    #expect(scene.spend(.simple(), 1, id: id) == .denied(bytes: 24))
    scene.pass(20)
    #expect(scene.spend(.simple(), 1, id: id) == .denied(bytes: 24))
    #expect(scene.number(2) & 1 == 1)
    scene.table.configChanged(now: scene.monotonic)
    scene.register()
    #expect(scene.spend(.simple(), 1, id: id) == .knownDenied(.quota))
  }

  /// Also where another limit denies by then, and to a CANCEL, and to the journal's next reader.
  @Test(arguments: [LeaseDenialReason.quota, .credit, .rate])
  func aRetryOfADeniedOneIsToldTheSameReason(reason: LeaseDenialReason) {
    let memory = LeaseMemory(LeaseScene.geometry())
    let scene = LeaseScene(memory)
    scene.register()
    deny(scene, settledAlone: false, reason: reason)
    let id = scene.mint()
    #expect(scene.spend(.simple(), 1, id: id) == .denied(bytes: 24))
    scene.pass(20)
    deny(scene, settledAlone: false, reason: reason == .quota ? .rate : .quota)
    #expect(scene.spend(.simple(), 1, id: id) == .knownDenied(reason))
    #expect(scene.cancel(.simple(), 1, id: id) == .denied(reason))
    let next = LeaseScene(memory, lessee: 2, now: scene.now + 1_000_000)
    next.register()
    #expect(next.spend(.simple(), 1, id: id) == .knownDenied(reason))
  }

  /// They would be told another time, or that they never will be.
  @Test func ofGreaterAmountsADenialSaysNothing() {
    let scene = LeaseScene()
    scene.register()
    deny(scene, settledAlone: false, amount: 3, amountMax: 4, reason: .rate)
    #expect(scene.spend(.simple(), 2) == .miss(.ended))
    #expect(scene.spend(.simple(), 3) == .denied(bytes: 24))
    #expect(scene.spend(.simple(), 4) == .denied(bytes: 24))
    #expect(scene.spend(.simple(), 5) == .miss(.ended))
  }

  @Test func aDenialOfWhatIsNotKnownIsSaidToBeSo() {
    let scene = LeaseScene()
    let note = LeaseDenialNote(
      key: Array("acme".utf8), reason: .quota, amount: 1, amountMax: 1, isSettledAlone: true,
      reset: scene.wall + 10_000, confirmedAt: scene.now,
      template: LeaseTemplate(bytes: Array(repeating: 7, count: 24), patches: []))
    #expect(!scene.table.noteDenial(bucket: 0, note))
    scene.register()
    #expect(scene.table.noteDenial(bucket: 0, note))
    scene.pass(1)
    scene.table.configChanged(bucket: 0, account: Array("acme".utf8), now: scene.monotonic)
    #expect(!scene.table.noteDenial(bucket: 0, note))
  }
}
