// grant.list: every grant of an account as it stands, in the order in which they are burnt, with
// what the plan gives among them. The numbers are those of the evaluator (`LimitReading`), asked as
// if nothing but the grants mattered: neither a freeze nor a plan without credit hides them.

import TollgateCore

extension AdminService {
  func grantList(_ request: GrantListRequest) async throws(AdminFailure) -> GrantListReply {
    try checkIsAccount(request.account)
    guard let global = try await backend.globalConfig() else {
      throw AdminFailure(
        .notFound, "no catalog is in force", fix: "apply one: tollgate catalog apply FILE")
    }
    let account = try await backend.account(request.account).config
    let calendar = try SystemZones.calendar(of: account)
    // On the sidecar's clock first, to know what to read, then on Redis' time, which judges.
    var now = clock()
    var shelf = GrantShelf(global, account, request.feature, now: now)
    var resolutions = shelf.resolutions(request.account)
    var judged = try await judge(request.account, resolutions.map { Question(resolution: $0) })
    for _ in 0..<2 {
      guard let time = judged.first?.snapshot.time, time != now else { break }
      now = time
      let again = GrantShelf(global, account, request.feature, now: now)
      let resolved = again.resolutions(request.account)
      shelf = again
      if resolved == resolutions { break }
      resolutions = resolved
      judged = try await judge(request.account, resolutions.map { Question(resolution: $0) })
    }
    // One more read for those that ended: their counters are no part of a decision any more.
    let past = shelf.grants.compactMap { grant in
      grant.lastInstance(by: now, calendar).map { (grant.id, $0, grant.feature) }
    }
    let counters = try await backend.counters(
      account: request.account,
      quotas: past.map {
        CounterReference(subject: request.account, feature: $0.2, window: .grant($0.0))
      }, rates: [])
    var stood: [Name: (period: Period, counter: CounterState)] = [:]
    for (entry, counter) in zip(past, counters.counters) { stood[entry.0] = (entry.1, counter) }
    return shelf.reply(request.account, judged, stood, snapshot: counters, now: now)
  }
}

/// The grants of an account, and what is asked about them.
private struct GrantShelf {
  let account: AccountConfig
  let plan: Plan?
  let now: WallTime
  let global: GlobalConfig
  /// The account's own, of the features asked for.
  let grants: [Grant]
  /// Features that have grants, of the account or of its plan, with the limit that burns them.
  let credits: [(feature: Name, limit: Limit, isOfPlan: Bool)]

  init(_ global: GlobalConfig, _ account: AccountConfig, _ only: Name?, now: WallTime) {
    self.global = global
    self.account = account
    self.now = now
    let plan = global.plan(of: account, at: now)
    self.plan = plan
    grants = account.grants.filter { only == nil || $0.feature == only }
    var features = Set(grants.map(\.feature))
    var limits: [Name: Limit] = [:]
    for (feature, list) in plan?.entitlements ?? [:] where only == nil || feature == only {
      for limit in list {
        guard case .credit = limit.kind else { continue }
        limits[feature] = limit
        features.insert(feature)
      }
    }
    credits = features.sorted().map { feature in
      if let limit = limits[feature] { return (feature, limit, true) }
      let standIn = Limit(
        id: feature, kind: .credit(Credit(included: nil, allowsOverage: true)), level: 1,
        enforcement: .hard, failurePolicy: .closed)
      return (feature, standIn, false)
    }
  }

  /// One for each feature, free of everything that is not about grants.
  func resolutions(_ subject: Subject) -> [Resolution] {
    var account = account
    account.next = nil
    account.frozen = false
    account.pastDue = nil
    var global = global
    global.catalog.rates = RateCard()
    global.bypasses = []
    return credits.map { feature, limit, _ in
      let name = plan?.name ?? feature
      account.plan = name
      global.catalog.plans = [name: Plan(name: name, entitlements: [feature: [limit]])]
      return .resolve(
        subject: subject, items: [Item(feature: feature, amount: 0)], global: global,
        account: account, now: now, zones: SystemZones.book)
    }
  }

