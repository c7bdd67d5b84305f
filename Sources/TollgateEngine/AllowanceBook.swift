// How much each open failure policy has let through in the current outage. A claim is granted for
// all limits of a request or for none; the book is bounded, and a full book grants nothing new
// (PITFALL 42: a fail-open without a bound, or a map of it without one).

package import TollgateCore

package struct AllowanceBook: Sendable {
  package struct Claim: Sendable, Hashable {
    /// The subject the limit counts for, and the limit.
    package var subject: String
    package var limit: Name
    package var amount: Int64
    package var allowance: Int64

    package init(subject: String, limit: Name, amount: Int64, allowance: Int64) {
      self.subject = subject
      self.limit = limit
      self.amount = amount
      self.allowance = allowance
    }
  }

  private struct Key: Hashable {
    var subject: String
    var limit: Name
  }

  private var used: [Key: Int64] = [:]
  private let entriesMax: Int
  /// Units granted in this outage.
  package private(set) var granted: Int64 = 0

  package init(entriesMax: Int) { self.entriesMax = entriesMax }

  package var count: Int { used.count }

  /// Grants all claims, or answers the first that its allowance does not cover and grants none.
  package mutating func take(_ claims: [Claim]) -> Claim? {
    switch sums(after: claims) {
    case .refused(let claim): return claim
    case .granted(let sums):
      for (key, sum) in sums { used[key] = sum }
      for claim in claims { granted = Quantity.adding(granted, claim.amount) ?? granted }
      return nil
    }
  }

  /// What `take` would answer, taking nothing.
  package func refusal(of claims: [Claim]) -> Claim? {
    if case .refused(let claim) = sums(after: claims) { return claim }
    return nil
  }

  private enum Sums {
    case granted([Key: Int64])
    case refused(Claim)
  }

  private func sums(after claims: [Claim]) -> Sums {
    var sums: [Key: Int64] = [:]
    for claim in claims {
      let key = Key(subject: claim.subject, limit: claim.limit)
      let before = sums[key] ?? used[key] ?? 0
      guard claim.amount >= 0, let after = Quantity.adding(before, claim.amount),
        after <= claim.allowance
      else { return .refused(claim) }
      sums[key] = after
    }
    let new = sums.keys.count { used[$0] == nil }
    if let first = claims.first, used.count + new > entriesMax { return .refused(first) }
    return .granted(sums)
  }

  package mutating func outageEnded() {
    used.removeAll(keepingCapacity: false)
    granted = 0
  }
}
