// Prepaid and promotional credit. A grant is an amount of one feature for one account; what was
// burnt from it is a counter like any other (`Window.Tally.grant`), so it is seeded, reconciled,
// held and given back like any other. A grant that recurs has an instance in each period of its
// window, laid out by the same rule as the periods of limits; one that does not has a single
// instance, from where it is effective to where it expires.

/// What of an instance goes over into the next.
public struct Rollover: Hashable, Sendable {
  public var min: Int64
  public var max: Int64

  public static let none = Rollover(min: 0, max: 0)

  public init(min: Int64, max: Int64) {
    self.min = min
    self.max = max
  }

  /// Of an instance of `amount` units that ended with `left`. What had come over into it does not
  /// go on: it was burnt first.
  public func carried(left: Int64, amount: Int64) -> Int64 {
    Swift.min(max, Swift.max(min, Swift.min(left, amount)))
  }
}

public struct Grant: Hashable, Sendable {
  public enum Kind: String, Hashable, Sendable, CaseIterable { case promotional, paid }

  public static let priorityMax: Int64 = 1000
  public static let priorityDefault: Int64 = 100
  public static let textBytesMax = 256
  /// How long after its end a grant stays, whatever room is asked for: longer than the month it is
  /// billed in, than a year's instance, and than anything can be held, settled or refunded.
  public static let keptMilliseconds: Int64 = 400 * 86_400_000

  public var id: Name
  public var feature: Name
  public var amount: Int64
  public var kind: Kind
  /// Lower burns first.
  public var priority: Int64
  public var effective: WallTime
  /// Burns nothing from then on.
  public var expires: WallTime?
  public var created: WallTime
  /// A new instance in each period of this window; nil: once.
  public var every: Window?
  public var rollover: Rollover
  /// From then on it is worth what was burnt and held.
  public var voided: WallTime?
  public var reason: String
  public var author: String

  public init(
    id: Name, feature: Name, amount: Int64, kind: Kind = .paid,
    priority: Int64 = Grant.priorityDefault, effective: WallTime, expires: WallTime? = nil,
    created: WallTime, every: Window? = nil, rollover: Rollover = .none, voided: WallTime? = nil,
    reason: String = "", author: String = ""
  ) {
    self.id = id
    self.feature = feature
    self.amount = amount
    self.kind = kind
    self.priority = priority
    self.effective = effective
    self.expires = expires
    self.created = created
    self.every = every
    self.rollover = rollover
    self.voided = voided
    self.reason = reason
    self.author = author
  }

  /// Nothing is burnt from it any more from then on, but for what is held; nil: no end is known.
  public var ends: WallTime? {
    guard let expires, let voided else { return expires ?? voided }
    return min(expires, voided)
  }

  /// The instance that holds `now`; nil: not effective yet, or expired.
  public func instance(at now: WallTime, _ calendar: AccountCalendar) -> GrantInstance? {
    guard effective <= now, expires.map({ now < $0 }) ?? true else { return nil }
    let end = expires ?? WallTime(milliseconds: Quantity.maximum)
    guard let every else {
      return GrantInstance(
        grant: self, period: Period(start: effective, end: end), ends: expires, before: nil)
    }
    let whole = calendar.period(of: every, containing: now)
    let ended = whole.end.milliseconds < Quantity.maximum || expires != nil
    let period = Period(start: whole.start, end: min(whole.end, end))
    let before = calendar.period(of: every, containing: whole.start + -1)
    return GrantInstance(
      grant: self, period: period, ends: ended ? period.end : nil,
      before: before.end > effective && whole.start > effective ? before : nil)
  }
}

/// One instance of a grant.
public struct GrantInstance: Hashable, Sendable {
  public var grant: Grant
  public var period: Period
  /// nil: never.
  public var ends: WallTime?
  /// The instance directly before this one, where the grant was effective in it.
  public var before: Period?

  /// The order of burning: priority ↑, end ↑ (none last), promotional before paid, effective ↑,
  /// created ↑, id ↑.
  public static func burnsBefore(_ a: Self, _ b: Self) -> Bool {
    let (x, y) = (a.grant, b.grant)
    if x.priority != y.priority { return x.priority < y.priority }
    if a.ends != b.ends {
      guard let first = a.ends else { return false }
      guard let second = b.ends else { return true }
      return first < second
    }
    if x.kind != y.kind { return x.kind == .promotional }
    if x.effective != y.effective { return x.effective < y.effective }
    if x.created != y.created { return x.created < y.created }
    return x.id < y.id
  }
}

extension Grant {
  private static let keys = [
    "id", "feature", "amount", "kind", "priority", "effective_ms", "expires_ms", "created_ms",
    "every", "rollover", "voided_ms", "reason", "author",
  ]

  init?(node: DocumentNode) {
    guard
      let fields = node.object(
        Self.keys, required: ["id", "feature", "amount", "effective_ms", "created_ms"])
    else { return nil }
    func instant(_ key: String) -> WallTime?? {
      guard let field = fields[key] else { return .some(nil) }
      return field.integer(0...Quantity.maximum).map { WallTime(milliseconds: $0) }
    }
    let id = fields["id"]?.name()
    let feature = fields["feature"]?.name()
    let amount = fields["amount"]?.integer(0...Quantity.maximum)
    let kind = fields["kind"].map { $0.choice(Kind.self) } ?? .paid
    let priority =
      fields["priority"].map { $0.integer(0...Self.priorityMax) } ?? Self.priorityDefault
    let every = fields["every"].map { LimitReader.window($0) }
    let rollover = fields["rollover"].map { Rollover(node: $0) } ?? Rollover.none
    let reason = fields["reason"].map { $0.string(bytesMax: Self.textBytesMax) } ?? ""
    let author = fields["author"].map { $0.string(bytesMax: Self.textBytesMax) } ?? ""
    guard let id, let feature, let amount, let kind, let priority, let rollover, let reason,
      let author, let effective = instant("effective_ms") ?? nil,
      let created = instant("created_ms") ?? nil, let expires = instant("expires_ms"),
      let voided = instant("voided_ms"), every.map({ $0 != nil }) ?? true
    else { return nil }
    self.init(
      id: id, feature: feature, amount: amount, kind: kind, priority: priority,
      effective: effective, expires: expires, created: created, every: every ?? nil,
      rollover: rollover, voided: voided, reason: reason, author: author)
  }

  package var document: Document {
    .fields([
      "id": .string(id.text),
      "feature": .string(feature.text),
      "amount": .integer(amount),
      "kind": .string(kind.rawValue),
      "priority": .integer(priority),
      "effective_ms": .integer(effective.milliseconds),
      "expires_ms": expires.map { .integer($0.milliseconds) },
      "created_ms": .integer(created.milliseconds),
      "every": every.map { .string($0.word) },
      "rollover": rollover == .none ? nil : rollover.document,
      "voided_ms": voided.map { .integer($0.milliseconds) },
      "reason": .string(reason),
      "author": .string(author),
    ])
  }
}
