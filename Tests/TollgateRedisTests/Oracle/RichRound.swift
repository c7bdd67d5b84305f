// One round of the oracle of everything that is more than quotas and rates: a catalog, an account
// with grants, a clock, and operations put to the scripts and to the evaluator, one after another.
// Beside the answers, what each delta says was counted and charged must agree, and after every
// operation the invariants hold that no answer shows.

import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateRedis

struct RichRound {
  /// What a run must have met, or it proves nothing about it.
  static let outcomes = [
    "ALLOWED", "ALLOWED_POSTED", "SETTLED", "SETTLED_CLAMPED", "SETTLED_LATE", "RELEASED",
    "EXTENDED", "CREDIT_EXHAUSTED", "SPEND_CAP_REACHED", "CONCURRENCY_EXCEEDED", "PRICE_UNKNOWN",
    "HOLDS_EXCEEDED", "QUOTA_EXCEEDED", "RATE_LIMITED", "CANCELLED", "replayed", "notHeld",
    "planWanted", "holdsDue", "period", "overflow", "stale", "config", "prefix",
  ]

  struct Made {
    var id: OperationID
    var subject: Subject
    var items: [Item]
    var attributes: [String: String]
    var isHold: Bool
    var asked: Int
  }

  let rig: StoreRig
  var random: SeededRandom
  var tally: [String: Int]
  var evaluator: Evaluator
  var account = AccountConfig(version: 1)
  let subjects: [Subject]
  var microseconds: Int64
  var sequence: Int64 = 0
  var made: [Made] = []
  /// Holds that were ever made, ended ones too.
  var reservations: [Made] = []
  var grantCount = 0
  /// Operations that were put to both.
  var operations = 0
  var history: [Again] = []

  init(rig: StoreRig, random: SeededRandom, tally: [String: Int]) throws {
    self.rig = rig
    self.random = random
    self.tally = tally
    evaluator = Evaluator(
      settings: .init(windowMilliseconds: rig.limits.dedupeWindowMilliseconds))
    microseconds = StoreRig.start.milliseconds * 1000
    subjects = try ["a", "a/x", "a/x/1", "a/y/2"].map { try Subject($0) }
    try rig.redis.command("FLUSHALL")
    rig.global.catalog = RichCatalog.make(&self.random)
    rig.global.version = 1
    rig.global.bypasses = []
    try rig.setNow(StoreRig.start)
    try rig.open()
    rig.account = AccountConfig(version: 1, plan: Catalog.name("pro"))
    if self.random.chance(0.7) {
      rig.account.planSince = StoreRig.start + Int64.random(in: -400_000...0, using: &self.random)
    }
    account = rig.account
    try rig.seed("a")
    evaluator.state.globalVersion = 1
    evaluator.state.latest = microseconds
    evaluator.state.accountVersions[try Subject("a")] = 1
    if self.random.chance(0.5) {
      account.calendar = [RandomCatalog.calendar(nil, &self.random)]
    }
  }

  var now: WallTime {
    WallTime(milliseconds: max(microseconds, evaluator.state.latest) / 1000)
  }

  mutating func count(_ what: String) { tally[what, default: 0] += 1 }

  /// nil: they agreed throughout; else what they disagreed on.
  mutating func run(_ wanted: Int) throws -> String? {
    while operations < wanted {
      let index = operations
      if let problem = try step() { return "operation \(index): \(problem)" }
      if let problem = invariants() { return "after operation \(index): \(problem)" }
    }
    if let problem = try compareState() { return problem }
    return random.chance(0.1) ? try repeatPrefix() : nil
  }

  /// A call, at the instant that it is now.
  func ask<Call: ScriptCall>(_ call: Call) throws -> Call.Reply {
    let words = [
      ["SET", "test:now", "\(microseconds)"].map { Array($0.utf8) },
      StoreRig.command(call, rig.library),
    ]
    return call.decode(RESPReply(try rig.redis.pipeline(words)[1]))
  }

