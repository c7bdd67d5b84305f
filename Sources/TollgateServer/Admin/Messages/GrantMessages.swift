// Grants of an account.

package import TollgateCore

package struct GrantAddRequest: Hashable, Sendable, Codable {
  package var account: Subject
  package var feature: Name
  package var amount: Int64
  /// nil: made from the operation id.
  package var id: Name?
  /// `paid` (where absent) or `promotional`.
  package var kind: String?
  package var priority: Int64?
  /// nil: now.
  package var effective: WallTime?
  /// nil: never.
  package var expires: WallTime?
  /// A new instance in each period of this window.
  package var every: String?
  package var rolloverMin: Int64?
  package var rolloverMax: Int64?
  package var sourceID: String?
  package var sourceVersion: Int64?
  package var change: ChangeOptions

  package init(
    account: Subject, feature: Name, amount: Int64, id: Name? = nil, kind: String? = nil,
    priority: Int64? = nil, effective: WallTime? = nil, expires: WallTime? = nil,
    every: String? = nil, rolloverMin: Int64? = nil, rolloverMax: Int64? = nil,
    sourceID: String? = nil, sourceVersion: Int64? = nil, change: ChangeOptions
  ) {
    self.account = account
    self.feature = feature
    self.amount = amount
    self.id = id
    self.kind = kind
    self.priority = priority
    self.effective = effective
    self.expires = expires
    self.every = every
    self.rolloverMin = rolloverMin
    self.rolloverMax = rolloverMax
    self.sourceID = sourceID
    self.sourceVersion = sourceVersion
    self.change = change
  }
}

package struct GrantVoidRequest: Hashable, Sendable, Codable {
  package var account: Subject
  package var id: Name
  package var sourceID: String?
  package var sourceVersion: Int64?
  package var change: ChangeOptions

  package init(
    account: Subject, id: Name, sourceID: String? = nil, sourceVersion: Int64? = nil,
    change: ChangeOptions
  ) {
    self.account = account
    self.id = id
    self.sourceID = sourceID
    self.sourceVersion = sourceVersion
    self.change = change
  }
}

package struct GrantListRequest: Hashable, Sendable, Codable {
  package var account: Subject
  package var feature: Name?

  package init(account: Subject, feature: Name? = nil) {
    self.account = account
    self.feature = feature
  }
}

package struct GrantListReply: Hashable, Sendable, Codable {
  package var account: Subject
  /// Redis time.
  package var time: WallTime
  package var plan: Name?
  /// False: counters are rebuilt from the ledger at the next request and read as zero until then.
  package var loaded: Bool
  /// By feature; those that are burnt from now first, in that order.
  package var grants: [GrantReport]
  /// What is owed, by feature: paid by the next grant before anything else is burnt.
  package var owed: [Owed]

  package struct Owed: Hashable, Sendable, Codable {
    package var feature: Name
    package var units: Int64
  }
}

package struct GrantReport: Hashable, Sendable, Codable {
  package enum State: String, Hashable, Sendable, Codable {
    /// Burnt from when its turn comes.
    case active
    /// Active, but nothing is left in this instance.
    case usedUp = "used-up"
    /// Not effective yet.
    case scheduled
    case expired
    case voided
    /// The plan's own grant has this id.
    case hidden
    /// The plan has no `credit` limit of the feature, so nothing is burnt from it.
    case idle
  }

  package var id: Name
  package var feature: Name
  /// The plan in force gives it; it goes with the plan.
  package var ofPlan: Bool
  package var kind: String
  package var priority: Int64
  package var state: State
  /// 1: burnt from first.
  package var order: Int?
  /// Of each instance.
  package var amount: Int64
  /// What came over from the instance before.
  package var carried: Int64
  /// nil: its counter is gone; the ledger's statement has it.
  package var burnt: Int64?
  package var held: Int64?
  package var left: Int64
  /// The instance these numbers are of.
  package var period: Period?
  package var effective: WallTime
  package var expires: WallTime?
  package var created: WallTime
  package var every: Window?
  package var rolloverMin: Int64?
  package var rolloverMax: Int64?
  package var voided: WallTime?
  package var reason: String
  package var author: String
}
