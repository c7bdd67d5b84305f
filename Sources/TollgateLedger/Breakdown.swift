// What one delta of use is made of: which units are included, which were burnt from a grant, which
// go beyond every grant, which are owed and which nobody pays. The body says it in its parts; here
// it is checked against the delta's own numbers and becomes the lines of the double entry.
//
// Rules (proto/LEDGER.md, 5): grants and deficits are taken from the outermost level that names
// any, deeper ones only count; the overage is one number, however many caps count it; what is
// left of the charged amount is included, and can be neither negative nor more than was charged.
// Whatever breaks a rule is poison.

internal import TollgateCore

/// A line of the double entry of one account and feature.
struct BookLine: Hashable, Sendable {
  /// Refunds and adjustments stand beside what was used, not in it.
  enum Column: String, Hashable, Sendable, CaseIterable { case usage, refund, adjustment }

  enum Part: Hashable, Sendable {
    case included
    case grant(String)
    case overage
    case deficit
    case absorbed

    var word: String {
      switch self {
      case .included: "included"
      case .grant: "grant"
      case .overage: "overage"
      case .deficit: "deficit"
      case .absorbed: "absorbed"
      }
    }

    var grant: String? {
      if case .grant(let id) = self { return id }
      return nil
    }
  }

  var column: Column
  var part: Part

  /// `usage:acme:tokens`, `grant:acme:tokens:welcome`, `refund:overage:acme:tokens`: no name in it
  /// can hold a colon.
  func name(account: String, feature: String) -> String {
    let text =
      switch part {
      case .included: "usage:\(account):\(feature)"
      case .grant(let id): "grant:\(account):\(feature):\(id)"
      case .overage: "overage:\(account):\(feature)"
      case .deficit: "deficit:\(account):\(feature)"
      case .absorbed: "absorbed:\(account):\(feature)"
      }
    return column == .usage ? text : "\(column.rawValue):\(text)"
  }

  /// nil: the other side of the entry, `consumed:<feature>`.
  init?(name: String) {
    var words = name.split(separator: ":", omittingEmptySubsequences: false)[...]
    column = .usage
    for beside in [Column.refund, .adjustment] where words.first.map(String.init) == beside.rawValue
    {
      column = beside
      words = words.dropFirst()
    }
    switch (words.first, words.count) {
    case ("usage", 3): part = .included
    case ("grant", 4): part = .grant(words.last.map(String.init) ?? "")
    case ("overage", 3): part = .overage
    case ("deficit", 3): part = .deficit
    case ("absorbed", 3): part = .absorbed
    default: return nil
    }
  }

  init(_ column: Column, _ part: Part) {
    self.column = column
    self.part = part
  }
}

struct Breakdown {
  /// Of what the books say of one kind of delta.
  struct Kind {
    var column: BookLine.Column
    /// The sign that every number of it has; nil: any.
    var sign: Int64?

    init?(_ kind: DeltaKind) {
      switch kind {
      case .usage: (column, sign) = (.usage, 1)
      case .reversal: (column, sign) = (.usage, -1)
      case .refund: (column, sign) = (.refund, -1)
      case .adjustment: (column, sign) = (.adjustment, nil)
      default: return nil
      }
    }

    func allows(_ number: Int64) -> Bool { sign.map { number.signum() * $0 >= 0 } ?? true }
  }

  struct Row {
    var line: BookLine
    var amount: Int64
  }

  /// Sums to what was used.
  var rows: [Row]

  /// Almost every delta: no grant, no cap, no rate.
  init(plain entry: OutboxEntry, _ kind: Kind) {
    rows = [Row(line: BookLine(kind.column, .included), amount: entry.charged)]
    if entry.absorbed != 0 {
      rows.append(Row(line: BookLine(kind.column, .absorbed), amount: entry.absorbed))
    }
  }

