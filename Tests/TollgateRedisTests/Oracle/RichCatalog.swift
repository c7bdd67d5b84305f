// Random catalogs, accounts and grants for the oracle of `transact` and `settle`: few names and small
// numbers, so that everything meets everything.

import TollgateCore
import TollgateTesting

enum RichCatalog {
  /// chat is burnt from grants, what goes beyond is charged to spend; tokens are all charged, by
  /// model; spend is money; runs are held; plain is none of that, but may be held.
  static let names = ["chat", "tokens", "spend", "runs", "plain"].map { Catalog.name($0) }
  static var chat: Name { names[0] }
  static var tokens: Name { names[1] }
  static var spend: Name { names[2] }
  static var runs: Name { names[3] }
  static var plain: Name { names[4] }
  static let pro = Catalog.name("pro")
  /// Lacks one of the features.
  static let bare = Catalog.name("bare")
  static let models = ["small", "large", "strange"]
  static let windows: [Window] = [
    .minute, .hour, .day, .month, .lifetime, .seconds(90), .seconds(20), Window(.month, .anchored),
    Window(.day, .anchored),
  ]

  static func make(_ random: inout SeededRandom) -> Catalog {
    var features: [Name: Feature] = [:]
    for name in names {
      features[name] = Feature(
        name: name, metered: name == spend || random.chance(0.8),
        importance: name == spend ? .money : .volume, unit: "unit",
        reservable: random.chance(0.8))
    }
    var entitlements: [Name: [Limit]] = [:]
    for name in names {
      var limits: [Limit] = []
      if name == chat || name == spend { limits.append(credit("\(name).credit", &random)) }
      if name == runs {
        limits.append(
          Catalog.limit("runs.live", .concurrency(amount: amount(3...20, &random)), level: 1))
      }
      if name == spend || random.chance(0.2) {
        limits.append(cap("\(name).cap", &random))
      }
      for index in 0..<Int.random(in: 0...2, using: &random) {
        limits.append(other("\(name).l\(index)", &random))
      }
      entitlements[name] = limits
    }
    var rest = entitlements
    rest[random.chance(0.5) ? chat : spend] = nil
    return Catalog(
      levels: ["account", "member", "run"].map { Catalog.name($0) }, unknownAccount: .deny,
      features: features, rates: rates(&random),
      plans: [
        pro: Plan(name: pro, entitlements: entitlements),
        bare: Plan(name: bare, entitlements: rest),
      ])
  }

  private static func amount(_ range: ClosedRange<Int64>, _ random: inout SeededRandom) -> Int64 {
    Int64.random(in: range, using: &random)
  }

  private static func window(_ random: inout SeededRandom) -> Window {
    windows.randomElement(using: &random) ?? .day
  }

  private static func enforcement(_ random: inout SeededRandom) -> Enforcement {
    random.chance(0.85) ? .hard : random.chance(0.5) ? .soft : .shadow
  }

  private static func credit(_ id: String, _ random: inout SeededRandom) -> Limit {
    var included: Credit.Included?
    if random.chance(0.7) {
      let most = amount(0...40, &random)
      included = Credit.Included(
        amount: amount(0...80, &random), every: window(&random),
        priority: [50, 100, 150].randomElement(using: &random) ?? 100,
        rollover: random.chance(0.4) ? Rollover(min: amount(0...most, &random), max: most) : .none)
    }
    return Catalog.limit(
      id, .credit(Credit(included: included, allowsOverage: random.chance(0.6))))
  }

  private static func cap(_ id: String, _ random: inout SeededRandom) -> Limit {
    Catalog.limit(
      id,
      .spendCap(
        amount: random.chance(0.2) ? nil : amount(0...60, &random), window: window(&random)),
      level: Int.random(in: 1...2, using: &random), enforcement(&random))
  }

  private static func other(_ id: String, _ random: inout SeededRandom) -> Limit {
    let kind: LimitKind
    switch random.unit() {
    case ..<0.45: kind = .quota(amount: amount(5...120, &random), window: window(&random))
    case ..<0.6:
      let lengths: [Int64] = [1000, 90_000, 3_600_000]
      kind = .sliding(
        amount: amount(5...120, &random),
        lengthMilliseconds: lengths.randomElement(using: &random) ?? 1000)
    case ..<0.75:
      kind = .rate(
        amount: amount(1...50, &random), periodMilliseconds: random.chance(0.4) ? 1000 : 60_000,
        burst: amount(5...60, &random))
    case ..<0.85: kind = .concurrency(amount: amount(5...60, &random))
    case ..<0.95: kind = .unlimited
    default: kind = .gate(enabled: random.chance(0.7))
    }
    return Catalog.limit(
      id, kind, level: Int.random(in: 1...3, using: &random), enforcement(&random))
  }

  private static func rates(_ random: inout SeededRandom) -> RateCard {
    func price(_ random: inout SeededRandom) -> Price {
      Price(amount(0...7, &random), per: amount(1...6, &random)) ?? Price(1, per: 1)!
    }
    func rate(
      _ id: String, _ feature: Name, _ portion: RateCard.Portion = .all,
      when: [String: String] = [:], from: WallTime = WallTime(milliseconds: 0),
      _ random: inout SeededRandom
    ) -> RateCard.Rate {
      RateCard.Rate(
        id: Catalog.name(id), feature: feature, into: spend, portion: portion, when: when,
        price: price(&random), from: from)
    }
    var rates: [RateCard.Rate] = []
    if random.chance(0.7) {
      rates.append(rate("small", tokens, when: ["model": "small"], &random))
      rates.append(rate("large", tokens, when: ["model": "large"], &random))
      // A second version of it, some way into the round.
      rates.append(
        rate("large", tokens, when: ["model": "large"], from: StoreRig.start + 60_000, &random))
      if random.chance(0.5) { rates.append(rate("ceiling", tokens, .all, &random)) }
    }
    if random.chance(0.6) { rates.append(rate("chat.over", chat, .overage, &random)) }
    return RateCard(rates)
  }

  static func grant(_ id: Int, at now: WallTime, _ random: inout SeededRandom) -> Grant {
    let effective = now + Int64.random(in: -50_000...20_000, using: &random)
    let recurs = random.chance(0.3)
    return Grant(
      id: Catalog.name("g\(id)"), feature: random.chance(0.5) ? chat : spend,
      amount: amount(0...60, &random), kind: random.chance(0.5) ? .paid : .promotional,
      priority: [50, 100, 150].randomElement(using: &random) ?? 100, effective: effective,
      expires: random.chance(0.6)
        ? effective + Int64.random(in: 1...400_000, using: &random) : nil,
      created: now, every: recurs ? window(&random) : nil,
      rollover: recurs && random.chance(0.5)
        ? Rollover(min: 0, max: amount(0...30, &random)) : .none)
  }
}
