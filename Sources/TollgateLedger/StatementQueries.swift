// Statements out of the file. Everything comes from one snapshot. Bounded by what an account has:
// features of the catalog, rates and their versions, and at most `grantLinesMax` grants.

internal import GRDB
package import TollgateCore

extension LedgerStore {
  package static let grantLinesMax = 1000
  static let instancesMax = 64

  /// What one account used in its billing period of the month that starts at `start`, in UTC or by
  /// the account's own calendar. `now` judges which grants have begun and expired; nil: the end of
  /// the period.
  package func statement(account: String, start: Int64, now: WallTime? = nil) throws -> Statement {
    let month = BillingMonth.month(ofStart: start)
    let starts = BillingMonth.starts(in: month)
    return try read { db in
      let billed = try Schema.billed(db)
      let found = try Row.fetchOne(
        db,
        sql: """
          SELECT min(\(billed.start)), max(\(billed.end)) FROM series AS s
          WHERE account = ? AND \(billed.start) >= ? AND \(billed.start) < ?
          """, arguments: [account, starts.lowerBound, starts.upperBound])
      let place: (start: Int64?, end: Int64?) = (found?[0], found?[1])
      let end = place.end ?? month.end.milliseconds
      var statement = Statement(
        deployment: deployment?.id.text ?? "", account: account,
        start: place.start ?? month.start.milliseconds, end: end,
        lines: try Self.lines(db, account: account, starts, billed.start))
      // A file that an older release wrote has no parts, and is read as it is.
      guard try Schema.hasParts(db) else { return statement }
      statement.rates = try Self.rates(db, account: account, starts, billed.start)
      statement.closed = try Self.closed(db, account: account, starts, billed.start)
      try Self.addGrants(to: &statement, db, now: min(now?.milliseconds ?? end, end))
      return statement
    }
  }

  private static func lines(
    _ db: Database, account: String, _ starts: Range<Int64>, _ billed: String
  ) throws -> [Statement.Line] {
    var lines = try Row.fetchAll(
      db,
      sql: """
        SELECT s.feature,
          coalesce(sum(CASE WHEN d.kind = 1 THEN d.actual END), 0),
          coalesce(sum(CASE WHEN d.kind = 2 THEN -d.actual END), 0),
          sum(d.charged), sum(d.absorbed),
          coalesce(sum(CASE WHEN s.adjustment = 1 THEN d.charged END), 0), count(*)
        FROM series AS s JOIN deltas AS d ON d.series = s.id
        WHERE s.account = ? AND \(billed) >= ? AND \(billed) < ?
        GROUP BY s.feature ORDER BY s.feature
        """, arguments: [account, starts.lowerBound, starts.upperBound]
    ).map {
      Statement.Line(
        feature: $0[0], used: $0[1], reversed: $0[2], charged: $0[3], absorbed: $0[4],
        adjustments: $0[5], deltas: $0[6])
    }
    let rows = try Row.fetchCursor(
      db,
      sql: """
        SELECT e.feature, a.name, e.total FROM (
          SELECT s.feature AS feature, p.account AS account, sum(p.amount) AS total
          FROM series AS s JOIN deltas AS d ON d.series = s.id
          JOIN postings AS p ON p.op = d.op AND p.idx = d.idx AND p.bucket = d.bucket
          WHERE s.account = ? AND \(billed) >= ? AND \(billed) < ?
          GROUP BY s.feature, p.account
        ) AS e JOIN accounts AS a ON a.id = e.account ORDER BY e.feature, a.name
        """, arguments: [account, starts.lowerBound, starts.upperBound])
    while let row = try rows.next() {
      let feature: String = row[0]
      guard let index = lines.firstIndex(where: { $0.feature == feature }),
        let line = BookLine(name: row[1])
      else { continue }
      lines[index].add(line, row[2])
    }
    return lines
  }

