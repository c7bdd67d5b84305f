// One round of the oracle of leases: lessees that exchange, repeat themselves, come late or not at
// all, beside operations that Redis decides, put to the scripts and to the evaluator.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

struct LeaseRound {
  static let outcomes = [
    "exchange", "several accounts", "replay", "repeat with a higher ordinal", "ghost", "too old",
    "from the future", "stale", "granted", "given back", "older period", "refund", "revived",
    "crowded", "ended", "released", "end", "closed", "recall", "recalled", "config", "ALLOWED",
    "QUOTA_EXCEEDED", "RATE_LIMITED", "rate drawn", "sliding", "CREDIT_EXHAUSTED", "grant", "owed",
    "posted",
  ]
  /// `f3` is burnt from grants.
  static let features = ["f0", "f1", "f2", "f3"].map { Catalog.name($0) }

  let rig: StoreRig
  /// Nothing is settled beyond what is leased, and no limit lowered: hard limits hold.
  let isHonest: Bool
  var random: SeededRandom
  var tally: [String: Int]
  var evaluator: Evaluator
  var operations = 0
  var failed = false
  var versions: [Subject: AccountConfig] = [:]
  var subjects: [Subject] = []
  var microseconds = StoreRig.start.milliseconds * 1000
  private var lessees: [TestLessee]
  /// Calls made, to be made again.
  private var calls: [LeaseCall] = []
  /// Portions of periods that may be over.
  private var older: [LeasePortion] = []
  var sequence: Int64 = 0

  init(rig: StoreRig, random: SeededRandom, tally: [String: Int]) throws {
    self.rig = rig
    self.random = random
    self.tally = tally
    isHonest = self.random.chance(0.5)
    evaluator = Evaluator(
      settings: .init(windowMilliseconds: rig.limits.dedupeWindowMilliseconds))
    var made: [TestLessee] = []
    for _ in 0..<4 { made.append(TestLessee(.random(in: 0 ... .max, using: &self.random))) }
    lessees = made
    try rig.redis.command("FLUSHALL")
    rig.global.catalog = Self.catalog(&self.random)
    rig.global.version = 1
    rig.limits.outboxEntriesMax = self.random.chance(0.1) ? 40 : 1 << 30
    try rig.setNow(StoreRig.start)
    try rig.open()
    rig.account = AccountConfig(version: 1, plan: Catalog.name("pro"))
    evaluator.state.globalVersion = 1
    evaluator.state.latest = microseconds
    for name in ["a", "b"] {
      let account = try Subject(name)
      try rig.seed(name)
      var config = rig.account
      for grant in 0..<Int.random(in: 0...2, using: &self.random) {
        config.grants.append(newGrant(grant))
      }
      versions[account] = config
      evaluator.state.accountVersions[account] = 1
      subjects += try [name, name + "/x", name + "/y", name + "/x/run"].map { try Subject($0) }
    }
  }

  var now: WallTime {
    WallTime(milliseconds: max(microseconds, evaluator.state.latest) / 1000)
  }

  mutating func count(_ what: String) { tally[what, default: 0] += 1 }

  mutating func fail(_ text: String) {
    failed = true
    Issue.record("\(text)")
  }

  /// False: the two disagreed, which is recorded.
  mutating func run(_ wanted: Int) throws -> Bool {
    while operations < wanted, !failed {
      operations += 1
      try moveClock()
      switch random.unit() {
      case ..<0.18: try decide()
      case ..<0.72: try exchange()
      case ..<0.82: try again()
      case ..<0.90: try end()
      case ..<0.96: try recall()
      default: try change()
      }
      if !failed { checkInvariants() }
      if !failed, random.chance(0.05) { try compareState() }
    }
    if !failed { try compareState() }
    return !failed
  }

