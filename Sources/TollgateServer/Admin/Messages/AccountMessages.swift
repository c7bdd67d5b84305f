// Accounts and the overrides of their limits.

package import TollgateCore

package struct AccountSetRequest: Hashable, Sendable, Codable {
  package var account: Subject
  /// nil: keep.
  package var plan: Name?
  package var frozen: Bool?
  /// IANA name of the zone whose calendar the account's periods follow.
  package var zone: String?
  /// Where anchored windows are laid out from.
  package var anchor: WallTime?
  /// Anchored windows follow the calendar again.
  package var dropAnchor: Bool?
  /// Anchored windows begin a new period when the change comes into force.
  package var restart: Bool?
  /// The outside system whose event this is, and that event's version: an older one is ignored.
  package var sourceID: String?
  package var sourceVersion: Int64?
  package var change: ChangeOptions

  package init(
    account: Subject, plan: Name?, frozen: Bool? = nil, zone: String? = nil,
    anchor: WallTime? = nil, dropAnchor: Bool? = nil, restart: Bool? = nil, sourceID: String? = nil,
    sourceVersion: Int64? = nil, change: ChangeOptions
  ) {
    self.account = account
    self.plan = plan
    self.frozen = frozen
    self.zone = zone
    self.anchor = anchor
    self.dropAnchor = dropAnchor
    self.restart = restart
    self.sourceID = sourceID
    self.sourceVersion = sourceVersion
    self.change = change
  }
}

package struct AccountImportRequest: Hashable, Sendable, Codable {
  package static let rowsMax = 1000
  package static let rowNumberMax = Int(UInt32.max) - rowsMax

  package struct Row: Hashable, Sendable, Codable {
    package var account: String
    package var plan: String
    package var frozen: Bool?
    /// As in account.set; absent: as it is.
    package var zone: String?
    package var anchor: WallTime?
    package var sourceVersion: Int64?

    package init(
      account: String, plan: String, frozen: Bool? = nil, zone: String? = nil,
      anchor: WallTime? = nil, sourceVersion: Int64? = nil
    ) {
      self.account = account
      self.plan = plan
      self.frozen = frozen
      self.zone = zone
      self.anchor = anchor
      self.sourceVersion = sourceVersion
    }
  }

  package var rows: [Row]
  /// Number of the first row in its file: part of each row's operation id and of messages.
  package var firstRow: Int
  package var sourceID: String?
  package var change: ChangeOptions

  package init(rows: [Row], firstRow: Int, sourceID: String?, change: ChangeOptions) {
    self.rows = rows
    self.firstRow = firstRow
    self.sourceID = sourceID
    self.change = change
  }
}

package struct AccountImportReply: Hashable, Sendable, Codable {
  package struct Failure: Hashable, Sendable, Codable {
    package var row: Int
    /// The line of the file, where whoever read it knows.
    package var line: Int?
    package var account: String
    package var code: String
    package var reason: String

    package init(row: Int, line: Int? = nil, account: String, code: String, reason: String) {
      self.row = row
      self.line = line
      self.account = account
      self.code = code
      self.reason = reason
    }
  }

  package var applied: Int
  package var unchanged: Int
  package var ignored: Int
  package var replayed: Int
  package var failed: [Failure]
  /// Failed rows beyond the list, where whoever adds replies up bounds it.
  package var failedUnlisted: Int
  package var dryRun: Bool
  package var deniedAtOnce: Int
  package var durable: Durability

  package init(
    applied: Int = 0, unchanged: Int = 0, ignored: Int = 0, replayed: Int = 0,
    failed: [Failure] = [], failedUnlisted: Int = 0, dryRun: Bool = false, deniedAtOnce: Int = 0,
    durable: Durability = .redis
  ) {
    self.applied = applied
    self.unchanged = unchanged
    self.ignored = ignored
    self.replayed = replayed
    self.failed = failed
    self.failedUnlisted = failedUnlisted
    self.dryRun = dryRun
    self.deniedAtOnce = deniedAtOnce
    self.durable = durable
  }
}

package struct AccountRequest: Hashable, Sendable, Codable {
  package var account: Subject

  package init(account: Subject) { self.account = account }
}

package struct AccountReply: Hashable, Sendable, Codable {
  package var account: Subject
  package var version: Int64
  /// nil: the catalog's rule for unknown accounts applies.
  package var plan: Name?
  /// Whether the plan is in the catalog; false explains an UNKNOWN_ACCOUNT denial.
  package var planKnown: Bool
  /// What takes the plan's place by time.
  package var next: NextPlanReport?
  package var frozen: Bool
  package var pastDue: PastDueReport?
  /// Oldest first; empty: UTC, without an anchor. The last is in force from its `since` on.
  package var calendar: [CalendarReport]
  package var sourceID: String?
  package var sourceVersion: Int64
  package var otherSources: [SourceReport]
  package var bucket: Int
  package var loaded: Bool
  package var overrides: [OverrideReport]
  /// How many there are; `grant.list` shows them.
  package var grants: Int
}

