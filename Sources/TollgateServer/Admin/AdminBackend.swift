// What the admin handlers need from the rest of a sidecar: reads and writes of configuration,
// counters, the ledger's view, and health. It is a protocol so that the handlers, which hold the
// semantics (dry run, idempotence, optimistic concurrency, explaining), are tested without Redis.
//
// Contract for an implementation:
// - Reads are fresh (Redis, not the sidecar's cache) unless a comment says otherwise.
// - A write is atomic: the new state, its config delta and its audit entry, or nothing.
// - Every method throws `AdminFailure` and nothing else; UNAVAILABLE where Redis or the ledger
//   does not answer in time, OUTCOME_UNKNOWN where a write may or may not have happened (the
//   caller retries with the same operation id).
// - Methods may be called concurrently.

package import TollgateCore

package protocol AdminBackend: Sendable {
  var deployment: Deployment { get }
  /// False for a deployment that runs without a ledger.
  var hasLedger: Bool { get }

  // MARK: Configuration

  /// nil: no catalog was ever applied.
  func globalConfig() async throws(AdminFailure) -> GlobalConfig?
  /// Compare-and-set: `expecting` is the version read (0 where there was none). `config.version`
  /// is already the new one. `before` is the state read, for the audit.
  func writeGlobal(
    _ config: GlobalConfig, before: GlobalConfig?, expecting: Int64, change: ChangeRecord
  ) async throws(AdminFailure) -> WriteOutcome
  /// Makes every bucket's meta carry at least this global version, so that the next script call
  /// of any sidecar with an older one is answered STALE. Monotone, repeatable.
  func publishGlobal(version: Int64) async throws(AdminFailure)
  /// The content of a catalog by its number; nil: never existed or no longer kept.
  func catalog(version: Int64) async throws(AdminFailure) -> Catalog?

  /// The changes of the global configuration that are still known by their ids.
  func globalMemory() async throws(AdminFailure) -> ChangeMemory

  /// Seeds nothing. An account nobody ever set comes back with `config.version` 0.
  func account(_ account: Subject) async throws(AdminFailure) -> AccountState
  /// The same of many, in the order asked, in as few round trips as there can be.
  func accounts(_ accounts: [Subject]) async -> [Result<AccountState, AdminFailure>]
  func writeAccount(
    _ account: Subject, _ config: AccountConfig, before: AccountConfig, expecting: Int64,
    change: ChangeRecord
  ) async throws(AdminFailure) -> WriteOutcome
  /// The same of many different accounts, in the order given. A bucket that holds as much
  /// undelivered as an import may add to answers `crowded`.
  func writeAccounts(_ writes: [AccountWrite]) async -> [Result<WriteOutcome, AdminFailure>]
  /// Waits until none of these buckets is crowded. False: the time passed first.
  func waitForRoom(buckets: Set<Int>, milliseconds: Int64) async -> Bool
  /// Accounts that were ever set or ever used, in an order of the implementation's choosing;
  /// `cursor` nil starts, the page's `next` continues, `next` nil ends. A page may be empty.
  func accounts(after cursor: String?, limit: Int) async throws(AdminFailure) -> AccountPage

  /// Changes, newest first, older than `place`: the ledger's history and what is not delivered
  /// yet as one list. `account` nil: all; "" : the global configuration only.
  func audit(
    account: String?, before place: AuditPlace?, limit: Int
  ) async throws(AdminFailure) -> AuditPage

  // MARK: Counters

  /// All counters of one account in one consistent read, in the order asked.
  func counters(
    account: Subject, quotas: [CounterReference], rates: [RateReference]
  ) async throws(AdminFailure) -> CountersSnapshot
  /// Forgives what is settled in the current period of a counter: its limits start from zero,
  /// while the billing total stays. Answers what was forgiven.
  func resetCounter(
    _ reference: CounterReference, calendar: AccountCalendar, change: ChangeRecord
  ) async throws(AdminFailure) -> ResetOutcome
  func resetRate(
    _ reference: RateReference, change: ChangeRecord
  ) async throws(AdminFailure) -> ResetOutcome

  // MARK: Reconciliation

  /// The ledger's totals of one account with the cursor of its bucket, read in one transaction.
  func ledgerBilling(account: Subject) async throws(AdminFailure) -> LedgerBilling
  /// The same of accounts of one bucket, in their order; some of them may be of a later moment than
  /// others, each with its own cursor.
  func ledgerBillings(_ accounts: [Subject]) async throws(AdminFailure) -> [LedgerBilling]
  /// Accounts that the ledger has numbers of and Redis does not hold, page by page.
  func unloadedAccounts(after cursor: String?) async throws(AdminFailure) -> (
    accounts: [Subject], next: String?
  )
  /// Of each account of one bucket: Redis' totals, the bucket's last sequence number at that
  /// moment, and the account's outbox entries from above its cursor up to that number. The outbox
  /// is read once for all of them, page by page.
  func storeBilling(
    bucket: Int, _ accounts: [(account: Subject, cursor: StreamPosition)]
  ) async throws(AdminFailure) -> [StoreBilling]
  /// Delta ids of one total in the ledger, newest first, at most `limit`.
  func ledgerDeltas(
    account: Subject, feature: Name, window: Window, period: Period, limit: Int
  ) async throws(AdminFailure) -> [BilledDelta]
  /// Of these ids, those that still have an operation record in Redis that says "admitted"
  /// (true) or "denied or cancelled" (false); absent: no record (too old, or never seen).
  func operationRecords(
    account: Subject, _ ids: [OperationID]
  ) async throws(AdminFailure) -> [OperationID: Bool]

  /// The answer recorded for an operation, resolving one of unknown outcome; nil: no record.
  func recordedDecision(
    account: Subject, operation: OperationID
  ) async throws(AdminFailure) -> Decision?

  /// Waits until the ledger has everything of this bucket up to `position` (nil: everything
  /// written up to now). False: the time passed first.
  func waitForLedger(
    bucket: Int, position: StreamPosition?, milliseconds: Int64
  ) async throws(AdminFailure) -> Bool

  // MARK: Corrections and history

  /// Moves what is billed, and the counters with it. `period`: the billing month; of an operation
  /// that `corrects` names, its own.
  func adjust(
    _ adjustment: Adjustment, change: ChangeRecord
  ) async throws(AdminFailure) -> AdjustOutcome
  /// What is left of each feature of an operation, after every correction; empty where the ledger
  /// knows none of its deltas, or it is another account's.
  func left(
    of operation: OperationID, account: Subject
  ) async throws(AdminFailure) -> [Item]
  /// One page of the deltas of an account, grouped.
  func history(_ question: HistoryQuestion) async throws(AdminFailure) -> HistoryPage
  /// The newest deltas of every bucket, born after `since`; at most so many of each.
  func newestDeltas(
    since: WallTime, limit: Int
  ) async throws(AdminFailure) -> [BucketSample]
  /// What passed through this sidecar since this listener asked before; nil: there are too many.
  func tail(
    listener: UInt64, account: Subject?, deniedOnly: Bool, limit: Int
  ) async -> (events: [TailReply.Event], dropped: Int64)?

  // MARK: Leases

  /// Who holds what of an account.
  func leases(of account: Subject) async throws(AdminFailure) -> LeaseListReply
  /// The same of all accounts that have any: about `limit` accounts from `cursor` on.
  func leases(after cursor: String?, limit: Int) async throws(AdminFailure) -> LeaseListReply
  /// What a lessee in doubt holds of an account is free; how many units of counters. Of one that is
  /// live, or not there, nothing. Repeatable.
  func releaseLease(of lessee: LesseeID, account: Subject) async throws(AdminFailure) -> Int64

  // MARK: Health

  /// From the sidecar's own state; never waits for Redis or the ledger, never fails.
  func health() async -> HealthReport
  /// Asks Redis and the ledger; what could not be found out is nil or an error text.
  func doctorFacts() async -> DoctorFacts

  // MARK: What an open policy let through

  /// Of this sidecar, from memory.
  func fallback() async -> FallbackListReply
  /// Puts a parked operation among those to be posted, or forgets it; answers it as it was, nil
  /// where no such operation is parked here. Logged with who asks and why.
  func unpark(
    _ operation: OperationID, _ action: FallbackAction, change: ChangeRecord
  ) async throws(AdminFailure) -> FallbackListReply.Parked?
}

