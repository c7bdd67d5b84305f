// An account's configuration as a document: what Redis and the ledger store of it as JSON. Keys
// that a release does not know are refused, so nothing is dropped by reading and writing; those
// that are absent mean what they meant before the key was there.

extension AccountConfig {
  package static let sourceBytesMax = 128

  package init(document: Document) throws(InvalidDocument) {
    let problems = ProblemList()
    let node = DocumentNode(document, problems: problems)
    let fields = node.object(
      [
        "version", "plan", "next", "frozen", "past_due", "overrides", "calendar", "grants",
        "retired_grants", "source_id", "source_version", "other_sources", "plan_since_ms",
        "plan_before", "plan_before_since_ms",
      ],
      required: ["version"])
    let version = fields?["version"]?.integer(0...Quantity.maximum)
    let plan = fields?["plan"]?.name()
    let next = fields?["next"].flatMap { NextPlan(node: $0) }
    let frozen = fields?["frozen"]?.bool()
    let pastDue = fields?["past_due"].flatMap { PastDue(node: $0) }
    let overrides = fields?["overrides"]?.list(max: Self.overridesMax)?.map { Override(node: $0) }
    let calendar = fields?["calendar"]?.list(max: Self.calendarSettingsMax)?.map {
      CalendarSetting(node: $0)
    }
    let grants = fields?["grants"]?.list(max: Self.grantsMax)?.map { Grant(node: $0) }
    let retired = fields?["retired_grants"]?.list(max: Self.retiredGrantsMax)?.map {
      Self.retiredGrant($0)
    }
    let sourceID = fields?["source_id"]?.string(bytesMax: Self.sourceBytesMax)
    let sourceVersion = fields?["source_version"]?.integer(0...Quantity.maximum)
    let others = fields?["other_sources"]?.list(max: Self.sourcesMax - 1)?.map {
      SourceMark(node: $0)
    }
    let planSince = fields?["plan_since_ms"]?.integer(0...Quantity.maximum)
    let planBefore = fields?["plan_before"]?.name()
    let beforeSince = fields?["plan_before_since_ms"]?.integer(0...Quantity.maximum)
    guard problems.isEmpty, let version else {
      throw InvalidDocument(problems: problems.report)
    }
    self.init(
      version: version, plan: plan, frozen: frozen ?? false,
      overrides: (overrides ?? []).compactMap { $0 },
      calendar: (calendar ?? []).compactMap { $0 },
      grants: (grants ?? []).compactMap { $0 }, sourceID: sourceID,
      sourceVersion: sourceVersion ?? 0, next: next, pastDue: pastDue,
      otherSources: (others ?? []).compactMap { $0 },
      retiredGrants: (retired ?? []).compactMap { $0 },
      planSince: planSince.map { WallTime(milliseconds: $0) }, planBefore: planBefore,
      planBeforeSince: beforeSince.map { WallTime(milliseconds: $0) })
  }

  private static func retiredGrant(_ node: DocumentNode) -> UInt64? {
    guard let text = node.string(bytesMax: 16) else { return nil }
    guard let hash = UInt64(text, radix: 16) else {
      node.problem("must be up to 16 hex digits")
      return nil
    }
    return hash
  }

  package var document: Document {
    .fields([
      "version": .integer(version),
      "plan": plan.map { .string($0.text) },
      "plan_since_ms": planSince.map { .integer($0.milliseconds) },
      "plan_before": planBefore.map { .string($0.text) },
      "plan_before_since_ms": planBeforeSince.map { .integer($0.milliseconds) },
      "next": next.map(\.document),
      "frozen": .bool(frozen),
      "past_due": pastDue.map(\.document),
      "overrides": .list(overrides.map(\.document)),
      "calendar": calendar.isEmpty ? nil : .list(calendar.map(\.document)),
      "grants": grants.isEmpty ? nil : .list(grants.map(\.document)),
      "retired_grants": retiredGrants.isEmpty
        ? nil : .strings(retiredGrants.map { String($0, radix: 16) }),
      "source_id": sourceID.map { .string($0) },
      "source_version": .integer(sourceVersion),
      "other_sources": otherSources.isEmpty ? nil : .list(otherSources.map(\.document)),
    ])
  }
}

extension NextPlan {
  fileprivate init?(node: DocumentNode) {
    guard let fields = node.object(["plan", "at_ms", "ends_trial"], required: ["at_ms"]) else {
      return nil
    }
    let plan = fields["plan"].map { $0.name() }
    let at = fields["at_ms"]?.integer(0...Quantity.maximum)
    let endsTrial = fields["ends_trial"].map { $0.bool() } ?? false
    guard let at, let endsTrial else { return nil }
    // A plan that could not be read is not the same as none.
    if let plan, plan == nil { return nil }
    self.init(plan: plan ?? nil, at: WallTime(milliseconds: at), endsTrial: endsTrial)
  }

  package var document: Document {
    .fields([
      "plan": plan.map { .string($0.text) },
      "at_ms": .integer(at.milliseconds),
      "ends_trial": endsTrial ? true : nil,
    ])
  }
}

extension PastDue {
  fileprivate init?(node: DocumentNode) {
    guard
      let fields = node.object(
        ["since_ms", "grace_ends_ms"], required: ["since_ms", "grace_ends_ms"])
    else { return nil }
    let since = fields["since_ms"]?.integer(0...Quantity.maximum)
    let ends = fields["grace_ends_ms"]?.integer(0...Quantity.maximum)
    guard let since, let ends else { return nil }
    self.init(since: WallTime(milliseconds: since), graceEnds: WallTime(milliseconds: ends))
  }

  package var document: Document {
    [
      "since_ms": .integer(since.milliseconds), "grace_ends_ms": .integer(graceEnds.milliseconds),
    ]
  }
}

extension SourceMark {
  fileprivate init?(node: DocumentNode) {
    guard let fields = node.object(["id", "version"], required: ["id", "version"]) else {
      return nil
    }
    let id = fields["id"]?.string(bytesMax: AccountConfig.sourceBytesMax)
    let version = fields["version"]?.integer(0...Quantity.maximum)
    guard let id, let version else { return nil }
    self.init(id: id, version: version)
  }

  package var document: Document { ["id": .string(id), "version": .integer(version)] }
}
