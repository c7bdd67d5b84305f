// Random streams of usage, refunds, adjustments and reversals with parts and charges, cut into
// random batches that overlap, come twice and repeat ids at new positions. After every few batches
// the file must say what a model says that was built from the same components and knows nothing of
// bodies, postings or SQL: each double entry sums to 0, and what was delivered before may come
// again without a trace. On the way a month is closed: its statements stay, and all statements
// together are what was posted.

import GRDB
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

/// What one delta is made of, before it is a delta.
private struct Made {
  var op: Int
  var index: UInt16 = 0
  var kind: DeltaKind = .usage
  var account = "acme"
  var period = november
  var included: Int64 = 0
  var grants: [String: Int64] = [:]
  var overage: Int64 = 0
  var deficit: Int64 = 0
  var absorbed: Int64 = 0
  /// Windows of the caps that count the overage.
  var caps: [Window] = []
  /// A grant of the member, which covers the same units.
  var own: Int64?
  var units: Int64 = 0
  var price: Int64 = 0
  var corrects: Int?

  var charged: Int64 { included + grants.values.reduce(0, +) + overage + deficit }

  var negated: Made {
    var copy = self
    copy.included = -included
    copy.grants = grants.mapValues { -$0 }
    copy.overage = -overage
    copy.deficit = -deficit
    copy.absorbed = -absorbed
    copy.own = own.map { -$0 }
    copy.units = -units
    copy.price = -price
    return copy
  }

  func entry(_ sequence: Int64) throws -> OutboxEntry {
    var parts = try grants.sorted { $0.key < $1.key }.map { try grant($0.key, $0.value) }
    if deficit != 0 { parts.append(TollgateLedgerTests.deficit(deficit)) }
    parts += caps.map { TollgateLedgerTests.overage($0, overage) }
    if let own { parts.append(try grant("own", own, level: 2)) }
    var charges: [RateCharge] = []
    if units != 0 {
      var part = try priced("r", units)
      part.period = period
      parts.append(part)
      charges = [try charge("r", units: units, price)]
    }
    let body = UsageBody(
      subject: try Subject("\(account)/ann"), feature: try Name("spend"), period: period,
      cells: [
        CellReference(level: 1, window: .month, period: period),
        CellReference(level: 2, window: .day, period: Window.day.period(containing: start)),
      ], catalogVersion: 1, source: .redis, parts: parts, charges: charges,
      corrects: corrects.map { operation($0) })
    return OutboxEntry(
      sequence: sequence, kind: kind, id: DeltaID(operation: operation(op), index: index),
      time: start, actual: charged + absorbed, charged: charged, absorbed: absorbed,
      body: body.encode())
  }
}

private struct Model: Equatable {
  var balances: [String: Int64] = [:]
  var cells: [String: Int64] = [:]
  /// Units and micro-units.
  var rates: [String: [Int64]] = [:]
  var totals: [String: [Int64]] = [:]

  mutating func post(_ made: Made) {
    let beside =
      made.kind == .refund ? "refund:" : made.kind == .adjustment ? "adjustment:" : ""
    let place = "\(made.account):spend"
    balances["\(beside)usage:\(place)", default: 0] += made.included
    for (id, amount) in made.grants {
      balances["\(beside)grant:\(place):\(id)", default: 0] += amount
      cells["\(made.account) $\(id)", default: 0] += amount
    }
    balances["\(beside)overage:\(place)", default: 0] += made.overage
    balances["\(beside)deficit:\(place)", default: 0] += made.deficit
    balances["\(beside)absorbed:\(place)", default: 0] += made.absorbed
    balances["consumed:spend", default: 0] -= made.charged + made.absorbed
    cells["\(made.account) M", default: 0] += made.charged
    cells["\(made.account)/ann d", default: 0] += made.charged
    cells["\(made.account) -", default: 0] += made.deficit
    cells["\(made.account)/ann $own", default: 0] += made.own ?? 0
    for cap in made.caps { cells["\(made.account) o\(cap.code)", default: 0] += made.overage }
    cells["\(made.account) rr,0", default: 0] += made.units
    var rate = rates[made.account] ?? [0, 0]
    rate[0] += made.units
    rate[1] += made.price
    rates[made.account] = rate
    var total = totals[made.account] ?? [0, 0]
    total[0] += made.charged
    total[1] += made.absorbed
    totals[made.account] = total
  }

