// What every change of an account has in common: the event of an outside system that it may be. An
// event that is older than the last one of the same system that was applied, or the same, changes
// nothing, whatever kind of change it is: a late, out-of-order one cannot set an account back.
// Versions are compared within one system and one account. Of up to eight systems the last version
// is remembered; none is ever forgotten for another, because what is forgotten could come again.

import TollgateCore

extension AdminService {
  /// `body` changes the account and says in words what it changed.
  static func edit(
    _ before: AccountConfig, _ source: SourceMark?, now: WallTime, unchanged: String,
    _ body: (inout AccountConfig) throws(AdminFailure) -> [String]
  ) throws(AdminFailure) -> Edit<AccountConfig> {
    if let source, let applied = before.version(ofSource: source.id) {
      if source.version < applied {
        return .ignored("older source version \(source.version); \(applied) was applied")
      }
      if source.version == applied {
        return .ignored("source version \(applied) was applied already")
      }
    }
    var after = before
    var changes = try body(&after)
    if let source {
      try after.note(source)
      changes.append("source: \(source.id) version \(source.version)")
    }
    guard after != before else { return .unchanged(unchanged) }
    after.noteBeginning(of: before, now: now)
    after.dropExpiredOverrides(now: now)
    return .change(after, changes)
  }
}

extension SourceMark {
  /// Both or none; `checkSource` refuses one alone.
  init?(_ id: String?, _ version: Int64?) {
    guard let id, let version else { return nil }
    self.init(id: id, version: version)
  }
}

extension AccountConfig {
  func version(ofSource id: String) -> Int64? {
    if sourceID == id { return sourceVersion }
    return otherSources.first { $0.id == id }?.version
  }

  /// Since when the plan is in force, and which was before it: what an instance of its grants takes
  /// over from the one before depends on both.
  fileprivate mutating func noteBeginning(of before: AccountConfig, now: WallTime) {
    if plan(at: now) != before.plan(at: now) {
      (planSince, planBefore) = (now, before.plan(at: now))
      planBeforeSince = before.planSince(at: now)
    } else if let next = before.next, next.at <= now, self.next != before.next {
      (planSince, planBefore) = (next.at, before.plan)
      planBeforeSince = before.planSince
    }
  }

  fileprivate mutating func note(_ source: SourceMark) throws(AdminFailure) {
    if let last = sourceID, last != source.id {
      otherSources.removeAll { $0.id == source.id }
      otherSources.insert(SourceMark(id: last, version: sourceVersion), at: 0)
      guard otherSources.count < Self.sourcesMax else {
        throw AdminFailure(
          .conflict,
          "the last versions of \(Self.sourcesMax) outside systems are remembered of an account; "
            + "\(source.id) would be one more",
          fix: "source_id names a system, such as billing, and not an event of it")
      }
    }
    sourceID = source.id
    sourceVersion = source.version
  }

  /// Another plan, now; what was to follow the old one does not.
  mutating func enter(_ plan: Name, now: WallTime) -> [String] {
    let current = self.plan(at: now)
    var changes: [String] = []
    if current != plan { changes.append("plan: \(current?.text ?? "none") → \(plan)") }
    if let next = next(after: now) { changes.append("withdrawn: \(next.text)") }
    self.plan = plan
    next = nil
    return changes
  }
}

extension NextPlan {
  /// `free from 2026-12-01T00:00:00Z on`.
  package var text: String { "\(plan?.text ?? "no plan") from \(CivilDate.text(at)) on" }
}