package struct SourceReport: Hashable, Sendable, Codable {
  package var id: String
  package var version: Int64
}

/// Zone and anchor from one instant on.
package struct CalendarReport: Hashable, Sendable, Codable {
  package var zone: String
  package var anchor: WallTime?
  package var since: WallTime?
  package var restarts: Bool

  package init(_ setting: CalendarSetting) {
    zone = setting.zone
    anchor = setting.anchor
    since = setting.since
    restarts = setting.restarts
  }
}

package struct AccountListRequest: Hashable, Sendable, Codable {
  package static let limitMax = 1000

  package var after: String?
  package var limit: Int
  /// Only accounts of this plan.
  package var plan: Name?

  package init(after: String? = nil, limit: Int = 100, plan: Name? = nil) {
    self.after = after
    self.limit = limit
    self.plan = plan
  }
}

package struct AccountListReply: Hashable, Sendable, Codable {
  package struct Row: Hashable, Sendable, Codable {
    package var account: Subject
    package var plan: Name?
    package var next: NextPlanReport?
    package var frozen: Bool
    /// True: the grace of a payment that is owed is over.
    package var pastDue: Bool?
    package var overrides: Int
    package var version: Int64
  }

  package var accounts: [Row]
  /// Give it as `after` to continue; nil: that was all.
  package var next: String?

  package init(accounts: [Row], next: String?) {
    self.accounts = accounts
    self.next = next
  }
}

// MARK: - Overrides

/// One override as text and numbers.
package struct OverrideReport: Hashable, Sendable, Codable {
  package var subject: Subject
  package var limit: Name
  /// `amount`, `unlimited`, `enabled` or `enforcement`.
  package var change: String
  /// The new value as text: a number, `true`, `shadow`.
  package var value: String
  package var expires: WallTime?
  package var reason: String
  package var author: String

  package init(_ override: Override) {
    subject = override.subject
    limit = override.limit
    (change, value) =
      switch override.change {
      case .amount(let amount): ("amount", "\(amount)")
      case .unlimited: ("unlimited", "true")
      case .enabled(let on): ("enabled", "\(on)")
      case .enforcement(let enforcement): ("enforcement", enforcement.rawValue)
      }
    expires = override.expires
    reason = override.reason
    author = override.author
  }

  package var text: String { change == "unlimited" ? change : "\(change)=\(value)" }
}

package struct LimitSetRequest: Hashable, Sendable, Codable {
  package var subject: Subject
  package var limit: Name
  /// Exactly one of the next two, or none; `enabled` is for gates.
  package var amount: Int64?
  package var unlimited: Bool?
  package var enabled: Bool?
  package var enforcement: String?
  /// nil: until unset.
  package var expires: WallTime?
  package var sourceID: String?
  package var sourceVersion: Int64?
  package var change: ChangeOptions

  package init(
    subject: Subject, limit: Name, amount: Int64? = nil, unlimited: Bool? = nil,
    enabled: Bool? = nil, enforcement: String? = nil, expires: WallTime? = nil,
    sourceID: String? = nil, sourceVersion: Int64? = nil, change: ChangeOptions
  ) {
    self.subject = subject
    self.limit = limit
    self.amount = amount
    self.unlimited = unlimited
    self.enabled = enabled
    self.enforcement = enforcement
    self.expires = expires
    self.sourceID = sourceID
    self.sourceVersion = sourceVersion
    self.change = change
  }
}

package struct LimitUnsetRequest: Hashable, Sendable, Codable {
  package var subject: Subject
  package var limit: Name
  package var sourceID: String?
  package var sourceVersion: Int64?
  package var change: ChangeOptions

  package init(
    subject: Subject, limit: Name, sourceID: String? = nil, sourceVersion: Int64? = nil,
    change: ChangeOptions
  ) {
    self.subject = subject
    self.limit = limit
    self.sourceID = sourceID
    self.sourceVersion = sourceVersion
    self.change = change
  }
}

package struct LimitListRequest: Hashable, Sendable, Codable {
  package var subject: Subject

  package init(subject: Subject) { self.subject = subject }
}

package struct LimitListReply: Hashable, Sendable, Codable {
  package struct Row: Hashable, Sendable, Codable {
    package var feature: Name
    package var limit: Name
    package var kind: String
    package var level: Int
    /// `1000 per month`, `60 per 60s, burst 60`, `on`, `unlimited`.
    package var inPlan: String
    /// What holds now, after overrides and bypasses.
    package var inForce: String
    package var enforcement: String
    package var failurePolicy: String
    package var overridden: Bool
  }

  package var subject: Subject
  package var plan: Name?
  package var limits: [Row]
  package var overrides: [OverrideReport]
}
