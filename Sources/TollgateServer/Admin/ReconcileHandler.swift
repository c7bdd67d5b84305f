// reconcile: Redis settled = ledger settled + undelivered, per account, feature and billing period
// (promise 5). The two are never read at one instant, so the order matters: first the ledger's
// totals with its cursor C (one transaction), then Redis' totals with the last sequence number S
// and the entries C + 1 … S (one atomic read). Whatever is at or below C is in the ledger's
// totals, whatever is above it is in the list, and Redis' totals hold all of it up to S. Where an
// acknowledgement trimmed entries in between, the pair is read again.
//
// So are the account's counters beside the bill: what was burnt from each grant, what went beyond
// them, what each rate priced and what is owed. Limits go by these, so they must be true as well.

import TollgateCore

extension AdminService {
  private static var rereadsMax: Int { 5 }
  private static var explainedMax: Int { 20 }
  private static var deltasMax: Int { 2000 }

  func reconcile(_ request: ReconcileRequest) async throws(AdminFailure) -> ReconcileReply {
    guard backend.hasLedger else {
      throw AdminFailure(
        .notFound, "this deployment has no ledger: there is nothing to compare with",
        fix: "metered features and reconciliation need a ledger (`tollgate ledger`)")
    }
    guard (1...ReconcileRequest.limitMax).contains(request.limit) else {
      throw .badRequest(
        "limit", "must be from 1 to \(ReconcileRequest.limitMax)", value: "\(request.limit)")
    }
    if let after = request.after, after.hasPrefix(Self.unloadedMark) {
      return try await unloaded(after: String(after.dropFirst(Self.unloadedMark.count)))
    }
    var accounts: [Subject]
    var next: String?
    if let account = request.account {
      try checkIsAccount(account)
      accounts = [account]
    } else {
      let page = try await backend.accounts(after: request.after, limit: request.limit)
      accounts = page.entries.map(\.account)
      next = page.next ?? Self.unloadedMark
    }
    let map = BucketMap(buckets: backend.deployment.buckets)
    let groups = Dictionary(grouping: accounts) { map.bucket(ofAccount: $0.path) }
    let results = await Self.inParallel(groups.sorted { $0.key < $1.key }) { group in
      do throws(AdminFailure) {
        return Result<[Subject: AccountReconciliation], AdminFailure>.success(
          try await reconcile(bucket: group.key, group.value))
      } catch {
        return .failure(error)
      }
    }
    var found: [Subject: AccountReconciliation] = [:]
    for result in results { found.merge(try result.get()) { first, _ in first } }
    var reply = ReconcileReply()
    reply.next = next
    for account in accounts {
      switch found[account] {
      case nil: continue
      case .skipped(let why, let idle)?:
        reply.skipped.append(.init(account: account, why: why, idle: idle))
      case .compared(let rows)?:
        reply.accounts += 1
        for row in rows {
          reply.totals += 1
          // The same units are in the counters beside the bill again.
          if row.window == nil {
            reply.redis += row.redis
            reply.ledger += row.ledger
            reply.undelivered += row.undelivered
          }
          reply.difference += abs(row.difference)
          if row.difference != 0 || request.verbose { reply.rows.append(row) }
        }
      }
    }
    return reply
  }

  /// In a cursor: Redis' accounts are all compared, then come those that only the ledger has.
  private static var unloadedMark: String { "ledger|" }

  private func unloaded(after cursor: String) async throws(AdminFailure) -> ReconcileReply {
    let page = try await backend.unloadedAccounts(after: cursor.isEmpty ? nil : cursor)
    var reply = ReconcileReply()
    reply.next = page.next.map { Self.unloadedMark + $0 }
    reply.skipped = page.accounts.map {
      .init(
        account: $0, why: "not loaded in Redis (rebuilt from the ledger at its next request)",
        idle: true)
    }
    return reply
  }

  private enum AccountReconciliation: Sendable {
    case compared([ReconcileReply.Row])
    case skipped(String, idle: Bool)
  }

