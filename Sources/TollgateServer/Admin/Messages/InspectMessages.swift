// Looking: usage, explain, resets, the audit log, reconciliation.

package import TollgateCore

package struct UsageRequest: Hashable, Sendable, Codable {
  package var subject: Subject

  package init(subject: Subject) { self.subject = subject }
}

package struct UsageReply: Hashable, Sendable, Codable {
  package struct Row: Hashable, Sendable, Codable {
    package var feature: Name
    /// nil: the billing total, which no limit is held against.
    package var limit: Name?
    package var level: Int
    package var owner: Subject
    /// A window word, or `rate`.
    package var window: String
    package var period: Period?
    package var settled: Int64
    package var held: Int64
    package var forgiven: Int64
    /// nil: unlimited.
    package var amount: Int64?
    package var remaining: Int64?
    package var reset: WallTime?
    package var enforcement: String
    package var unit: String
  }

  package var subject: Subject
  package var time: WallTime
  package var plan: Name?
  package var globalVersion: Int64
  package var accountVersion: Int64
  /// False: counters are rebuilt from the ledger at the next request and read as zero until then.
  package var loaded: Bool
  package var bucketState: CountersSnapshot.Bucket
  package var usage: [Row]
}

package struct ExplainRequest: Hashable, Sendable, Codable {
  package struct Item: Hashable, Sendable, Codable {
    package var feature: Name
    package var amount: Int64

    package init(feature: Name, amount: Int64) {
      self.feature = feature
      self.amount = amount
    }
  }

  package var subject: Subject
  package var items: [Item]
  /// As a request would have them: rates go by them.
  package var attributes: [String: String]?

  package init(subject: Subject, items: [Item], attributes: [String: String]? = nil) {
    self.subject = subject
    self.items = items
    self.attributes = attributes
  }
}

package struct ExplainReply: Hashable, Sendable, Codable {
  /// One limit, in the order in which the script looks at them.
  package struct Step: Hashable, Sendable, Codable {
    package var order: Int
    package var feature: Name
    package var limit: Name
    package var kind: String
    package var level: Int
    package var owner: Subject
    package var enforcement: String
    package var failurePolicy: String
    package var amount: Int64?
    package var window: String?
    package var period: Period?
    package var settled: Int64?
    package var held: Int64?
    package var forgiven: Int64?
    package var remaining: Int64?
    package var reset: WallTime?
    /// `passes`, or the reason it would deny for.
    package var verdict: String
    /// True for the limit that decides.
    package var binding: Bool
    /// In words.
    package var why: String
    package var overrides: [OverrideReport]
    /// Of a credit: what it burns from, in that order.
    package var grants: [Burn]?
    /// Of a credit: units that no grant covers.
    package var overage: Int64?
    /// Of a credit: units owed from before.
    package var owed: Int64?
  }

  /// One grant in the order of burning, as it stands before the request.
  package struct Burn: Hashable, Sendable, Codable {
    package var grant: Name
    package var amount: Int64
    /// What came over from the instance before.
    package var carried: Int64
    package var burnt: Int64
    package var held: Int64
    package var left: Int64
    /// What the request would burn.
    package var burns: Int64
    package var ends: WallTime?
    package var voided: Bool
  }

  /// Units of one feature charged to another.
  package struct Price: Hashable, Sendable, Codable {
    package var rate: Name
    /// Since when this version of the rate holds.
    package var from: WallTime
    package var feature: Name
    package var into: Name
    /// `all` or `overage`: which units.
    package var of: String
    package var units: Int64
    package var charge: Int64
    /// So much for so many units, in lowest terms.
    package var price: Int64
    package var per: Int64
    /// Units of this month that the rate has charged so far.
    package var unitsBefore: Int64
  }

  package var subject: Subject
  package var time: WallTime
  package var allowed: Bool
  package var reason: String
  package var summary: String
  package var retryAfterMilliseconds: Int64?
  package var plan: Name?
  /// How the plan was found: `account`, `unknown-account rule`, `none`.
  package var planSource: String
  package var next: NextPlanReport?
  package var frozen: Bool
  package var pastDue: PastDueReport?
  package var globalVersion: Int64
  package var catalogVersion: Int64
  package var accountVersion: Int64
  package var bucket: Int
  package var bucketState: CountersSnapshot.Bucket
  package var epoch: Int64
  package var loaded: Bool
  package var bypasses: [BypassListReply.Row]
  /// What is charged to what before any limit is looked at.
  package var prices: [Price]
  package var steps: [Step]
  /// Who holds something of what the steps are about in stock.
  package var leases: [LeaseReport]?
  /// Things beside the limits that matter: a rebuild that is due, versions that differ.
  package var notes: [String]
}

