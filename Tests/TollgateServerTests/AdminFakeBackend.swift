// A backend in memory, for tests of the admin handlers only. It keeps the contract of
// `AdminBackend` (atomic compare-and-set, one effect per operation id) and lets a test disturb it.

import NIOConcurrencyHelpers
import TollgateCore
import TollgateServer

final class FakeBackend: AdminBackend {
  struct State {
    var now = WallTime(milliseconds: 1_763_700_000_000)
    var global: GlobalConfig?
    var catalogs: [Int64: Catalog] = [:]
    var accounts: [Subject: AccountConfig] = [:]
    var counters: [CounterReference: CounterState] = [:]
    var rates: [RateReference: Int64] = [:]
    var audit: [AuditEntry] = []
    var operations: [OperationID: (fingerprint: UInt64, written: Written)] = [:]
    var published: [Int64] = []
    var publishedWhenWaited: [Int64] = []
    /// Called once before the next write: somebody else's change.
    var beforeWrite: [@Sendable (inout State) -> Void] = []
    var isLoaded = true
    var bucketState = CountersSnapshot.Bucket.ready
    var ledgerConfirms = true
    var waits = 0
    var health: HealthReport = .healthy
    var facts = DoctorFacts()
    var ledger: [Subject: [LedgerBilling]] = [:]
    var store: [Subject: [StoreBilling]] = [:]
    var deltas: [BilledDelta] = []
    var records: [OperationID: Bool] = [:]
    var decisions: [OperationID: Decision] = [:]
    var sequence: Int64 = 0
    /// Of everything; only where a test sets it.
    var memory = ChangeMemory()
    /// How often `writeAccounts` still answers `crowded`.
    var crowded = 0
    var outboxReads = 0
    var history = AuditPage.History.read
    var failing: AdminFailure?
    /// Thresholds asked to be noted, and what is answered.
    var noted: [ThresholdReading] = []
    var notes = true
    var fallback = FallbackListReply(sidecar: "sidecar-1", pending: 0, deferred: 0, parked: [])
    var unparked: [String] = []
    var leases: [LeaseReport] = []
    var adjustments: [Adjustment] = []
    var left: [OperationID: [Item]] = [:]
    var questions: [HistoryQuestion] = []
    var historyPages: [HistoryPage] = []
    var samples: [BucketSample] = []
    var passed: (events: [TailReply.Event], dropped: Int64) = ([], 0)
    /// By listener.
    var listeners: [UInt64] = []
  }

  let deployment: Deployment
  let hasLedger: Bool
  let state = NIOLockedValueBox(State())

  init(hasLedger: Bool = true) throws {
    deployment = Deployment(id: try Name("test"), buckets: 4, mode: .dev)
    self.hasLedger = hasLedger
  }

  func edit(_ change: (inout sending State) -> Void) { state.withLockedValue { change(&$0) } }
  func read<Value: Sendable>(_ look: (State) -> Value) -> Value {
    state.withLockedValue { look($0) }
  }

  var service: AdminService<FakeBackend> {
    AdminService(backend: self) { [self] in read(\.now) }
  }

  private func check() throws(AdminFailure) {
    if let failing = read(\.failing) { throw failing }
  }

  // MARK: Configuration

  func globalConfig() async throws(AdminFailure) -> GlobalConfig? {
    try check()
    return read(\.global)
  }

  func writeGlobal(
    _ config: GlobalConfig, before: GlobalConfig?, expecting: Int64, change: ChangeRecord
  ) async throws(AdminFailure) -> WriteOutcome {
    try write(bucket: 4, change, expecting: expecting) {
      $0.global?.version ?? 0
    } apply: { state in
      state.global = config
      state.catalogs[config.catalogVersion] = config.catalog
      return config.version
    }
  }

  func publishGlobal(version: Int64) async throws(AdminFailure) {
    edit { $0.published.append(version) }
  }

  func globalMemory() async throws(AdminFailure) -> ChangeMemory { read(\.memory) }

  func catalog(version: Int64) async throws(AdminFailure) -> Catalog? {
    read { $0.catalogs[version] }
  }

  func account(_ account: Subject) async throws(AdminFailure) -> AccountState {
    try check()
    return read {
      AccountState(
        config: $0.accounts[account] ?? AccountConfig(), bucket: 0, isLoaded: $0.isLoaded,
        memory: $0.memory)
    }
  }

