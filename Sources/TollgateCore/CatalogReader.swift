// Reads a catalog from a document and names every problem in it at once (key, value, reason).
// What comes out is known to be sound: names valid, amounts in range, rates whose microseconds
// stay inside the quantity range, each limit id one rule. The form, in YAML:
//
//   levels: [account, member]            # required, 1 … 5, the account first
//   unknown_account: deny                # or {plan: NAME}; deny where absent
//   features:
//     chat.requests: {metered: true, importance: money, unit: request}
//   plans:
//     free:
//       chat.requests:                   # a list of limits; [] allows and only counts
//         - {id: chat.rpm, rate: 10, per: minute, burst: 10, level: account,
//            enforcement: hard, on_failure: closed}
//         - {id: chat.month, quota: 500, per: month}
//         - {id: chat.gate, gate: true}
//         - {id: chat.free, unlimited: true, on_failure: {open: 5000}}
//
// The kind of a limit is the one key `gate`, `quota`, `rate` or `unlimited` that it has; exactly
// one must be there. Defaults: `importance: money` (the dearer one is the safe one), `unit: unit`,
// `burst` = the rate, `level` = the account, `enforcement: hard`, `on_failure: closed`.
// deploy/catalog.schema.json publishes the same form; a test holds the two together.

package enum CatalogReader {
  package static let rootKeys = ["levels", "unknown_account", "features", "plans"]
  package static let featureKeys = ["metered", "importance", "unit"]
  package static let kindKeys = ["gate", "quota", "rate", "unlimited"]
  package static let limitKeys =
    ["id"] + kindKeys + ["per", "burst", "level", "enforcement", "on_failure"]
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
    let limits = LimitReader(levels: levels)
    let plans = readPlans(root["plans"], features: features, limits: limits)
    let unknownAccount = readUnknownAccount(root["unknown_account"], plans: plans)
    guard node.problems.problems.count == before else { return nil }
    return Catalog(
      levels: levels, unknownAccount: unknownAccount, features: features, plans: plans)
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
      guard let name else { continue }
      // A feature with a problem is kept with stand-ins, so that plans do not report it again.
      features[name] = Feature(
        name: name, metered: metered ?? false, importance: importance ?? .money,
        unit: unit ?? "unit")
    }
    return features
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

/// Reads limits, and remembers each id, since an id names one rule throughout a catalog.
private final class LimitReader {
  private struct Use {
    let feature: Name
    let shape: String
    let level: Int
    let path: String
  }

  private let levels: [Name]
  private var uses: [Name: Use] = [:]

  init(levels: [Name]) { self.levels = levels }

  func read(_ nodes: [DocumentNode], of feature: Name) -> [Limit] {
    var limits: [Limit] = []
    for node in nodes {
      guard let limit = read(node) else { continue }
      if limits.contains(where: { $0.id == limit.id }) {
        node.child("id", .string(limit.id.text)).problem("the id appears twice in this list")
      } else {
        note(limit, of: feature, at: node)
      }
      limits.append(limit)
    }
    return limits
  }

  private func note(_ limit: Limit, of feature: Name, at node: DocumentNode) {
    let shape = limit.kind.shape
    guard let first = uses[limit.id] else {
      uses[limit.id] = Use(feature: feature, shape: shape, level: limit.level, path: node.path)
      return
    }
    let id = node.child("id", .string(limit.id.text))
    if first.feature != feature {
      id.problem("the id already names a limit of \(first.feature) at \(first.path)")
    } else if first.shape != shape {
      id.problem("the id already names a \(first.shape) at \(first.path); this is a \(shape)")
    } else if first.level != limit.level {
      id.problem("the id already names a limit of another level at \(first.path)")
    }
  }

