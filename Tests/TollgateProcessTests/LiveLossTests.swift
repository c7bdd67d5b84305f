// Redis loses data under load: all of it (FLUSHALL), or what it wrote since an older snapshot. The
// fence sees it, the counters and the configuration come back from the ledger and from what the
// living sidecars hold, and no limit admits more than it says (promises 1, 3).

import Foundation
import Testing
import TollgateCore
import TollgateTesting

extension LiveTests {
  @Suite(.serialized) struct Loss {
    static let subjects = (0..<8).map { "tiny-\($0)/m" } + ["acme/alice", "acme/bob"]
    static let accounts = Dictionary(
      uniqueKeysWithValues: (0..<8).map { ("tiny-\($0)", "small") } + [("acme", "big")])

    private func lose(
      _ name: String, fault: (Stack, LoadDriver, inout SeededRandom) throws -> Void
    ) throws {
      var random = SeededRandom.fromEnvironment(name)
      let stack = try Stack(.init(sidecars: 2, accounts: Self.accounts))
      var load = LoadDriver.Options(subjects: Self.subjects, features: ["calls"], amounts: 1...5)
      load.pause = .milliseconds(1)
      // An answer's record may be among what is lost: then its id is too old, and nothing else.
      load.replayRate = 0.2
      load.recordsMayBeLost = true
      let driver = LoadDriver(stack.endpoints, load, seed: &random)
      var completed = 0
      for number in 0..<10 {
        try eventually(within: .seconds(40), "load passes before loss \(number)") {
          driver.soFar.decided > completed + 100
        }
        Thread.sleep(forTimeInterval: random.unit() * 0.2)
        try fault(stack, driver, &random)
        completed = driver.soFar.decided
      }
      try eventually(within: .seconds(40), "load passes after the last loss, up to the limits") {
        let sum = driver.soFar
        return sum.decided > completed + 100 && (sum.denied[.quotaExceeded] ?? 0) > 100
      }
      let tally = try driver.finish()
      for (account, plan) in Self.accounts where plan == "small" {
        #expect(tally.units(account, "calls") <= 500, "\(account)")
      }
      // The configuration came back: nobody was unknown, no feature was missing.
      #expect(Set(tally.denied.keys).subtracting([.quotaExceeded, .storeUnavailable]) == [])
      try Audit.check(stack, tally, subjects: Self.subjects, lossesAllowed: true)
      let shown = try stack.command(["account", "show", "tiny-0", "--json"])
      #expect(shown.contains("small"))
    }

    @Test func flushallUnderLoadTenTimes() throws {
      try lose("flushallUnderLoadTenTimes") { stack, _, _ in
        try stack.redis.connect().command("FLUSHALL")
      }
    }

    @Test func anOlderSnapshotPutBackUnderLoadTenTimes() throws {
      try lose("anOlderSnapshotPutBackUnderLoadTenTimes") { stack, driver, random in
        let snapshot = try stack.redis.snapshot()
        let completed = driver.soFar.decided
        try eventually(within: .seconds(40), "load passes after the snapshot") {
          driver.soFar.decided > completed + 60
        }
        Thread.sleep(forTimeInterval: random.unit() * 0.1)
        try stack.redis.rollBack(to: snapshot)
      }
    }
  }
}
