// Leases beside the request path: ended when nothing was heard of their owner, so that what he
// cannot have spent is free for others. What he may have spent stays held, in doubt, until he
// settles it, an operator releases it, or a day has gone.

import Logging
import TollgateCore
import TollgateRedis

extension Healer {
  /// Somebody may have taken a lease below the account between the reading and the call.
  static let leaseAttemptsMax = 5

  /// Everything of the account that is due by Redis's clock; the script judges again.
  @discardableResult
  func endLeases(
    of account: Subject, bucket: Int, epoch: Int64
  ) async -> LeaseEndCall.Ended? {
    do {
      for _ in 0..<Self.leaseAttemptsMax {
        switch try await store.endLeases(of: account, bucket: bucket, epoch: epoch) {
        case .done(let ended):
          metrics.leasesEnded.add(ended.ended)
          return ended
        case .unseeded: return nil
        case .unseen: continue
        }
      }
    } catch {
      logger.debug(
        "leases not ended", metadata: ["account": "\(account.path)", "error": "\(error)"])
    }
    return nil
  }
}

extension ColdStore {
  func accountsWithLeasesDue(
    bucket: Int, now: WallTime, count: Int64
  ) async throws(StoreFailure) -> [Subject] {
    try await read(Reads.accountsWithLeasesDue(keys, bucket: bucket, now: now, count: count))
  }

  func leases(of account: Subject) async throws(StoreFailure) -> [StoredLease] {
    try await read(Reads.leases(keys, account: account))
  }

  /// - Parameters:
  ///   - releases: whose doubts are over, by an operator's word.
  ///   - closed: who is gone, with everything settled, and was closed in the bucket.
  func endLeases(
    of account: Subject, bucket: Int, epoch: Int64, releases: [LesseeID] = [],
    closed: [LesseeID] = []
  ) async throws(StoreFailure) -> LeaseEndCall.Outcome {
    let call = LeaseEndCall(
      keySpace: keys, fence: try await fence(bucket: bucket, epoch: epoch), account: account,
      leases: try await leases(of: account), releases: releases, closed: closed)
    return try value(call.decode(try await raw(call)))
  }
}
