// Keeps operation records within their window and their bytes, and ends reservations and leases
// whose time has come where nobody touches their account: looks at each open bucket every few
// seconds. A sweep that finds nothing to drop costs one small script call and a few small reads,
// so it is whoever ships a bucket who does it. The others do it, too, but seldom, because a bucket
// that nobody ships must not fill up either; and where there is no ledger everybody does.

import TollgateCore
import TollgateRedis

struct Sweeper: Sendable {
  let configuration: ServerConfiguration
  let store: ColdStore
  let healer: Healer
  let buckets: BucketMap
  let owned: OwnedBuckets

  /// Far below the length of a slice (two minutes), so that a ceiling is noticed in time.
  static let roundMilliseconds: Int64 = 2_000
  /// Who does not ship a bucket sweeps it in one of so many rounds.
  static let standbyRounds = 15

  func run() async {
    var reports: [Int: SweepCall.Report] = [:]
    // Where it begins differs between sidecars, as their rounds do.
    var number = Int.random(in: 0..<Self.standbyRounds)
    while !Task.isCancelled {
      number += 1
      let isEverybodys = configuration.ledger == nil || number % Self.standbyRounds == 0
      // Several buckets at a time: their calls share the way to Redis, and the process wakes once
      // for many of them.
      for first in stride(from: 0, to: buckets.buckets, by: Self.bucketsAtOnce) {
        let group = (first..<min(first + Self.bucketsAtOnce, buckets.buckets)).filter {
          isEverybodys || owned.contains($0)
        }
        guard !group.isEmpty else { continue }
        let found = await round(group, after: reports)
        for bucket in group { reports[bucket] = found[bucket] }
      }
      try? await Task.sleep(until: Nap.end(after: Self.roundMilliseconds))
    }
  }

  static let bucketsAtOnce = 16

  private func round(
    _ some: [Int], after reports: [Int: SweepCall.Report]
  ) async -> [Int: SweepCall.Report] {
    await withTaskGroup(of: (Int, SweepCall.Report?).self) { group in
      for bucket in some {
        group.addTask {
          guard !Task.isCancelled, let epoch = await healer.epoch(of: bucket) else {
            return (bucket, nil)
          }
          // A refusal (fence, Redis away) is met again by the next round.
          let report = try? await store.sweep(
            bucket: bucket, epoch: epoch, limits: configuration.storeLimits,
            after: reports[bucket])
          await expire(bucket, epoch)
          return (bucket, report)
        }
      }
      var found: [Int: SweepCall.Report] = [:]
      for await (bucket, report) in group { found[bucket] = report }
      return found
    }
  }

  /// Accounts looked at in one round; the rest are in the next.
  private static let accountsDueMax: Int64 = 100

  private func expire(_ bucket: Int, _ epoch: Int64) async {
    guard let now = try? await store.now(bucket: bucket),
      let due = try? await store.accountsDue(bucket: bucket, now: now, count: Self.accountsDueMax)
    else { return }
    for account in due where !Task.isCancelled {
      await healer.expire(account: account.path, bucket: bucket, epoch: epoch)
    }
    let leases = try? await store.accountsWithLeasesDue(
      bucket: bucket, now: now, count: Self.accountsDueMax)
    for account in leases ?? [] where !Task.isCancelled {
      await healer.endLeases(of: account, bucket: bucket, epoch: epoch)
    }
  }
}
