// limit.set | unset | list. An override names a limit by its id and changes one thing about it for
// one subject and everything below it. Counters are not touched: a limit lowered below what is
// used leaves 0, a raise is usable at once.

import TollgateCore

extension AdminService {
  func limitSet(
    _ request: LimitSetRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    let changes = try Self.overrideChanges(request)
    if let expires = request.expires, expires <= clock() {
      throw .badRequest(
        "expires_ms", "is in the past", value: CivilDate.text(expires))
    }
    _ = try checkSource(request.sourceID, request.sourceVersion)
    let record = try begin(
      request.change, action: "limit.set", request: request, caller: caller, reasonRequired: true)
    return try await changeAccount(request.subject.account, request.change, record) {
      (before, global) throws(AdminFailure) in
      try Self.edit(
        before, global, request, changes, author: record.actor, now: clock())
    } impact: { (global, before, after) throws(AdminFailure) in
      try await impact(of: request.subject, global, before, after)
    }
  }

  static func overrideChanges(
    _ request: LimitSetRequest
  ) throws(AdminFailure) -> [Override.Change] {
    var changes: [Override.Change] = []
    if let amount = request.amount {
      guard amount >= 0, amount <= Quantity.maximum else {
        throw AdminFailure(
          .amountOutOfRange, "the amount is out of range",
          problems: [
            .init(
              path: "amount", value: "\(amount)", reason: "must be from 0 to \(Quantity.maximum)")
          ])
      }
      changes.append(.amount(amount))
    }
    if let unlimited = request.unlimited {
      guard unlimited else {
        throw .badRequest("unlimited", "can only be true; use limit.unset to take it back")
      }
      guard request.amount == nil else {
        throw .badRequest("unlimited", "an amount and unlimited exclude each other")
      }
      changes.append(.unlimited)
    }
    if let enabled = request.enabled { changes.append(.enabled(enabled)) }
    if let text = request.enforcement {
      guard let enforcement = Enforcement(rawValue: text) else {
        let known = Enforcement.allCases.map(\.rawValue).joined(separator: ", ")
        throw .badRequest("enforcement", "must be one of \(known)", value: text)
      }
      changes.append(.enforcement(enforcement))
    }
    guard !changes.isEmpty else {
      throw .badRequest("amount", "give at least one of amount, unlimited, enabled, enforcement")
    }
    return changes
  }

  static func edit(
    _ before: AccountConfig, _ global: GlobalConfig?, _ request: LimitSetRequest,
    _ changes: [Override.Change], author: String, now: WallTime
  ) throws(AdminFailure) -> Edit<AccountConfig> {
    let limit = try findLimit(request.limit, global).limit
    guard request.subject.depth <= limit.level else {
      throw .badRequest(
        "subject",
        "limit \(limit.id) sits at level \(limit.level); a deeper subject has no counter of it",
        value: request.subject.path)
    }
    for change in changes { try checkFits(change, limit) }
    let source = SourceMark(request.sourceID, request.sourceVersion)
    return try edit(before, source, now: now, unchanged: "the override is already as asked") {
      (after) throws(AdminFailure) in
      try override(&after, request, changes, author: author, now: now)
    }
  }

  private static func override(
    _ after: inout AccountConfig, _ request: LimitSetRequest, _ changes: [Override.Change],
    author: String, now: WallTime
  ) throws(AdminFailure) -> [String] {
    let before = after
    after.dropExpiredOverrides(now: now)
    var lines: [String] = []
    for change in changes {
      let wanted = Override(
        subject: request.subject, limit: request.limit, change: change, expires: request.expires,
        reason: request.change.reason, author: author, since: now)
      let same = { (other: Override) in
        other.subject == wanted.subject && other.limit == wanted.limit
          && other.change.aspect == change.aspect
      }
      let old = after.overrides.first(where: same)
      if let old, old.change == wanted.change, old.expires == wanted.expires { continue }
      after.overrides.removeAll(where: same)
      after.overrides.append(wanted)
      let was = old.map { OverrideReport($0).text } ?? "as in the plan"
      let until = wanted.expires.map { " until \(CivilDate.text($0))" } ?? ""
      lines.append(
        "\(wanted.subject) \(wanted.limit): \(was) → \(OverrideReport(wanted).text)\(until)")
    }
    guard !lines.isEmpty else {
      after = before
      return []
    }
    guard after.overrides.count <= AccountConfig.overridesMax else {
      throw AdminFailure(
        .conflict,
        "account \(request.subject.account) would have \(after.overrides.count) overrides; "
          + "at most \(AccountConfig.overridesMax) are allowed",
        fix: "unset some, or give the account a plan of its own")
    }
    return lines
  }

