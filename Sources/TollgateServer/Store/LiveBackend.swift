// The admin handlers' view of the running sidecar: Redis through the cold store, the ledger through
// its link, health from memory. Writes go through the fenced scripts; a fence met on the way is
// healed and the write tried again, because nothing was written.

import NIOCore
import TollgateCore
import TollgateRedis
import TollgateWire

struct LiveBackend: AdminBackend {
  let sidecar: Sidecar

  var deployment: Deployment { sidecar.configuration.deployment }
  var hasLedger: Bool { sidecar.ledger != nil }

  private var store: ColdStore { sidecar.store }
  private var keys: KeySpace { sidecar.keys }

  static let attemptsMax = 40
  static let pauseMilliseconds = 50

  // MARK: - Failures

  static func failure(_ failure: StoreFailure) -> AdminFailure {
    switch failure {
    case .unavailable(let text, let mayHaveHappened):
      if mayHaveHappened {
        AdminFailure(
          .outcomeUnknown, "\(text); the change may have been made",
          fix: "repeat the command with the same --id")
      } else {
        .unavailable(text)
      }
    case .fenced: .unavailable("the bucket is being recovered")
    case .refused(let text): .unavailable("redis refused the call: \(text)")
    }
  }

  static func failure(_ failure: LedgerFailure) -> AdminFailure {
    .unavailable("ledger: \(failure.description)")
  }

  func reading<Value>(
    _ body: () async throws(StoreFailure) -> Value
  ) async throws(AdminFailure) -> Value {
    do throws(StoreFailure) { return try await body() } catch { throw Self.failure(error) }
  }

  /// The epoch a bucket is open under; waits a little for one that is being recovered.
  func epoch(_ bucket: Int) async throws(AdminFailure) -> Int64 {
    for _ in 0..<Self.attemptsMax {
      if let epoch = await sidecar.healer.epoch(of: bucket) { return epoch }
      try? await Task.sleep(for: .milliseconds(Self.pauseMilliseconds))
    }
    throw .unavailable("bucket \(bucket) is not open: Redis or the ledger does not answer")
  }

  // MARK: - Global configuration

  func globalConfig() async throws(AdminFailure) -> GlobalConfig? {
    let config = try await reading { () async throws(StoreFailure) in try await store.global() }
    if config == nil, let known = await sidecar.healer.currentGlobal {
      // Redis has lost it and it is being put back; writing on top of nothing would fork it.
      throw .unavailable("configuration version \(known.version) is being restored; try again")
    }
    return config
  }

  func writeGlobal(
    _ config: GlobalConfig, before: GlobalConfig?, expecting: Int64, change: ChangeRecord
  ) async throws(AdminFailure) -> WriteOutcome {
    let bucket = keys.map.control
    let after = config.document.json()
    let body = ConfigDelta(
      scope: .global, key: "", version: config.version, action: change.action,
      actor: change.actor, reason: change.reason, before: before?.document.json() ?? "",
      after: after
    ).encode()
    let newCatalog = config.catalogVersion != (before?.catalogVersion ?? 0)
    for _ in 0..<Self.attemptsMax {
      let epoch = try await epoch(bucket)
      let reply = try await reading { () async throws(StoreFailure) in
        let call = ConfigGlobalCall(
          keySpace: keys, fence: try await store.fence(epoch: epoch), operation: change.operation,
          expectedVersion: expecting, newVersion: config.version, config: after,
          catalog: newCatalog
            ? (config.catalogVersion, config.catalog.document.json()) : nil, body: body)
        return call.decode(try await store.raw(call))
      }
      if let outcome = try await outcome(
        reply, change, version: config.version, bucket: bucket, epoch: epoch, body: body)
      {
        await sidecar.healer.refresh()
        return outcome
      }
    }
    throw .unavailable("the control bucket stays fenced")
  }

  /// nil: fenced, healed, to be tried again.
  private func outcome(
    _ reply: TollgateRedis.ConfigReply, _ change: ChangeRecord, version: Int64, bucket: Int,
    epoch: Int64, body: [UInt8]
  ) async throws(AdminFailure) -> WriteOutcome? {
    switch reply {
    case .done(let done):
      await sidecar.healer.retainConfig(
        OutboxEntry(
          sequence: done.position.sequence, kind: .config,
          id: DeltaID(operation: change.operation, index: 0), time: done.time, actual: 0,
          charged: 0, absorbed: 0, body: body),
        bucket: bucket, epoch: done.position.epoch)
      return .written(
        Written(version: version, bucket: bucket, position: done.position, time: done.time))
    case .alreadyDone:
      return .replayed(
        Written(version: version, bucket: bucket, position: nil, time: store.wallTime()))
    case .conflict(let current): return .conflict(current: current)
    case .fenced:
      await sidecar.healer.fenced(bucket: bucket, epoch: epoch)
      return nil
    case .error(let text): throw .unavailable("redis refused the change: \(text)")
    }
  }

