// A seed under a ledger that lost entries: what an older epoch left in Redis is never lowered; under
// a whole ledger it is replaced, whatever lies there.

import Foundation
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.serialized, .blocking) struct ScriptsSeedTests {
  private func cell(
    _ subject: String, _ feature: String, _ window: Window, _ settled: Int64, forgiven: Int64 = 0,
    at time: WallTime, previous: Int64? = nil
  ) throws -> SeedCell {
    let period = window.period(containing: time)
    return SeedCell(
      subject: try Subject(subject), feature: try Name(feature), window: window, period: period,
      settled: settled, forgiven: forgiven,
      previousStart: previous.map { _ in window.period(containing: period.start + -1).start },
      previousSettled: previous ?? 0)
  }

  private func seed(_ rig: StoreRig, _ cells: [SeedCell], isLossy: Bool, live: [String]) throws {
    for call in SeedCall.chunks(
      keySpace: rig.keySpace, fence: rig.fence, account: try Subject("acme"), cells: cells,
      accountVersion: rig.account.version, accountConfig: "{}", isLossy: isLossy,
      live: try live.map { try Subject($0) })
    {
      #expect(try rig.run(call) == .done(.seeded))
    }
  }

  /// 5 chats of ann, 3 of bob, 40 tokens of the account; the ledger knows less of each.
  private func used() throws -> StoreRig {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 5))
    _ = try rig.consume("acme/bob", ("chat", 3), ("tokens", 40))
    try rig.open(epoch: 2, hadPredecessor: true)
    return rig
  }

  @Test func aLedgerThatLostEntriesLowersNothing() throws {
    let rig = try used()
    let cells = [
      try cell("acme", "chat", .day, 2, at: rig.now),
      try cell("acme/ann", "chat", .hour, 1, at: rig.now),
    ]
    try seed(rig, cells, isLossy: true, live: ["acme/ann", "acme/bob"])
    #expect(try rig.settled("acme", "chat", .day) == 8)
    #expect(try rig.settled("acme", "tokens", .month) == 40)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 5)
    #expect(try rig.settled("acme/bob", "chat", .hour) == 3)
    #expect(try rig.counters("acme/bob").epoch == 2)
    try rig.advance(20_000)
    #expect(try rig.consume("acme/ann", ("chat", 2)).reason == .quotaExceeded)
    #expect(try rig.consume("acme/ann", ("chat", 1)).reason == .allowed)
  }

  @Test func aLedgerThatForgotTheAccountLowersNothing() throws {
    let rig = try used()
    try seed(rig, [], isLossy: true, live: ["acme/ann", "acme/bob"])
    #expect(try rig.settled("acme", "chat", .day) == 8)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 5)
    #expect(try rig.settled("acme/bob", "chat", .hour) == 3)
    #expect(try rig.counters("acme").rates.isEmpty)
  }

  @Test func whatTheLedgerKnowsBeyondRedisCounts() throws {
    let rig = try used()
    let cells = [
      try cell("acme", "chat", .day, 9, at: rig.now),
      try cell("acme/ann", "chat", .hour, 6, at: rig.now),
      try cell("acme/eve", "chat", .hour, 4, at: rig.now),
    ]
    try seed(rig, cells, isLossy: true, live: ["acme/ann", "acme/bob"])
    #expect(try rig.settled("acme", "chat", .day) == 9)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 6)
    #expect(try rig.settled("acme/eve", "chat", .hour) == 4)
  }

  /// The units of duplicates that were not taken back yet must not stay for ever.
  @Test func aWholeLedgerReplacesWhatAnOlderEpochLeft() throws {
    let rig = try used()
    try seed(
      rig, [try cell("acme", "chat", .day, 2, at: rig.now)], isLossy: false,
      live: ["acme/ann", "acme/bob"])
    #expect(try rig.settled("acme", "chat", .day) == 2)
    #expect(try rig.settled("acme", "tokens", .month) == 0)
    try rig.advance(20_000)
    let decision = try #require(try rig.consume("acme/bob", ("chat", 1)).decided).decision
    #expect(decision.isAllowed)
    #expect(try rig.settled("acme/bob", "chat", .hour) == 1)
  }

  /// Of each period its own: a counter that rotated since is not compared with another period.
  @Test func periodsAreComparedEachWithItself() throws {
    let rig = try used()
    try rig.advance(3_600_000)
    let cells = [
      try cell("acme/ann", "chat", .hour, 2, at: rig.now, previous: 1),
      try cell("acme", "chat", .day, 3, forgiven: 2, at: rig.now),
    ]
    try seed(rig, cells, isLossy: true, live: ["acme/ann", "acme/bob"])
    let hour = try #require(
      try rig.counters("acme/ann").cell(feature: try Name("chat"), window: .hour))
    #expect(hour.settled == 2 && hour.previousSettled == 5)
    #expect(hour.start == Window.hour.period(containing: rig.now).start)
    let day = try #require(try rig.counters("acme").cell(feature: try Name("chat"), window: .day))
    #expect(day.settled == 8 && day.forgiven == 2)
  }

  /// A subject of an epoch before the account's own counted as empty, and still does.
  @Test func whatCountedAsEmptyStaysEmpty() throws {
    let rig = try used()
    try seed(rig, [], isLossy: false, live: [])
    try rig.open(epoch: 3, hadPredecessor: true)
    try seed(rig, [], isLossy: true, live: ["acme/ann", "acme/bob"])
    try rig.advance(20_000)
    let decision = try #require(try rig.consume("acme/ann", ("chat", 1)).decided).decision
    #expect(decision.isAllowed)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 1)
  }

  @Test func aSeedThatIsRepeatedHalfwayKeepsTheSame() throws {
    let rig = try used()
    let calls = SeedCall.chunks(
      keySpace: rig.keySpace, fence: rig.fence, account: try Subject("acme"),
      cells: [try cell("acme/ann", "chat", .hour, 1, at: rig.now)], accountVersion: 1,
      accountConfig: "{}", isLossy: true, live: [try Subject("acme/ann"), try Subject("acme/bob")])
    #expect(calls.count == 3)
    for call in calls.dropLast() + calls { #expect(try rig.run(call) == .done(.seeded)) }
    #expect(try rig.settled("acme/ann", "chat", .hour) == 5)
    #expect(try rig.settled("acme/bob", "chat", .hour) == 3)
    #expect(try rig.settled("acme", "chat", .day) == 8)
  }

  // MARK: - Accounts that are only looked at

  private func look(_ rig: StoreRig, _ account: String = "new") throws -> SeedCall.Effect {
    let calls = SeedCall.chunks(
      keySpace: rig.keySpace, fence: rig.fence, account: try Subject(account), cells: [],
      accountVersion: 0, accountConfig: nil, isForRead: true)
    #expect(calls.count == 1)
    return try #require(try rig.run(calls[0]).value)
  }

  private func life(_ rig: StoreRig, _ account: String = "new") throws -> Int? {
    let key = rig.keySpace.subject(0, try Subject(account))
    return try rig.redis.command("PTTL", key).string.flatMap { Int($0) }
  }

  private func looked() throws -> StoreRig {
    // On Redis's own clock, by which keys expire.
    let rig = try StoreRig(transform: { $1 })
    rig.useTime(WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000)))
    try rig.open()
    rig.account = AccountConfig()
    rig.account.plan = try Name("pro")
    #expect(try look(rig) == .seeded)
    return rig
  }

  @Test func aReadLeavesAHeaderThatExpires() throws {
    let rig = try looked()
    #expect((1...60_000).contains(try #require(try life(rig))))
    #expect(try rig.consume("new/ann", ("chat", 1), mode: .check).reason == .allowed)
    #expect(try rig.consume("new", ("tokens", 1001), mode: .check).reason == .quotaExceeded)
    // Looked at once more, it is not made to live longer.
    #expect(try look(rig) == .alreadyCurrent)
    let header = try rig.read(Reads.header(rig.keySpace, account: try Subject("new")))
    #expect(header.epoch == nil && header.lookedAt == 1 && header.isCurrent(in: 1))
  }

  @Test func theFirstWriteMakesAHeaderThatStays() throws {
    let rig = try looked()
    #expect(try rig.consume("new/ann", ("chat", 1)) == .rebuild)
    rig.account.version = 0
    try rig.seed("new")
    #expect(try life(rig) == -1)
    #expect(try rig.consume("new/ann", ("chat", 1)).reason == .allowed)
    #expect(try life(rig) == -1)
    // A real account's header is never replaced by one that expires.
    #expect(try look(rig) == .alreadyCurrent)
    #expect(try life(rig) == -1)
    #expect(try rig.settled("new", "chat", .day) == 1)
  }

  @Test func aConfigurationWrittenIntoItStays() throws {
    let rig = try looked()
    let call = ConfigAccountCall(
      keySpace: rig.keySpace, fence: rig.fence, change: rig.newChange(),
      account: try Subject("new"), expectedVersion: 0, newVersion: 1, config: "{}",
      body: Array("set".utf8), outboxEntriesMax: 100)
    guard case .done = try rig.run(call) else { throw MiniFailure() }
    #expect(try life(rig) == -1)
    rig.account.version = 1
    #expect(try rig.consume("new/ann", ("chat", 1), mode: .check).reason == .allowed)
    #expect(try rig.consume("new/ann", ("chat", 1)) == .rebuild)
    try rig.seed("new")
    let header = try rig.read(Reads.header(rig.keySpace, account: try Subject("new")))
    #expect(header.epoch == 1 && header.version == 1 && header.config == "{}")
  }

  @Test func anotherEpochIsLookedAtAnew() throws {
    let rig = try looked()
    try rig.open(epoch: 2)
    #expect(try rig.consume("new", ("tokens", 1), mode: .check) == .rebuild)
    #expect(try look(rig) == .seeded)
    #expect(try rig.consume("new", ("tokens", 1), mode: .check).reason == .allowed)
    #expect((1...60_000).contains(try #require(try life(rig))))
  }

  /// A header that holds anything is left as it is: the next seed is a real one.
  @Test func aHeaderThatHoldsSomethingIsNotMadeToExpire() throws {
    let rig = try looked()
    try rig.seed("old")
    try rig.open(epoch: 2)
    #expect(try look(rig, "old") == .alreadyCurrent)
    #expect(try life(rig, "old") == -1)
    #expect(try rig.consume("old", ("tokens", 1), mode: .check) == .rebuild)
  }
}

private struct MiniFailure: Error {}
