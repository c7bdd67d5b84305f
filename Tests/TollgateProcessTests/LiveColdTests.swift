// Accounts that Redis does not hold yet, many at once: after a Redis loss, at a first deployment, in
// the morning. They wait for the ledger's word within their deadline; nobody who has quota left is
// denied, and no failure policy answers while nothing has failed.

import Foundation
import NIOConcurrencyHelpers
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Cold {
    private static let catalog = Stack.catalog.replacingOccurrences(
      of: "levels: [account, member]",
      with: "levels: [account, member]\nunknown_account: {plan: big}")

    private static func operations(_ accounts: Range<Int>) throws -> [OperationRecord] {
      var random = SystemRandomNumberGenerator()
      let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      return try accounts.map {
        OperationRecord(
          id: OperationID(time: time, using: &random), subject: try Subject("cold-\($0)"),
          items: [Item(feature: try Name("calls"), amount: 1)])
      }
    }

    private static func outcomes(_ answers: [DecisionRecord]) -> [String: Int] {
      var counts: [String: Int] = [:]
      for answer in answers {
        guard case .decision(let decision) = answer else {
          counts["\(answer)", default: 0] += 1
          continue
        }
        counts["\(decision.reason.name) \(decision.source.name)", default: 0] += 1
      }
      return counts
    }

    @Test func manyColdAccountsAtOnceAreAllAnsweredByTheStore() throws {
      let stack = try Stack(
        .init(
          sidecars: 1, extra: LiveTests.ExactLimit.patient, catalog: Self.catalog))
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      let most = Int(try #require(connection.welcome).recordsMax)
      let count = 500
      for round in 1...3 {
        var answers: [DecisionRecord] = []
        for start in stride(from: 0, to: count, by: most) {
          answers += try connection.operate(
            try Self.operations(start..<min(count, start + most)), deadline: 20_000)
        }
        #expect(Self.outcomes(answers) == ["ALLOWED redis": count], "round \(round)")
        // Then the accounts are known, but Redis has lost them. Ids minted before that was noticed
        // are too old.
        try stack.redis.connect().command("FLUSHALL")
        try eventually(within: .seconds(20), "every bucket is open again") {
          let answers = try connection.operate(try Self.operations(1000..<1032), deadline: 5_000)
          return Self.outcomes(answers) == ["ALLOWED redis": 32]
        }
      }
    }

    /// A morning: everybody at once, with too little time for all, some `open` and some `closed`.
    /// Nothing has failed, so no policy answers; who is not served yet is told to ask again, and is
    /// served. The time they have is measured in what this machine takes, and a machine that stands
    /// still has failed: at most what one such moment catches under way may be answered otherwise.
    @Test func aColdStartIsNoOutage() throws {
      let catalog = """
        levels: [account]
        unknown_account: {plan: all}
        features:
          calls: {metered: true, importance: money, unit: call}
          pings: {metered: false, importance: volume, unit: ping}
        plans:
          all:
            calls: [{id: calls.month, quota: 1000000000, per: month}]
            pings: [{id: pings.all, quota: 1000000000, per: month, on_failure: {open: 50}}]
        """
      let stack = try Stack(
        .init(sidecars: 1, extra: LiveTests.ExactLimit.patient, catalog: catalog))
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      let part = 1000
      var began = ContinuousClock.now
      _ = try connection.operate(try Self.operations(10_000..<10_000 + part), deadline: 20_000)
      let deadline = UInt32(max(500, 600 * (ContinuousClock.now - began).inSeconds))
      let count = 2000
      began = ContinuousClock.now
      var left = try Self.operations(0..<count).enumerated().map { index, record in
        var record = record
        if index % 2 == 1 { record.items = [Item(feature: try Name("pings"), amount: 1)] }
        return record
      }
      var rounds = 0
      var outcomes: [String: Int] = [:]
      while !left.isEmpty, ContinuousClock.now - began < .seconds(60) {
        rounds += 1
        var again: [OperationRecord] = []
        for start in stride(from: 0, to: left.count, by: part) {
          let asked = Array(left[start..<min(start + part, left.count)])
          for (record, answer) in zip(asked, try connection.operate(asked, deadline: deadline)) {
            switch answer {
            case .decision(let decision):
              outcomes["\(decision.reason.name) \(decision.source.name)", default: 0] += 1
            case .error(let code, _):
              outcomes[code.name, default: 0] += 1
              again.append(record)
            }
          }
        }
        left = again
      }
      let took = ContinuousClock.now - began
      print("cold start of \(count) in \(deadline) ms: \(took), \(rounds) rounds, \(outcomes)")
      let byPolicy = outcomes["ALLOWED_FAIL_OPEN policy"] ?? 0
      let caught = byPolicy + (outcomes["OUTCOME_UNKNOWN"] ?? 0)
      if caught > 0 { print(stack.logs) }
      #expect(left.isEmpty)
      #expect(outcomes["ALLOWED redis", default: 0] + byPolicy == count)
      #expect(caught <= count / 20)
      #expect(outcomes["STORE_UNAVAILABLE policy"] == nil)
    }

    /// The ledger is away and an account was never heard of: its policy is that of all plans.
    @Test func anAccountThatCannotBeLookedUpIsLetThroughWhereEveryPlanIsOpen() throws {
      let catalog = """
        levels: [account]
        unknown_account: {plan: free}
        features:
          pings: {metered: true, importance: volume, unit: ping}
          calls: {metered: true, importance: money, unit: call}
        plans:
          free:
            pings: [{id: p.free, quota: 1000, per: month, on_failure: {open: 3}}]
            calls: [{id: c.free, quota: 1000, per: month, on_failure: {open: 3}}]
          paid:
            pings: [{id: p.paid, quota: 1000, per: month, on_failure: {open: 50}}]
            calls: [{id: c.paid, quota: 1000, per: month}]
        """
      let stack = try Stack(.init(sidecars: 1, catalog: catalog))
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      _ = try connection.operate(try Self.operations(0..<1), deadline: 5_000)
      stack.ledger?.kill()
      func ask(_ feature: String) throws -> [String: Int] {
        var outcomes: [String: Int] = [:]
        for _ in 0..<4 {
          var record = try #require(try Self.operations(1..<2).first)
          record.items = [Item(feature: try Name(feature), amount: 1)]
          for (outcome, count) in Self.outcomes(try connection.operate([record], deadline: 1_000)) {
            outcomes[outcome, default: 0] += count
          }
        }
        return outcomes
      }
      #expect(
        try ask("pings") == ["ALLOWED_FAIL_OPEN policy": 3, "FALLBACK_EXHAUSTED policy": 1])
      #expect(try ask("calls") == ["STORE_UNAVAILABLE policy": 4])
      try stack.startLedger()
      try eventually(within: .seconds(30), "what was let through is counted") {
        stack.metric("tollgate_fallback_posted_total", sidecar: 0) == 3
      }
    }

    /// With several event loops, all that wait for one account go on when it is there.
    @Test func anAccountThatSeveralLoopsWaitForIsWaitedForOnce() throws {
      let stack = try Stack(
        .init(
          sidecars: 1, extra: LiveTests.ExactLimit.patient + "\nevent_loops: 3",
          catalog: Self.catalog))
      let connections = try (0..<12).map { _ in
        try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      }
      try stack.ledger?.pause()
      let answers = NIOLockedValueBox<[DecisionRecord]>([])
      let left = NIOLockedValueBox(connections.count)
      for connection in connections {
        let call = Borrowed(connection)
        Thread {
          let found = try? call.value.operate(try Self.operations(7..<8), deadline: 8_000)
          answers.withLockedValue { $0 += found ?? [] }
          left.withLockedValue { $0 -= 1 }
        }.start()
      }
      // Longer than any number of quick attempts takes.
      Thread.sleep(forTimeInterval: 1)
      #expect(answers.withLockedValue { $0.count } == 0)
      stack.ledger?.resume()
      try eventually(within: .seconds(20), "all are answered") { left.withLockedValue { $0 } == 0 }
      #expect(
        Self.outcomes(answers.withLockedValue { $0 }) == ["ALLOWED redis": connections.count])
    }

    @Test func booksAreServedByOneLedgerAtATime() throws {
      let stack = try Stack(.init(sidecars: 1))
      let files = FileManager.default
      let symbolic = stack.directory.file("symbolic")
      try files.createSymbolicLink(atPath: symbolic, withDestinationPath: stack.database)
      let hard = stack.directory.file("hard")
      try files.linkItem(atPath: stack.database, toPath: hard)
      let up = files.currentDirectoryPath.split(separator: "/").map { _ in "../" }.joined()
      for name in [stack.database, up + stack.database.dropFirst(), symbolic, hard] {
        let second = try ChildProcess(
          stack.binary,
          [
            "ledger", "--database", name, "--unix", stack.directory.file("other.sock"),
            "--token", "t", "--json",
          ])
        #expect(try second.wait(within: .seconds(20)) == .exited(4), "\(name)")
        let wanted = "another `tollgate ledger` serves these books"
        #expect(second.standardError.contains(wanted), "\(name)")
        #expect(second.standardOutput.contains("\"CONFLICT\""), "\(name)")
      }
      // Reports are no service.
      #expect(try stack.books("verify").status == .exited(0))
      // Its end frees them.
      try stack.restartLedger()
    }
  }
}

/// A connection used by one thread at a time: handed over before the thread starts.
// Safe: nobody but the thread touches it until the thread is done.
private final class Borrowed: @unchecked Sendable {
  let value: WireConnection
  init(_ value: WireConnection) { self.value = value }
}