  private static func rates(
    _ db: Database, account: String, _ starts: Range<Int64>, _ billed: String
  ) throws -> [Statement.RateLine] {
    try Row.fetchAll(
      db,
      sql: """
        SELECT s.feature, c.rate, c.rate_from, sum(c.units), sum(c.charge), p.amount, p.per
        FROM series AS s JOIN charges AS c ON c.series = s.id
        LEFT JOIN prices AS p ON p.rate = c.rate AND p.rate_from = c.rate_from AND p.changed = 0
        WHERE s.account = ? AND \(billed) >= ? AND \(billed) < ?
        GROUP BY s.feature, c.rate, c.rate_from ORDER BY s.feature, c.rate, c.rate_from
        """, arguments: [account, starts.lowerBound, starts.upperBound]
    ).map {
      Statement.RateLine(
        feature: $0[0], rate: $0[1], from: $0[2], units: $0[3], charge: $0[4], price: $0[5],
        per: $0[6])
    }
  }
}

extension LedgerStore {
  /// What stands here of periods that were closed when it came.
  private static func closed(
    _ db: Database, account: String, _ starts: Range<Int64>, _ billed: String
  ) throws -> [Statement.ClosedLine] {
    try Row.fetchAll(
      db,
      sql: """
        SELECT s.feature, s.period_start, s.period_end, sum(s.actual), sum(s.charged),
          sum(s.absorbed), sum(s.deltas)
        FROM series AS s WHERE s.account = ? AND \(billed) >= ? AND \(billed) < ?
          AND s.adjustment = 1 AND s.deltas > 0
        GROUP BY s.feature, s.period_start ORDER BY s.feature, s.period_start
        """, arguments: [account, starts.lowerBound, starts.upperBound]
    ).map {
      Statement.ClosedLine(
        feature: $0[0], start: $0[1], end: $0[2], actual: $0[3], charged: $0[4], absorbed: $0[5],
        deltas: $0[6])
    }
  }
}

extension Statement.Line {
  fileprivate mutating func add(_ line: BookLine, _ amount: Int64) {
    entries.append(
      .init(
        column: line.column.rawValue, part: line.part.word, grant: line.part.grant,
        amount: amount))
    if line.part == .absorbed { return }
    switch line.column {
    case .refund: refunds += amount
    case .adjustment: adjusted += amount
    case .usage:
      switch line.part {
      case .included: included += amount
      case .grant: granted += amount
      case .overage: overage += amount
      case .deficit: deficit += amount
      case .absorbed: break
      }
    }
  }
}

// MARK: Grants

extension LedgerStore {
  /// A counter of what was burnt from a grant, at the level of the account.
  fileprivate struct BurntCell {
    var id: String
    var feature: String
    var start: Int64
    var end: Int64
    var units: Int64
  }
  private struct GrantKey: Hashable {
    var feature: String
    var id: String
  }

  private static func addGrants(
    to statement: inout Statement, _ db: Database, now: Int64
  ) throws {
    let account = statement.account
    let current =
      try Int64.fetchOne(
        db, sql: "SELECT max(version) FROM config WHERE scope = 'account' AND key = ?",
        arguments: [account]) ?? 0
    let issued = try Row.fetchAll(
      db,
      sql: """
        SELECT * FROM grants WHERE account = ? AND effective < ?
          AND (expires IS NULL OR expires > ?) AND (voided IS NULL OR voided > ?)
        ORDER BY created DESC, id LIMIT ?
        """,
      arguments: [account, statement.end, statement.start, statement.start, grantLinesMax + 1])
    // '%' follows '$': every counter of a grant, by the primary key as far as it goes.
    let cells = try Row.fetchAll(
      db,
      sql: """
        SELECT feature, substr(window, 2), period_start, period_end, settled - forgiven
        FROM counters WHERE account = ?1 AND subject = ?1 AND window > '$' AND window < '%'
        ORDER BY feature, window, period_start
        """, arguments: [account]
    ).map { BurntCell(id: $0[1], feature: $0[0], start: $0[2], end: $0[3], units: $0[4]) }
    let burnt = Dictionary(grouping: cells) { GrantKey(feature: $0.feature, id: $0.id) }
    var inPeriod: [GrantKey: Int64] = [:]
    for line in statement.lines {
      for entry in line.entries {
        guard let id = entry.grant else { continue }
        inPeriod[GrantKey(feature: line.feature, id: id), default: 0] += entry.amount
      }
    }
    var seen: Set<GrantKey> = []
    for row in issued {
      let terms = GrantTerms(row)
      let key = GrantKey(feature: terms.feature, id: terms.id)
      seen.insert(key)
      statement.grants.append(
        .init(
          terms, burnt[key] ?? [], inPeriod: inPeriod[key] ?? 0, now: now,
          isListed: row["version"] as Int64 == current, in: statement))
    }
    // What was burnt under terms that no account's configuration holds: a plan's own credit.
    let others = Set(inPeriod.keys).union(
      cells.filter { $0.start < statement.end && $0.end > statement.start }
        .map { GrantKey(feature: $0.feature, id: $0.id) })
    for key in others.subtracting(seen).sorted(by: { ($0.feature, $0.id) < ($1.feature, $1.id) }) {
      let row = try Row.fetchOne(
        db, sql: "SELECT * FROM grants WHERE account = ? AND id = ? AND feature = ?",
        arguments: [account, key.id, key.feature])
      if let row {
        statement.grants.append(
          .init(
            GrantTerms(row), burnt[key] ?? [], inPeriod: inPeriod[key] ?? 0, now: now,
            isListed: row["version"] as Int64 == current, in: statement))
      } else {
        statement.grants.append(
          .init(key.id, key.feature, burnt[key] ?? [], inPeriod[key] ?? 0, in: statement))
      }
    }
    statement.moreGrants = statement.grants.count > grantLinesMax
    statement.grants = Array(statement.grants.prefix(grantLinesMax))
  }
}

