// Billed totals per account and feature, as the sidecar's `reconcile` or the ledger's `totals`
// tells them, over all periods: what a run adds is the difference of two readings.

import TollgateCore
import TollgateWire

package struct AccountFeature: Sendable, Hashable, Comparable {
  package var account: String
  package var feature: String

  package init(account: String, feature: String) {
    self.account = account
    self.feature = feature
  }

  package static func < (a: AccountFeature, b: AccountFeature) -> Bool {
    (a.feature, a.account) < (b.feature, b.account)
  }
}

package struct BillingBooks: Sendable {
  /// What Redis has settled, as reconcile reports it; empty where only a ledger was asked.
  package var redis: [AccountFeature: Int64] = [:]
  package var ledger: [AccountFeature: Int64] = [:]
  package var undelivered: Int64 = 0
  /// The sum of the differences that reconcile found itself.
  package var difference: Int64 = 0
  /// Accounts that could not be compared, with the reason.
  package var skipped: [String: String] = [:]

  package init() {}

  /// Pages through `reconcile` of a sidecar.
  package init(reconciling admin: AdminLink) throws {
    var after: Document?
    repeat {
      let page = try admin.admin(
        .reconcile, .fields(["after": after, "limit": .integer(500), "verbose": .bool(true)]))
      for row in page.list("rows") {
        guard let account = row.text("account"), let feature = row.text("feature") else {
          throw BenchError("reconcile: a row without account or feature")
        }
        let key = AccountFeature(account: account, feature: feature)
        redis[key, default: 0] += try row.number("redis")
        ledger[key, default: 0] += try row.number("ledger")
      }
      for row in page.list("skipped") {
        skipped[row.text("account") ?? "?"] = row.text("why") ?? "no reason given"
      }
      undelivered += try page.number("undelivered")
      difference += try page.number("difference")
      after = page["next"].flatMap { $0 == .null ? nil : $0 }
    } while after != nil
  }

  /// Pages through `totals` of a ledger.
  package init(totals ledger: AdminLink) throws {
    var cursor: Document?
    repeat {
      let page = try ledger.query(.totals, .fields(["cursor": cursor]))
      for row in page.list("totals") {
        guard let account = row.text("account"), let feature = row.text("feature") else {
          throw BenchError("ledger: a total without account or feature")
        }
        let key = AccountFeature(account: account, feature: feature)
        self.ledger[key, default: 0] += try row.number("charged")
      }
      cursor = page["next"].flatMap { $0 == .null ? nil : $0 }
    } while cursor != nil
  }
}

extension Document {
  func list(_ key: String) -> [Document] {
    if case .list(let values)? = self[key] { return values }
    return []
  }

  func text(_ key: String) -> String? {
    if case .string(let text)? = self[key] { return text }
    return nil
  }

  func optionalNumber(_ key: String) -> Int64? {
    if case .integer(let value)? = self[key] { return value }
    return nil
  }

  func number(_ key: String) throws -> Int64 {
    guard let value = optionalNumber(key) else {
      throw BenchError("the answer has no whole number \"\(key)\"")
    }
    return value
  }
}