  private mutating func moveClock() throws {
    switch random.unit() {
    case ..<0.6: microseconds += Int64.random(in: 0...20_000, using: &random)
    case ..<0.85: microseconds += Int64.random(in: 0...2_000_000, using: &random)
    case ..<0.95: microseconds += Int64.random(in: 0...30_000_000, using: &random)
    case ..<0.97: microseconds += Int64.random(in: 0...90_000_000_000, using: &random)
    case ..<0.98: microseconds += Int64.random(in: 0...2_000_000_000_000, using: &random)
    default: microseconds -= Int64.random(in: 0...3_000_000, using: &random)
    }
    try rig.redis.command("SET", "test:now", "\(microseconds)")
  }

  func resolve(_ subject: Subject, _ items: [Item]) -> Resolution {
    Resolution.resolve(
      subject: subject, items: items, global: rig.global,
      account: versions[subject.account] ?? AccountConfig(), now: now, zones: .utcOnly)
  }

  // MARK: - Operations

  private mutating func decide() throws {
    let subject = try #require(subjects.randomElement(using: &random))
    let item = Item(
      feature: try #require(Self.features.randomElement(using: &random)),
      amount: Int64.random(in: 0...(random.chance(0.2) ? 300 : 8), using: &random))
    let resolution = resolve(subject, [item])
    if resolution.isRich { return try transact(subject, item, resolution) }
    let plan = DecidePlan(items: [item], resolution: resolution)
    let id = OperationID(time: now, using: &random)
    let call = DecideCall(
      keySpace: rig.keySpace, fence: rig.fence, operation: id,
      fingerprint: OperationFingerprint(subject: subject, items: [item]), mode: .consume,
      subject: subject, plan: plan, bodies: plan.meteredItems.map { [UInt8($0)] },
      globalVersion: 1, accountVersion: versions[subject.account]?.version ?? 0,
      limits: StoreLimits())
    let expected = evaluator.decide(
      .init(id: id, subject: subject, items: [item]), resolution: plan.resolution,
      versions: .init(global: 1, account: call.asked.accountVersion), nowMicroseconds: microseconds,
      mode: .consume)
    let first = sequence
    if case .decided(let decision, let born) = expected {
      sequence += Int64(born.count)
      count(decision.reason.name)
    }
    let got = OracleRound.comparable(try rig.run(call))
    let wanted = OracleRound.expected(expected, after: first)
    if got != wanted { fail("\(item) of \(subject)\nexpected \(wanted)\n     got \(got)") }
  }

  func place(_ portion: LeasePortion) -> EvaluatorLease.Place {
    switch portion.source {
    case .cell(let window, _):
      .counter(CounterKey(subject: portion.subject, feature: portion.feature, window: window))
    case .rate(let limit, _, _):
      .rate(RateKey(subject: portion.subject, feature: portion.feature, limit: limit))
    }
  }

  private mutating func exchange() throws {
    let call = try newCall(Int.random(in: 0..<lessees.count, using: &random))
    count("exchange")
    try put(call)
  }

  private mutating func newCall(_ at: Int) throws -> LeaseCall {
    var lessee = lessees[at]
    var accounts: [LeaseAccount] = []
    for account in random.chance(0.25) ? ["a", "b"] : [random.chance(0.6) ? "a" : "b"] {
      accounts.append(try self.account(try Subject(account), &lessee))
    }
    lessees[at] = lessee
    if accounts.count > 1 { count("several accounts") }
    var time = now
    switch random.unit() {
    case ..<0.01: time = time + -Int64.random(in: 590_000...610_000, using: &random)
    case ..<0.02: time = time + Int64.random(in: 50_000...70_000, using: &random)
    default: break
    }
    let call = LeaseCall(
      keySpace: rig.keySpace, bucket: 0, fence: rig.fence, lessee: lessees[at].id,
      operation: OperationID(time: time, using: &random), timeToLiveMilliseconds: lessees[at].ttl,
      outboxEntriesMax: rig.limits.outboxEntriesMax, accounts: accounts)
    calls.append(call)
    if calls.count > 60 { calls.removeFirst() }
    return call
  }

