// account.set | show | list. A plan event of an outside system carries that system's
// version; an older one that arrives late changes nothing, so it cannot set an account back.

import TollgateCore

extension AdminService {
  func accountSet(
    _ request: AccountSetRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    try checkIsAccount(request.account)
    _ = try checkSource(request.sourceID, request.sourceVersion)
    guard request.plan != nil || request.frozen != nil || request.changesCalendar else {
      throw .badRequest("plan", "give a plan, frozen, a zone or an anchor")
    }
    try checkCalendar(request)
    let record = try begin(
      request.change, action: "account.set", request: request, caller: caller)
    return try await accountSet(request, record)
  }

  func accountSet(
    _ request: AccountSetRequest, _ record: ChangeRecord
  ) async throws(AdminFailure) -> ChangeReply {
    try await changeAccount(request.account, request.change, record) {
      (before, global) throws(AdminFailure) in
      try Self.edit(before, global, request, now: clock())
    } impact: { (global, before, after) throws(AdminFailure) in
      try await impact(of: request.account, global, before, after)
    }
  }

  /// Pure: what the request makes of an account.
  static func edit(
    _ before: AccountConfig, _ global: GlobalConfig?, _ request: AccountSetRequest, now: WallTime
  ) throws(AdminFailure) -> Edit<AccountConfig> {
    let source = SourceMark(request.sourceID, request.sourceVersion)
    return try edit(before, source, now: now, unchanged: "the account is already as asked") {
      (after) throws(AdminFailure) in
      var changes: [String] = []
      if let plan = request.plan {
        try checkPlan(plan, global)
        // The plan that is in force is no news, and what is to follow it stays.
        if plan != before.plan(at: now) { changes += after.enter(plan, now: now) }
      }
      if let frozen = request.frozen, frozen != before.frozen {
        after.frozen = frozen
        changes.append("frozen: \(before.frozen) → \(frozen)")
      }
      if request.changesCalendar,
        let change = try changeCalendar(&after, global, request, now: now)
      {
        changes.append(change)
      }
      return changes
    }
  }

  static func checkPlan(_ plan: Name, _ global: GlobalConfig?) throws(AdminFailure) {
    guard let global else {
      throw AdminFailure(
        .notFound, "no catalog is in force, so there is no plan \(plan)",
        fix: "apply one first: tollgate catalog apply FILE")
    }
    guard global.catalog.plans[plan] != nil else {
      let known = global.catalog.plans.keys.sorted().prefix(20).map(\.text).joined(separator: ", ")
      throw .notFound(
        "the catalog (version \(global.catalogVersion)) has no plan \(plan)",
        fix: "use one of: \(known)")
    }
  }

  func checkIsAccount(_ subject: Subject) throws(AdminFailure) {
    guard subject.depth == 1 else {
      throw .badRequest(
        "account", "must be an account, the first segment only: \(subject.account)",
        value: subject.path)
    }
  }

  func checkSource(_ id: String?, _ version: Int64?) throws(AdminFailure) -> SourceMark? {
    guard (id == nil) == (version == nil) else {
      throw .badRequest("source_id", "source_id and source_version go together")
    }
    guard let id, let version else { return nil }
    let clean = !id.isEmpty && !id.utf8.contains { $0 < 0x20 || $0 == 0x7F }
    guard clean, id.utf8.count <= AccountConfig.sourceBytesMax else {
      throw .badRequest(
        "source_id", "1 … \(AccountConfig.sourceBytesMax) bytes without control characters",
        value: id)
    }
    guard version >= 0, version <= Quantity.maximum else {
      throw .badRequest(
        "source_version", "must be from 0 to \(Quantity.maximum)", value: "\(version)")
    }
    return SourceMark(id: id, version: version)
  }

  func accountShow(_ request: AccountRequest) async throws(AdminFailure) -> AccountReply {
    try checkIsAccount(request.account)
    let global = try await backend.globalConfig()
    let state = try await backend.account(request.account)
    let config = state.config
    let now = clock()
    let plan = config.plan(at: now)
    return AccountReply(
      account: request.account, version: config.version, plan: plan,
      planKnown: plan.map { global?.catalog.plans[$0] != nil } ?? false,
      next: config.next(after: now).map { NextPlanReport($0) }, frozen: config.frozen,
      pastDue: config.pastDue.map { PastDueReport($0, now: now) },
      calendar: config.calendar.map { CalendarReport($0) },
      sourceID: config.sourceID, sourceVersion: config.sourceVersion,
      otherSources: config.otherSources.map { .init(id: $0.id, version: $0.version) },
      bucket: state.bucket, loaded: state.isLoaded,
      overrides: config.overrides.map { OverrideReport($0) }, grants: config.grants.count)
  }

  func accountList(_ request: AccountListRequest) async throws(AdminFailure) -> AccountListReply {
    guard (1...AccountListRequest.limitMax).contains(request.limit) else {
      throw .badRequest(
        "limit", "must be from 1 to \(AccountListRequest.limitMax)", value: "\(request.limit)")
    }
    var rows: [AccountListReply.Row] = []
    var cursor = request.after
    let now = clock()
    // A filter may leave pages empty: go on until the page is full, the end, or 50 pages.
    for _ in 0..<50 {
      let page = try await backend.accounts(after: cursor, limit: request.limit - rows.count)
      for entry in page.entries
      where request.plan == nil || entry.config.plan(at: now) == request.plan {
        let config = entry.config
        rows.append(
          .init(
            account: entry.account, plan: config.plan(at: now),
            next: config.next(after: now).map { NextPlanReport($0) }, frozen: config.frozen,
            pastDue: config.isPastDue(at: now) ? true : nil, overrides: config.overrides.count,
            version: config.version))
      }
      cursor = page.next
      if cursor == nil || rows.count >= request.limit { break }
    }
    return AccountListReply(accounts: rows, next: cursor)
  }

  /// Runs `body` for each element with a bounded number in flight; results in the order given.
  static func inParallel<Element: Sendable, Output: Sendable>(
    _ elements: [Element],
    _ body: @escaping @Sendable (Element) async -> Output
  ) async -> [Output] {
    await withTaskGroup(of: (Int, Output).self) { group in
      var outputs = [Output?](repeating: nil, count: elements.count)
      var next = 0
      func start() {
        let index = next
        let element = elements[index]
        next += 1
        group.addTask { (index, await body(element)) }
      }
      while next < min(AdminLimits.concurrencyMax, elements.count) { start() }
      while let (index, output) = await group.next() {
        outputs[index] = output
        if next < elements.count { start() }
      }
      return outputs.compactMap { $0 }
    }
  }
}

extension AccountConfig {
  /// Overrides end by themselves; a write is the occasion to forget those that have.
  mutating func dropExpiredOverrides(now: WallTime) {
    overrides.removeAll { $0.expires.map { $0 <= now } ?? false }
  }
}
