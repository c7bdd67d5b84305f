// `decide` on a real Redis: what it answers, what it counts, what it leaves alone.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsDecideTests {
  @Test func aConsumeIsAllowedCountedAndBearsADelta() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 2)])
    let decided = try #require(try rig.run(call).decided)
    #expect(decided.decision.reason == .allowed)
    #expect(decided.decision.time == rig.now)
    #expect(decided.entries == [.init(index: 0, sequence: 1)])
    let state = decided.decision.items[0]
    #expect(state.limit?.text == "chat.member")
    #expect(state.remaining == 4 && state.settled == 2 && state.held == 0)
    #expect(try rig.settled("acme", "chat", .day) == 2)
    #expect(try rig.settled("acme", "chat", .month) == 2)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 2)
    #expect(try rig.outbox() == call.entries(decided))
  }

  @Test func aDenialNamesTheLimitAndWhenItEndsAndCountsNothing() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 5))
    let before = try rig.counters("acme/ann")
    let decision = try #require(try rig.consume("acme/ann", ("chat", 2)).decided).decision
    #expect(decision.reason == .quotaExceeded)
    #expect(decision.binding?.text == "chat.member" && decision.bindingItem == 0)
    #expect(decision.retryAfter == Window.hour.period(containing: rig.now).end - rig.now)
    #expect(decision.items[0].remaining == 1)
    #expect(try rig.counters("acme/ann") == before)
    #expect(try rig.outbox().count == 1)
  }

  @Test func pitfall01_concurrentFirstRequestsAdmitExactlyTheLimit() throws {
    let rig = try StoreRig.ready()
    let replies = try rig.redis.pipeline(
      try (0..<40).map { _ in StoreRig.command(try rig.call("acme", [("chat", 1)]), rig.library) })
    let allowed = replies.filter {
      DecideReply(RESPReply($0)[0]).reason == .allowed
    }
    #expect(allowed.count == 10)
    #expect(try rig.settled("acme", "chat", .day) == 10)
  }

  @Test func pitfall05_checkBeforeAddingTheCost() throws {
    let rig = try StoreRig.ready()
    #expect(try rig.consume("acme", ("tokens", 999)).reason == .allowed)
    #expect(try rig.consume("acme", ("tokens", 2)).reason == .quotaExceeded)
    #expect(try rig.consume("acme", ("tokens", 1)).reason == .allowed)
    #expect(try rig.settled("acme", "tokens", .month) == 1000)
  }

  @Test func pitfall05_allOrNothingAcrossFeaturesAndLevels() throws {
    let rig = try StoreRig.ready()
    let before = try rig.counters("acme")
    let decision = try #require(
      try rig.consume("acme/ann", ("tokens", 10), ("chat", 7), ("spend", 5)).decided)
    #expect(decision.decision.reason == .quotaExceeded)
    #expect(decision.decision.bindingItem == 1 && decision.entries.isEmpty)
    #expect(try rig.counters("acme") == before)
    #expect(try rig.counters("acme/ann").cells.isEmpty)
    #expect(try rig.outbox().isEmpty)
  }

  @Test func severalMeteredItemsBearOneDeltaEachInOrder() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("tokens", 10), ("ping", 1), ("spend", 5)])
    let decided = try #require(try rig.run(call).decided)
    #expect(decided.entries.map(\.index) == [0, 2])
    #expect(decided.entries.map(\.sequence) == [1, 2])
    #expect(try rig.outbox() == call.entries(decided))
  }

  @Test func pitfall06_aRaiseIsInForceInTheSamePeriodAndResetsNothing() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 1000))
    #expect(try rig.consume("acme", ("tokens", 1)).reason == .quotaExceeded)
    rig.account.overrides = [
      Override(
        subject: try Subject("acme"), limit: try Name("tokens.month"), change: .amount(1500),
        expires: nil, reason: "", author: "")
    ]
    let decided = try #require(try rig.consume("acme", ("tokens", 1)).decided)
    #expect(decided.decision.items[0].remaining == 499)
    #expect(decided.decision.items[0].settled == 1001)
  }

  @Test func pitfall11_aLimitBelowUsageLeavesZeroAndNeverUnderflows() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 900))
    rig.account.overrides = [
      Override(
        subject: try Subject("acme"), limit: try Name("tokens.month"), change: .amount(100),
        expires: nil, reason: "", author: "")
    ]
    let decision = try #require(try rig.consume("acme", ("tokens", 1)).decided).decision
    #expect(decision.reason == .quotaExceeded)
    #expect(decision.items[0].remaining == 0 && decision.items[0].settled == 900)
  }

  @Test func pitfall10_deniedRequestsConsumeNoQuotaAndNoRate() throws {
    let rig = try StoreRig.ready()
    #expect(try rig.consume("acme", ("ping", 2)).reason == .allowed)
    let rates = try rig.counters("acme").rates
    for _ in 0..<5 {
      let decision = try #require(try rig.consume("acme", ("ping", 1)).decided).decision
      #expect(decision.reason == .rateLimited && decision.retryAfter == 500)
    }
    #expect(try rig.counters("acme").rates == rates)
    try rig.advance(500)
    #expect(try rig.consume("acme", ("ping", 1)).reason == .allowed)
  }

  @Test func aCostAboveTheBurstIsPermanentlyDenied() throws {
    let rig = try StoreRig.ready()
    let decision = try #require(try rig.consume("acme", ("ping", 3)).decided).decision
    #expect(decision.reason == .costAboveBurst && decision.retryAfter == nil)
  }

  @Test func pitfall12_aRateBeyondAllMeasureStaysExact() throws {
    var catalog = Catalog.example
    catalog.plans[Catalog.name("pro")]?.entitlements[Catalog.name("ping")] = [
      Catalog.limit(
        "ping.rate",
        .rate(amount: 1, periodMilliseconds: Quantity.maximum, burst: Quantity.maximum))
    ]
    let rig = try StoreRig.ready(catalog: catalog)
    #expect(try rig.consume("acme", ("ping", 1)).reason == .allowed)
    let tat = try #require(try rig.counters("acme").rates["ping~ping.rate"])
    #expect(tat == rig.now.milliseconds * 1000 + Quantity.maximum / 4)
  }

  @Test func aClosedGateDenies() throws {
    let rig = try StoreRig.ready()
    let decision = try #require(try rig.consume("acme", ("beta", 1)).decided).decision
    #expect(decision.reason == .gateClosed && decision.binding?.text == "beta.gate")
  }

  @Test func shadowAllowsCountsAndSaysSo() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("trial", 2))
    let decision = try #require(try rig.consume("acme", ("trial", 3)).decided).decision
    #expect(decision.reason == .allowedShadow && decision.binding?.text == "trial.day")
    #expect(decision.items[0].remaining == 0 && decision.items[0].settled == 5)
    #expect(decision.retryAfter == nil)
  }

  @Test func softAllowsCountsAndSaysSo() throws {
    let rig = try StoreRig.ready()
    let decision = try #require(try rig.consume("acme", ("gentle", 3)).decided).decision
    #expect(decision.reason == .allowedSoft)
    #expect(try rig.settled("acme", "gentle", .day) == 3)
  }

  @Test func aBypassTurnsEnforcementIntoShadowAndMeteringGoesOn() throws {
    let rig = try StoreRig.ready()
    rig.global.bypasses = [
      Bypass(feature: nil, until: rig.now + 1000, reason: "", actor: "")
    ]
    let decided = try #require(try rig.consume("acme", ("tokens", 5000)).decided)
    #expect(decided.decision.reason == .allowedShadow && decided.entries.count == 1)
    try rig.advance(1000)
    #expect(try rig.consume("acme", ("tokens", 1)).reason == .quotaExceeded)
  }

  @Test func anUnlimitedFeatureReportsItsBillingCell() throws {
    let rig = try StoreRig.ready()
    let state = try #require(try rig.consume("acme", ("free", 7)).decided).decision.items[0]
    #expect(state == Decision.ItemState(settled: 7))
  }

  @Test func checkAsksAndChangesNothing() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 400))
    let before = try rig.dump()
    let decision = try #require(
      try rig.consume("acme", ("tokens", 600), mode: .check).decided
    ).decision
    #expect(decision.reason == .allowed && decision.items[0].remaining == 600)
    #expect(try rig.consume("acme", ("tokens", 601), mode: .check).reason == .quotaExceeded)
    #expect(try rig.dump() == before)
  }

  @Test func postCountsAboveTheLimitAndBearsItsDelta() throws {
    let rig = try StoreRig.ready()
    let decided = try #require(try rig.consume("acme", ("tokens", 1200), mode: .post).decided)
    #expect(decided.decision.reason == .allowedPosted && decided.entries.count == 1)
    #expect(try rig.settled("acme", "tokens", .month) == 1200)
  }

  @Test func pitfall24_anExplicitZeroIsADelta() throws {
    let rig = try StoreRig.ready()
    #expect(try rig.consume("acme", ("tokens", 0)).decided?.entries.count == 1)
    #expect(try rig.outbox()[0].actual == 0)
  }

  @Test func aCounterThatWouldLeaveTheQuantityRangeIsAnErrorAndChangesNothing() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("free", Quantity.maximum))
    #expect(try rig.settled("acme", "free", .month) == Quantity.maximum)
    #expect(try rig.outbox()[0].actual == Quantity.maximum)
    let before = try rig.dump()
    #expect(try rig.consume("acme", ("free", 1)) == .error("QUANTITY_OVERFLOW"))
    #expect(try rig.dump() == before)
  }

  /// More was taken back of the period than was counted in it: what is left is told exactly, and as a
  /// quantity, which a client would else not read.
  @Test(arguments: [Int64(0), 1_000_001])
  func whatIsLeftIsAQuantityWhereMoreWasTakenBackThanCounted(before: Int64) throws {
    let free = Catalog.name("free")
    let length: Int64 = 60_000
    let window = before > 0 ? Window.seconds(length / 1000) : .month
    var catalog = Catalog.example
    catalog.plans[Catalog.name("pro")]?.entitlements[free] = [
      Catalog.limit(
        "free.most",
        before > 0
          ? .sliding(amount: Quantity.maximum, lengthMilliseconds: length)
          : .quota(amount: Quantity.maximum, window: window))
    ]
    let rig = try StoreRig(catalog: catalog)
    try rig.open()
    let period = window.period(containing: rig.now)
    try rig.seed(cells: [
      SeedCell(
        subject: try Subject("acme"), feature: free, window: window, period: period, settled: -48,
        previousStart: before > 0 ? period.start + (-length) : nil, previousSettled: before)
    ])
    let elapsed = rig.now.milliseconds - period.start.milliseconds
    let share =
      before > 0 ? Sliding.share(of: before, Sliding.weight(elapsed: elapsed, length: length)) : 0
    for (amount, settled) in [(Int64(3), Int64(-45)), (1, -44), (100, 56), (2, 58)] {
      let decided = try #require(try rig.consume("acme", ("free", amount)).decided)
      let state = try #require(decided.decision.items.first)
      #expect(decided.decision.reason == .allowed && state.settled == settled)
      #expect(
        state.remaining == min(Quantity.maximum, Quantity.maximum - share - settled), "\(settled)")
    }
  }

  @Test func pitfall34_aPeriodRotatesOnceAndKeepsThePreviousOne() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 6))
    let first = Window.hour.period(containing: rig.now)
    #expect(try rig.consume("acme/ann", ("chat", 1)).reason == .quotaExceeded)
    try rig.setNow(first.end)
    #expect(try rig.consume("acme/ann", ("chat", 1)).reason == .allowed)
    let cell = try #require(
      try rig.counters("acme/ann").cell(feature: Name("chat"), window: .hour))
    #expect(cell.start == first.end && cell.settled == 1)
    #expect(cell.previousStart == first.start && cell.previousSettled == 6)
  }

  @Test func aPassedOrFuturePeriodIsAnsweredWithTheTime() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 1)])
    let period = Window.hour.period(containing: rig.now)
    try rig.setNow(period.end + (-1))
    #expect(try rig.run(call).decided != nil)
    let next = try rig.call("acme/ann", [("chat", 1)])
    try rig.setNow(period.end)
    #expect(try rig.run(next) == .period(now: period.end))
  }

  @Test func pitfall36_aClockThatJumpsBackDoesNotTakeTheBucketAlong() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("ping", 1))
    let call = try rig.call("acme", [("ping", 1)])
    let late = rig.now
    try rig.setNow(late + (-50_000))
    #expect(try rig.run(call).decided?.decision.time == late)
  }

  @Test func aCallThatCameTooLateIsExpiredAndChangesNothing() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme", [("tokens", 1)], notAfter: rig.now)
    #expect(try rig.run(call).reason == .allowed)
    let late = try rig.call("acme", [("tokens", 1)], notAfter: rig.now)
    try rig.advance(1)
    let before = try rig.dump()
    #expect(try rig.run(late) == .expired(now: rig.now))
    #expect(try rig.dump() == before)
  }

  @Test func anOldGlobalOrAccountVersionIsStale() throws {
    let rig = try StoreRig.ready()
    rig.account.version = 0
    #expect(
      try rig.consume("acme", ("tokens", 1))
        == .stale(globalVersion: 1, accountVersion: 1, accountConfig: "{}"))
    rig.account.version = 1
    rig.global.version = 7
    #expect(
      try rig.consume("acme", ("tokens", 1))
        == .stale(globalVersion: 1, accountVersion: 1, accountConfig: nil))
  }

  @Test func pitfall04_anAccountThatIsNotSeededIsNeverReadAsZero() throws {
    let rig = try StoreRig.ready()
    let before = try rig.dump()
    #expect(try rig.consume("other", ("tokens", 1)) == .rebuild)
    #expect(try rig.dump() == before)
  }

  @Test func theOutboxCeilingDeniesNewAdmissionsButNotPosts() throws {
    let rig = try StoreRig.ready()
    rig.limits.outboxEntriesMax = 2
    _ = try rig.consume("acme", ("tokens", 1))
    _ = try rig.consume("acme", ("tokens", 1))
    #expect(try rig.consume("acme", ("tokens", 1)).reason == .outboxFull)
    #expect(try rig.consume("acme", ("ping", 1)).reason == .allowed)
    #expect(try rig.consume("acme", ("tokens", 1), mode: .post).reason == .allowedPosted)
    #expect(
      try rig.run(
        TrimCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, acknowledged: 3, tail: 1))
        == .done(2))
    #expect(try rig.consume("acme", ("tokens", 1)).reason == .allowed)
    #expect(try rig.outbox().map(\.sequence) == [3, 4])
  }

  @Test func theWrittenCommandIsTheOneOfKeysAndArguments() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 1), ("tokens", 5)])
    var written = ByteBuffer()
    call.write(into: &written, library: rig.library)
    var expected: [UInt8] = []
    let words = StoreRig.command(call, rig.library)
    expected += "*\(words.count)\r\n".utf8
    for word in words { expected += Array("$\(word.count)\r\n".utf8) + word + Array("\r\n".utf8) }
    #expect(Array(written.readableBytesView) == expected)
  }
}
