// usage, reset, audit.log, resolve.operation, status, doctor.

import TollgateCore

extension AdminService {
  // MARK: Usage

  func usage(_ request: UsageRequest) async throws(AdminFailure) -> UsageReply {
    let subject = request.subject
    let global = try await backend.globalConfig()
    let account = try await backend.account(subject.account).config
    let plan = global?.plan(of: account, at: clock())
    _ = try SystemZones.calendar(of: account)
    var questions: [Question] = []
    let features = Set(plan?.entitlements.keys.map { $0 } ?? [])
      .union(global?.catalog.features.values.filter(\.metered).map(\.name) ?? [])
    if let global {
      for feature in features.sorted() {
        let items = [Item(feature: feature, amount: 0)]
        questions.append(
          Question(
            resolution: .resolve(
              subject: subject, items: items, global: global, account: account, now: clock(),
              zones: SystemZones.book)))
      }
    }
    let judged = try await judge(subject, questions)
    let snapshot: CountersSnapshot
    if let first = judged.first {
      snapshot = first.snapshot
    } else {
      snapshot = try await backend.counters(account: subject.account, quotas: [], rates: [])
    }
    return UsageReply(
      subject: subject, time: snapshot.time, plan: plan?.name, globalVersion: global?.version ?? 0,
      accountVersion: account.version, loaded: snapshot.isLoaded,
      bucketState: snapshot.bucketState,
      usage: judged.flatMap { rows(of: $0, global) })
  }

  private func rows(of judge: LimitJudge, _ global: GlobalConfig?) -> [UsageReply.Row] {
    let feature = judge.items[0].feature
    let unit = global?.catalog.features[feature]?.unit ?? ""
    var rows: [UsageReply.Row] = []
    var shown: Set<Int> = []
    // What others are charged to has rows of its own.
    for (limit, state) in zip(judge.resolution.limits, judge.states) where limit.item == 0 {
      var window = "-"
      switch limit.rule {
      case .quota(let cell, _), .sliding(let cell, _, _), .concurrency(let cell, _),
        .spendCap(let cell, _):
        shown.insert(cell)
        window = judge.resolution.cells[cell].window.word
      case .rate: window = "rate"
      case .credit: window = "grants"
      case .deny, .unlimited: continue
      }
      rows.append(
        .init(
          feature: feature, limit: limit.id, level: limit.level,
          owner: judge.subject.prefix(limit.level), window: window, period: state.period,
          settled: state.settled ?? 0, held: state.held ?? 0, forgiven: state.forgiven ?? 0,
          amount: state.amount, remaining: state.remaining, reset: state.reset,
          enforcement: limit.enforcement.rawValue, unit: unit))
    }
    // Counters that no limit is held against: the bill, and limits lifted by an override.
    for (index, cell) in judge.resolution.cells.enumerated()
    where cell.item == 0 && !shown.contains(index) {
      let counter = judge.snapshot.counters[index]
      let current = counter.start == cell.period.start ? counter : .empty
      rows.append(
        .init(
          feature: feature, limit: nil, level: cell.level, owner: judge.subject.prefix(cell.level),
          window: cell.window.word, period: cell.period, settled: current.settled,
          held: current.held, forgiven: current.forgiven, amount: nil, remaining: nil,
          reset: cell.period.end, enforcement: "counts", unit: unit))
    }
    return rows
  }

  // MARK: Reset

  func reset(_ request: ResetRequest, _ caller: AdminCaller) async throws(AdminFailure)
    -> ResetReply
  {
    let record = try begin(
      request.change, action: "reset", request: request, caller: caller, reasonRequired: true)
    let global = try await backend.globalConfig()
    let state = try await backend.account(request.subject.account)
    let account = state.config
    let use = try Self.findLimit(request.limit, global)
    guard request.subject.depth >= use.limit.level else {
      throw .badRequest(
        "subject",
        "limit \(request.limit) sits at level \(use.limit.level): name a subject that deep",
        value: request.subject.path)
    }
    guard request.subject.depth == use.limit.level else {
      let owner = request.subject.prefix(use.limit.level)
      let level = global?.catalog.levels[use.limit.level - 1].text ?? "\(use.limit.level)"
      throw .badRequest(
        "subject",
        "limit \(request.limit) sits at level \(use.limit.level) (\(level)): a deeper subject has "
          + "no counter of it; to reset it for everybody below, name \(owner)",
        value: request.subject.path)
    }
    let owner = request.subject
    if let entry = try Self.entry(of: record, in: state.memory) {
      let written = Written(version: 0, bucket: state.bucket, position: nil, time: entry.time)
      return try await finish(
        .replayed(forgiven: entry.result, written), request, owner, use, record, [])
    }
    let items = [Item(feature: use.feature, amount: 0)]
    switch use.limit.kind {
    case .gate, .unlimited:
      throw .badRequest("limit", "limit \(request.limit) is a \(use.limit.kind.name): no counter")
    case .concurrency:
      throw .badRequest(
        "limit", "limit \(request.limit) counts what is held: it is freed by ending the holds")
    case .credit:
      throw .badRequest(
        "limit",
        "limit \(request.limit) burns grants: what is burnt is given back by a refund, and more is"
          + " given by a grant")
    case .quota, .sliding, .spendCap:
      guard let window = use.limit.kind.window else {
        throw AdminFailure(.internalError, "limit \(request.limit) has no counter")
      }
      let reference = CounterReference(subject: owner, feature: use.feature, window: window)
      let snapshot = try await backend.counters(
        account: owner.account, quotas: [reference], rates: [])
      let counter = snapshot.counters.first ?? .empty
      let calendar = try SystemZones.calendar(of: account)
      let now = calendar.period(of: window, containing: snapshot.time)
      let used = counter.start == now.start ? max(0, counter.settled - counter.forgiven) : 0
      var lines = ["\(owner) \(use.feature) this \(window.word): \(used) → 0"]
      if let global {
        lines += Self.sharing(window, use, global.plan(of: account, at: clock())).map {
          "limit \($0) counts in the same counter and starts from 0 too"
        }
      }
      guard used > 0 else { return reply(request, owner, use, record, .unchanged, 0, []) }
      if request.change.dryRun { return reply(request, owner, use, record, .dryRun, used, lines) }
      let outcome = try await backend.resetCounter(
        reference, calendar: calendar, change: record)
      return try await finish(outcome, request, owner, use, record, lines)
    case .rate:
      let reference = RateReference(
        subject: owner, feature: items[0].feature, limit: request.limit)
      let lines = ["\(owner) \(request.limit): the whole burst is available again"]
      if request.change.dryRun { return reply(request, owner, use, record, .dryRun, 0, lines) }
      let outcome = try await backend.resetRate(reference, change: record)
      return try await finish(outcome, request, owner, use, record, lines)
    }
  }