  func accounts(_ accounts: [Subject]) async -> [Result<AccountState, AdminFailure>] {
    await each(accounts) { (account) throws(AdminFailure) in try await self.account(account) }
  }

  func writeAccounts(_ writes: [AccountWrite]) async -> [Result<WriteOutcome, AdminFailure>] {
    let isCrowded = state.withLockedValue { state in
      state.crowded -= 1
      return state.crowded >= 0
    }
    if isCrowded { return writes.map { _ in .success(.crowded) } }
    return await each(writes) { (write) throws(AdminFailure) in
      try await self.writeAccount(
        write.account, write.config, before: write.before, expecting: write.before.version,
        change: write.change)
    }
  }

  func waitForRoom(buckets: Set<Int>, milliseconds: Int64) async -> Bool { read(\.ledgerConfirms) }

  private func each<Element, Value: Sendable>(
    _ elements: [Element], _ body: (Element) async throws(AdminFailure) -> Value
  ) async -> [Result<Value, AdminFailure>] {
    var results: [Result<Value, AdminFailure>] = []
    for element in elements {
      do throws(AdminFailure) {
        results.append(.success(try await body(element)))
      } catch {
        results.append(.failure(error))
      }
    }
    return results
  }

  func writeAccount(
    _ account: Subject, _ config: AccountConfig, before: AccountConfig, expecting: Int64,
    change: ChangeRecord
  ) async throws(AdminFailure) -> WriteOutcome {
    try write(bucket: 0, change, expecting: expecting) { state in
      state.accounts[account]?.version ?? 0
    } apply: { state in
      state.accounts[account] = config
      state.audit.insert(
        AuditEntry(
          time: state.now, operation: change.operation,
          change: ConfigDelta(
            scope: .account, key: account.path, version: config.version, action: change.action,
            actor: change.actor, reason: change.reason, before: before.document.json(),
            after: config.document.json()), delivered: false), at: 0)
      return config.version
    }
  }

  private func write(
    bucket: Int, _ change: ChangeRecord, expecting: Int64, current: (State) -> Int64,
    apply: (inout State) -> Int64
  ) throws(AdminFailure) -> WriteOutcome {
    try check()
    let result: Result<WriteOutcome, AdminFailure> = state.withLockedValue { state in
      if !state.beforeWrite.isEmpty { state.beforeWrite.removeFirst()(&state) }
      if let earlier = state.operations[change.operation] {
        return earlier.fingerprint == change.fingerprint
          ? .success(.replayed(earlier.written))
          : .failure(AdminFailure(.idempotencyMismatch, "another request has this id"))
      }
      guard current(state) == expecting else { return .success(.conflict(current: current(state))) }
      state.sequence += 1
      let written = Written(
        version: apply(&state), bucket: bucket,
        position: StreamPosition(epoch: 1, sequence: state.sequence), time: state.now)
      state.operations[change.operation] = (change.fingerprint, written)
      return .success(.written(written))
    }
    return try result.get()
  }

  func accounts(after cursor: String?, limit: Int) async throws(AdminFailure) -> AccountPage {
    read { state in
      let all = state.accounts.keys.sorted().filter { cursor == nil || $0.path > cursor ?? "" }
      let page = all.prefix(limit)
      return AccountPage(
        entries: page.map { .init(account: $0, config: state.accounts[$0] ?? AccountConfig()) },
        next: page.count < all.count ? page.last?.path : nil)
    }
  }

  func audit(
    account: String?, before place: AuditPlace?, limit: Int
  ) async throws(AdminFailure) -> AuditPage {
    read { state in
      let found = state.audit.filter { entry in
        (account == nil || entry.change.key == account)
          && (place.map { entry.place < $0 } ?? true)
      }
      let page = Array(found.prefix(limit))
      return AuditPage(
        entries: page, history: state.history,
        next: page.count < found.count ? page.last?.place : nil)
    }
  }

  // MARK: Counters

  func counters(
    account: Subject, quotas: [CounterReference], rates: [RateReference]
  ) async throws(AdminFailure) -> CountersSnapshot {
    read { state in
      CountersSnapshot(
        time: state.now, bucket: 0, bucketState: state.bucketState, epoch: 1,
        isLoaded: state.isLoaded, globalVersion: state.global?.version ?? 0,
        accountVersion: state.accounts[account]?.version ?? 0,
        counters: quotas.map { state.counters[$0] ?? .empty },
        rates: rates.map { state.rates[$0] ?? 0 })
    }
  }