  /// What is 0 may be there or not.
  var plain: Model {
    Model(
      balances: balances.filter { $0.value != 0 }, cells: cells.filter { $0.value != 0 },
      rates: rates.filter { $0.value != [0, 0] }, totals: totals.filter { $0.value != [0, 0] })
  }

  init(
    balances: [String: Int64] = [:], cells: [String: Int64] = [:],
    rates: [String: [Int64]] = [:], totals: [String: [Int64]] = [:]
  ) {
    self.balances = balances
    self.cells = cells
    self.rates = rates
    self.totals = totals
  }

  init(_ books: Books) throws {
    self = try books.store.read { db in
      func sums(_ sql: String) throws -> [String: Int64] {
        var found: [String: Int64] = [:]
        for row in try Row.fetchAll(db, sql: sql) { found[row[0], default: 0] += row[1] as Int64 }
        return found
      }
      func pairs(_ sql: String) throws -> [String: [Int64]] {
        var found: [String: [Int64]] = [:]
        for row in try Row.fetchAll(db, sql: sql) { found[row[0]] = [row[1], row[2]] }
        return found
      }
      return Model(
        balances: try sums("SELECT name, balance FROM accounts"),
        cells: try sums("SELECT subject || ' ' || window, settled FROM cells"),
        rates: try pairs(
          """
          SELECT s.account, sum(c.units), sum(c.charge) FROM charges AS c
          JOIN series AS s ON s.id = c.series GROUP BY s.account
          """),
        totals: try pairs(
          "SELECT account, sum(charged), sum(absorbed) FROM series GROUP BY account"))
    }
  }
}

/// Makes what a sidecar could have made, one after the other.
private struct Maker {
  static let accounts = ["acme", "bolt", "core"]
  static let rate = (amount: Int64(3), per: Int64(7))

  var random: Seeded
  var nextOp = 10
  /// Usage that can still be refunded or reversed, with what is left of it.
  var open: [Made] = []
  var refunded: [Made] = []
  var priced: [String: Int64] = [:]
  var counts: [UInt8: Int] = [:]

  init(_ seed: UInt64) { random = Seeded(seed) }

  mutating func number(_ range: ClosedRange<Int64>) -> Int64 {
    Int64.random(in: range, using: &random)
  }

  mutating func chance(_ one: Int) -> Bool { Int.random(in: 0..<one, using: &random) == 0 }

  /// A rate counts by the month.
  private func key(_ made: Made) -> String { "\(made.account) \(made.period.start)" }

  private mutating func price(_ units: Int64, _ made: Made) -> Int64 {
    func total(_ units: Int64) -> Int64 { units * Self.rate.amount / Self.rate.per }
    let before = priced[key(made), default: 0]
    priced[key(made)] = before + units
    return total(before + units) - total(before)
  }

  mutating func next() -> Made {
    nextOp += 1
    var made = Made(op: nextOp)
    switch number(0...9) {
    case 0 where !open.isEmpty: made = reversal()
    case 1 where !open.isEmpty, 2 where !open.isEmpty: made = refund(made)
    case 3: made = adjustment(made)
    default: made = usage(made)
    }
    counts[made.kind.rawValue, default: 0] += 1
    return made
  }

