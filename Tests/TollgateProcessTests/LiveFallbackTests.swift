// What an open policy lets through on real processes: the caller's answer stays what it was, and
// what callers were told is what is billed, each unit once (promises 3, 4).

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Fallback {
    /// Three a month, and in an outage whatever comes.
    private static func catalog(allowance: Int) -> String {
      """
      levels: [account, member]
      features:
        calls: {metered: true, importance: money, unit: call}
      plans:
        tight:
          calls:
            - {id: calls.month, quota: 3, per: month, on_failure: {open: \(allowance)}}
        wide:
          calls:
            - {id: calls.month, quota: 1000000000, per: month, on_failure: {open: \(allowance)}}
      """
    }

    private static func record(
      _ subject: String, _ random: inout SeededRandom, amount: Int64 = 1
    ) throws -> OperationRecord {
      let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      return OperationRecord(
        id: OperationID(time: time, using: &random), subject: try Subject(subject),
        items: [Item(feature: try Name("calls"), amount: amount)])
    }

    private static func text(_ record: DecisionRecord?) -> String {
      switch record {
      case .decision(let decision)?: decision.reason.name
      case .error(let code, _)?: code.name
      case nil: "nothing"
      }
    }

    private static func counts(_ answers: [DecisionRecord]) -> [String: Int] {
      answers.reduce(into: [:]) { $0[text($1), default: 0] += 1 }
    }

    private static func isByStore(_ record: DecisionRecord) -> Bool {
      guard case .decision(let decision) = record else { return false }
      return decision.source == .redis
    }

    /// Asks until the store answers for each of them; no answer on the way may be another than the
    /// allowed ones, and none may change its mind.
    private static func settle(
      _ records: [OperationRecord], _ stack: Stack, expect: Set<String>
    ) throws {
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      var seen: Set<String> = []
      try eventually(within: .seconds(30), "the store answers for all") {
        let answers = try connection.operate(records, deadline: 500)
        seen.formUnion(counts(answers).keys)
        return answers.allSatisfy(isByStore)
      }
      // What may be asked again, and decides nothing.
      let open: Set = ["OUTCOME_UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "OVERLOADED"]
      #expect(seen.subtracting(open).subtracting(expect) == [], "\(seen)")
    }

    @Test func anAnswerOfTheOutageIsGivenAgainThroughItAndAfterIt() throws {
      var random = SeededRandom.fromEnvironment("given again")
      let stack = try Stack(
        .init(
          sidecars: 1, proxies: true, journals: true, catalog: Self.catalog(allowance: 5000),
          accounts: ["acme": "tight"]))
      let proxy = try #require(stack.redisProxy)
      var connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      for _ in 0..<3 {
        #expect(
          Self.text(try connection.operate([Self.record("acme", &random)], deadline: 2000).first)
            == "ALLOWED")
      }
      // From here on Redis would say QUOTA_EXCEEDED.
      proxy.mode = .refuse
      let records = try (0..<300).map { _ in try Self.record("acme", &random) }
      let first = Self.counts(try connection.operate(records, deadline: 300))
      #expect(first == ["ALLOWED_FAIL_OPEN": 300])
      let again = try connection.operate(records, deadline: 300)
      #expect(Self.counts(again) == ["ALLOWED_FAIL_OPEN": 300])
      for case .decision(let decision) in again { #expect(decision.replayed) }
      var other = records[0]
      other.items[0].amount = 2
      #expect(
        Self.text(try connection.operate([other], deadline: 300).first) == "IDEMPOTENCY_MISMATCH")
      #expect(
        Self.text(try connection.operate([other], as: .cancel, deadline: 300).first)
          == "IDEMPOTENCY_MISMATCH")

      // Taken back while Redis is away: at once, and for good.
      let early = Array(records[0..<20])
      #expect(
        Self.counts(try connection.operate(early, as: .cancel, deadline: 300)) == ["CANCELLED": 20])
      #expect(Self.counts(try connection.operate(early, deadline: 300)) == ["CANCELLED": 20])

      // Killed, and back while Redis is still away.
      try stack.restartSidecar(0)
      connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      #expect(
        Self.counts(try connection.operate(records, deadline: 300))
          == ["CANCELLED": 20, "ALLOWED_FAIL_OPEN": 280])

      // Taken back while the posts are under way.
      let racing = Array(records[20..<150])
      proxy.mode = .forward
      var open = racing
      let canceller = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      try eventually(within: .seconds(20), "all are cancelled") {
        let answers = try canceller.operate(open, as: .cancel, deadline: 50)
        #expect(
          answers.allSatisfy {
            ["CANCELLED", "OUTCOME_UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED"]
              .contains(Self.text($0))
          }, "\(Self.counts(answers))")
        open = zip(open, answers).filter { Self.text($1) != "CANCELLED" }.map(\.0)
        return open.isEmpty
      }
      try Self.settle(early + racing, stack, expect: ["CANCELLED"])
      try Self.settle(
        Array(records[150...]), stack, expect: ["ALLOWED_FAIL_OPEN", "ALLOWED_POSTED"])
      try eventually(within: .seconds(20), "nothing waits") {
        stack.metric("tollgate_fallback_pending", sidecar: 0) == 0
      }
      try Self.settle(early + racing, stack, expect: ["CANCELLED"])
      #expect(stack.metric("tollgate_fallback_refused", sidecar: 0) == 0)
      #expect(stack.metric("tollgate_fallback_journal_bytes", sidecar: 0) == 0)
      var tally = LoadTally()
      tally.admitted = ["acme calls": 3 + 150]
      try Audit.check(stack, tally, subjects: ["acme"])
    }

    /// Ids that Redis knows with another body are let through in an outage, because nobody can know.
    @Test func whatIsRefusedIsParkedAndHoldsUpNothing() throws {
      var random = SeededRandom.fromEnvironment("parked")
      let stack = try Stack(
        .init(
          sidecars: 1, proxies: true, journals: true,
          extra: "limits: {redis_slow_ms: 5000}", catalog: Self.catalog(allowance: 900),
          accounts: ["acme": "wide"]))
      let proxy = try #require(stack.redisProxy)
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      let known = try (0..<400).map { _ in try Self.record("acme", &random) }
      for start in stride(from: 0, to: 400, by: 50) {
        let answers = try connection.operate(Array(known[start..<start + 50]), deadline: 5000)
        #expect(Self.counts(answers) == ["ALLOWED": 50])
      }
      let poison = known.map { record in
        var other = record
        other.items[0].amount = 2
        return other
      }
      proxy.mode = .refuse
      let good = try (0..<100).map { _ in try Self.record("acme", &random) }
      #expect(
        Self.counts(try connection.operate(poison, deadline: 300)) == ["ALLOWED_FAIL_OPEN": 400])
      #expect(
        Self.counts(try connection.operate(good, deadline: 300)) == ["ALLOWED_FAIL_OPEN": 100])
      #expect(
        Self.text(try connection.operate([Self.record("acme", &random)], deadline: 300).first)
          == "FALLBACK_EXHAUSTED")
      proxy.mode = .forward
      try eventually(within: .seconds(20), "nothing waits any more") {
        stack.metric("tollgate_fallback_pending", sidecar: 0) == 0
      }
      #expect(stack.metric("tollgate_fallback_refused", sidecar: 0) == 400)
      #expect(stack.metric("tollgate_fallback_posted_total", sidecar: 0) == 100)
      // Both callers of a parked id keep their answers.
      #expect(
        Self.counts(try connection.operate(poison, deadline: 900)) == ["ALLOWED_FAIL_OPEN": 400])
      #expect(Self.counts(try connection.operate(known, deadline: 900)) == ["ALLOWED": 400])

      // The next outage has its whole allowance.
      proxy.mode = .refuse
      var tally = LoadTally()
      let more = try (0..<50).map { _ in try Self.record("acme", &random, amount: 18) }
      #expect(Self.counts(try connection.operate(more, deadline: 300)) == ["ALLOWED_FAIL_OPEN": 50])
      try stack.restartSidecar(0)
      #expect(try eventuallyMetric(stack, "tollgate_fallback_pending", 50))
      #expect(stack.metric("tollgate_fallback_refused", sidecar: 0) == 400, "kept in the journal")
      proxy.mode = .forward
      try stack.waitReady(0)
      try eventually(within: .seconds(20), "nothing waits any more") {
        stack.metric("tollgate_fallback_pending", sidecar: 0) == 0
      }
      let status = try stack.cli(["status"])
      #expect(status.output.contains("400 refused"))
      #expect(status.output.contains("\(poison[399].id.hex) acme calls=2: IDEMPOTENCY_MISMATCH"))
      tally.admitted = ["acme calls": 400 + 100 + 50 * 18]
      try Audit.check(stack, tally, subjects: ["acme"])

      let child = try #require(stack.sidecar(0))
      let began = ContinuousClock.now
      child.signal(SIGTERM)
      #expect(try child.wait(within: .seconds(15)) == .exited(0))
      let took = ContinuousClock.now - began
      print("drain with 400 parked: \(took)")
      #expect(took < .seconds(6))
    }

    private func eventuallyMetric(_ stack: Stack, _ name: String, _ value: Double) throws -> Bool {
      try eventually(within: .seconds(20), "\(name) is \(value)") {
        stack.metric(name, sidecar: 0) == value
      }
      return true
    }

    /// Redis comes and goes, sidecars are killed and come back, and callers insist on their answers.
    @Test func letThroughWhileRedisFlapsAndSidecarsDieIsBilledOnce() throws {
      var random = SeededRandom.fromEnvironment("flapping")
      let stack = try Stack(
        .init(
          sidecars: 2, proxies: true, journals: true, catalog: Self.catalog(allowance: 1_000_000),
          accounts: ["acme": "wide", "beta": "wide"]))
      let proxy = try #require(stack.redisProxy)
      var load = LoadDriver.Options(threads: 16, subjects: ["acme/a", "acme/b", "beta/c"])
      load.pause = .milliseconds(2)
      let driver = LoadDriver(stack.endpoints, load, seed: &random)
      let rounds = ProcessInfo.processInfo.environment["TOLLGATE_FLAPS"].flatMap { Int($0) } ?? 20
      var admitted: Double = 0
      for round in 0..<rounds {
        let before = driver.soFar.decided
        try eventually(within: .seconds(30), "load passes before outage \(round)") {
          driver.soFar.decided > before + 20
        }
        if random.chance(0.3) { proxy.cutNow() }
        proxy.mode = .refuse
        // Callers in doubt wait for Redis; the others are let through for as long as this lasts.
        Thread.sleep(forTimeInterval: 0.05 + random.unit() * 0.3)
        if random.chance(0.6) {
          let index = Int(random.next() % 2)
          admitted += stack.metric("tollgate_fallback_units_total", sidecar: index) ?? 0
          try stack.restartSidecar(index)
        }
        proxy.mode = .forward
        Thread.sleep(forTimeInterval: random.unit() * 0.3)
        if random.chance(0.3) { try stack.restartSidecar(Int(random.next() % 2)) }
      }
      for index in 0..<2 {
        try stack.waitReady(index)
        admitted += stack.metric("tollgate_fallback_units_total", sidecar: index) ?? 0
      }
      let tally = try driver.finish()
      try eventually(within: .seconds(30), "nothing waits any more") {
        (0..<2).allSatisfy { stack.metric("tollgate_fallback_pending", sidecar: $0) == 0 }
      }
      let log =
        (try? String(contentsOfFile: stack.directory.file("ledger.log"), encoding: .utf8)) ?? ""
      let epochs = log.components(separatedBy: "epoch issued").count - 1
      print(
        "flapping: \(rounds) outages, at least \(Int(admitted)) units let through in them, "
          + "\(epochs) epochs issued for \(stack.options.buckets + 1) buckets")
      #expect(admitted > 0, "nothing was let through: the test tests nothing")
      for index in 0..<2 {
        #expect(stack.metric("tollgate_fallback_refused", sidecar: index) == 0)
        #expect(stack.metric("tollgate_fallback_journal_damaged_total", sidecar: index) ?? 0 <= 1)
      }
      try Audit.check(stack, tally, subjects: ["acme/a", "beta/c"])
    }
  }
}
