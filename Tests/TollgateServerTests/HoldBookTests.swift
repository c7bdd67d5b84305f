// What one event loop remembers of reservations: those that live, to bring them back, and those
// that ended, so that nobody else does; so many of each at most.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis
@testable import TollgateServer

@Suite("Hold book", .blocking) struct HoldBookTests {
  private static let now = WallTime(milliseconds: 1_763_700_000_000)
  private var book = HoldBook()

  private static func id(_ number: Int) -> OperationID {
    OperationID(high: UInt64(now.milliseconds) << 16, low: UInt64(number))
  }

  private static func hold(
    _ number: Int, _ subject: String = "acme/ann", ttl: Int64 = 60_000
  ) throws -> StoredHold {
    var run = MessagePackWriter()
    for value in [0, now.milliseconds, (now + ttl).milliseconds, 1, 0] { run.append(value) }
    run.append(subject)
    for value: Int64 in [1, 1, 0] { run.append(value) }
    return try #require(StoredHold(reservation: id(number).bytes, bytes: run.bytes))
  }

  private static func end(
    _ number: Int, _ subject: String = "acme/ann", _ state: HoldEnd.State = .released
  ) throws -> HoldEnd {
    HoldEnd(reservation: id(number), subject: try Subject(subject), state: state)
  }

  @Test mutating func whatLivesIsKnownByItsBucketAndItsAccount() throws {
    let (one, two) = (try Self.hold(1), try Self.hold(2, "beta"))
    book.note(one, bucket: 3, now: Self.now)
    book.note(two, bucket: 4, now: Self.now)
    #expect(book.live(in: 3, now: Self.now) == ["acme": [one]])
    #expect(book.live(of: "beta", in: 4) == [two])
    #expect(book.ends(in: 3, now: Self.now).isEmpty)
  }

  @Test mutating func whatEndedIsNotForgottenButTold() throws {
    book.note(try Self.hold(1), bucket: 3, now: Self.now)
    let ends = [try Self.end(1), try Self.end(2, "beta", .committed)]
    // The second was made elsewhere.
    for end in ends { book.ended(end, bucket: 3, now: Self.now) }
    #expect(book.live(in: 3, now: Self.now).isEmpty)
    #expect(Set(book.ends(in: 3, now: Self.now)) == Set(ends))
    #expect(book.ends(in: 4, now: Self.now).isEmpty)
    // An answer that was on its way does not make it live again.
    book.note(try Self.hold(1), bucket: 3, now: Self.now)
    #expect(book.live(of: "acme", in: 3).isEmpty)
  }

  @Test mutating func anEndIsToldForAsLongAsSomebodyMayBringTheHold() throws {
    let hold = try Self.hold(1, ttl: HoldBounds.ttlMax)
    book.note(hold, bucket: 0, now: Self.now)
    book.ended(try Self.end(2), bucket: 0, now: Self.now)
    let last = hold.expires + HoldBounds.grace + HoldBook.keptMilliseconds
    #expect(book.live(in: 0, now: last + -1).count == 1)
    #expect(book.ends(in: 0, now: last + -1).count == 1)
    #expect(book.live(in: 0, now: last).isEmpty)
    #expect(book.ends(in: 0, now: last).isEmpty)
  }

  @Test mutating func whatIsUnknownToRedisIsForgottenOnlyByItsOwnSubject() throws {
    book.note(try Self.hold(1), bucket: 0, now: Self.now)
    book.forget(Self.id(1), of: try Subject("acme/bob"))
    #expect(book.liveCount == 1)
    book.forget(Self.id(1), of: try Subject("acme/ann"))
    #expect(book.liveCount == 0 && book.endedCount == 0)
  }

  @Test mutating func theOldestGoWhereThereAreTooManyAndEndsPushOutNoHold() throws {
    book.note(try Self.hold(-1 & 0xFFFF_FFFF), bucket: 1, now: Self.now)
    for number in 0..<(HoldBook.endsMax + 10) {
      book.ended(try Self.end(number), bucket: 0, now: Self.now)
    }
    #expect(book.endedCount == HoldBook.endsMax)
    let told = Set(book.ends(in: 0, now: Self.now).map(\.reservation))
    #expect(!told.contains(Self.id(9)) && told.contains(Self.id(10)))
    #expect(book.liveCount == 1)
  }

  @Test mutating func whatIsOverGoesAsNewOnesCome() throws {
    for number in 0..<100 { book.ended(try Self.end(number), bucket: 0, now: Self.now) }
    let later = Self.now + HoldBook.endKeptMilliseconds
    for number in 100..<160 { book.ended(try Self.end(number), bucket: 0, now: later) }
    #expect(book.endedCount == 60)
  }

  /// A loss asks for each bucket, while callers wait: that costs what is remembered, and not that
  /// times the buckets.
  @Test func askingForEveryBucketReadsEachEntryOnce() throws {
    func cost(buckets: Int) throws -> Duration {
      var book = HoldBook()
      for number in 0..<HoldBook.endsMax {
        book.ended(
          try Self.end(number, "a\(number % 1024)"), bucket: number % buckets, now: Self.now)
      }
      let begun = ContinuousClock.now
      var told = 0
      for bucket in 0..<buckets { told += book.ends(in: bucket, now: Self.now).count }
      #expect(told == HoldBook.endsMax)
      return ContinuousClock.now - begun
    }
    _ = try cost(buckets: 1)
    let (one, many) = (try cost(buckets: 1), try cost(buckets: 256))
    #expect(many < one * 20, "\(many) for 256 buckets, \(one) for one")
  }

  @Test mutating func whatIsOverGoesBeforeTheOldestThatLives() throws {
    let long = try Self.hold(0, ttl: HoldBounds.ttlMax)
    book.note(long, bucket: 0, now: Self.now)
    for number in 1..<HoldBook.holdsMax {
      book.note(try Self.hold(number, ttl: 1), bucket: 1, now: Self.now)
    }
    let later = Self.now + 600_000
    for number in 0..<10 {
      book.note(
        try Self.hold(HoldBook.holdsMax + number, ttl: HoldBounds.ttlMax), bucket: 1, now: later)
    }
    #expect(book.live(of: "acme", in: 0) == [long])
    #expect(book.liveCount == 11)
  }
}
