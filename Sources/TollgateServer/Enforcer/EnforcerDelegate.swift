// What an enforcer cannot do on its event loop, because it takes several calls, or the ledger: the
// slow half (Healer) does it beside the request path, and wakes the requests that wait for it.

import TollgateCore
import TollgateRedis

/// The slow work an enforcer cannot do on the request path. Called on the enforcer's event loop;
/// each kind is asked for once until its `…Finished` call comes back on the same loop.
protocol EnforcerDelegate: AnyObject, Sendable {
  func refreshGlobal(atLeast version: Int64)
  func rebuild(account: String, bucket: Int, epoch: Int64, purpose: SeedPurpose)
  func recover(bucket: Int, knownEpoch: Int64)
  /// The bucket's meta holds an older global version than ours.
  func pushVersion(bucket: Int)
  /// A POST whose operation is older than the dedupe window: the ledger knows whether it counts.
  func postLate(_ operation: LatePost)
  /// Reservations of the account are over time.
  func expireHolds(account: String, bucket: Int, epoch: Int64)
  /// What is held of the account is not counted in this epoch yet. `known`: as this sidecar
  /// remembers it.
  func bringHolds(account: String, bucket: Int, epoch: Int64, known: [StoredHold])
  /// Reservations that ended through this sidecar: nobody shall bring them into this epoch.
  func tellOfEnds(_ ends: [HoldEnd], bucket: Int, epoch: Int64)
  /// What is left of an operation the ledger knows.
  func refund(_ errand: RefundErrand)
}
