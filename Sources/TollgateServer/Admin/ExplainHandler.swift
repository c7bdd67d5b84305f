// explain: why a subject would be allowed or denied now. It resolves the request exactly as a
// decision does, reads the counters it would read, and says of every limit what it is, where it
// comes from, how it stands and whether it would bind. It consumes nothing and writes nothing.

import TollgateCore
import TollgateWire

extension AdminService {
  func explain(_ request: ExplainRequest) async throws(AdminFailure) -> ExplainReply {
    let subject = request.subject
    let items = try check(request.items)
    let attributes = request.attributes ?? [:]
    guard attributes.count <= WireLimits.attributesMax else {
      throw .badRequest(
        "attributes", "at most \(WireLimits.attributesMax)", value: "\(attributes.count)")
    }
    guard let global = try await backend.globalConfig() else {
      throw AdminFailure(
        .notFound, "no catalog is in force: every request is denied",
        fix: "apply one: tollgate catalog apply FILE")
    }
    let state = try await backend.account(subject.account)
    // Resolved on the sidecar's clock first, to know what to read, then on Redis' time, which
    // judges. Where a period or an expiry lies between the two, one more round settles it.
    var now = clock()
    var judged: LimitJudge
    var rounds = 0
    repeat {
      let resolution = Resolution.resolve(
        subject: subject, items: items, attributes: attributes, global: global,
        account: state.config, now: now, zones: SystemZones.book)
      if let zone = resolution.unknownZone { throw .unknownZone(zone) }
      if let refusal = resolution.refusal {
        throw AdminFailure(.tooManyItems, refusal, fix: "explain fewer features at a time")
      }
      guard let answer = try await judge(subject, [Question(resolution: resolution)]).first
      else { throw AdminFailure(.internalError, "no judgement") }
      judged = answer
      let again = Resolution.resolve(
        subject: subject, items: items, attributes: attributes, global: global,
        account: state.config, now: judged.snapshot.time, zones: SystemZones.book)
      now = judged.snapshot.time
      rounds += 1
      if again == resolution { break }
    } while rounds < 3
    return reply(subject, global, state, judged)
  }

  private func check(_ items: [ExplainRequest.Item]) throws(AdminFailure) -> [Item] {
    guard (1...Resolution.itemsMax).contains(items.count) else {
      throw AdminFailure(
        .tooManyItems, "give 1 … \(Resolution.itemsMax) features, not \(items.count)")
    }
    var seen: Set<Name> = []
    for item in items {
      guard seen.insert(item.feature).inserted else {
        throw AdminFailure(.duplicateItem, "feature \(item.feature) appears twice")
      }
      guard item.amount >= 0, item.amount <= Quantity.maximum else {
        throw AdminFailure(
          .amountOutOfRange, "amount \(item.amount) of \(item.feature) is out of range",
          fix: "an amount is from 0 to \(Quantity.maximum)")
      }
    }
    return items.map { Item(feature: $0.feature, amount: $0.amount) }
  }

  private func reply(
    _ subject: Subject, _ global: GlobalConfig, _ state: AccountState, _ judged: LimitJudge
  ) -> ExplainReply {
    let snapshot = judged.snapshot
    let now = snapshot.time
    let outcome = judged.outcome
    let plan = global.plan(of: state.config, at: now)
    let named = state.config.plan(at: now)
    var source = named != nil ? "account" : plan != nil ? "unknown-account rule" : "none"
    if let name = named, plan == nil {
      source = "account, but \(name) left the catalog"
    }
    let steps = judged.resolution.limits.indices.map { index in
      step(index, judged, global, state.config, plan)
    }
    let bypasses = global.bypasses.filter { bypass in
      now < bypass.until
        && (bypass.feature == nil || judged.items.contains { $0.feature == bypass.feature })
    }
    return ExplainReply(
      subject: subject, time: now, allowed: outcome.reason.isAllowed, reason: outcome.reason.name,
      summary: summary(judged), retryAfterMilliseconds: outcome.retryAfter, plan: plan?.name,
      planSource: source, next: state.config.next(after: now).map { NextPlanReport($0) },
      frozen: state.config.frozen,
      pastDue: state.config.pastDue.map { PastDueReport($0, now: now) },
      globalVersion: global.version,
      catalogVersion: global.catalogVersion, accountVersion: state.config.version,
      bucket: snapshot.bucket, bucketState: snapshot.bucketState, epoch: snapshot.epoch,
      loaded: snapshot.isLoaded, bypasses: bypasses.map { .init($0, now: now) },
      prices: prices(judged), steps: steps, leases: leases(judged),
      notes: notes(global, state.config, snapshot, judged))
  }

