// Reads the rates of a catalog. The form, in YAML:
//
//   rates:
//     - {id: small.in, feature: tokens.input, into: spend, when: {model: small},
//        price: 150000, per: 1000000}        # micro-units of `into`, for so many units
//     - {id: small.in, feature: tokens.input, into: spend, when: {model: small},
//        price: 120000, per: 1000000, from: 2026-12-01T00:00:00Z}
//     - {id: other.in, feature: tokens.input, into: spend, price: 75000000, per: 1000000}
//     - {id: chat.over, feature: chat.requests, into: spend, of: overage, price: 40000}
//
// Defaults: `when` none (the ceiling, for what no other rate is for), `of: all`, `per: 1`, `from`
// the beginning of time. Rates of one id are versions of one rate: they differ in price and `from`.

package enum RateReader {
  package static let keys = ["id", "feature", "into", "of", "when", "price", "per", "from"]

  static func read(_ node: DocumentNode, features: [Name: Feature]) -> RateCard? {
    guard let nodes = node.list(max: RateCard.ratesMax) else { return nil }
    var rates: [(rate: RateCard.Rate, node: DocumentNode)] = []
    for node in nodes {
      guard let rate = read(node, features) else { continue }
      if let first = rates.first(where: { $0.rate.id == rate.id }) {
        let (a, b) = (first.rate, rate)
        if (a.feature, a.into, a.portion) != (b.feature, b.into, b.portion) || a.when != b.when {
          node.problem("the id already names another rate, at \(first.node.path)")
        } else if rates.contains(where: { $0.rate.id == b.id && $0.rate.from == b.from }) {
          node.problem("the rate has two versions from the same instant on")
        }
      }
      rates.append((rate, node))
    }
    for (rate, node) in rates where rates.contains(where: { $0.rate.feature == rate.into }) {
      node.problem("\(rate.into) is itself charged to another feature")
    }
    return RateCard(rates.map(\.rate))
  }

  private static func read(
    _ node: DocumentNode, _ features: [Name: Feature]
  ) -> RateCard.Rate? {
    guard let fields = node.object(keys, required: ["id", "feature", "into", "price"]) else {
      return nil
    }
    let id = fields["id"]?.name()
    let feature = readFeature(fields["feature"], features)
    let into = readFeature(fields["into"], features)
    if let into, !into.metered {
      fields["into"]?.problem("is not metered: what is charged to it would be on no bill")
    }
    var portion: RateCard.Portion? = .all
    if let field = fields["of"] { portion = field.choice(RateCard.Portion.self) }
    let when = readConditions(fields["when"])
    let amount = fields["price"]?.integer(0...Quantity.maximum)
    var per: Int64? = 1
    if let field = fields["per"] { per = field.integer(1...Quantity.maximum) }
    var from: WallTime? = WallTime(milliseconds: 0)
    if let field = fields["from"] { from = instant(field) }
    guard let id, let feature, let into, let portion, let when, let amount, let per, let from
    else { return nil }
    guard let price = Price(amount, per: per) else {
      fields["price"]?.problem(
        "price × per, in lowest terms, is beyond \(Price.productMax), up to where it is exact")
      return nil
    }
    return RateCard.Rate(
      id: id, feature: feature.name, into: into.name, portion: portion, when: when, price: price,
      from: from)
  }

  private static func readFeature(
    _ node: DocumentNode?, _ features: [Name: Feature]
  ) -> Feature? {
    guard let node, let name = node.name() else { return nil }
    if features[name] == nil { node.problem("the feature is not among `features`") }
    return features[name]
  }

  private static func readConditions(_ node: DocumentNode?) -> [String: String]? {
    guard let node else { return [:] }
    guard let members = node.members(max: RateCard.conditionsMax) else { return nil }
    var conditions: [String: String] = [:]
    for (key, node) in members {
      guard let name = node.name(key),
        let value = node.string(bytesMax: RateCard.conditionBytesMax)
      else { return nil }
      conditions[name.text] = value
    }
    return conditions
  }

  /// Whole milliseconds since 1970, or `2026-12-01T00:00:00Z`.
  private static func instant(_ node: DocumentNode) -> WallTime? {
    switch node.value {
    case .integer: return node.integer(0...Quantity.maximum).map { WallTime(milliseconds: $0) }
    case .string(let text):
      if let instant = CivilDate.instant(text) { return instant }
    default: break
    }
    node.problem("must be an instant in UTC such as 2026-12-01T00:00:00Z")
    return nil
  }
}

extension RateCard.Rate {
  var document: Document {
    .fields([
      "id": .string(id.text),
      "feature": .string(feature.text),
      "into": .string(into.text),
      "of": .string(portion.rawValue),
      "when": when.isEmpty
        ? nil
        : .object(
          when.sorted { $0.key < $1.key }.map { Document.Member($0.key, .string($0.value)) }),
      "price": .integer(price.numerator),
      "per": .integer(price.denominator),
      "from": from.milliseconds == 0 ? nil : .integer(from.milliseconds),
    ])
  }
}
