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
    var change: Int64
  }
  struct Usage {
    var account: String
    var feature: String
    var period: Period
  }
  var usage: Usage?
  var cells: [CellChange] = []
  var config: ConfigDelta?
}

extension DeltaBodies {
  /// A delta adds to at most this many counters: every window of every level of its subject.
  static let cellsMax = 64

  func meaning(of entry: OutboxEntry) throws(Poison) -> Meaning {
    switch entry.kind {
    case .usage: return try usageMeaning(of: entry, sign: 1)
    case .reversal: return try usageMeaning(of: entry, sign: -1)
    case .config: return try configMeaning(of: entry)
    default: throw Poison(reason: "unknown delta kind \(entry.kind.rawValue)")
    }
  }

  private func usageMeaning(of entry: OutboxEntry, sign: Int64) throws(Poison) -> Meaning {
    for number in [entry.actual, entry.charged, entry.absorbed] {
      guard Quantity.isValid(number) else { throw Poison(reason: "amount \(number) out of range") }
      guard number.signum() * sign >= 0 else {
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
    guard body.cells.count <= Self.cellsMax else {
      throw Poison(reason: "\(body.cells.count) cells; at most \(Self.cellsMax)")
    }
    let account = body.subject.account.path
    var meaning = Meaning()
    meaning.usage = .init(account: account, feature: body.feature.text, period: body.period)
    for cell in body.cells {
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
        .init(key: key, end: cell.period.end.milliseconds, change: entry.charged))
    }
    return meaning
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
    if change.window == nil, change.limit != nil, entry.actual == 0, entry.charged == 0 {
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
    let end =
      change.end ?? window.period(containing: WallTime(milliseconds: start)).end.milliseconds
    // What is settled is the bill and does not move: what limits see moves by forgiving units,
    // in a cell of its own beside the counter's.
    meaning.cells = [
      .init(
        key: CellKey(
          account: change.subject.account.path, subject: change.subject.path,
          feature: change.feature.text, window: window.code + "^", start: start),
        end: end, change: -entry.actual)
    ]
    return meaning
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
