// How buckets are healed, as a pure value: who is asked, whose answer is awaited, when an epoch is
// closed and who is told. The shell sends, writes and keeps the time.
//
//   steady ──RECOVER──▶ gathering ──all answered, or the window passed──▶ closing
//   closing ──written──▶ steady
//
// What may follow each state of a bucket:
//   steady:    a request → gathering, or closing at once where there is nothing to ask for, or an
//              EPOCH to the requester alone where a newer epoch was just issued.
//   gathering: presents and further requests join; a link that ends is no longer awaited, what it
//              presented stays; a link that comes is asked too. At the end of the window at least
//              one living link must have answered in full: every link also reads the outbox, so
//              without any answer nobody has, and the epoch must not be closed. → closing | steady.
//   closing:   the transaction runs; requests wait for its EPOCH. → steady.
//
// After a start sidecars come back one by one, and what each retains is needed: until the window
// since then has passed a gathering does not end, even where all links of the moment have answered.
//
// Buckets do not wait for each other. Bounded: what was presented and is not written yet.

package import TollgateCore
package import TollgateWire

package struct RecoveryMachine: Sendable {
  package typealias LinkID = Int

  /// How long links have to present.
  package static let windowNanoseconds: Int64 = 3_000_000_000
  /// How long a fresh epoch is answered to those who still ask for the one before, while its
  /// opener lives: it is about to be, or was just, opened in Redis.
  package static let openingNanoseconds: Int64 = 3_000_000_000
  /// Entries held over all gatherings; a link that goes beyond it is dropped and may come again.
  package static let heldEntriesMax = 500_000
  /// Bytes of those entries.
  package static let heldBytesMax = 256 << 20

  package enum Action: Hashable, Sendable {
    /// PRESENT_REQUEST to these links.
    case ask([LinkID], PresentRequest)
    /// Write this in one transaction, then call `closed` or `closeFailed`.
    case close(RecoveryRequest)
    /// EPOCH to these links.
    case tell([LinkID], EpochNotice)
    /// End this link: it presented more than can be held.
    case drop(LinkID)
  }

  private struct Gathering {
    var epoch: Int64
    var cursor: Int64
    var deadline: MonotonicTime
    /// Not over before this: sidecars that are not linked yet may come; nil: it has passed.
    var quietUntil: MonotonicTime?
    var requesters: [LinkID]
    var awaited: Set<LinkID>
    var answered: [LinkID] = []
    var highestSeen: Int64
    var entries: [OutboxEntry] = []
    var bytes = 0

    var isComplete: Bool { awaited.isEmpty && quietUntil == nil }
  }

  private enum Bucket {
    case gathering(Gathering)
    case closing(epoch: Int64, opener: LinkID, entries: Int, bytes: Int)
  }

  private struct Issued {
    var notice: EpochNotice
    var opener: LinkID
    var until: MonotonicTime
  }

  private var links: [LinkID: Name] = [:]
  private var buckets: [UInt32: Bucket] = [:]
  private var issued: [UInt32: Issued] = [:]
  private var heldEntries = 0
  private var heldBytes = 0

  private let quietUntil: MonotonicTime

  /// - Parameter startedAt: when sidecars could link first; nil: they all had time to.
  package init(startedAt: MonotonicTime? = nil) {
    quietUntil = startedAt.map { $0 + Self.windowNanoseconds } ?? MonotonicTime(nanoseconds: .min)
  }

  /// When `timePassed` is due next.
  package var deadline: MonotonicTime? {
    buckets.values.compactMap {
      guard case .gathering(let gathering) = $0 else { return nil }
      return gathering.quietUntil ?? gathering.deadline
    }.min()
  }

  package var gatheringBuckets: Int { buckets.count }

  // MARK: Links

  package mutating func linked(_ link: LinkID, sidecar: Name) -> [Action] {
    links[link] = sidecar
    var actions: [Action] = []
    for (bucket, state) in buckets.sorted(by: { $0.key < $1.key }) {
      guard case .gathering(var gathering) = state else { continue }
      gathering.awaited.insert(link)
      buckets[bucket] = .gathering(gathering)
      actions.append(
        .ask(
          [link],
          PresentRequest(bucket: bucket, epoch: gathering.epoch, cursor: gathering.cursor)))
    }
    return actions
  }

  package mutating func unlinked(_ link: LinkID) -> [Action] {
    guard links.removeValue(forKey: link) != nil else { return [] }
    issued = issued.filter { $0.value.opener != link }
    var actions: [Action] = []
    for (bucket, state) in buckets.sorted(by: { $0.key < $1.key }) {
      guard case .gathering(var gathering) = state else { continue }
      gathering.awaited.remove(link)
      gathering.answered.removeAll { $0 == link }
      gathering.requesters.removeAll { $0 == link }
      buckets[bucket] = .gathering(gathering)
      if gathering.isComplete { actions += finish(bucket, gathering) }
    }
    return actions
  }

  // MARK: Pushes

  /// - Parameter position: where the ledger has the bucket now.
  package mutating func requested(
    by link: LinkID, _ recover: Recover, position: BucketPosition, now: MonotonicTime
  ) -> [Action] {
    guard links[link] != nil else { return [] }
    if let state = buckets[recover.bucket] {
      guard case .gathering(var gathering) = state else { return [] }
      if !gathering.requesters.contains(link) { gathering.requesters.append(link) }
      if recover.metaEpoch == gathering.epoch {
        gathering.highestSeen = max(gathering.highestSeen, recover.metaSequence)
      }
      buckets[recover.bucket] = .gathering(gathering)
      return []
    }
    let named = max(recover.epoch, recover.metaEpoch)
    if named < position.epoch, let fresh = issued[recover.bucket],
      fresh.notice.epoch == position.epoch, now < fresh.until
    {
      return [.tell([link], fresh.notice)]
    }
    // A requester that is behind although nothing new was issued: Redis lost the current epoch.
    let epoch = max(named, position.epoch)
    let gathering = Gathering(
      epoch: epoch, cursor: epoch == position.epoch ? position.cursor : 0,
      deadline: now + Self.windowNanoseconds, quietUntil: now < quietUntil ? quietUntil : nil,
      requesters: [link], awaited: Set(links.keys),
      highestSeen: recover.metaEpoch == epoch ? recover.metaSequence : 0)
    if epoch == 0 { return finish(recover.bucket, gathering, anAnswerIsNeeded: false) }
    buckets[recover.bucket] = .gathering(gathering)
    return [
      .ask(
        links.keys.sorted(),
        PresentRequest(bucket: recover.bucket, epoch: epoch, cursor: gathering.cursor))
    ]
  }

  package mutating func presented(
    by link: LinkID, _ present: Present, isLast: Bool
  ) -> [Action] {
    // Late, or for an epoch that nobody gathers: its sender posts anew what is not in the books.
    guard case .gathering(var gathering)? = buckets[present.bucket],
      gathering.epoch == present.epoch, gathering.awaited.contains(link)
    else { return [] }
    let bytes = present.entries.reduce(0) { $0 + $1.wireBytes }
    guard heldEntries + present.entries.count <= Self.heldEntriesMax,
      heldBytes + bytes <= Self.heldBytesMax
    else { return [.drop(link)] }
    heldEntries += present.entries.count
    heldBytes += bytes
    gathering.entries += present.entries
    gathering.bytes += bytes
    if isLast {
      gathering.awaited.remove(link)
      gathering.answered.append(link)
    }
    buckets[present.bucket] = .gathering(gathering)
    return gathering.isComplete ? finish(present.bucket, gathering) : []
  }

  package mutating func timePassed(now: MonotonicTime) -> [Action] {
    var actions: [Action] = []
    for (bucket, state) in buckets.sorted(by: { $0.key < $1.key }) {
      guard case .gathering(var gathering) = state else { continue }
      if let quiet = gathering.quietUntil, quiet <= now {
        gathering.quietUntil = nil
        buckets[bucket] = .gathering(gathering)
      }
      guard gathering.isComplete || gathering.deadline <= now else { continue }
      actions += finish(bucket, gathering)
    }
    return actions
  }

  // MARK: The transaction

  package mutating func closed(
    bucket: UInt32, _ outcome: RecoveryOutcome, now: MonotonicTime
  ) -> [Action] {
    guard case .closing(let epoch, var opener, _, _)? = endClosing(bucket) else { return [] }
    guard !links.isEmpty else { return [] }
    if links[opener] == nil { opener = links.keys.min() ?? opener }
    guard let name = links[opener] else { return [] }
    let notice = EpochNotice(
      bucket: bucket, epoch: outcome.epoch, opener: name,
      previousEpoch: outcome.isNew ? epoch : 0,
      previousLast: outcome.isNew ? outcome.lastSequence : 0)
    issued[bucket] = Issued(
      notice: notice, opener: opener, until: now + Self.openingNanoseconds)
    return [.tell(links.keys.sorted(), notice)]
  }

  /// Nothing was written: the requesters ask again, and everybody still holds what they presented.
  package mutating func closeFailed(bucket: UInt32) { _ = endClosing(bucket) }

  private mutating func endClosing(_ bucket: UInt32) -> Bucket? {
    guard case .closing(_, _, let entries, let bytes)? = buckets[bucket] else { return nil }
    heldEntries -= entries
    heldBytes -= bytes
    return buckets.removeValue(forKey: bucket)
  }

  private mutating func finish(
    _ bucket: UInt32, _ gathering: Gathering, anAnswerIsNeeded: Bool = true
  ) -> [Action] {
    let living = gathering.requesters.filter { links[$0] != nil }
    let opener =
      anAnswerIsNeeded
      ? living.first { gathering.answered.contains($0) } ?? gathering.answered.first
      : living.first
    guard let opener, let name = links[opener] else {
      heldEntries -= gathering.entries.count
      heldBytes -= gathering.bytes
      buckets.removeValue(forKey: bucket)
      return []
    }
    buckets[bucket] = .closing(
      epoch: gathering.epoch, opener: opener, entries: gathering.entries.count,
      bytes: gathering.bytes)
    return [
      .close(
        RecoveryRequest(
          bucket: Int(bucket), epoch: gathering.epoch, highestSeen: gathering.highestSeen,
          entries: gathering.entries, requester: name.text))
    ]
  }
}
