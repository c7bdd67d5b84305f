// The books: double entry, counters, totals, statements, configuration, export, and the audit that
// must notice when any of them was changed behind its back.

import Foundation
import GRDB
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct BooksTests {
  let books: Books

  init() throws {
    books = try Books()
    try books.open()
  }

  private func accounts() throws -> [String: Int64] {
    try DatabaseQueue(path: books.path).read { db in
      var found: [String: Int64] = [:]
      for row in try Row.fetchAll(db, sql: "SELECT name, balance FROM accounts") {
        found[row[0]] = row[1]
      }
      return found
    }
  }

  @Test func everyDeltaIsADoubleEntry() throws {
    _ = try books.apply([try usage(1, op: 1, amount: 5, absorbed: 2)])
    #expect(
      try accounts() == [
        "usage:acme:tokens": 5, "absorbed:acme:tokens": 2, "consumed:tokens": -7,
      ])
  }

  @Test func reversalPostsNegatives() throws {
    _ = try books.apply([
      try usage(1, op: 1, amount: 5),
      try usage(2, op: 1, index: 64, amount: -5, kind: .reversal),
    ])
    #expect(try accounts() == ["usage:acme:tokens": 0, "consumed:tokens": 0])
    #expect(
      try books.store.balances(account: "acme", endingAfter: start).elements.allSatisfy {
        $0.settled == 0
      })
    let statement = try books.store.statement(account: "acme", start: november.start.milliseconds)
    #expect(statement.lines.first?.used == 5)
    #expect(statement.lines.first?.reversed == 5)
    #expect(statement.lines.first?.charged == 0)
  }

  @Test func cellsAreSummedPerSubjectFeatureAndWindow() throws {
    _ = try books.apply([
      try usage(1, op: 1, amount: 5), try usage(2, op: 2, amount: 7, subject: "acme/bob"),
      try usage(3, op: 3, amount: 11, feature: "chat"),
    ])
    let cells = try books.store.balances(account: "acme", endingAfter: start).elements
    #expect(
      Set(cells.map { "\($0.subject) \($0.feature) \($0.window) \($0.settled)" }) == [
        "acme tokens M 12", "acme chat M 11", "acme/ann tokens m 5", "acme/bob tokens m 7",
        "acme/ann chat m 11",
      ])
  }

  @Test func cellsCountWhatIsChargedNotWhatIsAbsorbed() throws {
    _ = try books.apply([try usage(1, op: 1, amount: 5, absorbed: 100)])
    #expect(
      try books.store.balances(account: "acme", endingAfter: start).elements.allSatisfy {
        $0.settled == 5
      })
  }

  @Test func accountsWhoseNamesBeginAlikeAreApart() throws {
    _ = try books.apply([
      try usage(1, op: 1, amount: 5), try usage(2, op: 2, amount: 7, subject: "acme2/ann"),
    ])
    #expect(try books.total("acme") == 5)
    #expect(try books.total("acme2") == 7)
  }

  @Test func balancesArePaged() throws {
    let entries = try (1...25).map { try usage(Int64($0), op: $0, subject: "acme/u\($0)") }
    _ = try books.apply(entries)
    var seen: [String] = []
    var key: LedgerStore.CellPageKey?
    repeat {
      let page = try books.store.balances(account: "acme", endingAfter: start, after: key, limit: 4)
      #expect(page.elements.count <= 4)
      seen += page.elements.map(\.subject)
      key = page.next
    } while key != nil
    #expect(seen.count == 26)
    #expect(Set(seen).count == 26)
  }

  @Test func seedGivesConfigAndEveryPage() throws {
    var entries = try (1...25).map { try usage(Int64($0), op: $0, subject: "acme/u\($0)") }
    entries.append(change(26, op: 26, scope: .account, key: "acme", version: 4, after: "{\"v\":4}"))
    _ = try books.apply(entries)
    var cells = 0
    var last: [Bool] = []
    try books.store.seed(account: "acme", since: start, pageSize: 10) { config, page, isLast in
      #expect(config?.version == 4)
      cells += page.count
      last.append(isLast)
    }
    #expect(cells == 26)
    #expect(last == [false, false, true])
  }

  @Test func forgivenUnitsStandBesideTheirCounter() throws {
    _ = try books.apply([
      try usage(1, op: 1, amount: 50), reset(2, op: 2, subject: "acme", window: .month, by: -30),
    ])
    let month = try books.store.balances(account: "acme", endingAfter: start).elements
      .filter { $0.window == "M" }
    #expect(month.map(\.settled) == [50])
    #expect(month.map(\.forgiven) == [30])
    #expect(try books.total() == 50)
    #expect(try books.store.verify().findings == [])
  }

  @Test func resetOfACounterWithoutUsageIsKept() throws {
    _ = try books.apply([reset(1, op: 1, subject: "acme/ann", window: .day, by: 5)])
    let cells = try books.store.balances(account: "acme", endingAfter: start).elements
    #expect(cells.map(\.window) == ["d"])
    #expect(cells.map(\.settled) == [0])
    #expect(cells.map(\.forgiven) == [-5])
  }

  @Test func resetThatWouldChargeIsParked() throws {
    var entry = reset(1, op: 1, subject: "acme", window: .month, by: -30)
    entry.charged = 1
    #expect(try books.apply([entry]).parked == 1)
  }

  @Test func totalsArePagedAndFiltered() throws {
    let entries = try (1...25).map {
      try usage(
        Int64($0), op: $0, amount: Int64($0), subject: "a\($0 % 5)/x", feature: "f\($0 / 5)")
    }
    _ = try books.apply(entries)
    var sum: Int64 = 0
    var key: LedgerStore.TotalPageKey?
    repeat {
      let page = try books.store.totals(after: key, limit: 3).page
      sum += page.elements.reduce(0) { $0 + $1.charged }
      key = page.next
    } while key != nil
    #expect(sum == 325)
    #expect(try books.store.totals(.init(from: 0, to: 1)).page.elements == [])
  }

  @Test func totalsOfAnAccountNameTheirBucketsPosition() throws {
    let bucket = UInt32(StableHash.of("acme") % 4)
    if bucket != 0 { try books.open(Int(bucket)) }
    _ = try books.apply([try usage(1, op: 1, amount: 5)], bucket: bucket)
    let answer = try books.store.totals(.init(account: "acme", feature: "tokens"))
    #expect(answer.page.elements.map(\.charged) == [5])
    #expect(answer.position == BucketPosition(bucket: Int(bucket), epoch: 1, cursor: 1))
  }

  /// Of accounts of one bucket (of four); what each is told alone.
  private func accounts(ofBucket bucket: UInt64, _ count: Int) -> [String] {
    Array((0...).lazy.map { "a\($0)" }.filter { StableHash.of($0) % 4 == bucket }.prefix(count))
  }

  @Test func totalsOfSeveralAccountsAreThoseOfEach() throws {
    let accounts = accounts(ofBucket: 1, 5)
    try books.open(1)
    let entries = try (1...20).map {
      try usage(
        Int64($0), op: $0, amount: Int64($0), subject: accounts[$0 % 4] + "/x",
        feature: "f\($0 % 3)")
    }
    _ = try books.apply(entries, bucket: 1)
    let answer = try #require(
      try books.store.totals(ofAccounts: accounts, partsSince: start))
    #expect(answer.position == BucketPosition(bucket: 1, epoch: 1, cursor: 20))
    #expect(answer.accounts.map(\.account) == accounts)
    for found in answer.accounts {
      let alone = try books.store.totals(.init(account: found.account), partsSince: start)
      #expect(found.totals == alone.page.elements)
      #expect(found.parts == alone.parts)
      #expect(found.isMore == nil)
    }
    #expect(answer.accounts.map(\.totals.isEmpty) == [false, false, false, false, true])
    #expect(answer.accounts.reduce(0) { $0 + $1.totals.reduce(0) { $0 + $1.charged } } == 210)
  }

  @Test func totalsOfSeveralAccountsAreOfOneBucket() throws {
    let others = self.accounts(ofBucket: 1, 2) + self.accounts(ofBucket: 2, 1)
    #expect(try books.store.totals(ofAccounts: others, partsSince: start) == nil)
    #expect(try books.store.totals(ofAccounts: [], partsSince: start) == nil)
  }

  /// One of more lines than a page is to be asked for by itself, and the answer ends where it is
  /// full.
  @Test func totalsOfAccountsWithManyLinesAreBounded() throws {
    let accounts = accounts(ofBucket: 1, 30)
    try books.open(1)
    var op = 0
    for account in accounts {
      let batch = try (1...LedgerStore.pageMax + 1).map { number in
        op += 1
        return try usage(Int64(op), op: op, subject: account, feature: "f\(number)")
      }
      for from in stride(from: 0, to: batch.count, by: 500) {
        _ = try books.apply(Array(batch[from..<min(from + 500, batch.count)]), bucket: 1)
      }
    }
    let answer = try #require(
      try books.store.totals(ofAccounts: accounts, partsSince: start))
    #expect(answer.accounts.allSatisfy { $0.isMore == true })
    #expect(answer.accounts[0].totals.count == LedgerStore.pageMax)
    let expected = (LedgerStore.accountLinesMax + LedgerStore.pageMax) / (LedgerStore.pageMax + 1)
    #expect(answer.accounts.map(\.account) == Array(accounts.prefix(expected)))
  }

  @Test func knownIds() throws {
    _ = try books.apply([try usage(1, op: 1), try usage(2, op: 2)])
    let ids = (1...3).map { DeltaID(operation: operation($0), index: 0) }
    var poison = try usage(3, op: 3)
    poison.body = []
    _ = try books.apply([poison])
    let known = try books.store.known(
      ids + [DeltaID(operation: operation(4), index: 0)], bucket: 0)
    #expect(known.posted == Array(ids[..<2]))
    #expect(known.parked == [ids[2]])
  }

  @Test func deltaIdsBehindATotal() throws {
    _ = try books.apply(try (1...9).map { try usage(Int64($0), op: $0) })
    let first = try books.store.deltas(
      account: "acme", feature: "tokens", start: november.start.milliseconds, limit: 5)
    let second = try books.store.deltas(
      account: "acme", feature: "tokens", start: november.start.milliseconds, after: first.next,
      limit: 5)
    let ids = (first.elements + second.elements).map(\.id)
    #expect(ids == (1...9).map { "\(operation($0).hex).0" })
    #expect(second.next == nil)
  }

  @Test func newestConfigurationIsTheHighestVersion() throws {
    _ = try books.apply([
      change(1, op: 1, scope: .account, key: "acme", version: 2, after: "two"),
      change(2, op: 2, scope: .account, key: "acme", version: 1, after: "one"),
      change(3, op: 3, scope: .global, key: "", version: 7, after: "all", action: "catalog.apply"),
    ])
    #expect(try books.store.accountConfig("acme")?.after == "two")
    #expect(try books.store.accountConfig("other") == nil)
    let global = try books.store.globalConfig()
    #expect(global?.version == 7)
    #expect(global?.actor == "ops")
    #expect(global?.action == "catalog.apply")
    #expect(
      try books.store.configHistory(.thing(.account, key: "acme")).elements.map(\.version) == [
        1, 2,
      ])
    let first = try books.store.configHistory(limit: 2)
    #expect(first.elements.map(\.version) == [7, 1])
    #expect(
      try books.store.configHistory(after: first.next, limit: 2).elements.map(\.version) == [2])
  }

  @Test func currentConfigurationsTellTheIdsOfTheLatestChanges() throws {
    _ = try books.apply(
      (1...40).map {
        change(
          Int64($0), op: $0, scope: .account, key: "acme", version: Int64($0), after: "v\($0)")
      } + [
        change(41, op: 41, scope: .account, key: "acmf", version: 1, after: "other"),
        change(42, op: 42, scope: .global, key: "", version: 9, after: "all"),
      ])
    let (acme, unknown) = (
      try books.store.currentConfigs(accounts: ["acme", "nobody"])[0],
      try books.store.currentConfigs(accounts: ["acme", "nobody"])[1]
    )
    #expect(acme.version == 40 && acme.document == "v40")
    #expect(acme.changes.map(\.result) == (9...40).reversed().map { Int64($0) })
    #expect(acme.changes.first?.operation == operation(40).hex)
    #expect(acme.floor == operation(8).hex)
    #expect(unknown == CurrentConfig(account: "nobody", version: 0, document: "", changes: []))
    let global = try books.store.currentConfigs(accounts: nil)
    #expect(global.map(\.version) == [9] && global[0].changes.count == 1)
  }

  @Test func aRateResetIsRecordedAndChangesNoCounter() throws {
    let after = #"{"subject":"acme/bob","feature":"tokens","limit":"tokens.rpm","used":0}"#
    _ = try books.apply([
      change(1, op: 1, scope: .counter, key: "acme/bob", version: 0, after: after, action: "reset"),
      change(2, op: 2, scope: .counter, key: "acmf", version: 0, after: after, action: "reset"),
      change(3, op: 3, scope: .account, key: "acme", version: 1, after: "one"),
    ])
    #expect(try books.store.parked().isEmpty)
    #expect(
      try books.store.balances(account: "acme", endingAfter: WallTime(milliseconds: 0)).elements
        .isEmpty)
    let history = try books.store.configHistory(.account("acme")).elements
    #expect(history.map(\.operation) == [3, 1].map { operation($0).hex })
    let changes = try books.store.currentConfigs(accounts: ["acme"])[0].changes
    #expect(changes.map(\.operation) == [3, 1].map { operation($0).hex })
    #expect(changes.map(\.result) == [1, 0])
  }

  @Test func closedPeriodTakesAdjustmentsNotEdits() throws {
    _ = try books.apply([try usage(1, op: 1, amount: 5)])
    let before = try books.store.totals(.init(account: "acme")).page.elements
    try books.store.close(november, now: start)
    _ = try books.apply([try usage(2, op: 2, amount: 3)])
    let lines = try books.store.totals(.init(account: "acme")).page.elements
    #expect(lines.filter { !$0.adjustment } == before)
    #expect(lines.filter(\.adjustment).map(\.charged) == [3])
    let statement = try books.store.statement(account: "acme", start: november.start.milliseconds)
    #expect(statement.lines.map(\.charged) == [5])
    #expect(statement.lines.map(\.adjustments) == [0])
    // It runs still, and is closed: the next is the one that is open.
    let next = try books.store.statement(account: "acme", start: november.end.milliseconds)
    #expect(next.lines.map(\.charged) == [3])
    #expect(next.lines.map(\.adjustments) == [3])
    #expect(next.closed.map(\.start) == [november.start.milliseconds])
  }

  @Test func pruningDropsShortCountersOnly() throws {
    _ = try books.apply([try usage(1, op: 1, amount: 5)])
    let later = start + LedgerStore.lateHorizonMilliseconds
    #expect(try books.store.prune(now: later) == 0)
    #expect(try books.store.prune(now: later + 120_000) == 1)
    let cells = try books.store.balances(account: "acme", endingAfter: WallTime(milliseconds: 0))
    #expect(cells.elements.map(\.window) == ["M"])
    #expect(try books.store.verify().findings == [])
  }

  @Test func csvQuotesWhatASpreadsheetWouldMisread() throws {
    _ = try books.apply([
      try usage(1, op: 1, amount: 5, attributes: ["model": "a,\"b\""]),
      try usage(2, op: 1, index: 64, amount: -5, kind: .reversal, attributes: ["model": "=1"]),
    ])
    var text = ""
    let count = try books.store.export(format: .csv, account: "acme") { text += $0 }
    let lines = text.split(separator: "\r\n")
    #expect(count == 2)
    #expect(lines.count == 3)
    #expect(lines[1].hasSuffix(",\"model=a,\"\"b\"\"\",5,,0,0,,"))
    #expect(lines[2].contains(",-5,-5,0,false,"))
    #expect(ExportLine.field("=1+1") == "'=1+1")
    #expect(ExportLine.field("-5") == "-5")
  }

  @Test func jsonExportIsOneObjectALine() throws {
    _ = try books.apply([try usage(1, op: 1, amount: 5), try usage(2, op: 2, amount: 7)])
    var lines: [ExportLine] = []
    _ = try books.store.export(format: .json) { text in
      lines.append(try JSONDecoder().decode(ExportLine.self, from: Data(text.utf8)))
    }
    #expect(lines.map(\.charged) == [5, 7])
    #expect(lines.map(\.subject) == ["acme/ann", "acme/ann"])
    #expect(lines[0].periodStart == CivilDate.text(november.start))
  }

  @Test func soundBooksPassTheAudit() throws {
    _ = try books.apply(try (1...50).map { try usage(Int64($0), op: $0, amount: Int64($0)) })
    let report = try books.store.verify()
    #expect(report.findings == [])
    #expect(report.isSound)
    #expect(report.deltas == 50)
    #expect(report.postings == 100)
    #expect(report.streams == 1)
  }

  @Test(arguments: [
    ("UPDATE postings SET amount = amount + 1 WHERE idx = 0", "sum to"),
    ("UPDATE accounts SET balance = balance + 1 WHERE id = 1", "has balance"),
    ("UPDATE cells SET settled = settled - 1", "holds"),
    ("DELETE FROM cells", "is missing"),
    ("UPDATE series SET charged = charged + 1", "is not its deltas"),
    ("DELETE FROM deltas WHERE seq = 3", "gap from 3 to 3"),
    ("UPDATE cursors SET cursor = 99 WHERE epoch = 1", "cursor 99"),
    ("UPDATE cursors SET cursor = 2 WHERE epoch = 1", "cursor 2"),
    (
      "UPDATE deltas SET charged = charged + 1, actual = actual + 1 WHERE seq = 2",
      "not its numbers"
    ),
    ("DELETE FROM fences; UPDATE buckets SET epoch = 2", "neither current nor fenced"),
    ("DELETE FROM config", "without a config record"),
  ])
  func auditNotices(sql: String, finding: String) throws {
    var entries = try (1...5).map { try usage(Int64($0), op: $0, amount: Int64($0)) }
    entries.append(change(6, op: 6, scope: .account, key: "acme", version: 1, after: "{}"))
    _ = try books.apply(entries)
    try books.tamper(sql)
    let report = try books.store.verify()
    #expect(!report.isSound)
    #expect(report.findings.contains { $0.contains(finding) }, "\(report.findings)")
  }
}
