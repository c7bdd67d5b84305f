// How the auditor reads one delta: from its numbers and its body straight to what the file must
// hold because of it. Shares no code with what posts (`Breakdown`, `Poster`): a mistake there is a
// finding here. Where an entry should not have been posted at all, that is the finding.

internal import Foundation
internal import TollgateCore

struct AuditReading {
  struct Cell {
    var amount: Int64
    var end: Int64
    var goes: Int64?
  }
  struct ChargeKey: Hashable {
    var series: Int64
    var rate: String
    var from: Int64
  }
  struct Fault: Error { var text: String }

  var cells: [CellKey: Cell] = [:]
  /// By the names of the accounts of the double entry; none is 0.
  var rows: [String: Int64] = [:]
  var charges: [RateCharge] = []
  var corrects: OperationID?

  init(config entry: OutboxEntry, _ bodies: DeltaBodies) throws {
    let delta = try bodies.config(entry.body)
    guard delta.scope == .counter else { return }
    let change = try JSONDecoder().decode(CounterChange.self, from: Data(delta.after.utf8))
    guard let code = change.window else { return }
    guard let window = Window(code: code), let start = change.start else {
      throw Fault(text: "an unreadable counter change")
    }
    let start0 = WallTime(milliseconds: start)
    let end = change.end ?? window.period(containing: start0).end.milliseconds
    let key = CellKey(
      account: change.subject.account.path, subject: change.subject.path,
      feature: change.feature.text, window: code + "^", start: start)
    cells[key] = Cell(
      amount: 0 - entry.absorbed, end: end, goes: Self.goes(code, start: start, end: end))
  }

  init(event entry: OutboxEntry) throws { _ = try ThresholdBody.decode(entry.body) }

  init(usage entry: OutboxEntry, _ bodies: DeltaBodies) throws {
    let body = try bodies.usage(entry.body)
    let words = body.subject.path.split(separator: "/")
    let account = String(words[0])
    func count(_ level: Int, _ window: Window, _ period: Period, _ amount: Int64) throws {
      guard words.indices.contains(level - 1) else { throw Fault(text: "a level too deep") }
      let code = window.code
      let key = CellKey(
        account: account, subject: words[..<level].joined(separator: "/"),
        feature: body.feature.text, window: code, start: period.start.milliseconds)
      let end = period.end.milliseconds
      let cell = Cell(
        amount: amount, end: end, goes: Self.goes(code, start: key.start, end: end))
      guard cells.updateValue(cell, forKey: key) == nil else {
        throw Fault(text: "a counter named twice")
      }
    }
    for cell in body.cells { try count(cell.level, cell.window, cell.period, entry.charged) }
    for part in body.parts { try count(part.level, part.window, part.period, part.amount) }
    charges = body.charges
    corrects = body.corrects

    // Who paid: every counter by the first letter of its code, the outermost level that has any.
    let counted = cells.map { key, cell in
      (code: key.window, level: key.subject.split(separator: "/").count, amount: cell.amount)
    }
    let level = counted.filter { $0.code.hasPrefix("$") || $0.code == "-" }.map(\.level).min()
    let beside = ["4": "refund:", "5": "adjustment:"]["\(entry.kind.rawValue)"] ?? ""
    let place = "\(account):\(body.feature)"
    var rest = entry.charged
    for one in counted where one.level == level {
      if one.code.hasPrefix("$") {
        rows["\(beside)grant:\(place):\(one.code.dropFirst())", default: 0] += one.amount
        rest -= one.amount
      } else if one.code == "-" {
        rows["\(beside)deficit:\(place)", default: 0] += one.amount
        rest -= one.amount
      }
    }
    let overages = Set(counted.filter { $0.code.hasPrefix("o") }.map(\.amount))
    guard overages.count < 2 else { throw Fault(text: "two overages") }
    rows["\(beside)overage:\(place)"] = overages.first ?? 0
    rest -= overages.first ?? 0
    guard rest == 0 || (rest.signum() == entry.charged.signum() && abs(rest) <= abs(entry.charged))
    else { throw Fault(text: "parts beyond what was charged") }
    rows["\(beside)usage:\(place)"] = rest
    rows["\(beside)absorbed:\(place)"] = entry.absorbed
    rows["consumed:\(body.feature)"] = -entry.actual
    rows = rows.filter { $0.value != 0 }
    guard rows.values.reduce(0, +) == 0, !cells.keys.contains(where: { $0.window == "c" }) else {
      throw Fault(text: "numbers that do not add up")
    }
  }

  /// From the text of the code; nil: the sum stays.
  static func goes(_ code: String, start: Int64, end: Int64) -> Int64? {
    var code = code[...]
    if code.hasSuffix("^") { code = code.dropLast() }
    let day: Int64 = 86_400_000
    switch code.first {
    case "$", "-", "c": return nil
    case "r": return end + 35 * day
    case "o": code = code.dropFirst()
    default: break
    }
    if code.hasSuffix("@") { code = code.dropLast() }
    return ["M", "Q", "Y", "L"].contains(String(code)) ? nil : end + (end - start) + day
  }
}
