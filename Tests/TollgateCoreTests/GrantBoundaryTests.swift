// A grant that recurs, at the very instants at which it begins, comes again and ends.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct GrantBoundaryTests {
  private static let month = Window.month.period(containing: noon)

  /// 10 a month, of which 10 may be carried into the next; effective and made as a month begins.
  private func bench(expires: WallTime? = nil) throws -> Bench {
    var bench = try Bench(
      catalog(
        """
        {"levels": ["account"], "features": {"spend": {"metered": true}},
         "plans": {"p": {"spend": [{"id": "spend.credit", "credit": true}]}}}
        """))
    bench.account.grants = [
      Grant(
        id: try name("monthly"), feature: try name("spend"), amount: 10,
        effective: Self.month.start, expires: expires, created: Self.month.start, every: .month,
        rollover: Rollover(min: 0, max: 10))
    ]
    return bench
  }

  private func at(_ time: WallTime, _ bench: inout Bench) {
    bench.micros = time.milliseconds * 1000
  }

  private func left(_ bench: inout Bench) throws -> Int64? {
    try bench.ask([("spend", 0)], mode: .check).items.first?.remaining
  }

  @Test func pitfall35_aGrantMadeOnABoundaryIsGivenOnce() throws {
    var bench = try bench()
    at(Self.month.start, &bench)
    #expect(try left(&bench) == 10)
    #expect(try bench.ask([("spend", 11)]).reason == .creditExhausted)
    at(Self.month.end + -1, &bench)
    #expect(try left(&bench) == 10)
    // At the boundary itself once more, and what was left, however often it is looked at or burnt.
    at(Self.month.end, &bench)
    #expect(try left(&bench) == 20)
    #expect(try bench.ask([("spend", 15)]).reason == .allowed)
    #expect(try left(&bench) == 5)
    #expect(try bench.ask([("spend", 6)]).reason == .creditExhausted)
  }

  @Test func pitfall35_aGrantThatEndsOnABoundaryDoesNotComeAgainThere() throws {
    var bench = try bench(expires: Self.month.end)
    at(Self.month.end + -1, &bench)
    #expect(try left(&bench) == 10)
    at(Self.month.end, &bench)
    #expect(try left(&bench) == 0)
    #expect(try bench.ask([("spend", 1)]).reason == .creditExhausted)
  }
}
