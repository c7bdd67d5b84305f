// Threads that spend, exchange and recall at once. Run under the thread sanitizer, too.

import Foundation
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct LeaseConcurrencyTests {
  /// A Redis behind a lock of its own, with as little in it as the audit needs.
  private final class Store: Sendable {
    struct State {
      var left: [String: Int64] = [:]
      var settled: [String: Int64] = [:]
      var amount: Int64 = 0
      var batches: Set<OperationID> = []
    }

    private let lock = NSLock()
    // Safe: only touched with `lock` held.
    private nonisolated(unsafe) var state = State()

    init(amount: Int64) { unsafe state.amount = amount }

    func with<T>(_ body: (inout State) -> T) -> T {
      lock.lock()
      defer { lock.unlock() }
      return unsafe body(&state)
    }

    func exchange(_ exchange: LeaseExchange) -> [LeaseReply] {
      with { state in
        let settles = exchange.deltas.isEmpty || state.batches.insert(exchange.id).inserted
        return exchange.accounts.map { account in
          .held(
            account.portions.map { portion in
              let cell = String(decoding: portion.key.name, as: UTF8.self)
              if settles { state.settled[cell, default: 0] += portion.settle }
              var left = state.left[cell] ?? 0
              if settles { left -= min(left, max(0, portion.settle)) }
              if portion.key.kind == .cell, portion.target >= 0 {
                let room = state.amount - (state.settled[cell] ?? 0) - left
                left = portion.target < left ? portion.target : min(portion.target, left + room)
              }
              state.left[cell] = left
              return .init(left: left, settled: state.settled[cell] ?? 0, held: left)
            }, isProlonged: true)
        }
      }
    }
  }

  @Test func unitsAreNeitherLostNorMadeByThreads() async {
    let buckets = 4
    let memory = LeaseMemory(LeaseScene.geometry(stripes: 2, slots: 1024))
    let table = LeaseTable(
      LeaseConfiguration(), region: memory.region(lessee: 1), buckets: buckets, begun: 0)
    table.begin(at: 0, now: 0)
    let amount: Int64 = 3_000
    let stores = (0..<buckets).map { _ in Store(amount: amount) }
    let spent = (0..<buckets).map { _ in Atomic64() }
    let running = Atomic64()
    let clock = Atomic64()
    clock.add(10_000_000_000)

    await withTaskGroup(of: Void.self) { group in
      for bucket in 0..<buckets {
        running.add(2)
        for worker in 0..<2 {
          group.addTask {
            // Each thread has a scene of its own for its out buffer and ids, on the table of all.
            let hand = Hand(table, bucket: bucket, worker: worker)
            for round in 0..<4_000 {
              let now = clock.add(100_000)
              if round % 100 == 0 { hand.register(now: now) }
              if hand.spend(now: now) { spent[bucket].add(1) }
              if round % 997 == 996 {
                table.recall(
                  bucket: bucket, account: hand.account, now: MonotonicTime(nanoseconds: now))
              }
              if round % 50 == 0 { await Task.yield() }
            }
            running.add(-1)
          }
        }
        group.addTask {
          var minted: UInt64 = 0
          func pass() {
            minted += 1
            let now = MonotonicTime(nanoseconds: clock.add(1_000_000))
            table.heard(at: now)
            while let exchange = table.collect(
              bucket: bucket, now: now,
              id: OperationID(high: UInt64(bucket), low: clock.bits))
            {
              let replies = stores[bucket].exchange(exchange)
              // Now and then nobody hears of it.
              if minted % 5 == 0 {
                table.lost(exchange.token)
                break
              }
              table.replied(exchange.token, replies, now: now)
            }
          }
          while running.value > 0 {
            pass()
            await Task.yield()
          }
          for _ in 0..<40 {
            clock.add(20_000_000)
            pass()
          }
        }
      }
    }

    withExtendedLifetime(memory) {
      #expect(table.gauges.unsettledUnits == 0 && table.gauges.unsettledOperations == 0)
    }
    for bucket in 0..<buckets {
      let settled = stores[bucket].with { $0.settled["c\(bucket)"] ?? 0 }
      #expect(settled == spent[bucket].value)
      #expect(settled <= amount)
    }
    #expect(spent.reduce(0) { $0 + $1.value } > 100)
  }

  @Test func oneIdIsLetThroughOnceByManyThreads() async {
    let memory = LeaseMemory(LeaseScene.geometry(slots: 4096))
    let table = LeaseTable(
      LeaseConfiguration(), region: memory.region(lessee: 1), buckets: 1, begun: 0)
    table.begin(at: 0, now: 0)
    let store = Store(amount: 1 << 40)
    let first = Hand(table, bucket: 0, worker: 0)
    first.register(now: 10_000_000_000, demand: 1_000_000)
    let now = MonotonicTime(nanoseconds: 10_000_000_000)
    while let exchange = table.collect(bucket: 0, now: now, id: OperationID(high: 1, low: 1)) {
      table.replied(exchange.token, store.exchange(exchange), now: now)
    }
    let allowed = Atomic64()
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<4 {
        group.addTask {
          let hand = Hand(table, bucket: 0, worker: 0)
          for _ in 0..<1_000 where hand.spend(now: 10_000_000_000) { allowed.add(1) }
        }
      }
    }
    #expect(allowed.value == 1_000)
    withExtendedLifetime(memory) { #expect(table.gauges.unsettledUnits == 1_000) }
  }
}

/// One thread's way to the table.
@safe private final class Hand {
  let table: LeaseTable
  let bucket: Int
  let account: [UInt8]
  private var minted: UInt64
  private let out = UnsafeMutableRawBufferPointer.allocate(byteCount: 1024, alignment: 8)

  init(_ table: LeaseTable, bucket: Int, worker: Int) {
    self.table = table
    self.bucket = bucket
    account = Array("c\(bucket)".utf8)
    minted = UInt64(worker) << 32
  }

  deinit { unsafe out.deallocate() }

  func wall(_ now: Int64) -> Int64 { LeaseScene.wallStart + now / 1_000_000 }

  func register(now: Int64, demand: Int64 = 20) {
    _ = table.register(
      LeaseRegistration(
        bucket: bucket, account: account, key: account, globalVersion: 1, accountVersion: 1,
        confirmedAt: now, now: now, validUntil: .max, isStaleAllowed: true,
        items: [.init(portions: [0], shown: 0, amount: 3_000)],
        portions: [LeasePortionKey(.cell, name: account, limits: [])], demand: demand,
        template: LeaseScene.template, definition: account))
  }

  func spend(now: Int64) -> Bool {
    minted += 1
    let id = OperationID(high: UInt64(wall(now)) << 16, low: minted)
    let amounts: [Int64] = [1]
    return unsafe account.withUnsafeBytes { key in
      unsafe amounts.withUnsafeBufferPointer { amounts in
        unsafe table.spend(
          LeaseRequest(
            bucket: bucket, kind: .consume, id: id, key: key, hash: LeaseHash.of(key),
            amounts: amounts, now: now, wall: wall(now)), into: out
        ).isAllowed
      }
    }
  }
}
