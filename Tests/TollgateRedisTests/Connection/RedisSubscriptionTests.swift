// The subscription against a real redis-server: what is published arrives, what freezes is noticed,
// and it comes back.

import Logging
import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import Testing
import TollgateRedis
import TollgateTesting

@Suite(.serialized, .blocking) struct RedisSubscriptionTests {
  private final class Told: Sendable {
    private let events = NIOLockedValueBox<[RedisSubscriptionEvent]>([])
    func add(_ event: RedisSubscriptionEvent) { events.withLockedValue { $0.append(event) } }
    var all: [RedisSubscriptionEvent] { events.withLockedValue { $0 } }
    var lives: Int { all.count { $0 == .live } }
    var losses: Int { all.count { if case .lost = $0 { true } else { false } } }
    var lastFresh: NIODeadline? {
      all.compactMap { if case .fresh(let at) = $0 { at } else { nil } }.last
    }
  }

  private let loop = MultiThreadedEventLoopGroup.singleton.next()
  private let logger = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })

  /// Waits without holding a thread.
  private func until(_ what: String, _ condition: () async throws -> Bool) async throws {
    try await eventually(within: .seconds(60), what) { () async throws -> Bool in
      try await condition()
    }
  }

  private func subscription(_ server: RedisServerProcess, _ told: Told) -> RedisSubscription {
    let subscription = RedisSubscription(
      RedisLinkConfiguration(endpoint: .unix(path: server.socketPath)), channels: ["a", "b"],
      beat: { .milliseconds(50) }, on: loop, seed: 1, logger: logger
    ) { told.add($0) }
    subscription.start()
    return subscription
  }

  private func publish(_ server: RedisServerProcess, _ text: String) async throws {
    let link = RedisLink(
      RedisLinkConfiguration(endpoint: .unix(path: server.socketPath)), on: loop, seed: 2,
      logger: logger)
    link.start()
    try await until("a link") { await link.currentIdentity() != nil }
    #expect(try await link.command(["PUBLISH", "b", .string(text)]) == .integer(1))
    await link.stop()
  }

  @Test func whatIsPublishedIsTold() async throws {
    let server = try RedisServerProcess()
    let told = Told()
    let subscription = subscription(server, told)
    try await until("live") { told.lives == 1 }
    try await publish(server, "x")
    try await until("the message") {
      told.all.contains(.message(channel: "b", payload: Array("x".utf8)))
    }
    let now = NIODeadline.now()
    try await until("freshness moves on") { (told.lastFresh ?? .now() - .hours(1)) > now }
    await subscription.stop()
    #expect(told.losses == 0)
  }

  @Test func aFrozenRedisIsNotFreshAndIsLeft() async throws {
    let server = try RedisServerProcess()
    let told = Told()
    let subscription = subscription(server, told)
    try await until("fresh") { told.lastFresh != nil }
    try server.pause()
    let frozen = NIODeadline.now()
    try await until("it is given up") { told.losses == 1 }
    #expect(try #require(told.lastFresh) < frozen)
    server.resume()
    try await until("it comes back") { told.lives == 2 }
    await subscription.stop()
  }
}
