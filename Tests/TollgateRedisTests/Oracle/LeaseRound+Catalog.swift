// The catalog of a round, and its credit: a feature that is burnt from grants, some of which are
// leased. What Redis decides of it beside that is `transact`'s.

import TollgateCore
import TollgateTesting

@testable import TollgateRedis

extension LeaseRound {
  static let credit = features[3]

  static func catalog(_ random: inout SeededRandom) -> Catalog {
    // Where little is counted and nothing of it by period, subjects go when they are idle.
    let isSparse = random.chance(0.25)
    let windows: [Window] =
      isSparse
      ? [.lifetime]
      : [.minute, .hour, .day, .month, .lifetime, .seconds(7), .seconds(90), .year]
    var known: [Name: Feature] = [:]
    var entitlements: [Name: [Limit]] = [:]
    for feature in features {
      if feature == credit {
        known[feature] = creditFeature(&random)
        entitlements[feature] = creditLimits(&random)
        continue
      }
      var found = Feature(name: feature, metered: random.chance(0.7), importance: .volume, unit: "")
      found.idempotency = .sidecar
      known[feature] = found
      entitlements[feature] = (0..<Int.random(in: 0...(isSparse ? 2 : 3), using: &random)).map {
        number in
        let amount = Int64.random(in: 1...(random.chance(0.3) ? 40 : 3000), using: &random)
        let kind: LimitKind =
          switch random.unit() {
          case ..<0.2 where !isSparse:
            .sliding(
              amount: amount,
              lengthMilliseconds: [1000, 7000, 90_000].randomElement(using: &random) ?? 1000)
          case ..<0.75:
            .quota(amount: amount, window: windows.randomElement(using: &random) ?? .day)
          default:
            .rate(
              amount: Int64.random(in: 1...300, using: &random),
              periodMilliseconds: [1000, 600_000, 3_600_000].randomElement(using: &random) ?? 1000,
              burst: Int64.random(in: 1...(random.chance(0.5) ? 12 : 300), using: &random))
          }
        return Catalog.limit(
          "\(feature).l\(number)", kind, level: Int.random(in: 1...3, using: &random),
          random.chance(0.85) ? .hard : .soft)
      }
    }
    return Catalog(
      levels: ["account", "member", "run"].map { Catalog.name($0) }, unknownAccount: .deny,
      features: known,
      plans: [Catalog.name("pro"): Plan(name: Catalog.name("pro"), entitlements: entitlements)])
  }

  static func creditFeature(_ random: inout SeededRandom) -> Feature {
    var feature = Feature(
      name: credit, metered: random.chance(0.7), importance: .volume, unit: "")
    feature.idempotency = .sidecar
    return feature
  }

  static func creditLimits(_ random: inout SeededRandom) -> [Limit] {
    let windows: [Window] = [.minute, .day, .lifetime, .seconds(90)]
    var included: Credit.Included?
    if random.chance(0.7) {
      included = Credit.Included(
        amount: .random(in: 0...300, using: &random),
        every: windows.randomElement(using: &random) ?? .day,
        priority: [50, 100, 150].randomElement(using: &random) ?? 100,
        rollover: random.chance(0.3)
          ? Rollover(min: 0, max: .random(in: 1...50, using: &random)) : .none)
    }
    var limits = [
      Catalog.limit(
        "f3.credit", .credit(Credit(included: included, allowsOverage: random.chance(0.2))))
    ]
    if random.chance(0.4) {
      limits.append(
        Catalog.limit(
          "f3.member", .quota(amount: .random(in: 5...300, using: &random), window: .day),
          level: 2))
    }
    return limits
  }

  mutating func newGrant(_ number: Int) -> Grant {
    let effective = now + Int64.random(in: -50_000...5_000, using: &random)
    return Grant(
      id: Catalog.name("g\(number)"), feature: Self.credit,
      amount: Int64.random(in: 0...400, using: &random),
      kind: random.chance(0.5) ? .paid : .promotional,
      priority: [50, 100, 150].randomElement(using: &random) ?? 100, effective: effective,
      expires: random.chance(0.5)
        ? effective + Int64.random(in: 60_000...4_000_000, using: &random) : nil,
      created: now)
  }

  /// One more, one voided.
  mutating func changeGrants(_ config: inout AccountConfig) {
    if config.grants.count < 4, random.chance(0.6) {
      config.grants.append(newGrant(config.grants.count))
    } else if let at = config.grants.indices.randomElement(using: &random) {
      config.grants[at].voided = now
    }
  }

  mutating func transact(_ subject: Subject, _ item: Item, _ resolution: Resolution) throws {
    // What is posted may be owed.
    let isPost = !isHonest && random.chance(0.3)
    let id = OperationID(time: now, using: &random)
    let version = versions[subject.account]?.version ?? 0
    let call = TransactCall(
      keySpace: rig.keySpace, fence: rig.fence, operation: id,
      fingerprint: OperationFingerprint(subject: subject, items: [item]),
      mode: isPost ? .post : .consume, subject: subject,
      plan: RichPlan(resolution: resolution, depth: subject.depth), asked: 1, common: [],
      globalVersion: 1, accountVersion: version)
    let expected = evaluator.decide(
      .init(id: id, subject: subject, items: [item]), resolution: resolution,
      versions: .init(global: 1, account: version), nowMicroseconds: microseconds,
      mode: isPost ? .post : .consume)
    let first = sequence
    if case .decided(let decision, let born) = expected {
      sequence += Int64(born.count)
      count(decision.reason.name)
      if isPost { count("posted") }
    }
    let got = OracleRound.comparable(try rig.run(call).answer)
    let wanted = OracleRound.expected(expected, after: first)
    if got != wanted { fail("\(item) of \(subject)\nexpected \(wanted)\n     got \(got)") }
  }

  mutating func bound(_ bound: LeasePortion.Bound, of key: CounterKey) -> Evaluator.LeaseBound {
    func counter(_ window: Window) -> CounterKey {
      CounterKey(subject: key.subject, feature: key.feature, window: window)
    }
    switch bound {
    case .quota(let amount): return .quota(amount)
    case .sliding(let amount, let length): return .sliding(amount, lengthMilliseconds: length)
    case .grant(let amount, let others):
      let deficit = counter(.deficit)
      if evaluator.state.counters[deficit]?.settled ?? 0 > 0 { count("owed") }
      return .grant(
        amount, deficit: deficit,
        others: Dictionary(
          uniqueKeysWithValues: others.map {
            (counter(.grant($0.grant)), .init(start: $0.start, amount: $0.amount))
          }))
    }
  }

  /// Nothing is burnt of a grant, or held for it, beyond what it has and what came over into it.
  mutating func checkGrants(of subject: Subject, _ resolution: Resolution) {
    for draw in resolution.draws.values.joined() where !draw.isVoided {
      let cell = resolution.cells[draw.cell]
      let key = CounterKey(
        subject: subject.account, feature: Self.credit, window: cell.window)
      let (counter, carried) = evaluator.state.reading(key, in: cell.period.start)
      if counter.settled + counter.held > draw.amount + carried {
        fail("\(key): \(counter) of \(draw.amount) and \(carried)")
      }
    }
  }
}
