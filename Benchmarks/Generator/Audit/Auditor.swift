// The audit at the end of every run against Tollgate: units admitted by the replies, against the
// counters in Redis, against the ledger. All on differences from a reading before the run, so
// that it holds on a deployment that is already in use by others' accounts. Whoever was restarted
// during the run is connected to anew and asked until the time for draining is over; whoever does
// not answer by then is a named reason in the report, and the rest is compared all the same.
//
// It shares no code with what it checks: the client's side is counted from replies, Redis is read
// by a reader of its own, the ledger through its totals.

internal import Glibc
package import TollgateCore

package struct AuditReport: Sendable {
  package struct Row: Sendable, Hashable {
    package var feature: String
    package var accounts: Int
    package var client: Int64
    /// Redis read directly; as the sidecar tells it; nil: not asked, or not metered.
    package var redis: Int64?
    package var sidecar: Int64?
    package var ledger: Int64?
    /// Σ |difference| over the accounts and all sources.
    package var difference: Int64
  }

  package var rows: [Row] = []
  package var cellsCompared = 0
  /// Counters over windows so short that they turned more than once during the run.
  package var cellsTooShort = 0
  package var undelivered: Int64 = 0
  package var failOpen: Int64 = 0
  package var unresolved = 0
  package var limits = LimitCheck()
  /// What is wrong, one line each; the first few of a kind.
  package var problems: [String] = []
  /// Sources that did not answer at the end, each with the reason: what they know is not compared.
  package var unreachable: [String] = []
  package var difference: Int64 = 0
  package var seconds: Double = 0

  /// Nothing is wrong in what was compared.
  package var isSound: Bool {
    difference == 0 && unresolved == 0 && limits.exceeded.isEmpty && problems.isEmpty
  }

  /// Everything was compared, and nothing is wrong.
  package var isClean: Bool { isSound && unreachable.isEmpty }
}

