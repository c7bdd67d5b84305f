// What a `decide` or `cancel` call answered. Nothing here traps on a strange reply: it is `error`.

package import TollgateCore

/// A decision with what it left in the outbox.
package struct DecidedOperation: Hashable, Sendable {
  package struct Entry: Hashable, Sendable {
    /// Item index; 64 + item for a reversal.
    package var index: UInt16
    package var sequence: Int64
  }

  package var decision: Decision
  /// The epoch the deltas were born in.
  package var epoch: Int64
  package var entries: [Entry]
  /// When the deltas were born: the decision's time, or that of its annulment.
  package var bornAt: WallTime
  /// What was used and billed, per item, derived ones last; empty where it is what was asked for.
  package var billed: [Decision.Settlement] = []
}

/// Why a step of a reservation cannot be made.
package enum HoldProblem: Int64, Hashable, Sendable {
  /// There never was one of this id for this subject, or it is forgotten.
  case unknown = 0
  case committed = 1
  case released = 2
  case expired = 3
  /// A feature was named that the reservation does not hold.
  case otherItem = 4
  /// More was used than is held, and its policy refuses that.
  case overrun = 5
}

package enum DecideReply: Hashable, Sendable {
  /// Denials included; `outboxFull` and `dedupeFull` are denials.
  case decided(DecidedOperation)
  /// Recorded earlier under this id, given again.
  case replayed(DecidedOperation)
  case mismatch(OperationFingerprint.Field)
  case idTooOld
  case idFromFuture
  /// `notAfter` had passed; nothing was done.
  case expired(now: WallTime)
  /// The caller's configuration is not Redis's. `accountVersion` is nil while there is no header;
  /// `accountConfig` comes only where the account's version differs.
  case stale(globalVersion: Int64, accountVersion: Int64?, accountConfig: String?)
  /// The account is not seeded in this epoch.
  case rebuild
  /// A period in the plan is not the current one at `now`.
  case period(now: WallTime)
  case fenced(FenceState)
  /// Reservations of the account are over time: expire them, then ask again.
  case holdsDue
  /// The epoch has just begun, and sidecars are bringing the holds they made: ask again.
  case young
  /// Holds of the account are not counted in this epoch yet: bring them, then ask again.
  case holdsElsewhere
  /// Call again with the plan of these features as of that instant.
  case planWanted(created: WallTime, features: [Name])
  case notHeld(HoldProblem)
  case error(String)

  package init(_ reply: RESPReply) {
    switch reply {
    case .string(let bytes):
      self =
        OperationRecord.decode(bytes, replayed: false).map { .decided($0) }
        ?? .error("undecodable record")
    case .array:
      self = Self.array(reply)
    case .error(let text): self = .error(text)
    case .integer, .null, .status: self = .error("unexpected reply \(reply)")
    }
  }

  /// From what is stored under an id: its answer again, or that it was asked something else.
  package init?(record bytes: [UInt8], of fingerprint: OperationFingerprint) {
    let ours = fingerprint.bytes
    guard bytes.count > 16, let decided = OperationRecord.decode(bytes, replayed: true) else {
      return nil
    }
    if let byte = (0..<16).first(where: { bytes[$0] != ours[$0] }),
      let field = OperationFingerprint.Field(rawValue: byte / 4)
    {
      self = .mismatch(field)
    } else {
      self = .replayed(decided)
    }
  }

  private static func array(_ reply: RESPReply) -> DecideReply {
    let problem = DecideReply.error("unexpected reply \(reply)")
    switch reply.code {
    case .replayed?:
      return reply[1].bytes.flatMap { OperationRecord.decode($0, replayed: true) }
        .map { .replayed($0) } ?? problem
    case .fenced?: return .fenced(reply.fenceState)
    case .mismatch?:
      return reply[1].integer.flatMap { OperationFingerprint.Field(rawValue: Int($0)) }
        .map { .mismatch($0) } ?? problem
    case .tooOld?: return .idTooOld
    case .fromFuture?: return .idFromFuture
    case .expired?:
      return reply[1].number.map { .expired(now: WallTime(milliseconds: $0)) } ?? problem
    case .stale?:
      guard let version = reply[1].number else { return problem }
      return .stale(
        globalVersion: version, accountVersion: reply[2].number, accountConfig: reply[3].text)
    case .rebuild?: return .rebuild
    case .period?:
      return reply[1].number.map { .period(now: WallTime(milliseconds: $0)) } ?? problem
    case .overflow?: return .error("QUANTITY_OVERFLOW")
    case .done?:
      guard var decided = reply[1].bytes.flatMap({ OperationRecord.decode($0, replayed: false) }),
        let now = reply[2].number
      else { return problem }
      decided.bornAt = WallTime(milliseconds: now)
      return .decided(decided)
    case .holdsDue?: return .holdsDue
    case .young?: return .young
    case .holdsElsewhere?: return .holdsElsewhere
    case .planWanted?:
      guard let created = reply[1].number else { return problem }
      let names = reply.array?.dropFirst(2).compactMap { $0.text.flatMap { try? Name($0) } }
      return .planWanted(created: WallTime(milliseconds: created), features: names ?? [])
    case .notHeld?:
      return reply[1].integer.flatMap { HoldProblem(rawValue: $0) }.map { .notHeld($0) } ?? problem
    case .conflict?, .counted?, .outboxFull?, nil: return problem
    }
  }
}