  /// Accounts of one bucket together, so that its outbox is read once for them and not once each.
  private func reconcile(
    bucket: Int, _ accounts: [Subject]
  ) async throws(AdminFailure) -> [Subject: AccountReconciliation] {
    var found: [Subject: AccountReconciliation] = [:]
    var pending = accounts
    var why: [Subject: String] = [:]
    for _ in 0..<Self.rereadsMax where !pending.isEmpty {
      let ledgers = try await backend.ledgerBillings(pending)
      let asked = zip(pending, ledgers).map { (account: $0, cursor: $1.cursor) }
      let stores = try await backend.storeBilling(bucket: bucket, asked)
      pending = []
      for ((account, _), (ledger, store)) in zip(asked, zip(ledgers, stores)) {
        switch judge(ledger, store) {
        case .skip(let reason, let idle): found[account] = .skipped(reason, idle: idle)
        case .again(let reason):
          why[account] = reason
          pending.append(account)
        case .compare: found[account] = .compared(try await compare(account, ledger, store))
        }
      }
    }
    for account in pending { found[account] = .skipped(why[account] ?? "", idle: false) }
    return found
  }

  private enum Comparability {
    case compare
    case skip(String, idle: Bool)
    /// Read both again.
    case again(String)
  }

  private func judge(_ ledger: LedgerBilling, _ store: StoreBilling) -> Comparability {
    if store.bucketState != .ready {
      return .skip(
        "bucket is \(store.bucketState.rawValue); its counters are not in force", idle: false)
    }
    if !store.isLoaded {
      let pending = Set(store.undelivered.map(\.id)).count
      return .skip(
        "not loaded in Redis under epoch \(store.last.epoch) (rebuilt from the ledger at its "
          + "next request)" + (pending > 0 ? "; \(pending) deltas undelivered" : ""),
        idle: pending == 0)
    }
    if store.last.epoch != ledger.cursor.epoch {
      return .again("Redis is in epoch \(store.last.epoch), the ledger in \(ledger.cursor.epoch)")
    }
    if ledger.cursor.sequence > store.last.sequence {
      return .again(
        "the ledger has entry \(ledger.cursor.sequence), Redis only \(store.last.sequence): "
          + "Redis lost writes and will be fenced")
    }
    if store.last.sequence > ledger.cursor.sequence,
      store.firstSequence == 0 || store.firstSequence > ledger.cursor.sequence + 1
    {
      // Delivered and trimmed between the two reads; the next ledger read has them.
      return .again("entries after \(ledger.cursor.sequence) are no longer in the outbox")
    }
    return .compare
  }

  /// A period is known by its start, which is on record; its end each side works out for itself.
  private struct Key: Hashable, Comparable {
    let feature: Name
    let window: Window
    let period: Period

    init(_ total: BillingTotal) {
      feature = total.feature
      window = total.window
      period = total.period
    }

    init(_ delta: BilledDelta) {
      feature = delta.feature
      window = delta.window
      period = delta.period
    }

    var isBill: Bool { window == .month }

    static func == (a: Self, b: Self) -> Bool {
      a.feature == b.feature && a.window == b.window && a.period.start == b.period.start
    }

    func hash(into hasher: inout Hasher) {
      hasher.combine(feature)
      hasher.combine(window)
      hasher.combine(period.start)
    }

    static func < (a: Self, b: Self) -> Bool {
      if a.feature != b.feature { return a.feature < b.feature }
      if a.window != b.window { return a.isBill || (!b.isBill && a.window.code < b.window.code) }
      return a.period.start < b.period.start
    }
  }

