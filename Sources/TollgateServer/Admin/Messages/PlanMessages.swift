// Plans that change by time, and payments that are owed.

package import TollgateCore

package struct AccountPlanRequest: Hashable, Sendable, Codable {
  package var account: Subject
  package var plan: Name?
  /// `now` or `period-end`; absent: by the catalog's ranks.
  package var when: String?
  /// At this instant, instead of `when`.
  package var effective: WallTime?
  /// A trial: `plan` from now until then, then `then`, or none where `thenNone`.
  package var until: WallTime?
  package var then: Name?
  package var thenNone: Bool?
  /// Only takes back what is to come.
  package var withdraw: Bool?
  package var sourceID: String?
  package var sourceVersion: Int64?
  package var change: ChangeOptions

  package init(
    account: Subject, plan: Name? = nil, when: String? = nil, effective: WallTime? = nil,
    until: WallTime? = nil, then: Name? = nil, thenNone: Bool? = nil, withdraw: Bool? = nil,
    sourceID: String? = nil, sourceVersion: Int64? = nil, change: ChangeOptions
  ) {
    self.account = account
    self.plan = plan
    self.when = when
    self.effective = effective
    self.until = until
    self.then = then
    self.thenNone = thenNone
    self.withdraw = withdraw
    self.sourceID = sourceID
    self.sourceVersion = sourceVersion
    self.change = change
  }
}

package struct AccountPastDueRequest: Hashable, Sendable, Codable {
  package static let graceMillisecondsMax: Int64 = 366 * 86_400_000

  package var account: Subject
  package var graceMilliseconds: Int64?
  package var clear: Bool?
  package var sourceID: String?
  package var sourceVersion: Int64?
  package var change: ChangeOptions

  package init(
    account: Subject, graceMilliseconds: Int64? = nil, clear: Bool? = nil,
    sourceID: String? = nil, sourceVersion: Int64? = nil, change: ChangeOptions
  ) {
    self.account = account
    self.graceMilliseconds = graceMilliseconds
    self.clear = clear
    self.sourceID = sourceID
    self.sourceVersion = sourceVersion
    self.change = change
  }
}

/// A plan that is to come.
package struct NextPlanReport: Hashable, Sendable, Codable {
  /// nil: none.
  package var plan: Name?
  package var at: WallTime
  package var endsTrial: Bool

  package init(_ next: NextPlan) {
    plan = next.plan
    at = next.at
    endsTrial = next.endsTrial
  }

  package var text: String {
    (endsTrial ? "trial; " : "then ") + NextPlan(plan: plan, at: at).text
  }
}

package struct PastDueReport: Hashable, Sendable, Codable {
  package var since: WallTime
  package var graceEnds: WallTime
  /// Whether everything is denied for it now.
  package var denied: Bool

  package init(_ owed: PastDue, now: WallTime) {
    since = owed.since
    graceEnds = owed.graceEnds
    denied = owed.graceEnds <= now
  }

  package var text: String {
    "since \(CivilDate.text(since)), "
      + (denied
        ? "denied since \(CivilDate.text(graceEnds))" : "grace until \(CivilDate.text(graceEnds))")
  }
}
