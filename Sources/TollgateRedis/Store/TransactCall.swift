// One operation that is about more than quotas and rates, as a script call, and the first step of a
// reservation. The bodies of its deltas are made by the script, since only it knows what was burnt
// and charged; they come back with the answer, for the sidecar to hold until the ledger has them.

package import TollgateCore

/// What `transact` and `settle` answered.
package struct RichReply: Hashable, Sendable {
  package var answer: DecideReply
  /// The hold as it is now (part_hold.lua); empty: there is none.
  package var hold: [UInt8] = []
  /// One for each entry of the answer.
  package var bodies: [[UInt8]] = []

  init(_ reply: RESPReply) {
    answer = DecideReply(reply)
    guard case .decided = answer, let parts = reply.array, parts.count >= 4 else { return }
    hold = parts[3].bytes ?? []
    bodies = parts[4...].map { $0.bytes ?? [] }
  }

  /// The deltas it bore, as the ledger will get them.
  package func entries(of operation: OperationID, _ decided: DecidedOperation) -> [OutboxEntry] {
    guard bodies.count == decided.entries.count else { return [] }
    return zip(decided.entries, bodies).compactMap { born, body in
      guard decided.billed.indices.contains(Int(born.index)) else { return nil }
      let billed = decided.billed[Int(born.index)]
      return OutboxEntry(
        sequence: born.sequence, kind: .usage, id: DeltaID(operation: operation, index: born.index),
        time: decided.bornAt, actual: billed.actual, charged: billed.charged,
        absorbed: billed.absorbed, body: body)
    }
  }
}

/// How long a reservation lives, and what becomes of use beyond it.
package struct ReserveTerms: Hashable, Sendable {
  package var ttlMilliseconds: Int64
  package var overrun: OverrunPolicy
  /// Live ones of one account.
  package var holdsMax: Int

  package init(
    ttlMilliseconds: Int64 = HoldBounds.ttlDefault, overrun: OverrunPolicy = .standard,
    holdsMax: Int = HoldBounds.perSubjectMax
  ) {
    self.ttlMilliseconds = ttlMilliseconds
    self.overrun = overrun
    self.holdsMax = holdsMax
  }

  fileprivate var policy: (number: Int, bound: Int64) {
    switch overrun {
    case .reject: (0, 0)
    case .clamp: (1, 0)
    case .overdraft(let bound): (2, bound)
    }
  }
}

package struct TransactCall: ScriptCall {
  package enum Mode: Hashable, Sendable {
    case consume, check, post
    case reserve(ReserveTerms)
    /// As in `DecideOperation.Mode`.
    case consumeBeforeRecall

    fileprivate var number: Int {
      switch self {
      case .consume: 0
      case .check: 1
      case .post: 2
      case .reserve: 3
      case .consumeBeforeRecall: 4
      }
    }
  }

  /// In the first moments of an epoch nothing is let in: holds are still being brought.
  package static let settlingMilliseconds: Int64 = 1000

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var operation: OperationID
  package var fingerprint: OperationFingerprint
  package var mode: Mode
  package var subject: Subject
  package var plan: RichPlan
  /// Items that the request named; the plan has derived ones behind them.
  package var asked: Int
  /// Fields 5 to 8 of the delta bodies.
  package var common: [UInt8]
  package var globalVersion: Int64
  package var accountVersion: Int64
  package var limits: StoreLimits
  package var notAfter: WallTime?
  /// Of a post: the ledger was asked and does not know it, so its age is no reason to refuse it.
  package var isVouched = false

  package init(
    keySpace: KeySpace, fence: Fence, operation: OperationID, fingerprint: OperationFingerprint,
    mode: Mode, subject: Subject, plan: RichPlan, asked: Int, common: [UInt8],
    globalVersion: Int64, accountVersion: Int64, limits: StoreLimits = StoreLimits(),
    notAfter: WallTime? = nil
  ) {
    self.keySpace = keySpace
    bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.operation = operation
    self.fingerprint = fingerprint
    self.mode = mode
    self.subject = subject
    self.plan = plan
    self.asked = asked
    self.common = common
    self.globalVersion = globalVersion
    self.accountVersion = accountVersion
    self.limits = limits
    self.notAfter = notAfter
  }

  package var script: ScriptName { mode == .check ? .transactCheck : .transact }

  package var keys: [String] {
    var keys = keySpace.operationKeys(bucket, operation, plan.recordClass)
    keys += keySpace.subjectKeys(bucket, subject)
    if case .reserve = mode { keys += keySpace.holdKeys(bucket, subject) }
    return keys
  }

  package var arguments: [RESPArgument] {
    var terms = ReserveTerms()
    if case .reserve(let asked) = mode { terms = asked }
    var writer = MessagePackWriter(capacity: 128)
    writer.append(String(fence.epoch))
    writer.append(fence.epoch)
    writer.append(limits.dedupeWindowMilliseconds)
    writer.append(limits.recordBytesMax(.money))
    writer.append(limits.recordBytesMax(.volume))
    writer.append(limits.outboxEntriesMax)
    writer.append(mode.number)
    writer.append(globalVersion)
    writer.append(accountVersion)
    writer.append(operation.time.milliseconds)
    writer.append(notAfter?.milliseconds ?? 0)
    writer.append(plan.recordClass.letter)
    writer.append(OperationSlice.of(operation.time))
    writer.append(asked)
    writer.append(subject.depth)
    writer.append(terms.ttlMilliseconds)
    writer.append(terms.policy.number)
    writer.append(terms.policy.bound)
    writer.append(terms.holdsMax)
    writer.append(fence.epoch > 1 ? Self.settlingMilliseconds : 0)
    writer.append(isVouched ? 1 : 0)
    return fence.arguments + [
      .bytes(writer.bytes), .bytes(operation.bytes + fingerprint.bytes), .bytes(plan.bytes),
      .string(subject.path), .bytes(common),
    ]
  }

  package func decode(_ reply: RESPReply) -> RichReply { RichReply(reply) }
}

extension KeySpace {
  /// Meta, outbox and the slices of an operation's id: the first four keys of a script that
  /// remembers what it did.
  func operationKeys(
    _ bucket: Int, _ operation: OperationID, _ recordClass: RecordClass
  ) -> [String] {
    let slice = OperationSlice.of(operation.time)
    return [
      meta(bucket), outbox(bucket), operations(bucket, recordClass, slice: slice),
      operations(bucket, recordClass.other, slice: slice),
    ]
  }

  /// The account header, the hashes of every deeper level, and their index where there are any.
  func subjectKeys(_ bucket: Int, _ subject: Subject) -> [String] {
    let levels = (1...subject.depth).map { self.subject(bucket, subject.prefix($0)) }
    return subject.depth == 1 ? levels : levels + [index(bucket, account: subject.account)]
  }

  func holdKeys(_ bucket: Int, _ subject: Subject) -> [String] {
    let account = subject.account
    return [
      holds(bucket, account: account), holdEnds(bucket, account: account), holdsDue(bucket),
    ]
  }
}
