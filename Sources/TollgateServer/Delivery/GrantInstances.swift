// How instances of grants begin, by the configuration in force: what comes over into one is stored
// nowhere but in its counter, by whoever counts in it first. A seed and a delta that is appended
// anew may be the first, and then have to say it like a decision would (DESIGN 3).

import TollgateCore
import TollgateRedis
import TollgateWire

struct GrantInstances: Sendable {
  var account: Subject
  var config: AccountConfig
  var global: GlobalConfig
  var now: WallTime

  /// nil: no such grant is in force, so nothing comes over.
  func beginning(_ feature: Name, _ window: Window, _ period: Period) -> RepostCall.Beginning? {
    // While it runs, or at its last instant: a grant may begin in the middle of a period.
    let instant = period.contains(now) ? now : max(period.start, period.end + -1)
    let resolution = Resolution.resolve(
      subject: account, items: [Item(feature: feature, amount: 0)], global: global,
      account: config, now: instant, zones: SystemZones.book)
    guard resolution.unknownZone == nil else { return nil }
    let draw = resolution.draws[0]?.first {
      let cell = resolution.cells[$0.cell]
      return cell.window == window && cell.period.start == period.start
    }
    return draw.map {
      .init(
        amount: $0.amountBefore, rollover: $0.rollover, before: $0.before, wasWhole: $0.wasWhole)
    }
  }

  /// Of the grants among the counters of a delta, by their place.
  func beginnings(_ counts: [CountedPart], of feature: Name) -> [Int: RepostCall.Beginning] {
    var found: [Int: RepostCall.Beginning] = [:]
    for (index, count) in counts.enumerated() {
      guard case .grant = count.window.tally else { continue }
      found[index] = beginning(feature, count.window, count.period)
    }
    return found
  }

  /// What came over into each of these instances of one grant, by its start.
  func carried(_ instances: [BalancesReply.Balance]) -> [WallTime: Int64] {
    let burnt = Dictionary(
      instances.map { ($0.period.start, $0.settled) }, uniquingKeysWith: { first, _ in first })
    // The ledger answers with so many at least: what lies before the oldest of a full answer is
    // not known to be untouched, and is taken for burnt to the end.
    let isCut = instances.count >= BalancesReply.grantInstances
    var carried: [WallTime: Int64] = [:]
    for (index, one) in instances.sorted(by: { $0.period.start < $1.period.start }).enumerated() {
      guard let beginning = beginning(one.feature, one.window, one.period),
        let before = beginning.before, beginning.rollover != .none
      else { continue }
      let left: Int64? =
        if let settled = burnt[before] {
          max(0, beginning.amount + (carried[before] ?? 0) - settled)
        } else {
          index == 0 && isCut ? 0 : beginning.wasWhole ? beginning.amount : nil
        }
      guard let left else { continue }
      carried[one.period.start] = beginning.rollover.carried(left: left, amount: beginning.amount)
    }
    return carried
  }
}

extension SeedCell {
  /// The ledger's balances as counters: per counter the latest period, and the one before it.
  static func cells(_ balances: [BalancesReply.Balance], _ grants: GrantInstances?) -> [SeedCell] {
    struct Key: Hashable {
      var subject: Subject
      var feature: Name
      var window: Window
    }
    var grouped: [Key: [BalancesReply.Balance]] = [:]
    for balance in balances where balance.window.tally != .inFlight {
      grouped[
        Key(subject: balance.subject, feature: balance.feature, window: balance.window),
        default: []
      ].append(balance)
    }
    return grouped.map { key, found in
      let sorted = found.sorted { $0.period.start > $1.period.start }
      let latest = sorted[0]
      let previous = sorted.count > 1 ? sorted[1] : nil
      var forgiven = latest.forgiven
      if case .grant = key.window.tally {
        forgiven = grants?.carried(found)[latest.period.start] ?? 0
      }
      return SeedCell(
        subject: key.subject, feature: key.feature, window: key.window,
        period: latest.period, settled: latest.settled, forgiven: forgiven,
        previousStart: previous?.period.start, previousSettled: previous?.settled ?? 0)
    }
  }
}
