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
  public var reason: String
  public var author: String

  public init(
    subject: Subject, limit: Name, change: Change, expires: WallTime?, reason: String,
    author: String
  ) {
    self.subject = subject
    self.limit = limit
    self.change = change
    self.expires = expires
    self.reason = reason
    self.author = author
  }
}

public struct AccountConfig: Hashable, Sendable {
  public static let overridesMax = 256
  public static let grantsMax = 64
  /// Changes of zone or anchor that are remembered, so that a period begun under an old one ends
  /// where it should.
  public static let calendarSettingsMax = 16

  /// 0: nobody ever set this account.
  public var version: Int64
  /// nil: unknown account; the catalog's rule for those decides.
  public var plan: Name?
  public var frozen: Bool
  public var overrides: [Override]
  /// Ascending by `since`; empty: UTC.
  public var calendar: [CalendarSetting]
  /// Ids are unique.
  public var grants: [Grant]
  /// The last event of an outside system that was applied here, and its version, so that a late,
  /// out-of-order one cannot set the account back.
  public var sourceID: String?
  public var sourceVersion: Int64

  public init(
    version: Int64 = 0, plan: Name? = nil, frozen: Bool = false, overrides: [Override] = [],
    calendar: [CalendarSetting] = [], grants: [Grant] = [], sourceID: String? = nil,
    sourceVersion: Int64 = 0
  ) {
    self.version = version
    self.plan = plan
    self.frozen = frozen
    self.overrides = overrides
    self.calendar = calendar
    self.grants = grants
    self.sourceID = sourceID
    self.sourceVersion = sourceVersion
  }
}
