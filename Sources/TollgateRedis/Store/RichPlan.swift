// What `transact` and `settle` are given of a resolution: which cells to read, which limits to
// judge, which grants to burn in what order, what units are charged to what.
//
// Layout (a run of MessagePack values, 1-based positions in Lua):
//   levels, cells, limits, items, pricings, draws
//   per level from the account down: count n, then n field names
//   per cell (6): level, start, end, item, tally, window code
//   per limit (9): kind, item, enforcement, id, a, b, c, d, e
//     0 deny: reason · 1 quota: cell, amount · 2 rate: level, field, cost, tolerance, interval
//     3 unlimited · 4 sliding: cell, amount, length · 5 concurrency: cell, amount
//     6 credit: whether overage is let through · 7 spend_cap: cell, amount (−1: none)
//   per item (8): feature, amount, metered, billing cell (0: none), whether it burns grants, the
//     first of its draws, their number, the cell of what is owed (0: none)
//   per draw (9): cell, amount, voided, rollover min and max, start of the instance before (−1:
//     none), bits (1: it recurs, 2: where nobody counted in the one before, it was whole), grant,
//     what the one before had
//   per pricing (8): source, target, portion (0 all, 1 overage), num, den, cell, rate, from

package import TollgateCore

package struct RichPlan: Sendable {
  package let resolution: Resolution
  package let bytes: [UInt8]
  package let recordClass: RecordClass
  package let depth: Int

  package init(resolution: Resolution, depth: Int) {
    self.resolution = resolution
    self.depth = depth
    recordClass = RecordClass(resolution.importance)
    let items = resolution.items
    var names = [[String]](repeating: [], count: depth)
    for cell in resolution.cells {
      names[cell.level - 1].append(
        KeySpace.field(feature: items[cell.item].feature, window: cell.window))
    }
    for limit in resolution.limits {
      guard case .rate = limit.rule else { continue }
      names[limit.level - 1].append(
        KeySpace.field(feature: items[limit.item].feature, rate: limit.id))
    }
    let draws = items.indices.flatMap { resolution.draws[$0] ?? [] }
    var writer = MessagePackWriter(capacity: 512)
    for count in [
      depth, resolution.cells.count, resolution.limits.count, items.count,
      resolution.pricings.count, draws.count,
    ] { writer.append(count) }
    for fields in names {
      writer.append(fields.count)
      for field in fields { writer.append(field) }
    }
    for cell in resolution.cells { writer.append(cell) }
    for limit in resolution.limits {
      writer.append(limit, feature: items[limit.item].feature)
    }
    var firstDraw = 1
    for (index, item) in items.enumerated() {
      let own = resolution.draws[index]
      let billing = resolution.cells.firstIndex {
        $0.item == index && $0.level == 1 && $0.window == .month
      }
      writer.append(item.feature.text)
      writer.append(item.amount)
      writer.append(resolution.metered[index] ? 1 : 0)
      writer.append(resolution.metered[index] ? billing.map { $0 + 1 } ?? 0 : 0)
      writer.append(own == nil ? 0 : 1)
      writer.append(firstDraw)
      writer.append(own?.count ?? 0)
      writer.append(resolution.deficits[index].map { $0 + 1 } ?? 0)
      firstDraw += own?.count ?? 0
    }
    for draw in draws { writer.append(draw) }
    for pricing in resolution.pricings { writer.append(pricing) }
    bytes = writer.bytes
  }
}

extension Window.Tally {
  /// As scripts and stored holds number them.
  fileprivate var number: Int {
    switch self {
    case .units: 0
    case .overage: 1
    case .inFlight: 2
    case .grant: 3
    case .priced: 4
    case .deficit: 5
    }
  }
}

extension MessagePackWriter {
  fileprivate mutating func append(_ cell: Cell) {
    append(cell.level)
    append(cell.period.start.milliseconds)
    append(cell.period.end.milliseconds)
    append(cell.item + 1)
    append(cell.window.tally.number)
    append(cell.window.code)
  }

  fileprivate mutating func append(_ limit: AppliedLimit, feature: Name) {
    var kind = 0
    var values: [Int64] = [0, 0, 0, 0, 0]
    var field: String?
    switch limit.rule {
    case .deny(let reason): values[0] = Int64(reason.rawValue)
    case .quota(let cell, let amount): (kind, values[0], values[1]) = (1, Int64(cell + 1), amount)
    case .rate(let cost, let tolerance, let interval):
      kind = 2
      values = [Int64(limit.level), 0, cost, tolerance, interval]
      field = KeySpace.field(feature: feature, rate: limit.id)
    case .unlimited: kind = 3
    case .sliding(let cell, let amount, let length):
      (kind, values) = (4, [Int64(cell + 1), amount, length, 0, 0])
    case .concurrency(let cell, let amount):
      (kind, values[0], values[1]) = (5, Int64(cell + 1), amount)
    case .credit(let allowsOverage): (kind, values[0]) = (6, allowsOverage ? 1 : 0)
    case .spendCap(let cell, let amount):
      (kind, values[0], values[1]) = (7, Int64(cell + 1), amount ?? -1)
    }
    append(kind)
    append(limit.item + 1)
    append(limit.enforcement == .hard ? 0 : limit.enforcement == .shadow ? 1 : 2)
    append(limit.id.text)
    for (index, value) in values.enumerated() {
      if index == 1, let field { append(field) } else { append(value) }
    }
  }

  fileprivate mutating func append(_ draw: Draw) {
    append(draw.cell + 1)
    append(draw.amount)
    append(draw.isVoided ? 1 : 0)
    append(draw.rollover.min)
    append(draw.rollover.max)
    append(draw.before?.milliseconds ?? -1)
    append((draw.recurs ? 1 : 0) + (draw.wasWhole ? 2 : 0))
    append(draw.grant.text)
    append(draw.amountBefore)
  }

  fileprivate mutating func append(_ pricing: Pricing) {
    append(pricing.source + 1)
    append(pricing.target + 1)
    append(pricing.portion == .all ? 0 : 1)
    append(pricing.price.numerator)
    append(pricing.price.denominator)
    append(pricing.cell + 1)
    append(pricing.rate.text)
    append(pricing.from.milliseconds)
  }
}
