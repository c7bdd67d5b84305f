// Looks after thresholds: which accounts have reached so many percent of a limit. Nobody on the
// request path does. The sidecar that ships a bucket tells this one which features of which
// subjects the deltas it just read are about; each account is then looked at, once a second at
// most, and what is reached goes to the script that asks the counter itself and notes it once.
//
// Promises: a look follows every delta that was shipped, so what a delta reached is found within
// about a second of its shipping. What cannot be looked at now is looked at again. Bounded in
// accounts, and in uses of each; what does not fit, or what a killed sidecar had not looked at, is
// found with the account's next delta.

import Logging
import TollgateCore
import TollgateRedis
import TollgateWire

/// Where a watch reads and writes; the live backend, or a test's.
protocol ThresholdStore: AdminBackend {
  /// As this sidecar knows it: no read for each look.
  func knownGlobal() async -> GlobalConfig?
  /// False: judged on what is no longer so; look again.
  func note(
    _ reading: ThresholdReading, globalVersion: Int64, accountVersion: Int64
  ) async throws(AdminFailure) -> Bool
}

actor ThresholdWatch<Store: ThresholdStore> {
  static var accountsMax: Int { 4_096 }
  /// Features of subjects that one look at an account covers.
  static var usesMax: Int { 64 }
  static var notedMax: Int { 16_384 }
  static var intervalMilliseconds: Int64 { 1_000 }

  private struct Use: Hashable {
    var subject: Subject
    var feature: Name
  }

  private struct Place: Hashable {
    var subject: Subject
    var limit: Name
  }

  private let store: Store
  private let service: AdminService<Store>
  private let clock: @Sendable () -> WallTime
  private let logger: Logger
  private var pending: [Subject: Set<Use>] = [:]
  /// What was noted, so that the script is not asked again and again; it knows better.
  private var noted: [Place: ThresholdReading] = [:]
  private var watched: (version: Int64, features: Set<Name>) = (-1, [])

  init(_ store: Store, clock: @escaping @Sendable () -> WallTime, logger: Logger) {
    self.store = store
    self.clock = clock
    self.logger = logger
    service = AdminService(backend: store, clock: clock)
  }

  func run() async {
    while !Task.isCancelled {
      try? await Task.sleep(for: .milliseconds(Self.intervalMilliseconds))
      await look()
    }
  }

  /// What a shipper has just read. Free where no plan has thresholds.
  func saw(_ entries: [OutboxEntry]) async {
    guard let global = await store.knownGlobal() else { return }
    if watched.version != global.version {
      watched = (global.version, Self.features(global.catalog))
    }
    guard !watched.features.isEmpty else { return }
    for entry in entries where entry.kind != .config && entry.kind != .threshold {
      guard let body = try? UsageBody.decode(entry.body) else { continue }
      add(Use(subject: body.subject, feature: body.feature))
      // What is charged is another delta, of its own feature.
    }
  }

  private static func features(_ catalog: Catalog) -> Set<Name> {
    var features: Set<Name> = []
    for plan in catalog.plans.values {
      for (feature, limits) in plan.entitlements
      where limits.contains(where: { !$0.thresholds.isEmpty }) {
        features.insert(feature)
      }
    }
    return features
  }

  private func add(_ use: Use) {
    guard watched.features.contains(use.feature) else { return }
    let account = use.subject.account
    guard pending[account] != nil || pending.count < Self.accountsMax else { return }
    guard pending[account]?.count ?? 0 < Self.usesMax else { return }
    pending[account, default: []].insert(use)
  }

  /// One round; what fails waits for the next.
  func look() async {
    let accounts = pending
    pending = [:]
    guard !accounts.isEmpty, let global = await store.knownGlobal() else {
      for uses in accounts.values { for use in uses { add(use) } }
      return
    }
    for (account, uses) in accounts {
      do throws(AdminFailure) {
        guard try await look(at: account, uses, global) else {
          for use in uses { add(use) }
          continue
        }
      } catch {
        for use in uses { add(use) }
        logger.debug("thresholds are looked at later", metadata: ["error": "\(error.message)"])
      }
    }
  }

  /// False: something of it has to be looked at again.
  private func look(
    at account: Subject, _ uses: Set<Use>, _ global: GlobalConfig
  ) async throws(AdminFailure) -> Bool {
    var config = try await store.account(account).config
    let version = config.version
    // What was used before a freeze was used.
    config.frozen = false
    config.pastDue = nil
    let now = clock()
    guard let plan = global.plan(of: config, at: now) else { return true }
    var isDone = true
    for (subject, uses) in Dictionary(grouping: uses, by: \.subject) {
      let features = uses.map(\.feature).filter { feature in
        plan.entitlements[feature]?.contains { !$0.thresholds.isEmpty } ?? false
      }.sorted()
      guard !features.isEmpty else { continue }
      let resolutions = features.map { feature in
        Resolution.resolve(
          subject: subject, items: [Item(feature: feature, amount: 0)], global: global,
          account: config, now: now, zones: SystemZones.book)
      }
      let judged = try await service.judge(subject, resolutions.map { .init(resolution: $0) })
      for (feature, judge) in zip(features, judged) {
        let readings = ThresholdReading.all(
          plan.entitlements[feature] ?? [], subject: subject, resolution: judge.resolution,
          reading: judge.reading)
        for reading in readings where !isNoted(reading) {
          if try await store.note(
            reading, globalVersion: global.version, accountVersion: version)
          {
            if noted.count >= Self.notedMax { noted = [:] }
            noted[Place(subject: reading.subject, limit: reading.limit)] = reading
          } else {
            isDone = false
          }
        }
      }
    }
    return isDone
  }

  private func isNoted(_ reading: ThresholdReading) -> Bool {
    guard let last = noted[Place(subject: reading.subject, limit: reading.limit)] else {
      return false
    }
    return last.period.start == reading.period.start && last.forgiven == reading.forgiven
      && last.amount == reading.amount && last.reached == reading.reached
  }
}
