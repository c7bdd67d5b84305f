// The table of DESIGN 7: every answer to a batch, one test per cell.

import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct ContractTests {
  let books: Books

  init() throws {
    books = try Books()
    try books.open()
  }

  @Test func batchAtTheCursorIsPosted() throws {
    let outcome = try books.apply([try usage(1, op: 1, amount: 5), try usage(2, op: 2, amount: 7)])
    #expect(outcome == BatchOutcome(answer: .acknowledged(cursor: 2), posted: 2))
    #expect(try books.total() == 12)
  }

  @Test func emptyBatchAnswersTheCursor() throws {
    _ = try books.apply([try usage(1, op: 1)])
    #expect(try books.apply([], after: 1).answer == .acknowledged(cursor: 1))
    #expect(try books.apply([], after: 0).answer == .acknowledged(cursor: 1))
  }

  @Test func previousAboveTheCursorIsAGap() throws {
    _ = try books.apply([try usage(1, op: 1)])
    let outcome = try books.apply([try usage(3, op: 3)])
    #expect(outcome == BatchOutcome(answer: .gap(cursor: 1)))
    #expect(try books.count() == 1)
  }

  @Test func gapInAStreamNeverBegun() throws {
    #expect(try books.apply([try usage(9, op: 9)]).answer == .gap(cursor: 0))
  }

  @Test func repeatedBatchIsSkipped() throws {
    let batch = [try usage(1, op: 1, amount: 5), try usage(2, op: 2, amount: 7)]
    _ = try books.apply(batch)
    let again = try books.apply(batch)
    #expect(again == BatchOutcome(answer: .acknowledged(cursor: 2), skipped: 2))
    #expect(try books.total() == 12)
  }

  @Test func batchAcrossTheCursorPostsOnlyTheRest() throws {
    let all = try (1...5).map { try usage(Int64($0), op: $0, amount: Int64($0)) }
    _ = try books.apply(Array(all[..<3]))
    let outcome = try books.apply(Array(all[1...]))
    #expect(outcome == BatchOutcome(answer: .acknowledged(cursor: 5), posted: 2, skipped: 2))
    #expect(try books.total() == 15)
  }

  @Test func repeatOfAnOldPrefixDoesNotMoveTheCursorBack() throws {
    let all = try (1...5).map { try usage(Int64($0), op: $0) }
    _ = try books.apply(all)
    #expect(try books.apply(Array(all[..<2])).answer == .acknowledged(cursor: 5))
  }

  @Test func unknownIdBelowTheCursorIsAFork() throws {
    _ = try books.apply([try usage(1, op: 1), try usage(2, op: 2)])
    let outcome = try books.apply([try usage(2, op: 99), try usage(3, op: 3)])
    #expect(outcome == BatchOutcome(answer: .forked(cursor: 2, sequence: 2)))
    #expect(try books.count() == 2)
  }

  @Test func forkWritesNothingOfItsBatch() throws {
    _ = try books.apply([try usage(1, op: 1), try usage(2, op: 2)])
    _ = try books.apply([try usage(1, op: 1), try usage(2, op: 99), try usage(3, op: 3)])
    #expect(try books.store.cursor(bucket: 0, epoch: 1) == 2)
    #expect(try books.apply([try usage(3, op: 3)]).posted == 1)
  }

  @Test func sameOperationAtAnotherIndexIsAnotherDelta() throws {
    let outcome = try books.apply([
      try usage(1, op: 1, index: 0, amount: 5), try usage(2, op: 1, index: 1, amount: 7),
    ])
    #expect(outcome.posted == 2)
    #expect(try books.total() == 12)
  }

  @Test func knownIdAtANewPositionIsADuplicate() throws {
    _ = try books.apply([try usage(1, op: 1, amount: 5)])
    let outcome = try books.apply([try usage(2, op: 1, amount: 5), try usage(3, op: 3, amount: 1)])
    #expect(
      outcome
        == BatchOutcome(
          answer: .acknowledged(cursor: 3),
          duplicates: [DeltaID(operation: operation(1), index: 0)], posted: 1, skipped: 1))
    #expect(try books.total() == 6)
  }

  @Test func anIdOfAnotherBucketIsAnotherOperation() throws {
    // Operation records are kept by bucket, so both were admitted: both are billed.
    _ = try books.apply([try usage(1, op: 1, amount: 5)])
    try books.open(1)
    let other = try books.apply([try usage(1, op: 1, amount: 7, subject: "globex")], bucket: 1)
    #expect(other == BatchOutcome(answer: .acknowledged(cursor: 1), posted: 1))
    #expect(try books.total() == 5)
    #expect(try books.total("globex") == 7)
    let id = DeltaID(operation: operation(1), index: 0)
    #expect(try books.store.known([id], bucket: 1).posted == [id])
    #expect(try books.store.known([id], bucket: 2).posted == [])
    #expect(try books.store.verify().findings == [])
  }

  @Test func duplicateIsNamedAgainWhenItsAnswerWasLost() throws {
    _ = try books.apply([try usage(1, op: 1)])
    let batch = [try usage(2, op: 1), try usage(3, op: 3)]
    let first = try books.apply(batch)
    let again = try books.apply(batch)
    #expect(again.answer == .acknowledged(cursor: 3))
    #expect(again.duplicates == first.duplicates)
    #expect(try books.count() == 2)
  }

  @Test func duplicateInsideOneBatchIsPostedOnce() throws {
    let outcome = try books.apply([try usage(1, op: 1, amount: 5), try usage(2, op: 1, amount: 5)])
    #expect(outcome.posted == 1)
    #expect(outcome.duplicates.count == 1)
    #expect(try books.total() == 5)
  }

  @Test func knownIdUnderAnotherRecordedPositionIsAFork() throws {
    // Sequence 1 was read as operation 1; a stream that now holds operation 2 there is another.
    _ = try books.apply([try usage(1, op: 1), try usage(2, op: 2)])
    #expect(try books.apply([try usage(1, op: 2)]).answer == .forked(cursor: 2, sequence: 1))
  }

  @Test func oldEpochIsAcceptedUpToItsFence() throws {
    _ = try books.apply([try usage(1, op: 1)])
    try books.open(epoch: 1, entries: [try usage(2, op: 2)], seen: 2)
    let outcome = try books.apply([try usage(1, op: 1), try usage(2, op: 2)], epoch: 1)
    #expect(outcome == BatchOutcome(answer: .acknowledged(cursor: 2), skipped: 2))
  }

  @Test func oldEpochBehindItsFenceIsFenced() throws {
    try books.open(epoch: 1)
    let outcome = try books.apply([try usage(1, op: 1)], epoch: 1)
    #expect(outcome == BatchOutcome(answer: .fenced(epoch: 2, lastSequence: 0)))
    #expect(try books.count() == 0)
  }

  @Test func oldBatchAcrossItsFenceIsCutThere() throws {
    _ = try books.apply([try usage(1, op: 1)])
    try books.open(epoch: 1)
    let outcome = try books.apply([try usage(1, op: 1), try usage(2, op: 2)], epoch: 1)
    #expect(outcome.answer == .fenced(epoch: 2, lastSequence: 1))
    #expect(outcome.skipped == 1)
    #expect(try books.count() == 1)
  }

  @Test func unknownIdInAClosedEpochIsAFork() throws {
    try books.open(epoch: 1, seen: 3)
    let outcome = try books.apply([try usage(1, op: 1)], epoch: 1)
    #expect(outcome.answer == .forked(cursor: 3, sequence: 1))
  }

  @Test func deltaThatCameInByAnotherWayIsSkippedInItsOldEpoch() throws {
    // Lost in epoch 1, posted again in epoch 2; then the old outbox comes back after all.
    try books.open(epoch: 1, seen: 1)
    _ = try books.apply([try usage(1, op: 1)], epoch: 2)
    let outcome = try books.apply([try usage(1, op: 1)], epoch: 1)
    #expect(outcome == BatchOutcome(answer: .acknowledged(cursor: 1), skipped: 1))
    #expect(try books.count() == 1)
  }

  @Test func epochNeverIssuedIsFenced() throws {
    #expect(
      try books.apply([try usage(1, op: 1)], epoch: 7).answer
        == .fenced(epoch: 1, lastSequence: 0))
  }

  @Test func bucketNeverOpenedIsFenced() throws {
    #expect(
      try books.apply([try usage(1, op: 1)], bucket: 3).answer
        == .fenced(epoch: 0, lastSequence: 0))
  }

  @Test func streamsOfBucketsAreApart() throws {
    try books.open(1)
    _ = try books.apply([try usage(1, op: 1)], bucket: 0)
    #expect(try books.apply([try usage(1, op: 2)], bucket: 1).posted == 1)
    #expect(try books.apply([try usage(3, op: 3)], bucket: 1).answer == .gap(cursor: 1))
  }

  @Test func nonsenseIsRefused() throws {
    #expect(try books.apply([], bucket: 5, after: 0).answer == .refused("bucket 5 of 5"))
    let jump = try books.apply([try usage(1, op: 1), try usage(3, op: 3)])
    #expect(jump.answer == .refused("entry 1 has sequence 3, not 2"))
    let negative = try books.apply([try usage(1, op: 1)], after: -1)
    #expect(negative.answer == .refused("previous sequence -1"))
    #expect(try books.apply([], epoch: 0, after: 0).answer == .refused("epoch 0"))
    #expect(try books.count() == 0)
  }
}
