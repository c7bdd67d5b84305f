// Reading what deltas carry. A body was written by a sidecar of any release; one that cannot be
// read, or whose numbers make no sense, is poison: it is parked with the reason found here, and
// the stream goes on.

internal import Foundation
package import TollgateCore
internal import TollgateWire

/// How bodies are decoded. A value, so that the store knows no wire format.
package struct DeltaBodies: Sendable {
  package var usage: @Sendable ([UInt8]) throws -> UsageBody
  package var config: @Sendable ([UInt8]) throws -> ConfigDelta

  package init(
    usage: @escaping @Sendable ([UInt8]) throws -> UsageBody,
    config: @escaping @Sendable ([UInt8]) throws -> ConfigDelta
  ) {
    self.usage = usage
    self.config = config
  }

  /// The format of proto/PROTOCOL.md.
  package static let wire = DeltaBodies(
    usage: { try UsageBody.decode($0) }, config: { try ConfigDelta.decode($0) })
}

/// Which counter an operator changed: the `after` text of a `counter` config delta. By how much
/// what limits see of it has changed is the delta's own number.
struct CounterChange: Decodable {
  var subject: Subject
  var feature: Name
  /// The window's code; nil: a rate, which has no books.
  var window: String?
  var limit: Name?
  var start: Int64?
  var end: Int64?
  /// An adjustment: the counter was moved by a delta of its own, and this one only says why.
  var adjust: Int64?
}

/// Why an entry posts nothing for now.
struct Poison: Error {
  var reason: String
}

struct CellKey: Hashable {
  var account: String
  var subject: String
  var feature: String
  var window: String
  var start: Int64
}

/// What one entry means for the books.
struct Meaning {
  struct CellChange {
    var key: CellKey
    var end: Int64
    /// When the sum may be dropped; nil: never.
    var goes: Int64?
    var change: Int64
  }
  struct Usage {
    var account: String
    var feature: String
    var period: Period
    var breakdown: Breakdown
    var charges: [RateCharge]
    var corrects: OperationID?
    /// Whether what it charges is a correction, not a price.
    var isCorrection: Bool
  }
  var usage: Usage?
  var cells: [CellChange] = []
  var config: ConfigDelta?
}

extension DeltaBodies {
  /// A delta adds to at most this many counters: every window of every level of its subject.
  static let cellsMax = WireLimits.cellsMax
  /// And to at most this many with an amount of their own.
  static let partsMax = WireLimits.partsMax
  static let chargesMax = WireLimits.chargesMax

  func meaning(of entry: OutboxEntry) throws(Poison) -> Meaning {
    if entry.kind == .config { return try configMeaning(of: entry) }
    if entry.kind == .threshold { return try eventMeaning(of: entry) }
    guard let kind = Breakdown.Kind(entry.kind) else {
      throw Poison(reason: "unknown delta kind \(entry.kind.rawValue)")
    }
    return try usageMeaning(of: entry, kind)
  }

  private func usageMeaning(
    of entry: OutboxEntry, _ kind: Breakdown.Kind
  ) throws(Poison) -> Meaning {
    for number in [entry.actual, entry.charged, entry.absorbed] {
      guard Quantity.isValid(number) else { throw Poison(reason: "amount \(number) out of range") }
      guard kind.allows(number) else {
        throw Poison(reason: "amount \(number) has the wrong sign for kind \(entry.kind.rawValue)")
      }
    }
    guard entry.actual == entry.charged + entry.absorbed else {
      throw Poison(
        reason:
          "actual \(entry.actual) is not charged \(entry.charged) + absorbed \(entry.absorbed)")
    }
    let body: UsageBody
    do { body = try usage(entry.body) } catch {
      throw Poison(reason: "undecodable body: \(error)")
    }
    guard body.cells.count <= Self.cellsMax, body.parts.count <= Self.partsMax,
      body.charges.count <= Self.chargesMax
    else {
      throw Poison(
        reason: "\(body.cells.count) cells, \(body.parts.count) parts, \(body.charges.count)"
          + " charges; at most \(Self.cellsMax), \(Self.partsMax), \(Self.chargesMax)")
    }
    let account = body.subject.account.path
    var meaning = Meaning()
    var parts = body.parts
    for cell in body.cells {
      // A grant that covered all of it may stand among the counters that got the whole amount.
      if cell.window.tally == .units {
        try Self.count(entry.charged, cell, of: body, account, into: &meaning)
      } else {
        parts.append(
          CountedPart(
            level: cell.level, window: cell.window, period: cell.period, amount: entry.charged))
      }
    }
    for part in parts {
      guard Quantity.isValid(part.amount) else {
        throw Poison(reason: "\(part.amount) of \(part.window.code) out of range")
      }
      try Self.count(
        part.amount,
        CellReference(level: part.level, window: part.window, period: part.period), of: body,
        account, into: &meaning)
    }
    if !body.charges.isEmpty { try Breakdown.check(body.charges, of: entry, kind) }
    meaning.usage = .init(
      account: account, feature: body.feature.text, period: body.period,
      breakdown: parts.isEmpty
        ? Breakdown(plain: entry, kind) : try Breakdown(entry, kind, parts: parts),
      charges: body.charges, corrects: body.corrects, isCorrection: entry.kind != .usage)
    return meaning
  }

