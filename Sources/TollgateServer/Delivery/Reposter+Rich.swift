// A POST beyond the dedupe window whose units are burnt from grants or charged to others: only the
// script can say by how much, so it is put to `transact` with the ledger's word that it is new. It
// counts in the periods that run now, at the prices of now.

import TollgateCore
import TollgateRedis
import TollgateWire

extension Reposter {
  /// nil: something changed meanwhile; to be tried again.
  func postRich(
    _ late: LatePost, _ global: GlobalConfig, _ account: AccountConfig, _ epoch: Int64
  ) async throws -> TollgateServer.Outcome? {
    let operation = late.operation
    let resolution = Resolution.resolve(
      subject: operation.subject, items: operation.items, attributes: operation.attributes,
      global: global, account: account, now: try await store.now(bucket: late.bucket),
      zones: SystemZones.book)
    var call = TransactCall(
      keySpace: store.keys, fence: try await store.fence(bucket: late.bucket, epoch: epoch),
      operation: operation.id,
      fingerprint: OperationFingerprint(
        subject: operation.subject, items: operation.items, attributes: operation.attributes),
      mode: .post, subject: operation.subject,
      plan: RichPlan(resolution: resolution, depth: operation.subject.depth),
      asked: operation.items.count,
      common: UsageBody.commonFields(
        catalogVersion: global.catalogVersion, source: late.source,
        attributes: operation.attributes, traceParent: operation.traceParent),
      globalVersion: global.version, accountVersion: account.version,
      limits: healer.configuration.storeLimits)
    call.isVouched = true
    let reply = call.decode(try await store.raw(call))
    let path = operation.subject.account.path
    switch reply.answer {
    case .decided(let decided):
      let entries = reply.entries(of: operation.id, decided)
      await loops[0].value { $0.reposted(entries, bucket: late.bucket, epoch: epoch) }
      metrics.latePosts.add()
      metrics.lateReposted.add(Int64(entries.count))
      return .decision(decided.decision)
    case .replayed(let decided): return .decision(decided.decision)
    case .mismatch(let field):
      return .error(
        .idempotencyMismatch, "\(field.name) differ from the first request of this id")
    case .holdsDue:
      await healer.expire(account: path, bucket: late.bucket, epoch: epoch)
      return nil
    case .holdsElsewhere:
      await healer.bring(account: path, bucket: late.bucket, epoch: epoch, known: [])
      return nil
    case .fenced:
      await healer.fenced(bucket: late.bucket, epoch: epoch)
      return nil
    case .stale, .rebuild, .period, .young: return nil
    case .error("QUANTITY_OVERFLOW"):
      return .error(.amountOutOfRange, "a counter would leave the quantity range")
    case .idTooOld, .idFromFuture, .expired, .planWanted, .notHeld, .error:
      return Self.unavailable("the store refused it")
    }
  }
}
