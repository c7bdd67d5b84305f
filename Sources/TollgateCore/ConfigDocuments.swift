// Global configuration, overrides, bypasses and decisions as documents: what Redis and
// the ledger store as JSON and what `--json` prints. Instants are whole milliseconds since 1970
// and say so in their key (`_ms`).

extension GlobalConfig {
  package static let bypassesMax = 64
  /// Of all plans together.
  package static let creditsMax = 65_536

  package init(document: Document) throws(InvalidDocument) {
    let problems = ProblemList()
    let node = DocumentNode(document, problems: problems)
    let fields = node.object(
      ["version", "catalog_version", "catalog", "bypasses", "credits"],
      required: ["version", "catalog_version", "catalog"])
    let version = fields?["version"]?.integer(0...Quantity.maximum)
    let catalogVersion = fields?["catalog_version"]?.integer(0...Quantity.maximum)
    let catalog = fields?["catalog"].flatMap { CatalogReader.read($0) }
    let bypasses = fields?["bypasses"]?.list(max: Self.bypassesMax)?.map { Bypass(node: $0) } ?? []
    let credits =
      fields?["credits"]?.list(max: Self.creditsMax)?.map { CreditChange.read($0) } ?? []
    guard problems.isEmpty, let version, let catalogVersion, let catalog else {
      throw InvalidDocument(problems: problems.report)
    }
    self.init(
      version: version, catalogVersion: catalogVersion, catalog: catalog,
      bypasses: bypasses.compactMap { $0 },
      credits: Dictionary(credits.compactMap { $0 }, uniquingKeysWith: { $1 }))
  }

  package var document: Document {
    .fields([
      "version": .integer(version),
      "catalog_version": .integer(catalogVersion),
      "catalog": catalog.document,
      "bypasses": .list(bypasses.map(\.document)),
      "credits": credits.isEmpty
        ? nil
        : .list(
          credits.sorted { ($0.key.plan, $0.key.limit) < ($1.key.plan, $1.key.limit) }
            .map { CreditChange.document($0.key, $0.value) }),
    ])
  }
}

extension Bypass {
  package static let textBytesMax = 256

  package init(document: Document) throws(InvalidDocument) {
    let problems = ProblemList()
    guard let bypass = Bypass(node: DocumentNode(document, problems: problems)), problems.isEmpty
    else { throw InvalidDocument(problems: problems.report) }
    self = bypass
  }

  package init?(node: DocumentNode) {
    guard
      let fields = node.object(
        ["feature", "until_ms", "reason", "actor"], required: ["until_ms", "reason", "actor"])
    else { return nil }
    let feature = fields["feature"].map { $0.name() }
    let until = fields["until_ms"]?.integer(0...Quantity.maximum)
    let reason = fields["reason"]?.string(bytesMax: Self.textBytesMax)
    let actor = fields["actor"]?.string(bytesMax: Self.textBytesMax)
    guard let until, let reason, let actor else { return nil }
    // A feature that could not be read must not widen the bypass to all features.
    if let feature, feature == nil { return nil }
    self.init(
      feature: feature ?? nil, until: WallTime(milliseconds: until), reason: reason, actor: actor)
  }

  package var document: Document {
    .fields([
      "feature": feature.map { .string($0.text) },
      "until_ms": .integer(until.milliseconds),
      "reason": .string(reason),
      "actor": .string(actor),
    ])
  }
}

extension Override {
  package static let textBytesMax = 256
  package static let changeKeys = ["amount", "unlimited", "enabled", "enforcement"]

  package init(document: Document) throws(InvalidDocument) {
    let problems = ProblemList()
    guard let override = Override(node: DocumentNode(document, problems: problems)),
      problems.isEmpty
    else { throw InvalidDocument(problems: problems.report) }
    self = override
  }