  private mutating func step() throws -> String? {
    moveClock()
    switch random.unit() {
    case ..<0.04: return try changeAccount()
    case ..<0.08: return try cancel()
    case ..<0.42: return try stepOfHold()
    case ..<0.50: return try again()
    default: return try decide(new())
    }
  }

  private mutating func moveClock() {
    switch random.unit() {
    case ..<0.7: microseconds += Int64.random(in: 0...50_000, using: &random)
    case ..<0.9: microseconds += Int64.random(in: 0...2_000_000, using: &random)
    case ..<0.93: microseconds += Int64.random(in: 0...30_000_000, using: &random)
    case ..<0.94: microseconds += Int64.random(in: 0...200_000_000, using: &random)
    case ..<0.943: microseconds += Int64.random(in: 0...3_000_000_000_000, using: &random)
    case ..<0.96: microseconds -= Int64.random(in: 0...2_000_000, using: &random)
    default: break
    }
  }

  // MARK: - Deciding

  private mutating func newID() -> OperationID { OperationID(time: now, using: &random) }

  private mutating func amount() -> Int64 {
    switch random.unit() {
    case ..<0.08: 0
    case ..<0.8: Int64.random(in: 1...8, using: &random)
    case ..<0.98: Int64.random(in: 9...60, using: &random)
    default: Quantity.maximum - Int64.random(in: 0...3, using: &random)
    }
  }

  private mutating func new() -> (Made, TransactCall.Mode) {
    let features = RichCatalog.names.shuffled(using: &random)
      .prefix(random.chance(0.7) ? 1 : Int.random(in: 2...3, using: &random))
    let items = features.map { Item(feature: $0, amount: amount()) }
    let mode: TransactCall.Mode
    switch random.unit() {
    case ..<0.1: mode = .check
    case ..<0.16: mode = .post
    case ..<0.55:
      let policies: [OverrunPolicy] = [.reject, .clamp, .clamp, .overdraft(bound: 10)]
      mode = .reserve(
        ReserveTerms(
          ttlMilliseconds: Int64.random(in: 1...60_000, using: &random),
          overrun: policies.randomElement(using: &random) ?? .clamp, holdsMax: 6))
    default: mode = .consume
    }
    var attributes: [String: String] = [:]
    if random.chance(0.9) { attributes["model"] = RichCatalog.models.randomElement(using: &random) }
    let made = Made(
      id: newID(), subject: subjects.randomElement(using: &random) ?? subjects[0], items: items,
      attributes: attributes, isHold: mode != .consume && mode != .post && mode != .check,
      asked: items.count)
    return (made, mode)
  }

  private func resolve(
    _ made: Made, at time: WallTime, priced: Bool = true, items: [Item]? = nil
  ) -> Resolution {
    var resolution = Resolution.resolve(
      subject: made.subject, items: items ?? made.items, attributes: made.attributes,
      priced: priced, global: rig.global, account: account, now: time, zones: RandomCatalog.zones)
    // All of it goes through these scripts here, rich or not.
    resolution.isReservable = true
    return resolution
  }

  private mutating func again() throws -> String? {
    guard let old = made.randomElement(using: &random) else { return nil }
    return try decide(
      (old, old.isHold ? .reserve(ReserveTerms(holdsMax: 6)) : .consume))
  }

