// account.plan and account.past_due: what happens to an account by time. Nothing runs when the time
// comes: the change is in the account's configuration beforehand, and whoever resolves a request
// goes by it. Counters and grants are not touched by either: a counter is named by its feature and
// window and not by its plan, and only what a plan itself grants comes and goes with the plan.

import TollgateCore

extension AdminService {
  /// When a change of plan comes into force.
  enum PlanMoment {
    case now
    case at(WallTime)
  }

  func accountPlan(
    _ request: AccountPlanRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    try checkIsAccount(request.account)
    let source = try checkSource(request.sourceID, request.sourceVersion)
    try Self.check(request, now: clock())
    let record = try begin(
      request.change, action: "account.plan", request: request, caller: caller)
    return try await changeAccount(request.account, request.change, record) {
      (before, global) throws(AdminFailure) in
      let now = clock()
      return try Self.edit(
        before, source, now: now, unchanged: "the account is already as asked"
      ) { (after) throws(AdminFailure) in
        try Self.change(&after, request, global, now: now)
      }
    } impact: { (global, before, after) throws(AdminFailure) in
      // Of a change to come: what it would do with what is used now.
      var then = after
      if let next = after.next, !next.endsTrial {
        then.plan = next.plan
        then.next = nil
      }
      return try await impact(of: request.account, global, before, then)
    }
  }

  /// What can be said of the request by itself.
  static func check(_ request: AccountPlanRequest, now: WallTime) throws(AdminFailure) {
    let others =
      request.when != nil || request.effective != nil || request.until != nil
      || request.then != nil || request.thenNone == true
    if request.withdraw == true {
      guard request.plan == nil, !others else {
        throw .badRequest("withdraw", "goes with no plan and no time")
      }
      return
    }
    guard request.plan != nil else { throw .badRequest("plan", "is required") }
    if let when = request.when, when != "now", when != "period-end" {
      throw .badRequest("when", "must be now or period-end", value: when)
    }
    if let effective = request.effective {
      guard request.when == nil else {
        throw .badRequest("effective_ms", "goes without when")
      }
      guard effective > now, effective.milliseconds <= Quantity.maximum else {
        throw .badRequest(
          "effective_ms", "is not in the future", value: CivilDate.text(effective))
      }
    }
    guard let until = request.until else {
      guard request.then == nil, request.thenNone != true else {
        throw .badRequest("then", "goes with until_ms, the end of a trial")
      }
      return
    }
    guard until > now, until.milliseconds <= Quantity.maximum else {
      throw .badRequest("until_ms", "is not in the future", value: CivilDate.text(until))
    }
    guard request.effective == nil, request.when != "period-end" else {
      throw .badRequest("until_ms", "a trial begins now: give neither effective_ms nor period-end")
    }
    guard (request.then != nil) != (request.thenNone == true) else {
      throw .badRequest("then", "say what follows: then, or then_none")
    }
  }

  /// What it changed, in words.
  private static func change(
    _ account: inout AccountConfig, _ request: AccountPlanRequest, _ global: GlobalConfig?,
    now: WallTime
  ) throws(AdminFailure) -> [String] {
    guard let plan = request.plan else {
      guard let next = account.next(after: now) else { return [] }
      account.next = nil
      return ["withdrawn: \(next.text)"]
    }
    try checkPlan(plan, global)
    if let then = request.then { try checkPlan(then, global) }
    let current = account.plan(at: now)
    if let until = request.until {
      let trial = NextPlan(plan: request.then, at: until, endsTrial: true)
      guard plan != current || account.next(after: now) != trial else { return [] }
      var changes = account.enter(plan, now: now)
      account.next = trial
      changes.append("trial: \(plan); \(trial.text)")
      return changes
    }
    switch try moment(request, of: account, global, now: now) {
    case .now:
      guard plan != current || account.next(after: now) != nil else { return [] }
      return account.enter(plan, now: now)
    case .at(let instant):
      let next = NextPlan(plan: plan, at: instant)
      guard account.next(after: now) != next else { return [] }
      var changes: [String] = []
      if let old = account.next(after: now) { changes.append("withdrawn: \(old.text)") }
      account.plan = current
      account.next = plan == current ? nil : next
      if plan != current {
        changes.append("plan: \(current?.text ?? "none"), then \(next.text)")
      }
      return changes
    }
  }

