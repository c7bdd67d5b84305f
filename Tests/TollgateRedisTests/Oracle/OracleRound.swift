// One round of the oracle test: a catalog, two accounts, a clock, and a batch of operations put to
// the scripts and to the evaluator.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

struct OracleRound {
  static let outcomes = [
    "replayed", "mismatch", "idTooOld", "idFromFuture", "expired", "stale", "period", "overflow",
    "cancel", "reverse", "reset", "config", "calendar", "batch", "prefix", "ALLOWED",
    "ALLOWED_SHADOW", "ALLOWED_SOFT", "ALLOWED_POSTED", "GATE_CLOSED", "COST_ABOVE_BURST",
    "QUOTA_EXCEEDED", "RATE_LIMITED", "CANCELLED", "UNKNOWN_FEATURE", "FEATURE_NOT_IN_PLAN",
    "ACCOUNT_FROZEN",
  ]

  let rig: StoreRig
  var random: SeededRandom
  var tally: [String: Int]
  var evaluator: Evaluator
  var accounts: [Subject: AccountConfig] = [:]
  var subjects: [Subject] = []
  var microseconds: Int64
  /// The instant resolutions are made for; sometimes left behind.
  var resolvedAt: WallTime
  var calls: [DecideCall] = []
  /// Operations that were put to both.
  var operations = 0
  /// Those of them that were decided.
  var history: [DecideCall] = []
  var sequence: Int64 = 0
  var failed = false
  var births: [(birth: Evaluator.Birth, call: DecideCall, sequence: Int64)] = []
  private var batch: [[[UInt8]]] = []
  private var checks: [(MiniReply) -> String?] = []

  init(rig: StoreRig, random: SeededRandom, tally: [String: Int]) throws {
    self.rig = rig
    self.random = random
    self.tally = tally
    evaluator = Evaluator(
      settings: .init(windowMilliseconds: rig.limits.dedupeWindowMilliseconds))
    microseconds = StoreRig.start.milliseconds * 1000
    resolvedAt = StoreRig.start
    try rig.redis.command("FLUSHALL")
    rig.global.catalog = RandomCatalog.make(&self.random)
    rig.global.version = 1
    rig.global.bypasses = []
    if self.random.chance(0.3) {
      rig.global.bypasses = [
        Bypass(
          feature: self.random.chance(0.5) ? nil : RandomCatalog.features[0],
          until: StoreRig.start + 3_600_000, reason: "", actor: "")
      ]
    }
    try rig.setNow(StoreRig.start)
    try rig.open()
    rig.account = AccountConfig(version: 1, plan: Catalog.name("pro"))
    evaluator.state.globalVersion = 1
    evaluator.state.latest = microseconds
    for name in ["a", "b"] {
      let account = try Subject(name)
      try rig.seed(name)
      accounts[account] = rig.account
      if self.random.chance(0.5) {
        accounts[account]?.calendar = [RandomCatalog.calendar(nil, &self.random)]
      }
      evaluator.state.accountVersions[account] = 1
      subjects.append(account)
      for member in ["x", "y"] {
        subjects.append(try Subject("\(name)/\(member)"))
        subjects.append(try Subject("\(name)/\(member)/run"))
      }
    }
  }

  /// False: the two disagreed, which is recorded.
  mutating func run(_ wanted: Int) throws -> Bool {
    while operations < wanted {
      try step()
      if batch.count >= 100 { try flush() }
    }
    try flush()
    if !failed { try compareState() }
    if !failed, random.chance(0.1) { try repeatPrefix() }
    return !failed
  }

  /// Whatever prefix of what was decided it is, it gets the same answers again, and again, and not
  /// one byte in Redis moves.
  private mutating func repeatPrefix() throws {
    count("prefix")
    let state = evaluator.state
    let before = try rig.dump()
    let prefix = history.prefix(Int.random(in: 0...history.count, using: &random))
    for _ in 0..<2 {
      var rest = prefix[...]
      while !rest.isEmpty {
        issue(Array(rest.prefix(8)))
        rest = rest.dropFirst(8)
      }
      try flush()
    }
    let after = try rig.dump()
    if !failed, evaluator.state != state || after != before {
      failed = true
      Issue.record("a prefix of \(prefix.count) again changed something")
    }
  }

  private mutating func flush() throws {
    let replies = try rig.redis.pipeline(batch)
    for (reply, check) in zip(replies, checks) where !failed {
      if let problem = check(reply) {
        failed = true
        Issue.record("\(problem)")
      }
    }
    batch = []
    checks = []
  }

  private mutating func put(_ words: [[UInt8]], _ check: @escaping (MiniReply) -> String?) {
    batch.append(words)
    checks.append(check)
  }

