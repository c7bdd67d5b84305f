// From configuration and a request to what must be checked.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct ResolutionTests {
  private func resolve(
    _ subject: String, _ items: [(String, Int64)], _ catalog: Catalog,
    _ account: AccountConfig, bypasses: [Bypass] = [], now: WallTime = noon
  ) throws -> Resolution {
    Resolution.resolve(
      subject: try Subject(subject),
      items: try items.map { Item(feature: try name($0.0), amount: $0.1) },
      global: global(catalog, bypasses: bypasses), account: account, now: now, zones: .utcOnly)
  }

  private func denial(_ resolution: Resolution) -> Reason? {
    guard case .deny(let reason)? = resolution.limits.first?.rule else { return nil }
    return reason
  }

  @Test func aLimitAppliesToSubjectsAtLeastThatDeep() throws {
    let catalog = try catalog(
      f: """
        [{"id": "a", "quota": 1, "per": "day"}, {"id": "m", "quota": 2, "per": "day",
        "level": "member"}, {"id": "r", "quota": 3, "per": "day", "level": "run"}]
        """)
    let account = try account("p")
    for (subject, ids) in [
      ("acme", ["a"]), ("acme/ann", ["a", "m"]), ("acme/ann/7/x", ["a", "m", "r"]),
    ] {
      let resolution = try resolve(subject, [("f", 1)], catalog, account)
      #expect(resolution.limits.map(\.id.text) == ids)
      // The billing cell, and one cell per level: same window, another subject.
      #expect(resolution.cells.map(\.level) == [1] + (1...ids.count))
    }
  }

  private func leased(
    _ limits: String, feature: String = #""idempotency": "sidecar""#, plan: String? = "p",
    bypasses: [Bypass] = []
  ) throws -> Bool {
    let catalog = try catalog(
      """
      {"levels": ["account", "member"], "features": {"f": {"metered": true,
       "importance": "volume", \(feature)}, "g": {"metered": true, "importance": "volume"}},
       "plans": {"p": {"f": \(limits), "g": []}}}
      """)
    return try resolve("acme/ann", [("f", 1)], catalog, account(plan), bypasses: bypasses)
      .isLeasable
  }

  @Test func onlyWhatASidecarMayRememberIsLeased() throws {
    let day = #"{"id": "d", "quota": 5, "per": "day"}"#
    #expect(try leased("[]"))
    #expect(try leased("[\(day)]"))
    #expect(
      try leased(
        #"[{"id": "r", "rate": 5, "per": "minute"}, {"id": "s", "sliding": 5, "per": "hour"}]"#))
    #expect(try leased(#"[{"id": "m", "quota": 5, "per": "day", "level": "member"}]"#))
    #expect(try leased(#"[{"id": "g", "gate": true}]"#))
    #expect(try !leased("[\(day)]", feature: #""idempotency": "global""#))
    #expect(try !leased(#"[{"id": "d", "quota": 5, "per": "day", "precision": "exact"}]"#))
    #expect(try !leased(#"[{"id": "g", "gate": false}]"#))
    // Prepaid; what goes beyond grants costs money.
    #expect(try leased(#"[{"id": "c", "credit": true}]"#))
    #expect(try !leased(#"[{"id": "c", "credit": true, "overage": "allow"}]"#))
    #expect(try !leased(#"[{"id": "c", "credit": true, "enforcement": "shadow"}]"#))
    #expect(
      try !leased(#"[{"id": "c", "credit": true}, {"id": "m", "spend_cap": 5, "per": "day"}]"#))
    #expect(try !leased(#"[{"id": "c", "concurrency": 5}]"#))
    // Seven in a microsecond have no whole microseconds each; seven in a second nearly have.
    #expect(try !leased(#"[{"id": "r", "rate": 7000000, "per": "1s"}]"#))
    #expect(try leased(#"[{"id": "r", "rate": 7, "per": "1s"}]"#))
    #expect(try leased(#"[{"id": "r", "rate": 500000, "per": "1s"}]"#))
    #expect(try !leased("[]", plan: nil))
  }

  @Test func aRequestIsLeasedWholeOrNotAtAll() throws {
    let catalog = try catalog(
      """
      {"levels": ["a"], "features": {
        "f": {"metered": true, "importance": "volume", "idempotency": "sidecar"},
        "g": {"metered": true, "importance": "volume"}}, "plans": {"p": {"f": [], "g": []}}}
      """)
    #expect(try resolve("acme", [("f", 1)], catalog, account("p")).isLeasable)
    #expect(try !resolve("acme", [("f", 1), ("g", 1)], catalog, account("p")).isLeasable)
  }

  @Test func limitsOverOneWindowShareACell() throws {
    let catalog = try catalog(
      f: """
        [{"id": "hard", "quota": 10, "per": "month"},
         {"id": "warn", "quota": 5, "per": "month", "enforcement": "soft"},
         {"id": "day", "quota": 2, "per": "day"}]
        """)
    let resolution = try resolve("acme", [("f", 1)], catalog, account("p"))
    #expect(resolution.cells.map(\.window) == [.month, .day])
    #expect(
      resolution.limits.map(\.rule) == [
        .quota(cell: 0, amount: 10), .quota(cell: 0, amount: 5), .quota(cell: 1, amount: 2),
      ])
  }

  @Test func onlyMeteredFeaturesHaveTheBillingCell() throws {
    let catalog = try catalog(f: "[]", g: "[]")
    let resolution = try resolve("acme/ann", [("f", 1), ("g", 1)], catalog, account("p"))
    #expect(resolution.metered == [true, false])
    #expect(resolution.cells.map(\.item) == [0])
    #expect(resolution.cells.first?.level == 1)
    #expect(resolution.cells.first?.period == Window.month.period(containing: noon))
    #expect(resolution.importance == .money)
    #expect(try resolve("acme", [("g", 1)], catalog, account("p")).importance == .volume)
  }

  /// What a post of units let through earlier needs, even after the plan is gone.
  @Test func theBillingCellStandsWhereConfigurationDenies() throws {
    let catalog = try catalog(f: "[]")
    let resolution = try resolve("acme", [("f", 1)], catalog, account("empty"))
    #expect(denial(resolution) == .featureNotInPlan)
    #expect(resolution.cells.count == 1)
  }

  @Test func whatConfigurationForbidsIsDeniedInTheOrderOfReasons() throws {
    var catalog = try catalog(f: #"[{"id": "x", "gate": false}]"#)
    #expect(
      try denial(resolve("a", [("nope", 1)], catalog, account(nil, frozen: true))) == .accountFrozen
    )
    #expect(try denial(resolve("a", [("nope", 1)], catalog, account(nil))) == .unknownAccount)
    #expect(try denial(resolve("a", [("nope", 1)], catalog, account("p"))) == .unknownFeature)
    #expect(try denial(resolve("a", [("f", 1)], catalog, account("empty"))) == .featureNotInPlan)
    #expect(try denial(resolve("a", [("f", 1)], catalog, account("gone"))) == .featureNotInPlan)
    #expect(try denial(resolve("a", [("f", 1)], catalog, account("p"))) == .gateClosed)
    catalog.unknownAccount = .plan(try name("p"))
    #expect(try denial(resolve("a", [("f", 1)], catalog, account(nil))) == .gateClosed)
  }

  @Test func theClosestOverrideWins() throws {
    let catalog = try catalog(f: #"[{"id": "x", "quota": 10, "per": "day", "level": "run"}]"#)
    let overrides = [
      try override("acme/ann", "x", .amount(30)), try override("acme", "x", .unlimited),
      try override("acme/bob", "x", .amount(40)), try override("acme/ann/7", "x", .amount(50)),
      try override("acme", "other", .amount(60)),
    ]
    func amount(_ subject: String) throws -> AppliedLimit.Rule? {
      try resolve(subject, [("f", 1)], catalog, account("p", overrides: overrides)).limits.first?
        .rule
    }
    #expect(try amount("acme/ann/7") == .quota(cell: 1, amount: 50))
    #expect(try amount("acme/ann/8") == .quota(cell: 1, amount: 30))
    #expect(try amount("acme/eve/1") == .unlimited)
  }

  @Test func anOverrideOfADeeperSubjectDoesNotReachAWiderLimit() throws {
    let catalog = try catalog(f: #"[{"id": "x", "quota": 10, "per": "day"}]"#)
    let account = try account("p", overrides: [override("acme/ann", "x", .amount(99))])
    #expect(
      try resolve("acme/ann", [("f", 1)], catalog, account).limits.first?.rule
        == .quota(cell: 1, amount: 10))
  }

  @Test func anOverrideEndsAtItsExpiry() throws {
    let catalog = try catalog(f: #"[{"id": "x", "quota": 10, "per": "day"}]"#)
    let end = noon + 5_000
    let account = try account(
      "p", overrides: [override("acme", "x", .amount(99), expires: end.milliseconds)])
    let before = try resolve("acme", [("f", 1)], catalog, account, now: end + -1)
    #expect(before.limits.first?.rule == .quota(cell: 1, amount: 99))
    #expect(before.validUntil == end)
    let after = try resolve("acme", [("f", 1)], catalog, account, now: end)
    #expect(after.limits.first?.rule == .quota(cell: 1, amount: 10))
    #expect(after.validUntil == Window.day.period(containing: noon).end)
  }

  /// A lifted quota goes on counting, so that the end of the override finds the true usage.
  @Test func anUnlimitedOverrideKeepsTheCounter() throws {
    let catalog = try catalog(f: "[]", g: #"[{"id": "x", "quota": 10, "per": "day"}]"#)
    let account = try account("p", overrides: [override("acme", "x", .unlimited)])
    let resolution = try resolve("acme", [("g", 1)], catalog, account)
    #expect(resolution.limits.first?.rule == .unlimited)
    #expect(resolution.cells.map(\.window) == [.day])
  }

  @Test func enforcementAndGatesCanBeOverridden() throws {
    let catalog = try catalog(
      f: #"[{"id": "g", "gate": false}, {"id": "x", "quota": 10, "per": "day"}]"#)
    let account = try account(
      "p",
      overrides: [
        override("acme", "g", .enabled(true)), override("acme", "x", .enforcement(.soft)),
        override("acme", "x", .amount(4)),
      ])
    let limits = try resolve("acme", [("f", 1)], catalog, account).limits
    #expect(limits.map(\.rule) == [.unlimited, .quota(cell: 1, amount: 4)])
    #expect(limits.map(\.enforcement) == [.hard, .soft])
  }

  @Test func aBypassMakesShadowsUntilItEnds() throws {
    let catalog = try catalog(
      f: #"[{"id": "x", "gate": false}]"#, g: #"[{"id": "y", "quota": 1, "per": "day"}]"#)
    let end = noon + 1_000
    let one = Bypass(feature: try name("f"), until: end, reason: "", actor: "")
    let account = try account("p")
    let items: [(String, Int64)] = [("f", 1), ("g", 1)]
    let during = try resolve("acme", items, catalog, account, bypasses: [one], now: end + -1)
    #expect(during.limits.map(\.enforcement) == [.shadow, .hard])
    #expect(during.metered == [true, false])
    #expect(during.validUntil == end)
    let after = try resolve("acme", items, catalog, account, bypasses: [one], now: end)
    #expect(after.limits.map(\.enforcement) == [.hard, .hard])
    let all = Bypass(feature: nil, until: end, reason: "", actor: "")
    let both = try resolve("acme", items, catalog, account, bypasses: [all])
    #expect(both.limits.map(\.enforcement) == [.shadow, .shadow])
  }

  /// The account as a whole is not a limit: a bypass does not thaw it.
  @Test func aBypassDoesNotThawAnAccount() throws {
    let catalog = try catalog(f: "[]")
    let all = Bypass(feature: nil, until: noon + 1, reason: "", actor: "")
    let resolution = try resolve(
      "acme", [("f", 1)], catalog, account("p", frozen: true), bypasses: [all])
    #expect(resolution.limits.map(\.enforcement) == [.hard])
  }

  /// PITFALL 37: counters belong to (subject, feature, window), whatever the plan.
  @Test func aChangeOfPlanFindsTheSameCells() throws {
    let both = try catalog(
      """
      {"levels": ["account"], "features": {"f": {"metered": true}}, "plans": {
       "small": {"f": [{"id": "s", "quota": 1, "per": "day"}]},
       "large": {"f": [{"id": "l", "quota": 100, "per": "day"}]}}}
      """)
    let small = try resolve("acme", [("f", 1)], both, account("small"))
    let large = try resolve("acme", [("f", 1)], both, account("large"))
    #expect(small.cells == large.cells)
  }

  @Test func theResolutionIsValidUntilItsFirstPeriodEnds() throws {
    let catalog = try catalog(f: #"[{"id": "x", "quota": 1, "per": "minute"}]"#, g: "[]")
    #expect(
      try resolve("acme", [("f", 1)], catalog, account("p")).validUntil
        == Window.minute.period(containing: noon).end)
    #expect(
      try resolve("acme", [("g", 1)], catalog, account("p")).validUntil.milliseconds
        == Quantity.maximum)
  }

  // MARK: Rates

  private func rate(
    _ limit: String, _ amount: Int64, _ overrides: [Override] = []
  ) throws -> AppliedLimit.Rule? {
    let catalog = try catalog(f: "[]", g: "[\(limit)]")
    return try resolve("acme", [("g", amount)], catalog, account("p", overrides: overrides))
      .limits.first?.rule
  }

  @Test func aRateCostsWholeMicrosecondsRoundedUp() throws {
    #expect(
      try rate(#"{"id": "x", "rate": 10, "per": "minute", "burst": 10}"#, 3)
        == .rate(
          costMicroseconds: 18_000_000, toleranceMicroseconds: 60_000_009,
          intervalMicroseconds: 6_000_000))
    #expect(
      try rate(#"{"id": "x", "rate": 7, "per": "minute", "burst": 7}"#, 1)
        == .rate(
          costMicroseconds: 8_571_429, toleranceMicroseconds: 60_000_006,
          intervalMicroseconds: 8_571_429))
    #expect(
      try rate(#"{"id": "x", "rate": 7, "per": "minute"}"#, 0)
        == .rate(
          costMicroseconds: 0, toleranceMicroseconds: 60_000_006, intervalMicroseconds: 8_571_429))
  }

  @Test func aCostAboveTheBurstIsNeverAffordable() throws {
    #expect(
      try rate(#"{"id": "x", "rate": 10, "per": "minute", "burst": 4}"#, 5)
        == .deny(.costAboveBurst))
  }

  @Test func anOverrideScalesTheBurstWithTheRate() throws {
    let limit = #"{"id": "x", "rate": 10, "per": "minute", "burst": 20}"#
    func burst(_ amount: Int64, holds units: Int64) throws -> Bool {
      try rate(limit, units, [override("acme", "x", .amount(amount))]) != .deny(.costAboveBurst)
    }
    #expect(try burst(5, holds: 10))
    #expect(try !burst(5, holds: 11))
    #expect(try burst(100, holds: 200))
    #expect(try burst(1, holds: 2))
    #expect(try !burst(0, holds: 1))
    // Wide first, then close: each starts from the catalog's rule, so nothing is lost on the way.
    let overrides = [try override("acme", "x", .amount(0)), try override("acme", "x", .amount(10))]
    #expect(try rate(limit, 20, overrides) != .deny(.costAboveBurst))
  }

  /// Whatever the numbers: a burst taken unit by unit at one instant is admitted whole, and never
  /// a unit more, in one request or in many.
  @Test func theToleranceHoldsExactlyTheBurst() {
    for amount: Int64 in [1, 3, 7, 10, 60, 61, 999, 1_000, 59_999, 60_000] {
      for period: Int64 in [1_000, 60_000, 90_000, 86_400_000] {
        for burst: Int64 in [1, 2, 3, 7, 10, 100] {
          let tolerance = Rate.tolerance(burst: burst, amount: amount, periodMilliseconds: period)
          let one = Rate.microseconds(1, amount: amount, periodMilliseconds: period)
          let over = Rate.microseconds(burst + 1, amount: amount, periodMilliseconds: period)
          #expect(over > tolerance, "\(amount) per \(period) ms, burst \(burst)")
          // Above one unit per `burst` microseconds rounding may cost part of a burst of ones.
          guard period * 1000 / amount > burst else { continue }
          #expect(one * burst <= tolerance, "\(amount) per \(period) ms, burst \(burst)")
          #expect(tolerance / one == burst)
        }
      }
    }
  }

  /// PITFALL 12.
  @Test func extremesStayInsideTheQuantityRange() {
    for amount in [1, 2, Quantity.maximum] {
      for period in [1_000, Window.secondsMax * 1000] {
        for burst in [1, Quantity.maximum] {
          let tolerance = Rate.tolerance(burst: burst, amount: amount, periodMilliseconds: period)
          #expect((0...Rate.microsecondsMax).contains(tolerance))
          let cost = Rate.microseconds(burst, amount: amount, periodMilliseconds: period)
          #expect((0...Rate.microsecondsMax).contains(cost))
          #expect(Quantity.isValid(2_000_000_000_000_000 + tolerance + cost))
        }
      }
    }
  }
}