  init(_ entry: OutboxEntry, _ kind: Kind, parts: [CountedPart]) throws(Poison) {
    var grants: [(id: String, level: Int, amount: Int64)] = []
    var deficits: [(level: Int, amount: Int64)] = []
    var overage: Int64?
    for part in parts {
      switch part.window.tally {
      case .units, .inFlight:
        throw Poison(reason: "a part that counts by \(part.window.code)")
      case .grant(let id):
        try Self.check(part, kind)
        grants.append((id.text, part.level, part.amount))
      case .deficit: deficits.append((part.level, part.amount))
      case .overage:
        try Self.check(part, kind)
        guard overage == nil || overage == part.amount else {
          throw Poison(reason: "overage of \(overage ?? 0) and of \(part.amount)")
        }
        overage = part.amount
      case .priced:
        try Self.check(part, kind)
        guard kind.sign == nil || part.amount.magnitude <= entry.actual.magnitude else {
          throw Poison(reason: "\(part.amount) priced of \(entry.actual) used")
        }
      }
    }
    let outermost = (grants.map(\.level) + deficits.map(\.level)).min()
    // At most 160 parts of at most 2^53 each: no sum here leaves 64 bits.
    var covered: [(id: String, amount: Int64)] = []
    for grant in grants where grant.level == outermost {
      if let index = covered.firstIndex(where: { $0.id == grant.id }) {
        covered[index].amount += grant.amount
      } else {
        covered.append((grant.id, grant.amount))
      }
    }
    let granted = covered.reduce(0) { $0 + $1.amount }
    let owed = deficits.reduce(0) { $1.level == outermost ? $0 + $1.amount : $0 }
    if let sign = kind.sign, owed * sign < 0, granted * sign < -owed * sign {
      throw Poison(reason: "\(-owed) owed units cured from grants of \(granted)")
    }
    let beyond = overage ?? 0
    let included = entry.charged - granted - beyond - owed
    guard min(0, entry.charged) <= included, included <= max(0, entry.charged) else {
      throw Poison(
        reason: "charged \(entry.charged) is not grants \(granted) + overage \(beyond)"
          + " + deficit \(owed) + included")
    }
    rows = covered.map { Row(line: BookLine(kind.column, .grant($0.id)), amount: $0.amount) }
    rows.append(Row(line: BookLine(kind.column, .overage), amount: beyond))
    rows.append(Row(line: BookLine(kind.column, .deficit), amount: owed))
    rows.append(Row(line: BookLine(kind.column, .absorbed), amount: entry.absorbed))
    rows.removeAll { $0.amount == 0 }
    if included != 0 || rows.isEmpty {
      rows.insert(Row(line: BookLine(kind.column, .included), amount: included), at: 0)
    }
  }

  private static func check(_ part: CountedPart, _ kind: Kind) throws(Poison) {
    guard kind.allows(part.amount) else {
      throw Poison(reason: "\(part.amount) of \(part.window.code) has the wrong sign")
    }
  }

  /// What rates charged is part of what was used, and each version of a rate says it once.
  static func check(
    _ charges: [RateCharge], of entry: OutboxEntry, _ kind: Kind
  ) throws(Poison) {
    var sum: Int64 = 0
    for (index, charge) in charges.enumerated() {
      guard Quantity.isValid(charge.units), Quantity.isValid(charge.charge),
        Quantity.isValid(charge.from.milliseconds)
      else { throw Poison(reason: "a charge of \(charge.rate) out of range") }
      guard kind.allows(charge.units), kind.allows(charge.charge) else {
        throw Poison(reason: "a charge of \(charge.rate) with the wrong sign")
      }
      guard
        !charges[..<index].contains(where: { $0.rate == charge.rate && $0.from == charge.from })
      else { throw Poison(reason: "rate \(charge.rate) charged twice") }
      sum += charge.charge
    }
    guard kind.sign == nil || sum.magnitude <= entry.actual.magnitude else {
      throw Poison(reason: "rates charge \(sum) of \(entry.actual) used")
    }
  }
}
