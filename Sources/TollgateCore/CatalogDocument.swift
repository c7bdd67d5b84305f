// A catalog as a document: what `CatalogReader` reads, written back. Deterministic (sorted by
// name, defaults written out), so that equal catalogs are equal texts in Redis and in the audit.

extension Catalog {
  package init(document: Document) throws(InvalidDocument) {
    switch CatalogReader.read(document) {
    case .success(let catalog): self = catalog
    case .failure(let problems): throw InvalidDocument(problems: problems)
    }
  }

  package var document: Document {
    .fields([
      "levels": .strings(levels.map(\.text)),
      "unknown_account": unknownAccount.document,
      "features": .object(
        features.values.sorted { $0.name < $1.name }
          .map { Document.Member($0.name.text, $0.document) }),
      "rates": rates.rates.isEmpty ? nil : .list(rates.rates.map(\.document)),
      "ranks": ranks.isEmpty ? nil : .object(ranks),
      "plans": .object(
        plans.values.sorted { $0.name < $1.name }
          .map { Document.Member($0.name.text, document(of: $0)) }),
    ])
  }

  private var ranks: [Document.Member] {
    plans.values.sorted { $0.name < $1.name }.compactMap { plan in
      plan.rank.map { Document.Member(plan.name.text, .integer($0)) }
    }
  }

  private func document(of plan: Plan) -> Document {
    .object(
      plan.entitlements.sorted { $0.key < $1.key }.map { feature, limits in
        Document.Member(feature.text, .list(limits.map { $0.document(levels: levels) }))
      })
  }

  /// The features whose every unit becomes a delta, by name. A deployment without a ledger must
  /// have none of these.
  package var meteredFeatures: [Name] {
    features.values.filter(\.metered).map(\.name).sorted()
  }
}

extension UnknownAccount {
  package var document: Document {
    switch self {
    case .deny: "deny"
    case .plan(let name): ["plan": .string(name.text)]
    }
  }
}

extension Feature {
  package var document: Document {
    .fields([
      "metered": .bool(metered), "importance": .string(importance.rawValue), "unit": .string(unit),
      "reservable": reservable ? true : nil,
      "idempotency": idempotency == .global ? nil : .string(idempotency.rawValue),
    ])
  }
}

extension FailurePolicy {
  package var document: Document {
    switch self {
    case .closed: "closed"
    case .stale: "stale"
    case .open(let allowance): ["open": .integer(allowance)]
    }
  }
}

extension Limit {
  package func document(levels: [Name]) -> Document {
    var members = [Document.Member("id", .string(id.text))]
    switch kind {
    case .gate(let enabled): members.append(.init("gate", .bool(enabled)))
    case .unlimited: members.append(.init("unlimited", true))
    case .quota(let amount, let window):
      members.append(.init("quota", .integer(amount)))
      members.append(.init("per", .string(window.word)))
    case .rate(let amount, let period, let burst):
      members.append(.init("rate", .integer(amount)))
      members.append(.init("per", .string(Window(fixedMilliseconds: period).word)))
      members.append(.init("burst", .integer(burst)))
    case .sliding(let amount, let length):
      members.append(.init("sliding", .integer(amount)))
      members.append(.init("per", .string(Window(fixedMilliseconds: length).word)))
    case .concurrency(let amount): members.append(.init("concurrency", .integer(amount)))
    case .credit(let credit):
      members.append(.init("credit", credit.included?.document ?? true))
      members.append(.init("overage", credit.allowsOverage ? "allow" : "deny"))
    case .spendCap(let amount, let window):
      members.append(.init("spend_cap", amount.map { .integer($0) } ?? "none"))
      members.append(.init("per", .string(window.word)))
    }
    // A level that is not in the catalog is a bug of whoever made this value; its number still
    // says more than a trap.
    let level = levels.indices.contains(level - 1) ? levels[level - 1].text : "\(level)"
    members.append(.init("level", .string(level)))
    members.append(.init("enforcement", .string(enforcement.rawValue)))
    members.append(.init("on_failure", failurePolicy.document))
    if let precision { members.append(.init("precision", .string(precision.rawValue))) }
    if !thresholds.isEmpty {
      members.append(.init("thresholds", .list(thresholds.map { .integer($0) })))
    }
    return .object(members)
  }
}

extension Credit.Included {
  var document: Document {
    .fields([
      "amount": .integer(amount),
      "every": .string(every.word),
      "priority": .integer(priority),
      "rollover": rollover == .none ? nil : rollover.document,
    ])
  }
}
