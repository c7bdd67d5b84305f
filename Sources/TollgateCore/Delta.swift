// A delta: one record for the ledger. It is born in the script that moves the counter; what the
// script does not need to understand travels as an opaque `body` that the sidecar wrote and the
// ledger reads, so that a shipper of an older release forwards fields it has never heard of.

/// Where a delta lies: bucket stream, epoch and sequence number (from 1, contiguous).
public struct StreamPosition: Hashable, Comparable, Sendable, Codable {
  public var epoch: Int64
  public var sequence: Int64

  public init(epoch: Int64, sequence: Int64) {
    self.epoch = epoch
    self.sequence = sequence
  }

  public static func < (a: Self, b: Self) -> Bool {
    a.epoch != b.epoch ? a.epoch < b.epoch : a.sequence < b.sequence
  }
}

/// An open set: a shipper, Redis and the ledger carry kinds that a newer release invented, and the
/// ledger parks what it does not know.
public struct DeltaKind: RawRepresentable, Hashable, Sendable, CaseIterable {
  public let rawValue: UInt8

  public init(rawValue: UInt8) { self.rawValue = rawValue }

  /// Units consumed.
  public static let usage = DeltaKind(rawValue: 1)
  /// An earlier delta of the same operation taken back; its numbers are negative.
  public static let reversal = DeltaKind(rawValue: 2)
  /// A change of configuration; the body is a `ConfigDelta`.
  public static let config = DeltaKind(rawValue: 3)
  /// Units of an earlier operation given back; its numbers are not positive.
  public static let refund = DeltaKind(rawValue: 4)
  /// An operator's correction, of either sign.
  public static let adjustment = DeltaKind(rawValue: 5)
  /// A part of a limit's amount was reached; moves nothing, its numbers are 0. The body is a
  /// `ThresholdBody`.
  public static let threshold = DeltaKind(rawValue: 6)
  /// Those this release knows.
  public static let allCases: [DeltaKind] = [
    .usage, .reversal, .config, .refund, .adjustment, .threshold,
  ]
}

/// One stream entry, as the outbox, the shipper, a sidecar's retained copies and the ledger
/// stream all carry it.
public struct OutboxEntry: Hashable, Sendable {
  public var sequence: Int64
  public var kind: DeltaKind
  public var id: DeltaID
  /// Redis time at which it was born.
  public var time: WallTime
  /// What was used, what of it is billed, what is not: `actual = charged + absorbed`.
  public var actual: Int64
  public var charged: Int64
  public var absorbed: Int64
  public var body: [UInt8]

  public init(
    sequence: Int64, kind: DeltaKind, id: DeltaID, time: WallTime, actual: Int64, charged: Int64,
    absorbed: Int64, body: [UInt8]
  ) {
    self.sequence = sequence
    self.kind = kind
    self.id = id
    self.time = time
    self.actual = actual
    self.charged = charged
    self.absorbed = absorbed
    self.body = body
  }
}

/// A counter named in a delta: the ledger keeps its sum, so that Redis can be seeded from it.
public struct CellReference: Hashable, Sendable {
  public var level: Int
  public var window: Window
  public var period: Period

  public init(level: Int, window: Window, period: Period) {
    self.level = level
    self.window = window
    self.period = period
  }
}

/// A counter that got another amount than the delta's: the units that one grant covered, the
/// overage, the units that a rate priced, what was owed.
public struct CountedPart: Hashable, Sendable {
  public var level: Int
  public var window: Window
  public var period: Period
  public var amount: Int64

  public init(level: Int, window: Window, period: Period, amount: Int64) {
    self.level = level
    self.window = window
    self.period = period
    self.amount = amount
  }
}

/// What one rate made of units, in micro-units of the feature that is charged.
public struct RateCharge: Hashable, Sendable {
  public var rate: Name
  /// The version of the rate: since when it had this price.
  public var from: WallTime
  public var units: Int64
  public var charge: Int64

  public init(rate: Name, from: WallTime, units: Int64, charge: Int64) {
    self.rate = rate
    self.from = from
    self.units = units
    self.charge = charge
  }
}

/// What a usage delta says beside its numbers.
public struct UsageBody: Hashable, Sendable {
  public var subject: Subject
  public var feature: Name
  /// The billing period the units belong to (the account's month).
  public var period: Period
  /// Every counter that `charged` was added to, the billing cell included.
  public var cells: [CellReference]
  public var catalogVersion: Int64
  /// `Source` of the decision that let the units through.
  public var source: Source
  /// Declared, bounded attributes (model, region, …), sorted by key.
  public var attributes: [String: String]
  /// W3C trace parent, or empty.
  public var traceParent: String
  /// Counters that got another amount than `charged`.
  public var parts: [CountedPart]
  /// For a feature that others are charged to: which rates made it.
  public var charges: [RateCharge]
  /// The reservation that a settle ends, or the operation that a refund corrects.
  public var corrects: OperationID?
  /// Why, in the words of whoever corrects; or empty.
  public var note: String

  public init(
    subject: Subject, feature: Name, period: Period, cells: [CellReference],
    catalogVersion: Int64, source: Source, attributes: [String: String] = [:],
    traceParent: String = "", parts: [CountedPart] = [], charges: [RateCharge] = [],
    corrects: OperationID? = nil, note: String = ""
  ) {
    self.subject = subject
    self.feature = feature
    self.period = period
    self.cells = cells
    self.catalogVersion = catalogVersion
    self.source = source
    self.attributes = attributes
    self.traceParent = traceParent
    self.parts = parts
    self.charges = charges
    self.corrects = corrects
    self.note = note
  }
}

extension UsageBody {
  /// Every counter that a delta of so many charged units moves, and by how much. Whoever counts,
  /// takes back or compares a delta goes by this, and by nothing else.
  package func counts(charged: Int64) -> [CountedPart] {
    cells.map {
      CountedPart(level: $0.level, window: $0.window, period: $0.period, amount: charged)
    } + parts
  }
}

/// A change of configuration, as the ledger keeps it: enough to put Redis back, and to audit.
public struct ConfigDelta: Hashable, Sendable {
  public enum Scope: String, Sendable, CaseIterable {
    /// `GlobalConfig`; key is empty.
    case global
    /// One account's `AccountConfig`; key is the account.
    case account
    /// A counter set or reset by an operator; key is the subject. State is the audit text only.
    case counter
  }

  public var scope: Scope
  public var key: String
  /// The version that this change made.
  public var version: Int64
  /// e.g. `catalog.apply`, `limit.set`, `bypass`, `account.set`, `reset`.
  public var action: String
  public var actor: String
  public var reason: String
  /// JSON of the state before and after (the whole global or account configuration).
  public var before: String
  public var after: String
  /// Of the request; 0: not known. Redis is seeded with it, so that the same id with another
  /// request is told apart even after Redis lost everything.
  public var fingerprint: UInt64

  public init(
    scope: Scope, key: String, version: Int64, action: String, actor: String, reason: String,
    before: String, after: String, fingerprint: UInt64 = 0
  ) {
    self.scope = scope
    self.key = key
    self.version = version
    self.action = action
    self.actor = actor
    self.reason = reason
    self.before = before
    self.after = after
    self.fingerprint = fingerprint
  }
}