  private mutating func count(_ what: String) { tally[what, default: 0] += 1 }

  private mutating func moveClock() {
    let dice = random.unit()
    if dice < 0.55 {
      microseconds += Int64.random(in: 0...20_000, using: &random)
    } else if dice < 0.68 {
      microseconds += Int64.random(in: 0...2_000_000, using: &random)
    } else if dice < 0.75 {
      microseconds += Int64.random(in: 0...90_000_000, using: &random)
    } else if dice < 0.78 {
      microseconds += Int64.random(in: 0...90_000_000_000, using: &random)
    } else if dice < 0.82 {
      microseconds -= Int64.random(in: 0...5_000_000, using: &random)
    }
    put([Array("SET".utf8), Array("test:now".utf8), Array("\(microseconds)".utf8)]) { _ in nil }
    // Now and then the resolution is left at an older instant, so that its periods may have passed.
    if random.chance(0.95) {
      resolvedAt = WallTime(milliseconds: max(microseconds, evaluator.state.latest) / 1000)
    }
  }

  private mutating func step() throws {
    moveClock()
    let dice = random.unit()
    if dice < 0.03 { return try changeAccount() }
    if dice < 0.05 { return try reset() }
    if dice < 0.10, let call = calls.randomElement(using: &random) { return try cancel(call) }
    if dice < 0.12, !births.isEmpty { return try reverse() }
    var batch = [try decision()]
    // Some travel together; ids come twice in a batch too.
    if batch[0].asked.mode != .check, random.chance(0.4) {
      for _ in 0..<Int.random(in: 1...7, using: &random) {
        let call = try decision()
        if call.asked.mode != .check { batch.append(call) }
      }
    }
    issue(batch)
  }

  private mutating func decision() throws -> DecideCall {
    if random.chance(0.13), let call = calls.randomElement(using: &random) { return again(call) }
    return try decide()
  }

  private func resolve(_ subject: Subject, _ items: [Item]) -> Resolution {
    Resolution.resolve(
      subject: subject, items: items, global: rig.global,
      account: accounts[subject.account] ?? AccountConfig(), now: resolvedAt,
      zones: RandomCatalog.zones)
  }

  private mutating func amount() -> Int64 {
    switch random.unit() {
    case ..<0.06: 0
    case ..<0.85: Int64.random(in: 1...6, using: &random)
    case ..<0.985: Int64.random(in: 7...60, using: &random)
    default: Quantity.maximum - Int64.random(in: 0...1, using: &random)
    }
  }

  /// Changes are remembered by count, not by age: these come in the order of their ids.
  private func newChange() -> ChangeKey {
    let time = UInt64(max(microseconds, evaluator.state.latest) / 1000)
    return ChangeKey(
      operation: OperationID(high: time << 16, low: UInt64(sequence)), fingerprint: 7)
  }

  private mutating func newID() -> OperationID {
    var time = max(microseconds, evaluator.state.latest) / 1000
    switch random.unit() {
    case ..<0.01: time -= Int64.random(in: 3_500_000...3_700_000, using: &random)
    case ..<0.02: time += Int64.random(in: 50_000...70_000, using: &random)
    case ..<0.2: time -= Int64.random(in: 0...600_000, using: &random)
    default: break
    }
    return OperationID(time: WallTime(milliseconds: time), using: &random)
  }

  private mutating func makeCall(
    _ subject: Subject, _ items: [Item], id: OperationID, mode: DecideCall.Mode
  ) -> DecideCall {
    let plan = DecidePlan(items: items, resolution: resolve(subject, items))
    let now = max(microseconds, evaluator.state.latest) / 1000
    return DecideCall(
      keySpace: rig.keySpace, fence: rig.fence, operation: id,
      fingerprint: OperationFingerprint(subject: subject, items: items), mode: mode,
      subject: subject, plan: plan,
      bodies: mode == .check ? [] : plan.meteredItems.map { [UInt8($0)] },
      globalVersion: random.chance(0.01) ? 9 : 1,
      accountVersion: random.chance(0.01) ? 0 : accounts[subject.account]?.version ?? 0,
      limits: rig.limits,
      notAfter: random.chance(0.1)
        ? WallTime(milliseconds: now + Int64.random(in: -2...5, using: &random)) : nil)
  }

