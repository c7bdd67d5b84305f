// What is given back of an earlier operation, worked out from nothing but what is on record of it:
// its deltas, with the counters, grant slices and charges that they name, and the corrections made
// since. No plan, priority or price of today has a say (PITFALL 39): what was burnt yesterday goes
// back to where it came from, the last first.
//
// Rules:
//   * Of a feature at most what it was charged less what came back before; asked for more, what is
//     left. Corrections of any size and order sum to at most the whole, and to exactly the whole
//     when all is asked for.
//   * Units unwind in the reverse order of burning: what is owed, the overage, what no grant
//     covers, then the grants from the last slice back.
//   * What a rate made of units comes back with them: with V of u units ⌊charge · V / u⌋ of it,
//     over all refunds, so that its sums are those of the units that stay. What of it was charged
//     comes back in that proportion, the rest is absorbed no more: where a cap let only half of it
//     be charged, a third of the units still is a third of the money, and all of them all of it.

/// One delta as the books have it.
package struct RecordedDelta: Hashable, Sendable {
  package var id: DeltaID
  package var kind: DeltaKind
  package var time: WallTime
  package var actual: Int64
  package var charged: Int64
  package var body: UsageBody

  package init(
    id: DeltaID, kind: DeltaKind, time: WallTime, actual: Int64, charged: Int64, body: UsageBody
  ) {
    self.id = id
    self.kind = kind
    self.time = time
    self.actual = actual
    self.charged = charged
    self.body = body
  }
}

