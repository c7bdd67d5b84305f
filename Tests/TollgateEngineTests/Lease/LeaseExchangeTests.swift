// What goes to Redis, when, and what the answers and the silence do to the leases.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct LeaseExchangeTests {
  private let redis = ModelRedis()

  init() { redis.amounts = ["acme": 1_000, "small": 30, "rate": 1_000] }

  @Test func nothingIsDueBeforeTheTick() {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(9)
    #expect(scene.collect() == nil)
    scene.pass(1)
    #expect(scene.collect()?.deltas.map(\.amount) == [3])
  }

  @Test func spendsOfATickAreOneDelta() {
    let scene = LeaseScene().begin(redis)
    for _ in 0..<10 { scene.spend(.simple(), 2) }
    scene.pass(10)
    let exchange = scene.collect()
    #expect(exchange?.deltas.map(\.amount) == [20])
    #expect(exchange?.accounts.first?.portions.map(\.settle) == [20, 20])
  }

  @Test func withoutCapacityToSpareUsageWaitsAndGathers() {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(10)
    #expect(scene.collect(isSpare: false) == nil)
    scene.pass(489)
    scene.spend(.simple(), 4)
    #expect(scene.collect(isSpare: false) == nil)
    scene.pass(1)
    #expect(scene.collect(isSpare: false)?.deltas.map(\.amount) == [7])
  }

  @Test func whereManyAreHotUsageWaitsLonger() {
    for (settle, rest) in [(0, 490), (200, 490), (3_000, 2_990), (4_000, 3_157)] as [(Int64, Int64)]
    {
      let redis = ModelRedis()
      redis.amounts["acme"] = 1_000_000
      let scene = LeaseScene().begin(redis)
      scene.table.subscribed(since: scene.monotonic)
      scene.spend(.simple(), 3)
      scene.pass(rest + 9)
      #expect(scene.collect(isSpare: false, settle: settle) == nil)
      #expect(scene.table.waiting(bucket: 0) == 1)
      scene.pass(1)
      let exchange = scene.collect(isSpare: false, settle: settle)
      #expect(exchange?.deltas.map(\.amount) == [3])
      #expect(scene.table.waiting(bucket: 0) == 0)
    }
  }

  @Test(arguments: [(0, 2_000), (1_000, 4_000), (3_000, 12_000)] as [(Int64, Int64)])
  func aPortionHoldsWhatIsUsedInFourSettles(_ settle: Int64, _ cover: Int64) {
    redis.amounts["acme"] = 1 << 30
    let scene = LeaseScene().begin(redis)
    for _ in 0..<2_000 {
      scene.spend(.simple(), 1)
      scene.run(10, redis, settle: settle)
      scene.table.subscribed(since: scene.monotonic)
      scene.table.heard(at: scene.monotonic)
    }
    // A hundred a second.
    #expect((cover / 20...cover / 5).contains(redis.held("acme")))
  }

  @Test(arguments: [(0, 1_000), (600, 1_200), (3_000, 6_000)] as [(Int64, Int64)])
  func whatIsIdleIsGivenBackAfterTwoSettles(_ settle: Int64, _ idle: Int64) {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 1)
    scene.run(idle - 200, redis, settle: settle)
    #expect(redis.held("acme") > 0)
    // It may be looked at for the first time only then.
    scene.run(idle + 700, redis, settle: settle)
    #expect(redis.held("acme") == 0)
  }

  /// Late settling is for what nobody waits for: in a bucket that begins anew others are granted
  /// what was used, from a second later on.
  @Test func aBucketThatBeginsAnewIsToldAtOnceWhatWasUsed() {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(20)
    #expect(scene.collect(isSpare: false, settle: 3_000) == nil)
    scene.table.epochChanged(bucket: 0)
    #expect(scene.collect(isSpare: false, settle: 3_000)?.deltas.map(\.amount) == [3])
  }

  @Test func whoCannotKnowTheConfigurationAsksForIt() throws {
    let scene = LeaseScene().begin(redis)
    #expect(scene.spend(.simple(), 1).isAllowed)
    scene.pass(1_001)
    #expect(scene.collect(isSpare: false, settle: 3_000) == nil)
    #expect(scene.spend(.simple(), 1) == .miss(.notFresh))
    let exchange = try #require(scene.collect(isSpare: false, settle: 3_000))
    scene.table.replied(exchange.token, redis.exchange(exchange), now: scene.monotonic)
    #expect(scene.spend(.simple(), 1).isAllowed)
  }

  /// Also what only counts, for which nothing is held.
  @Test func whatIsClosedIsSettledAtOnce() {
    let scene = LeaseScene()
    let shape = Shape(account: "acme", key: "acme", cells: [], counted: ["acme.bill"])
    scene.begin(redis, shape)
    #expect(scene.spend(shape, 3).isAllowed)
    scene.pass(20)
    #expect(scene.collect(isSpare: false, settle: 3_000) == nil)
    scene.table.close(now: scene.monotonic)
    #expect(scene.collect(isSpare: false, settle: 3_000)?.deltas.map(\.amount) == [3])
  }

  /// What is not settled cannot be forgotten, so the rest of the ring would stand still behind it.
  @Test func whereTheRingIsFullWhatHoldsItUpIsSettledAtOnce() {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(20)
    for _ in 0..<230 { _ = scene.table.mark(bucket: 0, id: scene.mint()) }
    #expect(scene.collect(isSpare: false, settle: 3_000) == nil)
    #expect(scene.spend(.simple(), 1) == .miss(.ringFull))
    #expect(scene.collect(isSpare: false, settle: 3_000)?.deltas.map(\.amount) == [3])
    #expect(scene.collect(isSpare: false, settle: 3_000) == nil)
    #expect(scene.spend(.simple(), 1).isAllowed == false)
  }

  /// A guess is no longer a guess where it is to cover more time.
  @Test func whatIsGuessedAtFirstDoesNotGrow() {
    let scene = LeaseScene()
    _ = scene.collect(settle: 3_000)
    scene.register(.simple(), amount: 1_000_000, demand: 10)
    redis.amounts["acme"] = 1_000_000
    scene.exchange(with: redis, settle: 3_000)
    #expect((150...170).contains(redis.held("acme")))
  }

  /// Nothing is looked at again and again in one turn of the wheel, however late it is.
  @Test func aPauseDoesNotMakeTheWheelSpin() {
    let scene = LeaseScene()
    let shapes = (0..<50).map { Shape.simple("a\($0)") }
    for number in shapes.indices { redis.amounts["a\(number)"] = 1_000_000 }
    for shape in shapes { scene.begin(redis, shape) }
    scene.table.subscribed(since: scene.monotonic)
    func use(_ rounds: Int, step: Int64) {
      for _ in 0..<rounds {
        scene.table.heard(at: scene.monotonic)
        for shape in shapes { #expect(scene.spend(shape, 1).isAllowed) }
        scene.run(step, redis, step: step, settle: 3_000)
      }
    }
    use(100, step: 10)
    // Twice as long as a slot of the wheel, and more.
    scene.pass(400)
    let before = scene.table.gauges.looks
    use(400, step: 10)
    #expect(scene.table.gauges.looks - before <= 50 * 4)
  }

  /// Accounts of a bucket that are used all the time are settled together, each as seldom as may be.
  @Test func whatIsYoungGoesWithWhatIsDue() {
    let scene = LeaseScene().begin(redis)
    let other = Shape.simple("other")
    redis.amounts["other"] = 1_000
    scene.begin(redis, other)
    scene.spend(.simple(), 3)
    scene.pass(260)
    scene.spend(other, 1)
    scene.pass(240)
    #expect(scene.collect(isSpare: false)?.deltas.map(\.amount) == [3, 1])
    scene.spend(.simple(), 2)
    scene.pass(251)
    #expect(scene.collect(isSpare: false) == nil)
  }

  @Test func aRefillBringsWhatIsNearlyDueAndNothingYounger() throws {
    for (age, amounts) in [(384, [61]), (385, [61, 2])] as [(Int64, [Int64])] {
      let redis = ModelRedis()
      redis.amounts["acme"] = 10_000
      let scene = LeaseScene().begin(redis, demand: 10)
      let other = Shape.simple("other")
      redis.amounts["other"] = 1_000
      scene.begin(redis, other)
      scene.spend(other, 2)
      scene.pass(age)
      for _ in 0..<61 { scene.spend(.simple(), 1) }
      let refill = try #require(scene.collect(isSpare: false))
      #expect(refill.deltas.map(\.amount) == amounts)
    }
  }

  @Test func whatIsNotDueIsTakenAlongAsFarAsOneCallMayBearIt() throws {
    let scene = LeaseScene()
    let most = LeaseConfiguration().accountsAlongMax
    let shapes = (0..<most + 10).map { Shape.simple("a\($0)") }
    for (number, shape) in shapes.enumerated() {
      redis.amounts["a\(number)"] = 1_000
      scene.begin(redis, shape)
    }
    scene.spend(shapes[0], 1)
    scene.pass(100)
    for shape in shapes.dropFirst() { scene.spend(shape, 1) }
    scene.pass(400)
    #expect(scene.collect(isSpare: false)?.deltas.count == most)
    #expect(scene.collect(isSpare: false) == nil)
    // All that is due goes, however many.
    scene.pass(100)
    #expect(scene.collect(isSpare: false)?.deltas.count == 10)
  }

  @Test func aLineIsNotHeldUpByOneThatWasSettledMeanwhile() throws {
    let scene = LeaseScene().begin(redis, demand: 10)
    scene.spend(.simple(), 1)
    scene.pass(400)
    for _ in 0..<60 { scene.spend(.simple(), 1) }
    let refill = try #require(scene.collect(isSpare: false))
    scene.table.replied(refill.token, redis.exchange(refill), now: scene.monotonic)
    scene.spend(.simple(), 5)
    scene.pass(100)
    #expect(scene.collect(isSpare: false) == nil)
    scene.pass(400)
    #expect(scene.collect(isSpare: false)?.deltas.map(\.amount) == [5])
  }

  @Test func whereNothingIsHeldThereIsLittleToDo() {
    let scene = LeaseScene()
    #expect(scene.table.load == .none)
    scene.begin(redis)
    #expect(scene.table.load == .registered)
    let id = scene.mint()
    scene.spend(.simple(), 1, id: id)
    #expect(scene.table.load == .unsettled)
    scene.run(5_000, redis)
    #expect(redis.held("acme") == 0)
    #expect(scene.table.load == .idle)
    // What is to be taken back waits for the next look.
    #expect(scene.cancel(.simple(), 1, id: id) == .cancelled)
    #expect(scene.table.load == .registered)
    scene.run(5_000, redis)
    #expect(redis.settled["acme"] == 0)
    #expect(scene.table.load == .idle)
    scene.run(70_000, redis)
    #expect(scene.table.load == .none)
  }

  @Test func whoAsksAgainAfterLongIsLeasedTheSecondTimeOnly() {
    let scene = LeaseScene()
    scene.table.subscribed(since: scene.monotonic)
    scene.begin(redis)
    scene.spend(.simple(), 1)
    scene.run(20_000, redis)
    #expect(redis.held("acme") == 0)
    scene.table.heard(at: scene.monotonic)
    #expect(scene.spend(.simple(), 1) == .miss(.ended))
    #expect(scene.collect() == nil)
    scene.pass(500)
    scene.table.heard(at: scene.monotonic)
    #expect(scene.table.load == .idle)
    #expect(scene.spend(.simple(), 1) == .miss(.ended))
    #expect(scene.table.load == .registered)
    #expect(scene.exchange(with: redis) == 1)
    #expect(scene.spend(.simple(), 1).isAllowed)
  }

  @Test func anAccountIsInOneExchangeAtATime() throws {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(10)
    let first = try #require(scene.collect())
    scene.spend(.simple(), 4)
    scene.pass(100)
    #expect(scene.collect() == nil)
    scene.table.replied(first.token, redis.exchange(first), now: scene.monotonic)
    scene.pass(10)
    #expect(scene.collect()?.deltas.map(\.amount) == [4])
  }

  @Test func aLostBatchGoesOutAgainAsItWas() throws {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(10)
    let first = try #require(scene.collect())
    _ = redis.exchange(first)
    scene.spend(.simple(), 4)
    scene.table.lost(first.token)
    let again = try #require(scene.collect())
    #expect(again.id == first.id && again.isRepeat && again.deltas == first.deltas)
    #expect(again.accounts[0].ordinal == first.accounts[0].ordinal + 1)
    scene.table.replied(again.token, redis.exchange(again), now: scene.monotonic)
    scene.run(20, redis)
    #expect(redis.settled["acme"] == 7 && redis.ledger["acme"] == 7 && !scene.isUnsettled)
  }

  @Test func aBatchThatDidNotLeaveKeepsItsId() throws {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(10)
    let first = try #require(scene.collect())
    scene.table.notSent(first.token)
    let again = try #require(scene.collect())
    #expect(again.id == first.id && !again.isRepeat)
  }

  @Test func aBatchThatWasNeverDoneGetsANewIdWhereItsOwnIsTooOld() throws {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(10)
    let first = try #require(scene.collect())
    // Whoever brought its deltas to the ledger now would count them twice.
    #expect(!scene.table.tooOld(first.token, wasDone: true, now: scene.monotonic))
    #expect(scene.isUnsettled)
    let again = try #require(scene.collect())
    #expect(again.id != first.id && again.deltas == first.deltas)
    scene.table.replied(again.token, redis.exchange(again), now: scene.monotonic)
    #expect(redis.ledger["acme"] == 3)
  }

  @Test func aBatchThatCannotBePutIntoWordsIsReportedOnce() throws {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(10)
    let first = try #require(scene.collect())
    scene.table.abandon(first.token, now: scene.monotonic)
    scene.run(100, redis)
    #expect(scene.table.gauges.unresolvedUnits == 3 && !scene.isUnsettled)
    #expect(redis.ledger["acme"] == nil)
  }

  @Test func aBatchThatNobodyCanTellAboutIsReportedAndNotCountedTwice() throws {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(10)
    let first = try #require(scene.collect())
    scene.table.lost(first.token)
    let again = try #require(scene.collect())
    #expect(scene.table.tooOld(again.token, wasDone: nil, now: scene.monotonic))
    #expect(scene.collect()?.deltas.isEmpty ?? true)
    #expect(scene.table.gauges.unresolvedUnits == 3 && !scene.isUnsettled)
  }

  /// By its time a forgotten id is told from a new one; of one that is ahead the id itself is kept,
  /// or that Redis decided it. Nobody else notices: what comes at its own time is let through.
  @Test(arguments: [Int64(500), 30_000])
  func anIdAheadOfTheClockIsNotCountedAgainWhenItsTimeHasCome(by lead: Int64) {
    let scene = LeaseScene().begin(redis)
    scene.table.subscribed(since: scene.monotonic)
    let ahead = OperationID(high: UInt64(scene.wall + lead) << 16, low: 77)
    let first = scene.spend(.simple(), 1, id: ahead)
    #expect(lead < 1_000 ? first.isAllowed : first == .miss(.future))
    func pass(_ milliseconds: Int64) {
      for _ in 0..<milliseconds / 10 {
        scene.table.heard(at: scene.monotonic)
        for _ in 0..<10 { #expect(scene.spend(.simple(), 0).isAllowed) }
        scene.run(10, redis)
      }
    }
    for _ in 0..<3 {
      pass(400)
      let again = scene.spend(.simple(), 1, id: ahead)
      #expect(lead < 1_000 ? again == .tooOld : again == .miss(.future))
      pass(400)
      #expect(scene.cancel(.simple(), 1, id: ahead) == (lead < 1_000 ? .tooOld : .unknown))
    }
    scene.pass(lead)
    scene.begin(redis)
    // Its time has come.
    let last = scene.spend(.simple(), 1, id: ahead)
    #expect(lead < 1_000 ? last == .tooOld : !last.isAllowed)
    pass(100)
    #expect(!scene.spend(.simple(), 1, id: ahead).isAllowed)
    scene.run(1_000, redis)
    #expect(redis.ledger["acme"] ?? 0 == (lead < 1_000 ? 1 : 0))
  }

  /// What they would fill is bounded, and the ids of next year, which Redis refuses, are not kept.
  @Test func manyIdsAheadOfTheClockStandInNobodysWay() {
    let scene = LeaseScene().begin(redis)
    scene.table.subscribed(since: scene.monotonic)
    for round in 0..<100 {
      for number in 0..<100 {
        let lead: Int64 = number % 2 == 0 ? 30_000 : 31_536_000_000
        let low = UInt64(round * 100 + number)
        let ahead = OperationID(high: UInt64(scene.wall + lead) << 16, low: low)
        #expect(scene.spend(.simple(), 1, id: ahead) == .miss(.future))
      }
      scene.table.heard(at: scene.monotonic)
      #expect(scene.spend(.simple(), 0).isAllowed)
      scene.run(10, redis)
    }
  }

  @Test func lowWaterAsksForMoreAtOnce() {
    let scene = LeaseScene().begin(redis, demand: 10)
    for _ in 0..<60 { scene.spend(.simple(), 1) }
    #expect(scene.collect(isSpare: false) == nil)
    scene.spend(.simple(), 1)
    #expect(scene.collect(isSpare: false)?.deltas.map(\.amount) == [61])
  }

  @Test func nearTheEdgeNothingIsHeldAndNothingIsAskedForAWhile() {
    let scene = LeaseScene()
    redis.settled["small"] = 28
    let shape = Shape.simple("small")
    scene.begin(redis, shape)
    #expect(redis.held("small") == 0)
    #expect(scene.spend(shape, 1) == .miss(.noRoom))
    #expect(scene.exchange(with: redis) == 0)
    scene.pass(250)
    #expect(scene.spend(shape, 1) == .miss(.noRoom))
    #expect(scene.exchange(with: redis) == 1)
  }

  @Test func whatIsIdleIsGivenBack() {
    let scene = LeaseScene().begin(redis)
    #expect(redis.held("acme") == 160)
    scene.run(2_500, redis)
    #expect(redis.held("acme") == 0)
    #expect(scene.table.gauges.unsettledUnits == 0)
  }

  @Test func whatIsSpentWhileItIsGivenBackKeepsItsHold() throws {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 10)
    scene.table.recall(bucket: 0, account: Array("acme".utf8), now: scene.monotonic)
    #expect(scene.spend(.simple(), 1) == .miss(.noRoom))
    let exchange = try #require(scene.collect())
    _ = redis.exchange(exchange)
    #expect(redis.settled["acme"] == 10 && redis.held("acme") == 0)
  }

  /// The answer to what left before the recall came is not the recall's.
  @Test func aRecallWhileAnExchangeIsUnderWayIsKept() throws {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 10)
    scene.pass(10)
    let first = try #require(scene.collect())
    scene.table.recall(bucket: 0, account: Array("acme".utf8), now: scene.monotonic)
    scene.table.replied(first.token, redis.exchange(first), now: scene.monotonic)
    #expect(redis.held("acme") > 0)
    #expect(scene.spend(.simple(), 1) == .miss(.noRoom))
    scene.exchange(with: redis)
    #expect(redis.held("acme") == 0)
    // What was given back may be had again after its rest.
    scene.pass(250)
    scene.spend(.simple(), 1)
    scene.exchange(with: redis)
    #expect(redis.held("acme") > 0 && scene.spend(.simple(), 1).isAllowed)
  }

  @Test func aLeaseInUseIsProlonged() {
    let scene = LeaseScene()
    scene.table.subscribed(since: scene.monotonic)
    scene.begin(redis)
    for _ in 0..<300 {
      scene.table.heard(at: scene.monotonic)
      scene.spend(.simple(), 0)
      scene.run(100, redis, step: 100)
    }
    #expect(redis.lessees["acme"]?[1]?.isInDoubt == false)
    #expect((redis.lessees["acme"]?[1]?.expires ?? 0) > scene.wall)
  }

  @Test func aChangeOfConfigurationEndsTheSpendingUntilItIsRegisteredAnew() {
    let scene = LeaseScene().begin(redis)
    scene.pass(1)
    scene.table.configChanged(bucket: 0, account: Array("acme".utf8), now: scene.monotonic)
    #expect(scene.spend(.simple(), 1) == .miss(.outdated))
    scene.exchange(with: redis)
    #expect(redis.held("acme") == 0)
    scene.version = 2
    redis.version = 2
    scene.begin(redis)
    #expect(scene.spend(.simple(), 1).isAllowed)
  }

  @Test func aChangeForEverybodyIsSeenByEachAccount() {
    let scene = LeaseScene().begin(redis)
    scene.pass(1)
    let late = scene.registration(.simple())
    scene.pass(1)
    scene.table.configChanged(now: scene.monotonic)
    #expect(scene.spend(.simple(), 1) == .miss(.outdated))
    // What was resolved before the change does not bring it back.
    #expect(scene.table.register(late) == .outdated)
    #expect(scene.register() == .ready)
  }

  @Test func aStaleReplySettlesAndStops() throws {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    redis.version = 2
    scene.pass(10)
    let exchange = try #require(scene.collect())
    let replies = redis.exchange(exchange)
    #expect(replies == [.stale])
    scene.table.replied(exchange.token, replies, now: scene.monotonic)
    #expect(redis.settled["acme"] == 3)
    #expect(scene.spend(.simple(), 1) == .miss(.outdated))
    scene.table.versions(
      bucket: 0, account: Array("acme".utf8), globalVersion: 2, accountVersion: 1)
    scene.exchange(with: redis)
    #expect(redis.held("acme") == 0)
  }

  @Test func aNewEpochVoidsWhatIsHeldAndKeepsWhatIsNotSettled() {
    let scene = LeaseScene().begin(redis)
    scene.spend(.simple(), 3)
    redis.lose()
    scene.table.epochChanged(bucket: 0)
    #expect(scene.spend(.simple(), 1) == .miss(.ended))
    scene.run(20, redis)
    #expect(redis.settled["acme"] == 3)
  }

  @Test func aLateReplyDoesNotProlongFromWhenItCame() throws {
    let scene = LeaseScene()
    scene.table.subscribed(since: scene.monotonic)
    scene.register()
    let exchange = try #require(scene.collect())
    let replies = redis.exchange(exchange)
    scene.pass(9_000)
    scene.table.replied(exchange.token, replies, now: scene.monotonic)
    scene.table.heard(at: scene.monotonic)
    #expect(scene.spend(.simple(), 1).isAllowed)
    scene.pass(500)
    #expect(scene.spend(.simple(), 1) == .miss(.ended))
  }

  @Test func unlimitedShapesNeedNoLease() {
    let scene = LeaseScene()
    let shape = Shape(account: "acme", key: "free", cells: [], counted: ["acme.bill"])
    scene.register(shape)
    #expect(scene.spend(shape, 5).isAllowed)
    scene.run(20, redis)
    #expect(redis.settled["acme.bill"] == 5 && redis.held("acme.bill") == 0)
  }

  @Test func tokensOfARateKnowNoDoubt() {
    let scene = LeaseScene()
    var shape = Shape.simple("rate")
    shape.kind = .rate
    scene.begin(redis, shape)
    var spent = 0
    while scene.spend(shape, 1).isAllowed { spent += 1 }
    #expect(spent == 160)
  }

  @Test func manyAccountsShareACallAndNoneIsForgotten() {
    redis.amounts = [:]
    let scene = LeaseScene(LeaseMemory(LeaseScene.geometry(slots: 1024)))
    for index in 0..<250 {
      redis.amounts["c\(index)"] = 1_000
      scene.register(.simple("c\(index)"))
    }
    #expect(scene.exchange(with: redis) == 3)
    for index in 0..<250 { #expect(scene.spend(.simple("c\(index)"), 2).isAllowed) }
    scene.pass(10)
    #expect(scene.exchange(with: redis) == 3)
    #expect((0..<250).allSatisfy { redis.settled["c\($0)"] == 2 })
  }

  @Test func whatIsIdleForLongIsForgottenWhole() {
    let scene = LeaseScene().begin(redis)
    let before = LeaseScene().table.gauges
    scene.spend(.simple(), 1)
    scene.run(70_000, redis, step: 200)
    let gauges = scene.table.gauges
    #expect(gauges.entries == 0 && gauges.portions == 0 && gauges.accounts == 0)
    #expect(gauges.bytes == before.bytes && redis.ledger["acme"] == 1)
  }

  @Test func aTableThatIsFullTakesNoMore() {
    var configuration = LeaseConfiguration()
    configuration.entriesMax = 64
    let scene = LeaseScene(configuration: configuration)
    var answers: [LeaseRegistered] = []
    for index in 0..<600 { answers.append(scene.register(.simple("c\(index)"))) }
    #expect(answers.contains(.full))
    #expect(scene.table.gauges.entries <= 512)
  }
}
