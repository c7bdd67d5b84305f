// catalog.validate | diff | apply | show | rollback. A catalog is replaced as a whole, under one
// version that every sidecar's next script call carries; a rollback is a new version with old
// content, so versions only grow. What would make stored state mean something else is refused.

import TollgateCore

extension AdminService {
  func catalogValidate(
    _ request: CatalogValidateRequest
  ) async throws(AdminFailure) -> CatalogValidateReply {
    let catalog = try read(request.document)
    return CatalogValidateReply(
      features: catalog.features.count, plans: catalog.plans.count,
      limits: catalog.limitUses.count, warnings: Self.warnings(about: catalog))
  }

  /// What is sound and may surprise: plans whose richest features cannot all be named in one
  /// request.
  static func warnings(about catalog: Catalog) -> [String] {
    catalog.plans.values.sorted { $0.name < $1.name }.compactMap { plan in
      let richest = plan.entitlements.values.map(\.count).sorted(by: >)
      let limits = richest.prefix(Resolution.itemsMax).reduce(0, +)
      guard limits > Resolution.limitsMax else { return nil }
      let named = min(richest.count, Resolution.itemsMax)
      return "plans/\(plan.name): a request that names \(named) of its features can have \(limits) "
        + "limits; above \(Resolution.limitsMax) it is answered TOO_MANY_ITEMS and has to be split"
    }
  }

  func catalogDiff(
    _ request: CatalogValidateRequest
  ) async throws(AdminFailure) -> CatalogDiffReply {
    let catalog = try read(request.document)
    let before = try await backend.globalConfig()
    let diff = CatalogDiff(from: before?.catalog, to: catalog)
    let refused = diff.refused + (try await returned(before, catalog))
    var after =
      before ?? GlobalConfig(version: 0, catalogVersion: 0, catalog: catalog, bypasses: [])
    after.replace(catalog, isFirst: before == nil, now: clock())
    return CatalogDiffReply(
      catalogVersion: before?.catalogVersion ?? 0, changes: diff.lines(of: diff.changes),
      refusals: diff.lines(of: refused), impact: try await impact(from: before, to: after))
  }