  func reply(
    _ subject: Subject, _ judged: [LimitJudge],
    _ stood: [Name: (period: Period, counter: CounterState)], snapshot: CountersSnapshot,
    now: WallTime
  ) -> GrantListReply {
    var reply = GrantListReply(
      account: subject, time: now, plan: plan?.name, loaded: snapshot.isLoaded, grants: [],
      owed: [])
    for (credit, judge) in zip(credits, judged) {
      let burns = judge.reading.burns[0] ?? []
      var order = 0
      var shown: Set<Name> = []
      for burn in burns {
        let included = included(credit, subject)
        let isOfPlan = included?.id == burn.grant
        guard
          let grant = isOfPlan ? included : grants.first(where: { $0.id == burn.grant })
        else { continue }
        if !isOfPlan { shown.insert(grant.id) }
        var report = report(grant, isOfPlan: isOfPlan, in: burn.period)
        report.carried = burn.carried
        report.burnt = burn.settled
        report.held = burn.held
        report.left = burn.left
        if !burn.isVoided && credit.isOfPlan {
          order += 1
          report.order = order
        }
        report.state =
          burn.isVoided ? .voided : !credit.isOfPlan ? .idle : burn.left > 0 ? .active : .usedUp
        reply.grants.append(report)
      }
      for grant in grants where grant.feature == credit.feature && !shown.contains(grant.id) {
        reply.grants.append(absent(grant, stood[grant.id]))
      }
      if let owed = judge.reading.owed[0], owed > 0 {
        reply.owed.append(.init(feature: credit.feature, units: owed))
      }
    }
    return reply
  }

  private typealias CreditUse = (feature: Name, limit: Limit, isOfPlan: Bool)

  /// What the plan itself gives of a feature, overrides applied.
  private func included(_ credit: CreditUse, _ subject: Subject) -> Grant? {
    let inForce = LimitText.inForce(
      credit.limit, subject: subject, account: account, bypassed: false, now: now)
    guard case .credit(let rule) = inForce.kind, let included = rule.included else { return nil }
    let beginning = WallTime(milliseconds: 0)
    return Grant(
      id: credit.limit.id, feature: credit.feature, amount: included.amount,
      priority: included.priority, effective: beginning, created: beginning,
      every: included.every, rollover: included.rollover,
      reason: "plan \(plan?.name.text ?? "")", author: "catalog")
  }

  private func report(_ grant: Grant, isOfPlan: Bool, in period: Period?) -> GrantReport {
    GrantReport(
      id: grant.id, feature: grant.feature, ofPlan: isOfPlan,
      kind: grant.kind.rawValue, priority: grant.priority, state: .scheduled, order: nil,
      amount: grant.amount, carried: 0, burnt: nil, held: nil, left: 0, period: period,
      effective: grant.effective, expires: grant.expires, created: grant.created,
      every: grant.every, rolloverMin: grant.rollover == .none ? nil : grant.rollover.min,
      rolloverMax: grant.rollover == .none ? nil : grant.rollover.max, voided: grant.voided,
      reason: grant.reason, author: grant.author)
  }

  /// One that no decision sees now.
  private func absent(
    _ grant: Grant, _ stood: (period: Period, counter: CounterState)?
  ) -> GrantReport {
    var report = report(grant, isOfPlan: false, in: stood?.period)
    if grant.voided != nil {
      report.state = .voided
    } else if let expires = grant.expires, expires <= now {
      report.state = .expired
    } else if now < grant.effective {
      report.state = .scheduled
      report.left = grant.amount
      report.burnt = 0
      report.held = 0
    } else {
      report.state = .hidden
    }
    guard let stood else { return report }
    let counter = stood.counter
    if counter.start == stood.period.start {
      report.burnt = counter.settled
      report.held = counter.held
    } else if counter.previousStart == stood.period.start,
      counter.previousStart != CounterState.empty.start
    {
      report.burnt = counter.previousSettled
      report.held = counter.previousHeld
    }
    return report
  }
}

extension Grant {
  /// The last instance of one that expired; nil for one that did not.
  fileprivate func lastInstance(by now: WallTime, _ calendar: AccountCalendar) -> Period? {
    guard let expires, expires <= now, effective < expires else { return nil }
    return instance(at: expires + -1, calendar)?.period
  }
}
