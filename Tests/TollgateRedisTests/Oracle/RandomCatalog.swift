// Random catalogs and overrides for the oracle test.

import TollgateCore
import TollgateTesting

/// Random catalogs and overrides: few names, so that limits meet.
enum RandomCatalog {
  static let features = ["f0", "f1", "f2", "f3", "f4", "f5", "nowhere"].map { Catalog.name($0) }
  static let windows: [Window] = [
    .minute, .hour, .day, .week, .month, .quarter, .year, .lifetime, .seconds(7), .seconds(90),
    Window(.day, .anchored), Window(.month, .anchored), Window(.seconds(90), .anchored),
  ]

  /// Zones by rule, so that the test needs no zone files.
  static let zones = ZoneBook { name in
    (try? RecurringRule(posix: name.utf8)).map {
      ZoneRules(name: name, initialOffset: 0, transitions: [], tail: $0)
    }
  }

  static func calendar(_ since: WallTime?, _ random: inout SeededRandom) -> CalendarSetting {
    let zones = ["UTC", "EST5EDT,M3.2.0,M11.1.0", "<+0545>-5:45", "<+13>-13", "<-11>11"]
    let isRestart = since != nil && random.chance(0.2)
    return CalendarSetting(
      zone: zones.randomElement(using: &random) ?? "UTC",
      anchor: isRestart
        ? since
        : random.chance(0.7)
          ? StoreRig.start + Int64.random(in: -10_000_000_000...1_000_000, using: &random) : nil,
      since: since, restarts: isRestart)
  }

  static func make(_ random: inout SeededRandom) -> Catalog {
    var known: [Name: Feature] = [:]
    var entitlements: [Name: [Limit]] = [:]
    for feature in features.prefix(6) {
      known[feature] = Feature(
        name: feature, metered: random.chance(0.6),
        importance: random.chance(0.3) ? .money : .volume, unit: "unit")
      // The last is in the catalog, but not in the plan.
      if feature == features[5] && random.chance(0.5) { continue }
      entitlements[feature] = (0..<Int.random(in: 0...4, using: &random)).map {
        limit("\(feature).l\($0)", &random)
      }
    }
    return Catalog(
      levels: ["account", "member", "run"].map { Catalog.name($0) }, unknownAccount: .deny,
      features: known,
      plans: [Catalog.name("pro"): Plan(name: Catalog.name("pro"), entitlements: entitlements)])
  }

  private static func limit(_ id: String, _ random: inout SeededRandom) -> Limit {
    let kind: LimitKind
    switch random.unit() {
    case ..<0.15:
      let amount: Int64 =
        random.chance(0.06) ? Quantity.maximum : Int64.random(in: 0...200, using: &random)
      let lengths: [Int64] = [
        1000, 7000, 90_000, 60_000, 3_600_000, 86_400_000, LimitKind.slidingMillisecondsMax,
      ]
      let length = lengths.randomElement(using: &random) ?? 1000
      kind = .sliding(amount: amount, lengthMilliseconds: length)
    case ..<0.55:
      let amount: Int64 =
        random.chance(0.06)
        ? Quantity.maximum : random.chance(0.05) ? 0 : Int64.random(in: 5...200, using: &random)
      kind = .quota(amount: amount, window: windows.randomElement(using: &random) ?? .day)
    case ..<0.85:
      kind = .rate(
        amount: Int64.random(in: 1...50, using: &random),
        periodMilliseconds: [1, 999, 1000, 60_000, 3_600_000].randomElement(using: &random) ?? 1,
        burst: Int64.random(in: 1...30, using: &random))
    case ..<0.93: kind = .unlimited
    default: kind = .gate(enabled: random.chance(0.8))
    }
    let enforcement: Enforcement =
      random.chance(0.7) ? .hard : random.chance(0.5) ? .soft : .shadow
    return Catalog.limit(id, kind, level: Int.random(in: 1...3, using: &random), enforcement)
  }

  static func overrides(
    _ catalog: Catalog, _ account: Subject, _ now: WallTime, _ random: inout SeededRandom
  ) -> [Override] {
    let limits = catalog.plans.values.flatMap { $0.entitlements.values.flatMap { $0 } }
      .sorted { $0.id < $1.id }
    return (0..<Int.random(in: 0...2, using: &random)).compactMap { _ in
      guard let limit = limits.randomElement(using: &random) else { return nil }
      let change: Override.Change
      switch Int.random(in: 0..<4, using: &random) {
      case 0: change = .amount(Int64.random(in: 0...60, using: &random))
      case 1: change = .unlimited
      case 2: change = .enabled(random.chance(0.5))
      default:
        change = .enforcement(Enforcement.allCases.randomElement(using: &random) ?? .hard)
      }
      return Override(
        subject: account, limit: limit.id, change: change,
        expires: random.chance(0.3) ? now + 60_000 : nil, reason: "", author: "")
    }
  }
}
