// Losses on record: acknowledged by somebody, with a reason, without a row being touched; and what
// can be said of deltas that came late.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateLedger

@Suite(.blocking) struct LossTests {
  let books: Books

  init() throws { books = try Books() }

  /// 2…3 and 5…9 of bucket 0 are lost.
  private func lose() throws {
    try books.open()
    _ = try books.apply([try usage(1, op: 1)])
    _ = try books.open(epoch: 1, entries: [try usage(4, op: 4)], seen: 9)
  }

  private func acknowledge(_ ids: [String]?, _ reason: String = "seen") throws -> Int {
    try books.store.acknowledge(ids, actor: "ann", reason: reason, now: WallTime(milliseconds: 77))
  }

  @Test func anAcknowledgementSaysWhoWhenAndWhy() throws {
    try lose()
    #expect(try books.store.status().acknowledgedSequences == 0)
    #expect(try acknowledge(["0/1/5"]) == 1)
    let losses = try books.store.losses()
    // What nobody has looked at stands first.
    #expect(losses.map(\.id) == ["0/1/2", "0/1/5"])
    #expect(losses[0].acknowledged == nil)
    #expect(losses[1].acknowledged == .init(time: 77, actor: "ann", reason: "seen"))
    #expect(try books.store.status().lostSequences == 7)
    #expect(try books.store.status().acknowledgedSequences == 5)
  }

  @Test func theFirstWordStands() throws {
    try lose()
    #expect(try acknowledge(["0/1/2"], "first") == 1)
    #expect(try acknowledge(["0/1/2"], "second") == 0)
    #expect(try acknowledge(nil, "the rest") == 1)
    let reasons = Dictionary(
      uniqueKeysWithValues: try books.store.losses().map { ($0.id, $0.acknowledged?.reason) })
    #expect(reasons == ["0/1/2": "first", "0/1/5": "the rest"])
    #expect(try acknowledge(nil) == 0)
  }

  @Test func oneUnknownIdAcknowledgesNothing() throws {
    try lose()
    #expect(throws: LossNotFound.unknown("0/1/3")) { try acknowledge(["0/1/2", "0/1/3"]) }
    #expect(throws: LossNotFound.unreadable("0/1")) { try acknowledge(["0/1/2", "0/1"]) }
    #expect(try books.store.status().acknowledgedSequences == 0)
  }

  /// The sums may still be short: seeds go on to lower nothing, and the audit goes on to count it.
  @Test func anAcknowledgedLossIsStillALoss() throws {
    try lose()
    let lost = try books.store.verify().lostSequences
    _ = try acknowledge(nil)
    #expect(try books.store.verify().lostSequences == lost)
    #expect(try books.store.verify().findings == [])
  }

  @Test func everyRowIsNamedHoweverMany() throws {
    try books.open()
    // Every other position is lost.
    let held = try (1...1600).map { try usage(Int64($0) * 2, op: $0) }
    for start in stride(from: 0, to: held.count, by: 1000) {
      let piece = Array(held[start..<min(start + 1000, held.count)])
      _ = try books.open(epoch: start == 0 ? 1 : 2, entries: piece, seen: piece.last?.sequence ?? 0)
    }
    var ids: Set<String> = []
    var lost: Int64 = 0
    try books.store.eachLoss(countingLate: true) {
      ids.insert($0.id)
      lost += $0.last - $0.first + 1
    }
    #expect(ids.count >= 1600)
    #expect(lost == (try books.store.status().lostSequences))
    #expect(try books.store.losses().count == LedgerStore.pageMax)
  }

  @Test func deltasThatCameLateAreCounted() throws {
    try lose()
    let recorded = try #require(try books.store.losses().first).time
    #expect(try books.store.losses(countingLate: true).map(\.late) == [0, 0])
    // Two were born before the loss was written, and arrive in the epoch after it; one is new.
    func late(_ sequence: Int64, _ number: Int, born: Int64) throws -> OutboxEntry {
      var entry = try usage(sequence, op: number)
      entry.time = WallTime(milliseconds: born)
      entry.id = DeltaID(
        operation: OperationID(high: UInt64(born) << 16, low: UInt64(number)), index: 0)
      return entry
    }
    _ = try books.apply(
      [
        try late(1, 21, born: recorded - 10), try late(2, 22, born: recorded - 5),
        try late(3, 23, born: recorded + 5),
      ], epoch: 2)
    #expect(try books.store.losses(countingLate: true).map(\.late) == [2, 2])
    #expect(try books.store.losses().map(\.late) == [nil, nil])
  }
}