  private mutating func decide() throws -> DecideCall {
    let subject = try #require(subjects.randomElement(using: &random))
    let known = random.chance(0.9) ? 5 : 7
    let features = RandomCatalog.features.prefix(known).shuffled(using: &random)
      .prefix(random.chance(0.7) ? 1 : Int.random(in: 2...4, using: &random))
    let items = features.map { Item(feature: $0, amount: amount()) }
    let dice = random.unit()
    let mode: DecideCall.Mode = dice < 0.12 ? .check : dice < 0.2 ? .post : .consume
    let call = makeCall(subject, items, id: newID(), mode: mode)
    if mode != .check { calls.append(call) }
    if calls.count > 60 { calls.removeFirst() }
    return call
  }

  /// An id once more: the same body, or another one.
  private mutating func again(_ call: DecideCall) -> DecideCall {
    var subject = call.subject
    var items = call.plan.items
    if random.chance(0.25), evaluator.state.records[call.operation]?.subject != nil {
      switch Int.random(in: 0..<3, using: &random) {
      case 0: subject = subjects.randomElement(using: &random) ?? subject
      case 1: items[0].feature = RandomCatalog.features[5]
      default: items[0].amount = items[0].amount / 2 + 1
      }
    }
    let mode: DecideCall.Mode = random.chance(0.2) ? .post : .consume
    return makeCall(subject, items, id: call.operation, mode: mode)
  }

  private mutating func issue(_ calls: [DecideCall]) {
    if calls.count > 1 { count("batch") }
    let expected = calls.map { judge($0) }
    let batch = DecideBatch(
      keySpace: rig.keySpace, bucket: 0, fence: rig.fence, limits: rig.limits,
      script: calls[0].script, operations: calls.map(\.asked))
    put(StoreRig.command(batch, rig.library)) { reply in
      for (at, reply) in batch.decode(RESPReply(reply)).enumerated() {
        let got = Self.comparable(reply)
        if got != expected[at] {
          return "\(at + 1) of \(calls.count), \(calls[at].asked.mode) \(calls[at].plan.items)\n"
            + "expected \(expected[at])\n     got \(got)"
        }
      }
      return nil
    }
  }

  /// What the evaluator says of an operation, as a reply.
  private mutating func judge(_ call: DecideCall) -> Answer {
    operations += 1
    let outcome = evaluator.decide(
      Evaluator.Request(
        id: call.operation, subject: call.subject, items: call.plan.items,
        notAfter: call.asked.notAfter),
      resolution: call.plan.resolution,
      versions: .init(global: call.asked.globalVersion, account: call.asked.accountVersion),
      nowMicroseconds: microseconds,
      mode: call.asked.mode == .check ? .check : call.asked.mode == .post ? .post : .consume)
    let first = sequence
    if case .decided(let decision, let born) = outcome {
      if !decision.replayed, evaluator.state.records[call.operation] != nil {
        history.append(call)
      }
      for birth in born {
        sequence += 1
        births.append((birth, call, sequence))
      }
    }
    count(Self.name(outcome))
    return Self.expected(outcome, after: first)
  }

  private mutating func cancel(_ call: DecideCall) throws {
    // A cancel of another body is not the evaluator's business.
    let record = evaluator.state.records[call.operation]
    if let subject = record?.subject, subject != call.subject || record?.items != call.plan.items {
      return
    }
    count("cancel")
    operations += 1
    let latest = evaluator.state.latest
    let outcome = evaluator.cancel(call.operation, nowMicroseconds: microseconds)
    // A cancel that finds nothing to take back writes nothing, the time included.
    if let record, record.effect != .applied { evaluator.state.latest = latest }
    let first = sequence
    // Asked with today's plan, or none: what is taken back stands in the record.
    var cancel = CancelCall(
      keySpace: rig.keySpace, fence: rig.fence, operation: call.operation,
      fingerprint: call.asked.fingerprint, subject: call.subject, items: call.plan.items,
      recordClass: call.plan.recordClass, limits: rig.limits)
    if case .cancelled(let born) = outcome, let record, !born.isEmpty {
      sequence += Int64(born.count)
      let wanted = born.map { birth in
        CountedItem(
          item: birth.item,
          cells: record.counted.map(\.cell).filter { $0.item == birth.item }
            .map { CellReference(level: $0.level, window: $0.window, period: $0.period) })
      }
      let ask = cancel
      put(StoreRig.command(ask, rig.library)) { reply in
        let got = ask.decode(RESPReply(reply))
        return got == .bodiesWanted(wanted) ? nil : "cancel: wanted \(wanted), got \(got)"
      }
      cancel.bodies = born.map { ($0.item, [UInt8($0.item)]) }
    }
    let call = cancel
    put(StoreRig.command(call, rig.library)) { reply in
      guard case .answered(let got) = call.decode(RESPReply(reply)) else {
        return "cancel: bodies wanted"
      }
      switch (outcome, got) {
      case (.idTooOld, .idTooOld), (.idFromFuture, .idFromFuture): return nil
      case (.cancelled(let born), .decided(let decided)):
        let same =
          decided.entries.map(\.index) == born.map(\.id.index)
          && decided.entries.map(\.sequence) == born.indices.map { first + 1 + Int64($0) }
          && decided.bornAt == born.first?.time ?? decided.bornAt
        return same ? nil : "cancel: \(born) against \(decided)"
      case (.cancelled(let born), .replayed): return born.isEmpty ? nil : "cancel: \(got)"
      default: return "cancel: \(outcome) against \(got)"
      }
    }
  }