// MARK: - Values

/// Who changes what, why, under which id.
package struct ChangeRecord: Hashable, Sendable {
  package var operation: OperationID
  /// Over the meaning of the request; the same id with another fingerprint is a mismatch.
  package var fingerprint: UInt64
  /// e.g. `catalog.apply`, `limit.set`.
  package var action: String
  package var actor: String
  package var reason: String

  package init(
    operation: OperationID, fingerprint: UInt64, action: String, actor: String, reason: String
  ) {
    self.operation = operation
    self.fingerprint = fingerprint
    self.action = action
    self.actor = actor
    self.reason = reason
  }
}

package enum WriteOutcome: Hashable, Sendable {
  case written(Written)
  /// The same operation was applied before; nothing was written now.
  case replayed(Written)
  /// The state has another version than expected; nothing was written.
  case conflict(current: Int64)
  /// The ledger is behind, and an import has to wait for it; nothing was written.
  case crowded
}

/// One account's change among many.
package struct AccountWrite: Sendable {
  package var account: Subject
  package var config: AccountConfig
  package var before: AccountConfig
  package var change: ChangeRecord

  package init(
    account: Subject, config: AccountConfig, before: AccountConfig, change: ChangeRecord
  ) {
    self.account = account
    self.config = config
    self.before = before
    self.change = change
  }
}

