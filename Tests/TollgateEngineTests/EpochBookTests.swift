// Under which epoch a bucket may be worked with: one that was presented never again, and while a
// ledger is linked only the one it names.

import Testing
import TollgateCore
import TollgateEngine
import TollgateTesting

@Suite(.blocking) struct EpochBookTests {
  private func at(_ epoch: Int64, _ sequence: Int64 = 0) -> StreamPosition {
    StreamPosition(epoch: epoch, sequence: sequence)
  }

  private func linked(_ position: StreamPosition) -> EpochBook {
    var book = EpochBook(count: 2)
    book.linked([(0, position)])
    return book
  }

  @Test func withoutALedgerWhatRedisNamesHolds() {
    let book = EpochBook(count: 2)
    #expect(book.verdict(bucket: 0, at(7, 3)) == .work)
  }

  @Test func anEpochThatWasPresentedIsNeverWorkedUnderAgain() {
    var book = linked(at(5, 10))
    #expect(book.verdict(bucket: 0, at(5, 12)) == .work)
    book.leave(bucket: 0, epoch: 5)
    #expect(book.verdict(bucket: 0, at(5, 12)) == .recover)
    book.unlinked()
    #expect(book.verdict(bucket: 0, at(5, 12)) == .recover)
    book.linked([(0, at(5, 10))])
    #expect(book.verdict(bucket: 0, at(5, 12)) == .recover)
    book.announced(bucket: 0, epoch: 6, previous: at(5, 12))
    #expect(book.verdict(bucket: 0, at(5, 12)) == .recover)
    #expect(book.verdict(bucket: 0, at(6)) == .work)
  }

  @Test func leavingIsForOneBucketAndOnlyUpward() {
    var book = linked(at(5))
    book.leave(bucket: 0, epoch: 5)
    book.leave(bucket: 0, epoch: 3)
    book.leave(bucket: 9, epoch: 3)
    #expect(book.left(bucket: 0) == 5)
    #expect(book.left(bucket: 1) == -1)
  }

  @Test func aBucketThatTheLedgerDoesNotListNeedsRecovery() {
    let book = linked(at(5))
    #expect(book.verdict(bucket: 1, at(5)) == .early)
    #expect(book.verdict(bucket: 1, at(0)) == .work)
  }

  @Test func aBucketWhoseEpochTheLedgerHasClosedNeedsRecovery() {
    let book = linked(at(6))
    #expect(book.verdict(bucket: 0, at(5, 100)) == .recover)
    #expect(book.verdict(bucket: 0, at(7)) == .early)
    #expect(book.verdict(bucket: 0, at(6)) == .work)
  }

  @Test func aRedisBehindTheLedgersCursorNeedsRecovery() {
    let book = linked(at(6, 50))
    #expect(book.verdict(bucket: 0, at(6, 49)) == .recover)
    #expect(book.verdict(bucket: 0, at(6, 50)) == .work)
    #expect(book.cursor(bucket: 0, epoch: 6) == 50)
    #expect(book.cursor(bucket: 0, epoch: 5) == 0)
  }

  @Test func aNewListReplacesTheOldOne() {
    var book = linked(at(6))
    book.linked([(1, at(2))])
    #expect(book.verdict(bucket: 0, at(6)) == .early)
    #expect(book.verdict(bucket: 1, at(2)) == .work)
  }

  @Test func theLastSequencesOfAFewClosedEpochsAreKept() {
    var book = linked(at(1))
    for epoch in Int64(1)...20 {
      book.announced(bucket: 0, epoch: epoch + 1, previous: at(epoch, epoch * 10))
    }
    #expect(book.last(bucket: 0, epoch: 20) == 200)
    #expect(book.last(bucket: 0, epoch: 13) == 130)
    #expect(book.last(bucket: 0, epoch: 12) == nil)
    #expect(book.last(bucket: 1, epoch: 20) == nil)
  }
}
