// The fast paths of several local loops on one table, as a sidecar has them, while its keeper settles
// and somebody looks on with `tollgate tail`.

import NIOCore
import Synchronization
import Testing
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateTesting
import TollgateWire

@testable import TollgateServer

@Suite(.blocking) struct LeaseFastPathConcurrencyTests {
  private static let accounts = ["acme", "beta", "gama"]
  private static let start = WallTime(milliseconds: 1_700_000_000_000)

  private final class Shared: Sendable {
    let hub: LeaseHub
    let metrics = Metrics()
    let running = Atomic<Int>(0)
    let answered = Atomic<Int64>(0)
    let left = Atomic<Int64>(0)
    let settled = Atomic<Int64>(0)
    let minted = Atomic<UInt64>(0)

    init() throws {
      let configuration = ServerConfiguration(
        deployment: Deployment(id: try Name("paths"), buckets: 2, mode: .dev), sidecarID: "paths",
        redis: RedisLinkConfiguration(endpoint: .unix(path: "/none")))
      hub = try LeaseHub(configuration, buckets: BucketMap(buckets: 2), startedAt: start)
      hub.heard(start, at: LeaseHub.bootNanoseconds())
    }

    var wall: WallTime {
      WallTime(milliseconds: hub.wall(at: LeaseHub.bootNanoseconds()))
    }
  }

  @Test func whatThePathsOfManyLoopsLetThroughIsSettledOnce() async throws {
    let shared = try Shared()
    for account in Self.accounts { try Self.register(account, shared.hub) }
    var left: [[UInt8]: Int64] = [:]
    Self.settle(shared, &left, loses: false)
    let held = left
    await withTaskGroup(of: Void.self) { group in
      for loop in 0..<3 {
        shared.running.add(1, ordering: .sequentiallyConsistent)
        group.addTask {
          do { try await Self.ask(shared, loop) } catch { Issue.record(error) }
          shared.running.subtract(1, ordering: .sequentiallyConsistent)
        }
      }
      group.addTask {
        var passes = 0
        var left = held
        while shared.running.load(ordering: .sequentiallyConsistent) > 0 {
          passes += 1
          Self.settle(shared, &left, loses: passes % 7 == 0)
          await Task.yield()
        }
        while shared.hub.table.gauges.unsettledOperations > 0 {
          Self.settle(shared, &left, loses: false)
          await Task.yield()
        }
      }
      group.addTask {
        while shared.running.load(ordering: .sequentiallyConsistent) > 0 {
          shared.hub.watched(true)
          await Task.yield()
          shared.hub.watched(false)
          _ = shared.metrics.exposition()
          shared.hub.heard(shared.wall, at: LeaseHub.bootNanoseconds())
          try? await Task.sleep(for: .milliseconds(2))
        }
      }
    }
    let answered = shared.answered.load(ordering: .sequentiallyConsistent)
    let refused = shared.left.load(ordering: .sequentiallyConsistent)
    print("\(answered) answered, \(refused) frames left to conversations")
    #expect(answered > 1_000)
    #expect(shared.settled.load(ordering: .sequentiallyConsistent) == answered)
  }

  /// Frames of one record and of four, of accounts that all loops ask for.
  private static func ask(_ shared: Shared, _ loop: Int) async throws {
    let path = LeaseFastPath(shared.hub, metrics: shared.metrics)
    let out = OutBytes(capacity: 4096)
    let item = Item(feature: try Name("calls"), amount: 1)
    for round in 0..<1_500 {
      let records = try (0..<(round % 2 == 0 ? 1 : 4)).map { number in
        let low = shared.minted.add(1, ordering: .relaxed).newValue
        return OperationRecord(
          id: OperationID(high: UInt64(shared.wall.milliseconds) << 16, low: low),
          subject: try Subject(accounts[(loop + round + number) % accounts.count]), items: [item])
      }
      let isAnswered = answers(records, path, out)
      if round % 8 == 0 { path.turnEnded() }
      if isAnswered {
        shared.answered.add(Int64(records.count), ordering: .relaxed)
      } else {
        // A conversation would ask again, record by record, under the same ids.
        shared.left.add(1, ordering: .relaxed)
        for record in records {
          try await eventually(within: .seconds(60), "nobody looks on any more") { () async in
            answers([record], path, out)
          }
          shared.answered.add(1, ordering: .relaxed)
        }
      }
      if round % 20 == 0 { await Task.yield() }
    }
    path.turnEnded()
  }

  private static func answers(
    _ records: [OperationRecord], _ path: LeaseFastPath, _ out: OutBytes
  ) -> Bool {
    var buffer = ByteBuffer()
    OperationBatch(records).encode(into: &buffer)
    out.clear()
    return unsafe buffer.withUnsafeReadableBytes {
      unsafe path.answer(
        FastFrame(
          opcode: .consume, correlation: 1, deadlineMilliseconds: 0, features: [],
          now: LeaseHub.bootNanoseconds(), payload: $0), into: out)
    }
  }

  private static func register(_ account: String, _ hub: LeaseHub) throws {
    let record = OperationRecord(
      id: OperationID(high: 1, low: 1), subject: try Subject(account),
      items: [Item(feature: try Name("calls"), amount: 1)])
    let key = try #require(record.shape)
    let now = LeaseHub.bootNanoseconds()
    _ = hub.table.register(
      LeaseRegistration(
        bucket: hub.buckets.bucket(ofAccount: account), account: Array(account.utf8), key: key,
        globalVersion: 1, accountVersion: 1, confirmedAt: now, now: now, validUntil: .max,
        isStaleAllowed: true, items: [.init(portions: [0], shown: 0, amount: 1 << 40)],
        portions: [LeasePortionKey(.cell, name: Array(account.utf8), limits: [1])],
        demand: 1 << 20,
        template: LeaseTemplate(bytes: Array(repeating: 0, count: 64), patches: []),
        definition: Array(account.utf8)))
  }

  /// A Redis that gives what it is asked for. What is lost never came there, and is sent again.
  private static func settle(_ shared: Shared, _ left: inout [[UInt8]: Int64], loses: Bool) {
    let table = shared.hub.table
    let now = MonotonicTime(nanoseconds: LeaseHub.bootNanoseconds())
    for bucket in 0..<2 {
      while let exchange = table.collect(
        bucket: bucket, now: now,
        id: OperationID(high: 7, low: shared.minted.add(1, ordering: .relaxed).newValue))
      {
        if loses {
          table.lost(exchange.token)
          break
        }
        for delta in exchange.deltas { shared.settled.add(delta.amount, ordering: .relaxed) }
        table.replied(
          exchange.token,
          exchange.accounts.map { account in
            .held(
              account.portions.map { portion in
                let stays = left[account.name, default: 0] - portion.settle
                let holds = portion.target < 0 ? stays : portion.target
                left[account.name] = holds
                return .init(left: holds, settled: 0, held: holds)
              }, isProlonged: true)
          }, now: now)
      }
    }
  }
}
