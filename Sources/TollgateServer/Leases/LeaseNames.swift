// What the lease table keeps for the shell without looking into it: which counter a portion is
// taken from, which limits judge it, and what a delta of a shape says. The engine compares these as
// bytes; here is what they mean. Written once where a shape is registered, read when it is settled,
// which may be by the next incarnation: so the bytes are MessagePack, and what cannot be read is
// nil, never a trap.

import TollgateCore
import TollgateRedis

/// A counter, or a rate, of a subject.
struct LeaseCounter: Hashable {
  enum Place: Hashable {
    case window(Window)
    case rate(Name)
  }

  var subject: Subject
  var feature: Name
  var place: Place

  init(subject: Subject, feature: Name, place: Place) {
    self.subject = subject
    self.feature = feature
    self.place = place
  }

  var bytes: [UInt8] {
    var writer = MessagePackWriter()
    writer.append(subject.path)
    writer.append(feature.text)
    switch place {
    case .window(let window):
      writer.append(0)
      writer.append(window.code)
    case .rate(let limit):
      writer.append(1)
      writer.append(limit.text)
    }
    return writer.bytes
  }

  init?(bytes: [UInt8]) {
    var reader = MessagePackReader(bytes)
    guard let path = reader.text(), let subject = try? Subject(path),
      let feature = reader.text().flatMap({ try? Name($0) }), let kind = reader.integer(),
      let text = reader.text()
    else { return nil }
    switch kind {
    case 0:
      guard let window = Window(code: text) else { return nil }
      self.init(subject: subject, feature: feature, place: .window(window))
    case 1:
      guard let limit = try? Name(text) else { return nil }
      self.init(subject: subject, feature: feature, place: .rate(limit))
    default: return nil
    }
  }
}

/// What judges a portion.
enum LeaseRule: Hashable {
  case quota(amount: Int64)
  case sliding(amount: Int64, lengthMilliseconds: Int64)
  case grant(amount: Int64, others: [LeasePortion.Instance])
  /// Microseconds.
  case rate(interval: Int64, tolerance: Int64)

  init(_ bound: LeasePortion.Bound) {
    switch bound {
    case .quota(let amount): self = .quota(amount: amount)
    case .sliding(let amount, let length):
      self = .sliding(amount: amount, lengthMilliseconds: length)
    case .grant(let amount, let others): self = .grant(amount: amount, others: others)
    }
  }

  private var numbers: (Int64, Int64, Int64) {
    switch self {
    case .quota(let amount): (1, amount, 0)
    case .rate(let interval, let tolerance): (2, interval, tolerance)
    case .sliding(let amount, let length): (4, amount, length)
    case .grant(let amount, let others): (6, amount, Int64(others.count))
    }
  }

  static func bytes(_ rules: [LeaseRule]) -> [UInt8] {
    var writer = MessagePackWriter()
    writer.append(rules.count)
    for rule in rules {
      let (kind, a, b) = rule.numbers
      writer.append(kind)
      writer.append(a)
      writer.append(b)
      guard case .grant(_, let others) = rule else { continue }
      for other in others {
        writer.append(other.grant.text)
        writer.append(other.start.milliseconds)
        writer.append(other.amount)
      }
    }
    return writer.bytes
  }

  static func rules(_ bytes: [UInt8]) -> [LeaseRule]? {
    var reader = MessagePackReader(bytes)
    guard let count = reader.integer(), (0...Int64(Resolution.limitsMax)).contains(count) else {
      return nil
    }
    var rules: [LeaseRule] = []
    for _ in 0..<count {
      guard let kind = reader.integer(), let a = reader.integer(), let b = reader.integer() else {
        return nil
      }
      switch kind {
      case 1: rules.append(.quota(amount: a))
      case 2: rules.append(.rate(interval: a, tolerance: b))
      case 4: rules.append(.sliding(amount: a, lengthMilliseconds: b))
      case 6:
        guard (0...64).contains(b) else { return nil }
        var others: [LeasePortion.Instance] = []
        for _ in 0..<b {
          guard let grant = reader.text().flatMap({ try? Name($0) }), let start = reader.integer(),
            let amount = reader.integer()
          else { return nil }
          others.append(
            .init(grant: grant, start: WallTime(milliseconds: start), amount: amount))
        }
        rules.append(.grant(amount: a, others: others))
      default: return nil
      }
    }
    return rules
  }
}

/// What the deltas of a shape say beside what its key says. Equal for all subjects of one depth
/// under one configuration, so that the table keeps it once.
struct LeaseDefinition: Hashable {
  struct Item: Hashable {
    var isMetered: Bool
    var cells: [CellReference]
  }

  var catalogVersion: Int64
  var items: [Item]

  init(catalogVersion: Int64, items: [Item]) {
    self.catalogVersion = catalogVersion
    self.items = items
  }

  /// - Parameter cells: those that units are added to.
  init(_ resolution: Resolution, cells: [Int], catalogVersion: Int64) {
    self.init(
      catalogVersion: catalogVersion,
      items: resolution.items.indices.map { item in
        Item(
          isMetered: resolution.metered[item],
          cells: cells.map { resolution.cells[$0] }.filter { $0.item == item }
            .map { CellReference(level: $0.level, window: $0.window, period: $0.period) })
      })
  }

  var bytes: [UInt8] {
    var writer = MessagePackWriter()
    writer.append(catalogVersion)
    writer.append(items.count)
    for item in items {
      writer.append(item.isMetered ? 1 : 0)
      writer.append(item.cells.count)
      for cell in item.cells {
        writer.append(cell.level)
        writer.append(cell.window.code)
        writer.append(cell.period.start.milliseconds)
        writer.append(cell.period.end.milliseconds)
      }
    }
    return writer.bytes
  }

  init?(bytes: [UInt8]) {
    var reader = MessagePackReader(bytes)
    guard let version = reader.integer(), let count = reader.integer(),
      (1...Int64(Resolution.itemsMax)).contains(count)
    else { return nil }
    catalogVersion = version
    items = []
    for _ in 0..<count {
      guard let metered = reader.integer(), let cells = reader.integer(), (0...64).contains(cells)
      else { return nil }
      var item = Item(isMetered: metered == 1, cells: [])
      for _ in 0..<cells {
        guard let level = reader.integer(), let code = reader.text(),
          let window = Window(code: code), let start = reader.integer(),
          let end = reader.integer(), start < end
        else { return nil }
        item.cells.append(
          CellReference(
            level: Int(level), window: window,
            period: Period(
              start: WallTime(milliseconds: start), end: WallTime(milliseconds: end))))
      }
      items.append(item)
    }
  }
}