  /// An upgrade bites now; a downgrade waits for the end of what is paid for. Which of the two it
  /// is, the catalog's ranks tell; where they do not, nobody guesses.
  private static func moment(
    _ request: AccountPlanRequest, of account: AccountConfig, _ global: GlobalConfig?,
    now: WallTime
  ) throws(AdminFailure) -> PlanMoment {
    if let effective = request.effective { return .at(effective) }
    switch request.when {
    case "now": return .now
    case "period-end": return .at(try periodEnd(of: account, now: now))
    default: break
    }
    guard let current = account.plan(at: now), current != request.plan else { return .now }
    guard let new = request.plan, let from = global?.catalog.plans[current]?.rank,
      let to = global?.catalog.plans[new]?.rank
    else {
      throw AdminFailure(
        .badRequest,
        "the catalog does not rank both \(current) and \(request.plan?.text ?? "none")",
        fix: "say when: --at now or --at period-end; or give the catalog `ranks`",
        problems: [.init(path: "when", reason: "is required for plans without ranks")])
    }
    return to < from ? .at(try periodEnd(of: account, now: now)) : .now
  }

  /// The end of the billing period: the anchored month.
  private static func periodEnd(
    of account: AccountConfig, now: WallTime
  ) throws(AdminFailure) -> WallTime {
    try SystemZones.calendar(of: account)
      .period(of: Window(.month, .anchored), containing: now).end
  }

  // MARK: Past due

  func accountPastDue(
    _ request: AccountPastDueRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    try checkIsAccount(request.account)
    let source = try checkSource(request.sourceID, request.sourceVersion)
    let clears = request.clear == true
    guard clears != (request.graceMilliseconds != nil) else {
      throw .badRequest("grace_ms", "give grace_ms, or clear")
    }
    if let grace = request.graceMilliseconds,
      !(0...AccountPastDueRequest.graceMillisecondsMax).contains(grace)
    {
      throw .badRequest(
        "grace_ms", "must be from 0 to \(AccountPastDueRequest.graceMillisecondsMax) (a year)",
        value: "\(grace)")
    }
    let record = try begin(
      request.change, action: "account.past_due", request: request, caller: caller)
    return try await changeAccount(request.account, request.change, record) {
      (before, _) throws(AdminFailure) in
      let now = clock()
      return try Self.edit(
        before, source, now: now, unchanged: "the account is already as asked"
      ) { (after) in
        Self.change(&after, graceMilliseconds: request.graceMilliseconds, now: now)
      }
    } impact: { (global, before, after) throws(AdminFailure) in
      // Of a grace that runs: what its end will do.
      var then = after
      if let owed = after.pastDue { then.pastDue?.graceEnds = owed.since }
      return try await impact(of: request.account, global, before, then)
    }
  }

  /// Counted from when the payment was first missed, so that every further reminder of it does not
  /// begin a grace of its own. nil: paid.
  private static func change(
    _ account: inout AccountConfig, graceMilliseconds: Int64?, now: WallTime
  ) -> [String] {
    let before = account.pastDue
    guard let graceMilliseconds else {
      account.pastDue = nil
      return before == nil ? [] : ["past due: cleared"]
    }
    let since = before?.since ?? now
    let owed = PastDue(since: since, graceEnds: since + graceMilliseconds)
    guard owed != before else { return [] }
    account.pastDue = owed
    return [
      "past due: since \(CivilDate.text(since)); denied from \(CivilDate.text(owed.graceEnds)) on"
    ]
  }
}
