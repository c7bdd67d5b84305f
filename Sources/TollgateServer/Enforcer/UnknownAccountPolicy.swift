// What the failure policies say of an account of which this sidecar has heard nothing, because
// neither Redis nor the ledger can say it now. Its plan is not known, so every plan has a say:
// where under each of them a request of this kind would be let through, it is, within the smallest
// of their allowances; where one only is closed, or lacks the feature, it is closed.
//
// Not the plan of `unknown_account`: what cannot be looked up is not thereby unknown, and the terms
// of a stranger must not open what is closed to a customer. Not closed in any case either: then a
// sidecar that starts in the middle of an outage would refuse everybody, where the client library,
// which knows no plans at all, would let them through by the same rule. A freeze or an override
// that was heard of is heeded: then the account is known, and `PolicyAnswer` judges by it.

import TollgateCore
import TollgateEngine

struct UnknownAccountPolicy {
  private struct Key: Hashable {
    var feature: Name
    var depth: Int
  }

  /// What is let through of a feature: at most so much in one request, and of each level's limit
  /// with the smallest allowance.
  private struct Opening {
    var amountMax = Int64.max
    var allowances: [Int: (limit: Name, units: Int64)] = [:]
  }

  private var version: Int64?
  private var openings: [Key: Opening?] = [:]

  mutating func verdict(for request: Request, global: GlobalConfig) -> PolicyAnswer.Verdict {
    if version != global.version {
      version = global.version
      openings = [:]
    }
    var claims: [AllowanceBook.Claim] = []
    for (index, item) in request.items.enumerated() {
      guard let opening = opening(of: item.feature, request.subject.depth, global.catalog),
        item.amount <= opening.amountMax
      else { return .deny(.storeUnavailable, binding: nil, item: index) }
      for (level, smallest) in opening.allowances.sorted(by: { $0.key < $1.key }) {
        claims.append(
          .init(
            subject: request.subject.prefix(level).path, limit: smallest.limit,
            amount: item.amount, allowance: smallest.units))
      }
    }
    return .allow(units: request.items.reduce(Int64(0)) { $0 &+ $1.amount }, claims: claims)
  }

  /// Worked out once for each feature of the catalog: names that are none of its are not kept.
  private mutating func opening(of feature: Name, _ depth: Int, _ catalog: Catalog) -> Opening? {
    guard catalog.features[feature] != nil else { return nil }
    let key = Key(feature: feature, depth: depth)
    if let known = openings[key] { return known }
    let found = Self.work(feature, depth, catalog)
    openings[key] = .some(found)
    return found
  }

  private static func work(_ feature: Name, _ depth: Int, _ catalog: Catalog) -> Opening? {
    guard !catalog.plans.isEmpty else { return nil }
    var opening = Opening()
    for plan in catalog.plans.values {
      let limits = (plan.entitlements[feature] ?? []).filter {
        $0.level <= depth && $0.enforcement == .hard
      }
      // Nobody says how much may go unasked.
      guard !limits.isEmpty else { return nil }
      for limit in limits {
        guard case .open(let units) = limit.failurePolicy else { return nil }
        switch limit.kind {
        case .gate(enabled: false): return nil
        case .rate(_, _, let burst): opening.amountMax = min(opening.amountMax, burst)
        // What these leave depends on grants and on what is held, which nobody says here.
        case .credit, .spendCap, .concurrency: return nil
        case .gate, .quota, .sliding, .unlimited: break
        }
        let smallest = opening.allowances[limit.level]
        if smallest.map({ (units, limit.id) < ($0.units, $0.limit) }) ?? true {
          opening.allowances[limit.level] = (limit.id, units)
        }
      }
    }
    return opening
  }
}