package struct ResetRequest: Hashable, Sendable, Codable {
  package var subject: Subject
  package var limit: Name
  package var change: ChangeOptions

  package init(subject: Subject, limit: Name, change: ChangeOptions) {
    self.subject = subject
    self.limit = limit
    self.change = change
  }
}

package struct ResetReply: Hashable, Sendable, Codable {
  package var change: ChangeReply
  package var owner: Subject
  package var feature: Name
  /// Units forgiven now.
  package var forgiven: Int64
}

package struct AuditRequest: Hashable, Sendable, Codable {
  package static let limitMax = 1000

  /// nil: all; "": the global configuration only.
  package var account: String?
  package var before: WallTime?
  /// The `next` of the page before; excludes `before`.
  package var after: String?
  package var limit: Int

  package init(
    account: String? = nil, before: WallTime? = nil, after: String? = nil, limit: Int = 50
  ) {
    self.account = account
    self.before = before
    self.after = after
    self.limit = limit
  }
}

package struct AuditReply: Hashable, Sendable, Codable {
  package struct Row: Hashable, Sendable, Codable {
    package var time: WallTime
    package var operation: OperationID?
    package var action: String
    package var scope: String
    package var key: String
    package var version: Int64
    package var actor: String
    package var reason: String
    package var before: String
    package var after: String
    package var delivered: Bool
  }

  package var entries: [Row]
  /// `read`: the ledger's history is in the list; `none`: there is no ledger; `unreachable`: only
  /// recent changes are in the list.
  package var ledger: String
  package var ledgerProblem: String
  /// Give it as `after` for older ones; nil: that was all.
  package var next: String?
}

// MARK: - Reconciliation

package struct ReconcileRequest: Hashable, Sendable, Codable {
  package static let limitMax = 500

  /// nil: all accounts, page by page.
  package var account: Subject?
  package var after: String?
  package var limit: Int
  /// Also accounts and totals without a difference.
  package var verbose: Bool

  package init(
    account: Subject? = nil, after: String? = nil, limit: Int = 200, verbose: Bool = false
  ) {
    self.account = account
    self.after = after
    self.limit = limit
    self.verbose = verbose
  }
}

package struct ReconcileReply: Hashable, Sendable, Codable {
  package struct Row: Hashable, Sendable, Codable {
    package var account: Subject
    package var feature: Name
    /// The counter's window code; nil: the bill.
    package var window: String?
    package var period: Period
    package var redis: Int64
    package var ledger: Int64
    package var undelivered: Int64
    /// redis − (ledger + undelivered).
    package var difference: Int64
    /// What explains it, one line per delta id or fact.
    package var explanation: [String]
  }

  package struct Skipped: Hashable, Sendable, Codable {
    package var account: Subject
    package var why: String
    /// True where only the ledger has numbers, so that there is nothing to compare: the account is
    /// not loaded in Redis and has nothing undelivered.
    package var idle: Bool
  }

  /// Differing rows; with `verbose` all.
  package var rows: [Row]
  package var accounts: Int
  /// Totals compared.
  package var totals: Int
  /// Sum of |difference|.
  package var difference: Int64
  package var redis: Int64
  package var ledger: Int64
  package var undelivered: Int64
  /// Accounts that could not be compared, and why.
  package var skipped: [Skipped]
  package var next: String?

  package init() {
    rows = []
    accounts = 0
    totals = 0
    difference = 0
    redis = 0
    ledger = 0
    undelivered = 0
    skipped = []
    next = nil
  }
}

// MARK: - Doctor

package struct Finding: Hashable, Sendable, Codable {
  package enum Severity: String, Hashable, Sendable, Codable, Comparable {
    case ok, advice, warning, error

    var rank: Int {
      switch self {
      case .ok: 0
      case .advice: 1
      case .warning: 2
      case .error: 3
      }
    }
    package static func < (a: Self, b: Self) -> Bool { a.rank < b.rank }
  }

  package var check: String
  package var severity: Severity
  /// What was found.
  package var found: String
  /// What to do; empty for `ok`.
  package var fix: String

  package init(_ check: String, _ severity: Severity, _ found: String, fix: String = "") {
    self.check = check
    self.severity = severity
    self.found = found
    self.fix = fix
  }
}

package struct DoctorReply: Hashable, Sendable, Codable {
  package var findings: [Finding]

  package init(findings: [Finding]) { self.findings = findings }
}

// MARK: - One operation

package struct ResolveOperationRequest: Hashable, Sendable, Codable {
  package var account: Subject
  package var operation: OperationID

  package init(account: Subject, operation: OperationID) {
    self.account = account
    self.operation = operation
  }
}

package struct ResolveOperationReply: Hashable, Sendable, Codable {
  package var operation: OperationID
  /// False: it never happened, or it is older than the dedupe window.
  package var known: Bool
  /// The answer it got.
  package var decision: Document?
}
