// What a newer release sends and what time leaves behind: unknown kinds are parked and replayed,
// unknown fields survive, and short counters go by themselves without holding anybody up.

import Foundation
import GRDB
import Logging
import NIOConcurrencyHelpers
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

/// Lines logged, for a test to read.
struct Lines: LogHandler {
  final class Store: Sendable {
    let lines = NIOLockedValueBox<[String]>([])
  }

  let store: Store
  var metadata: Logger.Metadata = [:]
  var logLevel = Logger.Level.info
  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    let values = (event.metadata ?? [:]).map { "\($0.key)=\($0.value)" }.joined(separator: " ")
    store.lines.withLockedValue { $0.append("\(event.message) \(values)") }
  }
}

@Suite(.blocking) struct UpkeepTests {
  let books: Books

  init() throws {
    books = try Books()
    try books.open()
  }

  /// `count` deltas, each with a minute of its own.
  private func minutes(_ count: Int) throws -> [OutboxEntry] {
    try (1...count).map { number in
      var entry = try usage(Int64(number), op: number, amount: 1)
      var body = try UsageBody.decode(entry.body)
      body.cells[1].period = Window.minute.period(containing: start + Int64(number) * 60_000)
      entry.body = body.encode()
      return entry
    }
  }

  private func cells() throws -> Int {
    try books.store.balances(account: "acme", endingAfter: WallTime(milliseconds: 0)).elements.count
  }