  private mutating func reverse() throws {
    let at = Int.random(in: 0..<births.count, using: &random)
    let (birth, call, sequence) = births.remove(at: at)
    let cells = call.plan.resolution.cells.filter { $0.item == birth.item }.map {
      CellReference(level: $0.level, window: $0.window, period: $0.period)
    }
    let feature = call.plan.items[birth.item].feature
    // Neither side judges the range here the same way; keep the sums inside it.
    guard birth.actual < 1000 else { return }
    count("reverse")
    operations += 1
    let reversed = evaluator.reverse(
      birth.id, actual: birth.actual, subject: call.subject, feature: feature, cells: cells)
    let reverse = ReverseCall(
      keySpace: rig.keySpace, fence: rig.fence,
      position: StreamPosition(epoch: 1, sequence: sequence),
      subject: call.subject, feature: feature, cells: cells, amount: birth.actual)
    put(StoreRig.command(reverse, rig.library)) { reply in
      let got = reverse.decode(RESPReply(reply))
      return got == .done(reversed ? .reversed : .nothing) ? nil : "reverse: \(got)"
    }
  }

  private mutating func reset() throws {
    guard let subject = subjects.randomElement(using: &random),
      let feature = RandomCatalog.features.randomElement(using: &random),
      let window = RandomCatalog.windows.randomElement(using: &random)
    else { return }
    let now = WallTime(milliseconds: max(microseconds, evaluator.state.latest) / 1000)
    let key = CounterKey(subject: subject, feature: feature, window: window)
    count("reset")
    operations += 1
    let value = random.chance(0.7) ? 0 : Int64.random(in: 0...5, using: &random)
    let calendar = try AccountCalendar(
      accounts[subject.account]?.calendar ?? [], RandomCatalog.zones)
    evaluator.setCounter(key, to: value, calendar: calendar, nowMicroseconds: microseconds)
    sequence += 1
    let expected = sequence
    let call = ResetCall(
      keySpace: rig.keySpace, fence: rig.fence,
      change: newChange(), subject: subject, feature: feature,
      target: .cell(window, calendar.period(of: window, containing: now), value: value), body: [7],
      outboxEntriesMax: 1_000_000_000)
    put(StoreRig.command(call, rig.library)) { reply in
      let got = call.decode(RESPReply(reply))
      guard case .done(let outcome) = got, outcome.position.sequence == expected,
        outcome.after == value
      else { return "reset: \(got)" }
      return nil
    }
  }

  private mutating func changeAccount() throws {
    guard let account = accounts.keys.sorted().randomElement(using: &random),
      var config = accounts[account]
    else { return }
    count("config")
    operations += 1
    config.version += 1
    config.frozen = random.chance(0.04)
    config.overrides = RandomCatalog.overrides(rig.global.catalog, account, resolvedAt, &random)
    let now = WallTime(milliseconds: max(microseconds, evaluator.state.latest) / 1000)
    if random.chance(0.3), config.calendar.count < AccountConfig.calendarSettingsMax {
      // Not in the past: what was counted stays where it was counted.
      let since = now + Int64.random(in: 1...5000, using: &random)
      if config.calendar.last?.since ?? now < since {
        config.calendar.append(RandomCatalog.calendar(since, &random))
        count("calendar")
      }
    }
    accounts[account] = config
    evaluator.state.accountVersions[account] = config.version
    evaluator.state.latest = max(evaluator.state.latest, microseconds)
    sequence += 1
    let call = ConfigAccountCall(
      keySpace: rig.keySpace, fence: rig.fence, change: newChange(), account: account,
      expectedVersion: config.version - 1, newVersion: config.version, config: "{}", body: [3],
      outboxEntriesMax: 1_000_000_000)
    put(StoreRig.command(call, rig.library)) { reply in
      let got = call.decode(RESPReply(reply))
      if case .done = got { return nil }
      return "config: \(got)"
    }
  }

  // MARK: - Comparing

