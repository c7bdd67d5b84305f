// Leases for the admin handlers: read as they lie in Redis, ended by the script that ends what is
// due.

import TollgateCore
import TollgateEngine
import TollgateRedis

extension LiveBackend {
  func leases(of account: Subject) async throws(AdminFailure) -> LeaseListReply {
    let snapshot = try await snapshot(account)
    return LeaseListReply(
      time: snapshot.now,
      leases: await isCurrent(snapshot, account) ? reports(snapshot.leases, account) : [])
  }

  /// `cursor`: the bucket and where its scan is; nil starts.
  func leases(after cursor: String?, limit: Int) async throws(AdminFailure) -> LeaseListReply {
    let parts = (cursor ?? "0:0").split(separator: ":").map(String.init)
    guard parts.count == 2, let bucket = Int(parts[0]), (0..<keys.map.buckets).contains(bucket)
    else { throw .badRequest("after", "is not a `next` of this method", value: cursor ?? "") }
    let page = try await reading { () async throws(StoreFailure) in
      try await store.accountsWithLeases(bucket: bucket, after: parts[1], count: Int64(limit))
    }
    var reply = LeaseListReply(time: store.wallTime(), leases: [])
    for account in page.accounts.sorted() {
      let one = try await leases(of: account)
      reply.time = one.time
      reply.leases += one.leases
    }
    if page.next != "0" {
      reply.next = "\(bucket):\(page.next)"
    } else if bucket + 1 < keys.map.buckets {
      reply.next = "\(bucket + 1):0"
    }
    return reply
  }

  func releaseLease(of lessee: LesseeID, account: Subject) async throws(AdminFailure) -> Int64 {
    let bucket = keys.bucket(of: account)
    for _ in 0..<Self.attemptsMax {
      let epoch = try await epoch(bucket)
      do throws(StoreFailure) {
        switch try await store.endLeases(
          of: account, bucket: bucket, epoch: epoch, releases: [lessee])
        {
        case .done(let ended): return ended.units
        // What is not seeded in this epoch holds nothing.
        case .unseeded: return 0
        case .unseen: continue
        }
      } catch {
        guard case .fenced = error else { throw Self.failure(error) }
        await sidecar.healer.fenced(bucket: bucket, epoch: epoch)
      }
    }
    throw .unavailable("the account's bucket stays fenced")
  }

  /// Of another epoch's header nothing holds.
  private func isCurrent(_ snapshot: ReadAccountCall.Snapshot, _ account: Subject) async -> Bool {
    let (_, epoch) = await state(snapshot, keys.bucket(of: account))
    return snapshot.header.epoch == epoch
  }

  func reports(_ leases: [StoredLease], _ account: Subject) -> [LeaseReport] {
    let hub = sidecar.leases
    let settling = Set(hub.table.region.predecessors).subtracting(hub.table.finishedPredecessors)
    return leases.map { lease in
      let isSettling = settling.contains(lease.lessee.number)
      let doubt = LeaseRules.graceMilliseconds + LeaseRules.horizonMilliseconds
      return LeaseReport(
        account: account.account, lessee: lease.lessee, own: lease.lessee.number == hub.lessee,
        state: isSettling ? .settling : lease.isInDoubt ? .inDoubt : .live,
        until: lease.isInDoubt ? lease.expires + doubt : lease.expires,
        portions: lease.portions.compactMap(Self.portion))
    }
  }

  /// From `<feature>|<window>` or `<feature>~<limit>`.
  private static func portion(_ stored: StoredLease.Portion) -> LeaseReport.Portion? {
    let parts = stored.field.split(
      separator: stored.isRate ? "~" : "|", maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.count == 2, let feature = try? Name(String(parts[0])) else { return nil }
    if stored.isRate {
      return LeaseReport.Portion(
        subject: stored.subject, feature: feature, window: nil,
        limit: try? Name(String(parts[1])), units: stored.left)
    }
    return LeaseReport.Portion(
      subject: stored.subject, feature: feature, window: Window(code: parts[1])?.word,
      limit: nil, units: stored.left)
  }
}
