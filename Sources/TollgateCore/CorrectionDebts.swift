// A refund of what was owed, after a grant has paid it: what comes back does not belong to the debt
// any more, which is gone, but to who paid it. Such a correction bears one delta more, that moves
// units from the debt to the grants that paid it, the last to pay first, and charges nothing. Why a
// delta of its own: the others stay the exact reverse of what they correct, so that the next refund
// of the same operation is worked out from them as from any other.

extension Correction {
  /// What is owed of a feature as a correction finds it, and who paid what was owed before.
  package struct Debt: Hashable, Sendable {
    package struct Payer: Hashable, Sendable {
      package var window: Window
      package var period: Period
      /// Paid by this instance of a grant, and not given back.
      package var units: Int64

      package init(window: Window, period: Period, units: Int64) {
        self.window = window
        self.period = period
        self.units = units
      }
    }

    package var owed: Int64
    /// The last to pay last.
    package var payers: [Payer]

    package init(owed: Int64, payers: [Payer]) {
      self.owed = owed
      self.payers = payers
    }
  }

  /// Grants that get something back of one feature: as many as a delta can name, beside the debt.
  private static let grantsMax = 64

  /// The features of which it takes back what was owed.
  package var indebted: Set<Name> {
    Set(
      shares.filter { share in
        share.body.parts.contains { $0.window.tally == .deficit && $0.amount < 0 }
      }.map(\.body.feature))
  }

  /// With what a debt would have less than nothing of given back to the grants that paid it.
  package func returning(_ debts: [Name: Debt]) -> Correction {
    var result = self
    for share in shares {
      guard let debt = debts[share.body.feature],
        let part = share.body.parts.first(where: { $0.window.tally == .deficit })
      else { continue }
      var rest = -(debt.owed + part.amount)
      var back: [CountedPart] = []
      for grant in debt.payers.reversed() where rest > 0 && back.count < Self.grantsMax {
        let units = min(rest, grant.units)
        guard units > 0 else { continue }
        rest -= units
        back.append(
          CountedPart(level: 1, window: grant.window, period: grant.period, amount: -units))
      }
      guard !back.isEmpty else { continue }
      var body = share.body
      body.charges = []
      body.parts = [
        CountedPart(
          level: part.level, window: part.window, period: part.period,
          amount: -back.reduce(0) { $0 + $1.amount })
      ]
      body.parts += back
      result.shares.append(Share(born: share.born, amount: 0, body: body, isDerived: true))
    }
    return result
  }
}

extension Correction.Share {
  /// Nothing is charged more or less by it.
  package var isMove: Bool { amount == 0 && absorbed == 0 && body.charges.isEmpty }
}

extension RecordedDelta {
  /// As `Correction.Share.isMove`.
  package var isMove: Bool {
    kind == .refund && actual == 0 && charged == 0 && body.charges.isEmpty
  }
}
