// What comes back of an operation: from its own record, in the reverse order of burning, never more
// than there was, and all of it when all is asked for.

import Testing
import TollgateCore
import TollgateTesting

/// An operation of two features: `tokens`, priced into `spend`, which burns grants.
struct Burnt {
  static let operation = OperationID(high: 1 << 16, low: 1)
  static let month = Window.month.period(containing: WallTime(milliseconds: 1_763_700_000_000))
  static let from = WallTime(milliseconds: 1_000)

  var tokens: Int64 = 0
  /// Of `tokens`, beyond the grants of tokens; priced by the rate `over`.
  var overTokens: Int64 = 0
  var charge: Int64 = 0
  var overCharge: Int64 = 0
  /// Asked for by name, beside what rates charge.
  var direct: Int64 = 0
  /// Slices of `spend`, in the order of burning.
  var grants: [(String, Int64)] = []
  var overage: Int64 = 0
  var owed: Int64 = 0
  var plain: Int64 = 0
  /// Of `spend`, what was used and a cap did not let be charged.
  var absorbed: Int64 = 0

  func part(_ window: Window, _ amount: Int64, level: Int = 1) -> CountedPart {
    CountedPart(level: level, window: window, period: Self.month, amount: amount)
  }

  var recorded: [RecordedDelta] {
    get throws {
      var deltas: [RecordedDelta] = []
      let subject = try Subject("acme/ann")
      let cells = [CellReference(level: 1, window: .month, period: Self.month)]
      func add(
        _ feature: String, _ charged: Int64, _ parts: [CountedPart], _ charges: [RateCharge],
        absorbed: Int64 = 0
      ) throws {
        deltas.append(
          RecordedDelta(
            id: DeltaID(operation: Self.operation, index: UInt16(deltas.count)), kind: .usage,
            time: WallTime(milliseconds: 5_000), actual: charged + absorbed, charged: charged,
            body: UsageBody(
              subject: subject, feature: try Name(feature), period: Self.month, cells: cells,
              catalogVersion: 1, source: .redis, parts: parts, charges: charges)))
      }
      if tokens > 0 {
        var parts = [part(.priced(by: try Name("all"), from: Self.from), tokens)]
        if tokens > overTokens {
          parts.append(part(.grant(try Name("included.tokens")), tokens - overTokens))
        }
        if overTokens > 0 {
          parts.append(part(.overage(.month), overTokens))
          parts.append(part(.overage(.day), overTokens))
          parts.append(part(.priced(by: try Name("over"), from: Self.from), overTokens))
        }
        try add("tokens", tokens, parts, [])
      }
      var charges: [RateCharge] = []
      if tokens > 0 {
        charges.append(
          RateCharge(rate: try Name("all"), from: Self.from, units: tokens, charge: charge))
      }
      if overTokens > 0 {
        charges.append(
          RateCharge(
            rate: try Name("over"), from: Self.from, units: overTokens, charge: overCharge))
      }
      var parts = try grants.map { part(.grant(try Name($0.0)), $0.1) }
      if overage > 0 {
        parts.append(part(.overage(.month), overage))
        parts.append(part(.overage(.day), overage, level: 2))
      }
      if owed != 0 { parts.append(part(.deficit, owed)) }
      try add("spend", spend, parts, charges, absorbed: absorbed)
      return deltas
    }
  }

  var spend: Int64 { grants.reduce(0) { $0 + $1.1 } + overage + owed + plain }
}

/// Refunds one after another, each seeing those before it.
struct Refunding {
  let recorded: [RecordedDelta]
  var earlier: [RecordedDelta] = []

  init(_ recorded: [RecordedDelta]) { self.recorded = recorded }

  @discardableResult
  mutating func refund(_ items: (String, Int64)...) throws -> Correction? {
    try refund(items.map { Item(feature: try Name($0.0), amount: $0.1) })
  }

  mutating func refund(_ items: [Item]) throws -> Correction? {
    let correction = Correction.refund(
      of: Burnt.operation, recorded: recorded, earlier: earlier, items: items)
    if let correction { keep(correction, .refund) }
    return correction
  }