  func catalogApply(
    _ request: CatalogApplyRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> CatalogChangeReply {
    let catalog = try read(request.document)
    let record = try begin(
      request.change, action: "catalog.apply", request: request, caller: caller)
    return try await replaceCatalog(request.change, record) { (before) throws(AdminFailure) in
      if let expected = request.expectedVersion, expected != before?.catalogVersion ?? 0 {
        throw AdminFailure(
          .conflict,
          "catalog version \(before?.catalogVersion ?? 0) is in force, not \(expected)",
          fix: "look at it (tollgate catalog diff FILE) and apply again")
      }
      return catalog
    }
  }

  func catalogRollback(
    _ request: CatalogRollbackRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> CatalogChangeReply {
    let record = try begin(
      request.change, action: "catalog.rollback", request: request, caller: caller)
    guard let old = try await backend.catalog(version: request.to) else {
      throw .notFound(
        "there is no catalog version \(request.to)",
        fix: "tollgate audit-log --global lists the versions there were")
    }
    return try await replaceCatalog(request.change, record) { (_) throws(AdminFailure) in old }
  }

  private func replaceCatalog(
    _ options: ChangeOptions, _ record: ChangeRecord,
    with content: (GlobalConfig?) throws(AdminFailure) -> Catalog
  ) async throws(AdminFailure) -> CatalogChangeReply {
    let (reply, config) = try await changeGlobal(options, record) {
      (before) throws(AdminFailure) in
      let catalog = try content(before)
      let diff = CatalogDiff(from: before?.catalog, to: catalog)
      if before != nil && diff.isEmpty {
        return .unchanged("the catalog in force has this content")
      }
      // With no catalog in force nothing is stored that could change its meaning.
      if before != nil { try Self.refuse(diff.refused + (try await returned(before, catalog))) }
      var after =
        before ?? GlobalConfig(version: 0, catalogVersion: 0, catalog: catalog, bypasses: [])
      after.replace(catalog, isFirst: before == nil, now: clock())
      after.catalogVersion += 1
      after.bypasses.removeAll { $0.until <= clock() }
      return .change(after, diff.lines(of: diff.changes))
    } impact: { (before, after) throws(AdminFailure) in
      try await impact(from: before, to: after)
    }
    return CatalogChangeReply(change: reply, catalogVersion: config?.catalogVersion ?? 0)
  }

  /// Catalogs that are looked back through; as many as Redis keeps.
  private static var catalogsKept: Int64 { 64 }

  /// Features that come back after an earlier catalog removed them, in another class than they had:
  /// what is remembered of their operations is kept by class, whatever catalog stood in between.
  private func returned(
    _ before: GlobalConfig?, _ catalog: Catalog
  ) async throws(AdminFailure) -> [CatalogDiff.Change] {
    guard let before else { return [] }
    var open = Set(catalog.features.keys).subtracting(before.catalog.features.keys)
    var refused: [CatalogDiff.Change] = []
    var version = before.catalogVersion - 1
    while !open.isEmpty, version > max(0, before.catalogVersion - Self.catalogsKept) {
      let earlier = try await backend.catalog(version: version)
      for name in open.sorted() {
        guard let was = earlier?.features[name], let now = catalog.features[name] else { continue }
        open.remove(name)
        for key in CatalogReader.featureKeys where key != "unit" {
          guard was.document[key] != now.document[key] else { continue }
          refused.append(
            .init(
              place: .feature(name), kind: .changed, field: key, before: was.document[key],
              after: now.document[key],
              refusal: "catalog version \(version) had it in another class, which is fixed: bills "
                + "and operation records are kept by it"))
        }
      }
      version -= 1
    }
    return refused
  }

  private static func refuse(_ refused: [CatalogDiff.Change]) throws(AdminFailure) {
    guard !refused.isEmpty else { return }
    throw AdminFailure(
      .conflict, "the catalog cannot replace the one in force",
      fix: "give what changed its meaning a new name, and keep the old one until it is unused",
      problems: refused.map { change in
        AdminFailure.Problem(
          path: [change.place.path, change.field].compactMap { $0 }.joined(separator: "/"),
          value: change.after?.excerpt, reason: change.refusal ?? "refused")
      })
  }

  func catalogShow(_ request: CatalogShowRequest) async throws(AdminFailure) -> CatalogShowReply {
    guard let global = try await backend.globalConfig() else {
      throw AdminFailure(
        .notFound, "no catalog is in force", fix: "apply one: tollgate catalog apply FILE")
    }
    let wanted = request.version ?? global.catalogVersion
    let catalog: Catalog?
    if wanted == global.catalogVersion {
      catalog = global.catalog
    } else {
      catalog = try await backend.catalog(version: wanted)
    }
    guard let catalog else {
      throw .notFound(
        "there is no catalog version \(wanted); \(global.catalogVersion) is in force")
    }
    return CatalogShowReply(
      catalogVersion: wanted, globalVersion: global.version,
      inForce: wanted == global.catalogVersion, document: catalog.document)
  }

  private func read(_ document: Document) throws(AdminFailure) -> Catalog {
    switch CatalogReader.read(document) {
    case .failure(let problems):
      throw AdminFailure(
        .invalidDocument, "the catalog has \(problems.count) problem(s); nothing was changed",
        problems: problems.map { AdminFailure.Problem($0) })
    case .success(let catalog):
      let metered = catalog.features.values.filter(\.metered).map(\.name).sorted()
      guard backend.hasLedger || metered.isEmpty else {
        throw AdminFailure(
          .invalidDocument, "this deployment has no ledger, so no feature can be metered",
          fix: "set metered: false, or configure a ledger",
          problems: metered.map {
            .init(path: "features/\($0)/metered", value: "true", reason: "needs a ledger")
          })
      }
      return catalog
    }
  }

  // MARK: Bypass

  func bypassSet(
    _ request: BypassRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    guard (1000...BypassRequest.durationMillisecondsMax).contains(request.durationMilliseconds)
    else {
      throw .badRequest(
        "duration_ms", "must be from 1 s to 7 days", value: "\(request.durationMilliseconds)")
    }
    let record = try begin(
      request.change, action: "bypass.set", request: request, caller: caller, reasonRequired: true)
    let until = clock() + request.durationMilliseconds
    return try await changeGlobal(request.change, record) { (before) throws(AdminFailure) in
      guard var after = before else {
        throw AdminFailure(
          .notFound, "no catalog is in force", fix: "apply one: tollgate catalog apply FILE")
      }
      if let feature = request.feature, after.catalog.features[feature] == nil {
        let known = after.catalog.features.keys.sorted().prefix(30).map(\.text)
        throw .notFound(
          "there is no feature \(feature)", fix: "use one of: \(known.joined(separator: ", "))")
      }
      after.bypasses.removeAll { $0.feature == request.feature || $0.until <= clock() }
      after.bypasses.append(
        Bypass(
          feature: request.feature, until: until, reason: request.change.reason,
          actor: record.actor))
      guard after.bypasses.count <= BypassRequest.bypassesMax else {
        throw AdminFailure(
          .conflict, "at most \(BypassRequest.bypassesMax) bypasses at a time",
          fix: "clear some, or use --all")
      }
      let what = request.feature?.text ?? "every feature"
      return .change(after, ["\(what): enforcement is shadow until \(CivilDate.text(until))"])
    } impact: { (before, after) throws(AdminFailure) in
      try await impact(from: before, to: after)
    }.reply
  }

  func bypassClear(
    _ request: BypassClearRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    let everything = request.everything ?? false
    guard !everything || request.feature == nil else {
      throw .badRequest("feature", "a feature and everything exclude each other")
    }
    let record = try begin(
      request.change, action: "bypass.clear", request: request, caller: caller)
    return try await changeGlobal(request.change, record) { (before) throws(AdminFailure) in
      guard var after = before else { return .unchanged("there is no bypass") }
      let gone = after.bypasses.filter {
        $0.until > clock() && (everything || $0.feature == request.feature)
      }
      guard !gone.isEmpty else { return .unchanged("there is no such bypass") }
      after.bypasses.removeAll { gone.contains($0) || $0.until <= clock() }
      return .change(
        after, gone.map { "\($0.feature?.text ?? "every feature"): enforced again" })
    } impact: { (before, after) throws(AdminFailure) in
      try await impact(from: before, to: after)
    }.reply
  }

  func bypassList(_ request: EmptyRequest) async throws(AdminFailure) -> BypassListReply {
    let now = clock()
    let bypasses = try await backend.globalConfig()?.bypasses ?? []
    return BypassListReply(
      time: now, bypasses: bypasses.filter { now < $0.until }.map { .init($0, now: now) })
  }
}

extension BypassListReply.Row {
  init(_ bypass: Bypass, now: WallTime) {
    self.init(
      feature: bypass.feature, until: bypass.until, leftMilliseconds: bypass.until - now,
      reason: bypass.reason, actor: bypass.actor)
  }
}

extension AdminFailure.Problem {
  init(_ problem: TollgateCore.Problem) {
    self.init(path: problem.path, value: problem.value, reason: problem.reason)
  }
}

extension CatalogDiff {
  /// One line per change, bounded: a reply is not the place for a whole catalog.
  func lines(of changes: [Change]) -> [String] {
    let max = 500
    var lines = changes.prefix(max).map { $0.line }
    if changes.count > max { lines.append("… and \(changes.count - max) more") }
    return lines
  }
}
