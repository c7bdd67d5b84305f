// The registries: numbers are on the wire and in stored records, so they are pinned here.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct ReasonTests {
  static let reasons: [(UInt16, String)] = [
    (0, "ALLOWED"), (1, "ALLOWED_SHADOW"), (2, "ALLOWED_SOFT"), (3, "ALLOWED_FAIL_OPEN"),
    (4, "ALLOWED_POSTED"), (16, "ACCOUNT_FROZEN"), (17, "UNKNOWN_ACCOUNT"),
    (18, "UNKNOWN_FEATURE"), (19, "FEATURE_NOT_IN_PLAN"), (20, "GATE_CLOSED"),
    (21, "COST_ABOVE_BURST"), (22, "QUOTA_EXCEEDED"), (23, "RATE_LIMITED"), (24, "OUTBOX_FULL"),
    (25, "DEDUPE_FULL"), (26, "STORE_UNAVAILABLE"), (27, "FALLBACK_EXHAUSTED"), (28, "CANCELLED"),
    (5, "SETTLED"), (6, "SETTLED_CLAMPED"), (7, "SETTLED_LATE"), (8, "RELEASED"), (9, "EXTENDED"),
    (10, "REFUNDED"), (29, "CONCURRENCY_EXCEEDED"), (30, "CREDIT_EXHAUSTED"),
    (31, "SPEND_CAP_REACHED"), (32, "PRICE_UNKNOWN"), (33, "HOLDS_EXCEEDED"), (34, "PAST_DUE"),
  ]

  @Test func everyReasonKeepsItsNumberAndName() {
    for (number, name) in Self.reasons {
      #expect(Reason(rawValue: number)?.name == name)
    }
    // New reasons are added at the end; none goes away.
    #expect(Set(Reason.allCases.map(\.rawValue)).isSuperset(of: Self.reasons.map(\.0)))
    #expect(Set(Reason.allCases.map(\.name)).count == Reason.allCases.count)
  }

  @Test func aReasonAllowsBelow16AndDeniesFrom16() {
    // What ends or prolongs a reservation, and what gives back, is done rather than allowed.
    let done: Set<Reason> = [
      .settled, .settledClamped, .settledLate, .released, .extended, .refunded,
    ]
    for reason in Reason.allCases {
      #expect(reason.isAllowed == (reason.rawValue < 16))
      #expect(reason.isAllowed == (reason.name.hasPrefix("ALLOWED") || done.contains(reason)))
    }
  }

  @Test func errorNamesAndNumbersAreUnique() {
    #expect(Set(ErrorCode.allCases.map(\.name)).count == ErrorCode.allCases.count)
    #expect(Set(ErrorCode.allCases.map(\.rawValue)).count == ErrorCode.allCases.count)
    #expect(ErrorCode.allCases.allSatisfy { $0.rawValue > 0 })
  }
}
