// account.import: up to a thousand rows in one request. Each row is a change of its own, under an
// id derived from the import's id and the row's number, so a batch that is sent again applies what
// is missing and nothing twice. Rows of different accounts travel together: their states are read
// in one go, edited here, and written in one go; rows of one account keep their order.
//
// Backs off by itself: where a bucket holds as much undelivered as an import may add, it waits for
// the ledger, and answers OVERLOADED where that takes too long. Whoever sent the batch sends it
// again, with the same id.

package import TollgateCore

extension AdminService {
  private typealias Prepared = (offset: Int, request: AccountSetRequest, record: ChangeRecord)

  func accountImport(
    _ request: AccountImportRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> AccountImportReply {
    guard (1...AccountImportRequest.rowsMax).contains(request.rows.count) else {
      throw .badRequest(
        "rows", "must be 1 … \(AccountImportRequest.rowsMax)", value: "\(request.rows.count)")
    }
    guard (0...AccountImportRequest.rowNumberMax).contains(request.firstRow) else {
      throw .badRequest("first_row", "must be 0 … \(AccountImportRequest.rowNumberMax)")
    }
    let base = try begin(
      request.change, action: "account.import", request: EmptyRequest(), caller: caller)
    var results = [Result<ChangeReply, AdminFailure>?](repeating: nil, count: request.rows.count)
    var waves: [[Prepared]] = []
    var rowsOf: [Subject: Int] = [:]
    for (offset, row) in request.rows.enumerated() {
      do throws(AdminFailure) {
        let (set, record) = try prepare(row, at: request.firstRow + offset, request, base)
        // The n-th row of an account goes with the n-th wave.
        let wave = rowsOf[set.account, default: 0]
        rowsOf[set.account] = wave + 1
        if wave == waves.count { waves.append([]) }
        waves[wave].append((offset, set, record))
      } catch {
        results[offset] = .failure(error)
      }
    }
    let global = try await backend.globalConfig()
    let end = clock() + Self.roomMilliseconds
    for wave in waves { try await carryOut(wave, global, until: end, &results) }
    // What failed for want of Redis or the ledger is no fault of its row: the batch is sent again.
    for case .failure(let failure)? in results where failure.passes { throw failure }
    var reply = AccountImportReply(dryRun: request.change.dryRun)
    for (offset, result) in results.enumerated() {
      guard let result else { continue }
      reply.count(
        result, row: request.firstRow + offset, account: request.rows[offset].account)
    }
    if request.change.wait == .ledger && !request.change.dryRun {
      reply.durable = try await waitForAll(request) ? .ledger : .redis
    }
    return reply
  }

  /// How long one request waits for the ledger to catch up.
  static var roomMilliseconds: Int64 { 4_000 }

  /// Different accounts, one row each.
  private func carryOut(
    _ wave: [Prepared], _ global: GlobalConfig?, until end: WallTime,
    _ results: inout [Result<ChangeReply, AdminFailure>?]
  ) async throws(AdminFailure) {
    let states = await backend.accounts(wave.map(\.request.account))
    var writes: [(row: Prepared, write: AccountWrite, changes: [String])] = []
    var dry: [(row: Prepared, write: AccountWrite, changes: [String])] = []
    for (row, state) in zip(wave, states) {
      do throws(AdminFailure) {
        switch try planned(row, try state.get(), global) {
        case .answered(let reply): results[row.offset] = .success(reply)
        case .write(let write, let changes):
          if row.request.change.dryRun {
            dry.append((row, write, changes))
          } else {
            writes.append((row, write, changes))
          }
        }
      } catch {
        results[row.offset] = .failure(error)
      }
    }
    let impacts = await Self.inParallel(dry) { item in
      do throws(AdminFailure) {
        return Result<Impact, AdminFailure>.success(
          try await impact(
            of: item.write.account, global, item.write.before, item.write.config))
      } catch {
        return .failure(error)
      }
    }
    for (item, impact) in zip(dry, impacts) {
      results[item.row.offset] = impact.map {
        ChangeReply(
          result: .dryRun, operation: item.row.record.operation,
          version: item.write.before.version, impact: $0, changes: item.changes)
      }
    }
    while !writes.isEmpty {
      var crowded: [(row: Prepared, write: AccountWrite, changes: [String])] = []
      let outcomes = await backend.writeAccounts(writes.map(\.write))
      for (item, outcome) in zip(writes, outcomes) {
        do throws(AdminFailure) {
          switch try outcome.get() {
          case .crowded: crowded.append(item)
          case .conflict:
            // Somebody else's change came in between: look at it, like a change of its own.
            results[item.row.offset] = .success(
              try await accountSet(item.row.request, item.row.record))
          case .written(let written):
            results[item.row.offset] = .success(
              ChangeReply(
                result: .applied, operation: item.row.record.operation, version: written.version,
                changes: item.changes))
          case .replayed(let written):
            results[item.row.offset] = .success(
              ChangeReply(
                result: .replayed, operation: item.row.record.operation, version: written.version))
          }
        } catch {
          results[item.row.offset] = .failure(error)
        }
      }
      writes = crowded
      guard !writes.isEmpty else { return }
      let map = BucketMap(buckets: backend.deployment.buckets)
      let full = Set(writes.map { map.bucket(ofAccount: $0.write.account.path) })
      let left = end - clock()
      guard left > 0, await backend.waitForRoom(buckets: full, milliseconds: left) else {
        throw AdminFailure(
          .overloaded,
          "the ledger is behind by more than an import may add; \(writes.count) rows wait",
          fix: "send the batch again with the same operation id: what is done is not done twice")
      }
    }
  }

  private enum Planned {
    case answered(ChangeReply)
    case write(AccountWrite, [String])
  }

  private func planned(
    _ row: Prepared, _ state: AccountState, _ global: GlobalConfig?
  ) throws(AdminFailure) -> Planned {
    let operation = row.record.operation
    if let later = Self.laterRow(than: operation, in: state.memory) {
      return .answered(
        ChangeReply(
          result: .replayed, detail: "a later row of this import was applied to the account",
          operation: operation, version: later.result))
    }
    if let entry = try Self.entry(of: row.record, in: state.memory) {
      return .answered(
        ChangeReply(result: .replayed, operation: operation, version: entry.result))
    }
    let before = state.config
    switch try Self.edit(before, global, row.request, now: clock()) {
    case .unchanged(let detail):
      return .answered(
        ChangeReply(
          result: .unchanged, detail: detail, operation: operation, version: before.version))
    case .ignored(let detail):
      return .answered(
        ChangeReply(
          result: .ignored, detail: detail, operation: operation, version: before.version))
    case .change(var after, let changes):
      after.version = before.version + 1
      return .write(
        AccountWrite(
          account: row.request.account, config: after, before: before, change: row.record), changes)
    }
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
    _ base: ChangeRecord
  ) throws(AdminFailure) -> (AccountSetRequest, ChangeRecord) {
    let account = try Self.named("account", row.account) { (text) throws(InvalidName) in
      try Subject(text)
    }
    let plan = try Self.named("plan", row.plan) { (text) throws(InvalidName) in try Name(text) }
    try checkIsAccount(account)
    let versioned = row.sourceVersion != nil && request.sourceID != nil
    var options = request.change
    // One wait at the end serves all rows.
    options.wait = .redis
    let set = AccountSetRequest(
      account: account, plan: plan, frozen: row.frozen, zone: row.zone, anchor: row.anchor,
      sourceID: versioned ? request.sourceID : nil,
      sourceVersion: versioned ? row.sourceVersion : nil, change: options)
    _ = try checkSource(set.sourceID, set.sourceVersion)
    try checkCalendar(set)
    var record = base
    record.operation = Self.operation(base.operation, row: number, account: row.account)
    record.fingerprint = Self.fingerprint(set)
    return (set, record)
  }

  /// A problem says which column of the row it is in.
  private static func named<Value>(
    _ column: String, _ text: String, _ read: (String) throws(InvalidName) -> Value
  ) throws(AdminFailure) -> Value {
    do throws(InvalidName) {
      return try read(text)
    } catch {
      throw AdminFailure(
        .invalidName, error.description,
        problems: [.init(path: column, reason: error.description)])
    }
  }

  /// Ordered by row number, so that of many rows of one account a later one is never older than
  /// what is remembered of the earlier ones.
  package static func operation(_ base: OperationID, row: Int, account: String) -> OperationID {
    var hash = StableHash()
    hash.combine(Int64(bitPattern: base.low))
    hash.combine(account)
    return OperationID(
      high: base.high, low: UInt64(UInt32(clamping: row)) << 32 | hash.value & 0xFFFF_FFFF)
  }

  /// Rows of one account take effect in their order, so where a later one is remembered this one
  /// was answered before, whatever the answer was: it must not be applied on top of the later.
  private static func laterRow(
    than operation: OperationID, in memory: ChangeMemory
  ) -> ChangeMemory.Entry? {
    memory.entries.first {
      $0.operation.high == operation.high && $0.operation.low > operation.low
        && $0.operation.low & 0xFFFF_FFFF == operation.low & 0xFFFF_FFFF
    }
  }

  /// Over the row itself: the general way through a document would cost more than the change.
  private static func fingerprint(_ set: AccountSetRequest) -> UInt64 {
    var hash = StableHash()
    hash.combine(set.plan?.text ?? "")
    hash.combine(Int64(set.frozen.map { $0 ? 1 : 0 } ?? -1))
    hash.combine(set.sourceID ?? "")
    hash.combine(Int64(set.sourceVersion ?? -1))
    // Only where they are given: an import that an older release began goes on.
    if let zone = set.zone { hash.combine("zone \(zone)") }
    if let anchor = set.anchor { hash.combine(anchor.milliseconds) }
    return StableHash.of("account.import") << 32 | hash.value & 0xFFFF_FFFF
  }
}

extension AdminFailure {
  /// Whether the same request may succeed later.
  fileprivate var passes: Bool {
    switch code {
    case .unavailable, .outcomeUnknown, .overloaded, .notReady, .draining: true
    default: false
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
