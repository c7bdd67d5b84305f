// What the record of an operation of `transact` or `settle` says beyond its answer: what was burnt,
// counted and charged, so that a replay tells it again and a cancel takes back exactly that.

import TollgateCore

struct RecordTail {
  var expires: WallTime?
  /// Items that the request named; derived ones follow.
  var asked = 0
  var features: [Name] = []
  var billed: [Decision.Settlement] = []
  var burns: [Decision.Burn] = []
  /// By item, for each.
  var items: [CountedItem] = []

  /// nil: the record has none, or it is unreadable. The reader stays where it was.
  init?(_ position: inout MessagePackReader) {
    var reader = position
    guard reader.integer() == -1, let ends = reader.integer(), let asked = reader.integer(),
      let items = reader.integer(), (0...Int64(Resolution.itemsMax)).contains(items),
      (0...items).contains(asked)
    else { return nil }
    if ends > 0 { expires = WallTime(milliseconds: ends) }
    self.asked = Int(asked)
    for item in 0..<Int(items) {
      guard let feature = reader.text().flatMap({ try? Name($0) }), let actual = reader.integer(),
        let charged = reader.integer()
      else { return nil }
      features.append(feature)
      billed.append(Decision.Settlement(actual: actual, charged: charged))
      self.items.append(
        CountedItem(
          item: item, cells: [],
          billed: .init(feature: feature, amount: charged, parts: [], charges: [])))
    }
    guard readBurns(&reader), readCounts(&reader), readCharges(&reader) else { return nil }
    position = reader
  }

  private static func count(_ reader: inout MessagePackReader) -> Int? {
    reader.integer().flatMap { (0...4096).contains($0) ? Int($0) : nil }
  }

  private mutating func readBurns(_ reader: inout MessagePackReader) -> Bool {
    guard let count = Self.count(&reader) else { return false }
    for _ in 0..<count {
      guard let item = reader.integer(), (1...Int64(max(1, items.count))).contains(item),
        let grant = reader.text(), let amount = reader.integer()
      else { return false }
      burns.append(
        Decision.Burn(item: Int(item) - 1, grant: OperationRecord.name(grant), amount: amount))
    }
    return true
  }

  private mutating func readCounts(_ reader: inout MessagePackReader) -> Bool {
    guard let count = Self.count(&reader) else { return false }
    for _ in 0..<count {
      guard let item = reader.integer(), items.indices.contains(Int(item)),
        let level = reader.integer(), (1...Int64(Subject.levelsMax)).contains(level),
        let window = reader.text().flatMap({ Window(code: $0) }), let start = reader.integer(),
        let end = reader.integer(), start < end, let amount = reader.integer()
      else { return false }
      let period = Period(
        start: WallTime(milliseconds: start), end: WallTime(milliseconds: end))
      if window.tally == .units {
        items[Int(item)].cells.append(
          CellReference(level: Int(level), window: window, period: period))
      } else {
        items[Int(item)].billed?.parts.append(
          CountedPart(level: Int(level), window: window, period: period, amount: amount))
      }
    }
    return true
  }

  private mutating func readCharges(_ reader: inout MessagePackReader) -> Bool {
    guard let count = Self.count(&reader) else { return false }
    for _ in 0..<count {
      guard let item = reader.integer(), items.indices.contains(Int(item)),
        let rate = reader.text().flatMap({ try? Name($0) }), let from = reader.integer(),
        let units = reader.integer(), let charge = reader.integer()
      else { return false }
      items[Int(item)].billed?.charges.append(
        RateCharge(rate: rate, from: WallTime(milliseconds: from), units: units, charge: charge))
    }
    return true
  }
}