  private mutating func account(
    _ account: Subject, _ lessee: inout TestLessee
  ) throws -> LeaseAccount {
    var portions: [LeasePortion] = []
    for _ in 0..<Int.random(in: 1...3, using: &random) {
      guard
        let subject = subjects.filter({ $0.account == account }).randomElement(using: &random)
      else { continue }
      let features =
        random.chance(0.3) ? [Self.credit] : Array(Self.features.prefix(random.chance(0.5) ? 1 : 3))
      let items = features.map { Item(feature: $0, amount: 1) }
      for portion in LeasePortion.all(of: resolve(subject, items), subject: subject)
      where !portions.contains(where: { place($0) == place(portion) }) {
        portions.append(portion)
      }
    }
    let current = portions
    for portion in older.shuffled(using: &random).prefix(2)
    where portion.subject.account == account
      && !portions.contains(where: {
        place($0) == place(portion) && start($0) == start(portion)
      })
    {
      portions.append(portion)
    }
    older += current.filter { _ in random.chance(0.1) }
    if older.count > 12 { older.removeFirst(older.count - 12) }
    // Of one counter the older period first.
    portions = portions.enumerated().sorted {
      (start($0.element), $0.offset) < (start($1.element), $1.offset)
    }.map(\.element)
    let owner = LeaseOwner(account: account, lessee: lessee.id)
    let held = evaluator.state.leases[owner]
    for index in portions.indices {
      let left = held?.portions[place(portions[index])]?.left ?? 0
      if random.chance(0.5) {
        // An honest one settles what it holds, of that period.
        let isSame =
          held?.portions[place(portions[index])]?.period.start == start(portions[index])
        let most = isHonest ? (isSame ? left : 0) : left + 5
        portions[index].settle = Int64.random(in: 0...most, using: &random)
      }
      switch random.unit() {
      case ..<0.2: portions[index].target = nil
      case ..<0.35: portions[index].target = 0
      case ..<0.6: portions[index].target = Int64.random(in: 0...40, using: &random)
      default: portions[index].target = Int64.random(in: 0...2000, using: &random)
      }
      if !isHonest, random.chance(0.04) {
        portions[index].settle = -Int64.random(in: 1...5, using: &random)
        count("refund")
      }
      if case .cell(_, let period) = portions[index].source, !period.contains(now) {
        count("older period")
      }
    }
    lessee.ordinal += 1
    let deltas = (0..<Int.random(in: 0...2, using: &random)).map {
      LeaseDelta(amount: Int64.random(in: -2...9, using: &random), body: [UInt8($0)])
    }
    return LeaseAccount(
      account: account, globalVersion: random.chance(0.02) ? 9 : 1,
      accountVersion: random.chance(0.02) ? 0 : versions[account]?.version ?? 0,
      ordinal: lessee.ordinal, isWhole: random.chance(held?.isInDoubt == true ? 0.5 : 0.2),
      portions: portions, deltas: deltas)
  }

  private func start(_ portion: LeasePortion) -> WallTime {
    if case .cell(_, let period) = portion.source { period.start } else { .init(milliseconds: 0) }
  }

  /// A call that was made before: word for word, or as a later word of its lessee.
  private mutating func again() throws {
    guard var call = calls.randomElement(using: &random) else { return }
    if isHonest {
      // One that was never executed would settle what is not leased any more.
      let known = evaluator.state.leaseCalls[call.lessee]
      guard known?.ids.contains(call.operation) == true else { return }
    }
    if random.chance(0.4), let at = lessees.firstIndex(where: { $0.id == call.lessee }) {
      count("repeat with a higher ordinal")
      for index in call.accounts.indices {
        lessees[at].ordinal += 1
        call.accounts[index].ordinal = lessees[at].ordinal
      }
    } else {
      count("ghost")
    }
    try put(call)
  }

