// What the table answers from memory, and what it leaves to Redis.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct LeaseSpendTests {
  /// What is longer than a line of the cache takes whole ones: a word too many costs 64 bytes of
  /// each.
  @Test func recordsAreNoLongerThanTheirLines() {
    #expect(MemoryLayout<LeaseAccount>.stride <= 128)
    #expect(MemoryLayout<LeaseEntry>.stride <= 128)
    #expect(MemoryLayout<LeasePortion>.stride <= 192)
    #expect(MemoryLayout<LeaseItem>.stride <= 40)
  }

  private let redis = ModelRedis()

  init() { redis.amounts = ["acme": 1_000, "acme/ann": 100, "b": 1_000] }

  @Test func aShapeThatNobodyRegisteredIsLeftToRedis() {
    #expect(LeaseScene().spend() == .miss(.unknownKey))
  }

  @Test func aRegisteredShapeWaitsForItsLease() {
    let scene = LeaseScene()
    #expect(scene.register() == .ready)
    #expect(scene.spend(.simple(), 1) == .miss(.ended))
    scene.exchange(with: redis)
    #expect(scene.spend(.simple(), 1).isAllowed)
  }

  @Test func theAnswerSaysWhatIsLeftAfterIt() {
    let scene = LeaseScene().begin(redis)
    #expect(scene.spend(.simple(), 3) == .allowed(bytes: 48))
    #expect(scene.number(0) == 997)
    #expect(scene.number(1) == 3)
    #expect(scene.number(2) == 0)
    #expect(scene.number(3) == scene.wall)
    #expect(scene.number(4) == 0)
  }

  @Test func aRetryIsAnsweredAndNotCountedAgain() {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    #expect(scene.spend(.simple(), 3, id: id).isAllowed)
    #expect(scene.spend(.simple(), 3, id: id).isReplayed)
    #expect(scene.number(4) == 1)
    #expect(scene.table.gauges.unsettledUnits == 3)
  }

  @Test func anotherAmountUnderTheSameIdIsAMismatch() {
    let scene = LeaseScene().begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    #expect(scene.spend(.simple(), 4, id: id) == .mismatch(item: 0, keyOffset: 0))
  }

  @Test func anotherShapeUnderTheSameIdIsAMismatchFromWhereItDiffers() {
    let scene = LeaseScene().begin(redis).begin(redis, .simple("acme", member: "ann"))
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    #expect(
      scene.spend(.simple("acme", member: "ann"), 3, id: id) == .mismatch(item: nil, keyOffset: 4))
  }

  @Test func aCheckTakesNothing() {
    let scene = LeaseScene().begin(redis)
    #expect(scene.spend(.simple(), 3, kind: .check).isAllowed)
    #expect(!scene.isUnsettled)
  }

  @Test func allLevelsAreTakenOrNone() {
    let scene = LeaseScene()
    let both = Shape.simple("acme", member: "ann")
    scene.begin(redis).begin(redis, both, demand: 3)
    let before = scene.table.gauges.unsettledUnits
    // More than the member's portion holds, less than the account's.
    #expect(scene.spend(both, 30) == .miss(.noRoom))
    #expect(scene.table.gauges.unsettledUnits == before)
    #expect(scene.spend(both, 5).isAllowed)
    scene.run(20, redis)
    #expect(redis.settled["acme"] == 5 && redis.settled["acme/ann"] == 5)
    #expect(redis.settled["acme.bill"] == 5)
  }

  @Test func whatIsNotSettledStaysUnderTheDoubtCeiling() {
    let scene = LeaseScene().begin(redis, demand: 10)
    // 160 are held, and an expiry would leave 80 of them.
    #expect(redis.lessees["acme"]?[1]?.left["acme"] == 160)
    var spent: Int64 = 0
    while scene.spend(.simple(), 1).isAllowed { spent += 1 }
    #expect(spent == 80)
  }

  @Test func aMissLeavesAMarkerSoThatItsRetryGoesToRedisToo() {
    let scene = LeaseScene()
    scene.register()
    let id = scene.mint()
    #expect(scene.spend(.simple(), 1, id: id) == .miss(.ended))
    scene.exchange(with: redis)
    #expect(scene.spend(.simple(), 1, id: id) == .miss(.marked))
    #expect(scene.spend(.simple(), 1).isAllowed)
  }

  @Test func anUnregisteredShapeIsMarkedByTheCaller() {
    let scene = LeaseScene()
    let id = scene.mint()
    #expect(scene.table.mark(bucket: 0, id: id))
    scene.begin(redis)
    #expect(scene.spend(.simple(), 1, id: id) == .miss(.marked))
    #expect(!scene.table.mark(bucket: 0, id: id))
  }

  @Test func anIdOlderThanWhatIsRememberedIsTooOld() {
    let scene = LeaseScene(LeaseMemory(LeaseScene.geometry(slots: 64))).begin(redis)
    let old = scene.mint()
    scene.spend(.simple(), 1, id: old)
    for _ in 0..<200 {
      scene.pass(10)
      scene.spend(.simple(), 1)
      scene.exchange(with: redis)
    }
    #expect(scene.spend(.simple(), 1, id: old) == .tooOld)
  }

  @Test func anIdFromTheFutureIsNotTaken() {
    let scene = LeaseScene().begin(redis)
    let id = OperationID(high: UInt64(scene.wall + 60_001) << 16, low: 1)
    #expect(scene.spend(.simple(), 1, id: id) == .miss(.future))
  }

  @Test func aRingFullOfUnsettledOperationsForgetsNone() {
    let scene = LeaseScene(LeaseMemory(LeaseScene.geometry(slots: 64)))
    scene.begin(redis, demand: 100)
    var allowed = 0
    var outcome = scene.spend(.simple(), 1)
    while outcome.isAllowed {
      allowed += 1
      outcome = scene.spend(.simple(), 1)
    }
    #expect(outcome == .miss(.ringFull) && allowed <= 56)
    scene.run(20, redis)
    #expect(scene.spend(.simple(), 1).isAllowed)
    #expect(redis.settled["acme"] == Int64(allowed))
  }

  @Test func theLeaseEndsHereBeforeItEndsInRedis() {
    let scene = LeaseScene().begin(redis)
    scene.table.subscribed(since: MonotonicTime(nanoseconds: 0))
    scene.pass(9_499)
    scene.table.heard(at: scene.monotonic)
    #expect(scene.spend(.simple(), 1).isAllowed)
    scene.pass(1)
    #expect(scene.spend(.simple(), 1) == .miss(.ended))
  }

  @Test func withoutWordOfTheConfigurationNothingIsSpentAfterASecond() {
    let scene = LeaseScene().begin(redis)
    scene.pass(1_000)
    #expect(scene.spend(.simple(), 1).isAllowed)
    scene.pass(1)
    #expect(scene.spend(.simple(), 1) == .miss(.notFresh))
  }

  @Test func anUnbrokenSubscriptionKeepsItFresh() {
    let scene = LeaseScene()
    scene.table.subscribed(since: scene.monotonic)
    scene.begin(redis)
    scene.pass(3_000)
    scene.table.heard(at: scene.monotonic)
    #expect(scene.spend(.simple(), 1).isAllowed)
    scene.table.unsubscribed()
    #expect(scene.spend(.simple(), 1) == .miss(.notFresh))
  }

  @Test func limitsThatAllowStaleAnswersAreSpentWithoutWord() {
    let scene = LeaseScene()
    scene.register(isStaleAllowed: true)
    scene.exchange(with: redis)
    scene.pass(5_000)
    #expect(scene.spend(.simple(), 1).isAllowed)
  }

  @Test func aPeriodThatIsOverIsLeftToRedis() {
    let scene = LeaseScene()
    scene.register(end: scene.wall + 100)
    scene.exchange(with: redis)
    #expect(scene.spend(.simple(), 1).isAllowed)
    scene.pass(100)
    #expect(scene.spend(.simple(), 1) == .miss(.outdated))
  }

  @Test func severalItemsAreCountedEach() {
    let scene = LeaseScene()
    var shape = Shape.simple()
    shape.items = 5
    shape.key = "five"
    scene.begin(redis, shape)
    let id = scene.mint()
    #expect(scene.spend(shape, 1, 2, 3, 4, 5, id: id).isAllowed)
    #expect(scene.spend(shape, 1, 2, 3, 4, 5, id: id).isReplayed)
    #expect(scene.spend(shape, 1, 2, 3, 4, 6, id: id) == .mismatch(item: 4, keyOffset: 0))
    scene.pass(20)
    #expect(scene.collect()?.deltas.map(\.amount) == [1, 2, 3, 4, 5])
  }
}
