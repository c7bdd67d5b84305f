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

  var store: ColdStore { sidecar.store }
  var keys: KeySpace { sidecar.keys }

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

  func globalMemory() async throws(AdminFailure) -> ChangeMemory {
    try await reading { () async throws(StoreFailure) in
      try await store.read(Reads.globalMemory(keys))
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
      if header.isCurrent(in: epoch) || !hasLedger { return try Self.state(header, bucket, epoch) }
      // The ledger may know more than a header that is not seeded.
      switch await sidecar.healer.load(
        account: account, bucket: bucket, epoch: epoch, purpose: .read)
      {
      case .loaded, .unknown:
        let current = try await reading { () async throws(StoreFailure) in
          try await store.header(account: account)
        }
        return try Self.state(current, bucket, epoch)
      case .retry, .failed, .busy:
        try? await Task.sleep(for: .milliseconds(Self.pauseMilliseconds))
      }
    }
    throw .unavailable("the account cannot be loaded: the ledger does not answer")
  }

  static func state(
    _ header: AccountHeader, _ bucket: Int, _ epoch: Int64
  ) throws(AdminFailure) -> AccountState {
    guard var config = AccountConfig(stored: header.config ?? "") else {
      throw AdminFailure(.internalError, "the account's configuration cannot be read")
    }
    config.version = header.version ?? 0
    return AccountState(
      config: config, bucket: bucket, isLoaded: header.isCurrent(in: epoch), memory: header.memory)
  }

  func accounts(after cursor: String?, limit: Int) async throws(AdminFailure) -> AccountPage {
    try await AccountScan(store: store, keys: keys).page(after: cursor, limit: limit)
  }

  // MARK: - Health

  func health() async -> HealthReport { await HealthReporter(sidecar: sidecar).report() }
  func doctorFacts() async -> DoctorFacts { await DoctorProbe(sidecar: sidecar).facts() }
}
