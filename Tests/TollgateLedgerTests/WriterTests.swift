// Group commit: many batches share a transaction, each gets its own answer, one that fails fails
// alone, and what waits is bounded.

import Foundation
import Logging
import NIOConcurrencyHelpers
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct WriterTests {
  let books: Books
  let writer: LedgerWriter

  init() throws {
    books = try Books(buckets: 8)
    for bucket in 0..<8 { try books.open(bucket) }
    writer = LedgerWriter(store: books.store, logger: Logger(label: "test")) { start }
  }

  private func batch(_ bucket: UInt32, first: Int64, count: Int) throws -> DeltaBatch {
    DeltaBatch(
      bucket: bucket, epoch: 1, previous: first - 1,
      entries: try (0..<count).map {
        try usage(
          first + Int64($0), op: Int(bucket) * 1_000_000 + Int(first) + $0, amount: 1,
          subject: "a\(bucket)x\($0 % 50)/m")
      })
  }

  @Test func everyBatchGetsItsOwnAnswer() async throws {
    let good = try batch(0, first: 1, count: 3)
    let gap = try batch(1, first: 9, count: 3)
    let writer = writer
    async let one = writer.apply(good)
    async let two = writer.apply(gap)
    #expect(try await one.answer == .acknowledged(cursor: 3))
    #expect(try await two.answer == .gap(cursor: 0))
  }

  /// SQLite ends a transaction by itself where a page of it finds no room: nothing of it is there,
  /// and what comes when there is room again is posted as if it had not been.
  @Test func aFullDiskFailsWhatDoesNotFitAndNoMore() async throws {
    let fits = try batch(0, first: 1, count: 5)
    #expect(try await writer.apply(fits).answer == .acknowledged(cursor: 5))
    try books.leaveRoom(pages: 3)
    let tooMuch = try batch(0, first: 6, count: 2_000)
    for _ in 0..<2 {
      await #expect(throws: LedgerError.self) { try await writer.apply(tooMuch) }
      #expect(try books.count() == 5)
    }
    try books.leaveRoom(pages: 1_000_000)
    #expect(try await writer.apply(tooMuch).answer == .acknowledged(cursor: 2_005))
    #expect(try books.count() == 2_005)
    #expect(try books.store.verify().findings == [])
  }

  @Test func batchThatCannotBeWrittenFailsAlone() async throws {
    try books.tamper(
      """
      CREATE TRIGGER refuse BEFORE INSERT ON deltas WHEN new.bucket = 3
      BEGIN SELECT raise(ABORT, 'no'); END
      """)
    let writer = writer
    let batches = try (0..<8).map { try batch(UInt32($0), first: 1, count: 5) }
    let failed = await withTaskGroup(of: Int?.self) { group in
      for batch in batches {
        group.addTask { (try? await writer.apply(batch)) == nil ? Int(batch.bucket) : nil }
      }
      return await group.reduce(into: [Int]()) { if let bucket = $1 { $0.append(bucket) } }
    }
    #expect(failed == [3])
    #expect(try books.count() == 35)
    #expect(try books.store.verify().findings == [])
  }

  @Test func fullQueueAnswersOverloadedAndKeepsNothing() throws {
    let entries = try batch(0, first: 1, count: 4000)
    let overloaded = NIOLockedValueBox(0)
    let answered = NIOLockedValueBox(0)
    let done = DispatchSemaphore(value: 0)
    // The writer is held inside its first completion while the queue fills up behind it.
    let hold = DispatchSemaphore(value: 0)
    writer.submit(DeltaBatch(bucket: 0, epoch: 1, previous: 0, entries: [])) { _ in
      done.signal()
      hold.wait()
    }
    done.wait()
    let batches = LedgerWriter.waitingDeltasMax / 4000 + 5
    for _ in 0..<batches {
      writer.submit(entries) { result in
        answered.withLockedValue { $0 += 1 }
        if case .failure(.overloaded) = result { overloaded.withLockedValue { $0 += 1 } }
        done.signal()
      }
    }
    #expect(writer.waitingDeltas <= LedgerWriter.waitingDeltasMax)
    #expect(overloaded.withLockedValue { $0 } == 5)
    hold.signal()
    for _ in 0..<batches { done.wait() }
    #expect(answered.withLockedValue { $0 } == batches)
    #expect(try books.count() == 4000)
  }

  @Test func drainAnswersWhatWasAcceptedAndRefusesTheRest() async throws {
    let answered = NIOLockedValueBox(0)
    for bucket in 0..<8 {
      writer.submit(try batch(UInt32(bucket), first: 1, count: 100)) { result in
        if case .success = result { answered.withLockedValue { $0 += 1 } }
      }
    }
    await writer.drain()
    #expect(answered.withLockedValue { $0 } == 8)
    let late = try batch(0, first: 101, count: 1)
    await #expect(throws: LedgerError.draining) { try await writer.apply(late) }
  }

  @Test func smallBatchesOneAfterAnotherShareTransactions() async throws {
    let rounds = 20
    let batches = try (0..<8).map { bucket in
      try (0..<rounds).map { try batch(UInt32(bucket), first: Int64($0 + 1), count: 1) }
    }
    let writer = writer
    let took = try await ContinuousClock().measure {
      try await withThrowingTaskGroup(of: Void.self) { group in
        for stream in batches {
          group.addTask { for batch in stream { _ = try await writer.apply(batch) } }
        }
        try await group.waitForAll()
      }
    }
    #expect(try books.count() == 8 * rounds)
    let paces = Int(took / .nanoseconds(Int64(LedgerWriter.paceNanoseconds)))
    #expect(writer.figures.transactions <= paces + 2)
  }

  @Test func throughputSurvivesSynchronousCommits() async throws {
    let each = 250
    let rounds = 20
    let batches = try (0..<8).map { bucket in
      try (0..<rounds).map { try batch(UInt32(bucket), first: Int64($0 * each + 1), count: each) }
    }
    let writer = writer
    let clock = ContinuousClock()
    let took = try await clock.measure {
      try await withThrowingTaskGroup(of: Void.self) { group in
        for stream in batches {
          group.addTask { for batch in stream { _ = try await writer.apply(batch) } }
        }
        try await group.waitForAll()
      }
    }
    let count = Double(8 * rounds * each)
    let seconds = Double(took.components.attoseconds) / 1e18 + Double(took.components.seconds)
    print(
      "ledger: \(Int(count / seconds)) deltas/s over 8 links, \(writer.figures.transactions)",
      "transactions for \(8 * rounds) batches")
    #expect(try books.count() == Int64(count))
    #expect(writer.figures.transactions < 8 * rounds)
  }
}
