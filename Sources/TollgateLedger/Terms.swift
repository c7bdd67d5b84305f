// The terms that amounts on record were made under: the grants of accounts and the prices of
// rates, read from the configuration changes themselves, so that a statement can say what was
// given and an audit what a unit should have cost. Read leniently: a document of another release
// that says it in another way leaves the terms unknown, and posts all the same.

internal import GRDB
internal import TollgateCore

struct GrantTerms: Hashable {
  var id: String
  var feature: String
  var kind: String
  var amount: Int64
  var priority: Int64
  var effective: Int64
  var expires: Int64?
  var created: Int64
  var every: String?
  var rolloverMin: Int64
  var rolloverMax: Int64
  var voided: Int64?
  var reason: String
  var author: String

  init?(_ document: Document) {
    func instant(_ key: String) -> Int64? {
      (document[key + "_ms"] ?? document[key])?.quantity
    }
    guard let id = document["id"]?.words, (try? Name(id)) != nil,
      let feature = document["feature"]?.words, (try? Name(feature)) != nil,
      let amount = document["amount"]?.quantity
    else { return nil }
    self.id = id
    self.feature = feature
    self.amount = amount
    kind = document["kind"]?.words ?? "paid"
    priority = document["priority"]?.quantity ?? 100
    created = instant("created") ?? 0
    effective = instant("effective") ?? created
    expires = instant("expires")
    every = document["every"]?.words
    rolloverMin = document["rollover"]?["min"]?.quantity ?? 0
    rolloverMax = document["rollover"]?["max"]?.quantity ?? 0
    voided = instant("voided")
    reason = document["reason"]?.words ?? ""
    author = document["author"]?.words ?? ""
  }

  init(_ row: Row) {
    id = row["id"]
    feature = row["feature"]
    kind = row["kind"]
    amount = row["amount"]
    priority = row["priority"]
    effective = row["effective"]
    expires = row["expires"]
    created = row["created"]
    every = row["every"]
    rolloverMin = row["rollover_min"]
    rolloverMax = row["rollover_max"]
    voided = row["voided"]
    reason = row["reason"]
    author = row["author"]
  }
}

/// `amount` micro-units for `per` units.
struct PriceTerms: Hashable {
  var rate: String
  var from: Int64
  var amount: Int64
  var per: Int64

  init?(_ document: Document) {
    guard let rate = document["id"]?.words, (try? Name(rate)) != nil,
      let amount = document["price"]?.quantity, amount >= 0
    else { return nil }
    let per = document["per"] ?? .integer(1)
    let from = document["from"] ?? document["from_ms"] ?? .integer(0)
    guard let per = per.quantity, per > 0, let from = from.quantity else { return nil }
    let divisor = Self.greatestDivisor(amount, per)
    self.rate = rate
    self.from = from
    self.amount = amount / divisor
    self.per = per / divisor
  }

  private static func greatestDivisor(_ a: Int64, _ b: Int64) -> Int64 {
    var (a, b) = (a, b)
    while b != 0 { (a, b) = (b, a % b) }
    return max(a, 1)
  }
}

enum Terms {
  /// More in one document than any release writes: the rest is not read.
  static let grantsMax = 1024
  static let ratesMax = 4096

  static func grants(_ config: String) -> [GrantTerms] {
    guard let document = try? Document(json: config) else { return [] }
    return (document["grants"]?.members(max: grantsMax) ?? []).compactMap { GrantTerms($0) }
  }

  static func prices(_ config: String) -> [PriceTerms] {
    guard let document = try? Document(json: config) else { return [] }
    return (document["catalog"]?["rates"]?.members(max: ratesMax) ?? [])
      .compactMap { PriceTerms($0) }
  }

  static func note(_ config: ConfigDelta, in db: Database) throws {
    switch config.scope {
    case .account:
      try noteGrants(config.after, account: config.key, version: config.version, in: db)
    case .global: try notePrices(config.after, in: db)
    case .counter: break
    }
  }

  /// From every change on record: a file of an older release has no terms yet.
  static func noteAll(_ db: Database) throws {
    let rows = try Row.fetchCursor(
      db, sql: "SELECT scope, key, version, after FROM config ORDER BY scope, key, version, time")
    while let row = try rows.next() {
      let scope: String = row[0]
      if scope == "account" { try noteGrants(row[3], account: row[1], version: row[2], in: db) }
      if scope == "global" { try notePrices(row[3], in: db) }
    }
  }

  private static func noteGrants(
    _ after: String, account: String, version: Int64, in db: Database
  ) throws {
    for grant in grants(after) {
      try db.cachedStatement(
        sql: """
          INSERT INTO grants (account, id, version, feature, kind, amount, priority, effective,
            expires, created, every, rollover_min, rollover_max, voided, reason, author)
          VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
          ON CONFLICT DO UPDATE SET version = excluded.version, feature = excluded.feature,
            kind = excluded.kind, amount = excluded.amount, priority = excluded.priority,
            effective = excluded.effective, expires = excluded.expires,
            created = excluded.created, every = excluded.every,
            rollover_min = excluded.rollover_min, rollover_max = excluded.rollover_max,
            voided = excluded.voided, reason = excluded.reason, author = excluded.author
          WHERE excluded.version >= version
          """
      ).execute(arguments: [
        account, grant.id, version, grant.feature, grant.kind, grant.amount, grant.priority,
        grant.effective, grant.expires, grant.created, grant.every, grant.rolloverMin,
        grant.rolloverMax, grant.voided, grant.reason, grant.author,
      ])
    }
  }

  /// A version of a rate has one price. Should a catalog have said another, neither is sure.
  private static func notePrices(_ after: String, in db: Database) throws {
    for price in prices(after) {
      try db.cachedStatement(
        sql: """
          INSERT INTO prices (rate, rate_from, amount, per, changed) VALUES (?, ?, ?, ?, 0)
          ON CONFLICT DO UPDATE SET changed = 1
          WHERE amount <> excluded.amount OR per <> excluded.per
          """
      ).execute(arguments: [price.rate, price.from, price.amount, price.per])
    }
  }
}

extension Document {
  fileprivate var words: String? {
    if case .string(let text) = self { return text }
    return nil
  }

  fileprivate var quantity: Int64? {
    if case .integer(let value) = self, Quantity.isValid(value) { return value }
    return nil
  }

  fileprivate func members(max: Int) -> ArraySlice<Document>? {
    if case .list(let values) = self { return values.prefix(max) }
    return nil
  }
}
