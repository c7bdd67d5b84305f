// The catalog: features, plans and their limits, as one versioned value. Reading one from a
// document and finding its problems is CatalogReader's job; this file is only the shape.

/// A feature: a thing gated or metered.
public struct Feature: Hashable, Sendable {
  /// How dearly a repeated effect is paid for: `money` operations are denied when the dedupe table
  /// is full; `volume` operations shorten the dedupe window instead.
  public enum Importance: String, Sendable, CaseIterable { case money, volume }

  /// Where an operation's answer is remembered, so that a retry gets it again.
  public enum Idempotency: String, Sendable, CaseIterable {
    /// In Redis: a retry may go to any sidecar. Every operation is a call to Redis.
    case global
    /// By the sidecar that answered, where it answers from a lease: a retry must go there.
    case sidecar
  }

  public var name: Name
  /// Whether every unit becomes a delta in the ledger.
  public var metered: Bool
  public var importance: Importance
  /// What one unit is, for people: `request`, `token`, `micro-USD`.
  public var unit: String
  /// Whether amounts of it may be held (RESERVE).
  public var reservable: Bool
  public var idempotency: Idempotency

  public init(
    name: Name, metered: Bool, importance: Importance, unit: String, reservable: Bool = false,
    idempotency: Idempotency = .global
  ) {
    self.name = name
    self.metered = metered
    self.importance = importance
    self.unit = unit
    self.reservable = reservable
    self.idempotency = idempotency
  }
}

/// How closely a limit is counted.
public enum Precision: String, Sendable, CaseIterable {
  /// From a lease where there is much left, by Redis near the edge.
  case auto
  /// Every operation is decided by Redis.
  case exact
}

public enum Enforcement: String, Sendable, CaseIterable {
  /// Denies.
  case hard
  /// Allows, and says that the limit is exceeded.
  case soft
  /// Decides, records what it would have done, and allows.
  case shadow
}

/// What answers when the counters cannot be asked.
public enum FailurePolicy: Hashable, Sendable {
  /// Deny.
  case closed
  /// Allow up to `allowance` units per subject and outage in each sidecar, posted afterwards.
  case open(allowance: Int64)
  /// Answer from held leases only.
  case stale

  /// The largest open allowance: a bound, even where nobody looks (PITFALLS 42).
  public static let allowanceMax: Int64 = 1_000_000_000_000

  public var name: String {
    switch self {
    case .closed: "closed"
    case .open: "open"
    case .stale: "stale"
    }
  }
}

public enum LimitKind: Hashable, Sendable {
  /// The feature is on or off.
  case gate(enabled: Bool)
  /// At most `amount` units in each period of `window`.
  case quota(amount: Int64, window: Window)
  /// GCRA: `amount` units per `periodMilliseconds` on average, `burst` at once.
  case rate(amount: Int64, periodMilliseconds: Int64, burst: Int64)
  /// At most `amount` units in any span of this length: the period that runs, and of the one
  /// before it the share that the span still reaches, as if its units had come evenly.
  case sliding(amount: Int64, lengthMilliseconds: Int64)
  /// At most `amount` units held at one moment.
  case concurrency(amount: Int64)
  /// Burns the account's grants of the feature.
  case credit(Credit)
  /// At most `amount` units beyond every grant in each period; nil: no cap.
  case spendCap(amount: Int64?, window: Window)
  /// Counts, never denies.
  case unlimited

  /// The longest window of a sliding limit: its weights are exact up to here.
  public static let slidingMillisecondsMax: Int64 = 7 * 86_400_000

  public var name: String {
    switch self {
    case .gate: "gate"
    case .quota: "quota"
    case .rate: "rate"
    case .sliding: "sliding"
    case .concurrency: "concurrency"
    case .credit: "credit"
    case .spendCap: "spend_cap"
    case .unlimited: "unlimited"
    }
  }
}

public struct Credit: Hashable, Sendable {
  /// What the plan gives in each period, as a paid grant with the limit's id.
  public struct Included: Hashable, Sendable {
    public var amount: Int64
    public var every: Window
    public var priority: Int64
    public var rollover: Rollover

