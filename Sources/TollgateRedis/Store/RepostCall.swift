// A delta born earlier, appended to the current outbox under its own identity: one that was
// retained when Redis lost its epoch and the ledger never saw, or one of an operation that is
// reported after its dedupe window. Exactly once in effect by the ledger's unique delta ids and
// `ReverseCall`, so it may be repeated after any lost reply.

package import TollgateCore

package struct RepostCall: ScriptCall {
  /// How an instance of a grant begins that nobody has counted in yet: what comes over into it is
  /// noted by whoever counts first.
  package struct Beginning: Hashable, Sendable {
    /// What the instance before had.
    package var amount: Int64
    package var rollover: Rollover
    /// The start of the instance before; nil: there was none.
    package var before: WallTime?
    /// Where nobody counted in that one, it is left whole.
    package var wasWhole: Bool

    package init(amount: Int64, rollover: Rollover, before: WallTime?, wasWhole: Bool = true) {
      self.amount = amount
      self.rollover = rollover
      self.before = before
      self.wasWhole = wasWhole
    }
  }

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
  /// Counters and what each gets.
  package var counts: [CountedPart]
  /// Of the grants among them, in the same places.
  package var beginnings: [Int: Beginning]

  /// Subject, feature and counts are those that the entry's body names.
  package init(
    keySpace: KeySpace, fence: Fence, entry: OutboxEntry, subject: Subject, feature: Name,
    counts: [CountedPart], beginnings: [Int: Beginning] = [:]
  ) {
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.entry = entry
    self.subject = subject
    self.feature = feature
    self.counts = counts
    self.beginnings = beginnings
  }

  package var script: ScriptName { .repost }

  private var levels: [Int] { counts.deeperLevels(of: subject) }

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
    writer.append(counts.count)
    for (index, count) in counts.enumerated() {
      let level = min(count.level, subject.depth)
      writer.append(level == 1 ? 1 : 2 + (levels.firstIndex(of: level) ?? 0))
      writer.append(KeySpace.field(feature: feature, window: count.window))
      writer.append(count.period.start.milliseconds)
      writer.append(count.period.end.milliseconds)
      writer.append(count.amount)
      let beginning = beginnings[index]
      writer.append(beginning?.amount ?? 0)
      writer.append(beginning?.rollover.min ?? 0)
      writer.append(beginning?.rollover.max ?? 0)
      writer.append(beginning?.before?.milliseconds ?? -1)
      writer.append(beginning?.wasWhole == true ? 1 : 0)
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