  func resetCounter(
    _ reference: CounterReference, calendar: AccountCalendar, change: ChangeRecord
  ) async throws(AdminFailure) -> ResetOutcome {
    state.withLockedValue { state in
      if let earlier = state.operations[change.operation] {
        return .replayed(forgiven: 0, earlier.written)
      }
      let counter = state.counters[reference] ?? .empty
      let forgiven = counter.settled - counter.forgiven
      state.counters[reference]?.forgiven = counter.settled
      let written = Written(version: 0, bucket: 0, position: nil, time: state.now)
      state.operations[change.operation] = (change.fingerprint, written)
      return .reset(forgiven: forgiven, written)
    }
  }

  func resetRate(
    _ reference: RateReference, change: ChangeRecord
  ) async throws(AdminFailure) -> ResetOutcome {
    edit { $0.rates[reference] = 0 }
    return .reset(
      forgiven: 0, Written(version: 0, bucket: 0, position: nil, time: read(\.now)))
  }

  // MARK: Reconciliation

  /// Each read takes the next of the prepared answers; the last one stays.
  func unloadedAccounts(after cursor: String?) async throws(AdminFailure) -> (
    accounts: [Subject], next: String?
  ) { ([], nil) }

  func ledgerBilling(account: Subject) async throws(AdminFailure) -> LedgerBilling {
    let answer: LedgerBilling? = state.withLockedValue { state in
      guard let prepared = state.ledger[account] else { return nil }
      if prepared.count > 1 { state.ledger[account]?.removeFirst() }
      return prepared.first
    }
    guard let answer else { throw AdminFailure(.notFound, "nothing prepared for \(account)") }
    return answer
  }

  func ledgerBillings(_ accounts: [Subject]) async throws(AdminFailure) -> [LedgerBilling] {
    var billings: [LedgerBilling] = []
    for account in accounts { billings.append(try await ledgerBilling(account: account)) }
    return billings
  }

  func storeBilling(
    bucket: Int, _ accounts: [(account: Subject, cursor: StreamPosition)]
  ) async throws(AdminFailure) -> [StoreBilling] {
    edit { $0.outboxReads += 1 }
    var billings: [StoreBilling] = []
    for (account, cursor) in accounts {
      let answer: StoreBilling? = state.withLockedValue { state in
        guard let prepared = state.store[account] else { return nil }
        if prepared.count > 1 { state.store[account]?.removeFirst() }
        return prepared.first
      }
      guard var answer else { throw AdminFailure(.notFound, "nothing prepared for \(account)") }
      answer.undelivered.removeAll { $0.position <= cursor }
      billings.append(answer)
    }
    return billings
  }

  func ledgerDeltas(
    account: Subject, feature: Name, window: Window, period: Period, limit: Int
  ) async throws(AdminFailure) -> [BilledDelta] {
    read { state in
      let found = state.deltas.filter {
        $0.feature == feature && $0.period == period && $0.window == window
      }
      return Array(found.prefix(limit))
    }
  }

  func operationRecords(
    account: Subject, _ ids: [OperationID]
  ) async throws(AdminFailure) -> [OperationID: Bool] {
    read { state in state.records.filter { ids.contains($0.key) } }
  }

  func recordedDecision(
    account: Subject, operation: OperationID
  ) async throws(AdminFailure) -> Decision? { read { $0.decisions[operation] } }

  func waitForLedger(
    bucket: Int, position: StreamPosition?, milliseconds: Int64
  ) async throws(AdminFailure) -> Bool {
    edit {
      $0.waits += 1
      $0.publishedWhenWaited = $0.published
    }
    return read(\.ledgerConfirms)
  }

  // MARK: Health

  func health() async -> HealthReport { read(\.health) }
  func doctorFacts() async -> DoctorFacts { read(\.facts) }

  // MARK: What an open policy let through

  func fallback() async -> FallbackListReply { read(\.fallback) }

  func leases(of account: Subject) async throws(AdminFailure) -> LeaseListReply {
    try check()
    return LeaseListReply(
      time: read(\.now), leases: read(\.leases).filter { $0.account == account })
  }

