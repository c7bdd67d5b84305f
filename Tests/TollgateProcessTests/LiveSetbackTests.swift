// The ledger loses what it had: its file is gone, or an older copy was put back. Limits hold by what
// Redis counts, every sidecar says what happened, and the difference stays on the screen.

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Setbacks {
    private func consume(
      _ amount: Int64, _ stack: Stack, _ random: inout SeededRandom, subject: String = "acme/m"
    ) throws -> DecisionRecord {
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      let record = OperationRecord(
        id: OperationID(time: time, using: &random), subject: try Subject(subject),
        items: [Item(feature: try Name("calls"), amount: amount)])
      return try #require(try connection.operate([record], deadline: 5000).first)
    }

    private func admit(
      _ amount: Int64, _ stack: Stack, _ random: inout SeededRandom
    ) throws {
      guard case .decision(let decision) = try consume(amount, stack, &random), decision.isAllowed
      else { throw StackFailure(description: "not admitted\n\(stack.logs)") }
    }

    /// Tries 20 units at a time until Redis answers and denies; answers what was admitted.
    private func fill(_ stack: Stack, _ random: inout SeededRandom) throws -> Int64 {
      var admitted: Int64 = 0
      try eventually(within: .seconds(40), every: .milliseconds(100), "the limit is reached") {
        guard case .decision(let decision) = try consume(20, stack, &random),
          decision.source == .redis
        else { return false }
        if decision.isAllowed { admitted += 20 }
        return decision.reason == .quotaExceeded
      }
      return admitted
    }

    private func isDelivered(_ units: Int64, _ stack: Stack) throws {
      try eventually(within: .seconds(15), "all is delivered") {
        try Audit.totals(stack)["acme calls"] == units
      }
    }

    private func loseBooks(_ stack: Stack) {
      for suffix in ["", "-wal", "-shm"] {
        try? FileManager.default.removeItem(atPath: stack.database + suffix)
      }
    }

    private func tells(_ stack: Stack) throws {
      try eventually(within: .seconds(30), every: .milliseconds(200), "every sidecar tells") {
        try (0..<stack.options.sidecars).allSatisfy { index in
          let status = try stack.cli(["status"], sidecar: index)
          return status.status == .exited(1) && status.output.contains("went backwards")
            && (stack.metric("tollgate_ledger_setback_buckets", sidecar: index) ?? 0) > 0
        }
      }
      #expect(try stack.cli(["doctor"]).output.contains("restore its newest copy"))
      #expect(stack.logs.contains("went backwards"))
    }

    @Test func aLedgerThatLostItsFileFreesNoLimit() throws {
      var random = SeededRandom.fromEnvironment("setback, empty")
      let stack = try Stack(
        .init(buckets: 1, extra: "outbox: {tail: 0}", accounts: ["acme": "small"]))
      for _ in 0..<20 { try admit(20, stack, &random) }
      try isDelivered(400, stack)
      stack.ledger?.kill()
      loseBooks(stack)
      try stack.startLedger()
      #expect(try fill(stack, &random) == 100, "400 of 500 were used before")
      try tells(stack)
      // What the bill lacks is a number on the screen, and the books say why.
      // (A sidecar that had not yet heard of the acknowledgement presents what it retained: then
      // less is lost than the file held.)
      try eventually(within: .seconds(20), "reconcile shows what is lost") {
        guard let found = try Audit.reconcile(stack) else { return false }
        let redis = found.rows.reduce(0) { $0 + $1.redis }
        let ledger = found.rows.reduce(0) { $0 + $1.ledger }
        return redis == 500 && found.undelivered == 0 && found.difference == 500 - ledger
      }
      #expect(try Audit.verify(stack).lostSequences > 0)
      #expect(try Audit.verify(stack).findings == [])
      // And the ledger got the configuration in force again, from whoever kept the change or has it
      // in force: a lost Redis is put back from it.
      try eventually(within: .seconds(40), "both configurations are in the books") {
        try Audit.verify(stack).deltas >= 7
      }
    }

    /// What the outboxes still hold is sent again at once, though nothing new is admitted.
    @Test func anOlderCopyGetsWhatTheOutboxesHold() throws {
      var random = SeededRandom.fromEnvironment("setback, older copy")
      let stack = try Stack(.init(buckets: 1, accounts: ["acme": "small"]))
      for _ in 0..<10 { try admit(20, stack, &random) }
      try isDelivered(200, stack)
      stack.ledger?.kill()
      let copy = stack.directory.file("copy")
      for suffix in ["", "-wal", "-shm"] {
        try? FileManager.default.copyItem(atPath: stack.database + suffix, toPath: copy + suffix)
      }
      try stack.startLedger()
      for index in 0..<2 { try stack.waitReady(index) }
      for _ in 0..<10 { try admit(20, stack, &random) }
      try isDelivered(400, stack)
      stack.ledger?.kill()
      loseBooks(stack)
      for suffix in ["", "-wal", "-shm"] {
        try? FileManager.default.copyItem(atPath: copy + suffix, toPath: stack.database + suffix)
      }
      try stack.startLedger()
      try isDelivered(400, stack)
      #expect(try Audit.verify(stack).lostSequences == 0)
      #expect(stack.logs.contains("went backwards"))
      #expect(try fill(stack, &random) == 100)
      try eventually(within: .seconds(20), "one truth") {
        try Audit.reconcile(stack)?.difference == 0
      }
    }

    /// An account whose header is lost while units of it are still on their way.
    @Test func aLostHeaderDoesNotForgetUndeliveredUnits() throws {
      var random = SeededRandom.fromEnvironment("lost header")
      let stack = try Stack(.init(sidecars: 1, cutOff: 0, accounts: ["acme": "small"]))
      try admit(20, stack, &random)
      try isDelivered(20, stack)
      stack.ledgerProxy?.delay(toServer: .milliseconds(150))
      let redis = try stack.redis.connect()
      for round in 1...3 {
        for _ in 0..<5 { try admit(20, stack, &random) }
        for key in try redis.command("KEYS", "*:a:acme").strings {
          _ = try redis.command("DEL", key)
        }
        try eventually(within: .seconds(20), every: .milliseconds(50), "the account is back") {
          guard case .decision(let decision) = try consume(0, stack, &random) else { return false }
          guard decision.source == .redis else { return false }
          #expect(decision.items.first?.settled == Int64(20 + round * 100))
          return true
        }
      }
      stack.ledgerProxy?.delay()
      #expect(try fill(stack, &random) == 180)
      try eventually(within: .seconds(20), "one truth") {
        try Audit.reconcile(stack)?.difference == 0
      }
    }

    /// Both sidecars hold what nobody else does; the first to link must not close the epoch alone.
    @Test func aLedgerThatStartsWaitsForBothSidecars() throws {
      var random = SeededRandom.fromEnvironment("start after a loss")
      let stack = try Stack(.init(buckets: 1, accounts: ["acme": "big"]))
      try admit(1, stack, &random)
      try isDelivered(1, stack)
      stack.ledger?.kill()
      var units: Int64 = 1
      for index in 0..<2 {
        let connection = try WireConnection(stack.endpoint(index), token: Stack.checkToken)
        let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
        for _ in 0..<10 {
          let record = OperationRecord(
            id: OperationID(time: time, using: &random), subject: try Subject("acme/m"),
            items: [Item(feature: try Name("calls"), amount: 1)])
          if case .decision(let decision)? = try connection.operate([record], deadline: 5000).first,
            decision.isAllowed, decision.source == .redis
          {
            units += 1
          }
        }
      }
      #expect(units == 21)
      // The backlog is a number while the ledger is away.
      try eventually(within: .seconds(15), "the backlog is shown") {
        (0..<2).reduce(0.0) {
          $0 + (stack.metric("tollgate_outbox_entries", sidecar: $1) ?? 0)
        } >= 20
      }
      _ = try stack.redis.connect().command("FLUSHALL")
      try stack.startLedger()
      try Audit.touch(stack, ["acme/m"])
      try isDelivered(21, stack)
      for index in 0..<2 { try stack.waitReady(index) }
      try eventually(within: .seconds(20), "one truth") {
        try Audit.reconcile(stack)?.difference == 0
      }
      #expect(try Audit.verify(stack).lostSequences == 0)
    }
  }
}
