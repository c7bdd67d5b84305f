// What becomes of reservations: settled, released, extended by their callers; expired when their
// time has come; brought into a new epoch.

package import TollgateCore

package struct SettleCall: ScriptCall {
  package enum Step: Hashable, Sendable {
    /// What was used since the settle before. Final: the reservation ends, what is left is free.
    case settle([Item], isFinal: Bool)
    case release
    case extend(ttlMilliseconds: Int64)

    fileprivate var number: Int {
      switch self {
      case .settle: 1
      case .release: 2
      case .extend: 3
      }
    }
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var operation: OperationID
  package var fingerprint: OperationFingerprint
  package var reservation: OperationID
  package var subject: Subject
  package var step: Step
  package var recordClass: RecordClass
  /// Of the hold's items as of its creation, without prices; only where it was wanted.
  package var plan: RichPlan?
  /// Fields 5 to 8 of the delta bodies.
  package var common: [UInt8]
  package var globalVersion: Int64
  package var accountVersion: Int64
  package var limits: StoreLimits
  package var notAfter: WallTime?

  package init(
    keySpace: KeySpace, fence: Fence, operation: OperationID, fingerprint: OperationFingerprint,
    reservation: OperationID, subject: Subject, step: Step, recordClass: RecordClass,
    common: [UInt8], globalVersion: Int64, accountVersion: Int64,
    limits: StoreLimits = StoreLimits(), notAfter: WallTime? = nil
  ) {
    self.keySpace = keySpace
    bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.operation = operation
    self.fingerprint = fingerprint
    self.reservation = reservation
    self.subject = subject
    self.step = step
    self.recordClass = recordClass
    self.common = common
    self.globalVersion = globalVersion
    self.accountVersion = accountVersion
    self.limits = limits
    self.notAfter = notAfter
  }

  package var script: ScriptName { .settle }

  package var keys: [String] {
    keySpace.operationKeys(bucket, operation, recordClass) + keySpace.subjectKeys(bucket, subject)
      + keySpace.holdKeys(bucket, subject) + [keySpace.endedHolds(bucket, of: reservation)]
  }

  package var arguments: [RESPArgument] {
    var items: [Item] = []
    var isFinal = false
    var ttl: Int64 = 0
    switch step {
    case .settle(let used, let final): (items, isFinal) = (used, final)
    case .release: break
    case .extend(let asked): ttl = asked
    }
    var writer = MessagePackWriter(capacity: 128)
    writer.append(String(fence.epoch))
    writer.append(fence.epoch)
    writer.append(limits.dedupeWindowMilliseconds)
    writer.append(step.number)
    writer.append(globalVersion)
    writer.append(accountVersion)
    writer.append(operation.time.milliseconds)
    writer.append(notAfter?.milliseconds ?? 0)
    writer.append(recordClass.letter)
    writer.append(OperationSlice.of(operation.time))
    writer.append(subject.depth)
    writer.append(isFinal ? 1 : 0)
    writer.append(ttl)
    writer.append(items.count)
    for item in items {
      writer.append(item.feature.text)
      writer.append(item.amount)
    }
    return fence.arguments + [
      .bytes(writer.bytes), .bytes(operation.bytes + fingerprint.bytes),
      .bytes(plan?.bytes ?? []), .string(subject.path), .bytes(common), .bytes(reservation.bytes),
    ]
  }

  package func decode(_ reply: RESPReply) -> RichReply { RichReply(reply) }
}

/// A live hold as it lies in Redis.
package struct StoredHold: Hashable, Sendable {
  package var reservation: OperationID
  package var subject: Subject
  package var expires: WallTime
  /// In which its counts were added.
  package var epoch: Int64
  /// How often it was settled in part.
  package var settles: Int64
  package var bytes: [UInt8]

  package init?(reservation: [UInt8], bytes: [UInt8]) {
    var reader = MessagePackReader(bytes)
    guard let id = OperationID(bytes: reservation), reader.integer() != nil,
      reader.integer() != nil, let expires = reader.integer(), reader.integer() != nil,
      reader.integer() != nil, let path = reader.text(), let subject = try? Subject(path),
      reader.integer() != nil, let epoch = reader.integer(), let settles = reader.integer()
    else { return nil }
    self.reservation = id
    self.subject = subject
    self.expires = WallTime(milliseconds: expires)
    self.epoch = epoch
    self.settles = settles
    self.bytes = bytes
  }

  /// Of one reservation, what became of it after the other; `represent.lua` has the same rule.
  package func isLater(than other: StoredHold) -> Bool {
    (settles, expires) > (other.settles, other.expires)
  }
}

/// Ends reservations of one subject that are due.
package struct ExpireCall: ScriptCall {
  package static let reservationsMax = 16

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var subject: Subject
  package var reservations: [OperationID]

  package init(
    keySpace: KeySpace, fence: Fence, subject: Subject, reservations: [OperationID]
  ) {
    precondition(reservations.count <= Self.reservationsMax)
    self.keySpace = keySpace
    bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.subject = subject
    self.reservations = reservations
  }

  package var script: ScriptName { .expire }
  package var keys: [String] {
    let meta = keySpace.meta(bucket)
    // The places of keys that only operations have, so that all of these scripts number alike.
    return [meta, meta, meta, meta] + keySpace.subjectKeys(bucket, subject)
      + keySpace.holdKeys(bucket, subject)
      + reservations.map { keySpace.endedHolds(bucket, of: $0) }
  }
  package var arguments: [RESPArgument] {
    fence.arguments + [
      .string(String(fence.epoch)), .integer(Int64(subject.depth)), .string(subject.path),
    ] + reservations.map { .bytes($0.bytes) }
  }

  /// How many ended; nil: the account is not seeded in this epoch.
  package func decode(_ reply: RESPReply) -> StoreReply<Int64?> {
    reply.storeReply { reply in
      switch reply.code {
      case .done?: .some(reply[1].number ?? 0)
      case .rebuild?: .some(nil)
      default: nil
      }
    }
  }
}

/// Brings one hold into the epoch; without one, says that all of the account's are there.
package struct RepresentCall: ScriptCall {
  package enum Effect: Hashable, Sendable {
    case brought
    /// It is there, or has ended.
    case nothing
    case unseeded
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var subject: Subject
  package var reservation: OperationID?
  /// The hold; empty: what lies there of an older epoch is not true any more.
  package var bytes: [UInt8]

  package init(
    keySpace: KeySpace, fence: Fence, subject: Subject, reservation: OperationID?,
    bytes: [UInt8] = []
  ) {
    self.keySpace = keySpace
    bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.subject = subject
    self.reservation = reservation
    self.bytes = bytes
  }

  package init(keySpace: KeySpace, fence: Fence, subject: Subject, hold: StoredHold?) {
    self.init(
      keySpace: keySpace, fence: fence, subject: subject, reservation: hold?.reservation,
      bytes: hold?.bytes ?? [])
  }

  package var script: ScriptName { .represent }
  package var keys: [String] {
    let meta = keySpace.meta(bucket)
    return [meta, meta, meta, meta] + keySpace.subjectKeys(bucket, subject)
      + keySpace.holdKeys(bucket, subject)
      + (reservation.map { [keySpace.endedHolds(bucket, of: $0)] } ?? [])
  }
  package var arguments: [RESPArgument] {
    fence.arguments + [
      .string(String(fence.epoch)), .integer(Int64(subject.depth)), .string(subject.path),
      .bytes(reservation?.bytes ?? []), .bytes(bytes),
    ]
  }

  package func decode(_ reply: RESPReply) -> StoreReply<Effect> {
    reply.storeReply { reply in
      switch reply.code {
      case .done?: .brought
      case .replayed?: .nothing
      case .rebuild?: .unseeded
      default: nil
      }
    }
  }
}

/// That a reservation ended, as who took part in it remembers.
package struct HoldEnd: Hashable, Sendable {
  package enum State: Int64, Hashable, Sendable {
    case committed = 1
    case released = 2
  }

  package var reservation: OperationID
  package var subject: Subject
  package var state: State

  package init(reservation: OperationID, subject: Subject, state: State) {
    self.reservation = reservation
    self.subject = subject
    self.state = state
  }
}

/// Says of reservations of one bucket that they have ended, so that they are not brought back.
package struct BuryCall: ScriptCall {
  package static let endsMax = 64

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var ends: [HoldEnd]

  package init(keySpace: KeySpace, bucket: Int, fence: Fence, ends: [HoldEnd]) {
    precondition(ends.count <= Self.endsMax)
    self.keySpace = keySpace
    self.bucket = bucket
    self.fence = fence
    self.ends = ends
  }

  package var script: ScriptName { .bury }
  package var keys: [String] {
    [keySpace.meta(bucket)]
      + ends.flatMap {
        [
          keySpace.endedHolds(bucket, of: $0.reservation),
          keySpace.holds(bucket, account: $0.subject.account),
        ]
      }
  }
  package var arguments: [RESPArgument] {
    fence.arguments
      + ends.flatMap { [.bytes($0.reservation.bytes), .integer($0.state.rawValue)] }
  }

  /// Those that are held there, and are to be ended (`RepresentCall`).
  package func decode(_ reply: RESPReply) -> StoreReply<[HoldEnd]> {
    reply.storeReply { reply in
      guard reply.code == .done, let places = reply.array?.dropFirst() else { return nil }
      return places.compactMap { place in
        place.number.flatMap { ends.indices.contains(Int($0) - 1) ? ends[Int($0) - 1] : nil }
      }
    }
  }
}

extension Reads {
  /// The live holds of an account; at most as many as it may have.
  package static func holds(
    _ keySpace: KeySpace, account: Subject
  ) -> ReadCommand<[StoredHold]> {
    let bucket = keySpace.bucket(of: account)
    return ReadCommand(
      bucket: bucket,
      words: [.string("HGETALL"), .string(keySpace.holds(bucket, account: account.account))]
    ) { reply in
      reply.array.map { flat in
        stride(from: 0, to: flat.count - 1, by: 2).compactMap { at in
          guard let id = flat[at].bytes, let bytes = flat[at + 1].bytes else { return nil }
          return StoredHold(reservation: id, bytes: bytes)
        }
      }
    }
  }

  /// Accounts of a bucket with holds that are due at `now`, at most `count`.
  package static func accountsDue(
    _ keySpace: KeySpace, bucket: Int, now: WallTime, count: Int64
  ) -> ReadCommand<[Subject]> {
    ReadCommand(
      bucket: bucket,
      words: [
        .string("ZRANGE"), .string(keySpace.holdsDue(bucket)), .string("-inf"),
        .integer(now.milliseconds), .string("BYSCORE"), .string("LIMIT"), .integer(0),
        .integer(count),
      ]
    ) { reply in reply.array.map { $0.compactMap { $0.text.flatMap { try? Subject($0) } } } }
  }
}
