// Thresholds through the live sidecar: the script notes them, the sidecar keeps a copy of the
// deltas like of every one it caused, and counts them.

import TollgateCore
import TollgateRedis

extension LiveBackend: ThresholdStore {
  func knownGlobal() async -> GlobalConfig? { await sidecar.healer.currentGlobal }

  func note(
    _ reading: ThresholdReading, globalVersion: Int64, accountVersion: Int64
  ) async throws(AdminFailure) -> Bool {
    let bucket = sidecar.keys.bucket(of: reading.subject)
    guard let epoch = await sidecar.healer.epoch(of: bucket) else { return false }
    let fence = try await self.reading { () async throws(StoreFailure) in
      try await store.fence(bucket: bucket, epoch: epoch)
    }
    let call = ThresholdCall(
      keySpace: sidecar.keys, fence: fence, reading: reading, globalVersion: globalVersion,
      accountVersion: accountVersion, outboxEntriesMax: outboxEntriesMax)
    let reply = try await self.reading { () async throws(StoreFailure) in
      call.decode(try await store.raw(call))
    }
    switch reply {
    case .done(let outcome):
      for entry in outcome.entries {
        await sidecar.healer.retainConfig(entry, bucket: bucket, epoch: outcome.epoch)
      }
      sidecar.metrics.thresholds.add(Int64(outcome.entries.count))
      return true
    case .stale, .rebuild, .outboxFull: return false
    case .fenced:
      await sidecar.healer.fenced(bucket: bucket, epoch: epoch)
      return false
    case .error(let text): throw .unavailable("redis refused the call: \(text)")
    }
  }
}