package struct Written: Hashable, Sendable {
  package var version: Int64
  package var bucket: Int
  /// Where the config delta lies; nil where it is not known any more.
  package var position: StreamPosition?
  package var time: WallTime

  package init(version: Int64, bucket: Int, position: StreamPosition?, time: WallTime) {
    self.version = version
    self.bucket = bucket
    self.position = position
    self.time = time
  }
}

package struct Adjustment: Hashable, Sendable {
  package var account: Subject
  package var feature: Name
  package var amount: Int64
  package var period: Period
  /// Whether `period` is the one that runs.
  package var isRunning: Bool
  package var corrects: OperationID?

  package init(
    account: Subject, feature: Name, amount: Int64, period: Period, isRunning: Bool,
    corrects: OperationID?
  ) {
    self.account = account
    self.feature = feature
    self.amount = amount
    self.period = period
    self.isRunning = isRunning
    self.corrects = corrects
  }
}

package enum AdjustOutcome: Hashable, Sendable {
  case adjusted(Written)
  case replayed(Written)
}

package struct HistoryQuestion: Hashable, Sendable {
  /// `day`, `feature`, `level:2`, `attribute:model`.
  package var by: [String]
  package var account: Subject
  /// Only this subject and what lies below it.
  package var subject: Subject
  package var from: WallTime
  package var to: WallTime
  /// The first instants of the days in between, where grouped by day.
  package var days: [WallTime]
  package var feature: Name?
  package var cursor: String?

  package init(
    by: [String], account: Subject, subject: Subject, from: WallTime, to: WallTime,
    days: [WallTime], feature: Name?, cursor: String?
  ) {
    self.by = by
    self.account = account
    self.subject = subject
    self.from = from
    self.to = to
    self.days = days
    self.feature = feature
    self.cursor = cursor
  }
}

package struct HistoryPage: Hashable, Sendable {
  /// A day is the number of milliseconds of its first instant.
  package var rows: [HistoryReply.Row]
  package var next: String?

  package init(rows: [HistoryReply.Row], next: String?) {
    self.rows = rows
    self.next = next
  }
}

/// The newest deltas of one bucket.
package struct BucketSample: Hashable, Sendable {
  package struct Use: Hashable, Sendable {
    package var time: WallTime
    package var account: Subject
    package var feature: Name
    package var units: Int64

    package init(time: WallTime, account: Subject, feature: Name, units: Int64) {
      self.time = time
      self.account = account
      self.feature = feature
      self.units = units
    }
  }

  package var uses: [Use]
  /// There were more than were read.
  package var isCut: Bool
  /// It could not be read.
  package var isUnread: Bool

  package init(uses: [Use], isCut: Bool, isUnread: Bool = false) {
    self.uses = uses
    self.isCut = isCut
    self.isUnread = isUnread
  }
}

package enum ResetOutcome: Hashable, Sendable {
  case reset(forgiven: Int64, Written)
  case replayed(forgiven: Int64, Written)
}

