// Accounts that change by time, on real processes: a plan that ends, a trial, a payment that is
// owed. Nothing is written at those instants; both sidecars must go by the clock of Redis.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Accounts {
    /// How far a sidecar's reading of Redis' clock may be off, on a machine that is busy.
    static let skew: Int64 = 250

    private static var now: WallTime {
      WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
    }

    private func json(_ stack: Stack, _ arguments: [String]) throws -> Document {
      let result = try stack.cli(arguments + ["--json"])
      return try Document(json: Array(result.output.utf8))
    }

    private func number(_ document: Document?) -> Int64? {
      if case .integer(let number)? = document { number } else { nil }
    }

    private func ask(
      _ stack: Stack, _ opcode: Opcode, _ subject: String, _ amount: Int64 = 1, sidecar: Int,
      _ random: inout SeededRandom
    ) throws -> Decision {
      // One that knows PAST_DUE by its name.
      let connection = try WireConnection(stack.endpoint(sidecar))
      try connection.hello(token: Stack.checkToken, features: .reservations)
      let record = OperationRecord(
        id: OperationID(time: Self.now, using: &random), subject: try Subject(subject),
        items: [Item(feature: try Name("calls"), amount: amount)])
      let answer = try connection.operate([record], as: opcode, deadline: 5000).first
      guard case .decision(let decision)? = answer else {
        throw StackFailure(description: "no decision: \(String(describing: answer))")
      }
      return decision
    }

    /// Asks both sidecars until each has denied for this reason; every answer before the instant
    /// must be an allowance, every one after it a denial.
    private func turns(
      _ stack: Stack, _ subject: String, at instant: Int64, to reason: Reason,
      _ random: inout SeededRandom
    ) throws {
      var denied: Set<Int> = []
      var asked = 0
      try eventually(within: .seconds(20), every: .milliseconds(5), "\(subject) is \(reason)") {
        for sidecar in 0..<2 {
          let decision = try ask(stack, .check, subject, sidecar: sidecar, &random)
          asked += 1
          if decision.isAllowed {
            #expect(decision.time.milliseconds < instant + Self.skew)
          } else {
            #expect(decision.reason == reason)
            #expect(decision.time.milliseconds >= instant - Self.skew)
            denied.insert(sidecar)
          }
        }
        return denied.count == 2
      }
      #expect(asked > 2, "it was asked before the instant, too")
    }

    private func settled(_ stack: Stack, _ account: String) throws -> Int64? {
      guard case .list(let rows)? = try json(stack, ["usage", account])["usage"] else { return nil }
      return number(rows.first { $0["limit"] == "calls.month" }?["settled"])
    }

    @Test func aPlanChangeUnderTrafficKeepsEveryCounter() throws {
      var random = SeededRandom.fromEnvironment("plan change")
      let stack = try Stack(.init(extra: ExactLimit.patient, accounts: ["acme": "big"]))
      let driver = LoadDriver(
        stack.endpoints, .init(threads: 4, deadlineMilliseconds: 2000), seed: &random)
      func reach(_ units: Int64) throws {
        let start = driver.soFar.units("acme", "calls")
        try eventually(within: .seconds(60), "\(units) more units") {
          driver.soFar.units("acme", "calls") >= start + units
        }
      }
      try reach(600)
      // Fewer than are used: nothing more is admitted, and nothing is forgotten.
      try stack.command(["account", "plan", "acme", "small", "--at", "now"])
      try eventually(within: .seconds(20), "the smaller plan denies") {
        driver.soFar.denied[.quotaExceeded, default: 0] >= 20
      }
      let used = try settled(stack, "acme")
      #expect(try #require(used) >= 600)
      try eventually(within: .seconds(20), "it denies for a while") {
        driver.soFar.denied[.quotaExceeded, default: 0] >= 200
      }
      #expect(try settled(stack, "acme") == used)
      try stack.command(["account", "plan", "acme", "big", "--at", "now"])
      try reach(100)
      let tally = try driver.finish()
      #expect(tally.violations.isEmpty, "\(tally.violations)")
      #expect(try settled(stack, "acme") == tally.units("acme", "calls"))
      try Audit.check(stack, tally, subjects: ["acme/alice"])
    }

    @Test func aPlanEndsAtItsInstantOnEverySidecar() throws {
      var random = SeededRandom.fromEnvironment("plan end")
      let stack = try Stack(.init(extra: ExactLimit.patient, accounts: ["acme": "big"]))
      #expect(try ask(stack, .consume, "acme", 501, sidecar: 0, &random).isAllowed)
      try stack.command(["account", "plan", "acme", "small", "--at", "2s"])
      let at = try #require(number(try json(stack, ["account", "show", "acme"])["next"]?["at_ms"]))
      try turns(stack, "acme", at: at, to: .quotaExceeded, &random)
      let show = try json(stack, ["account", "show", "acme"])
      #expect(show["plan"] == "small" && show["next"] == nil)
      #expect(try settled(stack, "acme") == 501)
    }

    @Test func aTrialEndsByItselfAndThroughALostRedis() throws {
      var random = SeededRandom.fromEnvironment("trial")
      let stack = try Stack(
        .init(persistence: .none, extra: ExactLimit.patient, accounts: ["acme": "small"]))
      try stack.command([
        "account", "plan", "acme", "big", "--until", "8s", "--then", "none", "--wait", "ledger",
      ])
      let next = try json(stack, ["account", "show", "acme"])["next"]
      let at = try #require(number(next?["at_ms"]))
      #expect(next?["ends_trial"] == true)
      #expect(try ask(stack, .consume, "acme", 501, sidecar: 0, &random).isAllowed)
      try stack.redis.connect().command("FLUSHALL")
      for index in 0..<2 { try stack.waitReady(index) }
      try Audit.touch(stack, ["acme"])
      if Self.now.milliseconds < at - Self.skew {
        try turns(stack, "acme", at: at, to: .unknownAccount, &random)
      }
      try eventually(within: .seconds(20), "the trial is over") {
        try ask(stack, .check, "acme", sidecar: 1, &random).reason == .unknownAccount
      }
      // What the trial used is used.
      try stack.command(["account", "plan", "acme", "small"])
      #expect(try ask(stack, .check, "acme", sidecar: 0, &random).reason == .quotaExceeded)
      #expect(try settled(stack, "acme") == 501)
    }

    @Test func graceEndsByTimeAndAPaymentOpensAtOnce() throws {
      var random = SeededRandom.fromEnvironment("past due")
      let stack = try Stack(.init(extra: ExactLimit.patient, accounts: ["acme": "big"]))
      #expect(try ask(stack, .consume, "acme", 3, sidecar: 1, &random).isAllowed)
      try stack.command(["account", "past-due", "acme", "--grace", "2s"])
      let owed = try json(stack, ["account", "show", "acme"])["past_due"]
      let ends = try #require(number(owed?["grace_ends_ms"]))
      #expect(number(owed?["since_ms"]) == ends - 2000)
      try turns(stack, "acme", at: ends, to: .pastDue, &random)
      let explained = try stack.cli(["explain", "acme", "calls=1"])
      #expect(explained.status == .exited(1))
      #expect(explained.output.contains("PAST_DUE"))
      // A late reminder of the outside system that its payment then came does not close it again.
      let event = ["--source-id", "stripe", "--source-version"]
      try stack.command(["account", "past-due", "acme", "--clear"] + event + ["7"])
      let cleared = Self.now
      for sidecar in 0..<2 {
        #expect(try ask(stack, .consume, "acme", sidecar: sidecar, &random).isAllowed)
      }
      #expect(Self.now - cleared < 5000)
      let late = try stack.command(
        ["account", "past-due", "acme", "--grace", "0s"] + event + ["6"])
      #expect(late.hasPrefix("ignored: older source version 6; 7 was applied"))
      #expect(try ask(stack, .consume, "acme", sidecar: 0, &random).isAllowed)
      #expect(try settled(stack, "acme") == 6)
    }

    /// Their configuration is all that there is of them before anything is burnt.
    @Test func grantsSurviveALostRedis() throws {
      let stack = try Stack(.init(sidecars: 1, persistence: .none, accounts: ["acme": "big"]))
      try stack.command(["grant", "add", "acme", "calls", "7", "--grant", "promo"])
      try stack.command(["grant", "add", "acme", "calls", "9", "--grant", "topup"])
      try stack.command([
        "grant", "void", "acme", "promo", "--reason", "mistake", "--wait", "ledger",
      ])
      try stack.redis.connect().command("FLUSHALL")
      try stack.waitReady(0)
      var rows: [Document] = []
      try eventually(within: .seconds(20), every: .milliseconds(50), "the account is back") {
        guard case .list(let grants)? = try json(stack, ["grant", "list", "acme"])["grants"] else {
          return false
        }
        rows = grants
        return grants.count == 2
      }
      #expect(Set(rows.map { $0["id"] }) == ["promo", "topup"])
      #expect(rows.first { $0["id"] == "promo" }?["state"] == "voided")
      let again = try stack.cli(["grant", "add", "acme", "calls", "8", "--grant", "promo"])
      #expect(again.status == .exited(4) && again.errors.contains("an id is given once"))
    }
  }
}
