// Taking back: an operation whose outcome is unknown (`cancel`), and the counter effect of a delta
// that the ledger already had (`reverse`).

package import TollgateCore

/// Annuls an operation by its id, whether or not it was ever decided; afterwards every retry of the
/// id is answered CANCELLED. What is taken back is what the operation's record says was counted,
/// whatever the configuration is by then. The bodies of the reversal deltas name those cells, so
/// where the record holds any the first call is answered with it, and a second brings the bodies.
package struct CancelCall: ScriptCall {
  package enum Reply: Hashable, Sendable {
    /// `decided` for the annulment (with the reversals it bore), `replayed` where the record was
    /// already a denial or a cancellation.
    case answered(DecideReply)
    /// Call again with a body for each of these metered items.
    case bodiesWanted([CountedItem])
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var operation: OperationID
  package var fingerprint: OperationFingerprint
  package var subject: Subject
  package var items: [Item]
  package var recordClass: RecordClass
  package var dedupeWindowMilliseconds: Int64
  /// One for each item that `bodiesWanted` named, in that order.
  package var bodies: [(item: Int, body: [UInt8])] = []
  /// The same items, as they were named.
  package var counted: [CountedItem] = []

  package init(
    keySpace: KeySpace, fence: Fence, operation: OperationID, fingerprint: OperationFingerprint,
    subject: Subject, items: [Item], recordClass: RecordClass, limits: StoreLimits
  ) {
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.operation = operation
    self.fingerprint = fingerprint
    self.subject = subject
    self.items = items
    self.recordClass = recordClass
    dedupeWindowMilliseconds = limits.dedupeWindowMilliseconds
  }

  package var script: ScriptName { .cancel }

  package var keys: [String] {
    let slice = OperationSlice.of(operation.time)
    return [
      keySpace.meta(bucket), keySpace.outbox(bucket),
      keySpace.operations(bucket, recordClass, slice: slice),
      keySpace.operations(bucket, recordClass.other, slice: slice),
    ] + (1...subject.depth).map { keySpace.subject(bucket, subject.prefix($0)) }
  }

  package var arguments: [RESPArgument] {
    var writer = MessagePackWriter()
    writer.append(String(fence.epoch))
    writer.append(fence.epoch)
    writer.append(operation.time.milliseconds)
    writer.append(dedupeWindowMilliseconds)
    writer.append(recordClass.letter)
    writer.append(OperationSlice.of(operation.time))
    writer.append(items.count)
    for item in items {
      writer.append(item.feature.text)
      writer.append(item.amount)
    }
    return fence.arguments
      + [.bytes(operation.bytes + fingerprint.bytes), .bytes(writer.bytes)]
      + bodies.map { .bytes($0.body) }
  }

  package func decode(_ reply: RESPReply) -> Reply {
    guard case .counted? = reply.code else { return .answered(DecideReply(reply)) }
    guard let counted = reply[1].bytes.flatMap({ OperationRecord.counted($0) }) else {
      return .answered(.error("undecodable record"))
    }
    return .bodiesWanted(counted)
  }

  /// The reversal deltas, as the ledger will get them.
  package func entries(_ decided: DecidedOperation) -> [OutboxEntry] {
    decided.entries.compactMap { born in
      let item = Int(born.index) - Int(DeltaID.reversalOffset)
      let billed = counted.first { $0.item == item }?.billed?.amount
      guard let body = bodies.first(where: { $0.item == item })?.body,
        let units = billed ?? (items.indices.contains(item) ? items[item].amount : nil)
      else { return nil }
      let amount = -units
      return OutboxEntry(
        sequence: born.sequence, kind: .reversal,
        id: DeltaID(operation: operation, index: born.index), time: decided.bornAt,
        actual: amount, charged: amount, absorbed: 0, body: body)
    }
  }
}

/// A metered item of a decided operation and the cells its units were added to.
package struct CountedItem: Hashable, Sendable {
  package var item: Int
  package var cells: [CellReference]
  /// Of an operation of `transact`: what it was, what of it was billed, and what was counted beside
  /// units. nil: what was asked for.
  package var billed: Billed?

  package struct Billed: Hashable, Sendable {
    package var feature: Name
    package var amount: Int64
    package var parts: [CountedPart]
    package var charges: [RateCharge]
  }

  package init(item: Int, cells: [CellReference], billed: Billed? = nil) {
    self.item = item
    self.cells = cells
    self.billed = billed
  }
}

/// Takes the counter effect of one duplicate delta back, once per stream position. The position's
/// epoch must be the bucket's current one: counters of a later epoch were seeded from the ledger,
/// which counted the delta once.
package struct ReverseCall: ScriptCall {
  package enum Effect: Hashable, Sendable {
    case reversed
    /// Already done, or of an earlier epoch.
    case nothing
    /// The account is not seeded in this epoch: seeding will count it once.
    case unseeded
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var position: StreamPosition
  package var subject: Subject
  package var feature: Name
  /// What the duplicate delta added, and to which counters.
  package var counts: [CountedPart]

  package init(
    keySpace: KeySpace, fence: Fence, position: StreamPosition, subject: Subject, feature: Name,
    counts: [CountedPart]
  ) {
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.position = position
    self.subject = subject
    self.feature = feature
    self.counts = counts
  }

  package var script: ScriptName { .reverse }

  private var levels: [Int] { counts.deeperLevels(of: subject) }

  package var keys: [String] {
    [
      keySpace.meta(bucket), keySpace.takenBack(bucket),
      keySpace.subject(bucket, subject.account),
    ] + levels.map { keySpace.subject(bucket, subject.prefix($0)) }
  }

  package var arguments: [RESPArgument] {
    let levels = levels
    var writer = MessagePackWriter()
    writer.append(fence.epoch)
    writer.append(position.epoch)
    writer.append(position.sequence)
    writer.append(counts.count)
    for count in counts {
      let level = min(count.level, subject.depth)
      writer.append(level == 1 ? 1 : 2 + (levels.firstIndex(of: level) ?? 0))
      writer.append(KeySpace.field(feature: feature, window: count.window))
      writer.append(count.period.start.milliseconds)
      writer.append(count.amount)
    }
    return fence.arguments + [.bytes(writer.bytes)]
  }

  package func decode(_ reply: RESPReply) -> StoreReply<Effect> {
    reply.storeReply { reply in
      switch reply.code {
      case .done?: .reversed
      case .replayed?: .nothing
      case .rebuild?: .unseeded
      default: nil
      }
    }
  }
}

extension [CountedPart] {
  /// The levels below the account whose hashes hold these cells, ascending.
  func deeperLevels(of subject: Subject) -> [Int] {
    Set(map { Swift.min($0.level, subject.depth) }).subtracting([1]).sorted()
  }
}
