// What one id stands for: the words of a fingerprint, and which of them tells two bodies apart.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct FingerprintTests {
  private let subject: Subject
  private let items: [Item]

  init() throws {
    subject = try Subject("acme/ann")
    items = [
      Item(feature: try Name("chat.requests"), amount: 1),
      Item(feature: try Name("tokens.output"), amount: 1500),
    ]
  }

  private func words(_ fingerprint: OperationFingerprint) -> [[UInt8]] {
    (0..<4).map { Array(fingerprint.bytes[($0 * 4)..<($0 * 4 + 4)]) }
  }

  private func hold(_ verb: HoldVerb, _ terms: HoldTerms = HoldTerms()) -> OperationFingerprint {
    OperationFingerprint(subject: subject, items: items, verb: verb, terms: terms)
  }

  /// Records outlive releases: computed by another program from what Operation.swift says.
  @Test func thatOfAnOperationWithoutTermsIsWhatItAlwaysWas() {
    let fingerprint = OperationFingerprint(
      subject: subject, items: items, attributes: ["model": "small"])
    let hex = fingerprint.bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    #expect(hex == "b2e1ac86bb03e84ceb93bfdab68b7788")
  }

  @Test func theKindIsInTheLastWordAlone() {
    let plain = words(OperationFingerprint(subject: subject, items: items))
    let all = HoldVerb.allCases.map { words(hold($0)) }
    for words in all { #expect(words[..<3] == plain[..<3] && words[3] != plain[3]) }
    #expect(Set(all.map { $0[3] }).count == HoldVerb.allCases.count)
  }

  @Test func everyTermCountsButTheReason() {
    let id = OperationID(high: 1, low: 2)
    let terms = HoldTerms(
      reservation: id, ttlMilliseconds: 1000, overrun: .overdraft(bound: 5), isFinal: true)
    let changes: [(inout HoldTerms) -> Void] = [
      { $0.reservation = OperationID(high: 1, low: 3) }, { $0.reservation = nil },
      { $0.ttlMilliseconds = 1001 }, { $0.ttlMilliseconds = nil }, { $0.overrun = .clamp },
      { $0.overrun = .reject }, { $0.overrun = .overdraft(bound: 6) }, { $0.isFinal = false },
      { $0.isFloor = true },
    ]
    var seen: Set<[UInt8]> = [hold(.settle, terms).bytes]
    for change in changes {
      var other = terms
      change(&other)
      #expect(seen.insert(hold(.settle, other).bytes).inserted, "\(other)")
    }
    var reworded = terms
    reworded.reason = "another word for it"
    #expect(hold(.settle, reworded) == hold(.settle, terms))
  }

  @Test func theMessageNamesBothThatTheLastWordHolds() {
    #expect(OperationFingerprint.Field.attributes.name == "attributes or terms")
  }
}
