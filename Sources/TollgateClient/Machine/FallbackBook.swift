// What the client answers when no sidecar does, and what it owes afterwards.
//
// The policies came with the last welcome and are remembered. An allowance is per account, feature
// and outage; an outage lasts until everything let through in it has been recorded, so a sidecar
// that flaps does not hand out a new allowance each time. An operation that may have been applied
// and is denied here is taken back by its id.
//
// Promises: Σ let through ≤ allowance per account, feature and outage; nothing is let through that
// there is no room to remember; the same id gets the same answer here too.

internal import TollgateWire

struct FallbackBook {
  enum Answer: Hashable {
    case decided(Decision)
    /// Denied by policy, but it may have been applied, and there is no room to remember that.
    case unknown
    /// The id was let through with another body.
    case mismatch
  }

  private struct Meter: Hashable {
    var account: Subject
    var feature: Name
  }

  var posts: Backlog<Record>
  var cancels: Backlog<Record>
  /// What was used of reservations and is not answered yet.
  var settles: Backlog<SettleRecord>
  private var policies: [Name: FailurePolicy]?
  private var globalVersion: Int64 = 0
  private var used: [Meter: Int64] = [:]

  init(unpostedMax: Int, uncancelledMax: Int, unsettledMax: Int = 1) {
    posts = Backlog(capacity: unpostedMax)
    cancels = Backlog(capacity: uncancelledMax)
    settles = Backlog(capacity: unsettledMax)
  }

  /// Whether a sidecar is still to be told something.
  var owes: Bool { !posts.isEmpty || !cancels.isEmpty || !settles.isEmpty }

  /// Whether a sidecar was ever reached.
  var knowsPolicies: Bool { policies != nil }

  mutating func learn(_ welcome: Welcome) {
    // A sidecar that has only just started knows no configuration yet and tells no policies; it
    // tells them when it does. Until then those of its predecessor hold.
    if welcome.globalVersion == 0, welcome.policies.isEmpty, knowsPolicies { return }
    globalVersion = welcome.globalVersion
    var learnt: [Name: FailurePolicy] = [:]
    for policy in welcome.policies { learnt[policy.feature] = policy.policy }
    policies = learnt
  }

  /// The answer already given under this id, where it is not settled with a sidecar yet.
  func answered(_ record: Record, _ wall: WallTime) -> Answer? {
    if let posted = posts.record(record.id) {
      guard posted.hasSameBody(as: record) else { return .mismatch }
      return .decided(decision(.allowedFailOpen, wall, replayed: true))
    }
    if let cancelled = cancels.record(record.id) {
      guard cancelled.hasSameBody(as: record) else { return .mismatch }
      return .decided(decision(.cancelled, wall, replayed: true))
    }
    return nil
  }

  /// Decides by policy. `mayBeApplied`: it was sent, and what became of it is not known.
  mutating func decide(
    _ record: Record, consumes: Bool, mayBeApplied: Bool, _ wall: WallTime
  ) -> Answer {
    if consumes, let answer = answered(record, wall) { return answer }
    let reason = reason(for: record, consumes: consumes)
    if reason.isAllowed {
      if consumes {
        for item in record.items {
          used[Meter(account: record.subject.account, feature: item.feature), default: 0] +=
            item.amount
        }
        posts.add(record)
      }
    } else if consumes, mayBeApplied {
      guard cancels.hasRoom else { return .unknown }
      cancels.add(record)
    }
    return .decided(decision(reason, wall))
  }

  /// A hold is made by a sidecar or by nobody, whatever the policy. One that an earlier attempt may
  /// have made ends by itself; what it would answer only its id can tell.
  func refuseToHold(mayBeApplied: Bool, _ wall: WallTime) -> Answer {
    mayBeApplied ? .unknown : .decided(decision(.storeUnavailable, wall))
  }

  private func reason(for record: Record, consumes: Bool) -> Reason {
    var isExhausted = consumes && !posts.hasRoom
    for item in record.items {
      guard case .open(let allowance) = policies?[item.feature] ?? .closed else {
        return .storeUnavailable
      }
      let spent = used[Meter(account: record.subject.account, feature: item.feature)] ?? 0
      // No overflow: both are within the quantity range.
      if spent + item.amount > allowance { isExhausted = true }
    }
    return isExhausted ? .fallbackExhausted : .allowedFailOpen
  }

  private func decision(_ reason: Reason, _ wall: WallTime, replayed: Bool = false) -> Decision {
    Decision(
      reason: reason, source: .clientFallback, time: wall, globalVersion: globalVersion,
      replayed: replayed)
  }

  /// Ends the outage if nothing of it is owed any more. To be called while a sidecar answers.
  mutating func endOutageIfPosted() {
    if posts.isEmpty, !used.isEmpty { used = [:] }
  }

  /// Takes over what an earlier client owed.
  mutating func adopt(
    posts records: [Record], cancels annulled: [Record], settles used: [SettleRecord] = []
  ) {
    for record in records { posts.add(record) }
    for record in annulled { cancels.add(record) }
    for record in used { settles.add(record) }
  }
}