package struct Correction: Hashable, Sendable {
  /// One delta of the correction: its numbers, and the body that says which counters lose them.
  package struct Share: Hashable, Sendable {
    /// When the delta that it corrects was born: by it is told what a reset has forgiven since.
    package var born: WallTime
    /// What is charged less, or more.
    package var amount: Int64
    /// What rates had made of the units and nobody was charged, absorbed no more: not positive.
    package var absorbed: Int64
    package var body: UsageBody
    /// Charged by rates, and not asked for by name.
    package var isDerived: Bool

    package init(
      born: WallTime, amount: Int64, absorbed: Int64 = 0, body: UsageBody,
      isDerived: Bool = false
    ) {
      self.born = born
      self.amount = amount
      self.absorbed = absorbed
      self.body = body
      self.isDerived = isDerived
    }

    package var actual: Int64 { amount + absorbed }
  }

  package var shares: [Share]

  package init(shares: [Share]) { self.shares = shares }

  /// The slices, by position in `shares`; negative where units come back.
  package var burns: [Decision.Burn] {
    shares.indices.flatMap { position in
      // What is moved belongs to the feature that it is moved for.
      let item =
        shares[position].isMove
        ? shares.firstIndex { $0.body.feature == shares[position].body.feature } ?? position
        : position
      var level = Int.max
      for part in shares[position].body.parts where part.window.isBurnt {
        level = min(level, part.level)
      }
      return shares[position].body.parts.compactMap { part -> Decision.Burn? in
        guard part.level == level else { return nil }
        switch part.window.tally {
        case .grant(let id): return .init(item: item, grant: id, amount: part.amount)
        case .overage: return .init(item: item, grant: nil, amount: part.amount)
        case .units, .priced, .inFlight, .deficit: return nil
        }
      }
    }
  }

  /// What a refund gives back; nil: nothing is left of what it names. `items` empty: all of it.
  /// What rates charged comes back with the units they charged for; `beyondRates`: also by name.
  package static func refund(
    of operation: OperationID, recorded: [RecordedDelta], earlier: [RecordedDelta],
    items: [Item], beyondRates: Bool = false
  ) -> Correction? {
    let books = recorded.filter { $0.kind == .usage }.sorted { $0.id < $1.id }
      .map { Book($0, corrections: recorded + earlier) }
    // Units of each rate that have come back, with those that come back now.
    var moved: [PricedBy: Int64] = [:]
    var shares: [Int: Share] = [:]
    func asked(_ book: Book) -> Int64 {
      if items.isEmpty { return book.direct }
      let amount = items.filter { $0.feature == book.delta.body.feature }.reduce(0) {
        Quantity.adding($0, $1.amount) ?? Quantity.maximum
      }
      return min(amount, beyondRates ? book.left : book.direct)
    }
    // What is charged by rates comes after what they are for.
    let order =
      books.indices.filter { books[$0].delta.body.charges.isEmpty }
      + books.indices.filter { !books[$0].delta.body.charges.isEmpty }
    for position in order {
      let book = books[position]
      var charges: [RateCharge] = []
      // Of what rates made, charged or absorbed.
      var made: Int64 = 0
      for charge in book.delta.body.charges {
        let key = PricedBy(rate: charge.rate, from: charge.from)
        let back = book.given(key)
        // All that is asked for includes what has no units on record of its own.
        let units = items.isEmpty ? charge.units : max(back.units, moved[key] ?? 0)
        let total = share(of: charge.charge, units, per: charge.units)
        let (more, now) = (units - back.units, max(0, total - back.charge))
        guard more > 0 || now > 0 else { continue }
        charges.append(
          RateCharge(rate: charge.rate, from: charge.from, units: -more, charge: -now))
        made += now
      }
      let wanted = asked(book)
      let amount = items.isEmpty ? book.left : min(wanted + book.charged(made), book.left)
      guard amount > 0 || !charges.isEmpty else { continue }
      let parts = book.unwind(amount) { key, units in moved[key] = units }
      var body = book.delta.body
      body.cells = body.cells.filter { $0.window.tally == .units }
      body.parts = parts
      body.charges = charges
      body.corrects = operation
      let feature = body.feature
      shares[position] = Share(
        born: book.delta.time, amount: -amount, absorbed: -max(0, wanted + made - amount),
        body: body, isDerived: !items.contains { $0.feature == feature })
    }
    guard !shares.isEmpty else { return nil }
    return Correction(shares: shares.sorted { $0.key < $1.key }.map(\.value))
  }

  /// An operator's correction of one feature of an operation; nil: the operation did not use it, or
  /// less of it is left than shall come back.
  package static func adjustment(
    of operation: OperationID, recorded: [RecordedDelta], earlier: [RecordedDelta],
    feature: Name, amount: Int64
  ) -> Correction? {
    guard amount > 0 else {
      let item = Item(feature: feature, amount: -amount)
      let correction = refund(
        of: operation, recorded: recorded, earlier: earlier, items: [item], beyondRates: true)
      guard let own = correction?.shares.first(where: { !$0.isDerived }), own.amount == amount
      else { return nil }
      return correction
    }
    guard
      let delta = recorded.filter({ $0.kind == .usage && $0.body.feature == feature })
        .min(by: { $0.id < $1.id })
    else { return nil }
    var body = delta.body
    body.cells = body.cells.filter { $0.window.tally == .units }
    body.parts = []
    body.charges = []
    body.corrects = operation
    return Correction(
      shares: [Share(born: delta.time, amount: amount, body: body)])
  }

  /// What earlier corrections left to come back, by feature.
  package static func left(
    recorded: [RecordedDelta], earlier: [RecordedDelta]
  ) -> [Item] {
    recorded.filter { $0.kind == .usage }.sorted { $0.id < $1.id }.map {
      Item(
        feature: $0.body.feature,
        amount: Book($0, corrections: recorded + earlier).left)
    }
  }

  /// ⌊charge · part / whole⌋, exact.
  static func share(of charge: Int64, _ part: Int64, per whole: Int64) -> Int64 {
    guard whole > 0, part > 0 else { return 0 }
    if part >= whole { return charge }
    return Int64(Int128(charge) * Int128(part) / Int128(whole))
  }
}

extension Window {
  fileprivate var isBurnt: Bool {
    switch tally {
    case .grant, .overage: true
    case .units, .priced, .inFlight, .deficit: false
    }
  }
}

private struct PricedBy: Hashable {
  var rate: Name
  var from: WallTime
}

/// One delta and what is left of it after its corrections.
private struct Book {
  struct PartKey: Hashable {
    var level: Int
    var window: Window
    var start: WallTime

    init(_ part: CountedPart) {
      level = part.level
      window = part.window
      start = part.period.start
    }
  }

  let delta: RecordedDelta
  /// As recorded, in the order of burning.
  let parts: [CountedPart]
  private(set) var left: Int64
  /// Of `left`, what no rate charged: what may be asked for by name.
  private(set) var direct: Int64
  /// What rates made of units, what of it was charged, and what of it was taken back before.
  private let made: Int64
  private let madeCharged: Int64
  private let madeBack: Int64
  private var partsLeft: [PartKey: Int64] = [:]
  private var back: [PricedBy: (units: Int64, charge: Int64)] = [:]

