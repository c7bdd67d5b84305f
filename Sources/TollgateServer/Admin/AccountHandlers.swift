// account.set | show | list | import. A plan event of an outside system carries that system's
// version; an older one that arrives late changes nothing, so it cannot set an account back.

import TollgateCore

extension AdminService {
  func accountSet(
    _ request: AccountSetRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    try checkIsAccount(request.account)
    try checkSource(request.sourceID, request.sourceVersion)
    guard request.plan != nil || request.frozen != nil else {
      throw .badRequest("plan", "give a plan, or frozen, or both")
    }
    let record = try begin(
      request.change, action: "account.set", request: request, caller: caller)
    return try await accountSet(request, record)
  }

  private func accountSet(
    _ request: AccountSetRequest, _ record: ChangeRecord, global: GlobalConfig? = nil
  ) async throws(AdminFailure) -> ChangeReply {
    try await changeAccount(request.account, request.change, record, global: global) {
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
    if let source = request.sourceID, let version = request.sourceVersion,
      before.sourceID == source
    {
      if version < before.sourceVersion {
        return .ignored("older source version \(version); \(before.sourceVersion) was applied")
      }
      if version == before.sourceVersion {
        return .ignored("source version \(version) was applied already")
      }
    }
    if let plan = request.plan { try checkPlan(plan, global) }
    var after = before
    var changes: [String] = []
    if let plan = request.plan, plan != before.plan {
      after.plan = plan
      changes.append("plan: \(before.plan?.text ?? "none") → \(plan)")
    }
    if let frozen = request.frozen, frozen != before.frozen {
      after.frozen = frozen
      changes.append("frozen: \(before.frozen) → \(frozen)")
    }
    if let source = request.sourceID, let version = request.sourceVersion {
      after.sourceID = source
      after.sourceVersion = version
      changes.append("source: \(source) version \(version)")
    }
    guard after != before else { return .unchanged("the account is already as asked") }
    after.dropExpiredOverrides(now: now)
    return .change(after, changes)
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

  private func checkSource(_ id: String?, _ version: Int64?) throws(AdminFailure) {
    guard (id == nil) == (version == nil) else {
      throw .badRequest("source_id", "source_id and source_version go together")
    }
    guard let id, let version else { return }
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
  }

  func accountShow(_ request: AccountRequest) async throws(AdminFailure) -> AccountReply {
    try checkIsAccount(request.account)
    let global = try await backend.globalConfig()
    let state = try await backend.account(request.account)
    let config = state.config
    return AccountReply(
      account: request.account, version: config.version, plan: config.plan,
      planKnown: config.plan.map { global?.catalog.plans[$0] != nil } ?? false,
      frozen: config.frozen, sourceID: config.sourceID, sourceVersion: config.sourceVersion,
      bucket: state.bucket, loaded: state.isLoaded,
      overrides: config.overrides.map { OverrideReport($0) })
  }

  func accountList(_ request: AccountListRequest) async throws(AdminFailure) -> AccountListReply {
    guard (1...AccountListRequest.limitMax).contains(request.limit) else {
      throw .badRequest(
        "limit", "must be from 1 to \(AccountListRequest.limitMax)", value: "\(request.limit)")
    }
    var rows: [AccountListReply.Row] = []
    var cursor = request.after
    // A filter may leave pages empty: go on until the page is full, the end, or 50 pages.
    for _ in 0..<50 {
      let page = try await backend.accounts(after: cursor, limit: request.limit - rows.count)
      for entry in page.entries
      where request.plan == nil || entry.config.plan == request.plan {
        rows.append(
          .init(
            account: entry.account, plan: entry.config.plan, frozen: entry.config.frozen,
            overrides: entry.config.overrides.count, version: entry.config.version))
      }
      cursor = page.next
      if cursor == nil || rows.count >= request.limit { break }
    }
    return AccountListReply(accounts: rows, next: cursor)
  }

  // MARK: Import

  /// Each row is a change of its own under an id derived from the import's id and the row's
  /// number: a batch that is sent again applies what is missing and nothing twice.
  func accountImport(
    _ request: AccountImportRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> AccountImportReply {
    guard (1...AccountImportRequest.rowsMax).contains(request.rows.count) else {
      throw .badRequest(
        "rows", "must be 1 … \(AccountImportRequest.rowsMax)", value: "\(request.rows.count)")
    }
    guard request.firstRow >= 0 else { throw .badRequest("first_row", "must not be negative") }
    let base = try begin(
      request.change, action: "account.import", request: EmptyRequest(), caller: caller)
    var single = request.change
    // One wait at the end serves all rows.
    single.wait = .redis
    var prepared: [Result<(AccountSetRequest, ChangeRecord), AdminFailure>] = []
    for (offset, row) in request.rows.enumerated() {
      prepared.append(prepare(row, at: request.firstRow + offset, request, single, base))
    }
    let global = try await backend.globalConfig()
    let results = await Self.inParallel(prepared) { prepared in
      do throws(AdminFailure) {
        let (set, record) = try prepared.get()
        return Result<ChangeReply, AdminFailure>.success(
          try await accountSet(set, record, global: global))
      } catch {
        return .failure(error)
      }
    }
    var reply = AccountImportReply(dryRun: request.change.dryRun)
    for (offset, result) in results.enumerated() {
      reply.count(
        result, row: request.firstRow + offset, account: request.rows[offset].account)
    }
    if request.change.wait == .ledger && !request.change.dryRun {
      reply.durable = try await waitForAll(request) ? .ledger : .redis
    }
    return reply
  }

  private func waitForAll(_ request: AccountImportRequest) async throws(AdminFailure) -> Bool {
    let map = BucketMap(buckets: backend.deployment.buckets)
    let buckets = Set(request.rows.map { map.bucket(ofAccount: $0.account) })
    let end = clock() + request.change.waitMilliseconds
    for bucket in buckets.sorted() {
      let left = max(1, end - clock())
      guard
        try await backend.waitForLedger(bucket: bucket, position: nil, milliseconds: left)
      else { return false }
    }
    return true
  }

  private func prepare(
    _ row: AccountImportRequest.Row, at number: Int, _ request: AccountImportRequest,
    _ options: ChangeOptions, _ base: ChangeRecord
  ) -> Result<(AccountSetRequest, ChangeRecord), AdminFailure> {
    do throws(AdminFailure) {
      let account: Subject
      let plan: Name
      do throws(InvalidName) {
        account = try Subject(row.account)
        plan = try Name(row.plan)
      } catch {
        throw AdminFailure(.invalidName, error.description)
      }
      try checkIsAccount(account)
      let versioned = row.sourceVersion != nil && request.sourceID != nil
      let set = AccountSetRequest(
        account: account, plan: plan, frozen: row.frozen,
        sourceID: versioned ? request.sourceID : nil,
        sourceVersion: versioned ? row.sourceVersion : nil, change: options)
      try checkSource(set.sourceID, set.sourceVersion)
      var hash = StableHash()
      hash.combine(Int64(bitPattern: base.operation.low))
      hash.combine(Int64(number))
      hash.combine(row.account)
      var record = base
      record.operation = OperationID(high: base.operation.high, low: hash.value)
      record.fingerprint = try Self.fingerprint("account.import", set)
      return .success((set, record))
    } catch {
      return .failure(error)
    }
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

extension AccountImportReply {
  mutating func count(_ result: Result<ChangeReply, AdminFailure>, row: Int, account: String) {
    switch result {
    case .failure(let failure):
      let reason = failure.problems.first?.description ?? failure.message
      failed.append(.init(row: row, account: account, code: failure.code.name, reason: reason))
    case .success(let reply):
      switch reply.result {
      case .applied: applied += 1
      case .dryRun:
        applied += 1
        deniedAtOnce += reply.impact?.deniedAtOnce ?? 0
      case .unchanged: unchanged += 1
      case .ignored: ignored += 1
      case .replayed: replayed += 1
      }
    }
  }
}

extension AccountConfig {
  /// Overrides end by themselves; a write is the occasion to forget those that have.
  mutating func dropExpiredOverrides(now: WallTime) {
    overrides.removeAll { $0.expires.map { $0 <= now } ?? false }
  }
}