  private static func count(
    _ amount: Int64, _ cell: CellReference, of body: UsageBody, _ account: String,
    into meaning: inout Meaning
  ) throws(Poison) {
    guard cell.level >= 1, cell.level <= body.subject.depth else {
      throw Poison(reason: "cell at level \(cell.level) of \(body.subject.path)")
    }
    let key = CellKey(
      account: account, subject: body.subject.prefix(cell.level).path,
      feature: body.feature.text, window: cell.window.code,
      start: cell.period.start.milliseconds)
    guard !meaning.cells.contains(where: { $0.key == key }) else {
      throw Poison(reason: "cell \(key.subject) \(key.window) named twice")
    }
    meaning.cells.append(
      .init(
        key: key, end: cell.period.end.milliseconds,
        goes: Retention.end(of: cell.window, cell.period), change: amount))
  }

  private func configMeaning(of entry: OutboxEntry) throws(Poison) -> Meaning {
    let delta: ConfigDelta
    do { delta = try config(entry.body) } catch {
      throw Poison(reason: "undecodable body: \(error)")
    }
    var meaning = Meaning()
    meaning.config = delta
    guard delta.scope == .counter else { return meaning }
    let change: CounterChange
    do {
      change = try JSONDecoder().decode(CounterChange.self, from: Data(delta.after.utf8))
    } catch {
      throw Poison(reason: "undecodable counter change: \(error)")
    }
    if change.window == nil, change.limit != nil || change.adjust != nil, entry.actual == 0,
      entry.charged == 0
    {
      return meaning
    }
    guard let window = change.window.flatMap({ Window(code: $0) }) else {
      throw Poison(reason: "unknown window \"\(change.window ?? "")\"")
    }
    guard let start = change.start, Quantity.isValid(entry.actual), Quantity.isValid(start) else {
      throw Poison(reason: "counter change out of range")
    }
    guard entry.charged == 0, entry.actual == entry.absorbed else {
      throw Poison(reason: "a counter change that charges \(entry.charged)")
    }
    guard window.tally != .inFlight else {
      throw Poison(reason: "a reset of what is in flight: nothing settles there")
    }
    guard let end = change.end ?? Self.end(of: window, start), Quantity.isValid(end) else {
      throw Poison(reason: "a reset of \(window.code) that names no end")
    }
    // What is settled is the bill and does not move: what limits see moves by forgiving units,
    // in a cell of its own beside the counter's.
    meaning.cells = [
      .init(
        key: CellKey(
          account: change.subject.account.path, subject: change.subject.path,
          feature: change.feature.text, window: window.code + "^", start: start),
        end: end,
        goes: Retention.end(
          of: window,
          Period(start: WallTime(milliseconds: start), end: WallTime(milliseconds: end))),
        change: -entry.actual)
    ]
    return meaning
  }

  /// Where a period of a calendar window ends, for changes that older releases wrote.
  private static func end(of window: Window, _ start: Int64) -> Int64? {
    switch window.tally {
    case .units, .overage:
      window.period(containing: WallTime(milliseconds: start)).end.milliseconds
    case .grant, .priced, .inFlight, .deficit: nil
    }
  }
}

extension OperationID {
  /// The 16 bytes, big-endian: byte order is time order.
  var blob: Data {
    var bytes = Data(capacity: 16)
    for word in [high, low] {
      for shift in stride(from: UInt64(56), through: 0, by: -8) {
        bytes.append(UInt8(truncatingIfNeeded: word >> shift))
      }
    }
    return bytes
  }

  init?(blob: Data) {
    guard blob.count == 16 else { return nil }
    var words: (UInt64, UInt64) = (0, 0)
    for (position, byte) in blob.enumerated() {
      if position < 8 {
        words.0 = words.0 << 8 | UInt64(byte)
      } else {
        words.1 = words.1 << 8 | UInt64(byte)
      }
    }
    self.init(high: words.0, low: words.1)
  }
}
