// Which buckets this sidecar ships: the others of them are somebody else's to keep tidy.

import NIOConcurrencyHelpers

final class OwnedBuckets: Sendable {
  private let buckets = NIOLockedValueBox<Set<Int>>([])

  func set(_ bucket: Int, _ isOwned: Bool) {
    buckets.withLockedValue {
      if isOwned { $0.insert(bucket) } else { $0.remove(bucket) }
    }
  }

  func contains(_ bucket: Int) -> Bool { buckets.withLockedValue { $0.contains(bucket) } }
}
