// Which sums are dropped when, what an operator's reset does to the sums of parts, and that a file
// of an older release opens and means the same.

import Foundation
import GRDB
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct RetentionTests {
  static let day: Int64 = 86_400_000

  private func books() throws -> Books {
    let books = try Books()
    try books.open()
    return books
  }

  @Test func theLongestLateUseFitsIntoTheHorizonOfPricedSums() {
    // The month that follows, a hold of the longest ttl, and the late horizon.
    let needed = 31 * Self.day + Self.day + LedgerStore.lateHorizonMilliseconds
    #expect(LedgerStore.pricedHorizonMilliseconds > needed)
  }

  @Test func eachCounterIsKeptAsLongAsItCanMatter() throws {
    let books = try books()
    let hour = Window.hour.period(containing: start)
    _ = try books.apply([
      try spend(
        1, op: 1, 10,
        parts: [
          try grant("g", 2, hour), overage(.hour, 3), overage(.month, 3), overage(.day, 3),
          overage(Window(.month, .anchored), 3), try priced("r", 10), deficit(1),
        ])
    ])
    func windows(at now: WallTime) throws -> Set<String> {
      _ = try books.store.prune(now: now)
      #expect(try books.soundness() == [])
      return Set(try books.counters().keys.map { String($0.dropFirst("acme spend ".count)) })
    }
    let kept: Set = ["M", "$g", "oM", "oM@", "-"]
    // The hour after it and a day must be over.
    let hourly = hour.end + 3_600_000 + Self.day
    #expect(try windows(at: hourly + -1) == kept.union(["oh", "od", "rr,0"]))
    #expect(try windows(at: hourly) == kept.union(["od", "rr,0"]))
    let daily = Window.day.period(containing: start).end + 2 * Self.day
    #expect(try windows(at: daily) == kept.union(["rr,0"]))
    let month = november.end + 35 * Self.day
    #expect(try windows(at: month + -1) == kept.union(["rr,0"]))
    #expect(try windows(at: month) == kept)
    #expect(try windows(at: month + 4000 * Self.day) == kept)
  }

  @Test func anOverageCounterIsResetLikeAnyOther() throws {
    let books = try books()
    _ = try books.apply([
      try spend(1, op: 1, 30, parts: [overage(.month, 30)]),
      reset(2, op: 2, subject: "acme", window: .overage(.month), by: -20, feature: "spend"),
    ])
    let cells = try books.store.balances(account: "acme", endingAfter: start).elements
    let overage = try #require(cells.first { $0.window == "oM" })
    #expect(overage.settled == 30 && overage.forgiven == 20)
    #expect(cells.first { $0.window == "M" }?.forgiven == 0)
    #expect(try books.balances()["overage:acme:spend"] == 30)
    #expect(try books.soundness() == [])
  }

  @Test func aResetOfWhatIsInFlightOrWithoutAnEndIsParked() throws {
    let books = try books()
    var endless = reset(2, op: 2, subject: "acme", window: .deficit, by: -20)
    var delta = try ConfigDelta.decode(endless.body)
    delta.after = #"{"subject":"acme","feature":"tokens","window":"-","start":0}"#
    endless.body = delta.encode()
    _ = try books.apply([reset(1, op: 1, subject: "acme", window: .inFlight, by: -20), endless])
    #expect(
      try books.store.parked().map(\.reason) == [
        "a reset of what is in flight: nothing settles there", "a reset of - that names no end",
      ])
    #expect(try books.soundness() == [])
  }

  // MARK: Files of older releases

  /// A file as the release before wrote it, with a month, a minute and an anchored month in it.
  private func oldFile(in directory: TemporaryDirectory) throws -> String {
    let path = directory.file("old.sqlite")
    let queue = try DatabaseQueue(path: path)
    try Schema.migrator.migrate(queue, upTo: "4-ids-by-bucket")
    let entry = try usage(1, op: 1, amount: 5, absorbed: 2)
    let account =
      #"{"grants":[{"id":"g","feature":"spend","amount":9,"effective_ms":3}]}"#
    let config = change(2, op: 2, scope: .account, key: "acme", version: 1, after: account)
    try queue.write { db in
      try db.execute(
        sql: """
          INSERT INTO deployment VALUES (1, 'test', 4, 'fnv1a64', 1, 'dev', 0);
          INSERT INTO buckets VALUES (0, 1);
          INSERT INTO cursors VALUES (0, 1, 2);
          INSERT INTO series VALUES (1, 'acme', 'tokens', \(november.start.milliseconds),
            \(november.end.milliseconds), 0, 7, 5, 2, 1);
          INSERT INTO accounts VALUES (1, 'usage:acme:tokens', 5), (2, 'absorbed:acme:tokens', 2),
            (3, 'consumed:tokens', -7);
          INSERT INTO pruned VALUES (1, 5)
          """)
      for (delta, series) in [(entry, 1), (config, nil as Int?)] {
        try db.execute(
          sql: "INSERT INTO deltas VALUES (?, 0, 0, 1, ?, ?, ?, ?, ?, ?, ?, ?)",
          arguments: [
            delta.id.operation.blob, delta.sequence, Int64(delta.kind.rawValue),
            delta.time.milliseconds, delta.actual, delta.charged, delta.absorbed, series,
            Data(delta.body),
          ])
      }
      for (account, amount) in [(1, 5), (2, 2), (3, -7)] {
        try db.execute(
          sql: "INSERT INTO postings VALUES (?, 0, 0, ?, ?)",
          arguments: [entry.id.operation.blob, account, amount])
      }
      let minute = Window.minute.period(containing: start)
      for (subject, window, period) in [
        ("acme", "M", november), ("acme/ann", "m", minute),
      ] {
        try db.execute(
          sql: "INSERT INTO cells VALUES ('acme', ?, 'tokens', ?, ?, ?, 5)",
          arguments: [subject, window, period.start.milliseconds, period.end.milliseconds])
      }
      try db.execute(
        sql: """
          INSERT INTO config VALUES ('account', 'acme', 1, ?, 0, 0, 'account.set', 'ops', '', '', ?)
          """, arguments: [config.id.operation.blob, account])
    }
    try queue.close()
    return path
  }

  @Test func anOlderFileIsReadAsItIs() throws {
    let directory = try TemporaryDirectory("tg-old")
    let old = try LedgerStore(readOnly: try oldFile(in: directory), bodies: .wire)
    #expect(try old.verify().findings == [])
    let line = try old.statement(account: "acme", start: november.start.milliseconds).lines.first
    #expect(line?.charged == 5 && line?.included == 5 && line?.absorbed == 2)
    #expect(try old.operation(operation(1), bucket: 0).answer.left.map(\.charged) == [5])
    #expect(try old.balances(account: "acme", endingAfter: start).elements.count == 2)
  }

  @Test func anOlderFileOpensAndMeansTheSame() throws {
    let directory = try TemporaryDirectory("tg-old")
    let path = try oldFile(in: directory)
    let store = try LedgerStore(path: path, bodies: .wire)
    #expect(try store.verify().findings == [])
    #expect(try store.totals().page.elements.map(\.charged) == [5])
    // The terms of grants that are on record, too.
    let statement = try store.statement(account: "acme", start: november.start.milliseconds)
    #expect(statement.grants.map(\.remaining) == [9])
    let batch = DeltaBatch(
      bucket: 0, epoch: 1, previous: 2,
      entries: [try spend(3, op: 3, 40, parts: [try grant("g", 9), overage(.month, 31)])])
    #expect(try store.apply(batch, now: start).posted == 1)
    #expect(try store.verify().findings == [])
    // The minute goes by the new rule; what the old one may have dropped is still no fault.
    #expect(try store.prune(now: start + Self.day + 60_000) == 0)
    #expect(try store.prune(now: start + Self.day + 120_000) == 1)
    #expect(try store.verify().findings == [])
  }

  @Test func whatAnOlderReleaseDroppedIsNoFault() throws {
    let directory = try TemporaryDirectory("tg-old")
    let path = try oldFile(in: directory)
    try DatabaseQueue(path: path).write { db in
      try db.execute(sql: "DELETE FROM cells WHERE window = 'm'")
    }
    #expect(try LedgerStore(readOnly: path, bodies: .wire).verify().findings.count == 1)
    try DatabaseQueue(path: path).write { db in
      try db.execute(sql: "UPDATE pruned SET cells_ended_before = \(Int64.max)")
    }
    #expect(try LedgerStore(readOnly: path, bodies: .wire).verify().findings == [])
    #expect(try LedgerStore(path: path, bodies: .wire).verify().findings == [])
  }
}