package final class Auditor {
  package static let problemsMax = 20
  package static let limitSubjectsMax = 1000

  private let names: SubjectNames
  private let features: [String]
  private let rules: [LimitRule]
  private let admin: AdminLink?
  private let redis: RedisReader?
  private let ledger: AdminLink?
  private let deployment: String
  private var booksBefore = RedisBooks()
  private var billingBefore = BillingBooks()
  private var ledgerBefore = BillingBooks()

  /// Reads the baseline. At least one of the three sources must be there.
  package init(
    names: SubjectNames, features: [Name], rules: [LimitRule], deployment: String,
    admin: AdminLink?, redis: RedisReader?, ledger: AdminLink?
  ) throws {
    guard admin != nil || redis != nil || ledger != nil else {
      throw BenchError(
        "a run ends with an audit: give --token with an admin credential, or --redis, or --ledger")
    }
    if !rules.isEmpty && redis == nil {
      throw BenchError("--limit is checked against Redis: give --redis")
    }
    self.names = names
    self.features = features.map(\.text)
    self.rules = rules
    self.deployment = deployment
    self.admin = admin
    self.redis = redis
    self.ledger = ledger
    booksBefore = try readBooks()
    if let admin { billingBefore = try BillingBooks(reconciling: admin) }
    if let ledger { ledgerBefore = try BillingBooks(totals: ledger) }
  }

  private func readBooks() throws -> RedisBooks {
    guard let redis else { return RedisBooks() }
    return try RedisBooks(
      reading: redis, deployment: deployment, names: names, features: Set(features))
  }

  /// Compares until there is no difference, or the time for draining is over. It has always an
  /// end: what cannot be read then is named in the report.
  package func audit(_ tally: Tally, drainWithin seconds: Double) -> AuditReport {
    let start = Clocks.monotonic()
    let end = start + Int64(seconds * 1e9)
    while true {
      let isLast = Clocks.monotonic() >= end
      var (report, books) = compare(tally)
      let isSettled =
        report.difference == 0 && report.undelivered == 0 && report.problems.isEmpty
        && report.unreachable.isEmpty
      if isSettled || isLast {
        checkLimits(tally, books, &report)
        report.seconds = Double(Clocks.monotonic() - start) / 1e9
        if isLast || report.unreachable.isEmpty { return report }
      }
      usleep(200_000)
    }
  }

  /// One reading of one source; nil, and a reason in the report, where it does not answer.
  private func reading<Value>(
    _ source: String, _ report: inout AuditReport, _ body: () throws -> Value
  ) -> Value? {
    do { return try body() } catch {
      report.unreachable.append("\(source): \(error)")
      return nil
    }
  }

  private func compare(_ tally: Tally) -> (report: AuditReport, books: RedisBooks?) {
    var report = AuditReport()
    report.unresolved = tally.unresolved
    report.failOpen = tally.failOpen.reduce(0, +)
    let client = admitted(tally)
    let books = redis == nil ? nil : reading("Redis", &report) { try readBooks() }
    if let books { compareCells(client, books, &report) }
    var rows: [String: AuditReport.Row] = [:]
    for (index, feature) in features.enumerated() {
      var row = AuditReport.Row(feature: feature, accounts: 0, client: 0, difference: 0)
      row.client = tally.admitted.indices.lazy
        .filter { $0 % self.features.count == index }.reduce(0) { $0 + tally.admitted[$1] }
      rows[feature] = row
    }
    for (key, units) in client.accounts where units != 0 { rows[key.feature]?.accounts += 1 }
    if let books {
      for (cell, reading) in books.counters where cell.window == "M" && !cell.owner.contains("/") {
        let added = reading.added(since: booksBefore.counters[cell], at: booksBefore.time) ?? 0
        let sum = (rows[cell.feature]?.redis ?? 0) + added
        rows[cell.feature]?.redis = sum
      }
    }
    var hasLedger = false
    if let admin, let now = reading("sidecar", &report, { try BillingBooks(reconciling: admin) }) {
      hasLedger = true
      report.undelivered += now.undelivered
      compareBilling("sidecar's Redis", client, billingBefore.redis, now.redis, &rows, &report) {
        $0.sidecar = ($0.sidecar ?? 0) + $1
      }
      compareBilling("ledger", client, billingBefore.ledger, now.ledger, &rows, &report) {
        $0.ledger = ($0.ledger ?? 0) + $1
      }
      if now.difference != 0 {
        report.difference += now.difference
        report.problem("reconcile finds a difference of \(now.difference) itself")
      }
      for (account, why) in now.skipped.sorted(by: { $0.key < $1.key }) where isOurs(account) {
        report.problem("reconcile skipped \(account): \(why)")
      }
    }
    if let ledger, let now = reading("ledger", &report, { try BillingBooks(totals: ledger) }) {
      compareBilling("ledger", client, ledgerBefore.ledger, now.ledger, &rows, &report) {
        $0.ledger = hasLedger ? $0.ledger : ($0.ledger ?? 0) + $1
      }
    }
    report.rows = features.compactMap { rows[$0] }
    return (report, books)
  }

  private struct Admitted {
    var accounts: [AccountFeature: Int64] = [:]
    var subjects: [AccountFeature: Int64] = [:]
  }

  private func admitted(_ tally: Tally) -> Admitted {
    var result = Admitted()
    for index in tally.admitted.indices where tally.admitted[index] != 0 {
      let units = tally.admitted[index]
      let subject = index / features.count
      let feature = features[index % features.count]
      let account = names.account(names.members == 0 ? subject : subject / names.members)
      result.accounts[AccountFeature(account: account, feature: feature), default: 0] += units
      if names.members > 0 {
        result.subjects[AccountFeature(account: names.path(subject), feature: feature)] = units
      }
    }
    return result
  }

  private func isOurs(_ account: String) -> Bool {
    guard account.hasPrefix(names.prefix),
      let number = Int(account.dropFirst(names.prefix.count))
    else { return false }
    return number >= 0 && number < names.accounts && names.account(number) == account
  }

  /// Every counter of every subject, whatever its window, must have moved by what was admitted.
  private func compareCells(_ client: Admitted, _ books: RedisBooks, _ report: inout AuditReport) {
    var covered: Set<AccountFeature> = []
    for (cell, reading) in books.counters.sorted(by: { $0.key < $1.key }) {
      let key = AccountFeature(account: cell.owner, feature: cell.feature)
      guard let added = reading.added(since: booksBefore.counters[cell], at: booksBefore.time)
      else {
        report.cellsTooShort += 1
        continue
      }
      report.cellsCompared += 1
      covered.insert(key)
      let units = (cell.owner.contains("/") ? client.subjects : client.accounts)[key] ?? 0
      if added != units {
        report.difference += abs(added - units)
        report.problem(
          "Redis counter \(cell.feature)|\(cell.window) of \(cell.owner): \(added) added, "
            + "\(units) admitted")
      }
    }
    // A counter that was there before and is gone now.
    for (cell, reading) in booksBefore.counters where books.counters[cell] == nil {
      guard Window(code: cell.window) == .month, reading.settled != 0 else { continue }
      report.difference += reading.settled
      report.problem("Redis counter \(cell.feature)|\(cell.window) of \(cell.owner) is gone")
    }
  }

  private func compareBilling(
    _ source: String, _ client: Admitted, _ before: [AccountFeature: Int64],
    _ now: [AccountFeature: Int64], _ rows: inout [String: AuditReport.Row],
    _ report: inout AuditReport, _ add: (inout AuditReport.Row, Int64) -> Void
  ) {
    // A feature without any total is not metered: nobody bills it, nothing is compared.
    let metered = Set(now.keys.map(\.feature)).union(before.keys.map(\.feature))
    var keys = Set(client.accounts.keys)
    for key in now.keys where isOurs(key.account) { keys.insert(key) }
    for key in keys.sorted() where metered.contains(key.feature) {
      let added = (now[key] ?? 0) - (before[key] ?? 0)
      let units = client.accounts[key] ?? 0
      if var row = rows[key.feature] {
        add(&row, added)
        row.difference += abs(added - units)
        rows[key.feature] = row
      } else if added == 0 {
        continue
      }
      if added != units {
        report.difference += abs(added - units)
        report.problem(
          "\(source): \(key.account) \(key.feature): \(added) added, \(units) admitted")
      }
    }
  }

  private func checkLimits(_ tally: Tally, _ books: RedisBooks?, _ report: inout AuditReport) {
    let allowance = Dictionary(uniqueKeysWithValues: zip(features, tally.failOpen))
    if let books { report.limits.check(rules, books, allowance: allowance) }
    // Who has just not answered is not asked a thousand times more.
    guard let admin, !report.unreachable.contains(where: { $0.hasPrefix("sidecar") }) else {
      return
    }
    var used: [(subject: Int, units: Int64)] = []
    for subject in 0..<names.count {
      let units = (0..<features.count).reduce(Int64(0)) {
        $0 + tally.admitted[subject * features.count + $1]
      }
      if units > 0 { used.append((subject, units)) }
    }
    used.sort { $0.units > $1.units }
    let subjects = used.prefix(Self.limitSubjectsMax).map { names.path($0.subject) }
    var limits = report.limits
    _ = reading("sidecar's limits", &report) {
      try limits.check(subjects, admin, allowance: allowance)
    }
    report.limits = limits
  }
}

extension AuditReport {
  mutating func problem(_ text: String) {
    if problems.count < Auditor.problemsMax { problems.append(text) }
  }
}
