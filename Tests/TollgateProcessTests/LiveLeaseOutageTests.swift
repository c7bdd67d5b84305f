// Redis stands still under leased load: what is held answers on for as long as a lease may, then
// each limit's policy does, and when Redis goes on nothing of it is lost.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests.Leases {
  private static let outageCatalog = catalog(
    edits: "{id: edits.day, quota: 1000000000, per: day, on_failure: closed}",
    notes: "{id: notes.day, quota: 1000000000, per: day, on_failure: {open: 1000000000}}")

  @Test func aRedisThatStandsStillLeavesEachLimitToItsPolicy() throws {
    var random = SeededRandom.fromEnvironment("aRedisThatStandsStill")
    let stack = try Stack(
      Stack.Options(
        sidecars: 2, extra: "leases: {ttl_ms: 2000}", catalog: Self.outageCatalog,
        accounts: ["acme": "plan", "beta": "plan"]))
    var load = LeaseDriver.Options(callers: 4, subjects: ["acme/ann/7", "beta/bob/8"])
    load.pause = .milliseconds(1)
    // What a policy let through is not remembered where it was asked.
    load.replayRate = 0
    let edits = LeaseDriver(stack.endpoints, load, seed: &random)
    load.feature = "notes"
    let notes = LeaseDriver(stack.endpoints, load, seed: &random)
    let both = [edits, notes]
    func leased(_ driver: LeaseDriver) -> Int { driver.soFar.sources[.lease] ?? 0 }
    for round in 0..<(Self.rounds ?? 2) {
      let before = both.map(leased)
      try eventually(within: .seconds(60), "leases answer before round \(round)") {
        zip(both, before).allSatisfy { leased($0) > $1 + 500 }
      }
      try stack.redis.pause()
      let frozen = both.map(leased)
      try eventually(within: .seconds(5), "what is held answers on") {
        zip(both, frozen).allSatisfy { leased($0) > $1 + 20 }
      }
      // A lease is over after two seconds: then nobody answers from one.
      Thread.sleep(forTimeInterval: 2.5)
      let over = both.map(\.soFar)
      try eventually(within: .seconds(20), "policies answer") {
        edits.soFar.denied > over[0].denied + 20
          && notes.soFar.sources[.policy] ?? 0 > (over[1].sources[.policy] ?? 0) + 20
      }
      let then = both.map(\.soFar)
      #expect(then.map { $0.sources[.lease] } == over.map { $0.sources[.lease] })
      #expect(then[0].allowed == over[0].allowed, "a closed limit let something through")
      #expect(then[1].denied == 0, "an open limit denied")
      #expect(then[1].allowed > over[1].allowed)
      stack.redis.resume()
    }
    let before = both.map(leased)
    try eventually(within: .seconds(60), "leases answer again") {
      zip(both, before).allSatisfy { leased($0) > $1 + 200 }
    }
    var sum = LoadTally()
    for (driver, feature) in [(edits, "edits"), (notes, "notes")] {
      let tally = try driver.finish()
      for (account, units) in tally.admitted { sum.admitted["\(account) \(feature)"] = units }
      sum.violations += tally.violations
      sum.unresolved += tally.open
      print("\(feature): \(tally.allowed) allowed, \(tally.denied) denied, \(tally.sources)")
    }
    // Posted afterwards, by whoever let it through.
    try eventually(within: .seconds(60), "what was let through is posted") {
      (0..<2).allSatisfy { stack.metric("tollgate_fallback_pending", sidecar: $0) == 0 }
    }
    try Audit.check(stack, sum, subjects: ["acme", "beta"], touching: "edits")
  }
}
