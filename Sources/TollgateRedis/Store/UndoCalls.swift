// Taking back: an operation whose outcome is unknown (`cancel`), and the counter effect of a delta
// that the ledger already had (`reverse`).

package import TollgateCore

/// Annuls an operation by its id, whether or not it was ever decided. It carries the call it
/// annuls; afterwards every retry of that id is answered CANCELLED. Its reply is `decided` for the
/// annulment (with the reversal deltas it bore) and `replayed` where the record was already a
/// denial or a cancellation.
package struct CancelCall: ScriptCall {
  package var call: DecideCall

  package init(_ call: DecideCall) { self.call = call }

  package var script: ScriptName { .cancel }
  package var bucket: Int { call.bucket }
  package var keys: [String] { call.keys }
  package var arguments: [RESPArgument] { call.arguments }
  package func decode(_ reply: RESPReply) -> DecideReply { DecideReply(reply) }

  /// The reversal deltas, as the ledger will get them.
  package func entries(_ decided: DecidedOperation) -> [OutboxEntry] {
    decided.entries.compactMap { born in
      let item = Int(born.index) - Int(DeltaID.reversalOffset)
      guard let at = call.plan.meteredItems.firstIndex(of: item), at < call.bodies.count else {
        return nil
      }
      let amount = -call.plan.items[item].amount
      return OutboxEntry(
        sequence: born.sequence, kind: .reversal,
        id: DeltaID(operation: call.operation, index: born.index), time: decided.bornAt,
        actual: amount, charged: amount, absorbed: 0, body: call.bodies[at])
    }
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
  /// The birth time of the duplicate entry; its marker lies in that time's slice.
  package var time: WallTime
  package var subject: Subject
  package var feature: Name
  package var cells: [CellReference]
  /// `actual` of the duplicate delta.
  package var amount: Int64

  package init(
    keySpace: KeySpace, fence: Fence, position: StreamPosition, time: WallTime, subject: Subject,
    feature: Name, cells: [CellReference], amount: Int64
  ) {
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.position = position
    self.time = time
    self.subject = subject
    self.feature = feature
    self.cells = cells
    self.amount = amount
  }

  package var script: ScriptName { .reverse }

  private var levels: [Int] {
    Set(cells.map { min($0.level, subject.depth) }).subtracting([1]).sorted()
  }

  package var keys: [String] {
    [
      keySpace.meta(bucket),
      keySpace.operations(bucket, .money, slice: OperationSlice.of(time)),
      keySpace.subject(bucket, subject.account),
    ] + levels.map { keySpace.subject(bucket, subject.prefix($0)) }
  }

  package var arguments: [RESPArgument] {
    let levels = levels
    var writer = MessagePackWriter()
    writer.append(fence.epoch)
    writer.append(position.epoch)
    writer.append(position.sequence)
    writer.append(OperationSlice.of(time))
    writer.append(amount)
    writer.append(cells.count)
    for cell in cells {
      let level = min(cell.level, subject.depth)
      writer.append(level == 1 ? 1 : 2 + (levels.firstIndex(of: level) ?? 0))
      writer.append(KeySpace.field(feature: feature, window: cell.window))
      writer.append(cell.period.start.milliseconds)
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
