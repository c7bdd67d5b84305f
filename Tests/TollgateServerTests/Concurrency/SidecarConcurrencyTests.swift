// What is shared between threads, under many of them at once; CI runs these suites under the
// thread sanitizer. One test is a whole sidecar with two event loops, its ledger in the same
// process, and a real Redis.

import Logging
import NIOConcurrencyHelpers
import NIOCore
import Testing
import TollgateCore
import TollgateEngine
import TollgateLedger
import TollgateRedis
import TollgateTesting

@testable import TollgateServer

/// Counts from many tasks.
private final class Tally: Sendable {
  private let counts: NIOLockedValueBox<[String: Int]> = NIOLockedValueBox([:])

  func add(_ key: String) { counts.withLockedValue { $0[key, default: 0] += 1 } }
  var all: [String: Int] { counts.withLockedValue { $0 } }
}

@Suite("Concurrency of the sidecar", .serialized, .blocking)
struct SidecarConcurrencyTests {
  /// 16 tasks over two event loops on one subject with a limit of 500: exactly 500, with the
  /// configuration, status and metrics read at the same time; then the books agree.
  @Test func twoEventLoopsAdmitExactlyTheLimit() async throws {
    let redis = try RedisServerProcess()
    let directory = try TemporaryDirectory()
    let socket = directory.path + "/ledger.sock"
    let stopLedger = LedgerStop()
    let (opened, isOpen) = AsyncStream.makeStream(of: Void.self)
    let ledger = Task {
      try await runLedger(
        configuration: LedgerConfiguration(
          database: directory.path + "/books.sqlite", unix: socket, token: "t"),
        logger: quiet, stop: stopLedger
      ) { _ in isOpen.yield() }
    }
    for await _ in opened { break }

    var configuration = ServerConfiguration(
      deployment: Deployment(id: try Name("together"), buckets: 2, mode: .dev),
      sidecarID: "both", redis: RedisLinkConfiguration(endpoint: .unix(path: redis.socketPath)))
    configuration.eventLoops = 2
    configuration.ledger = .unix(path: socket)
    configuration.ledgerToken = "t"
    configuration.listenUnix = directory.path + "/sidecar.sock"
    // A sanitizer slows everything down; here only the counting matters.
    configuration.limits.redisSlowMilliseconds = 20_000
    let sidecar = try await Sidecar(configuration: configuration, logger: quiet) { _ in
      { _, _, _ in .failure(AdminError(code: .notFound, message: "none here")) }
    }
    let (stops, stop) = AsyncStream.makeStream(of: Void.self)
    let running = Task { try await sidecar.run(until: { for await _ in stops { break } }) }

    // A disk that is busy with something else lets the ledger open its buckets late.
    try await eventually(within: .seconds(120), "its buckets and the control bucket are open") {
      await sidecar.healer.openBuckets == 3
    }
    let backend = LiveBackend(sidecar: sidecar)
    let global = try Self.config(limit: 500)
    _ = try await backend.writeGlobal(
      global, before: nil, expecting: 0,
      change: ChangeRecord(
        operation: OperationID(high: 1, low: 1), fingerprint: 1, action: "catalog.apply",
        actor: "test", reason: "test"))
    try await backend.publishGlobal(version: 1)

    let tally = Tally()
    let item = Item(feature: try Name("calls"), amount: 1)
    let subject = try Subject("acme")
    await withTaskGroup(of: Void.self) { group in
      for task in 0..<16 {
        group.addTask {
          for number in 0..<50 {
            let outcome = await Self.consume(
              sidecar, loop: (task + number) % 2, subject: subject, item: item)
            switch outcome {
            case .decision(let decision) where decision.isAllowed:
              tally.add("allowed")
            case .decision: tally.add("denied")
            case .error(let code, let text): Issue.record("\(code.name): \(text)")
            }
          }
        }
      }
      group.addTask {
        for _ in 0..<50 {
          _ = await backend.health()
          _ = sidecar.metrics.exposition()
          await Task.yield()
        }
      }
    }
    #expect(tally.all == ["allowed": 500, "denied": 300])
    #expect(
      try await backend.waitForLedger(
        bucket: sidecar.buckets.bucket(ofAccount: "acme"), position: nil, milliseconds: 20_000))
    let books = try await backend.ledgerBilling(account: subject)
    #expect(books.totals.map(\.settled) == [500])

    stop.yield()
    try await running.value
    stopLedger.stop()
    try await ledger.value
    try redis.stop()
  }

  @Test func theFallbackQueueLosesAndRepeatsNothing() async throws {
    let queue = FallbackQueue(limits: .init(), journal: nil)
    let posted = Tally()
    let subject = try Subject("acme")
    let item = Item(feature: try Name("calls"), amount: 1)
    await withTaskGroup(of: Void.self) { group in
      for task in 0..<4 {
        group.addTask {
          for number in 0..<500 {
            let operation = FallbackOperation(
              id: OperationID(high: UInt64(task), low: UInt64(number)), subject: subject,
              items: [item])
            #expect(queue.admit(operation, claims: []) == .kept)
          }
        }
        group.addTask {
          for _ in 0..<400 {
            for errand in queue.take(7) {
              posted.add(errand.operation.id.hex)
              #expect(
                queue.resolve(errand, .done, at: WallTime(milliseconds: 0)) == .settled)
            }
            await Task.yield()
          }
        }
      }
    }
    for errand in queue.take(10_000) {
      posted.add(errand.operation.id.hex)
      #expect(queue.resolve(errand, .done, at: WallTime(milliseconds: 0)) == .settled)
    }
    #expect(queue.count == 0)
    let counts = posted.all
    #expect(counts.count == 2000)
    #expect(counts.values.allSatisfy { $0 == 1 })
  }

  private var quiet: Logger {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return logger
  }

  private static func config(limit: Int64) throws -> GlobalConfig {
    let feature = try Name("calls")
    let plan = try Name("only")
    return GlobalConfig(
      version: 1, catalogVersion: 1,
      catalog: Catalog(
        levels: [try Name("account")], unknownAccount: .plan(plan),
        features: [
          feature: Feature(name: feature, metered: true, importance: .money, unit: "call")
        ],
        plans: [
          plan: Plan(
            name: plan,
            entitlements: [
              feature: [
                Limit(
                  id: try Name("calls.month"), kind: .quota(amount: limit, window: .month),
                  level: 1, enforcement: .hard, failurePolicy: .closed)
              ]
            ])
        ]),
      bypasses: [])
  }

  private static func consume(
    _ sidecar: Sidecar, loop: Int, subject: Subject, item: Item
  ) async -> Outcome {
    await withCheckedContinuation { continuation in
      sidecar.loops[loop].onLoop { enforcer in
        var random = SystemRandomNumberGenerator()
        let now = NIODeadline.now()
        enforcer.submit(
          Request(
            mode: .consume,
            id: OperationID(time: SystemClock.wallTime(), using: &random), subject: subject,
            items: [item], bucket: sidecar.buckets.bucket(ofAccount: subject.path), arrived: now,
            deadline: now + .seconds(20)
          ) { continuation.resume(returning: $0) })
      }
    }
  }
}