  private mutating func put(_ call: LeaseCall) throws {
    let requests = call.accounts.map { account in
      Evaluator.LeaseRequest(
        account: account.account,
        versions: .init(global: account.globalVersion, account: account.accountVersion),
        ordinal: account.ordinal, isWhole: account.isWhole,
        terms: account.portions.map { portion in
          let of: Evaluator.LeaseTerm.Of
          switch (place(portion), portion.source) {
          case (.counter(let key), .cell(_, let period)):
            of = .counter(
              key, period,
              portion.bounds.map { bound($0, of: key) })
          case (.rate(let key), .rate(_, let interval, let tolerance)):
            of = .rate(key, interval: interval, tolerance: tolerance)
          default: preconditionFailure("a portion is of what its source is")
          }
          return .init(of: of, settle: portion.settle, target: portion.target)
        })
    }
    let isCrowded = Double(sequence) > Double(call.outboxEntriesMax) * 0.75
    let before = evaluator.state
    let expected = evaluator.exchange(
      call.lessee, id: call.operation, timeToLive: call.timeToLiveMilliseconds,
      isCrowded: isCrowded, requests, nowMicroseconds: microseconds)
    if case .answered(_, _, false) = expected {
      sequence += Int64(call.accounts.reduce(0) { $0 + $1.deltas.count })
    }
    tell(expected, call, before, isCrowded)
    let outcome = try rig.run(call)
    let got = Self.comparable(outcome)
    if got != expected {
      fail("\(call.accounts)\nof \(call.lessee), expected \(expected)\n     got \(outcome)")
    }
  }

  private mutating func tell(
    _ outcome: Evaluator.Exchange, _ call: LeaseCall, _ before: EvaluatorState, _ isCrowded: Bool
  ) {
    guard case .answered(let states, _, let isReplay) = outcome else {
      let names: [Evaluator.Exchange: String] = [
        .tooOld: "too old", .fromFuture: "from the future",
      ]
      return count(names[outcome] ?? "range")
    }
    if isReplay { count("replay") }
    if isCrowded { count("crowded") }
    for (account, state) in zip(call.accounts, states) {
      let owner = LeaseOwner(account: account.account, lessee: call.lessee)
      let was = before.leases[owner]
      if state.isStale { count("stale") }
      if was?.isInDoubt == true, state.expires != nil { count("revived") }
      if let until = before.recalled[account.account], now < until { count("recalled") }
      for (portion, answer) in zip(account.portions, state.portions) {
        let left = was?.portions[place(portion)]?.left ?? 0
        if answer.left > left - portion.settle, answer.left > 0 {
          count("granted")
          if case .rate = portion.source { count("rate drawn") }
          if portion.bounds.contains(where: { if case .grant = $0 { true } else { false } }) {
            count("grant")
          }
          if portion.bounds.contains(where: { if case .sliding = $0 { true } else { false } }) {
            count("sliding")
          }
        } else if answer.left < left - portion.settle {
          count("given back")
        }
      }
    }
  }

  static func comparable(_ outcome: LeaseOutcome) -> Evaluator.Exchange? {
    switch outcome {
    case .answered(let answers, let now, let isReplay):
      .answered(
        answers.map { answer in
          .init(
            isStale: answer.stale != nil, expires: answer.expires,
            portions: answer.portions.map {
              .init(left: $0.left, settled: $0.settled, held: $0.held)
            })
        }, now: now, isReplay: isReplay)
    case .tooOld: .tooOld
    case .fromFuture: .fromFuture
    case .overflow(let account, let portion): .outOfRange(account: account, portion: portion)
    case .unseeded, .fenced, .error: nil
    }
  }

  private mutating func end() throws {
    count("end")
    let account = try Subject(random.chance(0.5) ? "a" : "b")
    var releases: Set<LesseeID> = []
    if random.chance(0.3), let one = lessees.randomElement(using: &random) { releases = [one.id] }
    if random.chance(0.03) { return try close() }
    let expected = evaluator.endLeases(
      account, releases: releases, nowMicroseconds: microseconds)
    if expected.ended > 0 { count("ended") }
    if expected.released > 0 { count("released") }
    let got = try rig.endLeases(account.path, releases: releases.sorted())
    if (got.ended, got.released, got.units) != expected { fail("end: \(got) against \(expected)") }
  }

