// Closing an epoch: what was held is posted, what nobody holds is named, and the next epoch is
// above every one that anybody ever worked under.

import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct RecoveryStoreTests {
  let books: Books

  init() throws { books = try Books() }

  @Test func firstEpochIsOne() throws {
    #expect(try books.open() == RecoveryOutcome(epoch: 1, isNew: true))
    #expect(try books.store.positions()[0] == BucketPosition(bucket: 0, epoch: 1, cursor: 0))
  }

  @Test func controlBucketHasAStreamToo() throws {
    #expect(try books.open(4).epoch == 1)
  }

  @Test func presentedEntriesArePostedOnce() throws {
    try books.open()
    _ = try books.apply([try usage(1, op: 1, amount: 1)])
    let two = try usage(2, op: 2, amount: 2)
    let outcome = try books.open(
      epoch: 1,
      entries: [try usage(3, op: 3, amount: 4), two, two, try usage(1, op: 1, amount: 1)],
      seen: 3)
    #expect(outcome == RecoveryOutcome(epoch: 2, isNew: true, lastSequence: 3, posted: 2))
    #expect(try books.total() == 7)
    #expect(try books.store.verify().findings == [])
  }

  @Test func whatNobodyHoldsIsNamed() throws {
    try books.open()
    _ = try books.apply([try usage(1, op: 1)])
    let outcome = try books.open(epoch: 1, entries: [try usage(4, op: 4)], seen: 9)
    #expect(outcome.losses == [2...3, 5...9])
    #expect(
      Set(try books.store.losses().map { "\($0.id)-\($0.last)" }) == ["0/1/2-3", "0/1/5-9"])
    #expect(try books.store.status().lostSequences == 7)
    #expect(try books.store.verify().findings == [])
  }

  @Test func twoDeltasAtOneSequenceAreBothPosted() throws {
    try books.open()
    let outcome = try books.open(
      epoch: 1, entries: [try usage(1, op: 1, amount: 3), try usage(1, op: 2, amount: 4)], seen: 1)
    #expect(outcome.posted == 2)
    #expect(outcome.losses == [])
    #expect(try books.total() == 7)
    #expect(try books.store.verify().findings == [])
  }

  @Test func rewoundEntryBelowTheCursorIsPosted() throws {
    try books.open()
    _ = try books.apply([try usage(1, op: 1, amount: 1), try usage(2, op: 2, amount: 1)])
    let outcome = try books.open(epoch: 1, entries: [try usage(2, op: 9, amount: 5)], seen: 2)
    #expect(outcome.posted == 1)
    #expect(try books.total() == 7)
  }

  @Test func knownIdAtAPresentedPositionLeavesNoGap() throws {
    try books.open()
    _ = try books.apply([try usage(1, op: 1)])
    let outcome = try books.open(
      epoch: 1, entries: [try usage(2, op: 1), try usage(3, op: 3)], seen: 3)
    #expect(outcome.posted == 1)
    #expect(outcome.losses == [])
    #expect(try books.store.verify().findings == [])
  }

  @Test func secondRequesterIsToldOfTheNewEpoch() throws {
    try books.open()
    try books.open(epoch: 1)
    #expect(try books.open(epoch: 1) == RecoveryOutcome(epoch: 2, isNew: false))
    #expect(try books.open(epoch: 0) == RecoveryOutcome(epoch: 2, isNew: false))
  }

  @Test func epochAboveTheLedgersOwnIsStillExceeded() throws {
    // An older copy of the file was put back: the sidecars know an epoch it never heard of.
    try books.open()
    let outcome = try books.open(epoch: 5, entries: [try usage(2, op: 2)], seen: 2)
    #expect(outcome.epoch == 6)
    #expect(outcome.losses == [1...1])
    #expect(
      try books.apply([try usage(1, op: 1)], epoch: 1).answer == .fenced(epoch: 6, lastSequence: 0))
    #expect(try books.store.verify().findings == [])
  }

  /// How much lay between the two nobody can say, so the sums of that bucket are marked short.
  @Test func aLedgerThatWentBackwardsSaysSoForGood() throws {
    try books.open()
    _ = try books.apply([try usage(1, op: 1)])
    #expect(try books.store.lost(account: "acme") == 0)
    let bucket = Int(StableHash.of("acme") % 4)
    try books.open(bucket)
    let outcome = try books.open(bucket, epoch: 7)
    #expect(outcome.behind?.epoch == 1)
    #expect(try books.store.losses().map { "\($0.id)-\($0.last)" } == ["\(bucket)/1/0-0"])
    #expect(try books.store.lost(account: "acme") == 1)
    #expect(try books.store.verify().findings == [])
    // One that is new, or empty, and is named an epoch, too.
    #expect(try books.open(3, epoch: 2).behind == BucketPosition(bucket: 3, epoch: 0, cursor: 0))
    #expect(try books.store.verify().findings == [])
    // Closing its own epochs is no setback.
    #expect(try books.open(bucket, epoch: 8).behind == nil)
    #expect(try books.store.lost(account: "acme") == 1)
  }

  /// A delta appended twice and delivered in one batch: the copy that was posted is not named, so
  /// that only the other's effect is taken back; said again, the answer is the same.
  @Test func ofTwoCopiesInOneBatchOneIsNamed() throws {
    try books.open()
    let batch = [
      try usage(1, op: 1), try usage(2, op: 2), try usage(3, op: 1), try usage(4, op: 1),
    ]
    for _ in 0..<2 {
      let outcome = try books.apply(batch)
      #expect(outcome.answer == .acknowledged(cursor: 4))
      #expect(outcome.duplicates == [batch[0].id, batch[0].id])
    }
    #expect(try books.total() == 2)
  }

  @Test func newEpochStartsAtOne() throws {
    try books.open()
    _ = try books.apply([try usage(1, op: 1)])
    try books.open(epoch: 1)
    #expect(try books.apply([try usage(1, op: 2)], epoch: 2).answer == .acknowledged(cursor: 1))
  }

  @Test func poisonThatIsPresentedIsParked() throws {
    try books.open()
    var poison = try usage(1, op: 1)
    poison.body = [0xFF]
    let outcome = try books.open(epoch: 1, entries: [poison, try usage(2, op: 2)], seen: 2)
    #expect(outcome.parked == 1)
    #expect(outcome.posted == 1)
    #expect(outcome.losses == [])
  }

  @Test(
    arguments: [
      ([], 0, 0, []),
      ([], 3, 3, []),
      ([], 3, 5, [4...5]),
      ([4, 5], 3, 5, []),
      ([5], 3, 5, [4...4]),
      ([2, 4, 8], 1, 9, [3...3, 5...7, 9...9]),
    ] as [(Set<Int64>, Int64, Int64, [ClosedRange<Int64>])])
  func missingRanges(
    present: Set<Int64>, cursor: Int64, last: Int64, expected: [ClosedRange<Int64>]
  ) {
    #expect(LedgerTransaction.missing(above: cursor, through: last, present: present) == expected)
  }
}
