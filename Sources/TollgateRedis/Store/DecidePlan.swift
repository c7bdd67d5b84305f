// The part of a `decide` call that depends only on what is asked and on the configuration: which
// hash fields to read, which cells to add to, which limits to judge. Encoded once, it may be kept
// for every later call with the same subject depth, items and resolution.
//
// Layout (a run of MessagePack values, 1-based positions in Lua):
//   hashes, cells, limits, items
//   per hash: count n, then n field names (the script puts its own in front)
//   per cell: hash, position of its field's name in this run, start, end, item
//   per limit (9 values): kind, item, enforcement, id, a, b, c, d, e
//     0 deny: reason · 1 quota: cell, amount · 2 rate: hash, position of its name, cost, tolerance,
//     interval · 3 unlimited · 4 sliding: cell, amount, length
//   per item: amount, metered, billing cell (0: none)
//   one string, kept with the record of what was counted: a run of its own of the number of cells
//   and per cell: item, level, window code, start, end (what a cancel takes back, whatever the
//   configuration is by then)
//   where the operation could be answered from leases: 1; else nothing
// Hash 1 is the account header, 2… the deeper subjects in use, by level.

package import TollgateCore

/// Immutable and shared: a request holds one reference to it.
package final class DecidePlan: Sendable {
  package let resolution: Resolution
  package let items: [Item]
  /// Levels deeper than the account whose hashes are read, ascending.
  package let levels: [Int]
  package let bytes: [UInt8]
  package let recordClass: RecordClass
  /// Indices of metered items: one delta body for each.
  package let meteredItems: [Int]

  package init(items: [Item], resolution: Resolution) {
    self.items = items
    self.resolution = resolution
    recordClass = RecordClass(resolution.importance)
    meteredItems = items.indices.filter { resolution.metered[$0] }
    var levels: [Int] = []
    func use(_ level: Int) {
      if level > 1 && !levels.contains(level) { levels.append(level) }
    }
    for cell in resolution.cells { use(cell.level) }
    for limit in resolution.limits {
      if case .rate = limit.rule { use(limit.level) }
    }
    levels.sort()
    self.levels = levels

    func hash(_ level: Int) -> Int { level == 1 ? 0 : 1 + (levels.firstIndex(of: level) ?? 0) }
    var fields = [[String]](repeating: [], count: levels.count + 1)
    var cellPositions: [(hash: Int, position: Int)] = []
    for cell in resolution.cells {
      let at = hash(cell.level)
      fields[at].append(
        KeySpace.field(feature: items[cell.item].feature, window: cell.window))
      cellPositions.append((at, fields[at].count))
    }
    var ratePositions: [Int: (hash: Int, position: Int)] = [:]
    for (index, limit) in resolution.limits.enumerated() {
      guard case .rate = limit.rule else { continue }
      let at = hash(limit.level)
      fields[at].append(KeySpace.field(feature: items[limit.item].feature, rate: limit.id))
      ratePositions[index] = (at, fields[at].count)
    }

    // Four numbers stand before the first hash, and each hash's count before its names.
    let namesFrom = fields.indices.map { hash in
      4 + fields[..<hash].reduce(0) { $0 + 1 + $1.count } + 1
    }
    var writer = MessagePackWriter(capacity: 256)
    writer.append(fields.count)
    writer.append(resolution.cells.count)
    writer.append(resolution.limits.count)
    writer.append(items.count)
    for names in fields {
      writer.append(names.count)
      for name in names { writer.append(name) }
    }
    var billing = [Int](repeating: 0, count: items.count)
    for (index, cell) in resolution.cells.enumerated() {
      writer.append(cellPositions[index].hash + 1)
      writer.append(namesFrom[cellPositions[index].hash] + cellPositions[index].position)
      writer.append(cell.period.start.milliseconds)
      writer.append(cell.period.end.milliseconds)
      writer.append(cell.item + 1)
      if cell.level == 1 && cell.window == .month && resolution.metered[cell.item] {
        billing[cell.item] = index + 1
      }
    }
    for (index, limit) in resolution.limits.enumerated() {
      var values: [Int64] = [0, 0, 0, 0, 0]
      var kind = 0
      switch limit.rule {
      case .deny(let reason):
        values[0] = Int64(reason.rawValue)
      case .quota(let cell, let amount):
        kind = 1
        values[0] = Int64(cell + 1)
        values[1] = amount
      case .rate(let cost, let tolerance, let interval):
        kind = 2
        let at = ratePositions[index] ?? (0, 0)
        let name = namesFrom[at.hash] + at.position
        values = [Int64(at.hash + 1), Int64(name), cost, tolerance, interval]
      case .unlimited: kind = 3
      case .sliding(let cell, let amount, let length):
        kind = 4
        values[0] = Int64(cell + 1)
        values[1] = amount
        values[2] = length
      // Not this script's to decide (`Resolution.isRich`); put to it all the same, they deny.
      case .concurrency: values[0] = Int64(Reason.concurrencyExceeded.rawValue)
      case .credit: values[0] = Int64(Reason.creditExhausted.rawValue)
      case .spendCap: values[0] = Int64(Reason.spendCapReached.rawValue)
      }
      writer.append(kind)
      writer.append(limit.item + 1)
      writer.append(limit.enforcement == .hard ? 0 : limit.enforcement == .shadow ? 1 : 2)
      writer.append(limit.id.text)
      for value in values { writer.append(value) }
    }
    for (index, item) in items.enumerated() {
      writer.append(item.amount)
      writer.append(resolution.metered[index] ? 1 : 0)
      writer.append(billing[index])
    }
    var counted = MessagePackWriter(capacity: 64)
    counted.append(resolution.cells.count)
    for cell in resolution.cells {
      counted.append(cell.item)
      counted.append(cell.level)
      counted.append(cell.window.code)
      counted.append(cell.period.start.milliseconds)
      counted.append(cell.period.end.milliseconds)
    }
    writer.append(counted.bytes)
    if resolution.isLeasable { writer.append(1) }
    bytes = writer.bytes
  }
}
