// Kill -9 at random moments under load: afterwards the count of the clients, the counters in Redis
// and the books are one number, no delta is missing and none is there twice (promises 1, 3, 5).

import Foundation
import Testing
import TollgateTesting

extension LiveTests {
  @Suite(.serialized) struct Crash {
    /// TOLLGATE_KILLS; 25 is the bar.
    static let kills =
      ProcessInfo.processInfo.environment["TOLLGATE_KILLS"].flatMap { Int($0) } ?? 25
    static let subjects = ["acme/alice", "acme/bob", "beta", "gamma/x", "tiny/t"]
    static let accounts = ["acme": "big", "beta": "big", "gamma": "big", "tiny": "small"]

    /// Load, `kills` faults at random moments, and the audit.
    private func crash(
      _ name: String, _ options: Stack.Options, tune: (inout LoadDriver.Options) -> Void = { _ in },
      fault: (Stack, inout SeededRandom) throws -> Void, after: (Stack) throws -> Void = { _ in }
    ) throws {
      var random = SeededRandom.fromEnvironment(name)
      var options = options
      options.accounts = Self.accounts
      let stack = try Stack(options)
      var load = LoadDriver.Options(subjects: Self.subjects, features: ["calls", "tokens"])
      load.pause = .milliseconds(2)
      tune(&load)
      let driver = LoadDriver(stack.endpoints, load, seed: &random)
      var completed = 0
      for number in 0..<Self.kills {
        // Load must have passed since the last fault, or the kill would test nothing.
        do {
          try eventually(within: .seconds(30), "load passes before fault \(number)") {
            driver.soFar.decided > completed + 20
          }
        } catch {
          print("\(driver.soFar.errors) \(driver.soFar.denied)\n\(stack.logs)")
          throw error
        }
        Thread.sleep(forTimeInterval: random.unit() * 0.15)
        try fault(stack, &random)
        completed = driver.soFar.decided
      }
      try after(stack)
      let tally = try driver.finish()
      #expect(tally.units("tiny", "calls") <= 500)
      #expect(tally.units("tiny", "tokens") <= 700)
      try Audit.check(stack, tally, subjects: Self.subjects)
    }

    @Test func killedSidecars() throws {
      try crash("killedSidecars", .init(sidecars: 3)) { stack, random in
        try stack.restartSidecar(Int(random.next() % 3))
      }
    }

    @Test func killedLedger() throws {
      try crash("killedLedger", .init(sidecars: 2)) { stack, _ in try stack.restartLedger() }
    }

    @Test func killedRedis() throws {
      try crash("killedRedis", .init(sidecars: 2)) { stack, _ in try stack.redis.restart() }
    }

    /// The bar holds for each of the two connections: so many cuts of Redis's and as many of the
    /// ledger's, each of a request that had passed.
    @Test func connectionsCutAfterTheRequestPassed() throws {
      try crash(
        "connectionsCutAfterTheRequestPassed", .init(sidecars: 2, proxies: true)
      ) { stack, random in
        let proxies = [stack.redisProxy, stack.ledgerProxy]
        for proxy in random.chance(0.5) ? proxies : proxies.reversed() {
          let proxy = try #require(proxy)
          let before = proxy.counters.cut
          proxy.cutNow()
          try eventually(within: .seconds(30), "a reply was lost") { proxy.counters.cut > before }
        }
      } after: { stack in
        let cuts = [stack.redisProxy?.counters.cut ?? 0, stack.ledgerProxy?.counters.cut ?? 0]
        print("cut after the request passed: \(cuts[0]) of Redis, \(cuts[1]) of the ledger")
        #expect(cuts.allSatisfy { $0 >= Self.kills })
      }
    }
  }
}