  private func read(_ node: DocumentNode) -> Limit? {
    guard let fields = node.object(CatalogReader.limitKeys, required: ["id"]) else { return nil }
    let id = fields["id"]?.name()
    let kind = readKind(fields)
    let level = readLevel(fields["level"])
    var enforcement: Enforcement? = .hard
    if let field = fields["enforcement"] { enforcement = field.choice(Enforcement.self) }
    var policy: FailurePolicy? = .closed
    if let field = fields["on_failure"] { policy = readPolicy(field) }
    guard let id, let kind, let level, let enforcement, let policy else { return nil }
    return Limit(
      id: id, kind: kind, level: level, enforcement: enforcement, failurePolicy: policy)
  }

  private func readLevel(_ node: DocumentNode?) -> Int? {
    guard let node else { return 1 }
    guard case .string(let text) = node.value,
      let index = levels.firstIndex(where: { $0.text == text })
    else {
      node.problem("must be one of the levels: \(levels.map(\.text).joined(separator: ", "))")
      return nil
    }
    return index + 1
  }

  private func readPolicy(_ node: DocumentNode) -> FailurePolicy? {
    switch node.value {
    case "closed": return .closed
    case "stale": return .stale
    case .object:
      guard let open = node.object(["open"], required: ["open"])?["open"] else { return nil }
      return open.integer(1...FailurePolicy.allowanceMax).map { .open(allowance: $0) }
    default:
      node.problem("must be closed, stale or {open: UNITS}")
      return nil
    }
  }

  private func readKind(_ fields: DocumentFields) -> LimitKind? {
    let present = CatalogReader.kindKeys.filter { fields[$0] != nil }
    guard present.count == 1, let key = present.first, let node = fields[key] else {
      fields.node.problem(
        "must have exactly one of \(CatalogReader.kindKeys.joined(separator: ", "))"
          + (present.isEmpty ? "" : "; has \(present.joined(separator: ", "))"))
      return nil
    }
    if key != "rate" { fields["burst"]?.problem("belongs to a rate only") }
    if key == "gate" || key == "unlimited" { fields["per"]?.problem("does not belong to a \(key)") }
    switch key {
    case "gate": return node.bool().map { .gate(enabled: $0) }
    case "unlimited":
      if node.value != true { node.problem("must be true") }
      return .unlimited
    case "quota":
      let amount = node.integer(0...Quantity.maximum)
      guard let window = readWindow(fields), let amount else { return nil }
      return .quota(amount: amount, window: window)
    default: return readRate(node, fields)
    }
  }

  private func readRate(_ node: DocumentNode, _ fields: DocumentFields) -> LimitKind? {
    let amount = node.integer(1...Quantity.maximum)
    var burst = amount
    if let field = fields["burst"] { burst = field.integer(1...Quantity.maximum) }
    guard let window = readWindow(fields), let amount, let burst else { return nil }
    guard let period = window.fixedMilliseconds else {
      fields["per"]?.problem("a rate needs a window of fixed length")
      return nil
    }
    guard Rate.isBounded(amount: amount, periodMilliseconds: period, burst: burst) else {
      node.problem(
        "burst × window ÷ rate is beyond \(Rate.microsecondsMax) microseconds, the longest that"
          + " is counted exactly")
      return nil
    }
    return .rate(amount: amount, periodMilliseconds: period, burst: burst)
  }

  private func readWindow(_ fields: DocumentFields) -> Window? {
    guard let node = fields["per"] else {
      fields.node.problem("needs `per`: the window")
      return nil
    }
    guard case .string(let word) = node.value, let window = Window(word: word) else {
      node.problem(
        "must be minute, hour, day, week, month, quarter, year, lifetime or a number of seconds"
          + " such as 90s")
      return nil
    }
    return window
  }
}

extension LimitKind {
  /// What must not change under one limit id: the kind, and the window of a quota, because that
  /// names the counter. A rate's period may change: its state is an instant, whatever the period.
  package var shape: String {
    switch self {
    case .gate: "gate"
    case .quota(_, let window): "quota per \(window.word)"
    case .rate: "rate"
    case .unlimited: "unlimited"
    }
  }
}