  @Test func aRoundOfManySmallTransactionsDropsAllThatMayGo() async throws {
    _ = try books.apply(try minutes(95))
    #expect(try cells() == 96)
    let later = start + LedgerStore.lateHorizonMilliseconds + 61 * 60_000
    let lines = Lines.Store()
    let upkeep = LedgerUpkeep(
      store: books.store, intervalMilliseconds: 1,
      logger: Logger(label: "t") { _ in Lines(store: lines) },
      clock: { later })
    #expect(try books.store.prune(now: later, limit: 10) == 10, "a transaction is bounded")
    await upkeep.round(limit: 10)
    #expect(try cells() == 96 - 59)
    #expect(
      lines.lines.withLockedValue { $0 } == ["counters of past short periods dropped count=49"])
    #expect(try books.store.verify().findings == [])
    // A round that finds nothing says nothing.
    await upkeep.round(limit: 10)
    #expect(lines.lines.withLockedValue { $0.count } == 1)
  }

  @Test func whatComesLateForADroppedCounterIsPostedAndTheBooksStaySound() throws {
    _ = try books.apply(try minutes(3))
    let later = start + LedgerStore.lateHorizonMilliseconds + 600_000
    #expect(try books.store.prune(now: later) == 3)
    var late = try usage(4, op: 4, amount: 7)
    var body = try UsageBody.decode(late.body)
    body.cells[1].period = Window.minute.period(containing: start + 60_000)
    late.body = body.encode()
    #expect(try books.apply([late]).posted == 1)
    #expect(try books.total() == 10)
    #expect(try books.store.verify().findings == [])
    #expect(try books.store.prune(now: later) == 1)
    #expect(try books.store.verify().findings == [])
  }

  @Test func aRunningLedgerPrunesByItself() async throws {
    let directory = try TemporaryDirectory("tg-upkeep")
    let path = directory.file("ledger.sqlite")
    do {
      let store = try LedgerStore(path: path, bodies: .wire)
      try store.adopt(books.deployment, now: start)
      _ = try store.recover(
        RecoveryRequest(bucket: 0, epoch: 0, highestSeen: 0, entries: [], requester: "one"),
        now: start)
      var old = try usage(1, op: 1, amount: 5)
      var body = try UsageBody.decode(old.body)
      // The running ledger has the real clock: the minute ended long ago.
      body.cells[1].period = Window.minute.period(containing: WallTime(milliseconds: 1_000_000))
      old.body = body.encode()
      _ = try store.apply(
        DeltaBatch(bucket: 0, epoch: 1, previous: 0, entries: [old]), now: start)
      try store.close()
    }
    let stop = LedgerStop()
    let lines = Lines.Store()
    var configuration = LedgerConfiguration(database: path, unix: directory.file("s"))
    #expect(configuration.pruneMilliseconds == 600_000)
    configuration.pruneMilliseconds = 50
    let task = Task { [configuration] in
      try await runLedger(
        configuration: configuration, logger: Logger(label: "t") { _ in Lines(store: lines) },
        stop: stop
      ) { _ in }
    }
    try await eventually("the minute is dropped, and it is said") { () async in
      lines.lines.withLockedValue { $0.contains("counters of past short periods dropped count=1") }
    }
    stop.stop()
    try await task.value
    let store = try LedgerStore(readOnly: path, bodies: .wire)
    let windows = try store.balances(account: "acme", endingAfter: WallTime(milliseconds: 0))
      .elements.map(\.window)
    #expect(windows == ["M"])
  }

  // MARK: - What a newer release sends

  @Test func anUnknownKindIsParkedVisibleAndReplayedByAReleaseThatKnowsIt() throws {
    var strange = try usage(2, op: 2, amount: 5)
    strange.kind = DeltaKind(rawValue: 9)
    let outcome = try books.apply([
      try usage(1, op: 1, amount: 1), strange, try usage(3, op: 3, amount: 2),
    ])
    #expect(outcome == BatchOutcome(answer: .acknowledged(cursor: 3), posted: 2, parked: 1))
    #expect(try books.store.parked().map(\.reason) == ["unknown delta kind 9"])
    #expect(try books.store.replayParked(now: start) == (0, 1))
    #expect(try books.store.verify().findings == [])
    #expect(try books.total() == 3)
    // The stream goes on after it, and a repetition is known.
    #expect(try books.apply([strange]).answer == .acknowledged(cursor: 3))
    // A later release calls the kind usage: the row is all it needs.
    try books.tamper("UPDATE deltas SET kind = 1 WHERE kind = 9")
    #expect(try books.store.replayParked(now: start) == (1, 0))
    #expect(try books.total() == 8)
    #expect(try books.store.verify().findings == [])
  }

  @Test func unknownFieldsOfABodySurviveInTheBooks() throws {
    var entry = try usage(1, op: 1, amount: 5)
    entry.body += [0x63, 0, 3, 0, 7, 8, 9]
    #expect(try books.apply([entry]).posted == 1)
    let kept = try books.store.read { db in
      try [UInt8](Data.fetchOne(db, sql: "SELECT body FROM deltas") ?? Data())
    }
    #expect(kept == entry.body)
    #expect(try books.total() == 5)
  }

  @Test func aCriticalFieldNobodyKnowsHereIsParked() throws {
    var entry = try usage(1, op: 1, amount: 5)
    entry.body += [0x63, 0x80, 1, 0, 7]
    #expect(try books.apply([entry, try usage(2, op: 2, amount: 1)]).parked == 1)
    #expect(try books.total() == 1)
  }

  /// Over the wire: a stream of batches goes on past every kind of poison.
  @Test func aStreamOfBatchesSurvivesPoison() async throws {
    let ledger = try await RunningLedger.start()
    let sidecar = try ledger.sidecar("one")
    _ = try sidecar.open(0)
    var random = Seeded(11)
    print("poison seed 11")
    var sound: Int64 = 0
    var parked = 0
    for batch in 0..<20 {
      let first = Int64(batch * 10) + 1
      let entries = try (first..<first + 10).map { sequence in
        var entry = try usage(sequence, op: Int(sequence), amount: 3)
        switch Int.random(in: 0...7, using: &random) {
        case 0: entry.kind = DeltaKind(rawValue: UInt8.random(in: 6...255, using: &random))
        case 1: entry.kind = DeltaKind(rawValue: 0)
        case 2: entry.body = []
        case 3: entry.charged = -1
        default:
          sound += 3
          return entry
        }
        parked += 1
        return entry
      }
      let reply = try sidecar.apply(
        DeltaBatch(bucket: 0, epoch: 1, previous: first - 1, entries: entries))
      #expect(reply.status == .ack && reply.cursor == first + 9)
    }
    let status = String(
      decoding: try QueryReply.decode(try sidecar.request(QueryRequest(.status, body: []))).body,
      as: UTF8.self)
    #expect(parked > 20 && status.contains("\"parked\":\(parked)"))
    let totals = String(
      decoding: try QueryReply.decode(
        try sidecar.request(QueryRequest(.totals, body: Array(#"{"account":"acme"}"#.utf8)))
      ).body, as: UTF8.self)
    #expect(totals.contains("\"charged\":\(sound)"))
    let ids = #"{"bucket":0,"ids":["\#(operation(1).hex).0"]}"#
    let known = try QueryReply.decode(
      try sidecar.request(QueryRequest(.deltaIDs, body: Array(ids.utf8))))
    #expect(String(decoding: known.body, as: UTF8.self).contains("\"parked\":["))
    try await ledger.finish()
  }
}
