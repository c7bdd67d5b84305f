// What a change of catalog is, and which changes are refused.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct CatalogDiffTests {
  private func diff(
    _ change: (inout Catalog) throws -> Void
  ) throws -> CatalogDiff {
    let old = try catalog(CatalogReaderTests.good)
    var new = old
    try change(&new)
    return CatalogDiff(from: old, to: new)
  }

  @Test func equalCatalogsDoNotDiffer() throws {
    let diff = try diff { _ in }
    #expect(diff.isEmpty)
    #expect(diff.text.isEmpty)
    #expect(diff.document == [])
  }

  @Test func aFirstCatalogIsAllNewAndNothingIsRefused() throws {
    let diff = CatalogDiff(from: nil, to: try catalog(CatalogReaderTests.good))
    #expect(diff.refused.isEmpty)
    #expect(diff.text.contains("+ plans/free\n"))
    #expect(diff.text.contains("+ features/agents"))
  }

  @Test func aChangedAmountIsOneLine() throws {
    let diff = try diff {
      $0.plans[try name("free")]?.entitlements[try name("chat.requests")]?[1].kind =
        .quota(amount: 400, window: .month)
    }
    #expect(diff.text == "~ plans/free/chat.requests/chat.month quota: 500 → 400")
    #expect(
      diff.document.json()
        == #"[{"path":"plans/free/chat.requests/chat.month","change":"changed","field":"quota","#
        + #""before":500,"after":400}]"#)
    #expect(diff.refused.isEmpty)
  }

  @Test func addedAndRemovedPlacesAreNamed() throws {
    let diff = try diff {
      $0.plans[try name("team")] = Plan(name: try name("team"), entitlements: [:])
      $0.plans[try name("pro")]?.entitlements[try name("tokens.total")] = nil
      $0.features[try name("agents")] = nil
      $0.plans[try name("free")]?.entitlements[try name("agents")] = nil
      $0.unknownAccount = .deny
    }
    #expect(
      diff.text.split(separator: "\n").map { $0.prefix { $0 != ":" } } == [
        "~ unknown_account", "- features/agents", "- plans/free/agents",
        "- plans/free/agents/agents.gate", "- plans/pro/tokens.total", "+ plans/team",
      ])
    #expect(diff.refused.isEmpty)
  }

  @Test func aNewOrderOfLimitsIsAChange() throws {
    let diff = try diff {
      $0.plans[try name("free")]?.entitlements[try name("chat.requests")]?.reverse()
    }
    #expect(
      diff.text == #"~ plans/free/chat.requests order: ["chat.rpm","chat.month"] → "#
        + #"["chat.month","chat.rpm"]"#)
  }

  @Test func aRankIsALine() throws {
    let diff = try diff { $0.plans[try name("free")]?.rank = 3 }
    #expect(diff.text == "+ plans/free rank: 3")
    #expect(diff.refused.isEmpty)
  }

  @Test func aFeaturesClassIsFixed() throws {
    let feature = try name("tokens.total")
    #expect(try diff { $0.features[feature]?.importance = .volume }.refused.count == 1)
    #expect(try diff { $0.features[feature]?.metered = false }.refused.count == 1)
    #expect(try diff { $0.features[feature]?.unit = "token" }.refused.isEmpty)
  }

  @Test func levelsMayOnlyBeAddedAtTheEnd() throws {
    #expect(try diff { $0.levels.append(try name("step")) }.refused.isEmpty)
    #expect(try diff { $0.levels.removeLast() }.refused.count == 1)
    #expect(try diff { $0.levels.swapAt(0, 1) }.refused.count == 1)
  }

  @Test func aLimitIDKeepsItsMeaning() throws {
    let free = try name("free")
    let chat = try name("chat.requests")
    func refused(_ kind: LimitKind) throws -> [String?] {
      // The id stands in two plans; both change, as the reader demands.
      try diff {
        $0.plans[free]?.entitlements[chat]?[1].kind = kind
        $0.plans[try name("pro")]?.entitlements[chat]?[0].kind = kind
      }.refused.map(\.field)
    }
    #expect(try refused(.quota(amount: 3, window: .month)) == [])
    #expect(try refused(.quota(amount: 3, window: .day)) == ["kind"])
    #expect(try refused(.unlimited) == ["kind"])
    #expect(
      try diff { $0.plans[free]?.entitlements[chat]?[0].level = 1 }.refused.map(\.field) == [
        "depth"
      ])
    let moved = try diff {
      guard let limit = $0.plans[free]?.entitlements[chat]?.removeFirst() else { return }
      $0.plans[free]?.entitlements[try name("agents")]?.append(limit)
    }
    #expect(moved.refused.map(\.field) == ["feature"])
    #expect(moved.text.contains("refused: a limit id keeps its meaning"))
  }
}