  package init?(node: DocumentNode) {
    guard
      let fields = node.object(
        ["subject", "limit"] + Self.changeKeys + ["expires_ms", "since_ms", "reason", "author"],
        required: ["subject", "limit", "reason", "author"])
    else { return nil }
    let subject = fields["subject"]?.subject()
    let limit = fields["limit"]?.name()
    let change = Self.change(fields)
    let expires = fields["expires_ms"].map { $0.integer(0...Quantity.maximum) }
    let reason = fields["reason"]?.string(bytesMax: Self.textBytesMax)
    let author = fields["author"]?.string(bytesMax: Self.textBytesMax)
    guard let subject, let limit, let change, let reason, let author else { return nil }
    if let expires, expires == nil { return nil }
    let since = fields["since_ms"]?.integer(0...Quantity.maximum)
    self.init(
      subject: subject, limit: limit, change: change,
      expires: (expires ?? nil).map { WallTime(milliseconds: $0) }, reason: reason, author: author,
      since: since.map { WallTime(milliseconds: $0) })
  }

  private static func change(_ fields: DocumentFields) -> Change? {
    let present = changeKeys.filter { fields[$0] != nil }
    guard present.count == 1, let key = present.first, let node = fields[key] else {
      fields.node.problem("must have exactly one of \(changeKeys.joined(separator: ", "))")
      return nil
    }
    switch key {
    case "amount": return node.integer(0...Quantity.maximum).map { .amount($0) }
    case "enabled": return node.bool().map { .enabled($0) }
    case "enforcement": return node.choice(Enforcement.self).map { .enforcement($0) }
    default:
      if node.value != true { node.problem("must be true") }
      return .unlimited
    }
  }

  package var document: Document {
    let change: (String, Document) =
      switch change {
      case .amount(let amount): ("amount", .integer(amount))
      case .unlimited: ("unlimited", true)
      case .enabled(let on): ("enabled", .bool(on))
      case .enforcement(let enforcement): ("enforcement", .string(enforcement.rawValue))
      }
    var members = [
      Document.Member("subject", .string(subject.path)),
      Document.Member("limit", .string(limit.text)),
      Document.Member(change.0, change.1),
    ]
    if let expires { members.append(.init("expires_ms", .integer(expires.milliseconds))) }
    if let since { members.append(.init("since_ms", .integer(since.milliseconds))) }
    members.append(.init("reason", .string(reason)))
    members.append(.init("author", .string(author)))
    return .object(members)
  }
}

extension Decision {
  /// For `--json`. Absent keys mean "none": no binding limit, no retry time, unlimited.
  package var document: Document {
    .fields([
      "allowed": .bool(isAllowed),
      "reason": .string(reason.name),
      "source": .string(source.name),
      "binding": binding.map { .string($0.text) },
      "binding_item": bindingItem.map { .integer(Int64($0)) },
      "retry_after_ms": retryAfter.map { .integer($0) },
      "time_ms": .integer(time.milliseconds),
      "global_version": .integer(globalVersion),
      "account_version": .integer(accountVersion),
      "replayed": .bool(replayed),
      "items": .list(items.map(\.document)),
      "expires_ms": expires.map { .integer($0.milliseconds) },
      "settlements": settlements.isEmpty ? nil : .list(settlements.map(\.document)),
      "burns": burns.isEmpty ? nil : .list(burns.map(\.document)),
      "derived": derived.isEmpty ? nil : .list(derived.map { .string($0.text) }),
    ])
  }
}

extension Decision.Settlement {
  package var document: Document {
    ["actual": .integer(actual), "charged": .integer(charged), "absorbed": .integer(absorbed)]
  }
}

extension Decision.Burn {
  /// Without a grant: beyond every grant.
  package var document: Document {
    .fields([
      "item": .integer(Int64(item)), "grant": grant.map { .string($0.text) },
      "amount": .integer(amount),
    ])
  }
}

extension Decision.ItemState {
  package var document: Document {
    .fields([
      "limit": limit.map { .string($0.text) },
      "remaining": remaining.map { .integer($0) },
      "settled": .integer(settled),
      "held": .integer(held),
      "reset_ms": reset.map { .integer($0.milliseconds) },
    ])
  }
}
