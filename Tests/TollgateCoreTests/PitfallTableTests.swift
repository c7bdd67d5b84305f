// Where systems of this kind break, and that each such place has a test of ours by its number:
// `func pitfallNN…` in any test target. The list is here because a list nobody checks goes stale.

import Foundation
import Testing
import TollgateTesting

@Suite(.blocking) struct PitfallTableTests {
  /// Every line, by its number.
  static let lines: [Int: String] = [
    1: "concurrent first requests all see zero",
    2: "counters per process: N processes, N times the budget",
    3: "charged after the answer: what is in flight is unbounded",
    4: "a missing or older counter read as zero",
    5: "checked before the cost is added; half of several limits incremented",
    6: "a changed limit holds for new windows only",
    7: "several processes seed a cold counter by adding",
    8: "a retry after a timeout counts again",
    9: "leaked holds starve the account",
    10: "denied requests consume quota",
    11: "a limit below usage underflows",
    12: "a rate so large that arithmetic overflows",
    13: "an id claimed before a write that fails",
    14: "a queue in memory only, dropped when full",
    15: "a failed sync clears its deltas",
    16: "cancelled streams are never billed",
    17: "usage dropped when the other side answers an error",
    18: "SQL stops at zero and loses the debit",
    19: "a settle above the cap records the cap",
    20: "a batch retried without ids",
    21: "duplicates found by batch and not by delta",
    22: "ids forgotten before they can come again",
    23: "a retried commit applies again",
    24: "explicit zero taken for nothing",
    25: "sequence numbers issued again for other deltas",
    26: "an older snapshot overwrites newer truth",
    27: "an operator's set raced by a queued delta",
    28: "two shippers",
    29: "a key without an end, with a wrong end, or that comes back each day",
    30: "a month of thirty days",
    31: "an anchor on the last days of a month overflows or drifts",
    32: "expiry and reset by different rules of a month",
    33: "a zone of which only the offset is kept",
    34: "a reset applied twice or never",
    35: "a boundary counted in two periods",
    36: "clocks that go back or jump",
    37: "a change of plan wipes grants, carries a debt over, or starts the meter anew",
    38: "what is taken back of a grant makes it negative",
    39: "priority of today unwinds what was burnt yesterday",
    40: "what is shown and what is billed are two truths",
    41: "a store that is slow holds everybody",
    42: "fail-open without a bound, or never",
    43: "a reload that leaks, or loads half a file",
    44: "indexes that are never pruned",
    45: "keys of one tenant in several slots",
    46: "an error that is not transient ends delivery for good",
    47: "no way to reset or explain one key",
    48: "labels that grow with the tenants",
    49: "lengths that are trusted",
    50: "an answer nobody waits for is ignored",
    51: "a late answer taken for the next one",
    52: "a length kept in one byte",
  ]

  static let all = 1...52

  /// The numbers in the names of test functions.
  static func named(in lines: [String]) -> Set<Int> {
    var numbers: Set<Int> = []
    for line in lines {
      guard let start = line.range(of: "func pitfall")?.upperBound else { continue }
      if let number = Int(line[start...].prefix(2)) { numbers.insert(number) }
    }
    return numbers
  }

  @Test func everyPitfallHasATestByItsNumber() throws {
    let named = Self.named(in: try TidyTests.sources(in: "Tests").flatMap(\.lines))
    for (number, line) in Self.lines.sorted(by: { $0.key < $1.key }) where !named.contains(number) {
      Issue.record("pitfall \(number) has no test: \(line)")
    }
    #expect(named.isSubset(of: Set(Self.all)))
  }

  @Test func noPitfallIsLeftOut() {
    #expect(Set(Self.lines.keys) == Set(Self.all))
  }

  @Test func aMissingTestIsFound() {
    // Put together, or this file would be taken for the test it asks for.
    let name = "func pit" + "fall"
    let lines = ["  @Test \(name)07_x() {", "// pitfall 8", "  \(name)9x() {"]
    #expect(Self.named(in: lines) == [7])
  }
}
