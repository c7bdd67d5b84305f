// The part of the audit that is about prices: what rates charged against the deltas that say it,
// against the price of a unit where a catalog on record names one, and the terms on record against
// the configuration changes they were read from.

internal import GRDB
internal import TollgateCore

struct AuditedCharge {
  var units: Int64 = 0
  var charge: Int64 = 0
  var deltas: Int64 = 0
  var corrections: Int64 = 0

  mutating func add(_ one: RateCharge, isCorrection: Bool) {
    units &+= one.units
    charge &+= one.charge
    deltas += 1
    if isCorrection { corrections += 1 }
  }
}

extension LedgerStore {
  func checkCharges(
    _ db: Database, _ expected: [AuditReading.ChargeKey: AuditedCharge],
    _ report: inout AuditReport
  ) throws {
    var expected = expected
    let rows = try Row.fetchCursor(
      db, sql: "SELECT series, rate, rate_from, units, charge, deltas, corrections FROM charges")
    while let row = try rows.next() {
      report.charges += 1
      let key = AuditReading.ChargeKey(series: row[0], rate: row[1], from: row[2])
      let sum = expected.removeValue(forKey: key) ?? AuditedCharge()
      if sum.units != row[3] || sum.charge != row[4] || sum.deltas != row[5]
        || sum.corrections != row[6]
      {
        report.find(
          "rate \(key.rate) from \(key.from) of series \(key.series) charged \(row[4] as Int64)"
            + " for \(row[3] as Int64) units, its deltas \(sum.charge) for \(sum.units)")
      }
    }
    for (key, sum) in expected {
      report.find("rate \(key.rate) of series \(key.series) is missing, it charged \(sum.charge)")
    }
    try checkPrices(db, &report)
  }

  /// A rate charges ⌊units × price⌋ in a month: each operation the difference that it makes to
  /// that. So the sum is below the exact one by less than a micro-unit, and stays so while nothing
  /// happened out of turn. What is taken back word for word, was met twice, lost or is parked may
  /// each move it by one more; where an epoch was closed, operations may have been priced without
  /// knowing of each other, and each by less than one.
  private func checkPrices(_ db: Database, _ report: inout AuditReport) throws {
    let buckets = UInt64(deployment?.buckets ?? 1)
    func counts(_ sql: String) throws -> [UInt64: Int64] {
      var found: [UInt64: Int64] = [:]
      for row in try Row.fetchAll(db, sql: sql) {
        found[UInt64(row[0] as Int64)] = row[1] as Int64
      }
      return found
    }
    let disorder = try counts(
      """
      SELECT bucket, sum(n) FROM (
        SELECT bucket, count(*) AS n FROM duplicates GROUP BY bucket
        UNION ALL SELECT bucket, count(*) FROM parked GROUP BY bucket
      ) GROUP BY bucket
      """)
    let fences = try counts("SELECT bucket, count(*) FROM fences GROUP BY bucket")
    let rows = try Row.fetchCursor(
      db,
      sql: """
        SELECT s.account, s.feature, s.period_start, c.rate, c.rate_from, sum(c.units),
          sum(c.charge), sum(c.deltas), sum(c.corrections), p.amount, p.per
        FROM charges AS c JOIN series AS s ON s.id = c.series
        JOIN prices AS p ON p.rate = c.rate AND p.rate_from = c.rate_from AND p.changed = 0
        GROUP BY s.account, s.feature, s.period_start, c.rate, c.rate_from
        """)
    while let row = try rows.next() {
      report.priced += 1
      let account: String = row[0]
      let bucket = StableHash.of(account) % buckets
      let per = Int128(row[10] as Int64)
      let exact = Int128(row[5] as Int64) * Int128(row[9] as Int64)
      let difference = Int128(row[6] as Int64) * per - exact
      let deltas: Int64 = row[7]
      let slack =
        fences[bucket] == nil
        ? min(deltas, 1 + (row[8] as Int64) + disorder[bucket, default: 0]) : deltas
      guard difference.magnitude >= per.magnitude * UInt128(max(1, slack)) else { continue }
      report.find(
        "rate \(row[3] as String) from \(row[4] as Int64) charged \(account)"
          + " \(row[6] as Int64) for \(row[5] as Int64) units of \(row[1] as String) in the period"
          + " from \(row[2] as Int64), at \(row[9] as Int64) for \(row[10] as Int64)")
    }
  }

  /// The newest change that names a grant says its terms; a price is sure if all say the same.
  func checkTerms(_ db: Database, _ report: inout AuditReport) throws {
    struct Key: Hashable {
      var owner: String
      var id: String
      var from: Int64 = 0
    }
    var grants: [Key: (version: Int64, terms: Set<GrantTerms>)] = [:]
    var prices: [Key: Set<[Int64]>] = [:]
    let rows = try Row.fetchCursor(
      db, sql: "SELECT scope, key, version, after FROM config WHERE scope <> 'counter'")
    while let row = try rows.next() {
      if row[0] as String == "global" {
        for price in Terms.prices(row[3]) {
          prices[Key(owner: "", id: price.rate, from: price.from), default: []].insert(
            [price.amount, price.per])
        }
        continue
      }
      let version: Int64 = row[2]
      for terms in Terms.grants(row[3]) {
        let key = Key(owner: row[1], id: terms.id)
        let known = grants[key]
        if let known, known.version > version { continue }
        let beside = known?.version == version ? known?.terms ?? [] : []
        grants[key] = (version, beside.union([terms]))
      }
    }
    for row in try Row.fetchAll(db, sql: "SELECT * FROM grants") {
      let found = grants.removeValue(forKey: Key(owner: row["account"], id: row["id"]))
      guard let found, found.version == row["version"], found.terms.contains(GrantTerms(row))
      else {
        report.find("grant \(row["id"] as String) of \(row["account"] as String) is not its change")
        continue
      }
    }
    for key in grants.keys { report.find("grant \(key.id) of \(key.owner) is not on record") }
    for row in try Row.fetchAll(db, sql: "SELECT * FROM prices") {
      let key = Key(owner: "", id: row["rate"], from: row["rate_from"])
      let found = prices.removeValue(forKey: key) ?? []
      let isChanged: Bool = row["changed"]
      guard found.contains([row["amount"], row["per"]]), isChanged == (found.count > 1) else {
        report.find("the price of \(key.id) from \(key.from) is not its catalog's")
        continue
      }
    }
    for key in prices.keys { report.find("the price of \(key.id) is not on record") }
  }
}
