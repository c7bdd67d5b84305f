// The audit at the end of every run against Tollgate: units admitted by the replies, against the
// counters in Redis, against the ledger. All on differences from a reading before the run, so
// that it holds on a deployment that is already in use by others' accounts.
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
  package var difference: Int64 = 0
  package var seconds: Double = 0

  package var isClean: Bool {
    difference == 0 && unresolved == 0 && limits.exceeded.isEmpty && problems.isEmpty
  }
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

  /// Compares until there is no difference, or the time for draining is over.
  package func audit(_ tally: Tally, drainWithin seconds: Double) throws -> AuditReport {
    let start = Clocks.monotonic()
    let end = start + Int64(seconds * 1e9)
    while true {
      var report = try compare(tally)
      report.seconds = Double(Clocks.monotonic() - start) / 1e9
      if report.difference == 0 && report.undelivered == 0 || Clocks.monotonic() >= end {
        try checkLimits(tally, &report)
        return report
      }
      usleep(200_000)
    }
  }

  private func compare(_ tally: Tally) throws -> AuditReport {
    var report = AuditReport()
    report.unresolved = tally.unresolved
    report.failOpen = tally.failOpen.reduce(0, +)
    let client = admitted(tally)
    let books = try readBooks()
    if redis != nil { compareCells(client, books, &report) }
    var rows: [String: AuditReport.Row] = [:]
    for (index, feature) in features.enumerated() {
      var row = AuditReport.Row(feature: feature, accounts: 0, client: 0, difference: 0)
      row.client = tally.admitted.indices.lazy
        .filter { $0 % self.features.count == index }.reduce(0) { $0 + tally.admitted[$1] }
      rows[feature] = row
    }
    for (key, units) in client.accounts where units != 0 { rows[key.feature]?.accounts += 1 }
    if redis != nil {
      for (cell, reading) in books.counters where cell.window == "M" && !cell.owner.contains("/") {
        let added = reading.added(since: booksBefore.counters[cell], at: booksBefore.time) ?? 0
        let sum = (rows[cell.feature]?.redis ?? 0) + added
        rows[cell.feature]?.redis = sum
      }
    }
    if let admin {
      let now = try BillingBooks(reconciling: admin)
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
    if let ledger {
      let now = try BillingBooks(totals: ledger)
      compareBilling("ledger", client, ledgerBefore.ledger, now.ledger, &rows, &report) {
        $0.ledger = admin == nil ? ($0.ledger ?? 0) + $1 : $0.ledger
      }
    }
    report.rows = features.compactMap { rows[$0] }
    return report
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

  private func checkLimits(_ tally: Tally, _ report: inout AuditReport) throws {
    let allowance = Dictionary(uniqueKeysWithValues: zip(features, tally.failOpen))
    if !rules.isEmpty { report.limits.check(rules, try readBooks(), allowance: allowance) }
    if let admin {
      var used: [(subject: Int, units: Int64)] = []
      for subject in 0..<names.count {
        let units = (0..<features.count).reduce(Int64(0)) {
          $0 + tally.admitted[subject * features.count + $1]
        }
        if units > 0 { used.append((subject, units)) }
      }
      used.sort { $0.units > $1.units }
      try report.limits.check(
        used.prefix(Self.limitSubjectsMax).map { names.path($0.subject) }, admin,
        allowance: allowance)
    }
  }
}

extension AuditReport {
  mutating func problem(_ text: String) {
    if problems.count < Auditor.problemsMax { problems.append(text) }
  }
}
