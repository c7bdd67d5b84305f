// From configuration and a request to the list of things a script must check: which limits apply,
// which counters ("cells") they read, which of them every admitted unit is added to. This is the
// only place where plans, overrides, bypasses and levels are understood; the script that decides
// knows none of them.

/// A counter. Its identity is (subject, feature, window): two limits over the same window share
/// one, a changed amount never resets it, and a change of plan finds it again.
public struct Cell: Hashable, Sendable {
  public var item: Int
  /// Depth of the subject prefix the counter belongs to.
  public var level: Int
  public var window: Window
  public var period: Period

  public init(item: Int, level: Int, window: Window, period: Period) {
    self.item = item
    self.level = level
    self.window = window
    self.period = period
  }
}

/// One limit, as it applies to one request.
public struct AppliedLimit: Hashable, Sendable {
  public enum Rule: Hashable, Sendable {
    /// Decided by configuration alone.
    case deny(Reason)
    /// `cell` is an index into `Resolution.cells`.
    case quota(cell: Int, amount: Int64)
    /// Cost and tolerance in microseconds: GCRA's increment for this request, and burst.
    /// `intervalMicroseconds` is the cost of one unit rounded up, for `remaining`.
    case rate(costMicroseconds: Int64, toleranceMicroseconds: Int64, intervalMicroseconds: Int64)
    case unlimited
  }

  public var id: Name
  public var item: Int
  public var level: Int
  public var rule: Rule
  public var enforcement: Enforcement
  public var failurePolicy: FailurePolicy

  public init(
    id: Name, item: Int, level: Int, rule: Rule, enforcement: Enforcement,
    failurePolicy: FailurePolicy
  ) {
    self.id = id
    self.item = item
    self.level = level
    self.rule = rule
    self.enforcement = enforcement
    self.failurePolicy = failurePolicy
  }
}

public struct Resolution: Hashable, Sendable {
  public static let itemsMax = 16
  /// Limits of one request. One feature never has more (`Catalog.limitsPerFeatureMax`), so every
  /// feature can be asked for; a request that names many rich ones is refused as a whole.
  public static let limitsMax = 32

  /// The zone of the account is not known here, so its periods are not either: `cells` is as for
  /// UTC and nothing may be counted by it. The limits and their failure policies are right.
  public var unknownZone: String?

  /// Why it is not decided; nil where it is. TOO_MANY_ITEMS, because fewer features help.
  package var refusal: String? {
    guard limits.count > Self.limitsMax else { return nil }
    return "the features named have \(limits.count) limits together; at most \(Self.limitsMax) are "
      + "decided in one request: name fewer features"
  }

  public var limits: [AppliedLimit]
  public var cells: [Cell]
  /// Per item: whether its units become deltas.
  public var metered: [Bool]
  /// `money` as soon as one item is.
  public var importance: Feature.Importance
  /// The least of all period ends, and of override and bypass expiries: until then, under the
  /// same versions and the same request, the resolution stays the same.
  public var validUntil: WallTime

  /// Resolves a request at `now` (Redis time). Never fails: what configuration forbids comes out
  /// as a `.deny` rule, so that the denial, too, is checked against current versions and recorded.
  public static func resolve(
    subject: Subject, items: [Item], global: GlobalConfig, account: AccountConfig, now: WallTime,
    zones: ZoneBook
  ) -> Resolution {
    var resolver = Resolver(
      subject: subject, global: global, account: account, now: now, zones: zones)
    for (index, item) in items.enumerated() { resolver.add(item, at: index) }
    return resolver.resolution
  }
}

private struct Resolver {
  let subject: Subject
  let global: GlobalConfig
  let account: AccountConfig
  let now: WallTime
  let calendar: AccountCalendar
  let plan: Plan?
  /// What is wrong with the account as a whole, whatever the feature.
  let denial: Reason?
  var resolution = Resolution(
    limits: [], cells: [], metered: [], importance: .volume,
    validUntil: WallTime(milliseconds: Quantity.maximum))

  init(
    subject: Subject, global: GlobalConfig, account: AccountConfig, now: WallTime, zones: ZoneBook
  ) {
    self.subject = subject
    self.global = global
    self.account = account
    self.now = now
    do throws(AccountCalendar.UnknownZone) {
      calendar = try AccountCalendar(account.calendar, zones)
    } catch {
      calendar = .utc
      resolution.unknownZone = error.name
    }
    for rule in calendar.rules where now < rule.since {
      resolution.validUntil = min(resolution.validUntil, rule.since)
    }
    if let name = account.plan {
      plan = global.catalog.plans[name]
    } else if case .plan(let name) = global.catalog.unknownAccount {
      plan = global.catalog.plans[name]
    } else {
      plan = nil
    }
    // An account whose plan has left the catalog is known, but has no entitlements.
    denial =
      account.frozen ? .accountFrozen : account.plan == nil && plan == nil ? .unknownAccount : nil
  }