  /// Other limits of the plan that share the counter.
  private static func sharing(_ window: Window, _ use: Catalog.LimitUse, _ plan: Plan?) -> [Name] {
    (plan?.entitlements[use.feature] ?? []).filter { other in
      guard other.kind.window == window else { return false }
      return other.id != use.limit.id && other.level == use.limit.level
    }.map(\.id)
  }

  private func finish(
    _ outcome: ResetOutcome, _ request: ResetRequest, _ owner: Subject, _ use: Catalog.LimitUse,
    _ record: ChangeRecord, _ lines: [String]
  ) async throws(AdminFailure) -> ResetReply {
    switch outcome {
    case .reset(let forgiven, let written):
      let change = try await reply(.applied, written, request.change, record, changes: lines)
      return ResetReply(change: change, owner: owner, feature: use.feature, forgiven: forgiven)
    case .replayed(let forgiven, let written):
      let change = try await reply(.replayed, written, request.change, record, changes: [])
      return ResetReply(change: change, owner: owner, feature: use.feature, forgiven: forgiven)
    }
  }

  private func reply(
    _ request: ResetRequest, _ owner: Subject, _ use: Catalog.LimitUse, _ record: ChangeRecord,
    _ result: ChangeReply.Result, _ forgiven: Int64, _ lines: [String]
  ) -> ResetReply {
    let change = ChangeReply(
      result: result, detail: result == .unchanged ? "nothing is used in this period" : "",
      operation: record.operation, version: 0,
      impact: result == .dryRun ? Impact(accountsAffected: 1, accountsExamined: 1) : nil,
      changes: lines)
    return ResetReply(change: change, owner: owner, feature: use.feature, forgiven: forgiven)
  }

  // MARK: Looking back, looking around

  func auditLog(_ request: AuditRequest) async throws(AdminFailure) -> AuditReply {
    guard (1...AuditRequest.limitMax).contains(request.limit) else {
      throw .badRequest(
        "limit", "must be from 1 to \(AuditRequest.limitMax)", value: "\(request.limit)")
    }
    var place = request.before.map { AuditPlace(time: $0) }
    if let after = request.after {
      guard request.before == nil, let continued = AuditPlace(text: after) else {
        throw .badRequest("after", "must be the `next` of a page, without before_ms", value: after)
      }
      place = continued
    }
    let page = try await backend.audit(
      account: request.account, before: place, limit: request.limit)
    var reply = AuditReply(
      entries: page.entries.map { entry in
        .init(
          time: entry.time, operation: entry.operation, action: entry.change.action,
          scope: entry.change.scope.rawValue, key: entry.change.key,
          version: entry.change.version, actor: entry.change.actor, reason: entry.change.reason,
          before: entry.change.before, after: entry.change.after, delivered: entry.delivered)
      }, ledger: "read", ledgerProblem: "", next: page.next?.text)
    switch page.history {
    case .read: break
    case .none: reply.ledger = "none"
    case .unreachable(let problem):
      reply.ledger = "unreachable"
      reply.ledgerProblem = problem
    }
    return reply
  }

  func resolveOperation(
    _ request: ResolveOperationRequest
  ) async throws(AdminFailure) -> ResolveOperationReply {
    let decision = try await backend.recordedDecision(
      account: request.account, operation: request.operation)
    return ResolveOperationReply(
      operation: request.operation, known: decision != nil, decision: decision?.document)
  }

  func status(_ request: EmptyRequest) async throws(AdminFailure) -> HealthReport {
    await backend.health()
  }

  func doctor(_ request: EmptyRequest) async throws(AdminFailure) -> DoctorReply {
    let facts = await backend.doctorFacts()
    var findings = Doctor.findings(facts, health: await backend.health())
    // What cannot be read now is found out about above.
    if let global = try? await backend.globalConfig() {
      findings += Doctor.findings(global.catalog)
    }
    return DoctorReply(findings: findings)
  }
}
