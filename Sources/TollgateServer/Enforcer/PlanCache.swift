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
    /// Those of the request where rates go by them; else none.
    var attributes: [String: String]
  }

  private struct Entry {
    var globalVersion: Int64
    var accountVersion: Int64
    var prepared: Prepared
  }

  /// What every call of the like brings along.
  final class Prepared {
    enum Plan {
      /// For `decide`, with `DecideOperation.keys`.
      case plain(DecidePlan, keys: [String])
      case rich(RichPlan)
    }

    let resolution: Resolution
    let plan: Plan
    /// Of the deltas, where they are the same for each; see `UsageBodyCache`.
    var bodies: [[UInt8]]?

    init(resolution: Resolution, plan: Plan) {
      self.resolution = resolution
      self.plan = plan
    }
  }

  /// One takes about two kilobytes.
  static let generationMax = 2_048
  private var young: [Key: Entry] = [:]
  private var old: [Key: Entry] = [:]

  var count: Int { young.count + old.count }

  mutating func plan(
    for request: Request, global: GlobalConfig, account: AccountConfig, now: WallTime,
    keys: KeySpace
  ) -> Prepared {
    let key = Key(
      subject: request.subject.path, items: request.items,
      attributes: global.catalog.rates.rates.isEmpty ? [:] : request.attributes)
    if let entry = young[key] ?? old[key], entry.globalVersion == global.version,
      entry.accountVersion == account.version, now < entry.prepared.resolution.validUntil,
      entry.prepared.resolution.cells.allSatisfy({ $0.period.contains(now) })
    {
      return entry.prepared
    }
    let resolution = Resolution.resolve(
      subject: request.subject, items: request.items, attributes: request.attributes,
      global: global, account: account, now: now, zones: SystemZones.book)
    let prepared = Prepared(
      resolution: resolution, plan: Self.plan(request, resolution, keys))
    if young.count >= Self.generationMax {
      old = young
      young = [:]
    }
    young[key] = Entry(
      globalVersion: global.version, accountVersion: account.version, prepared: prepared)
    return prepared
  }

  private static func plan(
    _ request: Request, _ resolution: Resolution, _ keys: KeySpace
  ) -> Prepared.Plan {
    if resolution.isRich {
      return .rich(RichPlan(resolution: resolution, depth: request.subject.depth))
    }
    let plan = DecidePlan(items: request.items, resolution: resolution)
    return .plain(plan, keys: keys.keys(request.bucket, of: request.subject, plan))
  }
}