  mutating func add(_ item: Item, at index: Int) {
    let feature = global.catalog.features[item.feature]
    resolution.metered.append(feature?.metered ?? false)
    if feature?.importance == .money { resolution.importance = .money }
    if feature?.metered == true {
      // The billing cell: every metered unit is counted per account, feature and month,
      // whatever the limits are. Reconciliation compares this one with the ledger. It is named
      // even where the configuration denies, since a post of units that were let through earlier
      // counts all the same.
      _ = cell(item: index, level: 1, window: .month)
    }
    // In the order of the reasons' numbers, so that the smallest is the one that is reported.
    if let denial { return deny(denial, index, item.feature) }
    guard feature != nil else { return deny(.unknownFeature, index, item.feature) }
    guard let limits = plan?.entitlements[item.feature] else {
      return deny(.featureNotInPlan, index, item.feature)
    }
    let bypassed = isBypassed(item.feature)
    for limit in limits where limit.level <= subject.depth {
      apply(limit, to: item, at: index, bypassed: bypassed)
    }
  }

  private mutating func deny(_ reason: Reason, _ item: Int, _ feature: Name) {
    resolution.limits.append(
      AppliedLimit(
        id: feature, item: item, level: 1, rule: .deny(reason), enforcement: .hard,
        failurePolicy: .closed))
  }

  private mutating func apply(_ limit: Limit, to item: Item, at index: Int, bypassed: Bool) {
    var enforcement = limit.enforcement
    var kind = limit.kind
    for override in effectiveOverrides(of: limit) {
      switch override.change {
      case .enforcement(let changed): enforcement = changed
      // A closer change of the amount replaces a wider one: each starts from the catalog's rule.
      case .unlimited: kind = .unlimited
      case .enabled(let on): if case .gate = limit.kind { kind = .gate(enabled: on) }
      case .amount(let amount): kind = limit.kind.withAmount(amount)
      }
    }
    if bypassed { enforcement = .shadow }
    var counter: Int?
    if case .quota(_, let window) = limit.kind {
      // Counted even while an override lifts it, so that its end finds the true usage.
      counter = cell(item: index, level: limit.level, window: window)
    }
    let rule: AppliedLimit.Rule
    switch kind {
    case .gate(let enabled): rule = enabled ? .unlimited : .deny(.gateClosed)
    case .quota(let amount, let window):
      rule = .quota(
        cell: counter ?? cell(item: index, level: limit.level, window: window), amount: amount)
    case .rate(let amount, let period, let burst):
      rule = Self.rate(cost: item.amount, amount: amount, period: period, burst: burst)
    case .unlimited: rule = .unlimited
    }
    resolution.limits.append(
      AppliedLimit(
        id: limit.id, item: index, level: limit.level, rule: rule, enforcement: enforcement,
        failurePolicy: limit.failurePolicy))
  }

  /// GCRA in whole microseconds; a cost above the burst is a permanent denial.
  private static func rate(
    cost: Int64, amount: Int64, period: Int64, burst: Int64
  ) -> AppliedLimit.Rule {
    guard amount > 0, cost <= burst else { return .deny(.costAboveBurst) }
    return .rate(
      costMicroseconds: Rate.microseconds(cost, amount: amount, periodMilliseconds: period),
      toleranceMicroseconds: Rate.tolerance(
        burst: burst, amount: amount, periodMilliseconds: period),
      intervalMicroseconds: max(
        1, Rate.microseconds(1, amount: amount, periodMilliseconds: period)))
  }

  private mutating func cell(item: Int, level: Int, window: Window) -> Int {
    let period = calendar.period(of: window, containing: now)
    let wanted = Cell(item: item, level: level, window: window, period: period)
    if let found = resolution.cells.firstIndex(of: wanted) { return found }
    resolution.validUntil = min(resolution.validUntil, period.end)
    resolution.cells.append(wanted)
    return resolution.cells.count - 1
  }

  private mutating func isBypassed(_ feature: Name) -> Bool {
    var found = false
    for bypass in global.bypasses where bypass.feature == nil || bypass.feature == feature {
      if now < bypass.until {
        found = true
        resolution.validUntil = min(resolution.validUntil, bypass.until)
      }
    }
    return found
  }

  /// Overrides of this limit that reach this subject, widest first, so that the closest wins.
  private mutating func effectiveOverrides(of limit: Limit) -> [Override] {
    var found: [Override] = []
    for override in account.overrides
    where override.limit == limit.id && override.subject.depth <= limit.level
      && override.subject.contains(subject)
    {
      if let expires = override.expires {
        guard now < expires else { continue }
        resolution.validUntil = min(resolution.validUntil, expires)
      }
      found.append(override)
    }
    // Stable: of two on one subject the later in the list wins.
    return found.enumerated().sorted {
      ($0.element.subject.depth, $0.offset) < ($1.element.subject.depth, $1.offset)
    }.map(\.element)
  }
}

extension LimitKind {
  /// This rule with another amount. A rate's burst keeps its length in time: half the rate has
  /// half the burst (but at least one unit), so that lowering a rate bites at once and raising it
  /// can be used. A gate and an unlimited rule have no amount and stay.
  package func withAmount(_ changed: Int64) -> LimitKind {
    switch self {
    case .quota(_, let window): return .quota(amount: changed, window: window)
    case .rate(let amount, let period, let burst):
      let scaled = Int128(burst) * Int128(changed) / Int128(max(amount, 1))
      let bounded = max(1, min(scaled, Int128(Quantity.maximum)))
      return .rate(amount: changed, periodMilliseconds: period, burst: Int64(bounded))
    case .gate, .unlimited: return self
    }
  }
}