  init(_ delta: RecordedDelta, corrections: [RecordedDelta]) {
    self.delta = delta
    parts = Self.parts(of: delta)
    left = delta.charged
    for part in parts { partsLeft[PartKey(part), default: 0] += part.amount }
    for one in corrections
    where one.kind != .usage && one.kind != .config && !one.isMove
      && one.body.feature == delta.body.feature
      && one.body.period.start == delta.body.period.start
    {
      left += one.charged
      for part in Self.parts(of: one) { partsLeft[PartKey(part), default: 0] += part.amount }
      for charge in one.body.charges {
        let key = PricedBy(rate: charge.rate, from: charge.from)
        let so = back[key] ?? (0, 0)
        back[key] = (so.units - charge.units, so.charge - charge.charge)
      }
    }
    made = delta.body.charges.reduce(0) { $0 + $1.charge }
    madeCharged = min(delta.charged, made)
    madeBack = back.values.reduce(0) { $0 + $1.charge }
    direct = left - madeCharged
    direct += Correction.share(of: madeCharged, madeBack, per: made)
    left = max(0, left)
    direct = max(0, min(direct, left))
  }

  /// What of `more` that rates had made was charged; over all refunds all that was charged of it.
  /// Never above `more`: nothing is absorbed by a refund.
  func charged(_ more: Int64) -> Int64 {
    Correction.share(of: madeCharged, madeBack + more, per: made)
      - Correction.share(of: madeCharged, madeBack, per: made)
  }

  /// A grant that covered all of it may stand among the counters that got the whole amount.
  private static func parts(of delta: RecordedDelta) -> [CountedPart] {
    delta.body.parts
      + delta.body.cells.filter { $0.window.tally != .units }.map {
        CountedPart(
          level: $0.level, window: $0.window, period: $0.period, amount: delta.charged)
      }
  }

  func given(_ key: PricedBy) -> (units: Int64, charge: Int64) { back[key] ?? (0, 0) }

  private func left(_ part: CountedPart) -> Int64 { partsLeft[PartKey(part)] ?? 0 }

  /// The counters beside plain units that lose something when `amount` units come back. `priced` is
  /// told of each rate how many of its units have come back then.
  func unwind(
    _ amount: Int64, priced: (_ rate: PricedBy, _ units: Int64) -> Void
  ) -> [CountedPart] {
    var taken: [CountedPart] = []
    func take(_ part: CountedPart, _ units: Int64) {
      guard units > 0 else { return }
      var part = part
      part.amount = -units
      taken.append(part)
    }
    // Of grants and deficits the outermost level says it, deeper ones count the same.
    let burnt = parts.filter {
      switch $0.window.tally {
      case .grant, .deficit: true
      case .units, .overage, .priced, .inFlight: false
      }
    }
    let outermost = burnt.map(\.level).min() ?? 1
    let slices = burnt.filter { $0.level == outermost }
    func takeEverywhere(_ part: CountedPart, _ units: Int64) {
      for one in burnt where one.window == part.window && one.period == part.period {
        take(one, min(units, max(0, left(one))))
      }
    }
    var rest = amount
    var known: Int64 = 0
    for slice in slices { known += left(slice) }
    let overages = parts.filter { $0.window.tally == .overage }
    let overage = overages.map { max(0, left($0)) }.max() ?? 0
    for slice in slices where slice.window.tally == .deficit {
      let units = min(rest, max(0, left(slice)))
      takeEverywhere(slice, units)
      rest -= units
    }
    // Where no cap counts the overage, it is what no grant covers.
    let beyond = min(rest, max(overage, left - known))
    for part in overages { take(part, min(beyond, max(0, left(part)))) }
    rest -= beyond
    for slice in slices.reversed() {
      guard case .grant = slice.window.tally else { continue }
      let units = min(rest, max(0, left(slice)))
      takeEverywhere(slice, units)
      rest -= units
    }
    for part in parts {
      guard case .priced(let rate, let from) = part.window.tally else { continue }
      // A rate prices every unit, or only the overage: the delta says which by what it counted.
      let units = min(part.amount == delta.charged ? amount : beyond, max(0, left(part)))
      priced(PricedBy(rate: rate, from: from), part.amount - left(part) + units)
      take(part, units)
    }
    return taken
  }
}
