// Since when a plan gives what it gives: noted as catalogs change, and what an instance of its grant
// takes over from the one before depends on it.

import Testing
import TollgateTesting

@testable import TollgateCore

@Suite(.blocking) struct CreditHistoryTests {
  private static let start = WallTime(milliseconds: 1_763_700_000_000)
  private static func name(_ text: String) -> Name {
    guard let name = try? Name(text) else { preconditionFailure(text) }
    return name
  }

  private static let pro = name("pro")
  private static let credit = name("credit")
  private static let key = CreditKey(plan: pro, limit: name("credit.all"))

  private static func catalog(_ amount: Int64?) -> Catalog {
    var limits: [Limit] = []
    if let amount {
      let included = Credit.Included(
        amount: amount, every: .seconds(60), priority: 100, rollover: Rollover(min: 0, max: 1000))
      limits.append(
        Limit(
          id: name("credit.all"), kind: .credit(Credit(included: included, allowsOverage: false)),
          level: 1, enforcement: .hard, failurePolicy: .closed))
    }
    return Catalog(
      levels: [name("account")], unknownAccount: .deny,
      features: [
        credit: Feature(
          name: credit, metered: true, importance: .volume, unit: "unit", reservable: false)
      ], rates: RateCard([]), plans: [pro: Plan(name: pro, entitlements: [credit: limits])])
  }

  private static func first(_ amount: Int64?) -> GlobalConfig {
    var config = GlobalConfig(
      version: 1, catalogVersion: 1, catalog: catalog(amount), bypasses: [])
    config.replace(catalog(amount), isFirst: true, now: start)
    return config
  }

  @Test func everyChangeOfWhatAPlanGivesIsNoted() throws {
    var config = Self.first(100)
    #expect(config.credits == [Self.key: CreditChange(since: Self.start, before: nil)])
    // What stays as it is.
    config.replace(Self.catalog(100), isFirst: false, now: Self.start + 1)
    #expect(config.credits[Self.key]?.since == Self.start)
    config.replace(Self.catalog(40), isFirst: false, now: Self.start + 2)
    #expect(config.credits == [Self.key: CreditChange(since: Self.start + 2, before: 100)])
    #expect(try GlobalConfig(document: config.document) == config)
    // Gone, and back: what stood before is not known any more.
    config.replace(Self.catalog(nil), isFirst: false, now: Self.start + 3)
    #expect(config.credits.isEmpty)
    config.replace(Self.catalog(40), isFirst: false, now: Self.start + 4)
    #expect(config.credits == [Self.key: CreditChange(since: Self.start + 4, before: nil)])
  }

  private static func draw(_ config: GlobalConfig, at now: WallTime) throws -> Draw {
    let account = AccountConfig(
      version: 1, plan: pro, planSince: WallTime(milliseconds: 1_000_000))
    let resolution = Resolution.resolve(
      subject: try Subject("acme"), items: [Item(feature: credit, amount: 1)], global: config,
      account: account, now: now, zones: .utcOnly)
    return try #require(resolution.draws[0]?.first)
  }

  /// However long the account has had the plan.
  @Test func nothingComesOverFromBeforeACreditWasInTheCatalog() throws {
    let config = Self.first(100)
    #expect(try !Self.draw(config, at: Self.start + 1).wasWhole)
    #expect(try Self.draw(config, at: Self.start + 60_000).wasWhole)
  }

  /// Idle in it, and upgraded afterwards: it is the plan of then that left it whole.
  @Test func whatAnEarlierPlanLeftWholeComesOver() throws {
    var config = Self.first(100)
    let small = Self.name("small")
    config.catalog.plans[small] = Plan(
      name: small, entitlements: Self.catalog(40).plans[Self.pro]?.entitlements ?? [:])
    func draw(_ account: AccountConfig, _ after: Int64) throws -> Draw {
      let resolution = Resolution.resolve(
        subject: try Subject("acme"), items: [Item(feature: Self.credit, amount: 1)],
        global: config, account: account, now: Self.start + after, zones: .utcOnly)
      return try #require(resolution.draws[0]?.first)
    }
    let boundary = Window.seconds(60).period(containing: Self.start + 600_000).start
    let changed = boundary - Self.start + 10
    var account = AccountConfig(
      version: 1, plan: Self.pro, planSince: Self.start + changed, planBefore: small,
      planBeforeSince: Self.start)
    var found = try draw(account, changed + 1)
    #expect(found.wasWhole && found.amountBefore == 40 && found.amount == 100)
    // An account that was made after that instance ended took nothing over.
    account.planBeforeSince = boundary + 5
    #expect(try !draw(account, changed + 1).wasWhole)
    // The same by a change that came by time.
    account = AccountConfig(
      version: 1, plan: small, next: NextPlan(plan: Self.pro, at: Self.start + changed),
      planSince: Self.start)
    found = try draw(account, changed + 1)
    #expect(found.wasWhole && found.amountBefore == 40)
  }

  @Test func whatComesOverIsOfWhatWasGivenThen() throws {
    var config = Self.first(100)
    let later = Self.start + 600_000
    config.replace(Self.catalog(5), isFirst: false, now: later)
    let now = try Self.draw(config, at: later + 1)
    #expect(now.amount == 5 && now.amountBefore == 100 && now.wasWhole)
    let next = try Self.draw(config, at: later + 60_000)
    #expect(next.amountBefore == 5)
  }
}