  private mutating func usage(_ empty: Made) -> Made {
    var made = empty
    made.account = Self.accounts.randomElement(using: &random) ?? "acme"
    if chance(3) { made.period = PartsPropertyTests.october }
    if chance(2) { made.included = number(0...500) }
    if chance(2) {
      for id in ["a", "b", "c"].prefix(Int(number(1...3))) { made.grants[id] = number(0...300) }
    }
    if chance(3) {
      made.overage = number(0...400)
      made.caps = Array([Window.day, .month, Window(.month, .anchored)].prefix(Int(number(1...3))))
    }
    if chance(6) { made.deficit = number(0...90) }
    // Owed units are cured from what the grants have.
    let granted = made.grants.values.reduce(0, +)
    if granted > 0, chance(6) { made.deficit = -number(0...granted) }
    if chance(4) { made.absorbed = number(0...50) }
    if !made.grants.isEmpty, chance(5) { made.own = number(0...made.charged) }
    let units = number(0...1000)
    if chance(2), units <= made.charged + made.absorbed {
      made.units = units
      made.price = price(units, made)
    }
    open.append(made)
    return made
  }

  private mutating func reversal() -> Made {
    let index = Int(number(0...Int64(open.count - 1)))
    var made = open.remove(at: index).negated
    priced[key(made), default: 0] += made.units
    made.kind = .reversal
    made.index = 64
    return made
  }

  /// Some of what is left: the overage first, then the grants from the last back, then the rest.
  private mutating func refund(_ empty: Made) -> Made {
    var left: Made
    if !refunded.isEmpty, chance(3) {
      left = refunded.remove(at: Int(number(0...Int64(refunded.count - 1))))
    } else {
      left = open.remove(at: Int(number(0...Int64(open.count - 1))))
    }
    var made = empty
    made.kind = .refund
    made.account = left.account
    made.period = left.period
    made.corrects = left.op
    made.caps = left.caps
    var amount = number(0...(left.included + left.overage + left.grants.values.reduce(0, +)))
    func take(_ from: Int64) -> Int64 {
      let taken = min(from, amount)
      amount -= taken
      return taken
    }
    made.overage = -take(left.overage)
    left.overage += made.overage
    for (id, slice) in left.grants.sorted(by: { $0.key > $1.key }) {
      let taken = take(slice)
      made.grants[id] = -taken
      left.grants[id] = slice - taken
    }
    made.included = -take(left.included)
    left.included += made.included
    let units = min(left.units, -made.charged)
    if units > 0 {
      made.units = -units
      made.price = price(-units, made)
      left.units -= units
    }
    // It may be refunded again. Not reversed: that takes back what one delta did.
    refunded.append(left)
    return made
  }

  private mutating func adjustment(_ empty: Made) -> Made {
    var made = empty
    made.kind = .adjustment
    made.account = Self.accounts.randomElement(using: &random) ?? "acme"
    if chance(3) { made.period = PartsPropertyTests.october }
    made.corrects = chance(2) ? open.last?.op : nil
    let sign: Int64 = chance(2) ? 1 : -1
    made.included = sign * number(0...200)
    made.grants = chance(2) ? ["a": sign * number(0...50)] : [:]
    // A write-off: less billed, more absorbed; or from one payer to another.
    made.absorbed = number(-40...40)
    if chance(3) {
      let moved = number(0...60)
      made.included = 0
      made.grants = ["b": moved]
      made.overage = -moved
      made.caps = [.month]
    }
    return made
  }
}

@Suite(.blocking) struct PartsPropertyTests {
  static let october = Window.month.period(containing: november.start + -1)
  static let catalog = #"{"catalog":{"rates":[{"id":"r","price":3,"per":7}]}}"#

