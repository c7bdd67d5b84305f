// Reads the limits of a catalog: what each kind needs, and what may not stand beside it. Each id
// names one rule throughout a catalog, whatever the plan.

/// Reads limits, and remembers each id, since an id names one rule throughout a catalog.
final class LimitReader {
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
      if case .credit = limit.kind,
        limits.contains(where: { if case .credit = $0.kind { true } else { false } })
      {
        node.problem("a feature has one `credit` limit: it burns all grants of the feature")
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
    var thresholds: [Int64]? = []
    if let field = fields["thresholds"] { thresholds = readThresholds(field, of: kind) }
    var precision: Precision??
    if let field = fields["precision"] {
      precision = field.choice(Precision.self).map { .some($0) }
    } else {
      precision = .some(nil)
    }
    guard let id, let kind, let level, let enforcement, let policy, let thresholds, let precision
    else { return nil }
    return Limit(
      id: id, kind: kind, level: level, enforcement: enforcement, failurePolicy: policy,
      thresholds: thresholds, precision: precision)
  }

  private func readThresholds(_ node: DocumentNode, of kind: LimitKind?) -> [Int64]? {
    if let kind, !CatalogReader.thresholdKinds.contains(kind.name) {
      node.problem(
        "belongs to a \(CatalogReader.thresholdKinds.joined(separator: ", a ")) only")
    }
    guard let items = node.list(max: Limit.thresholdsMax) else { return nil }
    var thresholds: [Int64] = []
    for item in items {
      guard let percent = item.integer(1...100) else { continue }
      if thresholds.contains(percent) { item.problem("is named twice") }
      thresholds.append(percent)
    }
    return thresholds.sorted()
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
    if key != "credit" { fields["overage"]?.problem("belongs to a credit only") }
    if ["gate", "unlimited", "concurrency", "credit"].contains(key) {
      fields["per"]?.problem("does not belong to a \(key)")
    }
    switch key {
    case "gate": return node.bool().map { .gate(enabled: $0) }
    case "unlimited":
      if node.value != true { node.problem("must be true") }
      return .unlimited
    case "quota":
      let amount = node.integer(0...Quantity.maximum)
      guard let window = readWindow(fields), let amount else { return nil }
      return .quota(amount: amount, window: window)
    case "sliding": return readSliding(node, fields)
    case "concurrency": return node.integer(0...Quantity.maximum).map { .concurrency(amount: $0) }
    case "credit": return readCredit(node, fields)
    case "spend_cap":
      var amount: Int64??
      if node.value == "none" {
        amount = .some(nil)
      } else {
        amount = node.integer(0...Quantity.maximum).map { .some($0) }
      }
      guard let window = readWindow(fields), let amount else { return nil }
      return .spendCap(amount: amount, window: window)
    default: return readRate(node, fields)
    }
  }

  private func readSliding(_ node: DocumentNode, _ fields: DocumentFields) -> LimitKind? {
    let amount = node.integer(0...Quantity.maximum)
    guard let window = readWindow(fields), let amount else { return nil }
    guard let length = window.fixedMilliseconds, length <= LimitKind.slidingMillisecondsMax else {
      fields["per"]?.problem("a sliding limit needs a window of fixed length, at most a week")
      return nil
    }
    return .sliding(amount: amount, lengthMilliseconds: length)
  }

  private func readCredit(_ node: DocumentNode, _ fields: DocumentFields) -> LimitKind? {
    var allows = false
    if let field = fields["overage"] {
      switch field.value {
      case "allow": allows = true
      case "deny": break
      default: field.problem("must be allow or deny")
      }
    }
    if fields["level"].map({ $0.value != .string(levels.first?.text ?? "") }) ?? false {
      fields["level"]?.problem("grants are the account's: a credit sits at its level")
    }
    if node.value == true { return .credit(Credit(included: nil, allowsOverage: allows)) }
    guard case .object = node.value else {
      node.problem("must be true, or what the plan gives: {amount: UNITS, every: WINDOW}")
      return nil
    }
    guard
      let included = node.object(
        ["amount", "every", "priority", "rollover"], required: ["amount", "every"])
    else { return nil }
    let amount = included["amount"]?.integer(0...Quantity.maximum)
    let every = included["every"].flatMap { Self.window($0) }
    var priority: Int64? = Grant.priorityDefault
    if let field = included["priority"] { priority = field.integer(0...Grant.priorityMax) }
    var rollover: Rollover? = Rollover.none
    if let field = included["rollover"] { rollover = Rollover(node: field) }
    guard let amount, let every, let priority, let rollover else { return nil }
    return .credit(
      Credit(
        included: Credit.Included(
          amount: amount, every: every, priority: priority, rollover: rollover),
        allowsOverage: allows))
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
    return Self.window(node)
  }

  static func window(_ node: DocumentNode) -> Window? {
    guard case .string(let word) = node.value, let window = Window(word: word) else {
      node.problem(
        "must be minute, hour, day, week, month, quarter, year, lifetime or a number of seconds"
          + " such as 90s; `anchored` before it where it follows the billing anchor")
      return nil
    }
    return window
  }
}

extension Rollover {
  init?(node: DocumentNode) {
    guard let fields = node.object(["min", "max"], required: ["max"]) else { return nil }
    let min = fields["min"].map { $0.integer(0...Quantity.maximum) } ?? 0
    let max = fields["max"]?.integer(0...Quantity.maximum)
    guard let min, let max else { return nil }
    guard min <= max else {
      fields["min"]?.problem("must not be above max")
      return nil
    }
    self.init(min: min, max: max)
  }

  var document: Document { ["min": .integer(min), "max": .integer(max)] }
}

extension LimitKind {
  /// What must not change under one limit id: the kind, and the window where it names the counter.
  /// A rate's period may change: its state is an instant, whatever the period.
  package var shape: String {
    switch self {
    case .gate: "gate"
    case .quota(_, let window): "quota per \(window.word)"
    case .rate: "rate"
    // The counter of a sliding limit, and of overage, is named by its window too.
    case .sliding(_, let length): "sliding per \(Window(fixedMilliseconds: length).word)"
    case .concurrency: "concurrency"
    // What a plan gives is counted under the limit's id in the periods of its window: with another
    // window a change of plan would give it anew.
    case .credit(let credit): credit.included.map { "credit per \($0.every.word)" } ?? "credit"
    case .spendCap(_, let window): "spend_cap per \(window.word)"
    case .unlimited: "unlimited"
    }
  }
}
