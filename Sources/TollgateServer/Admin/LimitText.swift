// Limits in words, the same in tables, explanations and dry runs.

package import TollgateCore

package enum LimitText {
  package static func of(_ kind: LimitKind) -> String {
    switch kind {
    case .gate(let enabled): return enabled ? "on" : "off"
    case .quota(let amount, let window):
      return window == .lifetime ? "\(amount) in all" : "\(amount) per \(window.word)"
    case .rate(let amount, let period, let burst):
      return "\(amount) per \(span(period)), burst \(burst)"
    case .sliding(let amount, let length): return "\(amount) in any \(span(length))"
    case .concurrency(let amount): return "\(amount) at one moment"
    case .credit(let credit):
      let included = credit.included.map { "\($0.amount) per \($0.every.word), then " } ?? ""
      return included + "grants" + (credit.allowsOverage ? ", then overage" : "")
    case .spendCap(let amount, let window):
      return (amount.map { "\($0)" } ?? "no cap") + " beyond grants per \(window.word)"
    case .unlimited: return "unlimited"
    }
  }

  package static func of(_ policy: FailurePolicy) -> String {
    if case .open(let allowance) = policy { return "open(\(allowance))" }
    return policy.name
  }

  /// A length of time as people write it: `1 m`, `90 s`, `2 h 30 m`, `250 ms`.
  package static func span(_ milliseconds: Int64) -> String {
    guard milliseconds > 0 else { return "0 s" }
    if milliseconds < 1000 { return "\(milliseconds) ms" }
    var rest = milliseconds / 1000
    var parts: [String] = []
    for (unit, seconds) in [("d", Int64(86_400)), ("h", 3600), ("m", 60), ("s", 1)]
    where rest >= seconds {
      parts.append("\(rest / seconds) \(unit)")
      rest %= seconds
    }
    return parts.prefix(2).joined(separator: " ")
  }

  /// What the limit is after overrides, as `Resolution` applies them, without a request.
  package static func inForce(
    _ limit: Limit, subject: Subject, account: AccountConfig, bypassed: Bool, now: WallTime
  ) -> (kind: LimitKind, enforcement: Enforcement, overrides: [Override]) {
    var kind = limit.kind
    var enforcement = limit.enforcement
    let overrides = self.overrides(of: limit, subject: subject, account: account, now: now)
    for override in overrides {
      switch override.change {
      case .enforcement(let changed): enforcement = changed
      // A closer change of the amount replaces a wider one: each starts from the catalog's rule.
      case .unlimited: kind = .unlimited
      case .enabled(let on): if case .gate = limit.kind { kind = .gate(enabled: on) }
      case .amount(let amount):
        kind = limit.kind.withAmount(amount)
        // What the plan gives is an amount too, though not one that it denies by.
        if case .credit(var credit) = limit.kind, credit.included != nil {
          credit.included?.amount = amount
          kind = .credit(credit)
        }
      }
    }
    return (kind, bypassed ? .shadow : enforcement, overrides)
  }

  /// Overrides that reach this subject now, widest first, so that the last one wins.
  package static func overrides(
    of limit: Limit, subject: Subject, account: AccountConfig, now: WallTime
  ) -> [Override] {
    account.overrides.filter { override in
      override.limit == limit.id && override.subject.depth <= limit.level
        && override.subject.contains(subject) && override.expires.map { now < $0 } ?? true
    }.sorted { $0.subject.depth < $1.subject.depth }
  }
}
