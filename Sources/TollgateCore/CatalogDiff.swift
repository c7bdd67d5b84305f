// What changes when one catalog replaces another, as a typed list: shown to people before an
// apply, kept in the audit, and the place where a change is refused that no apply may make.
// Refused are those changes under which stored state would silently mean something else:
//   - a level renamed, moved or removed: counters are stored by depth;
//   - a feature's `metered` or `importance`: bills and operation records are kept by class;
//   - a limit id that names another feature, kind, quota window or level than before: overrides
//     name limits by id and would change something else. Give the new rule a new id.

package struct CatalogDiff: Hashable, Sendable {
  package enum Place: Hashable, Sendable {
    case levels
    case unknownAccount
    case feature(Name)
    case plan(Name)
    case entitlement(plan: Name, feature: Name)
    case limit(plan: Name, feature: Name, id: Name)

    package var path: String {
      switch self {
      case .levels: "levels"
      case .unknownAccount: "unknown_account"
      case .feature(let name): "features/\(name)"
      case .plan(let name): "plans/\(name)"
      case .entitlement(let plan, let feature): "plans/\(plan)/\(feature)"
      case .limit(let plan, let feature, let id): "plans/\(plan)/\(feature)/\(id)"
      }
    }
  }

  package enum Kind: String, Sendable, CaseIterable { case added, removed, changed }

  package struct Change: Hashable, Sendable {
    package var place: Place
    package var kind: Kind
    /// The key that changed; nil where the whole place came or went.
    package var field: String?
    package var before: Document?
    package var after: Document?
    /// Why this change may not be applied; nil: it may.
    package var refusal: String?

    package init(
      place: Place, kind: Kind, field: String? = nil, before: Document? = nil,
      after: Document? = nil, refusal: String? = nil
    ) {
      self.place = place
      self.kind = kind
      self.field = field
      self.before = before
      self.after = after
      self.refusal = refusal
    }
  }

  package private(set) var changes: [Change] = []

  package var isEmpty: Bool { changes.isEmpty }
  package var refused: [Change] { changes.filter { $0.refusal != nil } }

  /// `old` nil: there was no catalog, everything is new.
  package init(from old: Catalog?, to new: Catalog) {
    let old = old ?? Catalog(levels: [], unknownAccount: .deny, features: [:], plans: [:])
    compareLevels(old, new)
    compare(
      .unknownAccount, nil, old.unknownAccount.document, new.unknownAccount.document)
    compareFeatures(old, new)
    for name in Set(old.plans.keys).union(new.plans.keys).sorted() {
      comparePlan(name, old.plans[name], new.plans[name], old.levels, new.levels)
    }
    refuseReusedIDs(old, new)
  }

  private mutating func compare(
    _ place: Place, _ field: String?, _ before: Document?, _ after: Document?,
    refusal: String? = nil
  ) {
    guard before != after else { return }
    let kind: Kind = before == nil ? .added : after == nil ? .removed : .changed
    changes.append(
      Change(
        place: place, kind: kind, field: field, before: before, after: after, refusal: refusal))
  }

  private mutating func compareLevels(_ old: Catalog, _ new: Catalog) {
    let refusal =
      new.levels.starts(with: old.levels)
      ? nil : "levels may only be added at the end: counters are stored by depth"
    compare(
      .levels, nil, .strings(old.levels.map(\.text)), .strings(new.levels.map(\.text)),
      refusal: refusal)
  }

  private mutating func compareFeatures(_ old: Catalog, _ new: Catalog) {
    for name in Set(old.features.keys).union(new.features.keys).sorted() {
      let (before, after) = (old.features[name], new.features[name])
      guard let before, let after else {
        compare(.feature(name), nil, before?.document, after?.document)
        continue
      }
      let class_ = "a feature's class is fixed: bills and operation records are kept by it"
      for key in CatalogReader.featureKeys {
        compare(
          .feature(name), key, before.document[key], after.document[key],
          refusal: key == "unit" || key == "idempotency" ? nil : class_)
      }
    }
  }

  private mutating func comparePlan(
    _ name: Name, _ old: Plan?, _ new: Plan?, _ oldLevels: [Name], _ newLevels: [Name]
  ) {
    if old == nil || new == nil {
      changes.append(Change(place: .plan(name), kind: old == nil ? .added : .removed))
    }
    compare(
      .plan(name), "rank", old?.rank.map { .integer($0) }, new?.rank.map { .integer($0) })
    let features = Set(old?.entitlements.keys.map { $0 } ?? [])
      .union(new?.entitlements.keys.map { $0 } ?? [])
    for feature in features.sorted() {
      let (before, after) = (old?.entitlements[feature], new?.entitlements[feature])
      if before == nil || after == nil {
        changes.append(
          Change(
            place: .entitlement(plan: name, feature: feature),
            kind: before == nil ? .added : .removed))
      }
      compareLimits(
        (before ?? []).map { ($0.id, $0.document(levels: oldLevels)) },
        (after ?? []).map { ($0.id, $0.document(levels: newLevels)) },
        at: { .limit(plan: name, feature: feature, id: $0) })
      if let before, let after {
        let kept = before.map(\.id).filter { id in after.contains { $0.id == id } }
        let now = after.map(\.id).filter { id in before.contains { $0.id == id } }
        compare(
          .entitlement(plan: name, feature: feature), "order", .strings(kept.map(\.text)),
          .strings(now.map(\.text)))
      }
    }
  }

  private mutating func compareLimits(
    _ old: [(Name, Document)], _ new: [(Name, Document)], at place: (Name) -> Place
  ) {
    for (id, before) in old where !new.contains(where: { $0.0 == id }) {
      compare(place(id), nil, before, nil)
    }
    for (id, after) in new {
      guard let before = old.first(where: { $0.0 == id })?.1 else {
        compare(place(id), nil, nil, after)
        continue
      }
      for key in CatalogReader.limitKeys {
        compare(place(id), key, before[key], after[key])
      }
    }
  }

  /// One change per id and reason, wherever the id stands.
  private mutating func refuseReusedIDs(_ old: Catalog, _ new: Catalog) {
    let before = old.limitUses
    for (id, after) in new.limitUses.sorted(by: { $0.key < $1.key }) {
      guard let first = before[id] else { continue }
      let place = Place.limit(plan: after.plan, feature: after.feature, id: id)
      func refuse(_ field: String, _ was: String, _ now: String) {
        guard was != now else { return }
        changes.append(
          Change(
            place: place, kind: .changed, field: field, before: .string(was), after: .string(now),
            refusal: "a limit id keeps its meaning; give the new rule a new id"))
      }
      refuse("feature", first.feature.text, after.feature.text)
      refuse("kind", first.limit.kind.shape, after.limit.kind.shape)
      refuse("depth", "\(first.limit.level)", "\(after.limit.level)")
    }
  }

  package var text: String { changes.map(\.line).joined(separator: "\n") }

  package var document: Document {
    .list(
      changes.map { change in
        .fields([
          "path": .string(change.place.path),
          "change": .string(change.kind.rawValue),
          "field": change.field.map { .string($0) },
          "before": change.before,
          "after": change.after,
          "refused": change.refusal.map { .string($0) },
        ])
      })
  }
}

