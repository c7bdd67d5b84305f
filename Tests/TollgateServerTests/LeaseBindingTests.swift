// Which grant a shape is bound to, and what is not leased at all.

import NIOCore
import Testing
import TollgateCore
import TollgateEngine
import TollgateTesting

@testable import TollgateServer

@Suite(.blocking) struct LeaseBindingTests {
  private static let now = WallTime(milliseconds: 1_767_225_600_000)

  private struct Case {
    var limits = "[{id: credits.month, credit: {every: month, amount: 50}, overage: deny}]"
    var more = ""
    var rates = ""
    var burns: [(grant: String?, amount: Int64)] = [("promo", 5)]
    /// What is left where it is denied.
    var left: Int64?

    func registration() throws -> LeaseRegistration? {
      let yaml = """
        levels: [account]
        features:
          credits: {metered: true, importance: volume, idempotency: sidecar, unit: credit}
          tokens: {metered: true, importance: volume, unit: token}
        \(rates)
        plans:
          plan:
            credits: \(limits)
        """
      guard
        case .success(let catalog) = CatalogReader.read(try YAMLDocument(yaml: yaml).document)
      else {
        Issue.record("\(yaml)")
        return nil
      }
      var account = AccountConfig(version: 1, plan: try Name("plan"))
      account.grants = [
        Grant(
          id: try Name("promo"), feature: try Name("credits"), amount: 100, priority: 10,
          effective: now + -1000, created: now + -1000)
      ]
      let global = GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: [])
      let subject = try Subject("acme")
      let items = [Item(feature: try Name("credits"), amount: 5)]
      let resolution = Resolution.resolve(
        subject: subject, items: items, global: global, account: account, now: now,
        zones: .utcOnly)
      var decision = Decision(reason: .allowed, source: .redis, time: now)
      decision.items = [
        Decision.ItemState(limit: try Name("credits.month"), remaining: 145, settled: 5)
      ]
      if let left {
        decision.reason = .creditExhausted
        decision.binding = try Name("credits.month")
        decision.bindingItem = 0
        decision.items[0].remaining = left
      }
      decision.burns = try burns.map {
        Decision.Burn(item: 0, grant: try $0.grant.map { try Name($0) }, amount: $0.amount)
      }
      let request = Request(
        mode: .consume, id: OperationID(high: 1, low: 1), subject: subject, items: items,
        bucket: 0, arrived: .now(), deadline: .now() + .seconds(1)
      ) { _ in }
      return LeaseBinding.registration(
        request, resolution, decision, bucket: 0, versions: (1, 1, 1), confirmedAt: 1, now: 1)
    }
  }

  private static func leased(_ registration: LeaseRegistration) -> [String] {
    registration.portions.filter { $0.kind == .cell }.compactMap {
      guard case .window(let window)? = LeaseCounter(bytes: $0.name)?.place else { return nil }
      return window.code
    }
  }

  @Test func itIsBoundToTheGrantThatIsBurnt() throws {
    let first = try #require(try Case().registration())
    #expect(Self.leased(first) == ["$promo"])
    // What both have; what is settled and held comes as a sum.
    #expect(first.items[0].shown != nil && first.items[0].amount == 150)
    // The end of the month is the end of what the plan gives.
    let month = Window.month.period(containing: Self.now).end.milliseconds
    #expect(first.validUntil == month)
    var later = Case()
    later.burns = [("credits.month", 5)]
    let second = try #require(try later.registration())
    #expect(Self.leased(second) == ["$credits.month"])
    // Something may come back to the one before it.
    #expect(second.validUntil == Self.now.milliseconds + 10_000)
  }

  /// Nothing is burnt any more: how it is denied is known until something changes.
  @Test func whereNothingIsLeftAnyGrantWillDo() throws {
    var none = Case()
    none.burns = []
    none.left = 0
    let found = try #require(try none.registration())
    #expect(Self.leased(found) == ["$credits.month"])
    #expect(found.validUntil == Window.month.period(containing: Self.now).end.milliseconds)
    none.left = 3
    let some = try #require(try none.registration())
    #expect(some.validUntil == Self.now.milliseconds + 10_000)
  }

  @Test func whatIsNotLeased() throws {
    var both = Case()
    both.burns = [("promo", 3), ("credits.month", 2)]
    #expect(try both.registration() == nil, "more than one grant")
    var beyond = Case()
    beyond.burns = [("promo", 3), (nil, 2)]
    #expect(try beyond.registration() == nil, "beyond the grants")
    let prepaid = "id: credits.month, credit: {every: month, amount: 50}"
    for (limits, why) in [
      ("[{\(prepaid), overage: allow}]", "what goes beyond costs money"),
      ("[{\(prepaid), overage: deny, enforcement: soft}]", "a soft limit"),
      ("[{\(prepaid), overage: deny, precision: exact}]", "exact"),
      ("[{\(prepaid), overage: deny}, {id: s, spend_cap: 5, per: day}]", "a cap on money"),
    ] {
      #expect(try Case(limits: limits).registration() == nil, "\(why)")
    }
    #expect(try Case(limits: "[{\(prepaid), overage: deny}]").registration() != nil)
    var charged = Case()
    charged.rates = "rates: [{id: r, feature: tokens, into: credits, price: 1}]"
    #expect(try charged.registration() == nil, "others are charged to it")
    var rolling = Case()
    rolling.limits =
      "[{id: credits.month, credit: {every: month, amount: 50, rollover: {min: 0, max: 9}},"
      + " overage: deny}]"
    #expect(try rolling.registration() != nil, "the one before it is burnt")
    rolling.burns = [("credits.month", 5)]
    #expect(try rolling.registration() == nil, "what is left comes over")
  }
}