/// One account as Redis (or, where Redis does not have it, the ledger) knows it.
package struct AccountState: Hashable, Sendable {
  package var config: AccountConfig
  package var bucket: Int
  /// True where the counters are seeded under the bucket's current epoch.
  package var isLoaded: Bool
  /// Changes and resets that are still known by their ids.
  package var memory: ChangeMemory

  package init(
    config: AccountConfig, bucket: Int, isLoaded: Bool, memory: ChangeMemory = ChangeMemory()
  ) {
    self.config = config
    self.bucket = bucket
    self.isLoaded = isLoaded
    self.memory = memory
  }
}

package struct AccountPage: Hashable, Sendable {
  package var entries: [Entry]
  package var next: String?

  package struct Entry: Hashable, Sendable {
    package var account: Subject
    package var config: AccountConfig

    package init(account: Subject, config: AccountConfig) {
      self.account = account
      self.config = config
    }
  }

  package init(entries: [Entry], next: String?) {
    self.entries = entries
    self.next = next
  }
}

/// A counter by its identity. `subject` is the owner of the counter (already cut to its level).
package struct CounterReference: Hashable, Sendable {
  package var subject: Subject
  package var feature: Name
  package var window: Window

  package init(subject: Subject, feature: Name, window: Window) {
    self.subject = subject
    self.feature = feature
    self.window = window
  }
}

package struct RateReference: Hashable, Sendable {
  package var subject: Subject
  package var feature: Name
  package var limit: Name

  package init(subject: Subject, feature: Name, limit: Name) {
    self.subject = subject
    self.feature = feature
    self.limit = limit
  }
}

/// What is stored of a counter; all zero where it does not exist.
package struct CounterState: Hashable, Sendable {
  /// Start of the period that `settled` and `held` belong to.
  package var start: WallTime
  package var settled: Int64
  package var held: Int64
  /// Units of this period forgiven by a reset; limits see settled − forgiven.
  package var forgiven: Int64
  package var previousStart: WallTime
  package var previousSettled: Int64
  package var previousHeld: Int64
  /// Of `held`, what sidecars hold in stock.
  package var leased: Int64

  package init(
    start: WallTime, settled: Int64, held: Int64 = 0, forgiven: Int64 = 0,
    previousStart: WallTime = WallTime(milliseconds: 0), previousSettled: Int64 = 0,
    previousHeld: Int64 = 0, leased: Int64 = 0
  ) {
    self.leased = leased
    self.start = start
    self.settled = settled
    self.held = held
    self.forgiven = forgiven
    self.previousStart = previousStart
    self.previousSettled = previousSettled
    self.previousHeld = previousHeld
  }

  package static let empty = CounterState(start: WallTime(milliseconds: 0), settled: 0)

  package var reading: StoredCounter {
    StoredCounter(
      value: CounterValue(
        start: start, settled: settled, held: held, previousStart: previousStart,
        previousSettled: previousSettled, previousHeld: previousHeld),
      forgiven: forgiven, leased: leased)
  }
}

package struct CountersSnapshot: Hashable, Sendable {
  package enum Bucket: String, Hashable, Sendable, Codable {
    /// Answers decisions.
    case ready
    /// Its identity does not match what the sidecars know; waits for a new epoch.
    case fenced
    /// The ledger is collecting what the sidecars retain.
    case recovering
  }

  /// Redis time.
  package var time: WallTime
  package var bucket: Int
  package var bucketState: Bucket
  package var epoch: Int64
  /// False: the account is rebuilt from the ledger at its next request; counters read as zero.
  package var isLoaded: Bool
  /// The versions that a script call must carry now.
  package var globalVersion: Int64
  package var accountVersion: Int64
  package var counters: [CounterState]
  /// Theoretical arrival times in microseconds since 1970; 0 where none is stored.
  package var rates: [Int64]
  /// All of the account's.
  package var leases: [LeaseReport]

  package init(
    time: WallTime, bucket: Int, bucketState: Bucket, epoch: Int64, isLoaded: Bool,
    globalVersion: Int64, accountVersion: Int64, counters: [CounterState], rates: [Int64],
    leases: [LeaseReport] = []
  ) {
    self.leases = leases
    self.time = time
    self.bucket = bucket
    self.bucketState = bucketState
    self.epoch = epoch
    self.isLoaded = isLoaded
    self.globalVersion = globalVersion
    self.accountVersion = accountVersion
    self.counters = counters
    self.rates = rates
  }
}