extension Statement.GrantLine {
  fileprivate init(
    _ terms: GrantTerms, _ cells: [LedgerStore.BurntCell], inPeriod: Int64, now: Int64,
    isListed: Bool, in statement: Statement
  ) {
    let burnt = cells.reduce(0) { $0 + $1.units }
    let state: State =
      if let voided = terms.voided, voided <= now {
        .voided
      } else if let expires = terms.expires, expires <= now {
        .expired
      } else if !isListed {
        .removed
      } else { terms.effective > now ? .pending : .active }
    self.init(
      id: terms.id, feature: terms.feature, state: state, kind: terms.kind, amount: terms.amount,
      priority: terms.priority, effective: terms.effective, expires: terms.expires,
      created: terms.created, every: terms.every, rolloverMin: terms.rolloverMin,
      rolloverMax: terms.rolloverMax, voided: terms.voided, reason: terms.reason,
      author: terms.author, burnt: burnt, burntInPeriod: inPeriod)
    if terms.every == nil {
      let left = terms.amount - burnt
      let isLive = state == .active || state == .pending
      remaining = isLive ? left : 0
      lapsed = isLive ? 0 : left
    } else {
      instances = Self.instances(cells, terms, in: statement)
    }
  }

  /// A grant whose terms are not on record.
  fileprivate init(
    _ id: String, _ feature: String, _ cells: [LedgerStore.BurntCell], _ inPeriod: Int64,
    in statement: Statement
  ) {
    self.init(
      id: id, feature: feature, state: .plan, burnt: cells.reduce(0) { $0 + $1.units },
      burntInPeriod: inPeriod)
    instances = Self.instances(cells, nil, in: statement)
  }

  /// The instances that something was burnt from and that touch the period, the newest last. What
  /// an instance got from the one before is worked out like the limit does: nothing of it is
  /// stored.
  private static func instances(
    _ cells: [LedgerStore.BurntCell], _ terms: GrantTerms?, in statement: Statement
  ) -> [Statement.Instance] {
    var instances: [Statement.Instance] = []
    var before: (end: Int64, left: Int64)?
    for cell in cells {
      var instance = Statement.Instance(start: cell.start, end: cell.end, burnt: cell.units)
      if let terms {
        // Of an instance that nothing was burnt from, all is left.
        let left = before.map { $0.end == cell.start ? $0.left : terms.amount } ?? terms.amount
        let carried =
          terms.effective >= cell.start
          ? 0 : min(terms.rolloverMax, max(terms.rolloverMin, min(max(0, left), terms.amount)))
        instance.carried = carried
        instance.remaining = terms.amount + carried - cell.units
        before = (cell.end, terms.amount + carried - cell.units)
      }
      if cell.start < statement.end, cell.end > statement.start { instances.append(instance) }
    }
    return instances.suffix(LedgerStore.instancesMax)
  }
}
