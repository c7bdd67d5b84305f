// A threshold: so many percent of a limit's amount are used in a period. That it was reached is
// recorded once for each limit, period and threshold, as a delta of its own that moves nothing.
//
// Its identity is made from what it says, so that whoever finds it reached a second time, because
// Redis lost that it was noted, names the same delta, and the ledger has it once. A raised amount
// and a reset make other identities: both arm the thresholds again.

/// One reached threshold, as its delta carries it.
package struct ThresholdBody: Hashable, Sendable {
  /// Of the limit's level.
  package var subject: Subject
  package var feature: Name
  package var limit: Name
  package var period: Period
  package var percent: Int64
  package var amount: Int64
  /// When it was looked at: at least the percentage of the amount.
  package var used: Int64

  package init(
    subject: Subject, feature: Name, limit: Name, period: Period, percent: Int64, amount: Int64,
    used: Int64
  ) {
    self.subject = subject
    self.feature = feature
    self.limit = limit
    self.period = period
    self.percent = percent
    self.amount = amount
    self.used = used
  }

  package init(document: Document) throws(InvalidDocument) {
    let problems = ProblemList()
    let keys = [
      "subject", "feature", "limit", "start_ms", "end_ms", "threshold", "amount", "used",
    ]
    let fields = DocumentNode(document, problems: problems).object(keys, required: keys)
    guard let subject = fields?["subject"]?.subject(), let feature = fields?["feature"]?.name(),
      let limit = fields?["limit"]?.name(),
      let start = fields?["start_ms"]?.integer(0...Quantity.maximum),
      let end = fields?["end_ms"]?.integer(0...Quantity.maximum),
      let percent = fields?["threshold"]?.integer(1...100),
      let amount = fields?["amount"]?.integer(0...Quantity.maximum),
      let used = fields?["used"]?.integer(0...Quantity.maximum), problems.isEmpty
    else { throw InvalidDocument(problems: problems.report) }
    self.init(
      subject: subject, feature: feature, limit: limit,
      period: Period(start: WallTime(milliseconds: start), end: WallTime(milliseconds: end)),
      percent: percent, amount: amount, used: used)
  }

  package var document: Document {
    [
      "subject": .string(subject.path),
      "feature": .string(feature.text),
      "limit": .string(limit.text),
      "start_ms": .integer(period.start.milliseconds),
      "end_ms": .integer(period.end.milliseconds),
      "threshold": .integer(percent),
      "amount": .integer(amount),
      "used": .integer(used),
    ]
  }

  /// The bytes of a delta's body: JSON, which outlives releases better than a layout of our own,
  /// and is read by whoever takes events from the ledger.
  package func encode() -> [UInt8] { document.jsonBytes() }

  package static func decode(_ bytes: [UInt8]) throws -> ThresholdBody {
    try ThresholdBody(document: Document(json: bytes))
  }

  /// `forgiven`: what a reset took out of the count; each reset arms anew.
  package func id(forgiven: Int64) -> DeltaID {
    var hash = StableHash()
    for text in [subject.path, feature.text, limit.text] { hash.combine(text) }
    for number in [period.start.milliseconds, amount, forgiven] { hash.combine(number) }
    var second = StableHash()
    second.combine(Int64(bitPattern: hash.value))
    second.combine(subject.path)
    let start = UInt64(max(0, period.start.milliseconds))
    return DeltaID(
      operation: OperationID(high: start << 16 | second.value & 0xFFFF, low: hash.value),
      index: UInt16(clamping: percent))
  }
}

/// A limit with thresholds, as it stands for one subject.
package struct ThresholdReading: Hashable, Sendable {
  package var subject: Subject
  package var feature: Name
  package var limit: Name
  /// The counter that is looked at.
  package var window: Window
  package var period: Period
  package var amount: Int64
  package var used: Int64
  package var forgiven: Int64
  /// Those that are reached, ascending.
  package var reached: [Int64]

  package init(
    subject: Subject, feature: Name, limit: Name, window: Window, period: Period, amount: Int64,
    used: Int64, forgiven: Int64, reached: [Int64]
  ) {
    self.subject = subject
    self.feature = feature
    self.limit = limit
    self.window = window
    self.period = period
    self.amount = amount
    self.used = used
    self.forgiven = forgiven
    self.reached = reached
  }

  /// The least use that reaches a threshold.
  package static func units(_ percent: Int64, of amount: Int64) -> Int64 {
    Int64((Int128(amount) * Int128(percent) + 99) / 100)
  }

  package func body(_ percent: Int64) -> ThresholdBody {
    ThresholdBody(
      subject: subject, feature: feature, limit: limit, period: period, percent: percent,
      amount: amount, used: used)
  }

  /// Every limit of these that has thresholds and reached one: `definitions` are the plan's limits
  /// of the first item's feature, `resolution` is of a request for none of it.
  package static func all(
    _ definitions: [Limit], subject: Subject, resolution: Resolution, reading: LimitReading
  ) -> [ThresholdReading] {
    guard let feature = resolution.items.first?.feature else { return [] }
    var found: [ThresholdReading] = []
    for (limit, state) in zip(resolution.limits, reading.states) where limit.item == 0 {
      guard let definition = definitions.first(where: { $0.id == limit.id }),
        !definition.thresholds.isEmpty
      else { continue }
      var stand: (cell: Int, amount: Int64, used: Int64, forgiven: Int64)?
      switch limit.rule {
      case .quota(let cell, let amount), .spendCap(let cell, .some(let amount)):
        let taken = state.forgiven ?? 0
        // What sidecars hold in stock is not used.
        let held = (state.held ?? 0) - (state.leased ?? 0)
        stand = (cell, amount, (state.settled ?? 0) - taken + held, taken)
      case .credit:
        // What the plan gives; grants of the account's own have no share in it.
        guard let draw = resolution.draws[0]?.first(where: { $0.grant == limit.id }),
          let burn = reading.burns[0]?.first(where: { $0.grant == limit.id })
        else { continue }
        stand = (draw.cell, burn.amount + burn.carried, burn.settled + burn.held, 0)
      case .deny, .rate, .sliding, .concurrency, .spendCap(_, nil), .unlimited: continue
      }
      guard let stand, stand.amount > 0 else { continue }
      let cell = resolution.cells[stand.cell]
      let reached = definition.thresholds.filter { stand.used >= units($0, of: stand.amount) }
      guard !reached.isEmpty else { continue }
      found.append(
        ThresholdReading(
          subject: subject.prefix(limit.level), feature: feature, limit: limit.id,
          window: cell.window, period: cell.period, amount: stand.amount, used: stand.used,
          forgiven: stand.forgiven, reached: reached))
    }
    return found
  }
}
