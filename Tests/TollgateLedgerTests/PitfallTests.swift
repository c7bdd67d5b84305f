// The lines of PITFALLS that a ledger can break, by number.

import Foundation
import GRDB
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct PitfallTests {
  let books: Books

  init() throws {
    books = try Books()
    try books.open()
  }

  @Test func pitfall13AnIdIsNotClaimedWhenItsWriteFails() throws {
    // The last act of the transaction fails; nothing may remember the ids.
    try books.tamper(
      """
      CREATE TRIGGER refuse BEFORE INSERT ON cursors WHEN new.cursor = 2
      BEGIN SELECT raise(ABORT, 'disk full'); END
      """)
    let batch = [try usage(1, op: 1, amount: 5), try usage(2, op: 2, amount: 7)]
    #expect(throws: LedgerError.self) { try books.apply(batch) }
    #expect(try books.count() == 0)
    try books.tamper("DROP TRIGGER refuse")
    let outcome = try books.apply(batch)
    #expect(outcome == BatchOutcome(answer: .acknowledged(cursor: 2), posted: 2))
    #expect(try books.total() == 12)
  }

  @Test func pitfall18ATotalBelowZeroIsKept() throws {
    // The reversal comes before what it reverses: a total that stopped at zero would forget it.
    _ = try books.apply([
      try usage(1, op: 1, amount: 10), try usage(2, op: 2, index: 64, amount: -30, kind: .reversal),
    ])
    #expect(try books.total() == -20)
    _ = try books.apply([try usage(3, op: 2, amount: 30)])
    #expect(try books.total() == 10)
    #expect(try books.store.verify().findings == [])
  }

  @Test func pitfall20ARetriedBatchHasNoSecondEffect() throws {
    let batch = try (1...20).map { try usage(Int64($0), op: $0, amount: 3) }
    for _ in 0..<5 { _ = try books.apply(batch) }
    #expect(try books.total() == 60)
    #expect(try books.count() == 20)
  }

  @Test func pitfall21ARecutBatchDoesNotPostTwice() throws {
    let all = try (1...20).map { try usage(Int64($0), op: $0, amount: 3) }
    _ = try books.apply(Array(all[0..<7]))
    _ = try books.apply(Array(all[3..<12]))
    _ = try books.apply(Array(all[0..<20]))
    _ = try books.apply(Array(all[19..<20]))
    #expect(try books.total() == 60)
    #expect(try books.store.cursor(bucket: 0, epoch: 1) == 20)
  }

  @Test func pitfall22AnIdIsRememberedForGood() throws {
    _ = try books.apply([try usage(1, op: 1, amount: 5)])
    // A year later, after pruning and reopening, the same delta is still known.
    let later = start + 366 * 86_400_000
    _ = try books.store.prune(now: later)
    try books.reopen()
    let outcome = try books.store.apply(
      DeltaBatch(bucket: 0, epoch: 1, previous: 1, entries: [try usage(2, op: 1, amount: 5)]),
      now: later)
    #expect(outcome.duplicates.count == 1)
    #expect(try books.total() == 5)
  }

  @Test func pitfall23ACommitRetriedAfterALostAnswerAppliesOnce() throws {
    let batch = [try usage(1, op: 1, amount: 5)]
    _ = try books.apply(batch)  // The answer is lost, and so is the process.
    try books.reopen()
    #expect(try books.apply(batch).answer == .acknowledged(cursor: 1))
    #expect(try books.total() == 5)
  }

  @Test func pitfall24ExplicitZeroIsUsageNotAbsence() throws {
    _ = try books.apply([try usage(1, op: 1, amount: 0)])
    #expect(try books.count() == 1)
    let lines = try books.store.statement(account: "acme", start: november.start.milliseconds).lines
    #expect(lines.map(\.charged) == [0])
    #expect(lines.map(\.deltas) == [1])
  }

  @Test func pitfall25ReissuedSequenceNumbersAreNotSkippedAsSeen() throws {
    _ = try books.apply(try (1...5).map { try usage(Int64($0), op: $0, amount: 1) })
    // Failover to a replica that was two entries behind: 4 and 5 are issued anew.
    let reissued = [try usage(4, op: 104, amount: 10), try usage(5, op: 105, amount: 10)]
    #expect(try books.apply(reissued).answer == .forked(cursor: 5, sequence: 4))
    let healed = try books.open(epoch: 1, entries: reissued, seen: 5)
    #expect(healed.posted == 2)
    #expect(try books.total() == 25)
  }

  @Test func pitfall26AnOlderSnapshotDoesNotOverwriteNewerTruth() throws {
    _ = try books.apply([
      change(1, op: 1, scope: .account, key: "acme", version: 1, after: "one"),
      change(2, op: 2, scope: .account, key: "acme", version: 2, after: "two"),
    ])
    try books.open(epoch: 1)
    // Redis came back from a snapshot that had only version 1, and ships it again.
    _ = try books.apply(
      [change(1, op: 1, scope: .account, key: "acme", version: 1, after: "one")], epoch: 2)
    #expect(try books.store.accountConfig("acme")?.after == "two")
  }

  @Test(arguments: [false, true])
  func pitfall27AnAdminSetDoesNotRaceAQueuedDelta(setFirst: Bool) throws {
    // The set takes 40 units off; the delta of 7 was queued before it, or comes after: either way
    // limits see 50 + 7 − 40, because a set travels as a change, not as a value.
    _ = try books.apply([try usage(1, op: 1, amount: 50)])
    let set = { reset($0, op: 2, subject: "acme/ann", window: .minute, by: -40) }
    let delta = { try usage($0, op: 3, amount: 7) }
    _ = try books.apply(setFirst ? [set(2), try delta(3)] : [try delta(2), set(3)])
    let cell = try books.store.balances(account: "acme", endingAfter: start).elements
      .first { $0.window == "m" }
    #expect(cell?.settled == 57)
    #expect(cell?.forgiven == 40)
    #expect(try books.total() == 57)
    #expect(try books.store.verify().findings == [])
  }

  @Test func pitfall28TwoShippersPostOnce() throws {
    let all = try (1...30).map { try usage(Int64($0), op: $0, amount: 1) }
    for cut in [5, 9, 14, 22, 30] {
      _ = try books.apply(Array(all[..<cut]))
      _ = try books.apply(Array(all[max(0, cut - 7)..<cut]))
    }
    #expect(try books.total() == 30)
    #expect(try books.store.verify().findings == [])
  }

  @Test func poisonIsParkedAndTheStreamGoesOn() throws {
    var poison = try usage(2, op: 2, amount: 5)
    poison.body = [0xDE, 0xAD]
    let outcome = try books.apply([
      try usage(1, op: 1, amount: 1), poison, try usage(3, op: 3, amount: 2),
    ])
    #expect(outcome == BatchOutcome(answer: .acknowledged(cursor: 3), posted: 2, parked: 1))
    let parked = try books.store.parked()
    #expect(parked.map(\.sequence) == [2])
    #expect(parked.first?.reason.hasPrefix("undecodable body") == true)
    #expect(try books.total() == 3)
    #expect(try books.store.verify().findings == [])
  }

  @Test(
    arguments: [
      (5, 5, 1), (-5, -5, 0), (Quantity.maximum + 1, Quantity.maximum + 1, 0),
      (.min, .min, 0), (.max, .max, 0),
    ] as [(Int64, Int64, Int64)])
  func impossibleNumbersAreParked(actual: Int64, charged: Int64, absorbed: Int64) throws {
    var poison = try usage(1, op: 1)
    poison.actual = actual
    poison.charged = charged
    poison.absorbed = absorbed
    #expect(try books.apply([poison]).parked == 1)
    #expect(try books.total() == 0)
  }

  @Test func sumThatWouldOverflowIsParkedAndChangesNothing() throws {
    let outcome = try books.apply([
      try usage(1, op: 1, amount: Quantity.maximum), try usage(2, op: 2, amount: 1),
    ])
    #expect(outcome.parked == 1)
    #expect(try books.total() == Quantity.maximum)
    #expect(try books.store.verify().findings == [])
  }

  @Test func parkedDeltaIsReplayedOnce() throws {
    let strict = DeltaBodies(
      usage: { _ in throw Poison(reason: "an older release") },
      config: { try ConfigDelta.decode($0) })
    try books.reopen(bodies: strict)
    _ = try books.apply([try usage(1, op: 1, amount: 5)])
    #expect(try books.store.replayParked(now: start) == (0, 1))
    try books.reopen()
    #expect(try books.store.replayParked(now: start) == (1, 0))
    #expect(try books.store.replayParked(now: start) == (0, 0))
    #expect(try books.total() == 5)
    #expect(try books.store.parked() == [])
    #expect(try books.store.verify().findings == [])
  }

  @Test func parkedDeltaIsKnownWhenItIsSentAgain() throws {
    var poison = try usage(1, op: 1)
    poison.body = []
    _ = try books.apply([poison])
    #expect(try books.apply([poison]).answer == .acknowledged(cursor: 1))
    #expect(try books.store.parked().count == 1)
  }

  @Test func acknowledgedMeansSynchronised() throws {
    // 2 is FULL: the library's own choice for this journal would be 1.
    let level = try books.store.pool.writeWithoutTransaction {
      try Int.fetchOne($0, sql: "PRAGMA synchronous")
    }
    #expect(level == 2)
    #expect(try books.store.read { try String.fetchOne($0, sql: "PRAGMA journal_mode") } == "wal")
  }

  @Test func copyOfTheFilesAtAnyMomentIsWhole() throws {
    // What a crash leaves is what is in the files now, with no orderly close.
    _ = try books.apply(try (1...9).map { try usage(Int64($0), op: $0, amount: 1) })
    let copy = books.directory.appending(path: "crashed.sqlite").path
    for suffix in ["", "-wal"] {
      try FileManager.default.copyItem(atPath: books.path + suffix, toPath: copy + suffix)
    }
    let crashed = try LedgerStore(path: copy, bodies: .wire)
    #expect(try crashed.status().deltas == 9)
    #expect(try crashed.verify().findings == [])
  }

  @Test func transactionCutAtAnyByteOfTheLogIsWholeOrAbsent() throws {
    _ = try books.apply([try usage(1, op: 1, amount: 1)])
    let log = books.path + "-wal"
    let before = try Data(contentsOf: URL(filePath: log)).count
    _ = try books.apply(try (2...9).map { try usage(Int64($0), op: $0, amount: 1) })
    let bytes = try Data(contentsOf: URL(filePath: log))
    #expect(bytes.count > before)
    for step in 0...8 {
      let cut = before + (bytes.count - before) * step / 8
      let copy = books.directory.appending(path: "cut\(step).sqlite").path
      try FileManager.default.copyItem(atPath: books.path, toPath: copy)
      try bytes.prefix(cut).write(to: URL(filePath: copy + "-wal"))
      let crashed = try LedgerStore(path: copy, bodies: .wire)
      #expect([1, 9].contains(try crashed.status().deltas))
      #expect(try crashed.verify().findings == [])
    }
  }

  @Test func anotherDeploymentIsRefusedNamingBothValues() throws {
    let other = Deployment(id: try Name("other"), buckets: 8, mode: .dev)
    let error = #expect(throws: LedgerError.self) {
      try LedgerStore(path: books.path, bodies: .wire).adopt(other, now: start)
    }
    let text = error?.description ?? ""
    #expect(text.contains("deployment: configured other, recorded test"))
    #expect(text.contains("buckets: configured 8, recorded 4"))
  }

  @Test func fileThatIsNoLedgerIsRefused() throws {
    let path = books.directory.appending(path: "text").path
    try Data("this is no database, and long enough to be looked at".utf8).write(
      to: URL(filePath: path))
    #expect(throws: LedgerError.self) {
      try LedgerStore(path: path, bodies: .wire)
    }
    #expect(throws: LedgerError.self) {
      try LedgerStore(readOnly: books.directory.appending(path: "none").path, bodies: .wire)
    }
  }

  @Test func readOnlyStoreReadsBesideTheWriter() throws {
    _ = try books.apply([try usage(1, op: 1, amount: 5)])
    let reader = try LedgerStore(readOnly: books.path, bodies: .wire)
    #expect(reader.deployment == books.deployment)
    #expect(try reader.status().deltas == 1)
    #expect(throws: LedgerError.self) {
      try reader.apply(
        DeltaBatch(bucket: 0, epoch: 1, previous: 1, entries: [try usage(2, op: 2)]), now: start)
    }
  }
}