  private mutating func decide(_ asked: (Made, TransactCall.Mode)) throws -> String? {
    let (made, mode) = asked
    let resolvedAt = random.chance(0.97) ? now : now + -30_000
    let resolution = resolve(made, at: resolvedAt)
    guard resolution.refusal == nil else { return nil }
    let versions = Evaluator.Versions(
      global: random.chance(0.01) ? 7 : 1, account: random.chance(0.01) ? 0 : account.version)
    let call = TransactCall(
      keySpace: rig.keySpace, fence: rig.fence, operation: made.id,
      fingerprint: OperationFingerprint(
        subject: made.subject, items: made.items, attributes: made.attributes),
      mode: mode, subject: made.subject,
      plan: RichPlan(resolution: resolution, depth: made.subject.depth), asked: made.items.count,
      common: [], globalVersion: versions.global, accountVersion: versions.account,
      limits: rig.limits)
    var terms: Evaluator.Terms?
    if case .reserve(let asked) = mode {
      terms = .init(
        ttlMilliseconds: asked.ttlMilliseconds, overrun: asked.overrun, holdsMax: asked.holdsMax)
    }
    let request = Evaluator.Request(id: made.id, subject: made.subject, items: made.items)
    let before = usage(resolution, made.subject)
    let judge = { (evaluator: inout Evaluator, now: Int64) in
      evaluator.decide(
        request, resolution: resolution, versions: versions, nowMicroseconds: now,
        mode: mode == .check ? .check : mode == .post ? .post : .consume, terms: terms)
    }
    let outcome = judge(&evaluator, microseconds)
    if mode != .check, case .decided(let decision, _) = outcome, !decision.replayed {
      self.made.append(made)
      if self.made.count > 40 { self.made.removeFirst() }
      if terms != nil, decision.isAllowed {
        reservations.append(made)
        if reservations.count > 30 { reservations.removeFirst() }
      }
    }
    if let problem = try compare(outcome, call, "\(mode) \(made)") { return problem }
    remember(made.id, outcome, judge, call, "\(mode) \(made)")
    if case .decided(let decision, _) = outcome, decision.isAllowed, !decision.replayed,
      mode != .post, mode != .check, let limit = exceeded(resolution, made.subject, since: before)
    {
      return "\(mode) \(made) was let in beyond \(limit)"
    }
    if case .holdsDue = outcome { return try expire() }
    return nil
  }

  private mutating func compare<Call: ScriptCall>(
    _ outcome: Evaluator.Outcome, _ call: Call, _ what: String
  ) throws -> String? where Call.Reply == RichReply {
    let first = sequence
    var births: [Evaluator.Birth] = []
    if case .decided(_, let born) = outcome {
      births = born
      sequence += Int64(born.count)
    }
    count(OracleRound.name(outcome))
    operations += 1
    let expected = OracleRound.expected(outcome, after: first)
    let reply = try ask(call)
    let got = OracleRound.comparable(reply.answer)
    guard got == expected else {
      return "\(what)\nexpected \(expected)\n     got \(got)"
    }
    guard reply.bodies.count == births.count else {
      return "\(what): \(reply.bodies.count) bodies for \(births.count) births"
    }
    for (birth, bytes) in zip(births, reply.bodies) {
      if let problem = Self.compare(birth, bytes) { return "\(what)\n\(problem)" }
    }
    if let decided = reply.answer.decided, !births.isEmpty {
      for (birth, billed) in zip(births, births.map { decided.billed[$0.item] })
      where birth.actual != billed.actual || birth.charged != billed.charged {
        return "\(what): billed \(billed), expected \(birth)"
      }
    }
    return nil
  }

  /// Two counts of one counter are one; a part of nothing is none.
  private static func compare(_ birth: Evaluator.Birth, _ bytes: [UInt8]) -> String? {
    let body: UsageBody
    do { body = try UsageBody.decode(bytes) } catch { return "unreadable body: \(error)" }
    var cells: Set<CellReference> = []
    var parts: [CellReference: Int64] = [:]
    for counted in birth.counted {
      let cell = CellReference(
        level: counted.cell.level, window: counted.cell.window, period: counted.cell.period)
      if counted.cell.window.tally == .units {
        guard counted.amount == birth.charged else { return "units that are not all: \(counted)" }
        cells.insert(cell)
      } else {
        parts[cell, default: 0] += counted.amount
      }
    }
    parts = parts.filter { $0.value != 0 }
    var told: [CellReference: Int64] = [:]
    for part in body.parts {
      told[.init(level: part.level, window: part.window, period: part.period), default: 0] +=
        part.amount
    }
    guard Set(body.cells) == cells, body.cells.count == cells.count else {
      return "cells \(body.cells), expected \(cells)"
    }
    guard told == parts, body.parts.count == parts.count else {
      return "parts \(told), expected \(parts)"
    }
    guard body.charges == birth.charges else {
      return "charges \(body.charges), expected \(birth.charges)"
    }
    return nil
  }

