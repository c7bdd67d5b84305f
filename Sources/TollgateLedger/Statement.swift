// A statement: what one account used in one billing period, and who paid for it: what was included,
// each grant, the overage, what is owed and what nobody paid; refunds and adjustments beside them;
// what each rate made of it; and the grants themselves. Amounts are what the postings say, so
//
//   charged = included + granted + overage + deficit + refunds + adjusted
//
// and `charged` is the number that `totals` answers and that `reconcile` compares with Redis.

internal import TollgateCore

package struct Statement: Hashable, Sendable, Codable {
  /// One line of the double entry, summed over the period.
  package struct Entry: Hashable, Sendable, Codable {
    /// `usage` (reversals taken off), `refund` or `adjustment`.
    package var column: String
    /// `included`, `grant`, `overage`, `deficit` or `absorbed`.
    package var part: String
    package var grant: String?
    package var amount: Int64
  }

  package struct Line: Hashable, Sendable, Codable {
    package var feature: String
    package var used: Int64
    package var reversed: Int64
    /// What is billed, refunds and adjustments included.
    package var charged: Int64
    package var absorbed: Int64
    /// Of `charged`: of periods that were closed when it came (`closed` says which).
    package var adjustments: Int64
    package var deltas: Int64
    package var included: Int64 = 0
    package var granted: Int64 = 0
    package var overage: Int64 = 0
    package var deficit: Int64 = 0
    /// Of `charged`: refunds, not positive.
    package var refunds: Int64 = 0
    /// Of `charged`: operators' adjustments, of either sign.
    package var adjusted: Int64 = 0
    package var entries: [Entry] = []
  }

  /// Part of a line: what was used, or given back, in an earlier period that was closed when it
  /// came. The statement of that period does not change.
  package struct ClosedLine: Hashable, Sendable, Codable {
    package var feature: String
    /// The period it is of.
    package var start: Int64
    package var end: Int64
    package var actual: Int64
    package var charged: Int64
    package var absorbed: Int64
    package var deltas: Int64
  }

  /// What one version of a rate charged to a feature.
  package struct RateLine: Hashable, Sendable, Codable {
    /// The feature that was charged.
    package var feature: String
    package var rate: String
    package var from: Int64
    package var units: Int64
    package var charge: Int64
    /// `price` for `per` units, in lowest terms, where a catalog on record says it and none says
    /// another.
    package var price: Int64?
    package var per: Int64?
  }

  package struct Instance: Hashable, Sendable, Codable {
    package var start: Int64
    package var end: Int64
    package var burnt: Int64
    /// What came over from the instance before; nil: the amount of the grant is not on record.
    package var carried: Int64?
    package var remaining: Int64?
  }

  package struct GrantLine: Hashable, Sendable, Codable {
    package enum State: String, Hashable, Sendable, Codable {
      case pending, active, expired, voided
      /// No longer in the account's configuration.
      case removed
      /// Never in an account's configuration: a plan's.
      case plan
    }

    package var id: String
    package var feature: String
    package var state: State
    package var kind: String?
    package var amount: Int64?
    package var priority: Int64?
    package var effective: Int64?
    package var expires: Int64?
    package var created: Int64?
    package var every: String?
    package var rolloverMin: Int64?
    package var rolloverMax: Int64?
    package var voided: Int64?
    package var reason: String?
    package var author: String?
    /// In all, to date.
    package var burnt: Int64
    /// By what the period was charged, refunds and adjustments taken off.
    package var burntInPeriod: Int64
    /// Of a grant that does not recur: what can still be burnt, and what no longer can.
    package var remaining: Int64?
    package var lapsed: Int64?
    /// Of a grant that recurs: those that touch the period.
    package var instances: [Instance] = []
  }

  package var deployment: String
  package var account: String
  package var start: Int64
  package var end: Int64
  package var lines: [Line]
  package var rates: [RateLine] = []
  package var grants: [GrantLine] = []
  package var closed: [ClosedLine] = []
  /// There are more grants than these.
  package var moreGrants: Bool = false
}

extension Statement {
  static let columns = [
    "account", "period_start", "period_end", "feature", "item", "id", "version", "units", "amount",
  ]

  /// One row for each number (RFC 4180).
  package var csv: String {
    var text = Self.columns.joined(separator: ",") + "\r\n"
    func instant(_ milliseconds: Int64) -> String {
      CivilDate.text(WallTime(milliseconds: milliseconds))
    }
    func row(
      _ feature: String, _ item: String, id: String = "", version: String = "",
      units: Int64? = nil, _ amount: Int64
    ) {
      let fields = [
        account, instant(start), instant(end), feature, item, id, version,
        units.map { "\($0)" } ?? "", "\(amount)",
      ]
      text += fields.map(ExportLine.field).joined(separator: ",") + "\r\n"
    }
    for line in lines {
      row(line.feature, "used", line.used)
      row(line.feature, "reversed", line.reversed)
      for entry in line.entries {
        let item = entry.column == "usage" ? entry.part : "\(entry.column).\(entry.part)"
        row(line.feature, item, id: entry.grant ?? "", entry.amount)
      }
      row(line.feature, "charged", line.charged)
      row(line.feature, "after_close", line.adjustments)
      for one in closed where one.feature == line.feature {
        row(one.feature, "closed", version: instant(one.start), units: one.actual, one.charged)
      }
    }
    for rate in rates {
      row(
        rate.feature, "rate", id: rate.rate, version: instant(rate.from), units: rate.units,
        rate.charge)
    }
    for grant in grants {
      if let amount = grant.amount { row(grant.feature, "grant.issued", id: grant.id, amount) }
      row(grant.feature, "grant.burnt", id: grant.id, grant.burnt)
      if let left = grant.remaining { row(grant.feature, "grant.remaining", id: grant.id, left) }
      if let lapsed = grant.lapsed { row(grant.feature, "grant.lapsed", id: grant.id, lapsed) }
    }
    return text
  }
}