    public init(
      amount: Int64, every: Window, priority: Int64 = Grant.priorityDefault,
      rollover: Rollover = .none
    ) {
      self.amount = amount
      self.every = every
      self.priority = priority
      self.rollover = rollover
    }
  }

  /// nil: only grants of the account's own.
  public var included: Included?
  /// What no grant covers is let through, to be charged or capped by other rules.
  public var allowsOverage: Bool

  public init(included: Included?, allowsOverage: Bool) {
    self.included = included
    self.allowsOverage = allowsOverage
  }
}

/// One rule with a stable id. The id names the rule across plans: an override names it too.
public struct Limit: Hashable, Sendable {
  public var id: Name
  public var kind: LimitKind
  /// Depth in the subject path: 1 is the account. A limit applies to subjects at least that deep.
  public var level: Int
  public var enforcement: Enforcement
  public var failurePolicy: FailurePolicy
  /// Percent of the amount at which an event is recorded, ascending. Of a quota, a spend cap, or
  /// what a credit gives; where there is no amount, none is reached.
  public var thresholds: [Int64]
  /// nil: as the feature's importance asks for it; money is exact.
  public var precision: Precision?

  public static let thresholdsMax = 8

  public init(
    id: Name, kind: LimitKind, level: Int, enforcement: Enforcement,
    failurePolicy: FailurePolicy, thresholds: [Int64] = [], precision: Precision? = nil
  ) {
    self.id = id
    self.kind = kind
    self.level = level
    self.enforcement = enforcement
    self.failurePolicy = failurePolicy
    self.thresholds = thresholds
    self.precision = precision
  }
}

public struct Plan: Hashable, Sendable {
  public var name: Name
  /// Feature → its limits, in the order of the catalog. A feature that is absent is not in the
  /// plan; one with an empty list is allowed and only counted.
  public var entitlements: [Name: [Limit]]
  /// Tells an upgrade from a downgrade: the higher rank is the greater plan. nil: nobody knows.
  public var rank: Int64?

  public static let rankMax: Int64 = 1000

  public init(name: Name, entitlements: [Name: [Limit]], rank: Int64? = nil) {
    self.name = name
    self.entitlements = entitlements
    self.rank = rank
  }
}

public enum UnknownAccount: Hashable, Sendable {
  case deny
  case plan(Name)
}

public struct Catalog: Hashable, Sendable {
  public static let featuresMax = 256
  public static let plansMax = 256
  public static let limitsPerFeatureMax = 8

  /// Level names, account first; 1 … 5 of them.
  public var levels: [Name]
  public var unknownAccount: UnknownAccount
  public var features: [Name: Feature]
  public var rates: RateCard
  public var plans: [Name: Plan]

  public init(
    levels: [Name], unknownAccount: UnknownAccount, features: [Name: Feature],
    rates: RateCard = RateCard(), plans: [Name: Plan]
  ) {
    self.levels = levels
    self.unknownAccount = unknownAccount
    self.features = features
    self.rates = rates
    self.plans = plans
  }
}

/// For a while, enforcement of one feature, or of all, becomes shadow; metering goes on.
public struct Bypass: Hashable, Sendable {
  /// nil: every feature.
  public var feature: Name?
  public var until: WallTime
  public var reason: String
  public var actor: String

  public init(feature: Name?, until: WallTime, reason: String, actor: String) {
    self.feature = feature
    self.until = until
    self.reason = reason
    self.actor = actor
  }
}

/// Everything that holds for all accounts, under one version that grows with every change.
public struct GlobalConfig: Hashable, Sendable {
  public var version: Int64
  /// The number of the catalog in `catalog`; `rollback` makes a new number with old content.
  public var catalogVersion: Int64
  public var catalog: Catalog
  public var bypasses: [Bypass]
  /// Since when plans give what they give; see `CreditChange`.
  public var credits: [CreditKey: CreditChange]

  public init(
    version: Int64, catalogVersion: Int64, catalog: Catalog, bypasses: [Bypass],
    credits: [CreditKey: CreditChange] = [:]
  ) {
    self.version = version
    self.catalogVersion = catalogVersion
    self.catalog = catalog
    self.bypasses = bypasses
    self.credits = credits
  }
}