  /// Of the account's leases what lies in the counters and rates of these limits.
  private func leases(_ judged: LimitJudge) -> [LeaseReport]? {
    let features = Set(judged.items.map(\.feature))
    let leases = judged.snapshot.leases.compactMap { lease -> LeaseReport? in
      var lease = lease
      lease.portions = lease.portions.filter {
        features.contains($0.feature)
          && judged.subject.prefix($0.subject.depth) == $0.subject
      }
      return lease.portions.isEmpty ? nil : lease
    }
    return leases.isEmpty ? nil : leases
  }

  /// In the order in which they are charged, what comes of them into the amounts of the steps.
  private func prices(_ judged: LimitJudge) -> [ExplainReply.Price] {
    judged.resolution.pricings.map { pricing in
      let charge = judged.reading.charges.first {
        $0.rate == pricing.rate && $0.from == pricing.from
      }
      let cell = judged.resolution.cells[pricing.cell]
      let counter = judged.snapshot.counters[pricing.cell]
      return ExplainReply.Price(
        rate: pricing.rate, from: pricing.from, feature: judged.items[pricing.source].feature,
        into: judged.items[pricing.target].feature, of: pricing.portion.rawValue,
        units: charge?.units ?? 0, charge: charge?.charge ?? 0, price: pricing.price.numerator,
        per: pricing.price.denominator,
        unitsBefore: counter.start == cell.period.start ? counter.settled : 0)
    }
  }

  private func step(
    _ index: Int, _ judged: LimitJudge, _ global: GlobalConfig, _ account: AccountConfig,
    _ plan: Plan?
  ) -> ExplainReply.Step {
    let limit = judged.resolution.limits[index]
    let state = judged.states[index]
    let feature = judged.items[limit.item].feature
    let owner = judged.subject.prefix(limit.level)
    let definition = plan?.entitlements[feature]?.first { $0.id == limit.id }
    var overrides: [Override] = []
    var kind = "rule"
    var window: String?
    if let definition {
      let inForce = LimitText.inForce(
        definition, subject: judged.subject, account: account,
        bypassed: global.bypassed(feature, now: judged.snapshot.time), now: judged.snapshot.time)
      overrides = inForce.overrides
      kind = LimitText.of(inForce.kind)
    }
    switch limit.rule {
    case .quota(let cell, _), .sliding(let cell, _, _), .concurrency(let cell, _),
      .spendCap(let cell, _):
      window = judged.resolution.cells[cell].window.word
    case .credit: window = "grants"
    case .deny, .rate, .unlimited: break
    }
    var grants: [ExplainReply.Burn]?
    if case .credit = limit.rule {
      grants = (judged.reading.burns[limit.item] ?? []).map { burn in
        .init(
          grant: burn.grant, amount: burn.amount, carried: burn.carried, burnt: burn.settled,
          held: burn.held, left: burn.left, burns: burn.burnt, ends: burn.ends,
          voided: burn.isVoided)
      }
    }
    return ExplainReply.Step(
      order: index + 1, feature: feature, limit: limit.id, kind: kind, level: limit.level,
      owner: owner, enforcement: limit.enforcement.rawValue,
      failurePolicy: LimitText.of(limit.failurePolicy), amount: state.amount, window: window,
      period: state.period, settled: state.settled, held: state.held, forgiven: state.forgiven,
      remaining: state.remaining, reset: state.reset, verdict: state.denial?.name ?? "passes",
      binding: judged.outcome.binding == index,
      why: why(limit, judged, state, owner),
      overrides: overrides.map { OverrideReport($0) }, grants: grants,
      overage: grants == nil ? nil : judged.reading.overage[limit.item],
      owed: grants == nil ? nil : judged.reading.owed[limit.item])
  }

