// Deltas with parts and charges, for the suites about them.

import Foundation
import GRDB
import TollgateCore
import TollgateWire

@testable import TollgateLedger

let forever = Period(
  start: WallTime(milliseconds: 0), end: WallTime(milliseconds: Quantity.maximum))

func name(_ text: String) throws -> Name { try Name(text) }

func grant(_ id: String, _ amount: Int64, level: Int = 1, _ period: Period = forever) throws
  -> CountedPart
{
  CountedPart(level: level, window: .grant(try Name(id)), period: period, amount: amount)
}

func overage(_ window: Window, _ amount: Int64, level: Int = 1) -> CountedPart {
  CountedPart(
    level: level, window: .overage(window), period: window.period(containing: start),
    amount: amount)
}

func priced(_ rate: String, _ amount: Int64, from: Int64 = 0) throws -> CountedPart {
  CountedPart(
    level: 1, window: .priced(by: try Name(rate), from: WallTime(milliseconds: from)),
    period: november, amount: amount)
}

func deficit(_ amount: Int64, level: Int = 1) -> CountedPart {
  CountedPart(level: level, window: .deficit, period: forever, amount: amount)
}

func charge(_ rate: String, units: Int64, _ charge: Int64, from: Int64 = 0) throws -> RateCharge {
  RateCharge(
    rate: try Name(rate), from: WallTime(milliseconds: from), units: units, charge: charge)
}

/// A delta of `spend` of acme/ann, counted in the account's month.
func spend(
  _ sequence: Int64, op: Int, index: UInt16 = 0, _ charged: Int64, absorbed: Int64 = 0,
  kind: DeltaKind = .usage, feature: String = "spend", parts: [CountedPart] = [],
  charges: [RateCharge] = [], corrects: Int? = nil, period: Period = november
) throws -> OutboxEntry {
  let body = UsageBody(
    subject: try Subject("acme/ann"), feature: try Name(feature), period: period,
    cells: [CellReference(level: 1, window: .month, period: period)], catalogVersion: 3,
    source: .redis, parts: parts, charges: charges, corrects: corrects.map { operation($0) })
  return OutboxEntry(
    sequence: sequence, kind: kind, id: DeltaID(operation: operation(op), index: index),
    time: start + sequence, actual: charged + absorbed, charged: charged, absorbed: absorbed,
    body: body.encode())
}

extension Books {
  /// Balances of the double entry, without those of 0.
  func balances() throws -> [String: Int64] {
    try store.read { db in
      var found: [String: Int64] = [:]
      for row in try Row.fetchAll(
        db, sql: "SELECT name, balance FROM accounts WHERE balance <> 0")
      {
        found[row[0]] = row[1]
      }
      return found
    }
  }

  /// `<subject> <feature> <window>`: settled.
  func counters(_ account: String = "acme") throws -> [String: Int64] {
    var found: [String: Int64] = [:]
    let page = try store.balances(account: account, endingAfter: WallTime(milliseconds: .min))
    for cell in page.elements {
      found["\(cell.subject) \(cell.feature) \(cell.window)", default: 0] += cell.settled
    }
    return found
  }

  func statement() throws -> TollgateLedger.Statement {
    try store.statement(account: "acme", start: november.start.milliseconds)
  }

  func soundness() throws -> [String] { try store.verify().findings }
}