  /// One lease a page.
  func leases(after cursor: String?, limit: Int) async throws(AdminFailure) -> LeaseListReply {
    try check()
    let all = read(\.leases)
    let at = cursor.flatMap { Int($0) } ?? 0
    return LeaseListReply(
      time: read(\.now), leases: Array(all.dropFirst(at).prefix(1)),
      next: at + 1 < all.count ? "\(at + 1)" : nil)
  }

  func releaseLease(of lessee: LesseeID, account: Subject) async throws(AdminFailure) -> Int64 {
    try check()
    return state.withLockedValue { state in
      func isMeant(_ lease: LeaseReport) -> Bool {
        lease.account == account && lease.lessee == lessee.hex && lease.state == .inDoubt
      }
      let units = state.leases.filter(isMeant).flatMap(\.portions).reduce(0) { $0 + $1.units }
      state.leases.removeAll(where: isMeant)
      return units
    }
  }

  func adjust(
    _ adjustment: Adjustment, change: ChangeRecord
  ) async throws(AdminFailure) -> AdjustOutcome {
    try check()
    return state.withLockedValue { state in
      if let known = state.operations[change.operation] { return .replayed(known.written) }
      state.sequence += 1
      let written = Written(
        version: 0, bucket: 0, position: StreamPosition(epoch: 1, sequence: state.sequence),
        time: state.now)
      state.operations[change.operation] = (change.fingerprint, written)
      state.adjustments.append(adjustment)
      return .adjusted(written)
    }
  }

  func left(
    of operation: OperationID, account: Subject
  ) async throws(AdminFailure) -> [Item] {
    try check()
    return read { $0.left[operation] ?? [] }
  }

  func history(_ question: HistoryQuestion) async throws(AdminFailure) -> HistoryPage {
    try check()
    return state.withLockedValue { state in
      state.questions.append(question)
      return state.historyPages.isEmpty
        ? HistoryPage(rows: [], next: nil) : state.historyPages.removeFirst()
    }
  }

  func newestDeltas(
    since: WallTime, limit: Int
  ) async throws(AdminFailure) -> [BucketSample] {
    try check()
    return read(\.samples)
  }

  func tail(
    listener: UInt64, account: Subject?, deniedOnly: Bool, limit: Int
  ) async -> (events: [TailReply.Event], dropped: Int64)? {
    state.withLockedValue { state in
      if !state.listeners.contains(listener) {
        guard state.listeners.count < 2 else { return nil }
        state.listeners.append(listener)
      }
      defer { state.passed = ([], 0) }
      return state.passed
    }
  }

  func unpark(
    _ operation: OperationID, _ action: FallbackAction, change: ChangeRecord
  ) async throws(AdminFailure) -> FallbackListReply.Parked? {
    try check()
    return state.withLockedValue { state in
      guard let index = state.fallback.parked.firstIndex(where: { $0.operation == operation })
      else { return nil }
      state.unparked.append("\(action.rawValue) by \(change.actor): \(change.reason)")
      if action == .retry { state.fallback.pending += 1 }
      return state.fallback.parked.remove(at: index)
    }
  }
}

extension HealthReport {
  static let healthy = HealthReport(
    sidecar: .init(
      id: "sidecar-1", version: "0.1.0", uptimeMilliseconds: 3_725_000, ready: true,
      draining: false, connections: 2, inFlight: 1),
    deployment: DeploymentReport(
      id: "test", buckets: 4, hash: "fnv1a64m", keyVersion: 1, mode: "dev"),
    redis: .init(
      address: "127.0.0.1:6379", connected: true, breaker: "closed", runID: "r", error: ""),
    ledger: .init(address: "127.0.0.1:7420", connected: true, error: ""),
    configuration: .init(globalVersion: 3, catalogVersion: 2, heartbeatAgeMilliseconds: 40),
    buckets: .init(total: 5, ready: 5, fenced: 0, recovering: 0, owned: 5),
    delivery: .init(
      undeliveredEntries: 0, oldestMilliseconds: 0, retained: 0, duplicatesAbsorbed: 0, losses: 0),
    fallback: .init(unitsAdmitted: 0, operationsToPost: 0), decisions: ["ALLOWED": 12])
}