  private func why(
    _ limit: AppliedLimit, _ judged: LimitJudge, _ state: LimitJudge.State, _ owner: Subject
  ) -> String {
    let cost = judged.reading.amounts[limit.item]
    let softened = limit.enforcement == .hard ? "" : " (\(limit.enforcement.rawValue): allows)"
    switch limit.rule {
    case .deny(let reason): return Self.words(for: reason, owner) + softened
    case .unlimited: return "has no limit; it only counts"
    case .quota(_, let amount):
      let used = max(0, (state.settled ?? 0) - (state.forgiven ?? 0))
      var text = "\(used) of \(amount) used"
      if let held = state.held, held > 0 { text += ", \(held) held" }
      if let forgiven = state.forgiven, forgiven > 0 { text += ", \(forgiven) forgiven by a reset" }
      text += "; \(cost) asked, \(state.remaining ?? 0) left"
      return text + (state.denial == nil ? "" : softened)
    case .sliding(_, let amount, let length):
      let reached = amount - (state.remaining ?? 0)
      let text = "\(reached) of \(amount) used in the last \(LimitText.span(length))"
      return text + "; \(cost) asked, \(state.remaining ?? 0) left"
        + (state.denial == nil ? "" : softened)
    case .concurrency(_, let amount):
      return "\(state.held ?? 0) of \(amount) held; \(cost) asked, \(state.remaining ?? 0) left"
        + (state.denial == nil ? "" : softened)
    case .credit:
      let burns = (judged.reading.burns[limit.item] ?? []).map {
        "\($0.burnt) of \($0.left) from \($0.grant)"
      }
      let rest = judged.reading.overage[limit.item]
      let owed = judged.reading.owed[limit.item] ?? 0
      return "\(cost) asked: "
        + (burns.isEmpty ? "no grant is there" : burns.joined(separator: ", "))
        + (rest > 0 ? ", \(rest) beyond every grant" : "") + (owed > 0 ? "; \(owed) owed" : "")
        + (state.denial == nil ? "" : softened)
    case .spendCap(_, let amount):
      let rest = judged.reading.overage[limit.item]
      let text = "\(state.settled ?? 0) used beyond grants, \(state.held ?? 0) held; \(rest) asked"
      return text + (amount.map { ", \($0) at most" } ?? ", no cap")
        + (state.denial == nil ? "" : softened)
    case .rate:
      let text = "\(cost) asked, \(state.remaining ?? 0) available now"
      guard let wait = state.retryAfter else { return text }
      return text + ", enough in \(LimitText.span(wait))" + softened
    }
  }

  private static func words(for reason: Reason, _ owner: Subject) -> String {
    switch reason {
    case .accountFrozen: "account \(owner) is frozen"
    case .unknownAccount: "account \(owner) has no plan, and the catalog denies unknown accounts"
    case .unknownFeature: "the catalog has no such feature"
    case .featureNotInPlan: "the plan does not include this feature"
    case .gateClosed: "the gate is off"
    case .costAboveBurst: "more is asked than the burst ever allows; waiting does not help"
    case .priceUnknown: "no rate is for these attributes, and none is for all others"
    case .pastDue: "a payment of account \(owner) is owed and its grace is over"
    default: reason.name
    }
  }

  private func summary(_ judged: LimitJudge) -> String {
    let outcome = judged.outcome
    guard let index = outcome.binding else {
      return outcome.reason.isAllowed ? "allowed: nothing limits it" : outcome.reason.name
    }
    let limit = judged.resolution.limits[index]
    switch outcome.reason {
    case .allowed: return "allowed; limit \(limit.id) leaves the least"
    case .allowedShadow: return "allowed, though \(limit.id) would deny if it were not shadow"
    case .allowedSoft: return "allowed, though soft limit \(limit.id) is exceeded"
    default:
      let wait = outcome.retryAfter.map { "; can succeed in \(LimitText.span($0))" } ?? ""
      return "denied by \(limit.id)" + wait
    }
  }

  private func notes(
    _ global: GlobalConfig, _ account: AccountConfig, _ snapshot: CountersSnapshot,
    _ judged: LimitJudge
  ) -> [String] {
    var notes: [String] = []
    switch snapshot.bucketState {
    case .ready: break
    case .fenced:
      notes.append(
        "bucket \(snapshot.bucket) is fenced: until it has a new epoch, failure policies answer")
    case .recovering:
      notes.append(
        "bucket \(snapshot.bucket) is recovering through the ledger: failure policies answer")
    }
    if !snapshot.isLoaded {
      notes.append(
        "the account's counters are not loaded under epoch \(snapshot.epoch); its next request "
          + "rebuilds them from the ledger, so what is shown here as 0 may be more")
    }
    if snapshot.globalVersion > global.version {
      notes.append("a newer global version \(snapshot.globalVersion) is being announced")
    }
    if snapshot.isLoaded && snapshot.accountVersion != account.version {
      notes.append("the account just changed (version \(snapshot.accountVersion))")
    }
    if let index = judged.outcome.binding, !judged.outcome.reason.isAllowed {
      let others = judged.resolution.limits.indices.filter {
        $0 != index && judged.states[$0].denial != nil
          && judged.resolution.limits[$0].enforcement == .hard
      }
      if !others.isEmpty {
        let names = others.map { judged.resolution.limits[$0].id.text }.joined(separator: ", ")
        notes.append("these would deny too: \(names)")
      }
    }
    return notes
  }
}