  func publishGlobal(version: Int64) async throws(AdminFailure) {
    // Buckets that cannot be reached now learn it from the first sidecar that calls them with it.
    let store = store
    let healer = sidecar.healer
    await withTaskGroup(of: Void.self) { group in
      for bucket in 0..<keys.map.buckets {
        group.addTask {
          guard let epoch = await healer.epoch(of: bucket) else { return }
          try? await store.pushVersion(bucket: bucket, epoch: epoch, version: version)
        }
      }
    }
  }

  func catalog(version: Int64) async throws(AdminFailure) -> Catalog? {
    let json = try await reading { () async throws(StoreFailure) in
      try await store.read(Reads.catalog(keys, version: version))
    }
    guard let json, let document = try? Document(json: json) else { return nil }
    guard case .success(let catalog) = CatalogReader.read(document) else { return nil }
    return catalog
  }

  // MARK: - Accounts

  func account(_ account: Subject) async throws(AdminFailure) -> AccountState {
    let bucket = keys.bucket(of: account)
    for _ in 0..<Self.attemptsMax {
      let epoch = try await epoch(bucket)
      let header = try await reading { () async throws(StoreFailure) in
        try await store.header(account: account)
      }
      let loaded = header.epoch == epoch
      if !loaded, hasLedger {
        // The ledger may know more than a header that is not seeded.
        if await sidecar.healer.load(account: account, bucket: bucket, epoch: epoch) == .retry {
          try? await Task.sleep(for: .milliseconds(Self.pauseMilliseconds))
          continue
        }
      }
      let current = try await reading { () async throws(StoreFailure) in
        try await store.header(account: account)
      }
      guard var config = AccountConfig(stored: current.config ?? "") else {
        throw AdminFailure(.internalError, "the account's configuration cannot be read")
      }
      config.version = current.version ?? 0
      return AccountState(config: config, bucket: bucket, isLoaded: current.epoch == epoch)
    }
    throw .unavailable("the account cannot be loaded: the ledger does not answer")
  }

  func writeAccount(
    _ account: Subject, _ config: AccountConfig, before: AccountConfig, expecting: Int64,
    change: ChangeRecord
  ) async throws(AdminFailure) -> WriteOutcome {
    let bucket = keys.bucket(of: account)
    let after = config.document.json()
    let body = ConfigDelta(
      scope: .account, key: account.path, version: config.version, action: change.action,
      actor: change.actor, reason: change.reason, before: before.document.json(), after: after
    ).encode()
    for _ in 0..<Self.attemptsMax {
      let epoch = try await epoch(bucket)
      let reply = try await reading { () async throws(StoreFailure) in
        let call = ConfigAccountCall(
          keySpace: keys, fence: try await store.fence(epoch: epoch), operation: change.operation,
          account: account, expectedVersion: expecting, newVersion: config.version, config: after,
          body: body)
        return call.decode(try await store.raw(call))
      }
      if let outcome = try await outcome(
        reply, change, version: config.version, bucket: bucket, epoch: epoch, body: body)
      {
        return outcome
      }
    }
    throw .unavailable("the account's bucket stays fenced")
  }

  func accounts(after cursor: String?, limit: Int) async throws(AdminFailure) -> AccountPage {
    try await AccountScan(store: store, keys: keys).page(after: cursor, limit: limit)
  }

  func audit(
    account: String?, before: WallTime?, limit: Int
  ) async throws(AdminFailure) -> [AuditEntry] {
    let buckets: [Int]
    if let account, !account.isEmpty {
      guard let subject = try? Subject(account) else { throw .badRequest("account", "no subject") }
      buckets = [keys.bucket(of: subject)]
    } else {
      buckets = account == "" ? [keys.map.control] : Array(0...keys.map.control)
    }
    var entries: [AuditEntry] = []
    for bucket in buckets {
      let found = try await reading { () async throws(StoreFailure) in
        try await store.read(Reads.audit(keys, bucket: bucket, count: 1000))
      }
      let meta = try await reading { () async throws(StoreFailure) in
        try await store.meta(bucket: bucket)
      }
      for entry in found {
        guard let change = try? ConfigDelta.decode(entry.body),
          before.map({ entry.time < $0 }) ?? true,
          account.map({ $0.isEmpty || change.key.split(separator: "/").first ?? "" == $0 }) ?? true
        else { continue }
        let sequence = Self.sequence(ofAudit: entry.streamID)
        entries.append(
          AuditEntry(
            time: entry.time, operation: nil, change: change,
            delivered: sequence.map { $0 <= (meta?.acknowledged ?? 0) } ?? false))
      }
    }
    entries.sort { $0.time > $1.time }
    return Array(entries.prefix(limit))
  }

  private static func sequence(ofAudit id: String) -> Int64? {
    id.split(separator: "-").last.flatMap { Int64($0) }
  }

  // MARK: - Health

  func health() async -> HealthReport { await HealthReporter(sidecar: sidecar).report() }
  func doctorFacts() async -> DoctorFacts { await DoctorProbe(sidecar: sidecar).facts() }
}
