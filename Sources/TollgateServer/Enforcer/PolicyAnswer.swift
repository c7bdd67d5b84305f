// What the failure policies say when the counters cannot be asked (DESIGN 3). Every hard limit
// that applies has a say: one `closed` (or, without leases, `stale`) denies; where all are `open`
// the request is let through, within the allowance of each. Soft and shadow limits never deny, so
// their policies have no say; a gate is answered from the configuration last heard.

import TollgateCore
import TollgateEngine

enum PolicyAnswer {
  enum Verdict {
    case deny(Reason, binding: Name?, item: Int?)
    /// The request has more limits than one may have.
    case tooMany(String)
    /// Let through as far as the allowances cover these claims.
    case allow(units: Int64, claims: [AllowanceBook.Claim])
  }

  static func verdict(
    for request: Request, global: GlobalConfig?, account: AccountConfig?, now: WallTime,
    unknown: inout UnknownAccountPolicy
  ) -> Verdict {
    guard let global else { return .deny(.storeUnavailable, binding: nil, item: nil) }
    guard let account else { return unknown.verdict(for: request, global: global) }
    // A bypass lifts what a limit denies, not what it says about an outage: without the limits it
    // covers an `open` feature would be closed in the middle of an incident.
    func resolve(_ global: GlobalConfig) -> Resolution {
      Resolution.resolve(
        subject: request.subject, items: request.items, global: global, account: account, now: now,
        zones: SystemZones.book)
    }
    var unbypassed = global
    unbypassed.bypasses = []
    let resolution = resolve(unbypassed)
    let inForce = global.bypasses.isEmpty ? resolution : resolve(global)
    if let refusal = inForce.refusal { return .tooMany(refusal) }
    var claims: [AllowanceBook.Claim] = []
    var open = [Bool](repeating: false, count: request.items.count)
    var closed: AppliedLimit?
    // Both list the same limits in the same order; a bypass changes their enforcement only.
    for (limit, now) in zip(resolution.limits, inForce.limits) {
      if now.enforcement != .hard, case .deny = limit.rule { continue }
      if case .deny(let reason) = limit.rule, limit.enforcement == .hard {
        return .deny(reason, binding: limit.id, item: limit.item)
      }
      guard limit.enforcement == .hard else { continue }
      switch limit.failurePolicy {
      case .open(let allowance):
        open[limit.item] = true
        claims.append(
          .init(
            subject: request.subject.prefix(limit.level).path, limit: limit.id,
            amount: request.items[limit.item].amount, allowance: allowance))
      case .closed, .stale: closed = closed ?? limit
      }
    }
    if let closed { return .deny(.storeUnavailable, binding: closed.id, item: closed.item) }
    // A feature without a hard limit has nobody to say how much may go unmetered: closed.
    if let item = open.firstIndex(of: false) {
      return .deny(.storeUnavailable, binding: nil, item: item)
    }
    let units = request.items.reduce(Int64(0)) { $0 &+ $1.amount }
    return .allow(units: units, claims: claims)
  }
}

extension Request {
  /// What was let through elsewhere is counted whatever it names.
  var mayBeRefused: Bool { !mode.tellsOnly }
}
