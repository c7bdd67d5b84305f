// What a delta is made of: included units, grants, overage, what is owed and what nobody pays; and
// that a delta whose parts contradict its numbers posts nothing.

import GRDB
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct PartsTests {
  let books: Books

  init() throws {
    books = try Books()
    try books.open()
  }

  @Test func eachPartHasItsLineAndTheRestIsIncluded() throws {
    _ = try books.apply([
      try spend(
        1, op: 1, 100, absorbed: 7,
        parts: [
          try grant("promo", 30), try grant("pro", 20), overage(.month, 25), deficit(15),
          try priced("small.in", 100),
        ])
    ])
    #expect(
      try books.balances() == [
        "usage:acme:spend": 10, "grant:acme:spend:promo": 30, "grant:acme:spend:pro": 20,
        "overage:acme:spend": 25, "deficit:acme:spend": 15, "absorbed:acme:spend": 7,
        "consumed:spend": -107,
      ])
    #expect(
      try books.counters() == [
        "acme spend M": 100, "acme spend $promo": 30, "acme spend $pro": 20, "acme spend oM": 25,
        "acme spend -": 15, "acme spend rsmall.in,0": 100,
      ])
    #expect(try books.soundness() == [])
  }

  @Test func overageThatSeveralCapsCountIsPostedOnce() throws {
    _ = try books.apply([
      try spend(
        1, op: 1, 40,
        parts: [
          try grant("pro", 15), overage(.day, 25), overage(.month, 25),
          overage(Window(.month, .anchored), 25, level: 2),
        ])
    ])
    #expect(
      try books.balances() == [
        "grant:acme:spend:pro": 15, "overage:acme:spend": 25, "consumed:spend": -40,
      ])
    #expect(try books.counters()["acme spend od"] == 25)
    #expect(try books.counters()["acme/ann spend oM@"] == 25)
    #expect(try books.soundness() == [])
  }

  @Test func grantsOfDeeperLevelsCountAndAreNotPostedAgain() throws {
    _ = try books.apply([
      try spend(
        1, op: 1, 40, parts: [try grant("team", 40), try grant("own", 40, level: 2)])
    ])
    #expect(
      try books.balances() == ["grant:acme:spend:team": 40, "consumed:spend": -40])
    #expect(try books.counters()["acme/ann spend $own"] == 40)
    #expect(try books.soundness() == [])
  }

  @Test func twoInstancesOfOneGrantShareItsAccount() throws {
    let october = Window.month.period(containing: november.start + -1)
    _ = try books.apply([
      try spend(
        1, op: 1, 40, parts: [try grant("pro", 10, october), try grant("pro", 30, november)])
    ])
    #expect(try books.balances() == ["grant:acme:spend:pro": 40, "consumed:spend": -40])
    #expect(try books.soundness() == [])
  }

  @Test func whatIsOwedIsCuredByTheNextGrant() throws {
    _ = try books.apply([
      try spend(1, op: 1, 50, parts: [try grant("one", 20), deficit(30)]),
      try spend(2, op: 2, 5, parts: [try grant("two", 35), deficit(-30)]),
    ])
    #expect(
      try books.balances() == [
        "grant:acme:spend:one": 20, "grant:acme:spend:two": 35, "consumed:spend": -55,
      ])
    #expect(try books.counters()["acme spend -"] == 0)
    #expect(try books.soundness() == [])
  }

  @Test func aGrantAmongTheCountersOfTheWholeAmountIsAPart() throws {
    var entry = try spend(1, op: 1, 40)
    var body = try UsageBody.decode(entry.body)
    body.cells.append(
      CellReference(level: 1, window: .grant(try Name("pro")), period: forever))
    entry.body = body.encode()
    _ = try books.apply([entry])
    #expect(try books.balances() == ["grant:acme:spend:pro": 40, "consumed:spend": -40])
    #expect(try books.soundness() == [])
  }

  @Test func reversalTakesEveryPartBack() throws {
    let parts = [try grant("pro", 30), overage(.month, 10), deficit(2), try priced("r", 44)]
    let back = parts.map {
      CountedPart(level: $0.level, window: $0.window, period: $0.period, amount: -$0.amount)
    }
    _ = try books.apply([
      try spend(1, op: 1, 44, parts: parts, charges: [try charge("r", units: 9, 44)]),
      try spend(
        2, op: 1, index: 64, -44, kind: .reversal, parts: back,
        charges: [try charge("r", units: -9, -44)]),
    ])
    #expect(try books.balances() == [:])
    #expect(try books.counters().values.allSatisfy { $0 == 0 })
    #expect(try books.statement().rates.map(\.units) == [0])
    #expect(try books.soundness() == [])
  }

  @Test func aRefundStandsBesideWithTheSlicesItGivesBack() throws {
    _ = try books.apply([
      try spend(
        1, op: 1, 50, parts: [try grant("a", 20), try grant("b", 20), overage(.month, 10)]),
      try spend(
        2, op: 2, -25, kind: .refund, parts: [overage(.month, -10), try grant("b", -15)],
        corrects: 1),
    ])
    #expect(
      try books.balances() == [
        "grant:acme:spend:a": 20, "grant:acme:spend:b": 20, "overage:acme:spend": 10,
        "refund:grant:acme:spend:b": -15, "refund:overage:acme:spend": -10,
        "consumed:spend": -25,
      ])
    #expect(try books.counters()["acme spend $b"] == 5)
    #expect(try books.counters()["acme spend oM"] == 0)
    #expect(try books.counters()["acme spend M"] == 25)
    #expect(try books.soundness() == [])
  }

  @Test func adjustmentsHaveEitherSignAndMayMoveUnitsBetweenPayers() throws {
    _ = try books.apply([
      try spend(1, op: 1, 20, absorbed: 10),
      // Bills what was absorbed, gives three units away, and pays five of the rest from a grant.
      try spend(2, op: 2, 10, absorbed: -10, kind: .adjustment),
      try spend(3, op: 3, -3, kind: .adjustment, corrects: 1),
      try spend(
        4, op: 4, 0, kind: .adjustment, parts: [try grant("pro", 5), overage(.month, -5)]),
    ])
    #expect(
      try books.balances() == [
        "usage:acme:spend": 20, "absorbed:acme:spend": 10, "adjustment:usage:acme:spend": 7,
        "adjustment:absorbed:acme:spend": -10, "adjustment:grant:acme:spend:pro": 5,
        "adjustment:overage:acme:spend": -5, "consumed:spend": -27,
      ])
    #expect(try books.soundness() == [])
  }

  @Test func aClosedPeriodTakesRefundsBesideItToo() throws {
    _ = try books.apply([try spend(1, op: 1, 50, parts: [try grant("a", 20)])])
    try books.store.close(november, now: start)
    _ = try books.apply([
      try spend(2, op: 2, -30, kind: .refund, parts: [try grant("a", -10)], corrects: 1)
    ])
    let lines = try books.store.totals(.init(account: "acme")).page.elements
    #expect(lines.filter { !$0.adjustment }.map(\.charged) == [50])
    #expect(lines.filter(\.adjustment).map(\.charged) == [-30])
    #expect(try books.statement().lines.map(\.charged) == [50])
    let next = try books.store.statement(account: "acme", start: november.end.milliseconds)
    #expect(next.lines.map(\.adjustments) == [-30])
    #expect(next.lines.map(\.refunds) == [-30])
    #expect(try books.soundness() == [])
  }

  // MARK: Poison

  static func poison() throws -> [(String, OutboxEntry)] {
    let anchored = Window(.month, .anchored)
    let other = CountedPart(
      level: 2, window: .overage(anchored), period: november, amount: 9)
    return [
      ("is not grants 41", try spend(1, op: 1, 40, parts: [try grant("a", 41)])),
      (
        "is not grants 30 + overage 20",
        try spend(1, op: 1, 40, parts: [try grant("a", 30), overage(.month, 20)])
      ),
      ("is not grants 0", try spend(1, op: 1, 40, parts: [deficit(41)])),
      ("overage of 10 and of 9", try spend(1, op: 1, 40, parts: [overage(.month, 10), other])),
      ("wrong sign", try spend(1, op: 1, 40, parts: [try grant("a", -1)])),
      ("wrong sign", try spend(1, op: 1, 40, parts: [overage(.month, -1)])),
      ("wrong sign", try spend(1, op: 1, -4, kind: .refund, parts: [try grant("a", 1)])),
      ("wrong sign", try spend(1, op: 1, 4, kind: .refund)),
      ("cured from", try spend(1, op: 1, 40, parts: [overage(.month, 10), deficit(-10)])),
      (
        "counts by M",
        try spend(
          1, op: 1, 40,
          parts: [CountedPart(level: 2, window: .month, period: november, amount: 40)])
      ),
      (
        "counts by c",
        try spend(
          1, op: 1, 40,
          parts: [CountedPart(level: 1, window: .inFlight, period: forever, amount: 0)])
      ),
      ("named twice", try spend(1, op: 1, 40, parts: [try grant("a", 1), try grant("a", 2)])),
      ("level 3", try spend(1, op: 1, 40, parts: [try grant("a", 1, level: 3)])),
      ("priced of 40", try spend(1, op: 1, 40, parts: [try priced("r", 41)])),
      ("rates charge 41", try spend(1, op: 1, 40, charges: [try charge("r", units: 1, 41)])),
      (
        "charged twice",
        try spend(
          1, op: 1, 40, charges: [try charge("r", units: 1, 1), try charge("r", units: 1, 1)])
      ),
      (
        "wrong sign",
        try spend(1, op: 1, 40, charges: [try charge("r", units: -1, 1)])
      ),
    ]
  }

  @Test(arguments: 0..<17)
  func partsThatContradictAreParkedWithTheReason(index: Int) throws {
    let (reason, entry) = try Self.poison()[index]
    var next = try spend(2, op: 2, 1)
    next.sequence = 2
    let outcome = try books.apply([entry, next])
    #expect(outcome == BatchOutcome(answer: .acknowledged(cursor: 2), posted: 1, parked: 1))
    let parked = try books.store.parked().map(\.reason)
    #expect(parked.allSatisfy { $0.contains(reason) }, "\(parked)")
    #expect(try books.balances() == ["usage:acme:spend": 1, "consumed:spend": -1])
    #expect(try books.soundness() == [])
  }

  @Test func aPartWhoseCounterWouldOverflowIsParkedAndChangesNothing() throws {
    let outcome = try books.apply([
      try spend(1, op: 1, 5, parts: [deficit(5)]),
      try spend(
        2, op: 2, 0, kind: .adjustment,
        parts: [deficit(Quantity.maximum), try grant("a", -Quantity.maximum)]),
    ])
    #expect(outcome.parked == 1)
    #expect(try books.balances() == ["deficit:acme:spend": 5, "consumed:spend": -5])
    #expect(try books.soundness() == [])
  }

  @Test func aChargeThatWouldOverflowIsParkedAndChangesNothing() throws {
    let most = Quantity.maximum
    let outcome = try books.apply([
      try spend(1, op: 1, 5, charges: [try charge("r", units: most, 5)]),
      try spend(2, op: 2, 5, charges: [try charge("r", units: 1, 5)]),
    ])
    #expect(outcome.parked == 1)
    #expect(try books.statement().rates.map(\.charge) == [5])
    #expect(try books.total("acme", "spend") == 5)
    #expect(try books.soundness() == [])
  }
}
