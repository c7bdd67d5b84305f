// What a request resolves to, kept: between two boundaries and under the same versions the same
// subject asking for the same items gets the same limits, cells and script plan, so they are
// worked out once. Bounded in two generations, like the accounts; an entry is used only while its
// versions are the current ones and its periods have not ended, so a stale one is never decided on.

import TollgateCore
import TollgateRedis

struct PlanCache {
  private struct Key: Hashable {
    var subject: String
    var items: [Item]
  }

  private struct Entry {
    var globalVersion: Int64
    var accountVersion: Int64
    var prepared: Prepared
  }

  struct Prepared {
    let plan: DecidePlan
    /// `DecideOperation.keys`.
    let keys: [String]
  }

  static let generationMax = 16_384
  private var young: [Key: Entry] = [:]
  private var old: [Key: Entry] = [:]

  var count: Int { young.count + old.count }

  mutating func plan(
    for request: Request, global: GlobalConfig, account: AccountConfig, now: WallTime,
    keys: KeySpace
  ) -> Prepared {
    let key = Key(subject: request.subject.path, items: request.items)
    if let entry = young[key] ?? old[key], entry.globalVersion == global.version,
      entry.accountVersion == account.version, now < entry.prepared.plan.resolution.validUntil,
      entry.prepared.plan.resolution.cells.allSatisfy({ $0.period.contains(now) })
    {
      return entry.prepared
    }
    let resolution = Resolution.resolve(
      subject: request.subject, items: request.items, global: global, account: account, now: now,
      zones: SystemZones.book)
    let plan = DecidePlan(items: request.items, resolution: resolution)
    let prepared = Prepared(plan: plan, keys: keys.keys(request.bucket, of: request.subject, plan))
    if young.count >= Self.generationMax {
      old = young
      young = [:]
    }
    young[key] = Entry(
      globalVersion: global.version, accountVersion: account.version, prepared: prepared)
    return prepared
  }
}
