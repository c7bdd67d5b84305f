// Incarnations before this one: what they let through is settled by this one's exchanges, under
// their ids; when nothing is left, Redis is told that they are over, so that what they held is free
// for others at once and not in a day.
//
//   finished in the table, nothing of it late ─▶ closed in every bucket ─▶ what it holds is
//   ended, account by account ─▶ out of the journal
//
// Why in this order: what is released before it is settled others could take, and the limit would
// be exceeded; a call still on its way could take a lease behind the release, so the bucket hears
// nothing more of it first; and the journal forgets it last, so that whoever follows a crash in the
// middle does it all again, which changes nothing a second time.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis

struct LeasePredecessors: Sendable {
  let hub: LeaseHub
  let healer: Healer
  let loops: [LoopUnit]
  let logger: Logger

  static let roundMilliseconds: Int64 = 250

  /// Ends when there are none left.
  func run() async {
    // Who was closed where: a round that could not go on everywhere is taken up by the next.
    var closed: [UInt64: Set<Int>] = [:]
    while !Task.isCancelled, !hub.table.region.predecessors.isEmpty {
      for number in hub.table.finishedPredecessors where await isSettled() {
        let lessee = LesseeID(number)
        let open = (0..<hub.buckets.buckets).filter { closed[number]?.contains($0) != true }
        let done = await AdminService<LiveBackend>.inParallel(open) { [healer] bucket in
          await healer.closeLessee(lessee, bucket: bucket) ? bucket : nil
        }
        closed[number, default: []].formUnion(done.compactMap { $0 })
        guard closed[number]?.count == hub.buckets.buckets else { continue }
        hub.table.region.closed(number)
        logger.notice(
          "the leases of an earlier incarnation are closed", metadata: ["lessee": "\(lessee)"])
      }
      try? await Task.sleep(for: .milliseconds(Self.roundMilliseconds))
    }
  }

  /// Whether all that the table gave away was counted, too: an exchange that was too old for Redis
  /// becomes late deltas, which have no hold but the one that would be released. And what cannot be
  /// settled by anybody stays held until its horizon, or until an operator has looked at it.
  private func isSettled() async -> Bool {
    for loop in loops {
      guard await loop.value({ $0.retained.lateCount }) == 0 else { return false }
    }
    return hub.table.gauges.unresolvedUnits == 0
  }
}

extension LeaseHub {
  /// Those before this one are closed, or it is that late. Whoever starts a sidecar and stops it to
  /// have a journal settled finds it settled.
  func predecessorsClosed(until end: NIODeadline) async {
    while NIODeadline.now() < end, !table.region.predecessors.isEmpty {
      try? await Task.sleep(for: .milliseconds(20))
    }
  }
}

extension Healer {
  private static let leaseAccountsPerPage: Int64 = 200

  private func endAll(
    of lessee: LesseeID, _ account: Subject, bucket: Int, epoch: Int64
  ) async throws(StoreFailure) -> Bool {
    for _ in 0..<Self.leaseAttemptsMax {
      switch try await store.endLeases(
        of: account, bucket: bucket, epoch: epoch, closed: [lessee])
      {
      // What is not seeded in this epoch holds nothing.
      case .done, .unseeded: return true
      case .unseen: continue
      }
    }
    return false
  }

  /// False: not now, or not everywhere.
  func closeLessee(_ lessee: LesseeID, bucket: Int) async -> Bool {
    guard let epoch = epoch(of: bucket) else { return false }
    do {
      try await store.closeLessee(lessee, bucket: bucket, epoch: epoch)
      var cursor = "0"
      repeat {
        let page = try await store.accountsWithLeases(
          bucket: bucket, after: cursor, count: Self.leaseAccountsPerPage)
        for account in try await store.holding(lessee, among: page.accounts) {
          guard try await endAll(of: lessee, account, bucket: bucket, epoch: epoch) else {
            return false
          }
        }
        cursor = page.next
      } while cursor != "0"
      return true
    } catch {
      logger.debug(
        "a lessee is not closed", metadata: ["lessee": "\(lessee)", "error": "\(error)"])
      return false
    }
  }
}

extension ColdStore {
  func closeLessee(_ lessee: LesseeID, bucket: Int, epoch: Int64) async throws(StoreFailure) {
    let call = LeaseCloseCall(
      keySpace: keys, bucket: bucket, fence: try await fence(bucket: bucket, epoch: epoch),
      lessee: lessee)
    _ = try value(call.decode(try await raw(call)))
  }

  func accountsWithLeases(
    bucket: Int, after cursor: String, count: Int64
  ) async throws(StoreFailure) -> (accounts: [Subject], next: String) {
    try await read(Reads.accountsWithLeases(keys, bucket: bucket, after: cursor, count: count))
  }

  /// Those of which the lessee has a lease.
  func holding(
    _ lessee: LesseeID, among accounts: [Subject]
  ) async throws(StoreFailure) -> [Subject] {
    let reads = accounts.map { Reads.hasLease(keys, account: $0, lessee) }
    let replies = await replies(count: reads.count) { reads[$0].write(into: &$1) }
    var holding: [Subject] = []
    for (place, reply) in replies.enumerated() {
      if try value(reads[place].decode(try reply.get())) { holding.append(accounts[place]) }
    }
    return holding
  }
}
