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
    /// Of the period before the cell's, what a span of this length still reaches counts too.
    case sliding(cell: Int, amount: Int64, lengthMilliseconds: Int64)
    case concurrency(cell: Int, amount: Int64)
    /// What no grant covers is let through, or is not.
    case credit(allowsOverage: Bool)
    /// nil: counted, but never denied.
    case spendCap(cell: Int, amount: Int64?)
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

/// A grant that an item's units are burnt from.
public struct Draw: Hashable, Sendable {
  /// Index into `Resolution.cells`: what was burnt from this instance so far.
  public var cell: Int
  public var grant: Name
  /// What the instance has, without what came over into it. A voided one has nothing to give.
  public var amount: Int64
  public var isVoided: Bool
  /// More comes where the cell's period ends.
  public var recurs: Bool
  public var rollover: Rollover
  /// The start of the instance directly before; nil: there was none.
  public var before: WallTime?
  /// What that one had, without what came over into it: a plan before this one may have given less.
  public var amountBefore: Int64
  /// Where nobody counted in that one, it was there and is left whole. A plan's own grant is as old
  /// as its plan is in force for the account: what was before that is known from the counter alone.
  public var wasWhole: Bool
}

/// Units of one item charged to another.
public struct Pricing: Hashable, Sendable {
  public var rate: Name
  public var from: WallTime
  public var source: Int
  public var target: Int
  public var portion: RateCard.Portion
  public var price: Price
  /// Index into `Resolution.cells`: the units that this rate has charged in this month.
  public var cell: Int
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
    guard items.count <= Self.itemsMax else {
      return "the features named, and those they are charged to, are \(items.count); at most "
        + "\(Self.itemsMax) are decided in one request"
    }
    guard limits.count > Self.limitsMax else { return nil }
    return "the features named have \(limits.count) limits together; at most \(Self.limitsMax) are "
      + "decided in one request: name fewer features"
  }

  /// Those of the request, then the features that these are charged to, with the amount that the
  /// request names itself.
  public var items: [Item] = []
  public var limits: [AppliedLimit]
  public var cells: [Cell]
  /// In the order of burning, by item; an item without an entry has no `credit` limit.
  public var draws: [Int: [Draw]] = [:]
  /// The cell of what is owed, by item; those with `draws` have one.
  public var deficits: [Int: Int] = [:]
  /// Sources before what is charged by them.
  public var pricings: [Pricing] = []
  /// What a sidecar may answer from a lease: of features that it may remember by itself, with no
  /// limit that is counted exactly, and nothing that configuration alone denies. Nor where anything
  /// is priced, held or may be had beyond grants: what is leased to somebody else must not make
  /// that cost money.
  package var isLeasable: Bool {
    mayLease && unknownZone == nil && !isDenied && !isReservable && pricings.isEmpty
      && limits.allSatisfy { limit in
        switch limit.rule {
        case .concurrency, .spendCap: false
        case .credit: isPrepaid(limit.item)
        case .deny, .quota, .rate, .sliding, .unlimited: true
        }
      }
  }
  /// Configuration alone denies it, whatever was used.
  package var isDenied: Bool {
    limits.contains { if case .deny = $0.rule { true } else { false } }
  }
  fileprivate var mayLease = true
  /// Some item's feature may be held.
  package var isReservable = false
  /// Per item: whether its units become deltas.
  public var metered: [Bool]
  /// `money` as soon as one item is.
  public var importance: Feature.Importance
  /// The least of all period ends, and of override and bypass expiries: until then, under the
  /// same versions and the same request, the resolution stays the same.
  public var validUntil: WallTime

  /// Resolves a request at `now` (Redis time). Never fails: what configuration forbids comes out
  /// as a `.deny` rule, so that the denial, too, is checked against current versions and recorded.
  ///
  /// - Parameter priced: false where it is known already what units are charged to what: by the
  ///   rates that admitted them.
  public static func resolve(
    subject: Subject, items: [Item], attributes: [String: String] = [:], priced: Bool = true,
    global: GlobalConfig, account: AccountConfig, now: WallTime, zones: ZoneBook
  ) -> Resolution {
    var resolver = Resolver(
      subject: subject, global: global, account: account, now: now, zones: zones)
    resolver.resolution.items = items
    let charges = priced ? resolver.charges(attributes) : []
    let count = resolver.resolution.items.count
    for index in 0..<count { resolver.add(resolver.resolution.items[index], at: index) }
    for charge in charges { resolver.add(charge) }
    if account.isPastDue(at: now) { resolver.denyPastDue() }
    return resolver.resolution
  }

  /// Beyond its grants nothing may be had of this item, not even for money.
  package func isPrepaid(_ item: Int) -> Bool {
    limits.contains {
      if case .credit(allowsOverage: false) = $0.rule {
        $0.item == item && $0.enforcement == .hard
      } else {
        false
      }
    }
  }

  /// More than gates, quotas and rates: who decides this needs grants, prices or holds.
  package var isRich: Bool {
    isReservable || !draws.isEmpty || !pricings.isEmpty
      || limits.contains {
        switch $0.rule {
        case .concurrency, .credit, .spendCap: true
        case .deny, .quota, .rate, .sliding, .unlimited: false
        }
      }
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
  /// Items that rates charge, but none for these attributes.
  var unpriced: Set<Int> = []
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
    for change in [account.next?.at, account.pastDue?.graceEnds] {
      guard let change, now < change else { continue }
      resolution.validUntil = min(resolution.validUntil, change)
    }
    plan = global.plan(of: account, at: now)
    // An account whose plan has left the catalog is known, but has no entitlements.
    denial =
      account.frozen
      ? .accountFrozen : account.plan(at: now) == nil && plan == nil ? .unknownAccount : nil
  }

  /// Beside the limits and not in their place: what was held or let through before is still
  /// counted where it belongs.
  mutating func denyPastDue() {
    guard let first = resolution.items.first else { return }
    if resolution.limits.count >= Resolution.limitsMax {
      resolution.limits.removeAll { if case .deny = $0.rule { false } else { true } }
    }
    deny(.pastDue, 0, first.feature)
  }

  struct Charge {
    var rate: RateCard.Rate
    var source: Int
    var target: Int
  }

  /// Appends the features that items are charged to, and says which.
  mutating func charges(_ attributes: [String: String]) -> [Charge] {
    let card = global.catalog.rates
    guard !card.rates.isEmpty else { return [] }
    var charges: [Charge] = []
    for source in resolution.items.indices {
      let feature = resolution.items[source].feature
      let selection = card.select(feature, attributes: attributes, at: now)
      if let until = selection.validUntil {
        resolution.validUntil = min(resolution.validUntil, until)
      }
      if selection.isUnknown { unpriced.insert(source) }
      for rate in selection.rates {
        let target: Int
        if let found = resolution.items.firstIndex(where: { $0.feature == rate.into }) {
          target = found
        } else {
          target = resolution.items.count
          resolution.items.append(Item(feature: rate.into, amount: 0))
        }
        charges.append(Charge(rate: rate, source: source, target: target))
      }
    }
    return charges
  }

  mutating func add(_ charge: Charge) {
    let month = calendar.period(of: .month, containing: now)
    resolution.cells.append(
      Cell(
        item: charge.source, level: 1, window: .priced(by: charge.rate.id, from: charge.rate.from),
        period: month))
    resolution.validUntil = min(resolution.validUntil, month.end)
    resolution.pricings.append(
      Pricing(
        rate: charge.rate.id, from: charge.rate.from, source: charge.source,
        target: charge.target, portion: charge.rate.portion, price: charge.rate.price,
        cell: resolution.cells.count - 1))
  }

  mutating func add(_ item: Item, at index: Int) {
    let feature = global.catalog.features[item.feature]
    resolution.metered.append(feature?.metered ?? false)
    if feature?.importance == .money { resolution.importance = .money }
    // What others are charged to is decided with them.
    if feature?.idempotency != .sidecar || isCharged(item.feature) { resolution.mayLease = false }
    // Or it is charged by what may be: then some of it may be held, too.
    if feature?.reservable == true || isChargedByHolds(item.feature) {
      resolution.isReservable = true
    }
    if feature?.metered == true {
      // The billing cell: every metered unit is counted per account, feature and month,
      // whatever the limits are. Reconciliation compares this one with the ledger. It is named
      // even where the configuration denies, since a post of units that were let through earlier
      // counts all the same.
      _ = cell(item: index, level: 1, window: .month)
    }
    // In the order of the reasons' numbers, so that the smallest is the one that is reported.
    // Under a freeze the limits are named all the same: what was used before it, or is let through
    // elsewhere, is burnt from the same grants.
    if let denial {
      deny(denial, index, item.feature)
      guard denial == .accountFrozen else { return drawOwn(for: index, item.feature) }
    }
    guard feature != nil else { return deny(.unknownFeature, index, item.feature) }
    guard let limits = plan?.entitlements[item.feature] else {
      drawOwn(for: index, item.feature)
      return deny(.featureNotInPlan, index, item.feature)
    }
    if unpriced.contains(index) { deny(.priceUnknown, index, item.feature) }
    let bypassed = isBypassed(item.feature)
    for limit in limits where limit.level <= subject.depth {
      apply(limit, to: item, at: index, bypassed: bypassed)
    }
  }

  /// What no plan speaks of any more is denied, but what was used of it before, or is let through
  /// elsewhere, is covered by the account's own grants all the same.
  private mutating func drawOwn(for item: Int, _ feature: Name) {
    guard account.grants.contains(where: { $0.feature == feature }) else { return }
    draw(Credit(included: nil, allowsOverage: true), feature, 0, for: item, feature)
  }

  private func isCharged(_ feature: Name) -> Bool {
    global.catalog.rates.rates.contains { $0.into == feature }
  }

  private func isChargedByHolds(_ feature: Name) -> Bool {
    global.catalog.rates.rates.contains {
      $0.into == feature && global.catalog.features[$0.feature]?.reservable == true
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
    if limit.precision == .exact || !Self.isDrawable(kind) { resolution.mayLease = false }
    // Counted even while an override lifts it, so that its end finds the true usage.
    var counter = 0
    if let window = limit.kind.window {
      counter = cell(item: index, level: limit.level, window: window)
    }
    if case .credit(let credit) = limit.kind {
      let given = overriddenAmount(of: limit) ?? credit.included?.amount ?? 0
      draw(credit, limit.id, given, for: index, item.feature)
    }
    let rule: AppliedLimit.Rule
    switch kind {
    case .gate(let enabled): rule = enabled ? .unlimited : .deny(.gateClosed)
    case .quota(let amount, _): rule = .quota(cell: counter, amount: amount)
    case .sliding(let amount, let length):
      rule = .sliding(cell: counter, amount: amount, lengthMilliseconds: length)
    case .concurrency(let amount): rule = .concurrency(cell: counter, amount: amount)
    case .credit(let credit): rule = .credit(allowsOverage: credit.allowsOverage)
    case .spendCap(let amount, _): rule = .spendCap(cell: counter, amount: amount)
    case .rate(let amount, let period, let burst):
      rule = Self.rate(cost: item.amount, amount: amount, period: period, burst: burst)
    case .unlimited: rule = .unlimited
    }
    resolution.limits.append(
      AppliedLimit(
        id: limit.id, item: index, level: limit.level, rule: rule, enforcement: enforcement,
        failurePolicy: limit.failurePolicy))
  }

  /// The grants that are effective now, in the order of burning; with the plan's own, which is a
  /// paid one as old as time.
  private mutating func draw(
    _ credit: Credit, _ id: Name, _ given: Int64, for item: Int, _ feature: Name
  ) {
    var instances: [GrantInstance] = []
    // A grant named like the plan's own would share its counter; `grant add` refuses the name, and
    // where a catalog took it later, the plan's stands.
    var grants = account.grants.filter {
      $0.feature == feature && (credit.included == nil || $0.id != id)
    }
    if let included = credit.included {
      let beginning = WallTime(milliseconds: 0)
      grants.append(
        Grant(
          id: id, feature: feature, amount: given, priority: included.priority,
          effective: beginning, created: beginning, every: included.every,
          rollover: included.rollover))
    }
    for grant in grants {
      guard let instance = grant.instance(at: now, calendar) else {
        if now < grant.effective {
          resolution.validUntil = min(resolution.validUntil, grant.effective)
        }
        continue
      }
      resolution.validUntil = min(resolution.validUntil, instance.period.end)
      instances.append(instance)
    }
    instances.sort(by: GrantInstance.burnsBefore)
    func isOfPlan(_ instance: GrantInstance) -> Bool {
      credit.included != nil && instance.grant.id == id
    }
    var draws: [Draw] = []
    for instance in instances {
      let had =
        isOfPlan(instance) ? amountBefore(instance, feature) : instance.grant.amount
      resolution.cells.append(
        Cell(item: item, level: 1, window: .grant(instance.grant.id), period: instance.period))
      draws.append(
        Draw(
          cell: resolution.cells.count - 1, grant: instance.grant.id,
          // Whatever the instant: what is settled late must not bring a voided one back.
          amount: instance.grant.amount, isVoided: instance.grant.voided != nil,
          recurs: instance.grant.every != nil && instance.grant.expires != instance.period.end,
          rollover: instance.grant.rollover, before: instance.before?.start,
          amountBefore: had,
          wasWhole: isOfPlan(instance) ? wasWhole(instance, feature) : instance.before != nil))
    }
    resolution.draws[item] = draws
    resolution.deficits[item] = cell(item: item, level: 1, window: .deficit)
  }

  /// Of a plan's grant: a plan was in force in the instance before, and gave it.
  private func wasWhole(_ instance: GrantInstance, _ feature: Name) -> Bool {
    guard let before = instance.before else { return false }
    let then = account.plan(at: before.end + -1, knownAt: now)
    guard let name = then.plan, let since = then.since, since < before.end,
      included(instance.grant.id, feature, of: name) != nil
    else { return false }
    let change = global.credits[CreditKey(plan: name, limit: instance.grant.id)]
    return change.map { $0.before != nil || $0.since < before.end } ?? true
  }

  /// Of a plan's grant: what the plan gave that was in force when the instance before ended.
  private mutating func amountBefore(_ instance: GrantInstance, _ feature: Name) -> Int64 {
    guard let before = instance.before, let plan else { return instance.grant.amount }
    let (last, id) = (before.end + -1, instance.grant.id)
    let then = account.plan(at: last, knownAt: now).plan ?? plan.name
    guard let (limit, amount) = included(id, feature, of: then) else { return 0 }
    if let changed = overriddenAmount(of: limit, since: last) { return changed }
    guard let change = global.credits[CreditKey(plan: then, limit: id)], last < change.since
    else { return amount }
    return change.before ?? 0
  }

  /// What a plan gives by itself, by the catalog in force.
  private func included(
    _ id: Name, _ feature: Name, of plan: Name
  ) -> (limit: Limit, amount: Int64)? {
    for limit in global.catalog.plans[plan]?.entitlements[feature] ?? [] where limit.id == id {
      if case .credit(let credit) = limit.kind, let included = credit.included {
        return (limit, included.amount)
      }
    }
    return nil
  }

  /// `since`: only by those that were there then.
  private mutating func overriddenAmount(of limit: Limit, since then: WallTime? = nil) -> Int64? {
    var amount: Int64?
    for override in effectiveOverrides(of: limit) {
      if let then, let since = override.since, then < since { continue }
      if case .amount(let changed) = override.change { amount = changed }
    }
    return amount
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

  /// Of a rate, tokens are drawn in advance as if each cost whole microseconds. Where they do not,
  /// and that is more than a thousandth, they are not drawn in advance.
  private static func isDrawable(_ kind: LimitKind) -> Bool {
    guard case .rate(let amount, let period, _) = kind, amount > 0 else { return true }
    return period * 1000 % amount == 0 || period * 1000 / amount >= 1000
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
    case .sliding(_, let length): return .sliding(amount: changed, lengthMilliseconds: length)
    case .concurrency: return .concurrency(amount: changed)
    case .spendCap(_, let window): return .spendCap(amount: changed, window: window)
    // What a plan gives is changed where its grant is made.
    case .gate, .unlimited, .credit: return self
    }
  }

  /// Of the counter that the limit is held against; nil: it has none of its own.
  package var window: Window? {
    switch self {
    case .quota(_, let window): window
    // By length, whatever the zone: a day that a clock makes longer is no longer span.
    case .sliding(_, let length): .seconds(length / 1000)
    case .concurrency: .inFlight
    case .spendCap(_, let window): .overage(window)
    case .gate, .rate, .credit, .unlimited: nil
    }
  }
}
