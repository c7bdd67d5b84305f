// One operation as one script call: decide, record, count, and bear the deltas, atomically.
//
// Why this shape: this is the hot path. What does not change between calls is in `DecidePlan`; the
// rest is one fence text, one 32-byte id with fingerprint, one short run of numbers and the delta
// bodies. The reply of the usual case is one bulk string, and that string is also what Redis
// remembers of the operation, so a replayed answer is the same bytes.

package import NIOCore
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

package struct DecideCall: ScriptCall {
  package enum Mode: Int64, Sendable, Hashable {
    case consume = 0
    /// Asks only; nothing is written, nothing remembered.
    case check = 1
    /// Records what was admitted elsewhere: no limit denies, no ceiling applies.
    case post = 2
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var operation: OperationID
  package var fingerprint: OperationFingerprint
  package var mode: Mode
  package var subject: Subject
  package var plan: DecidePlan
  /// One body for each of `plan.meteredItems`, in that order; empty for `check`.
  package var bodies: [[UInt8]]
  package var globalVersion: Int64
  package var accountVersion: Int64
  package var limits: StoreLimits
  /// Redis time after which the caller no longer waits: then nothing is done.
  package var notAfter: WallTime?

  package init(
    keySpace: KeySpace, fence: Fence, operation: OperationID, fingerprint: OperationFingerprint,
    mode: Mode, subject: Subject, plan: DecidePlan, bodies: [[UInt8]], globalVersion: Int64,
    accountVersion: Int64, limits: StoreLimits = StoreLimits(), notAfter: WallTime? = nil
  ) {
    precondition(mode == .check || bodies.count == plan.meteredItems.count)
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.operation = operation
    self.fingerprint = fingerprint
    self.mode = mode
    self.subject = subject
    self.plan = plan
    self.bodies = bodies
    self.globalVersion = globalVersion
    self.accountVersion = accountVersion
    self.limits = limits
    self.notAfter = notAfter
  }

  package var script: ScriptName { mode == .check ? .check : .decide }

  package var keys: [String] {
    let slice = OperationSlice.of(operation.time)
    let account = subject.account
    var keys = [
      keySpace.meta(bucket), keySpace.outbox(bucket),
      keySpace.operations(bucket, plan.recordClass, slice: slice),
      keySpace.operations(bucket, plan.recordClass.other, slice: slice),
      keySpace.subject(bucket, account),
    ]
    if !plan.levels.isEmpty {
      keys.append(keySpace.index(bucket, account: account))
      for level in plan.levels { keys.append(keySpace.subject(bucket, subject.prefix(level))) }
    }
    return keys
  }

  package var arguments: [RESPArgument] {
    [.string(fence.text), .bytes(operation.bytes + fingerprint.bytes), .bytes(head)]
      + [.bytes(plan.bytes)] + bodies.map { .bytes($0) }
  }

  /// The same command as `keys` and `arguments` make, without the arrays in between.
  package func write(into buffer: inout ByteBuffer, library: ScriptLibrary = .shared) {
    let keys = keys
    var writer = RESPWriter()
    writer.begin(&buffer, count: 3 + keys.count + 4 + bodies.count)
    writer.append(literal: "EVALSHA", to: &buffer)
    writer.append(library.sha(script), to: &buffer)
    writer.append(integer: Int64(keys.count), to: &buffer)
    for key in keys { writer.append(key, to: &buffer) }
    writer.append(fence.text, to: &buffer)
    writer.append(operation.bytes + fingerprint.bytes, to: &buffer)
    writer.append(head, to: &buffer)
    writer.append(plan.bytes, to: &buffer)
    for body in bodies { writer.append(body, to: &buffer) }
  }

  var head: [UInt8] {
    var writer = MessagePackWriter(capacity: 64)
    writer.append(mode.rawValue)
    writer.append(fence.seenSequence)
    writer.append(String(fence.epoch))
    writer.append(fence.epoch)
    writer.append(globalVersion)
    writer.append(accountVersion)
    writer.append(operation.time.milliseconds)
    writer.append(notAfter?.milliseconds ?? 0)
    writer.append(limits.dedupeWindowMilliseconds)
    writer.append(limits.recordBytesMax(plan.recordClass))
    writer.append(limits.outboxEntriesMax)
    writer.append(plan.recordClass.letter)
    writer.append(OperationSlice.of(operation.time))
    return writer.bytes
  }

  package func decode(_ reply: RESPReply) -> DecideReply { DecideReply(reply) }

  /// The deltas this call bore, as the ledger will get them: what a sidecar retains.
  package func entries(_ decided: DecidedOperation) -> [OutboxEntry] {
    decided.entries.compactMap { born in
      guard let at = plan.meteredItems.firstIndex(of: Int(born.index)), at < bodies.count else {
        return nil
      }
      let amount = plan.items[Int(born.index)].amount
      return OutboxEntry(
        sequence: born.sequence, kind: .usage,
        id: DeltaID(operation: operation, index: born.index), time: decided.bornAt,
        actual: amount, charged: amount, absorbed: 0, body: bodies[at])
    }
  }
}
