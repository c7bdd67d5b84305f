// A seed under a ledger that lost entries: what an older epoch left in Redis is never lowered; under
// a whole ledger it is replaced, whatever lies there.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.serialized, .blocking) struct ScriptsSeedTests {
  private func cell(
    _ subject: String, _ feature: String, _ window: Window, _ settled: Int64, forgiven: Int64 = 0,
    at time: WallTime, previous: Int64? = nil
  ) throws -> SeedCell {
    let start = window.period(containing: time).start
    return SeedCell(
      subject: try Subject(subject), feature: try Name(feature), window: window, start: start,
      settled: settled, forgiven: forgiven,
      previousStart: previous.map { _ in window.period(containing: start + -1).start },
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
}
