// Reads a catalog from a document and names every problem in it at once (key, value, reason).
// What comes out is known to be sound: names valid, amounts in range, rates whose microseconds
// stay inside the quantity range, each limit id one rule. The form, in YAML:
//
//   levels: [account, member]            # required, 1 … 5, the account first
//   unknown_account: deny                # or {plan: NAME}; deny where absent
//   features:
//     chat.requests: {metered: true, importance: money, unit: request}
//   ranks: {free: 1, pro: 2}             # tells an upgrade from a downgrade
//   plans:
//     free:
//       chat.requests:                   # a list of limits; [] allows and only counts
//         - {id: chat.rpm, rate: 10, per: minute, burst: 10, level: account,
//            enforcement: hard, on_failure: closed}
//         - {id: chat.month, quota: 500, per: month, thresholds: [50, 80, 100]}
//         - {id: chat.gate, gate: true}
//         - {id: chat.free, unlimited: true, on_failure: {open: 5000}}
//         - {id: chat.smooth, sliding: 100, per: hour}
//         - {id: chat.live, concurrency: 20}
//         - {id: chat.credit, credit: {amount: 500, every: month}, overage: allow}
//         - {id: chat.cap, spend_cap: 1000, per: month}          # or: none
//         - {id: chat.day, quota: 90, per: day, precision: exact}
//   rates: ...                           # optional, see RateReader
//
// The kind of a limit is the one key of `kindKeys` that it has; exactly one must be there.
// Defaults: `importance: money` (the dearer one is the safe one), `unit: unit`,
// `reservable: false`, `idempotency: global`, `burst` = the rate, `level` = the account,
// `enforcement: hard`, `on_failure: closed`, `precision: auto` (of money: exact).
// deploy/catalog.schema.json publishes the same form; a test holds the two together.

package enum CatalogReader {
  package static let rootKeys = [
    "levels", "unknown_account", "features", "rates", "ranks", "plans",
  ]
  package static let featureKeys = ["metered", "importance", "unit", "reservable", "idempotency"]
  package static let kindKeys = [
    "gate", "quota", "rate", "sliding", "concurrency", "credit", "spend_cap", "unlimited",
  ]
  package static let limitKeys =
    ["id"] + kindKeys
    + ["per", "burst", "overage", "level", "enforcement", "on_failure", "thresholds", "precision"]
  /// Kinds whose use can reach a part of an amount in a period.
  package static let thresholdKinds = ["quota", "spend_cap", "credit"]
  package static let unitBytesMax = 32

  package enum Outcome: Sendable {
    case success(Catalog)
    case failure([Problem])
  }

  package static func read(_ document: Document) -> Outcome {
    let problems = ProblemList()
    let catalog = read(DocumentNode(document, problems: problems))
    if let catalog, problems.isEmpty { return .success(catalog) }
    return .failure(problems.report)
  }

  /// Reads a catalog inside another document; nil, with at least one problem, where it is unsound.
  package static func read(_ node: DocumentNode) -> Catalog? {
    guard let root = node.object(rootKeys, required: ["levels", "features", "plans"]) else {
      return nil
    }
    let before = node.problems.problems.count
    let levels = readLevels(root["levels"])
    let features = readFeatures(root["features"])
    let rates = root["rates"].flatMap { RateReader.read($0, features: features) }
    let limits = LimitReader(levels: levels)
    var plans = readPlans(root["plans"], features: features, limits: limits)
    readRanks(root["ranks"], into: &plans)
    let unknownAccount = readUnknownAccount(root["unknown_account"], plans: plans)
    guard node.problems.problems.count == before else { return nil }
    return Catalog(
      levels: levels, unknownAccount: unknownAccount, features: features,
      rates: rates ?? RateCard(), plans: plans)
  }

  private static func readLevels(_ node: DocumentNode?) -> [Name] {
    guard let node, let items = node.list(max: Subject.levelsMax) else { return [] }
    if items.isEmpty { node.problem("must name at least the account's level") }
    var levels: [Name] = []
    for item in items {
      guard let name = item.name() else { continue }
      if levels.contains(name) { item.problem("the level is named twice") }
      levels.append(name)
    }
    return levels
  }

  private static func readFeatures(_ node: DocumentNode?) -> [Name: Feature] {
    var features: [Name: Feature] = [:]
    for (key, node) in node?.members(max: Catalog.featuresMax) ?? [] {
      let name = node.name(key)
      guard let fields = node.object(featureKeys, required: ["metered"]) else { continue }
      let metered = fields["metered"]?.bool()
      var importance: Feature.Importance? = .money
      if let field = fields["importance"] { importance = field.choice(Feature.Importance.self) }
      var unit: String? = "unit"
      if let field = fields["unit"] { unit = field.string(bytesMax: unitBytesMax) }
      let reservable = fields["reservable"].map { $0.bool() } ?? false
      let idempotency = readIdempotency(
        fields["idempotency"], importance: importance, isReservable: reservable == true)
      guard let name else { continue }
      // A feature with a problem is kept with stand-ins, so that plans do not report it again.
      features[name] = Feature(
        name: name, metered: metered ?? false, importance: importance ?? .money,
        unit: unit ?? "unit", reservable: reservable ?? false,
        idempotency: idempotency)
    }
    return features
  }

  /// What a sidecar alone remembers goes with its host: not for money, nor for what may be held,
  /// since a hold is known by the id of the operation that made it.
  private static func readIdempotency(
    _ node: DocumentNode?, importance: Feature.Importance?, isReservable: Bool
  ) -> Feature.Idempotency {
    guard let scope = node?.choice(Feature.Idempotency.self), scope == .sidecar else {
      return .global
    }
    if importance == .money { node?.problem("sidecar needs `importance: volume`") }
    if isReservable { node?.problem("sidecar is not for what is reservable") }
    return scope
  }

  private static func readPlans(
    _ node: DocumentNode?, features: [Name: Feature], limits: LimitReader
  ) -> [Name: Plan] {
    var plans: [Name: Plan] = [:]
    for (planKey, node) in node?.members(max: Catalog.plansMax) ?? [] {
      let planName = node.name(planKey)
      var entitlements: [Name: [Limit]] = [:]
      for (featureKey, node) in node.members(max: Catalog.featuresMax) ?? [] {
        guard let feature = node.name(featureKey) else { continue }
        if features[feature] == nil { node.problem("the feature is not among `features`") }
        guard let list = node.list(max: Catalog.limitsPerFeatureMax) else { continue }
        entitlements[feature] = limits.read(list, of: feature)
      }
      if let planName { plans[planName] = Plan(name: planName, entitlements: entitlements) }
    }
    return plans
  }

  private static func readRanks(_ node: DocumentNode?, into plans: inout [Name: Plan]) {
    for (key, node) in node?.members(max: Catalog.plansMax) ?? [] {
      guard let name = node.name(key) else { continue }
      let rank = node.integer(0...Plan.rankMax)
      if plans[name] == nil { node.problem("there is no such plan") }
      plans[name]?.rank = rank
    }
  }

  private static func readUnknownAccount(
    _ node: DocumentNode?, plans: [Name: Plan]
  ) -> UnknownAccount {
    guard let node, node.value != "deny" else { return .deny }
    guard case .object = node.value, let field = node.object(["plan"], required: ["plan"])?["plan"]
    else {
      if case .object = node.value { return .deny }
      node.problem("must be deny or {plan: NAME}")
      return .deny
    }
    guard let name = field.name() else { return .deny }
    if plans[name] == nil { field.problem("there is no such plan") }
    return .plan(name)
  }
}