extension CatalogDiff.Change {
  /// `+` added, `-` removed, `~` changed; a refused one says why.
  package var line: String {
    let sign = kind == .added ? "+" : kind == .removed ? "-" : "~"
    var line = "\(sign) \(place.path)"
    if let field { line += " \(field)" }
    switch (before, after) {
    case (let before?, let after?): line += ": \(before.plain) → \(after.plain)"
    case (let only?, nil), (nil, let only?): line += ": \(only.plain)"
    case (nil, nil): break
    }
    if let refusal { line += "  (refused: \(refusal))" }
    return line
  }
}

extension Document {
  /// Without the quotes around a lone string, for a line of text.
  fileprivate var plain: String {
    if case .string(let text) = self { return text }
    return json()
  }
}

extension Catalog {
  package struct LimitUse: Hashable, Sendable {
    package let plan: Name
    package let feature: Name
    package let limit: Limit
  }

  /// Each limit id with the first place (by plan name) that it stands at. An id names one rule
  /// throughout a catalog, so any place tells its feature, kind, window and level.
  package var limitUses: [Name: LimitUse] {
    var uses: [Name: LimitUse] = [:]
    for plan in plans.values.sorted(by: { $0.name < $1.name }) {
      for (feature, limits) in plan.entitlements {
        for limit in limits where uses[limit.id] == nil {
          uses[limit.id] = LimitUse(plan: plan.name, feature: feature, limit: limit)
        }
      }
    }
    return uses
  }
}
