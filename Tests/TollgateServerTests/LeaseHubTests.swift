// What an event loop tells the leases' table, and what time it is there before Redis said so.

import Logging
import NIOCore
import NIOPosix
import Testing
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateTesting

@testable import TollgateServer

@Suite(.blocking) struct LeaseHubTests {
  private static let start = WallTime(milliseconds: 1_700_000_000_000)

  private static func configuration() throws -> ServerConfiguration {
    ServerConfiguration(
      deployment: Deployment(id: try Name("hub"), buckets: 1, mode: .dev), sidecarID: "hub",
      redis: RedisLinkConfiguration(endpoint: .unix(path: "/none")))
  }

  private static func hub() throws -> LeaseHub {
    try LeaseHub(configuration(), buckets: BucketMap(buckets: 1), startedAt: start)
  }

  /// What has no limit: nothing is held for it, so nothing of it comes by an exchange.
  private static func register(_ hub: LeaseHub) -> LeaseRegistered {
    let now = LeaseHub.bootNanoseconds()
    return hub.table.register(
      LeaseRegistration(
        bucket: 0, account: Array("acme".utf8), key: Array("acme".utf8), globalVersion: 1,
        accountVersion: 1, confirmedAt: now, now: now, validUntil: .max, isStaleAllowed: false,
        items: [.init(portions: [], shown: nil, amount: -1)], portions: [], demand: 1,
        template: LeaseTemplate(bytes: Array(repeating: 0, count: 48), patches: []),
        definition: Array("acme".utf8)))
  }

  private static func spend(_ hub: LeaseHub, _ low: UInt64) -> TollgateEngine.LeaseOutcome {
    let now = LeaseHub.bootNanoseconds()
    let (key, amounts) = (Array("acme".utf8), [Int64(1)])
    let out = UnsafeMutableRawBufferPointer.allocate(byteCount: 256, alignment: 8)
    defer { unsafe out.deallocate() }
    return unsafe key.withUnsafeBytes { key in
      unsafe amounts.withUnsafeBufferPointer { amounts in
        unsafe hub.table.spend(
          LeaseRequest(
            bucket: 0, kind: .consume,
            id: OperationID(high: UInt64(hub.wall(at: now) + 1) << 16, low: low), key: key,
            hash: LeaseHash.of(key), amounts: amounts, now: now, wall: hub.wall(at: now)),
          into: out)
      }
    }
  }

  /// On its loop.
  private static func enforcer(
    _ hub: LeaseHub, _ configuration: ServerConfiguration, _ loop: any EventLoop
  ) -> Enforcer {
    var logger = Logger(label: "hub")
    logger.logLevel = .critical
    let enforcer = Enforcer(
      eventLoop: loop, configuration: configuration,
      keys: KeySpace(deployment: configuration.deployment.id, map: hub.buckets),
      metrics: Metrics(), fallback: FallbackQueue(limits: .init(), journal: nil),
      seen: SeenBoard(buckets: hub.buckets), logger: logger, wallClock: { Self.start })
    enforcer.leases = LeaseKeeper(hub, enforcer: enforcer, own: [])
    return enforcer
  }

  private static let policies = """
    levels: [account]
    unknown_account: {plan: free}
    features:
      shut: {metered: true, importance: volume, unit: call, idempotency: sidecar}
      ajar: {metered: true, importance: volume, unit: call, idempotency: sidecar}
    plans:
      free:
        shut: [{id: s, quota: 10, per: month, precision: exact}]
        ajar: [{id: a, quota: 10, per: month, on_failure: {open: 5}}]
    """

