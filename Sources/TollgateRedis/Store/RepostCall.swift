// A delta born earlier, appended to the current outbox under its own identity: one that was
// retained when Redis lost its epoch and the ledger never saw, or one of an operation that is
// reported after its dedupe window. Exactly once in effect by the ledger's unique delta ids and
// `ReverseCall`, so it may be repeated after any lost reply.

package import TollgateCore

package struct RepostCall: ScriptCall {
  package enum Outcome: Hashable, Sendable {
    case appended(sequence: Int64)
    /// The account is not seeded in this epoch: seed it and call again.
    case unseeded
    /// A counter would leave the quantity range; nothing was written.
    case overflow
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  /// Its sequence is not used.
  package var entry: OutboxEntry
  package var subject: Subject
  package var feature: Name
  package var cells: [CellReference]

  /// Subject, feature and cells are those that the entry's body names.
  package init(
    keySpace: KeySpace, fence: Fence, entry: OutboxEntry, subject: Subject, feature: Name,
    cells: [CellReference]
  ) {
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.entry = entry
    self.subject = subject
    self.feature = feature
    self.cells = cells
  }

  package var script: ScriptName { .repost }

  private var levels: [Int] { cells.deeperLevels(of: subject) }

  package var keys: [String] {
    let levels = levels
    var keys = [
      keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.subject(bucket, subject.account),
    ]
    if !levels.isEmpty {
      keys.append(keySpace.index(bucket, account: subject.account))
      keys += levels.map { keySpace.subject(bucket, subject.prefix($0)) }
    }
    return keys
  }

  package var arguments: [RESPArgument] {
    let levels = levels
    var writer = MessagePackWriter()
    writer.append(fence.epoch)
    writer.append(Int64(entry.kind.rawValue))
    writer.append(Int64(entry.id.index))
    writer.append(entry.time.milliseconds)
    writer.append(entry.actual)
    writer.append(entry.charged)
    writer.append(entry.absorbed)
    writer.append(levels.count + 1)
    writer.append(cells.count)
    for cell in cells {
      let level = min(cell.level, subject.depth)
      writer.append(level == 1 ? 1 : 2 + (levels.firstIndex(of: level) ?? 0))
      writer.append(KeySpace.field(feature: feature, window: cell.window))
      writer.append(cell.period.start.milliseconds)
      writer.append(cell.period.end.milliseconds)
    }
    return fence.arguments + [
      .bytes(writer.bytes), .bytes(entry.id.operation.bytes), .bytes(entry.body),
    ]
  }

  package func decode(_ reply: RESPReply) -> StoreReply<Outcome> {
    // An outcome like the others, and not a failure of the store.
    if reply.code == .overflow { return .done(.overflow) }
    return reply.storeReply { reply in
      switch reply.code {
      case .done?: reply[1].number.map { .appended(sequence: $0) }
      case .rebuild?: .unseeded
      default: nil
      }
    }
  }
}
