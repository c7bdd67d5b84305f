// Rebuilding one account after its bucket got a new epoch: the counters of its deeper subjects in
// as many chunks as needed, then the account level, which marks the account as current. Set, never
// added: two sidecars seeding at once, each from the ledger, leave the same numbers (PITFALL 7).
//
// A ledger that lost entries knows less than the counters which an older epoch left in Redis: then
// those count too, period by period the greater (`isLossy`), also of subjects the ledger forgot.

package import TollgateCore

package struct SeedCell: Hashable, Sendable {
  package var subject: Subject
  package var feature: Name
  package var window: Window
  /// The current period, and what was settled in it.
  package var period: Period
  package var settled: Int64
  /// What an operator forgave of it; of an instance of a grant what came over into it.
  package var forgiven: Int64
  /// The period before, where the ledger has one: late settles and cancels land there.
  package var previousStart: WallTime?
  package var previousSettled: Int64

  package init(
    subject: Subject, feature: Name, window: Window, period: Period, settled: Int64,
    forgiven: Int64 = 0, previousStart: WallTime? = nil, previousSettled: Int64 = 0
  ) {
    self.subject = subject
    self.feature = feature
    self.window = window
    self.period = period
    self.settled = settled
    self.forgiven = forgiven
    self.previousStart = previousStart
    self.previousSettled = previousSettled
  }
}

package struct SeedCall: ScriptCall {
  package enum Effect: Hashable, Sendable {
    case seeded
    /// The account was current already; nothing was changed.
    case alreadyCurrent
  }

  /// Cells in one call; larger accounts are split by `chunks`.
  package static let cellsMax = 512

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var account: Subject
  package var cells: [SeedCell]
  /// The last chunk holds all account-level cells and marks the account current.
  package var isLast: Bool
  /// Written on the last chunk where its version is higher than the header's.
  package var accountVersion: Int64
  package var accountConfig: String?
  /// What the ledger knows of earlier changes; joined to what the header remembers.
  package var memory: ChangeMemory
  /// The ledger lost entries of this bucket: what Redis holds of the account is never lowered.
  package var isLossy = false
  /// Nothing is known of the account and it is only looked at: its header is made to expire, holds
  /// nothing, and serves reads alone.
  package var isForRead = false
  /// Deeper subjects whose counters of an older epoch are to be kept without a word of the ledger.
  package var others: [Subject] = []

  package var script: ScriptName { .seed }

  /// The calls that seed an account, in order.
  ///
  /// - Parameter live: the account's deeper subjects in Redis; used where `isLossy`.
  package static func chunks(
    keySpace: KeySpace, fence: Fence, account: Subject, cells: [SeedCell], accountVersion: Int64,
    accountConfig: String?, memory: ChangeMemory = ChangeMemory(), isLossy: Bool = false,
    live: [Subject] = [], isForRead: Bool = false
  ) -> [SeedCall] {
    let bucket = keySpace.bucket(of: account)
    func call(_ cells: [SeedCell], last: Bool) -> SeedCall {
      SeedCall(
        keySpace: keySpace, bucket: bucket, fence: fence, account: account, cells: cells,
        isLast: last, accountVersion: accountVersion, accountConfig: accountConfig, memory: memory,
        isLossy: isLossy)
    }
    let deeper = cells.filter { $0.subject.depth > 1 }.sorted { $0.subject < $1.subject }
    var calls: [SeedCall] = []
    var start = 0
    while start < deeper.count {
      let end = min(start + cellsMax, deeper.count)
      calls.append(call(Array(deeper[start..<end]), last: false))
      start = end
    }
    if isLossy {
      let known = Set(deeper.map(\.subject))
      let others = live.filter { $0.depth > 1 && !known.contains($0) }
      for start in stride(from: 0, to: others.count, by: cellsMax) {
        var one = call([], last: false)
        one.others = Array(others[start..<min(start + cellsMax, others.count)])
        calls.append(one)
      }
    }
    calls.append(call(cells.filter { $0.subject.depth == 1 }, last: true))
    // Where Redis still holds subjects of it, something is known after all.
    calls[calls.count - 1].isForRead = isForRead && cells.isEmpty && calls.count == 1
    return calls
  }

  private var deeper: [Subject] {
    var subjects: [Subject] = []
    for cell in cells where cell.subject.depth > 1 && subjects.last != cell.subject {
      subjects.append(cell.subject)
    }
    return subjects + others
  }

  package var keys: [String] {
    [
      keySpace.meta(bucket), keySpace.subject(bucket, account),
      keySpace.index(bucket, account: account),
    ] + deeper.map { keySpace.subject(bucket, $0) }
  }

  package var arguments: [RESPArgument] {
    var slots: [Subject: Int] = [:]
    for (index, subject) in deeper.enumerated() where slots[subject] == nil {
      slots[subject] = index + 2
    }
    var writer = MessagePackWriter()
    writer.append(fence.epoch)
    writer.append(isLast ? (isForRead ? 2 : 1) : 0)
    writer.append(accountVersion)
    writer.append(cells.count)
    writer.append(isLossy ? 1 : 0)
    for cell in cells {
      writer.append(cell.subject.depth == 1 ? 1 : slots[cell.subject] ?? 1)
      writer.append(KeySpace.field(feature: cell.feature, window: cell.window))
      writer.append(cell.period.end.milliseconds)
      writer.append(cell.period.start.milliseconds)
      writer.append(cell.settled)
      writer.append(cell.forgiven)
      writer.append(cell.previousStart?.milliseconds ?? 0)
      writer.append(cell.previousSettled)
    }
    return fence.arguments + [
      .bytes(writer.bytes), .string(accountConfig ?? ""), .bytes(memory.bytes),
    ]
  }

  package func decode(_ reply: RESPReply) -> StoreReply<Effect> {
    reply.storeReply { reply in
      switch reply.code {
      case .done?: .seeded
      case .replayed?: .alreadyCurrent
      default: nil
      }
    }
  }
}
