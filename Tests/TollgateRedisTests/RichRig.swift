// The words in which a test of grants, prices and reservations speaks to the store.

import TollgateCore
import TollgateTesting

@testable import TollgateRedis

extension Catalog {
  /// tokens: per member, held, charged to spend at 3 for 2 · spend: 10 a month included, then a cap of
  /// 20 · runs: two at a time.
  static var rich: Catalog {
    func feature(_ text: String, metered: Bool = true) -> Feature {
      Feature(
        name: name(text), metered: metered, importance: .volume, unit: "unit", reservable: true)
    }
    let features = [feature("tokens"), feature("spend"), feature("runs", metered: false)]
    let included = Credit.Included(
      amount: 10, every: .month, priority: 100, rollover: Rollover(min: 0, max: 4))
    let pro: [Name: [Limit]] = [
      name("tokens"): [limit("tokens.hour", .quota(amount: 60, window: .hour), level: 2)],
      name("spend"): [
        limit("spend.included", .credit(Credit(included: included, allowsOverage: true))),
        limit("spend.cap", .spendCap(amount: 20, window: .month)),
      ],
      name("runs"): [limit("runs.live", .concurrency(amount: 2))],
    ]
    let price = Price(3, per: 2) ?? Price.free
    return Catalog(
      levels: [name("account"), name("member")], unknownAccount: .deny,
      features: Dictionary(uniqueKeysWithValues: features.map { ($0.name, $0) }),
      rates: RateCard([
        RateCard.Rate(
          id: name("tokens.price"), feature: name("tokens"), into: name("spend"), price: price)
      ]),
      plans: [name("pro"): Plan(name: name("pro"), entitlements: pro)])
  }
}

extension Price {
  /// For literals in tests.
  static var free: Price {
    guard let price = Price(0, per: 1) else { preconditionFailure("0 for 1 is a price") }
    return price
  }
}

extension StoreRig {
  /// The rich catalog in force.
  func useRich() { global.catalog = .rich }

  func transact(
    _ subject: String, _ items: [(String, Int64)], id: OperationID? = nil,
    mode: TransactCall.Mode = .consume
  ) throws -> TransactCall {
    let subject = try Subject(subject)
    let items = try items.map { Item(feature: try Name($0.0), amount: $0.1) }
    return TransactCall(
      keySpace: keySpace, fence: fence, operation: id ?? newID(),
      fingerprint: OperationFingerprint(subject: subject, items: items), mode: mode,
      subject: subject,
      plan: RichPlan(resolution: resolve(subject, items), depth: subject.depth),
      asked: items.count, common: [], globalVersion: global.version,
      accountVersion: account.version, limits: limits)
  }

  /// A hold of a minute, and its id.
  func reserve(
    _ subject: String, _ items: (String, Int64)..., ttl: Int64 = 60_000,
    overrun: OverrunPolicy = .clamp
  ) throws -> OperationID {
    let id = newID()
    _ = try run(
      transact(
        subject, items, id: id,
        mode: .reserve(ReserveTerms(ttlMilliseconds: ttl, overrun: overrun))))
    return id
  }

  func step(
    _ step: SettleCall.Step, _ subject: String, _ reservation: OperationID,
    plan created: WallTime? = nil
  ) throws -> SettleCall {
    let subject = try Subject(subject)
    var items: [Item] = []
    if case .settle(let used, _) = step { items = used }
    var call = SettleCall(
      keySpace: keySpace, fence: fence, operation: newID(),
      fingerprint: OperationFingerprint(subject: subject, items: items), reservation: reservation,
      subject: subject, step: step, recordClass: .volume, common: [],
      globalVersion: global.version, accountVersion: account.version, limits: limits)
    if let created {
      let features = ["tokens", "spend"].map { Item(feature: Catalog.name($0), amount: 0) }
      let resolution = Resolution.resolve(
        subject: subject, items: features, priced: false, global: global, account: account,
        now: created, zones: .utcOnly)
      call.plan = RichPlan(resolution: resolution, depth: subject.depth)
    }
    return call
  }

  func expire(_ subject: String, _ reservations: [OperationID]) throws -> ExpireCall {
    ExpireCall(
      keySpace: keySpace, fence: fence, subject: try Subject(subject), reservations: reservations)
  }
}
