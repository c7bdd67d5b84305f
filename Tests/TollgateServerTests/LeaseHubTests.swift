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

  /// A journal may be read, and asked for what it remembers, long before Redis answers.
  @Test func beforeRedisSaidWhatTimeItIsThisMachineDoes() throws {
    let hub = try Self.hub()
    #expect(abs(hub.wall(at: LeaseHub.bootNanoseconds()) - Self.start.milliseconds) < 5_000)
    let boot = LeaseHub.bootNanoseconds()
    hub.heard(WallTime(milliseconds: 5_000_000), at: boot)
    #expect(abs(hub.wall(at: boot) - 5_000_000) <= 1)
  }

  @Test func withoutAJournalThePastIsUnknown() throws {
    let hub = try Self.hub()
    #expect(hub.isOfUnknownPast(OperationID(high: UInt64(1_699_999_999_000) << 16, low: 1)))
    #expect(!hub.isOfUnknownPast(OperationID(high: UInt64(1_700_000_000_001) << 16, low: 1)))
  }

  /// Everybody is told of a change before each loop has it: what a loop has registered meanwhile was
  /// decided by the version before.
  @Test func whatWasDecidedByAnOlderConfigurationIsNotLeasedByTheNewOne() async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let hub = try Self.hub()
    let configuration = try Self.configuration()
    let seen = try await group.next().submit {
      var seen: [String] = []
      var logger = Logger(label: "hub")
      logger.logLevel = .critical
      let buckets = BucketMap(buckets: 1)
      let enforcer = Enforcer(
        eventLoop: group.next(), configuration: configuration,
        keys: KeySpace(deployment: configuration.deployment.id, map: buckets), metrics: Metrics(),
        fallback: FallbackQueue(limits: .init(), journal: nil), seen: SeenBoard(buckets: buckets),
        logger: logger, wallClock: { Self.start })
      enforcer.leases = LeaseKeeper(hub, enforcer: enforcer, own: [])
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