  // MARK: - Holds

  private mutating func stepOfHold() throws -> String? {
    // Mostly of one that still lives, or lived until it expired.
    let open = reservations.filter {
      switch evaluator.state.holds[$0.id]?.state {
      case .held?, .expired?: true
      case .committed?, .released?, nil: false
      }
    }
    let some = open.isEmpty || random.chance(0.15) ? reservations : open
    guard let hold = some.randomElement(using: &random) else { return nil }
    var step = Evaluator.Step.settle(isFinal: random.chance(0.6))
    var items: [Item] = []
    switch random.unit() {
    case ..<0.12: step = .release
    case ..<0.24: step = .extend(ttlMilliseconds: Int64.random(in: 1...240_000, using: &random))
    default:
      for item in hold.items where random.chance(0.8) {
        let most = min(item.amount, 1000) + (random.chance(0.3) ? 40 : 0)
        items.append(
          Item(feature: item.feature, amount: Int64.random(in: 0...most, using: &random)))
      }
      if random.chance(0.02) { items.append(Item(feature: Catalog.name("else"), amount: 1)) }
    }
    let subject = random.chance(0.98) ? hold.subject : subjects[0]
    let request = Evaluator.Request(id: newID(), subject: subject, items: items)
    return try run(step, hold, request, resolution: nil)
  }

  private mutating func run(
    _ step: Evaluator.Step, _ hold: Made, _ request: Evaluator.Request, resolution: Resolution?
  ) throws -> String? {
    let versions = Evaluator.Versions(global: 1, account: account.version)
    let asked: SettleCall.Step =
      switch step {
      case .settle(let isFinal): .settle(request.items, isFinal: isFinal)
      case .release: .release
      case .extend(let ttl): .extend(ttlMilliseconds: ttl)
      }
    var call = SettleCall(
      keySpace: rig.keySpace, fence: rig.fence, operation: request.id,
      fingerprint: OperationFingerprint(subject: request.subject, items: request.items),
      reservation: hold.id, subject: request.subject, step: asked, recordClass: .volume,
      common: [], globalVersion: versions.global, accountVersion: versions.account,
      limits: rig.limits)
    call.plan = resolution.map { RichPlan(resolution: $0, depth: hold.subject.depth) }
    let before = resolution.map { usage($0, hold.subject) } ?? []
    let judge = { (evaluator: inout Evaluator, now: Int64) in
      evaluator.step(
        step, of: hold.id, request, resolution: resolution, versions: versions,
        nowMicroseconds: now)
    }
    let outcome = judge(&evaluator, microseconds)
    if let problem = try compare(outcome, call, "\(step) \(request) of \(hold)") { return problem }
    remember(request.id, outcome, judge, call, "\(step) \(request) of \(hold)")
    if case .decided(let decision, _) = outcome, !decision.replayed,
      decision.reason != .settledLate, evaluator.state.holds[hold.id]?.overrun == .clamp,
      let resolution, let limit = exceeded(resolution, hold.subject, since: before)
    {
      return "\(step) \(request) of \(hold) was charged beyond \(limit)"
    }
    switch outcome {
    case .holdsDue: return try expire()
    case .planWanted(let created, let features):
      let resolution = resolve(
        hold, at: created, priced: false, items: features.map { Item(feature: $0, amount: 0) })
      return try run(step, hold, request, resolution: resolution)
    default: return nil
    }
  }