  mutating func keep(_ correction: Correction, _ kind: DeltaKind) {
    let id = OperationID(high: UInt64(100 + earlier.count) << 16, low: 7)
    for (index, share) in correction.shares.enumerated() {
      earlier.append(
        RecordedDelta(
          id: DeltaID(operation: id, index: UInt16(index)), kind: kind,
          time: WallTime(milliseconds: 9_000), actual: share.actual, charged: share.amount,
          body: share.body))
    }
  }

  func charged(_ feature: String) -> Int64 {
    (recorded + earlier).reduce(0) {
      $0 + ($1.body.feature.text == feature ? $1.charged : 0)
    }
  }

  func absorbed(_ feature: String) -> Int64 {
    (recorded + earlier).reduce(0) {
      $0 + ($1.body.feature.text == feature ? $1.actual - $1.charged : 0)
    }
  }

  /// By window code, of one feature at one level.
  func parts(_ feature: String, level: Int = 1) -> [String: Int64] {
    var sums: [String: Int64] = [:]
    for delta in recorded + earlier where delta.body.feature.text == feature {
      for part in delta.body.parts where part.level == level {
        sums[part.window.code, default: 0] += part.amount
      }
    }
    return sums
  }

  func charges(_ rate: String) -> (units: Int64, charge: Int64) {
    var sum: (units: Int64, charge: Int64) = (0, 0)
    for delta in recorded + earlier {
      for charge in delta.body.charges where charge.rate.text == rate {
        sum = (sum.units + charge.units, sum.charge + charge.charge)
      }
    }
    return sum
  }
}

@Suite(.blocking) struct CorrectionTests {
  @Test func aPlainFeatureGivesBackWhatIsAskedAndThenWhatIsLeft() throws {
    var work = Refunding(try Burnt(plain: 10).recorded)
    #expect(try work.refund(("spend", 4))?.shares.map(\.amount) == [-4])
    #expect(try work.refund(("spend", 100))?.shares.map(\.amount) == [-6])
    #expect(try work.refund(("spend", 1)) == nil)
    #expect(try work.refund([]) == nil)
  }

  @Test func aFeatureThatWasNotUsedGivesNothing() throws {
    var work = Refunding(try Burnt(plain: 10).recorded)
    #expect(try work.refund(("images", 4)) == nil)
  }

  @Test func countersLoseInTheirOwnPeriodAndTheDeltaNamesWhatItCorrects() throws {
    var work = Refunding(try Burnt(plain: 10).recorded)
    let share = try #require(try work.refund(("spend", 4))?.shares.first)
    #expect(share.body.cells == work.recorded[0].body.cells)
    #expect(share.body.corrects == Burnt.operation)
    #expect(share.born == work.recorded[0].time)
  }