/// The stored form of a decided operation: 16 bytes of fingerprint, then a run of MessagePack:
/// reason, time, global version, account version, epoch, first sequence, mask of metered items,
/// index offset of the deltas (64 for reversals), binding item (0: none), binding limit, retry
/// after (−1: none), items, and per item: limit, remaining (−1: none), settled, held, reset (−1).
/// An allowed operation's goes on with what it was counted in: the number of cells, and per cell:
/// item, level, window code, start, end. One of `transact` or `settle` goes on with −1 instead and
/// then: when it expires (0: nothing is held), items asked for, items, per item feature, used and
/// billed; burns, each item (from 1), grant (or nothing), amount; counts, each item, level, window
/// code, start, end, amount; charges, each item, rate, from, units, charge.
enum OperationRecord {
  static func decode(_ bytes: [UInt8], replayed: Bool) -> DecidedOperation? {
    guard bytes.count > 16 else { return nil }
    var reader = MessagePackReader(bytes, from: 16)
    guard let code = reader.integer(), let number = UInt16(exactly: code),
      let reason = Reason(rawValue: number),
      let time = reader.integer(), let globalVersion = reader.integer(),
      let accountVersion = reader.integer(), let epoch = reader.integer(),
      let first = reader.integer(), let mask = reader.integer(), let offset = reader.integer(),
      let bindingItem = reader.integer(), let binding = reader.text(),
      let retry = reader.integer(), let count = reader.integer(),
      count >= 0, count <= Int64(Resolution.itemsMax), offset >= 0, offset <= 64
    else { return nil }
    var items: [Decision.ItemState] = []
    items.reserveCapacity(Int(count))
    for _ in 0..<count {
      guard let limit = reader.text(), let remaining = reader.integer(),
        let settled = reader.integer(), let held = reader.integer(), let reset = reader.integer()
      else { return nil }
      items.append(
        Decision.ItemState(
          limit: name(limit), remaining: remaining < 0 ? nil : remaining, settled: settled,
          held: held, reset: reset < 0 ? nil : WallTime(milliseconds: reset)))
    }
    let tail = RecordTail(&reader)
    var entries: [DecidedOperation.Entry] = []
    var sequence = first
    for item in 0..<64 where mask & (1 << Int64(item)) != 0 {
      entries.append(.init(index: UInt16(item) + UInt16(offset), sequence: sequence))
      sequence += 1
    }
    return DecidedOperation(
      decision: Decision(
        reason: reason, source: .redis, binding: name(binding),
        bindingItem: bindingItem > 0 ? Int(bindingItem) - 1 : nil,
        retryAfter: retry < 0 ? nil : retry, time: WallTime(milliseconds: time),
        globalVersion: globalVersion, accountVersion: accountVersion, replayed: replayed,
        items: items, expires: tail?.expires,
        settlements: reason.isSettlement ? tail?.billed ?? [] : [], burns: tail?.burns ?? [],
        derived: tail.map { Array($0.features.dropFirst($0.asked)) } ?? []),
      epoch: epoch, entries: entries, bornAt: WallTime(milliseconds: time),
      billed: tail?.billed ?? [])
  }

  /// The metered items of a record and what was counted of them.
  static func counted(_ bytes: [UInt8]) -> [CountedItem]? {
    guard bytes.count > 16 else { return nil }
    var reader = MessagePackReader(bytes, from: 16)
    for _ in 0..<6 { guard reader.integer() != nil else { return nil } }
    guard let mask = reader.integer(), reader.integer() != nil, reader.integer() != nil,
      reader.text() != nil, reader.integer() != nil, let count = reader.integer(), count >= 0,
      count <= Int64(Resolution.itemsMax)
    else { return nil }
    for _ in 0..<count {
      guard reader.text() != nil else { return nil }
      for _ in 0..<4 { guard reader.integer() != nil else { return nil } }
    }
    if let tail = RecordTail(&reader) {
      return tail.items.indices.filter { mask & (1 << Int64($0)) != 0 }.map { tail.items[$0] }
    }
    guard let cells = reader.integer(), (0...Int64(cellsMax)).contains(cells) else { return nil }
    var items: [Int: [CellReference]] = [:]
    for _ in 0..<cells {
      guard let item = reader.integer(), (0..<count).contains(item), let level = reader.integer(),
        (1...Int64(Subject.levelsMax)).contains(level),
        let window = reader.text().flatMap({ Window(code: $0) }), let start = reader.integer(),
        let end = reader.integer(), start < end
      else { return nil }
      items[Int(item), default: []].append(
        CellReference(
          level: Int(level), window: window,
          period: Period(start: WallTime(milliseconds: start), end: WallTime(milliseconds: end))))
    }
    return (0..<Int(count)).filter { mask & (1 << Int64($0)) != 0 }
      .map { CountedItem(item: $0, cells: items[$0] ?? []) }
  }

  /// Each item has at most a cell per limit and one for the bill.
  private static let cellsMax = Resolution.itemsMax + Resolution.limitsMax * Resolution.itemsMax

  static func name(_ text: String) -> Name? { text.isEmpty ? nil : try? Name(text) }
}