  /// A lessee is over; what was sent of it before is heard no more, and another takes its place.
  private mutating func close() throws {
    count("closed")
    let at = Int.random(in: 0..<lessees.count, using: &random)
    let gone = lessees[at].id
    let late = try newCall(at)
    lessees[at] = TestLessee(.random(in: 0 ... .max, using: &random))
    evaluator.close(gone, nowMicroseconds: microseconds)
    let reply = try rig.run(
      LeaseCloseCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, lessee: gone))
    if reply != .done(now) { fail("close: \(reply)") }
    for name in ["a", "b"] {
      let expected = evaluator.endLeases(
        try Subject(name), closed: [gone], nowMicroseconds: microseconds)
      let got = try rig.endLeases(name, closed: [gone])
      if (got.ended, got.released, got.units) != expected { fail("\(got) against \(expected)") }
    }
    // It was on its way all the time.
    if !failed { try put(late) }
  }

  private mutating func recall() throws {
    count("recall")
    let account = try Subject(random.chance(0.5) ? "a" : "b")
    guard let asker = lessees.randomElement(using: &random),
      let subject = subjects.filter({ $0.account == account }).randomElement(using: &random)
    else { return }
    let portions = LeasePortion.all(
      of: resolve(subject, Self.features.map { Item(feature: $0, amount: 1) }), subject: subject
    ).filter(\.isLeased)
    let expected = evaluator.recall(
      account, by: asker.id, portions.map { place($0) }, nowMicroseconds: microseconds)
    let reply = try rig.run(
      RecallCall(
        keySpace: rig.keySpace, fence: rig.fence, account: account, asker: asker.id,
        wanted: portions.map { .init(subject: $0.subject, field: $0.field) }))
    let got = reply.value??.map { [$0.byOthers, $0.byAsker, $0.inDoubt] }
    if got != expected { fail("recall: \(reply) against \(expected)") }
  }

  /// Another version; in rounds that are not honest with another amount, maybe a lower one.
  private mutating func change() throws {
    let account = try Subject(random.chance(0.5) ? "a" : "b")
    guard var config = versions[account] else { return }
    count("config")
    config.version += 1
    if !isHonest {
      config.overrides = RandomCatalog.overrides(rig.global.catalog, account, now, &random).filter {
        if case .amount = $0.change { true } else { false }
      }
      if random.chance(0.5) { changeGrants(&config) }
    }
    versions[account] = config
    evaluator.state.accountVersions[account] = config.version
    evaluator.state.latest = max(evaluator.state.latest, microseconds)
    sequence += 1
    let reply = try rig.run(
      ConfigAccountCall(
        keySpace: rig.keySpace, fence: rig.fence,
        change: ChangeKey(operation: OperationID(time: now, using: &random), fingerprint: 7),
        account: account, expectedVersion: config.version - 1, newVersion: config.version,
        config: "{}", body: [3], outboxEntriesMax: 1 << 30))
    guard case .done = reply else { return fail("config: \(reply)") }
  }

  // MARK: - What always holds

  private mutating func checkInvariants() {
    var left: [CounterKey: [WallTime: Int64]] = [:]
    for (_, lease) in evaluator.state.leases {
      for (place, portion) in lease.portions {
        if case .counter(let key) = place {
          left[key, default: [:]][portion.period.start, default: 0] += portion.left
        }
        if portion.left <= 0 { fail("\(place): \(portion)") }
      }
    }
    for (key, value) in evaluator.state.counters {
      let held = left[key]?[value.start] ?? 0
      let before = left[key]?[value.previousStart] ?? 0
      if value.held != held || value.previousHeld != before, value.previousStart != value.start {
        fail("\(key): \(value), \(held) and \(before) left of leases")
      }
    }
    guard isHonest else { return }
    for subject in subjects {
      let items = Self.features.map { Item(feature: $0, amount: 0) }
      let resolution = resolve(subject, items)
      for limit in resolution.limits where limit.enforcement == .hard {
        guard case .quota(let at, let amount) = limit.rule else { continue }
        let cell = resolution.cells[at]
        let key = CounterKey(
          subject: subject.prefix(cell.level), feature: items[cell.item].feature,
          window: cell.window)
        let value = evaluator.state.reading(key, in: cell.period.start).counter
        if value.settled + value.held > amount { fail("\(key): \(value) above \(amount)") }
      }
      checkGrants(of: subject, resolution)
    }
  }

  /// Everything the evaluator knows is in Redis, and nothing else is.
  private mutating func compareState() throws {
    for subject in subjects {
      let stored = try rig.counters(subject.path)
      var found: Set<CounterKey> = []
      for (field, cell) in stored.cells {
        let parts = field.split(separator: "|")
        let key = CounterKey(
          subject: subject, feature: try Name(String(parts[0])),
          window: try #require(Window(code: parts[1])))
        found.insert(key)
        let counter = evaluator.state.counters[key]
        let got = CounterValue(
          start: cell.start, settled: cell.settled, held: cell.held,
          previousStart: cell.previousStart, previousSettled: cell.previousSettled,
          previousHeld: cell.previousHeld)
        if counter != got { fail("\(key): \(got) against \(String(describing: counter))") }
      }
      let lost = evaluator.state.lost(of: subject, stored: found)
      if !lost.isEmpty { fail("\(subject): \(lost) not in Redis") }
      var rates: [String: Int64] = [:]
      for (key, arrival) in evaluator.state.arrivals where key.subject == subject {
        rates[KeySpace.field(feature: key.feature, rate: key.limit)] = arrival
      }
      if rates != stored.rates { fail("\(subject): rates \(stored.rates) against \(rates)") }
    }
    for name in ["a", "b"] { try compareLeases(try Subject(name)) }
    let meta = try rig.read(Reads.meta(rig.keySpace, bucket: 0))
    let length = try rig.redis.command("XLEN", rig.keySpace.outbox(0)).integer ?? 0
    if meta?.fence.sequence != sequence || length != sequence
      || meta?.microseconds != evaluator.state.latest
    {
      fail(
        "meta \(String(describing: meta)), \(length) entries, expected \(sequence) at "
          + "\(evaluator.state.latest)")
    }
  }

  private mutating func compareLeases(_ account: Subject) throws {
    let key = rig.keySpace.subject(0, account)
    let stored = try rig.leases(account.path)
    let owned = evaluator.state.leases.filter { $0.key.account == account }
      .sorted { $0.key < $1.key }
    let expected = owned.map { owner, lease in
      StoredLease(
        lessee: owner.lessee, expires: lease.expires, isInDoubt: lease.isInDoubt,
        portions: lease.portions.map { place, portion in
          switch place {
          case .counter(let key):
            .init(
              subject: key.subject,
              field: KeySpace.field(feature: key.feature, window: key.window), left: portion.left,
              period: portion.period)
          case .rate(let key):
            .init(
              subject: key.subject, field: KeySpace.field(feature: key.feature, rate: key.limit),
              left: portion.left, period: portion.period)
          }
        }.sorted { ($0.subject, $0.field) < ($1.subject, $1.field) })
    }
    if stored != expected { fail("\(account): \(stored)\nagainst \(expected)") }
    // The summary: how many, and not later than the first end.
    let score = try rig.redis.command("ZSCORE", rig.keySpace.leasesDue(0), account.path).string
    var summary: [Int64] = []
    if case .bulk(let bytes) = try rig.redis.command("HGET", key, "^") {
      var reader = MessagePackReader(bytes)
      while let number = reader.integer() { summary.append(number) }
    }
    let ends = owned.map(\.value.ends.milliseconds).min()
    let live = Int64(owned.count { !$0.value.isInDoubt })
    if owned.isEmpty {
      if score != nil || !summary.isEmpty { fail("\(account): \(summary) of no leases") }
    } else if summary.prefix(2) != [live, Int64(owned.count) - live]
      || score != "\(summary[2])" || summary[2] > ends ?? 0
    {
      fail("\(account): \(summary) due \(score ?? "never"), ends \(ends ?? 0), \(live) live")
    }
    let mark = try rig.redis.command("HGET", key, "^r").string.flatMap { Int64($0) }
    if mark != evaluator.state.recalled[account]?.milliseconds {
      fail("\(account): asked back until \(mark ?? 0)")
    }
  }
}