  @Test func pitfall39_aRefundUnwindsWhatWasBurntAndNotWhatWouldBeBurntToday() throws {
    // Burnt in the order promo, paid; whatever their priorities have become since, the delta says.
    var work = Refunding(try Burnt(grants: [("promo", 3), ("paid", 5)]).recorded)
    let first = try #require(try work.refund(("spend", 6)))
    #expect(
      first.burns == [
        .init(item: 0, grant: try Name("paid"), amount: -5),
        .init(item: 0, grant: try Name("promo"), amount: -1),
      ])
    #expect(work.parts("spend") == ["$promo": 2, "$paid": 0])
    try work.refund()
    #expect(work.parts("spend") == ["$promo": 0, "$paid": 0])
  }

  @Test func whatIsOwedAndTheOverageComeBackBeforeTheGrants() throws {
    var work = Refunding(
      try Burnt(grants: [("a", 2), ("b", 3)], overage: 4, owed: 1).recorded)
    try work.refund(("spend", 1))
    #expect(work.parts("spend") == ["$a": 2, "$b": 3, "oM": 4, "-": 0])
    let second = try #require(try work.refund(("spend", 5)))
    #expect(work.parts("spend") == ["$a": 2, "$b": 2, "oM": 0, "-": 0])
    // Every counter of the overage loses the same, whatever its level.
    #expect(work.parts("spend", level: 2) == ["od": 0])
    #expect(second.burns.map(\.grant?.text) == [nil, "b"])
  }

  @Test func whatCuredAnOlderDebtStaysCured() throws {
    // Five burnt, of which two paid what an operation before owed.
    var work = Refunding(try Burnt(grants: [("a", 5)], owed: -2).recorded)
    #expect(work.charged("spend") == 3)
    try work.refund()
    #expect(work.charged("spend") == 0)
    #expect(work.parts("spend") == ["$a": 2, "-": -2])
  }

  @Test func chargesFollowTheirUnitsAndSumToTheWhole() throws {
    var work = Refunding(try Burnt(tokens: 3, charge: 10, plain: 10).recorded)
    let first = try #require(try work.refund(("tokens", 1)))
    #expect(first.shares.map(\.amount) == [-1, -3])
    #expect(first.shares.map(\.isDerived) == [false, true])
    #expect(first.shares[1].body.charges.map(\.units) == [-1])
    #expect(try work.refund(("tokens", 1))?.shares.map(\.amount) == [-1, -3])
    #expect(try work.refund(("tokens", 1))?.shares.map(\.amount) == [-1, -4])
    #expect(work.charges("all") == (0, 0))
    #expect(work.parts("tokens") == ["rall,1000": 0, "$included.tokens": 0])
  }

  @Test func unitsWorthLessThanAMicroUnitAreNotForgotten() throws {
    // Half a micro-unit each: the first brings nothing, the second the whole.
    var work = Refunding(try Burnt(tokens: 2, charge: 1, plain: 1).recorded)
    let first = try #require(try work.refund(("tokens", 1)))
    #expect(first.shares.map(\.amount) == [-1, 0])
    #expect(first.shares.last?.body.charges.map(\.units) == [-1])
    #expect(try work.refund(("tokens", 1))?.shares.map(\.amount) == [-1, -1])
    #expect(work.charged("spend") == 0)
    #expect(try work.refund([]) == nil)
  }

  @Test func whereACapLetHalfBeChargedAThirdOfTheUnitsIsAThirdOfTheMoney() throws {
    let burnt = Burnt(tokens: 200, charge: 3_000, grants: [("a", 1_500)], absorbed: 1_500)
    var work = Refunding(try burnt.recorded)
    var shares: [Correction.Share] = []
    for units: Int64 in [67, 67, 66] {
      shares.append(try #require(try work.refund(("tokens", units))?.shares.last))
    }
    #expect(shares.map(\.amount) == [-502, -503, -495])
    #expect(shares.map(\.absorbed) == [-503, -502, -495])
    #expect(shares.flatMap(\.body.charges).map(\.units) == [-67, -67, -66])
    #expect(shares.flatMap(\.body.charges).map(\.charge) == [-1_005, -1_005, -990])
    #expect(work.charges("all") == (0, 0) && work.absorbed("spend") == 0)
    #expect(work.parts("spend") == ["$a": 0])
  }

  @Test func whatACapAbsorbedIsTakenBackWithAllOfTheOperation() throws {
    let burnt = Burnt(tokens: 200, charge: 3_000, plain: 1_500, absorbed: 1_500)
    var work = Refunding(try burnt.recorded)
    let shares = try #require(try work.refund([])).shares
    #expect(shares.map(\.amount) == [-200, -1_500] && shares.map(\.actual) == [-200, -3_000])
    #expect(work.charges("all") == (0, 0))
    #expect(try work.refund([]) == nil)
  }

  @Test func unitsThatNothingWasChargedForAreTakenOffTheirRate() throws {
    var work = Refunding(try Burnt(tokens: 4, charge: 40, absorbed: 40).recorded)
    let shares = try #require(try work.refund(("tokens", 3))).shares
    #expect(shares.map(\.amount) == [-3, 0] && shares.map(\.absorbed) == [0, -30])
    #expect(work.charges("all") == (1, 10))
    #expect(work.parts("tokens") == ["rall,1000": 1, "$included.tokens": 1])
  }

  @Test func whatAnOperatorTookBackBeforeIsNotPaidTwiceAndTheRateIsWholeAgain() throws {
    let burnt = Burnt(tokens: 4, charge: 40, plain: 20, absorbed: 20)
    var work = Refunding(try burnt.recorded)
    let adjustment = Correction.adjustment(
      of: Burnt.operation, recorded: work.recorded, earlier: [], feature: try Name("spend"),
      amount: -15)
    work.keep(try #require(adjustment), .adjustment)
    #expect(try work.refund(("tokens", 2))?.shares.map(\.amount) == [-2, -5])
    #expect(try work.refund(("tokens", 2))?.shares.map(\.amount) == [-2, 0])
    #expect(work.charged("spend") == 0 && work.charges("all") == (0, 0))
  }

  @Test func aRateOnTheOverageFollowsTheOverage() throws {
    var work = Refunding(
      try Burnt(tokens: 10, overTokens: 4, charge: 0, overCharge: 40, plain: 40).recorded)
    // The overage comes back first, and with it what it cost.
    #expect(try work.refund(("tokens", 4))?.shares.map(\.amount) == [-4, -40])
    #expect(try work.refund(("tokens", 6))?.shares.map(\.amount) == [-6, 0])
    #expect(work.charges("over") == (0, 0) && work.charges("all") == (0, 0))
  }

  @Test func whatRatesChargedIsNotGivenBackByName() throws {
    var work = Refunding(try Burnt(tokens: 2, charge: 6, direct: 3, plain: 9).recorded)
    #expect(try work.refund(("spend", 100))?.shares.map(\.amount) == [-3])
    #expect(try work.refund(("spend", 1)) == nil)
    #expect(try work.refund(("tokens", 2))?.shares.map(\.amount) == [-2, -6])
  }

  @Test func anOperationThatWasAnnulledHasNothingLeft() throws {
    let recorded = try Burnt(plain: 4).recorded
    var reversal = recorded[0]
    reversal.kind = .reversal
    reversal.id = DeltaID(operation: Burnt.operation, index: DeltaID.reversalOffset)
    (reversal.actual, reversal.charged) = (-4, -4)
    var work = Refunding(recorded + [reversal])
    #expect(try work.refund([]) == nil)
  }

  @Test func anAdjustmentTakesBackExactlyOrNotAtAll() throws {
    var work = Refunding(try Burnt(tokens: 2, charge: 6, plain: 6).recorded)
    func adjust(_ amount: Int64) throws -> Correction? {
      Correction.adjustment(
        of: Burnt.operation, recorded: work.recorded, earlier: work.earlier,
        feature: try Name("spend"), amount: amount)
    }
    #expect(try adjust(-7) == nil)
    let correction = try #require(try adjust(-2))
    #expect(correction.shares.map(\.amount) == [-2])
    work.keep(correction, .adjustment)
    // The refund of all brings what is left.
    #expect(try work.refund([])?.shares.map(\.amount) == [-2, -4])
    #expect(try adjust(5)?.shares.map(\.amount) == [5])
  }

  /// Every way to give six units back in steps.
  @Test func everySequenceOfPartsUnwindsInOrder() throws {
    func steps(_ left: Int64) -> [[Int64]] {
      left == 0 ? [[]] : (1...left).flatMap { first in steps(left - first).map { [first] + $0 } }
    }
    let order = ["-", "oM", "$c", "$b", "$a"]
    for sequence in steps(6) {
      var work = Refunding(
        try Burnt(grants: [("a", 1), ("b", 2), ("c", 1)], overage: 1, owed: 1).recorded)
      for amount in sequence {
        try work.refund(("spend", amount))
        let left = work.parts("spend")
        // A slice loses units only where all behind it are empty.
        for (index, code) in order.enumerated() where left[code] != Self.whole[code] {
          for later in order[..<index] { #expect(left[later] == 0, "\(sequence) \(left)") }
        }
      }
      #expect(work.charged("spend") == 0)
    }
  }

  private static let whole = ["-": Int64(1), "oM": 1, "$c": 1, "$b": 2, "$a": 1]

  @Test func anySequenceOfRefundsSumsToAtMostTheWholeAndToAllOfItWhenAllIsAsked() throws {
    var random = SeededRandom.fromEnvironment("corrections")
    for _ in 0..<3_000 {
      var burnt = Burnt()
      burnt.tokens = Int64.random(in: 0...50, using: &random)
      burnt.overTokens = Int64.random(in: 0...burnt.tokens, using: &random)
      burnt.charge = burnt.tokens > 0 ? Int64.random(in: 0...1_000, using: &random) : 0
      burnt.overCharge = burnt.overTokens > 0 ? Int64.random(in: 0...1_000, using: &random) : 0
      burnt.direct = Int64.random(in: 0...30, using: &random)
      // What was charged is burnt in slices.
      var rest = burnt.charge + burnt.overCharge + burnt.direct
      for id in ["a", "b", "c"] where Bool.random(using: &random) {
        let slice = Int64.random(in: 0...rest, using: &random)
        if slice > 0 { burnt.grants.append((id, slice)) }
        rest -= slice
      }
      burnt.overage = Int64.random(in: 0...rest, using: &random)
      rest -= burnt.overage
      burnt.owed = Int64.random(in: 0...rest, using: &random)
      burnt.plain = rest - burnt.owed
      // A cap may have let less be charged than rates made: what was beyond the grants first.
      if Bool.random(using: &random) {
        burnt.absorbed = burnt.plain
        burnt.plain = 0
      }
      var work = Refunding(try burnt.recorded)
      let before = (work.parts("tokens"), work.parts("spend"))
      for _ in 0..<Int.random(in: 0...6, using: &random) {
        var items: [Item] = []
        if Bool.random(using: &random) {
          items.append(
            Item(feature: try Name("tokens"), amount: Int64.random(in: 1...60, using: &random)))
        }
        if items.isEmpty || Bool.random(using: &random) {
          items.append(
            Item(feature: try Name("spend"), amount: Int64.random(in: 1...60, using: &random)))
        }
        let correction = try work.refund(items)
        for share in correction?.shares ?? [] {
          #expect(share.amount < 0 || share.amount == 0 && !share.body.charges.isEmpty)
          #expect(share.absorbed <= 0)
          try Self.checkBreakdown(share)
        }
        check(work, before)
        if work.charged("spend") < 0 || work.charged("tokens") < 0 { return }
      }
      _ = try work.refund([])
      #expect(work.charged("tokens") == 0 && work.charged("spend") == 0)
      for left in [work.parts("tokens"), work.parts("spend"), work.parts("spend", level: 2)] {
        #expect(left.values.allSatisfy { $0 == 0 }, "\(left)")
      }
      for sum in [work.charges("all"), work.charges("over")] { #expect(sum == (0, 0)) }
    }
  }

  private func check(_ work: Refunding, _ before: ([String: Int64], [String: Int64])) {
    #expect(work.charged("tokens") >= 0 && work.charged("spend") >= 0)
    for (left, whole) in [(work.parts("tokens"), before.0), (work.parts("spend"), before.1)] {
      for (code, amount) in left {
        #expect(amount >= 0 && amount <= whole[code] ?? 0, "\(code)")
      }
    }
    #expect(work.charges("all").charge >= 0 && work.charges("over").charge >= 0)
  }

  /// What the ledger demands of a delta: its parts are within what it gives back.
  private static func checkBreakdown(_ share: Correction.Share) throws {
    var covered: Int64 = 0
    var overage: Int64 = 0
    for part in share.body.parts where part.level == 1 {
      #expect(part.amount < 0)
      switch part.window.tally {
      case .grant, .deficit: covered += part.amount
      case .overage: overage = part.amount
      case .priced: #expect(part.amount >= share.amount)
      case .units, .inFlight: Issue.record("a part of units")
      }
    }
    let included = share.amount - covered - overage
    #expect(share.amount <= included && included <= 0)
    #expect(share.body.charges.reduce(0) { $0 + $1.charge } >= share.actual)
  }

  /// No cap counts the overage: it is what no grant covered, and what a rate of overage priced.
  @Test func overageThatNothingCountsComesBackWithItsMoney() throws {
    let subject = try Subject("acme")
    let rate = try Name("over")
    let month = Burnt.month
    func delta(
      _ index: UInt16, _ feature: String, _ charged: Int64, _ parts: [CountedPart],
      _ charges: [RateCharge]
    ) throws -> RecordedDelta {
      RecordedDelta(
        id: DeltaID(operation: Burnt.operation, index: index), kind: .usage,
        time: WallTime(milliseconds: 5_000), actual: charged, charged: charged,
        body: UsageBody(
          subject: subject, feature: try Name(feature), period: month,
          cells: [CellReference(level: 1, window: .month, period: month)], catalogVersion: 1,
          source: .redis, parts: parts, charges: charges))
    }
    let priced = Window.priced(by: rate, from: Burnt.from)
    let recorded = [
      try delta(
        0, "chat", 24,
        [
          CountedPart(level: 1, window: .grant(try Name("g")), period: month, amount: 10),
          CountedPart(level: 1, window: priced, period: month, amount: 14),
        ], []),
      try delta(
        1, "spend", 28, [], [RateCharge(rate: rate, from: Burnt.from, units: 14, charge: 28)]),
    ]
    var refunding = Refunding(recorded)
    _ = try refunding.refund(("chat", 4))
    #expect(refunding.charged("spend") == 20)
    _ = try refunding.refund(("chat", 20))
    #expect(refunding.charged("spend") == 0 && refunding.charged("chat") == 0)
    #expect(refunding.parts("chat").values.allSatisfy { $0 == 0 })
  }

  // MARK: - Debts that were paid

  /// The rest of the debt that nobody paid comes back as it was; what was paid goes to who paid it,
  /// the last to pay first.
  @Test func whatWasPaidOfADebtGoesBackToGrants() throws {
    var burnt = Burnt()
    burnt.grants = [("first", 30)]
    burnt.owed = 50
    var refunding = try Refunding(burnt.recorded)
    let correction = try #require(try refunding.refund([]))
    #expect(correction.indebted == [try Name("spend")])
    func grant(_ id: String, _ units: Int64) throws -> Correction.Debt.Payer {
      .init(window: .grant(try Name(id)), period: Burnt.month, units: units)
    }
    let debt = Correction.Debt(
      owed: 10, payers: [try grant("early", 90), try grant("first", 45), try grant("late", 20)])
    let whole = correction.returning([try Name("spend"): debt])
    let move = try #require(whole.shares.last)
    #expect(move.isMove && whole.shares.count == correction.shares.count + 1)
    #expect(
      move.body.parts.map { [$0.window.code: $0.amount] } == [
        ["-": 40], ["$late": -20], ["$first": -20],
      ])
    #expect(
      correction.returning([try Name("spend"): .init(owed: 50, payers: debt.payers)]).shares
        == correction.shares)
  }

  /// What was moved is not of the operation: what is left of it is as if it had not been.
  @Test func aMoveDoesNotChangeWhatIsLeft() throws {
    var burnt = Burnt()
    burnt.grants = [("first", 30)]
    burnt.overage = 40
    burnt.owed = 50
    var refunding = try Refunding(burnt.recorded)
    let first = try #require(
      Correction.refund(
        of: Burnt.operation, recorded: refunding.recorded, earlier: [],
        items: [Item(feature: try Name("spend"), amount: 20)]))
    let grants = [
      Correction.Debt.Payer(window: .grant(try Name("late")), period: Burnt.month, units: 90)
    ]
    refunding.keep(
      first.returning([try Name("spend"): .init(owed: 0, payers: grants)]), .refund)
    let rest = try #require(try refunding.refund([]))
    let parts = rest.shares[0].body.parts
    let own = Window.grant(try Name("first"))
    #expect(parts.first { $0.window == .deficit }?.amount == -30)
    #expect(parts.first { $0.window == .overage(.month) }?.amount == -40)
    #expect(parts.first { $0.window == own }?.amount == -30)
  }
}