  @Test(arguments: [11, 12, 13, 14, 15, 16] as [UInt64])
  func theBooksAreWhatTheModelSays(seed: UInt64) throws {
    print("parts seed \(seed)")
    var maker = Maker(seed)
    let books = try Books()
    try books.open()
    var stream: [OutboxEntry] = [
      change(1, op: 1, scope: .global, key: "", version: 1, after: Self.catalog)
    ]
    var made: [Made?] = [nil]
    var poisoned = 0
    for sequence in Int64(2)...900 {
      if sequence > 10, maker.chance(12) {
        // An id that was there already, at a new position: posts nothing.
        let again = Int(maker.number(2...sequence - 2))
        var entry = stream[again]
        entry.sequence = sequence
        stream.append(entry)
        made.append(nil)
        continue
      }
      let one = maker.next()
      var entry = try one.entry(sequence)
      if maker.chance(40) {
        entry.charged += 1
        poisoned += 1
        made.append(nil)
      } else {
        made.append(one)
      }
      stream.append(entry)
    }
    let kinds = [DeltaKind.usage, .reversal, .refund, .adjustment].map(\.rawValue)
    for kind in kinds { #expect(maker.counts[kind, default: 0] > 20, "kind \(kind)") }

    var model = Model()
    var delivered = 0
    var replays = 0
    var sent: [TollgateLedger.Statement]?
    func statements(_ month: Period) throws -> [TollgateLedger.Statement] {
      try Maker.accounts.map {
        try books.store.statement(account: $0, start: month.start.milliseconds)
      }
    }
    while delivered < stream.count {
      let first = max(0, delivered - Int(maker.number(0...15)))
      let end = min(stream.count, delivered + Int(maker.number(1...40)))
      let batch = Array(stream[first..<end])
      _ = try books.apply(batch, after: Int64(first))
      for one in made[delivered..<end].compactMap({ $0 }) { model.post(one) }
      delivered = end
      if sent == nil, delivered > 300 {
        sent = try statements(Self.october)
        #expect(
          try books.store.close(through: Self.october, actor: "ops", reason: "test", now: start))
      }
      guard maker.chance(4) || delivered == stream.count else { continue }
      let now = try Model(books)
      #expect(now.plain == model.plain, "after \(delivered), seed \(seed)")
      #expect(try unbalanced(books) == 0)
      // Any prefix again, cut in another way.
      let rows = try rowCounts(books)
      var at = 0
      let until = Int(maker.number(1...Int64(delivered)))
      while at < until {
        let stop = min(until, at + Int(maker.number(1...200)))
        _ = try books.apply(Array(stream[at..<stop]), after: Int64(at))
        at = stop
      }
      replays += 1
      #expect(try Model(books) == now)
      #expect(try rowCounts(books) == rows)
    }
    #expect(replays > 3 && poisoned > 5)
    #expect(try books.store.parked().count == poisoned)
    #expect(try books.soundness() == [])
    let (closed, running) = (try statements(Self.october), try statements(november))
    for (index, account) in Maker.accounts.enumerated() {
      #expect(closed[index].lines == sent?[index].lines)
      #expect(closed[index].rates == sent?[index].rates)
      #expect(closed[index].closed == [])
      for line in closed[index].lines + running[index].lines {
        let payers =
          line.included + line.granted + line.overage + line.deficit + line.refunds + line.adjusted
        #expect(line.charged == payers)
      }
      let late = running[index].closed
      #expect(late.count == 1 && late.allSatisfy { $0.start == Self.october.start.milliseconds })
      #expect(late.map(\.charged) == running[index].lines.map(\.adjustments))
      let charged = (closed[index].lines + running[index].lines).reduce(0) { $0 + $1.charged }
      #expect(charged == model.totals[account]?[0], "all statements of \(account)")
    }
  }

  private func unbalanced(_ books: Books) throws -> Int {
    try books.store.read { db in
      try Row.fetchAll(
        db, sql: "SELECT op FROM postings GROUP BY op, idx, bucket HAVING sum(amount) <> 0"
      ).count
    }
  }

  private func rowCounts(_ books: Books) throws -> [Int] {
    try books.store.read { db in
      try ["deltas", "postings", "cells", "charges", "corrections", "parked", "duplicates"].map {
        try Int.fetchOne(db, sql: "SELECT count(*) FROM \($0)") ?? 0
      }
    }
  }
}
