// One operation as the store sees it, and the script call that decides it alone.
//
// Why this shape: this is the hot path. What does not change between calls is in `DecidePlan`; the
// rest is one 32-byte id with fingerprint, one short run of numbers and the delta bodies. The reply
// of the usual case is one bulk string, and that string is also what Redis remembers of the
// operation, so a replayed answer is the same bytes. Operations of one bucket travel together
// (`DecideBatch`); one alone is a batch of one.

package import TollgateCore

/// The ceilings a call brings along; every sidecar of a deployment should be configured alike.
package struct StoreLimits: Hashable, Sendable {
  /// How long an operation id is remembered. At most `OperationSlice.windowMaxMilliseconds`.
  package var dedupeWindowMilliseconds: Int64 = 3_600_000
  /// Per bucket: bytes of records of each class. Money is denied above it; volume is swept down
  /// to it, and denied a quarter above.
  package var moneyRecordBytesMax: Int64 = 64 << 20
  package var volumeRecordBytesMax: Int64 = 64 << 20
  /// Per bucket: entries not yet acknowledged; above it every metered admission is OUTBOX_FULL.
  package var outboxEntriesMax: Int64 = 1_000_000

  package init() {}

  package func recordBytesMax(_ recordClass: RecordClass) -> Int64 {
    recordClass == .money ? moneyRecordBytesMax : volumeRecordBytesMax
  }
}

/// One operation, resolved and ready to be decided. On its way it changes hands often.
package final class DecideOperation: Sendable {
  package enum Mode: Int64, Sendable, Hashable {
    case consume = 0
    /// Asks only; nothing is written, nothing remembered.
    case check = 1
    /// Records what was admitted elsewhere: no limit denies, no ceiling applies.
    case post = 2
    /// As `consume`, but a denial for want of units or tokens that leases may hold leaves no
    /// record: the same id is asked again when they were asked for.
    case consumeBeforeRecall = 3
  }

  package let id: OperationID
  package let fingerprint: OperationFingerprint
  package let mode: Mode
  package let plan: DecidePlan
  /// The account's header; where the plan reads deeper hashes, the index and these follow.
  package let keys: [String]
  /// One body for each of `plan.meteredItems`, in that order; empty for `check`.
  package let bodies: [[UInt8]]
  package let globalVersion: Int64
  package let accountVersion: Int64
  /// Redis time after which the caller no longer waits: then nothing is done.
  package let notAfter: WallTime?

  package init(
    id: OperationID, fingerprint: OperationFingerprint, mode: Mode, plan: DecidePlan,
    keys: [String], bodies: [[UInt8]], globalVersion: Int64, accountVersion: Int64,
    notAfter: WallTime?
  ) {
    precondition(mode == .check || bodies.count == plan.meteredItems.count)
    self.id = id
    self.fingerprint = fingerprint
    self.mode = mode
    self.plan = plan
    self.keys = keys
    self.bodies = bodies
    self.globalVersion = globalVersion
    self.accountVersion = accountVersion
    self.notAfter = notAfter
  }

  /// The deltas it bore, as the ledger will get them: what a sidecar retains.
  package func entries(_ decided: DecidedOperation) -> [OutboxEntry] {
    decided.entries.compactMap { born in
      guard let at = plan.meteredItems.firstIndex(of: Int(born.index)), at < bodies.count else {
        return nil
      }
      let amount = plan.items[Int(born.index)].amount
      return OutboxEntry(
        sequence: born.sequence, kind: .usage, id: DeltaID(operation: id, index: born.index),
        time: decided.bornAt, actual: amount, charged: amount, absorbed: 0, body: bodies[at])
    }
  }
}

extension KeySpace {
  /// `DecideOperation.keys` of a subject under a plan.
  package func keys(_ bucket: Int, of subject: Subject, _ plan: DecidePlan) -> [String] {
    let account = subject.account
    guard !plan.levels.isEmpty else { return [self.subject(bucket, account)] }
    return [self.subject(bucket, account), index(bucket, account: account)]
      + plan.levels.map { self.subject(bucket, subject.prefix($0)) }
  }
}

/// One operation by itself.
package struct DecideCall: ScriptCall {
  package typealias Mode = DecideOperation.Mode

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var subject: Subject
  package var asked: DecideOperation
  package var limits: StoreLimits

  /// - Parameter bucket: nil: the account's.
  package init(
    keySpace: KeySpace, bucket: Int? = nil, fence: Fence, operation: OperationID,
    fingerprint: OperationFingerprint, mode: Mode, subject: Subject, plan: DecidePlan,
    bodies: [[UInt8]], globalVersion: Int64, accountVersion: Int64,
    limits: StoreLimits = StoreLimits(), notAfter: WallTime? = nil
  ) {
    let bucket = bucket ?? keySpace.bucket(of: subject)
    self.keySpace = keySpace
    self.bucket = bucket
    self.fence = fence
    self.subject = subject
    self.limits = limits
    asked = DecideOperation(
      id: operation, fingerprint: fingerprint, mode: mode, plan: plan,
      keys: keySpace.keys(bucket, of: subject, plan), bodies: bodies,
      globalVersion: globalVersion, accountVersion: accountVersion, notAfter: notAfter)
  }

  package var operation: OperationID { asked.id }
  package var plan: DecidePlan { asked.plan }
  package var script: ScriptName { asked.mode == .check ? .check : .decide }

  var batch: DecideBatch {
    DecideBatch(
      keySpace: keySpace, bucket: bucket, fence: fence, limits: limits, script: script,
      operations: [asked])
  }

  package var keys: [String] { batch.keys }
  package var arguments: [RESPArgument] { batch.arguments }
  package func decode(_ reply: RESPReply) -> DecideReply { batch.decode(reply)[0] }

  /// See `DecideOperation.entries`.
  package func entries(_ decided: DecidedOperation) -> [OutboxEntry] { asked.entries(decided) }
}
