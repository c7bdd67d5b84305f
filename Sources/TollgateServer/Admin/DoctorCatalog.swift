// What doctor says of the catalog in force: rules that are sound, but that do not do what somebody
// who wrote them will have meant. A pure function of the catalog.

package import TollgateCore

extension Doctor {
  package static func findings(_ catalog: Catalog) -> [Finding] {
    var findings: [Finding] = []
    for plan in catalog.plans.values.sorted(by: { $0.name < $1.name }) {
      for (feature, limits) in plan.entitlements.sorted(by: { $0.key < $1.key }) {
        findings += credit(feature, limits, plan)
        findings += charges(feature, plan, catalog)
        findings += concurrency(feature, limits, plan, catalog)
      }
    }
    findings += ceilings(catalog)
    let ranked = catalog.plans.values.filter { $0.rank != nil }.count
    if ranked > 0, ranked < catalog.plans.count {
      let without = catalog.plans.values.filter { $0.rank == nil }.map(\.name).sorted()
      findings.append(
        Finding(
          "plan ranks", .advice,
          "\(without.map(\.text).joined(separator: ", ")) without a rank",
          fix: "rank every plan, or a change to or from these must say when (--at)"))
    }
    return findings
  }

  private static func credit(_ feature: Name, _ limits: [Limit], _ plan: Plan) -> [Finding] {
    let hasCap = limits.contains { if case .spendCap = $0.kind { true } else { false } }
    let allows = limits.contains {
      if case .credit(let credit) = $0.kind { credit.allowsOverage } else { false }
    }
    guard allows, !hasCap else { return [] }
    return [
      Finding(
        "overage", .warning,
        "plan \(plan.name): \(feature) is let through beyond every grant, without a cap",
        fix: "add a spend_cap; spend_cap: none says that it is meant")
    ]
  }

  private static func charges(_ feature: Name, _ plan: Plan, _ catalog: Catalog) -> [Finding] {
    let targets = Set(catalog.rates.rates.filter { $0.feature == feature }.map(\.into))
    return targets.sorted().filter { plan.entitlements[$0] == nil }.map {
      Finding(
        "rates", .error,
        "plan \(plan.name) has \(feature), which is charged to \($0), but not \($0): every "
          + "request of it is denied FEATURE_NOT_IN_PLAN",
        fix: "give the plan \($0), if only as an empty list")
    }
  }

  private static func concurrency(
    _ feature: Name, _ limits: [Limit], _ plan: Plan, _ catalog: Catalog
  ) -> [Finding] {
    guard catalog.features[feature]?.reservable != true else { return [] }
    return limits.filter { if case .concurrency = $0.kind { true } else { false } }.map {
      Finding(
        "concurrency", .warning,
        "plan \(plan.name): \($0.id) counts what is held of \(feature), which cannot be held",
        fix: "features/\(feature)/reservable: true lets it be reserved")
    }
  }

  /// Unknown models and the like.
  private static func ceilings(_ catalog: Catalog) -> [Finding] {
    struct Target: Hashable, Comparable {
      var feature: Name
      var into: Name
      static func < (a: Self, b: Self) -> Bool { (a.feature, a.into) < (b.feature, b.into) }
    }
    let all = Set(catalog.rates.rates.map { Target(feature: $0.feature, into: $0.into) })
    let open = Set(
      catalog.rates.rates.filter { $0.when.isEmpty }.map {
        Target(feature: $0.feature, into: $0.into)
      })
    return all.subtracting(open).sorted().map {
      Finding(
        "rates", .advice,
        "\($0.feature) has no rate for attributes that none of its rates names: such a request is "
          + "denied PRICE_UNKNOWN",
        fix: "a rate without `when` is the ceiling for these")
    }
  }
}