  private static func checkFits(_ change: Override.Change, _ limit: Limit) throws(AdminFailure) {
    switch (change, limit.kind) {
    case (.enabled, .gate), (.enforcement, _), (.amount, .quota), (.amount, .rate),
      (.amount, .sliding), (.amount, .concurrency), (.amount, .spendCap), (.unlimited, .quota),
      (.unlimited, .rate), (.unlimited, .sliding), (.unlimited, .concurrency),
      (.unlimited, .spendCap):
      return
    case (.enabled, _):
      throw .badRequest("enabled", "limit \(limit.id) is a \(limit.kind.name), not a gate")
    case (.amount, .credit(let credit)):
      if credit.included != nil { return }
      throw .badRequest(
        "amount",
        "limit \(limit.id) burns the account's own grants and gives none: use grant.add")
    case (.unlimited, .credit):
      throw .badRequest(
        "unlimited", "limit \(limit.id) burns grants: more is given by a grant (grant.add)")
    case (.amount, _), (.unlimited, _):
      throw .badRequest("amount", "limit \(limit.id) is a \(limit.kind.name) and has no amount")
    }
  }

  static func findLimit(
    _ id: Name, _ global: GlobalConfig?
  ) throws(AdminFailure) -> Catalog.LimitUse {
    guard let global else {
      throw AdminFailure(
        .notFound, "no catalog is in force, so there is no limit \(id)",
        fix: "apply one first: tollgate catalog apply FILE")
    }
    guard let use = global.catalog.limitUses[id] else {
      let known = global.catalog.limitUses.keys.sorted().prefix(30).map(\.text)
      throw .notFound(
        "the catalog (version \(global.catalogVersion)) has no limit \(id)",
        fix: "use one of: \(known.joined(separator: ", "))")
    }
    return use
  }

  func limitUnset(
    _ request: LimitUnsetRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    let source = try checkSource(request.sourceID, request.sourceVersion)
    let record = try begin(
      request.change, action: "limit.unset", request: request, caller: caller)
    let none = "there is no override of \(request.limit) for \(request.subject)"
    return try await changeAccount(request.subject.account, request.change, record) {
      (before, _) throws(AdminFailure) in
      try Self.edit(before, source, now: clock(), unchanged: none) { (after) in
        let gone = before.overrides.filter {
          $0.subject == request.subject && $0.limit == request.limit
        }
        after.overrides.removeAll { gone.contains($0) }
        return gone.map {
          "\($0.subject) \($0.limit): \(OverrideReport($0).text) → as in the plan"
        }
      }
    } impact: { (global, before, after) throws(AdminFailure) in
      try await impact(of: request.subject, global, before, after)
    }
  }

  func limitList(_ request: LimitListRequest) async throws(AdminFailure) -> LimitListReply {
    let global = try await backend.globalConfig()
    let account = try await backend.account(request.subject.account).config
    let now = clock()
    var reply = LimitListReply(
      subject: request.subject, plan: account.plan, limits: [],
      overrides: account.overrides.filter {
        $0.subject.contains(request.subject) || request.subject.contains($0.subject)
      }.map { OverrideReport($0) })
    reply.plan = account.plan(at: now)
    guard let global, let plan = global.plan(of: account, at: now) else { return reply }
    reply.plan = plan.name
    for (feature, limits) in plan.entitlements.sorted(by: { $0.key < $1.key }) {
      for limit in limits {
        let inForce = LimitText.inForce(
          limit, subject: request.subject, account: account,
          bypassed: global.bypassed(feature, now: now), now: now)
        reply.limits.append(
          .init(
            feature: feature, limit: limit.id, kind: limit.kind.name, level: limit.level,
            inPlan: LimitText.of(limit.kind), inForce: LimitText.of(inForce.kind),
            enforcement: inForce.enforcement.rawValue,
            failurePolicy: LimitText.of(limit.failurePolicy),
            overridden: !inForce.overrides.isEmpty))
      }
    }
    return reply
  }
}

extension Override.Change {
  /// Two changes of one aspect replace each other.
  enum Aspect: Hashable { case amount, enabled, enforcement }

  var aspect: Aspect {
    switch self {
    case .amount, .unlimited: .amount
    case .enabled: .enabled
    case .enforcement: .enforcement
    }
  }
}

extension GlobalConfig {
  func bypassed(_ feature: Name, now: WallTime) -> Bool {
    bypasses.contains { ($0.feature == nil || $0.feature == feature) && now < $0.until }
  }
}