  /// Everything that is due, in calls by subject.
  private mutating func expire() throws -> String? {
    let account = subjects[0].account
    let due = evaluator.due(account, at: now)
    let bySubject = Dictionary(grouping: due) { evaluator.state.holds[$0]?.subject ?? account }
    evaluator.expire(account, nowMicroseconds: microseconds)
    let accounts = try rig.read(
      Reads.accountsDue(rig.keySpace, bucket: 0, now: now, count: 10))
    guard accounts == [account] else { return "due: \(accounts)" }
    for (subject, ids) in bySubject {
      let call = ExpireCall(
        keySpace: rig.keySpace, fence: rig.fence, subject: subject, reservations: ids)
      let reply = try ask(call)
      guard reply == .done(Int64(ids.count)) else { return "expire \(ids): \(reply)" }
      history.append { round in
        let reply = try round.ask(call)
        return reply == .done(0) ? nil : "expire \(ids) again: \(reply)"
      }
    }
    return nil
  }

  private mutating func cancel() throws -> String? {
    guard let old = made.filter({ !$0.isHold }).randomElement(using: &random),
      evaluator.state.records[old.id]?.subject == old.subject
    else { return nil }
    let effect = evaluator.state.records[old.id]?.effect
    let latest = evaluator.state.latest
    let outcome = evaluator.cancel(old.id, nowMicroseconds: microseconds)
    if effect != .applied { evaluator.state.latest = latest }
    var call = CancelCall(
      keySpace: rig.keySpace, fence: rig.fence, operation: old.id,
      fingerprint: OperationFingerprint(
        subject: old.subject, items: old.items, attributes: old.attributes),
      subject: old.subject, items: old.items, recordClass: .volume, limits: rig.limits)
    operations += 1
    var reply = try ask(call)
    if case .bodiesWanted(let counted) = reply {
      call.counted = counted
      call.bodies = counted.map { ($0.item, [1]) }
      reply = try ask(call)
    }
    let last = call
    history.append { round in
      switch try round.ask(last) {
      case .answered(.replayed), .answered(.idTooOld): nil
      case let reply: "cancel of \(old) again: \(reply)"
      }
    }
    guard case .answered(let got) = reply else { return "cancel: \(reply)" }
    switch (outcome, got) {
    case (.idTooOld, .idTooOld): return nil
    case (.amountOutOfRange, .error("QUANTITY_OVERFLOW")):
      count("overflow")
      return nil
    case (.cancelled(let born), .decided(let decided)):
      count("CANCELLED")
      sequence += Int64(born.count)
      let entries = call.entries(decided)
      let same =
        entries.map(\.id) == born.map(\.id) && entries.map(\.charged) == born.map(\.charged)
      return same ? nil : "cancel of \(old): \(born) against \(entries)"
    case (.cancelled(let born), .replayed): return born.isEmpty ? nil : "cancel: \(got)"
    default: return "cancel: \(outcome) against \(got)"
    }
  }

  private mutating func changeAccount() throws -> String? {
    account.version += 1
    switch random.unit() {
    case ..<0.6 where account.grants.count < 8:
      grantCount += 1
      account.grants.append(RichCatalog.grant(grantCount, at: now, &random))
    case ..<0.8:
      if let index = account.grants.indices.randomElement(using: &random) {
        account.grants[index].voided = account.grants[index].voided ?? now
      }
    case ..<0.88:
      account.plan = account.plan == RichCatalog.pro ? RichCatalog.bare : RichCatalog.pro
      account.planSince = now
    default:
      account.overrides = RandomCatalog.overrides(rig.global.catalog, subjects[0], now, &random)
    }
    evaluator.state.accountVersions[subjects[0]] = account.version
    evaluator.state.latest = max(evaluator.state.latest, microseconds)
    sequence += 1
    let change = ChangeKey(
      operation: OperationID(high: UInt64(now.milliseconds) << 16, low: UInt64(sequence)),
      fingerprint: 7)
    operations += 1
    count("config")
    let reply = try ask(
      ConfigAccountCall(
        keySpace: rig.keySpace, fence: rig.fence, change: change, account: subjects[0],
        expectedVersion: account.version - 1, newVersion: account.version, config: "{}", body: [3],
        outboxEntriesMax: 1_000_000_000))
    guard case .done = reply else { return "config: \(reply)" }
    return nil
  }
}
