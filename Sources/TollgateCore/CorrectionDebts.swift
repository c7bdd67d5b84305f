// A refund of what was owed, after a grant has paid it: what comes back does not belong to the debt
// any more, which is gone, but to who paid it. Such a correction bears one delta more, that moves
// units from the debt to the grants in force, the one burnt last first, and charges nothing. Why a
// delta of its own: the others stay the exact reverse of what they correct, so that the next refund
// of the same operation is worked out from them as from any other.

extension Correction {
  /// What is owed of a feature as a correction finds it, and the grants that it may go back to.
  package struct Debt: Hashable, Sendable {
    package struct Burnt: Hashable, Sendable {
      package var window: Window
      package var period: Period
      /// Burnt from this instance.
      package var units: Int64

      package init(window: Window, period: Period, units: Int64) {
        self.window = window
        self.period = period
        self.units = units
      }
    }

    package var owed: Int64
    /// In the order of burning.
    package var grants: [Burnt]

    package init(owed: Int64, grants: [Burnt]) {
      self.owed = owed
      self.grants = grants
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
      for grant in debt.grants.reversed() where rest > 0 && back.count < Self.grantsMax {
        var units = grant.units
        for own in share.body.parts where own.window == grant.window && own.period == grant.period {
          units += own.amount
        }
        units = min(rest, units)
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