  private func compare(
    _ account: Subject, _ ledger: LedgerBilling, _ store: StoreBilling
  ) async throws(AdminFailure) -> [ReconcileReply.Row] {
    var redis: [Key: Int64] = [:]
    var billed: [Key: Int64] = [:]
    var undelivered: [Key: [BilledDelta]] = [:]
    for total in store.totals {
      redis[Key(total), default: 0] += total.settled
    }
    // A closed period has a second line, of adjustments: both are the bill.
    for total in ledger.totals {
      billed[Key(total), default: 0] += total.settled
    }
    for delta in store.undelivered {
      undelivered[Key(delta), default: []].append(delta)
    }
    var unlisted: [Key: Int64] = [:]
    for total in store.unlisted {
      unlisted[Key(total), default: 0] += total.settled
    }
    // Redis keeps the current period and the one before it where it saw both; of older ones only
    // the ledger knows. A missing counter of the current period is zero.
    var keys = Set(redis.keys)
    for key in Set(billed.keys).union(undelivered.keys).union(unlisted.keys)
    where key.isBill
      ? key.period.start == store.month.start : key.period.contains(store.time)
    {
      keys.insert(key)
    }
    // A ledger of an older release says nothing of them.
    if !ledger.hasParts { keys = keys.filter(\.isBill) }
    var rows: [ReconcileReply.Row] = []
    for key in keys.sorted() {
      let pending = undelivered[key] ?? []
      let pendingUnits = pending.reduce(unlisted[key] ?? 0) { $0 + $1.charged }
      let difference = (redis[key] ?? 0) - (billed[key] ?? 0) - pendingUnits
      var row = ReconcileReply.Row(
        account: account, feature: key.feature, window: key.isBill ? nil : key.window.code,
        period: key.period, redis: redis[key] ?? 0,
        ledger: billed[key] ?? 0, undelivered: pendingUnits, difference: difference,
        explanation: [])
      if difference != 0 {
        row.explanation = try await explain(account, key, difference, pending)
      }
      rows.append(row)
    }
    return rows
  }

  /// Which delta ids make up a difference, as far as the ledger, the outbox and the operation
  /// records of the dedupe window can tell.
  private func explain(
    _ account: Subject, _ key: Key, _ difference: Int64, _ pending: [BilledDelta]
  ) async throws(AdminFailure) -> [String] {
    let billed = try await backend.ledgerDeltas(
      account: account, feature: key.feature, window: key.window, period: key.period,
      limit: Self.deltasMax)
    let known = Dictionary(billed.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })
    let records = try await backend.operationRecords(
      account: account, Set(billed.map(\.id.operation)).sorted())
    var lines: [String] = []
    var explained: Int64 = 0
    for delta in pending where known[delta.id] != nil {
      lines.append(
        "delta \(delta.id): \(delta.charged) units are in the ledger and still in the outbox at "
          + "\(delta.position.epoch)-\(delta.position.sequence); the ledger will answer DUPLICATE "
          + "and the counter is put right once")
      explained -= delta.charged
    }
    for delta in billed where delta.kind == .usage {
      switch records[delta.id.operation] {
      case true?: continue
      case false?:
        let reversed = DeltaID(
          operation: delta.id.operation, index: delta.id.index &+ DeltaID.reversalOffset)
        if known[reversed] != nil || pending.contains(where: { $0.id == reversed }) { continue }
        lines.append(
          "delta \(delta.id): \(delta.charged) units are in the ledger, but Redis records the "
            + "operation as not admitted and no reversal is on its way")
        explained -= delta.charged
      case nil:
        lines.append(
          "delta \(delta.id): \(delta.charged) units are in the ledger; Redis has no record of the "
            + "operation any more (older than the dedupe window, or lost)")
      }
    }
    if lines.count > Self.explainedMax {
      let more = lines.count - Self.explainedMax
      lines = Array(lines.prefix(Self.explainedMax)) + ["… and \(more) more deltas"]
    }
    let rest = difference - explained
    if rest > 0 {
      lines.append(
        "\(rest) units are counted in Redis without a delta in the ledger or in the outbox: look "
          + "for a LOSS or a parked delta in the ledger (`tollgate status`)")
    } else if rest < 0 {
      lines.append(
        "\(-rest) units are in the ledger and not in Redis' counter: the counter lost writes, or "
          + "the bill holds adjustments")
    }
    if billed.count == Self.deltasMax {
      lines.append("only the newest \(Self.deltasMax) deltas of this total were looked at")
    }
    return lines
  }
}