  /// Both sides' answers in one form.
  enum Answer: Equatable {
    case decided(Decision, [DecidedOperation.Entry])
    case replayed(Decision)
    case other(String)
  }

  static func expected(_ outcome: Evaluator.Outcome, after sequence: Int64) -> Answer {
    switch outcome {
    case .decided(let decision, let born):
      if decision.replayed { return .replayed(decision) }
      return .decided(
        decision,
        born.enumerated().map {
          .init(index: $0.element.id.index, sequence: sequence + 1 + Int64($0.offset))
        })
    case .mismatch(let field): return .other("mismatch \(field)")
    case .idTooOld: return .other("too old")
    case .idFromFuture: return .other("future")
    case .expired(let now): return .other("expired \(now.milliseconds)")
    case .stale(let versions): return .other("stale \(versions.global) \(versions.account)")
    case .periodPassed(let now): return .other("period \(now.milliseconds)")
    case .amountOutOfRange: return .other("QUANTITY_OVERFLOW")
    case .holdsDue: return .other("holds due")
    case .planWanted(let created, let features): return .other("plan \(created) \(features)")
    case .notHeld(let refusal): return .other("not held \(refusal.rawValue)")
    }
  }

  static func comparable(_ reply: DecideReply) -> Answer {
    switch reply {
    case .decided(let decided): .decided(decided.decision, decided.entries)
    case .replayed(let decided): .replayed(decided.decision)
    case .mismatch(let field):
      .other("mismatch \(field == .features ? "items" : "\(field)")")
    case .idTooOld: .other("too old")
    case .idFromFuture: .other("future")
    case .expired(let now): .other("expired \(now.milliseconds)")
    case .stale(let global, let account, _): .other("stale \(global) \(account ?? -1)")
    case .period(let now): .other("period \(now.milliseconds)")
    case .error(let text): .other(text)
    case .rebuild, .fenced, .young, .holdsElsewhere: .other("\(reply)")
    case .holdsDue: .other("holds due")
    case .planWanted(let created, let features): .other("plan \(created) \(features)")
    case .notHeld(let problem): .other("not held \(problem.rawValue)")
    }
  }

  static func name(_ outcome: Evaluator.Outcome) -> String {
    switch outcome {
    case .decided(let decision, _):
      decision.replayed && decision.reason != .cancelled ? "replayed" : decision.reason.name
    case .mismatch: "mismatch"
    case .idTooOld: "idTooOld"
    case .idFromFuture: "idFromFuture"
    case .expired: "expired"
    case .stale: "stale"
    case .periodPassed: "period"
    case .amountOutOfRange: "overflow"
    case .holdsDue: "holdsDue"
    case .planWanted: "planWanted"
    case .notHeld: "notHeld"
    }
  }

  /// Every counter, offset and arrival time of the evaluator is in Redis, and nothing else is.
  private mutating func compareState() throws {
    for subject in subjects {
      let stored = try rig.counters(subject.path)
      for (field, cell) in stored.cells {
        let parts = field.split(separator: "|")
        let key = CounterKey(
          subject: subject, feature: try Name(String(parts[0])),
          window: try #require(Window(code: parts[1])))
        let counter = evaluator.state.counters[key]
        let offset = evaluator.state.offsets[key]
        let same =
          counter?.start == cell.start && counter?.settled == cell.settled
          && counter?.held == cell.held && counter?.previousStart == cell.previousStart
          && counter?.previousSettled == cell.previousSettled
          && cell.forgiven == (offset?.start == cell.start ? offset?.units ?? 0 : 0)
        if !same {
          failed = true
          Issue.record(
            "\(key): \(cell) against \(String(describing: counter)) \(String(describing: offset))")
        }
      }
      let known = evaluator.state.counters.keys.count { $0.subject == subject }
      if known != stored.cells.count {
        failed = true
        Issue.record("\(subject): \(stored.cells.count) cells in Redis, \(known) expected")
      }
      var rates: [String: Int64] = [:]
      for (key, arrival) in evaluator.state.arrivals where key.subject == subject {
        rates[KeySpace.field(feature: key.feature, rate: key.limit)] = arrival
      }
      if rates != stored.rates {
        failed = true
        Issue.record("\(subject): rates \(stored.rates) against \(rates)")
      }
    }
    let meta = try rig.read(Reads.meta(rig.keySpace, bucket: 0))
    let length = try rig.redis.command("XLEN", rig.keySpace.outbox(0)).integer
    if meta?.fence.sequence != sequence || length != sequence
      || meta?.microseconds != evaluator.state.latest
    {
      failed = true
      Issue.record(
        "meta \(String(describing: meta)), \(length ?? -1) entries, expected \(sequence)")
    }
  }
}
