// Everything that may happen to a lease table, from many threads at once: spends and what foresees
// them, cancels, new configurations, new epochs of a bucket, lost answers, recalls, and whoever reads
// the gauges. What clients were told is held against the ledger of the model.

import Foundation
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct LeaseChangeConcurrencyTests {
  /// A model that one thread at a time looks at.
  private final class Guarded: Sendable {
    private let lock = NSLock()
    // Safe: only touched with `lock` held.
    private nonisolated(unsafe) let redis = ModelRedis()

    func with<T>(_ body: (ModelRedis) -> T) -> T {
      lock.lock()
      defer { lock.unlock() }
      return unsafe body(redis)
    }
  }

  private static let buckets = 4
  private static let workers = 2
  private static let rounds = 3_000

  /// What all tasks share.
  private final class Field: Sendable {
    let memory = LeaseMemory(LeaseScene.geometry(stripes: 2, slots: 1 << 15))
    let table: LeaseTable
    let stores = (0..<buckets).map { _ in Guarded() }
    /// By bucket: let through less taken back, as the callers were told.
    let used = (0..<buckets).map { _ in Atomic64() }
    let running = Atomic64()
    let clock = Atomic64()
    let counts = (0..<Count.allCases.count).map { _ in Atomic64() }

    enum Count: Int, CaseIterable { case allowed, cancelled, changes, epochs, lost, strange }

    init() {
      table = LeaseTable(
        LeaseConfiguration(), region: memory.region(lessee: 1), buckets: buckets, begun: 0)
      table.begin(at: 0, now: 0)
      clock.add(10_000_000_000)
      table.subscribed(since: MonotonicTime(nanoseconds: clock.value))
      for (bucket, store) in stores.enumerated() {
        store.with { $0.amounts["c\(bucket)"] = 5_000 }
      }
    }

    func count(_ what: Count) { counts[what.rawValue].add(1) }
    func counted(_ what: Count) -> Int64 { counts[what.rawValue].value }

    func scene(_ bucket: Int, minted: UInt64) -> LeaseScene {
      LeaseScene(on: table, memory, bucket: bucket, minted: minted, now: clock.value)
    }
  }

  @Test func spendsCancelsChangesAndEpochsAtOnceKeepTheBooks() async {
    let field = Field()
    await withTaskGroup(of: Void.self) { group in
      for bucket in 0..<Self.buckets {
        field.running.add(Int64(Self.workers))
        for worker in 0..<Self.workers {
          group.addTask {
            await Self.ask(field, bucket, worker)
            field.running.add(-1)
          }
        }
        group.addTask { await Self.exchange(field, bucket) }
      }
      group.addTask {
        var seen: Int64 = 0
        while field.running.value > 0 {
          seen &+= field.table.gauges.unsettledUnits
          seen &+= Int64(field.table.waiting(bucket: Int(seen.magnitude % 4)))
          await Task.yield()
        }
      }
    }
    let gauges = withExtendedLifetime(field) { field.table.gauges }
    #expect(gauges.unsettledOperations == 0 && gauges.creditUnits == 0, "\(gauges)")
    for bucket in 0..<Self.buckets {
      let (ledger, violations) = field.stores[bucket].with {
        ($0.ledger["c\(bucket)"] ?? 0, $0.violations)
      }
      #expect(ledger == field.used[bucket].value)
      #expect(violations.isEmpty)
    }
    print(Field.Count.allCases.map { "\($0) \(field.counted($0))" }.joined(separator: ", "))
    #expect(field.counted(.strange) == 0)
    for what in [Field.Count.allowed, .cancelled, .changes, .epochs, .lost] {
      #expect(field.counted(what) > 4, "\(what)")
    }
  }

  private static func ask(_ field: Field, _ bucket: Int, _ worker: Int) async {
    let scene = field.scene(bucket, minted: UInt64(worker + 1) << 40)
    let shape = Shape.simple("c\(bucket)")
    var mine: [OperationID] = []
    for round in 0..<rounds {
      scene.now = field.clock.add(100_000)
      if round % 50 == 0 {
        scene.version = field.stores[bucket].with { $0.version }
        scene.register(shape, demand: 20)
      }
      let id = scene.mint()
      if scene.spend(shape, 1, id: id).isAllowed {
        field.count(.allowed)
        field.used[bucket].add(1)
        mine.append(id)
      } else {
        // A lease is on its way.
        await Task.yield()
      }
      if round % 5 == 4, mine.count > 8 {
        // Some that are settled, and some that are not.
        let id = mine.remove(at: round % 2 == 0 ? 0 : mine.count - 1)
        switch scene.cancel(shape, 1, id: id) {
        case .cancelled:
          field.count(.cancelled)
          field.used[bucket].add(-1)
        case .unregistered, .full: mine.append(id)
        case let other:
          print("cancel of an operation of its own: \(other)")
          field.count(.strange)
        }
      }
      if round % 499 == 498 {
        field.table.recall(bucket: bucket, account: Array("c\(bucket)".utf8), now: scene.monotonic)
      }
      if round % 50 == 0 { await Task.yield() }
    }
  }

  private static func exchange(_ field: Field, _ bucket: Int) async {
    let scene = field.scene(bucket, minted: 9 << 40)
    let account = "c\(bucket)"
    var (passes, sent) = (0, 0)
    func pass(isQuiet: Bool) {
      passes += 1
      scene.now = field.clock.add(isQuiet ? 2_000_000 : 200_000)
      field.table.heard(at: scene.monotonic)
      if !isQuiet, passes % 101 == 100 { change() }
      if !isQuiet, passes % 499 == 498 {
        field.count(.epochs)
        field.stores[bucket].with { $0.lose() }
        field.table.epochChanged(bucket: bucket)
      }
      while let exchange = scene.collect() {
        let (replies, version) = field.stores[bucket].with { redis in
          redis.now = scene.wall
          return (redis.exchange(exchange), redis.version)
        }
        sent += 1
        if !isQuiet, sent % 3 == 2 {
          field.count(.lost)
          field.table.lost(exchange.token)
          break
        }
        field.table.replied(exchange.token, replies, now: scene.monotonic)
        if replies.contains(.stale) {
          field.table.versions(
            bucket: bucket, account: Array(account.utf8), globalVersion: version, accountVersion: 1)
        }
      }
    }
    func change() {
      field.count(.changes)
      field.stores[bucket].with { redis in
        redis.version += 1
        redis.amounts[account] = passes % 2 == 0 ? 5_000 : 4_000
        if (redis.settled[account] ?? 0) + redis.held(account) > redis.amounts[account] ?? 0 {
          redis.excused.insert(account)
        }
      }
      field.table.configChanged(now: scene.monotonic)
    }
    while field.running.value > 0 {
      pass(isQuiet: false)
      await Task.yield()
    }
    for _ in 0..<60 { pass(isQuiet: true) }
    var more = 0
    while field.table.gauges.creditUnits > 0, more < 10_000 {
      more += 1
      pass(isQuiet: true)
      await Task.yield()
    }
  }
}
