// What is known of one account: its plan and what was changed for it alone. The account's version
// grows with every change and every script call carries it, so that a decision is never made on
// an old plan or an old limit.

/// A change to one limit for one account, or for one subject inside it.
public struct Override: Hashable, Sendable {
  public enum Change: Hashable, Sendable {
    /// A quota's amount, or a rate's (its period stays, its burst is scaled alike), in units.
    case amount(Int64)
    case unlimited
    case enabled(Bool)
    case enforcement(Enforcement)
  }

  public var subject: Subject
  public var limit: Name
  public var change: Change
  /// In force before this instant; nil: until unset.
  public var expires: WallTime?
  /// When it was made; nil: nobody noted it.
  public var since: WallTime?
  public var reason: String
  public var author: String

  public init(
    subject: Subject, limit: Name, change: Change, expires: WallTime?, reason: String,
    author: String, since: WallTime? = nil
  ) {
    self.since = since
    self.subject = subject
    self.limit = limit
    self.change = change
    self.expires = expires
    self.reason = reason
    self.author = author
  }
}

/// A plan that comes into force by time: nothing has to happen then, whoever resolves a request
/// after that instant finds it.
public struct NextPlan: Hashable, Sendable {
  /// nil: none; the catalog's rule for unknown accounts decides.
  public var plan: Name?
  public var at: WallTime
  /// What runs until then is a trial.
  public var endsTrial: Bool

  public init(plan: Name?, at: WallTime, endsTrial: Bool = false) {
    self.plan = plan
    self.at = at
    self.endsTrial = endsTrial
  }
}

/// A payment that is owed. Within the grace everything works; from its end on nothing does.
public struct PastDue: Hashable, Sendable {
  public var since: WallTime
  public var graceEnds: WallTime

  public init(since: WallTime, graceEnds: WallTime) {
    self.since = since
    self.graceEnds = graceEnds
  }
}

/// An outside system and the version of its last event that was applied.
public struct SourceMark: Hashable, Sendable {
  public var id: String
  public var version: Int64

  public init(id: String, version: Int64) {
    self.id = id
    self.version = version
  }
}

public struct AccountConfig: Hashable, Sendable {
  public static let overridesMax = 256
  public static let grantsMax = 64
  /// Outside systems whose last event is remembered.
  public static let sourcesMax = 8
  /// Grants that made room for others, of which only this is kept: that their ids were used.
  public static let retiredGrantsMax = 512
  /// Changes of zone or anchor that are remembered, so that a period begun under an old one ends
  /// where it should.
  public static let calendarSettingsMax = 16

  /// 0: nobody ever set this account.
  public var version: Int64
  /// nil: unknown account; the catalog's rule for those decides. See `plan(at:)`.
  public var plan: Name?
  /// When `plan` took effect; nil: before anybody noted it. See `planSince(at:)`.
  public var planSince: WallTime?
  /// The one before it; nil: none, or nobody noted it.
  public var planBefore: Name?
  public var planBeforeSince: WallTime?
  /// What takes the place of `plan` by time; stays here after that time, until the next change.
  public var next: NextPlan?
  public var frozen: Bool
  public var pastDue: PastDue?
  public var overrides: [Override]
  /// Ascending by `since`; empty: UTC.
  public var calendar: [CalendarSetting]
  /// Ids are unique.
  public var grants: [Grant]
  /// `StableHash` of the ids of grants that are gone, so that no id is given twice.
  public var retiredGrants: [UInt64]
  /// The last event of an outside system that was applied here, and its version, so that a late,
  /// out-of-order one cannot set the account back.
  public var sourceID: String?
  public var sourceVersion: Int64
  /// The same of the other systems that were ever heard of.
  public var otherSources: [SourceMark]

  public init(
    version: Int64 = 0, plan: Name? = nil, frozen: Bool = false, overrides: [Override] = [],
    calendar: [CalendarSetting] = [], grants: [Grant] = [], sourceID: String? = nil,
    sourceVersion: Int64 = 0, next: NextPlan? = nil, pastDue: PastDue? = nil,
    otherSources: [SourceMark] = [], retiredGrants: [UInt64] = [], planSince: WallTime? = nil,
    planBefore: Name? = nil, planBeforeSince: WallTime? = nil
  ) {
    self.version = version
    self.plan = plan
    self.frozen = frozen
    self.overrides = overrides
    self.calendar = calendar
    self.grants = grants
    self.sourceID = sourceID
    self.sourceVersion = sourceVersion
    self.next = next
    self.pastDue = pastDue
    self.otherSources = otherSources
    self.retiredGrants = retiredGrants
    self.planSince = planSince
    self.planBefore = planBefore
    self.planBeforeSince = planBeforeSince
  }

  /// The plan in force at an instant.
  public func plan(at now: WallTime) -> Name? {
    guard let next, next.at <= now else { return plan }
    return next.plan
  }

  /// Since when that plan is in force; nil: nobody knows.
  public func planSince(at now: WallTime) -> WallTime? {
    guard let next, next.at <= now else { return planSince }
    return next.at
  }

  /// The plan that was in force at an instant of the past, and since when, as far as it is known at
  /// `now`: of the plan in force and the one before it.
  public func plan(
    at then: WallTime, knownAt now: WallTime
  ) -> (plan: Name?, since: WallTime?) {
    guard let since = planSince(at: now), then < since else {
      return (plan(at: now), planSince(at: now))
    }
    if let next, next.at <= now {
      guard let planSince, then < planSince else { return (plan, planSince) }
    }
    return (planBefore, planBeforeSince)
  }

  /// What still is to come.
  public func next(after now: WallTime) -> NextPlan? {
    next.flatMap { now < $0.at ? $0 : nil }
  }

  /// Whether the grace of a payment that is owed is over.
  public func isPastDue(at now: WallTime) -> Bool {
    pastDue.map { $0.graceEnds <= now } ?? false
  }
}

extension GlobalConfig {
  /// The plan that serves an account: its own, or the one for unknown accounts.
  package func plan(of account: AccountConfig, at now: WallTime) -> Plan? {
    if let name = account.plan(at: now) { return catalog.plans[name] }
    if case .plan(let name) = catalog.unknownAccount { return catalog.plans[name] }
    return nil
  }
}
