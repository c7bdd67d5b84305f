// How much work the audit of the books is: the steps of SQLite's machine are counted, not time, so
// that a slow machine changes nothing. Books of many accounts are what makes a bad plan show.

import GRDB
import GRDBSQLite
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateLedger

private final class Counter {
  static let step: Int32 = 100
  var calls = 0
}

/// The steps that `body` made on this connection.
private func countedSteps(_ db: Database, _ body: () throws -> Void) throws -> Int {
  let counter = Counter()
  // Valid until the handler is taken off again: the counter lives as long as this function.
  let context = unsafe Unmanaged.passUnretained(counter).toOpaque()
  unsafe sqlite3_progress_handler(
    db.sqliteConnection, Counter.step,
    { context in
      if let context = unsafe context {
        unsafe Unmanaged<Counter>.fromOpaque(context).takeUnretainedValue().calls += 1
      }
      return 0
    }, context)
  defer { unsafe sqlite3_progress_handler(db.sqliteConnection, 0, nil, nil) }
  try body()
  return withExtendedLifetime(counter) { counter.calls * Int(Counter.step) }
}

@Suite(.blocking) struct VerifyWorkTests {
  /// Books in which everything that is audited grows with the number of accounts.
  private func books(_ accounts: Int) throws -> Books {
    let books = try Books()
    try books.open()
    var entries: [OutboxEntry] = []
    var next: Int64 { Int64(entries.count) + 1 }
    for account in 0..<accounts {
      let op = account * 10
      let subject = "a\(account)/m"
      entries.append(try usage(next, op: op, amount: 3, subject: subject))
      entries.append(try usage(next, op: op + 1, amount: 2, absorbed: 1, subject: subject))
      entries.append(
        change(next, op: op + 2, scope: .account, key: "a\(account)", version: 1, after: "{}"))
      if account % 4 == 0 {
        var poison = try usage(next, op: op + 3, subject: subject)
        poison.body = [0xDE, 0xAD]
        entries.append(poison)
        entries.append(try usage(next, op: op, amount: 3, subject: subject))
      }
    }
    for start in stride(from: 0, to: entries.count, by: 500) {
      _ = try books.apply(Array(entries[start..<min(start + 500, entries.count)]))
    }
    // Beyond the cursor every other position is lost.
    let end = next
    let late = try (0..<accounts / 4).map { index in
      try usage(end + Int64(index) * 2 + 1, op: 10_000_000 + index, subject: "a\(index)/m")
    }
    _ = try books.open(epoch: 1, entries: late, seen: late.last?.sequence ?? 0)
    return books
  }

  private func work(_ accounts: Int) throws -> (steps: Int, postings: Int) {
    let books = try books(accounts)
    var report = AuditReport()
    let steps = try books.store.read { db in
      try countedSteps(db) { report = try books.store.verify(db) }
    }
    #expect(report.findings == [])
    #expect(report.parked == Int64(accounts / 4) && report.duplicates == Int64(accounts / 4))
    #expect(report.lostSequences >= Int64(accounts / 4))
    #expect(report.postings >= Int64(accounts) * 4)
    return (steps, Int(report.postings))
  }

  @Test func verifyIsLinearInThePostings() throws {
    let small = try work(200)
    let large = try work(800)
    print(
      "verify: \(small.steps) steps of \(small.postings) postings, \(large.steps) of "
        + "\(large.postings)")
    #expect(large.postings >= 4 * small.postings)
    // Four times the postings: four times the work, and half as much again for deeper trees.
    #expect(large.steps < 6 * small.steps)
    #expect(large.steps < 400 * large.postings)
  }

  @Test func everyBalanceIsHeldAgainstItsPostings() throws {
    let books = try books(40)
    try books.tamper("UPDATE accounts SET balance = balance + 1 WHERE id % 10 = 1")
    try books.tamper("INSERT INTO accounts (id, name, balance) VALUES (999999, 'usage:x:y', 7)")
    let wrong = try books.store.verify()
    #expect(wrong.findings.allSatisfy { $0.hasPrefix("account ") && $0.contains("has balance") })
    #expect(wrong.findings.contains("account usage:x:y has balance 7, postings 0"))
    let accounts = try books.store.read { db in
      try Int.fetchOne(db, sql: "SELECT count(*) FROM accounts WHERE id % 10 = 1")
    }
    #expect(wrong.findings.count == (accounts ?? 0) + 1)
  }

  @Test func postingsOfAnAccountThatIsNotThereAreFound() throws {
    let books = try books(8)
    try books.tamper("DELETE FROM accounts WHERE id IN (1, (SELECT max(id) FROM accounts))")
    let findings = try books.store.verify().findings
    #expect(findings.contains { $0.hasPrefix("account 1 is missing, its postings sum to ") })
    #expect(findings.filter { $0.contains(" is missing, its postings ") }.count == 2)
  }
}
