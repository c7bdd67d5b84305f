// Rates turn usage into money or credit: so many micro-units of one feature for so many units of
// another, from an instant on, for requests with certain attributes. Integers throughout, and one
// rounding rule:
//
//   the sum that a rate has charged in a month = ⌊units of that month × price⌋
//
// so an operation is charged the difference that it makes to that sum. No remainder is kept, no
// order of operations changes the sum, and it is below the exact one by less than a micro-unit,
// however many operations there were.

/// `numerator` micro-units for `denominator` units, in lowest terms.
public struct Price: Hashable, Sendable {
  /// So that no product of a price with a remainder leaves what a double holds exactly: the script
  /// that charges has nothing else.
  public static let productMax: Int64 = 1 << 52

  public let numerator: Int64
  public let denominator: Int64

  /// nil: outside 0 … for 1 …, or too fine (`productMax`).
  public init?(_ amount: Int64, per units: Int64) {
    guard amount >= 0, units >= 1 else { return nil }
    let divisor = Self.greatestDivisor(amount, units)
    numerator = amount / divisor
    denominator = units / divisor
    let (product, overflow) = numerator.multipliedReportingOverflow(by: denominator)
    guard !overflow, product <= Self.productMax else { return nil }
  }

  /// What `units` more are charged, after `before` of the same month; nil: beyond the quantity
  /// range. Units are negative where they are given back.
  public func charge(_ units: Int64, after before: Int64) -> Int64? {
    let charge = total(Int128(before) + Int128(units)) - total(Int128(before))
    guard charge.magnitude <= Int128(Quantity.maximum).magnitude else { return nil }
    return Int64(charge)
  }

  /// The most that `units` can be charged, whatever came before: what a reservation holds.
  public func ceiling(_ units: Int64) -> Int64? {
    let charge = (Int128(units) * Int128(numerator) + Int128(denominator) - 1) / Int128(denominator)
    return charge <= Int128(Quantity.maximum) ? Int64(charge) : nil
  }

  private func total(_ units: Int128) -> Int128 {
    let product = units * Int128(numerator)
    let divisor = Int128(denominator)
    let quotient = product / divisor
    return product % divisor < 0 ? quotient - 1 : quotient
  }

  private static func greatestDivisor(_ a: Int64, _ b: Int64) -> Int64 {
    var (a, b) = (a, b)
    while b != 0 { (a, b) = (b, a % b) }
    return max(a, 1)
  }
}

public struct RateCard: Hashable, Sendable {
  public static let ratesMax = 512
  public static let conditionsMax = 4
  public static let conditionBytesMax = 128

  public enum Portion: String, Hashable, Sendable, CaseIterable {
    /// Every unit is charged.
    case all
    /// Only what no grant of the feature covers.
    case overage
  }

  /// One version of a rate. Versions share the id and differ in price and in where they begin.
  public struct Rate: Hashable, Sendable {
    public var id: Name
    /// Whose units are charged.
    public var feature: Name
    /// The feature they are charged to, in its units.
    public var into: Name
    public var portion: Portion
    /// Attributes that a request must have; none: the ceiling, for requests that no other rate
    /// is for.
    public var when: [String: String]
    public var price: Price
    /// In force from then on, until the next version.
    public var from: WallTime

    public init(
      id: Name, feature: Name, into: Name, portion: Portion = .all, when: [String: String] = [:],
      price: Price, from: WallTime = WallTime(milliseconds: 0)
    ) {
      self.id = id
      self.feature = feature
      self.into = into
      self.portion = portion
      self.when = when
      self.price = price
      self.from = from
    }
  }

  /// What is to be charged for one item.
  public struct Selection: Hashable, Sendable {
    /// At most one for each target and portion.
    public var rates: [Rate] = []
    /// Charged to this feature by some rate, but by none for these attributes: never free.
    public var isUnknown = false
    /// When the selection may change by itself.
    public var validUntil: WallTime?
  }

  /// Sorted by id, then by `from`.
  public let rates: [Rate]

  public init(_ rates: [Rate] = []) {
    self.rates = rates.sorted { ($0.id, $0.from) < ($1.id, $1.from) }
  }

  public func isCharged(_ feature: Name) -> Bool { rates.contains { $0.feature == feature } }

  public func select(
    _ feature: Name, attributes: [String: String], at now: WallTime
  ) -> Selection {
    struct Group: Hashable {
      var into: Name
      var portion: Portion
    }
    var selection = Selection()
    var best: [Group: Rate?] = [:]
    var order: [Group] = []
    var current: Rate?
    // Versions of a rate stand together, the oldest first.
    func close() {
      guard let rate = current else { return }
      let group = Group(into: rate.into, portion: rate.portion)
      if best[group] == nil {
        best[group] = .some(nil)
        order.append(group)
      }
      guard rate.when.allSatisfy({ attributes[$0.key] == $0.value }) else { return }
      if let found = best[group] ?? nil, found.when.count >= rate.when.count { return }
      best[group] = rate
    }
    for rate in rates where rate.feature == feature {
      guard rate.from <= now else {
        selection.validUntil = min(selection.validUntil ?? rate.from, rate.from)
        continue
      }
      if let before = current, before.id != rate.id { close() }
      current = rate
    }
    close()
    for group in order {
      if let rate = best[group] ?? nil {
        selection.rates.append(rate)
      } else {
        selection.isUnknown = true
      }
    }
    return selection
  }
}