  /// Redis, which cannot be asked, may know it by its record: ID_TOO_OLD would be for good. Only what
  /// would be let through is refused for it.
  @Test func aPolicyThatDeniesDoesSoAlsoWhereTheTableHasForgotten() async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let hub = try Self.hub()
    hub.heard(Self.start, at: LeaseHub.bootNanoseconds())
    let configuration = try Self.configuration()
    let catalog = try AdminFixture.catalog(Self.policies)
    let seen = try await group.next().submit {
      let enforcer = Self.enforcer(hub, configuration, group.next())
      enforcer.globalChanged(
        GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: []))
      var seen: [String] = []
      for (feature, age) in [("shut", 1_000), ("ajar", 1_000), ("shut", -500), ("ajar", -500)] {
        let time = UInt64(Self.start.milliseconds - Int64(age))
        enforcer.submit(
          Request(
            mode: .consume, id: OperationID(high: time << 16, low: UInt64(seen.count + 1)),
            subject: try Subject("acme"), items: [Item(feature: try Name(feature), amount: 1)],
            bucket: 0, arrived: .now(), deadline: .now() + .milliseconds(200)
          ) { outcome in
            switch outcome {
            case .decision(let decision): seen.append("\(feature) \(age) \(decision.reason)")
            case .error(let code, _): seen.append("\(feature) \(age) \(code)")
            }
          })
      }
      return seen
    }.get()
    #expect(
      seen == [
        "shut 1000 storeUnavailable", "ajar 1000 idTooOld", "shut -500 storeUnavailable",
        "ajar -500 allowedFailOpen",
      ])
    try await group.shutdownGracefully()
  }

  /// What operators see of how late a retry may come.
  @Test func theReachIsWhatTheTableThatForgetsMostRemembers() throws {
    let hub = try Self.hub()
    #expect(hub.table.gauges.horizon == Self.start.milliseconds)
    let boot = LeaseHub.bootNanoseconds()
    // A minute after the start: the table is as old as the process, whenever Redis is asked first.
    hub.heard(
      WallTime(milliseconds: Self.start.milliseconds + 90_000), at: boot + 60_000_000_000)
    let begun = hub.table.gauges.horizon
    #expect(abs(begun - Self.start.milliseconds - 30_000) < 5_000)
    hub.heard(WallTime(milliseconds: Self.start.milliseconds + 180_000), at: boot)
    let reach = hub.reach(since: hub.table.gauges.horizon)
    #expect((150_000..<160_000).contains(reach))
    #expect(hub.reach(since: 0) == 86_400_000)
    #expect(hub.reach(since: .max) == 0)
  }

  /// A journal may be read, and asked for what it remembers, long before Redis answers.
  @Test func beforeRedisSaidWhatTimeItIsThisMachineDoes() throws {
    let hub = try Self.hub()
    #expect(abs(hub.wall(at: LeaseHub.bootNanoseconds()) - Self.start.milliseconds) < 5_000)
    let boot = LeaseHub.bootNanoseconds()
    hub.heard(WallTime(milliseconds: 5_000_000), at: boot)
    #expect(abs(hub.wall(at: boot) - 5_000_000) <= 1)
  }

  /// Everybody is told of a change before each loop has it: what a loop has registered meanwhile was
  /// decided by the version before.
  @Test func whatWasDecidedByAnOlderConfigurationIsNotLeasedByTheNewOne() async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let hub = try Self.hub()
    hub.heard(Self.start, at: LeaseHub.bootNanoseconds())
    let configuration = try Self.configuration()
    let seen = try await group.next().submit {
      var seen: [String] = []
      let enforcer = Self.enforcer(hub, configuration, group.next())
      func config(_ version: Int64) throws -> GlobalConfig {
        GlobalConfig(
          version: version, catalogVersion: version,
          catalog: try AdminFixture.catalog(AdminFixture.catalogYAML), bypasses: [])
      }
      enforcer.globalChanged(try config(1))
      // All have heard of version 2, this loop has not.
      hub.table.configChanged(now: LeaseHub.now)
      seen += ["\(Self.register(hub))", "\(Self.spend(hub, 1))"]
      enforcer.globalChanged(try config(2))
      seen += ["\(Self.spend(hub, 2))"]
      // What is known already changes nothing.
      seen += ["\(Self.register(hub))"]
      enforcer.globalChanged(try config(2))
      seen += ["\(Self.spend(hub, 3))"]
      return seen
    }.get()
    #expect(
      seen.map { $0.replacing("TollgateEngine.LeaseMiss", with: "") } == [
        "ready", "allowed(bytes: 48)", "miss(.outdated)", "ready", "allowed(bytes: 48)",
      ])
    try await group.shutdownGracefully()
  }
}
