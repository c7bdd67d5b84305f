// Where grants, reservations and time meet in ways that random operations seldom find: each of these
// was wrong once, in the script and the evaluator alike.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct RichEdgeTests {
  private static let credit = Catalog.name("credit")

  /// credit: `every` so many seconds 100, rolled over whole; nothing beyond it.
  private func prepaid(every: Int64) throws -> StoreRig {
    let included = Credit.Included(
      amount: 100, every: .seconds(every), priority: 100, rollover: Rollover(min: 0, max: 1000))
    return try rig([
      Self.credit: [
        Catalog.limit("credit.all", .credit(Credit(included: included, allowsOverage: false)))
      ]
    ])
  }

  private func rig(_ entitlements: [Name: [Limit]]) throws -> StoreRig {
    let features = entitlements.keys.map {
      Feature(name: $0, metered: true, importance: .volume, unit: "unit", reservable: true)
    }
    let pro = Catalog.name("pro")
    let bare = Catalog.name("bare")
    let rig = try StoreRig.ready()
    rig.global.catalog = Catalog(
      levels: [Catalog.name("account"), Catalog.name("member")], unknownAccount: .deny,
      features: Dictionary(uniqueKeysWithValues: features.map { ($0.name, $0) }),
      rates: RateCard([]),
      plans: [
        pro: Plan(name: pro, entitlements: entitlements),
        bare: Plan(name: bare, entitlements: [:]),
      ])
    return rig
  }

  private func settle(
    _ rig: StoreRig, _ feature: Name, _ amount: Int64, of id: OperationID, plan created: WallTime
  ) throws -> DecidedOperation {
    var call = try rig.step(
      .settle([Item(feature: feature, amount: amount)], isFinal: true), "acme", id)
    let resolution = Resolution.resolve(
      subject: try Subject("acme"), items: [Item(feature: feature, amount: 0)], priced: false,
      global: rig.global, account: rig.account, now: created, zones: .utcOnly)
    call.plan = RichPlan(resolution: resolution, depth: 1)
    return try #require(try rig.run(call).answer.decided)
  }

  /// PITFALL 4: a counter that is gone is not a counter of nothing.
  @Test func anOverrunOfAWindowThatIsForgottenIsAbsorbed() throws {
    let words = Catalog.name("words")
    let rig = try rig([
      words: [Catalog.limit("words.ten", .quota(amount: 100, window: .seconds(10)))]
    ])
    let created = rig.now
    _ = try rig.run(rig.transact("acme", [("words", 60)]))
    let id = try rig.reserve("acme", ("words", 20))
    // The same overrun within the window: what the limit leaves is charged.
    let other = try rig.reserve("acme", ("words", 10))
    let settled = try settle(rig, words, 50, of: other, plan: created)
    #expect(settled.billed.first?.charged == 20)
    for _ in 0..<2 {
      try rig.advance(10_000)
      _ = try rig.run(rig.transact("acme", [("words", 1)]))
    }
    let late = try settle(rig, words, 120, of: id, plan: created)
    #expect(late.billed.first?.actual == 120)
    #expect(late.billed.first?.charged == 20)
    #expect(late.decision.reason == .settledClamped)
  }

  @Test func whatALateSettleFindsNoCreditForIsOwedAndPaidByTheNextGrant() throws {
    let rig = try prepaid(every: 3600)
    let created = rig.now
    let id = try rig.reserve("acme", ("credit", 50), ttl: 1000)
    try rig.advance(7000)
    _ = try rig.run(rig.expire("acme", [id]))
    _ = try rig.run(rig.transact("acme", [("credit", 90)]))
    let late = try settle(rig, Self.credit, 60, of: id, plan: created)
    #expect(late.billed.first?.charged == 60)
    #expect(try rig.settled("acme", "credit", .deficit) == 50)
    // Of the next hundred half is gone already.
    try rig.advance(3_600_000)
    let denied = try rig.run(rig.transact("acme", [("credit", 51)]))
    #expect(denied.answer.decided?.decision.reason == .creditExhausted)
    let allowed = try rig.run(rig.transact("acme", [("credit", 50)]))
    #expect(allowed.answer.decided?.decision.reason == .allowed)
    #expect(try rig.settled("acme", "credit", .deficit) == 0)
  }

  @Test func aPostBeyondPrepaidCreditIsOwed() throws {
    let rig = try prepaid(every: 3600)
    _ = try rig.run(rig.transact("acme", [("credit", 130)], mode: .post))
    #expect(try rig.settled("acme", "credit", .deficit) == 30)
  }

  /// Where it may be had for money it is billed, and not owed.
  @Test func aPostBeyondCreditWithOverageIsOverage() throws {
    let included = Credit.Included(amount: 100, every: .month, priority: 100, rollover: .none)
    let rig = try rig([
      Self.credit: [
        Catalog.limit("credit.all", .credit(Credit(included: included, allowsOverage: true))),
        Catalog.limit("credit.cap", .spendCap(amount: 10, window: .month)),
      ]
    ])
    _ = try rig.run(rig.transact("acme", [("credit", 130)], mode: .post))
    #expect(try rig.settled("acme", "credit", .deficit) == 0)
    #expect(try rig.settled("acme", "credit", .overage(.month)) == 30)
  }

  @Test func aPlanBringsNothingOverFromBeforeItWasThere() throws {
    let rig = try prepaid(every: 60)
    rig.account.planSince = rig.now
    func left() throws -> Int64? {
      let reply = try rig.run(rig.transact("acme", [("credit", 0)], mode: .check))
      return reply.answer.decided?.decision.items.first?.remaining
    }
    #expect(try left() == 100)
    // An instance in which nobody used anything, but that was there.
    try rig.advance(60_000)
    #expect(try left() == 200)
    // Nobody knows since when: only what was counted in came over.
    rig.account.planSince = nil
    #expect(try left() == 100)
    _ = try rig.run(rig.transact("acme", [("credit", 10)]))
    try rig.advance(60_000)
    #expect(try left() == 190)
  }

  /// What comes over is of what the plan gave that was in force then.
  @Test func anUpgradeDoesNotRaiseWhatComesOver() throws {
    let rig = try prepaid(every: 60)
    let small = Catalog.name("small")
    let included = Credit.Included(
      amount: 40, every: .seconds(60), priority: 100, rollover: Rollover(min: 0, max: 1000))
    rig.global.catalog.plans[small] = Plan(
      name: small,
      entitlements: [
        Self.credit: [
          Catalog.limit("credit.all", .credit(Credit(included: included, allowsOverage: false)))
        ]
      ])
    rig.account.plan = small
    rig.account.planSince = rig.now
    _ = try rig.run(rig.transact("acme", [("credit", 10)]))
    try rig.advance(60_000)
    rig.account.planBefore = small
    rig.account.plan = Catalog.name("pro")
    rig.account.planSince = rig.now + 1
    try rig.advance(10)
    let reply = try rig.run(rig.transact("acme", [("credit", 0)], mode: .check))
    #expect(reply.answer.decided?.decision.items.first?.remaining == 130)
  }

  @Test func whatAPlanLacksIsStillBurntFromTheAccountsOwnGrants() throws {
    let rig = try prepaid(every: 3600)
    rig.account.grants = [
      Grant(
        id: Catalog.name("own"), feature: Self.credit, amount: 30,
        effective: WallTime(milliseconds: 0), created: WallTime(milliseconds: 0))
    ]
    rig.account.plan = Catalog.name("bare")
    let asked = try rig.run(rig.transact("acme", [("credit", 1)]))
    #expect(asked.answer.decided?.decision.reason == .featureNotInPlan)
    _ = try rig.run(rig.transact("acme", [("credit", 20)], mode: .post))
    #expect(try rig.settled("acme", "credit", Window(code: "$own") ?? .month) == 20)
  }
}
