// Since when a plan gives a credit, and what it gave before. An instance of a plan's grant takes
// over what the one before had left, also where nobody touched that one; so it must be known
// whether it was there, and how large. What is known is the last change of each.

/// A plan's own grant, which has the id of its limit.
public struct CreditKey: Hashable, Sendable {
  public var plan: Name
  public var limit: Name

  public init(plan: Name, limit: Name) {
    self.plan = plan
    self.limit = limit
  }
}

public struct CreditChange: Hashable, Sendable {
  public var since: WallTime
  /// What it gave until then; nil: nothing.
  public var before: Int64?

  public init(since: WallTime, before: Int64?) {
    self.since = since
    self.before = before
  }
}

extension GlobalConfig {
  /// Another catalog in its place. `isFirst`: there was none.
  package mutating func replace(_ catalog: Catalog, isFirst: Bool, now: WallTime) {
    var credits: [CreditKey: CreditChange] = [:]
    for plan in catalog.plans.values {
      for (feature, limits) in plan.entitlements {
        for limit in limits {
          guard let amount = limit.included else { continue }
          let key = CreditKey(plan: plan.name, limit: limit.id)
          let old = self.catalog.plans[plan.name]?.entitlements[feature]?
            .first { $0.id == limit.id }?.included
          let before = isFirst ? nil : old
          credits[key] =
            before == amount ? self.credits[key] : CreditChange(since: now, before: before)
        }
      }
    }
    self.catalog = catalog
    self.credits = credits
  }
}

extension Limit {
  /// What it gives by itself.
  fileprivate var included: Int64? {
    if case .credit(let credit) = kind { credit.included?.amount } else { nil }
  }
}

extension CreditChange {
  static func read(_ node: DocumentNode) -> (CreditKey, CreditChange)? {
    guard
      let fields = node.object(
        ["plan", "limit", "since_ms", "before"], required: ["plan", "limit", "since_ms"])
    else { return nil }
    let (plan, limit) = (fields["plan"]?.name(), fields["limit"]?.name())
    let since = fields["since_ms"]?.integer(0...Quantity.maximum)
    let before = fields["before"]?.integer(0...Quantity.maximum)
    guard let plan, let limit, let since else { return nil }
    return (
      CreditKey(plan: plan, limit: limit),
      CreditChange(since: WallTime(milliseconds: since), before: before)
    )
  }

  static func document(_ key: CreditKey, _ change: CreditChange) -> Document {
    .fields([
      "plan": .string(key.plan.text), "limit": .string(key.limit.text),
      "since_ms": .integer(change.since.milliseconds), "before": change.before.map { .integer($0) },
    ])
  }
}
