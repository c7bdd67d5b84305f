// Refunds and adjustments through real processes: once in effect through retries, restarts and
// kills, and the three sums agree afterwards: what the client was told, Redis, and the books.

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Corrections {
    private static func now() -> WallTime {
      WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
    }

    private static func connect(_ stack: Stack, _ index: Int = 0) throws -> WireConnection {
      let connection = try WireConnection(stack.endpoint(index))
      try connection.hello(token: Stack.checkToken, features: .reservations)
      return connection
    }

    private static func consume(
      _ connection: WireConnection, _ subject: String, _ items: [(String, Int64)],
      _ random: inout SeededRandom
    ) throws -> OperationRecord {
      let record = OperationRecord(
        id: OperationID(time: now(), using: &random), subject: try Subject(subject),
        items: try items.map { Item(feature: try Name($0.0), amount: $0.1) })
      let answer = try #require(try connection.operate([record], deadline: 5000).first)
      guard case .decision(let decision) = answer, decision.isAllowed else {
        throw StackFailure(description: "not admitted: \(answer)")
      }
      return record
    }

    private static func refund(
      _ subject: String, of operation: OperationID, _ items: [(String, Int64)],
      _ random: inout SeededRandom
    ) throws -> RefundRecord {
      RefundRecord(
        id: OperationID(time: now(), using: &random), subject: try Subject(subject),
        corrects: operation,
        items: try items.map { Item(feature: try Name($0.0), amount: $0.1) }, reason: "a test")
    }

    private static func decision(_ record: DecisionRecord?) throws -> Decision {
      guard case .decision(let decision)? = record else {
        throw StackFailure(description: "\(String(describing: record))")
      }
      return decision
    }

    private static func error(_ record: DecisionRecord?) throws -> ErrorCode {
      guard case .error(let code, _)? = record else {
        throw StackFailure(description: "\(String(describing: record))")
      }
      return code
    }

    /// The sums of the client, Redis and the ledger.
    private static func balance(
      _ stack: Stack, _ expected: [String: Int64], location: SourceLocation = #_sourceLocation
    ) throws {
      var tally = LoadTally()
      tally.admitted = expected
      try Audit.check(stack, tally, subjects: ["acme/ann", "beta"], location: location)
    }

    @Test func aRefundIsMadeOnceAndPartsSumToTheWhole() throws {
      var random = SeededRandom.fromEnvironment("refunds")
      let stack = try Stack(.init(accounts: ["acme": "big", "beta": "big"]))
      let (one, two) = (try Self.connect(stack, 0), try Self.connect(stack, 1))
      let used = try Self.consume(one, "acme/ann", [("calls", 10), ("tokens", 100)], &random)
      let first = try Self.refund("acme/ann", of: used.id, [("calls", 4)], &random)
      let decision = try Self.decision(try one.refund(first))
      #expect(decision.reason == .refunded && !decision.replayed)
      #expect(decision.settlements == [.init(actual: -4, charged: -4)])
      // The same id, here and at another sidecar: the same answer, and no effect.
      for connection in [one, two] {
        var expected = decision
        expected.replayed = true
        #expect(try Self.decision(try connection.refund(first)) == expected)
      }
      // Another body under that id.
      var other = first
      other.items[0].amount = 5
      #expect(try Self.error(try two.refund(other)) == .idempotencyMismatch)
      // More than is left: what is left; then nothing.
      let second = try Self.refund("acme/ann", of: used.id, [("calls", 99)], &random)
      #expect(try Self.decision(try two.refund(second)).settlements.map(\.charged) == [-6])
      let third = try Self.refund("acme/ann", of: used.id, [("calls", 1)], &random)
      #expect(try Self.error(try one.refund(third)) == .nothingToRefund)
      // All that is left, by the account.
      let rest = try Self.refund("acme", of: used.id, [], &random)
      let last = try Self.decision(try two.refund(rest))
      #expect(last.derived.map(\.text) == ["tokens"])
      #expect(last.settlements.map(\.charged) == [-100])
      // Somebody else's operation is nobody's.
      let foreign = try Self.refund("beta", of: used.id, [], &random)
      #expect(try Self.error(try one.refund(foreign)) == .nothingToRefund)
      try Self.balance(stack, ["acme calls": 0, "acme tokens": 0])
    }

    /// Many at once, by two sidecars, each asking for more than its share.
    @Test func refundsThatRaceNeverGiveBackMoreThanThereWas() throws {
      var random = SeededRandom.fromEnvironment("racing refunds")
      let stack = try Stack(.init(accounts: ["acme": "big", "beta": "big"]))
      let connections = [try Self.connect(stack, 0), try Self.connect(stack, 1)]
      let used = try Self.consume(connections[0], "acme/ann", [("calls", 100)], &random)
      for number in 0..<40 {
        let record = try Self.refund("acme/ann", of: used.id, [("calls", 7)], &random)
        _ = try connections[number % 2].send(refund: record, deadline: 30_000)
      }
      var back: Int64 = 0
      var refused = 0
      for connection in connections {
        for _ in 0..<20 {
          switch try connection.answer(within: 32_000) {
          case .decision(let decision)?: back += decision.settlements.reduce(0) { $0 + $1.charged }
          case .error(.nothingToRefund, _)?: refused += 1
          case let answer: Issue.record("\(String(describing: answer))")
          }
        }
      }
      #expect(back == -100)
      // Fourteen times seven and a rest of two.
      #expect(refused == 40 - 15)
      try Self.balance(stack, ["acme calls": 0])
    }

    @Test func aRefundWaitsForTheLedgerAndFindsWhatWasUsedBeforeItsRestart() throws {
      var random = SeededRandom.fromEnvironment("refund after a restart")
      let stack = try Stack(.init(accounts: ["acme": "big", "beta": "big"]))
      let connection = try Self.connect(stack)
      let used = try Self.consume(connection, "acme/ann", [("calls", 10)], &random)
      stack.ledger?.kill()
      let late = try Self.consume(connection, "acme/ann", [("calls", 3)], &random)
      // What is left cannot be known.
      let record = try Self.refund("acme/ann", of: late.id, [], &random)
      let refusal = try Self.error(try connection.refund(record, deadline: 400))
      #expect([.unavailable, .outcomeUnknown].contains(refusal))
      try stack.startLedger()
      try eventually(within: .seconds(20), every: .milliseconds(100), "it is refunded") {
        guard case .decision(let decision)? = try connection.refund(record, deadline: 2000) else {
          return false
        }
        return decision.settlements.map(\.charged) == [-3]
      }
      let older = try Self.refund("acme/ann", of: used.id, [("calls", 2)], &random)
      #expect(
        try Self.decision(try connection.refund(older, deadline: 5000)).settlements.map(\.charged)
          == [-2])
      try Self.balance(stack, ["acme calls": 8])
    }

    @Test func aSidecarKilledAmidRefundsLeavesEachOfThemMadeOnceOrNot() throws {
      var random = SeededRandom.fromEnvironment("kill amid refunds")
      let stack = try Stack(.init(accounts: ["acme": "big", "beta": "big"]))
      var expected: Int64 = 0
      for round in 0..<4 {
        try stack.waitReady(0)
        let connection = try Self.connect(stack)
        let used = try Self.consume(connection, "acme/ann", [("calls", 20)], &random)
        var records: [RefundRecord] = []
        for _ in 0..<5 {
          let record = try Self.refund("acme/ann", of: used.id, [("calls", 2)], &random)
          records.append(record)
          _ = try connection.send(refund: record, deadline: 5000)
        }
        // Anywhere: before the ledger is asked, between the calls, after the answer.
        usleep(UInt32.random(in: 0...(20_000 * UInt32(round + 1)), using: &random))
        stack.sidecar(0)?.kill()
        // The other sidecar is asked for each under its own id.
        let other = try Self.connect(stack, 1)
        for record in records {
          let decision = try Self.decision(try other.refund(record, deadline: 15_000))
          #expect(decision.settlements.map(\.charged) == [-2])
        }
        expected += 10
        try stack.startSidecar(0)
      }
      try Self.balance(stack, ["acme calls": expected])
    }

    @Test func aRefundOutlivesALossOfRedisAndIsNotMadeAgain() throws {
      var random = SeededRandom.fromEnvironment("refund and a loss")
      let stack = try Stack(.init(accounts: ["acme": "big", "beta": "big"]))
      let connection = try Self.connect(stack)
      let used = try Self.consume(connection, "acme/ann", [("calls", 10)], &random)
      let record = try Self.refund("acme/ann", of: used.id, [("calls", 4)], &random)
      #expect(try Self.decision(try connection.refund(record)).reason == .refunded)
      try stack.redis.connect().command("FLUSHALL")
      // Its record is gone; the books, or the horizon of the records, keep it from a second effect.
      try eventually(within: .seconds(20), every: .milliseconds(100), "it is answered") {
        switch try connection.refund(record, deadline: 3000) {
        case .decision(let decision)?:
          #expect(decision.replayed && decision.settlements.map(\.charged) == [-4])
          return true
        case .error(.idTooOld, _)?: return true
        default: return false
        }
      }
      let more = try Self.refund("acme/ann", of: used.id, [], &random)
      try eventually(within: .seconds(20), every: .milliseconds(100), "the rest is refunded") {
        guard case .decision(let decision)? = try connection.refund(more, deadline: 3000) else {
          return false
        }
        return decision.settlements.map(\.charged) == [-6]
      }
      try Self.balance(stack, ["acme calls": 0])
    }

    // MARK: - Grants, rates, holds

    private static let rich = """
      levels: [account, member]
      features:
        tokens: {metered: true, importance: money, unit: token, reservable: true}
        spend: {metered: true, importance: money, unit: micro, reservable: true}
      rates:
        - {id: small, feature: tokens, into: spend, when: {model: small}, price: 150, per: 1000}
        - {id: other, feature: tokens, into: spend, price: 900, per: 1000}
      plans:
        pro:
          tokens: []
          spend:
            - {id: spend.included, credit: {every: month, amount: 100}, overage: allow}
            - {id: spend.cap, spend_cap: 1000, per: month}
      """

    @Test func whatRatesMadeOfItGoesBackToTheGrantsItCameFrom() throws {
      var random = SeededRandom.fromEnvironment("refunds of priced use")
      let stack = try Stack(.init(catalog: Self.rich, accounts: ["acme": "pro", "beta": "pro"]))
      try stack.command([
        "grant", "add", "acme", "spend", "50", "--grant", "promo", "--priority", "10", "--reason",
        "x",
      ])
      let connection = try Self.connect(stack)
      func consume() throws -> OperationID {
        let record = OperationRecord(
          id: OperationID(time: Self.now(), using: &random), subject: try Subject("acme/ann"),
          items: [Item(feature: try Name("tokens"), amount: 1_000)],
          attributes: ["model": "small"])
        let decision = try Self.decision(try connection.operate([record], deadline: 5000).first)
        #expect(decision.isAllowed && decision.derived.map(\.text) == ["spend"])
        return record.id
      }
      func back(_ operation: OperationID, _ items: [(String, Int64)]) throws -> Decision {
        let record = try Self.refund("acme/ann", of: operation, items, &random)
        let decision = try Self.decision(try connection.refund(record))
        var expected = decision
        expected.replayed = true
        #expect(try Self.decision(try connection.refund(record)) == expected)
        return decision
      }
      // 150 each: promo 50 and included 100, then overage.
      let (first, second) = (try consume(), try consume())
      #expect(try Audit.burnt(stack) == ["promo": 50, "spend.included": 100])
      let part = try back(second, [("tokens", 333)])
      #expect(part.settlements.map(\.charged) == [-333, -49])
      #expect(part.burns == [.init(item: 1, grant: nil, amount: -49)])
      let half = try back(first, [("tokens", 500)])
      #expect(half.settlements.map(\.charged) == [-500, -75])
      #expect(half.burns.map(\.grant?.text) == ["spend.included"])
      #expect(try Audit.burnt(stack) == ["promo": 50, "spend.included": 25])
      let rest = try back(first, [])
      #expect(rest.derived.map(\.text) == ["tokens", "spend"])
      #expect(rest.burns.map(\.amount) == [-25, -50])
      #expect(try Audit.burnt(stack) == ["promo": 0, "spend.included": 0])
      try Self.balance(stack, ["acme tokens": 667, "acme spend": 101])
      // The books go by the same grants, and Redis is rebuilt from them.
      try stack.redis.connect().command("FLUSHALL")
      try Self.balance(stack, ["acme tokens": 667, "acme spend": 101])
      #expect(try Audit.burnt(stack) == ["promo": 0, "spend.included": 0])
    }

    @Test func aSettleIsRefundedAndAReservationNamesItsSettles() throws {
      var random = SeededRandom.fromEnvironment("refund of a settle")
      let stack = try Stack(.init(catalog: Self.rich, accounts: ["acme": "pro", "beta": "pro"]))
      let hold = OperationID(time: Self.now(), using: &random)
      let settle = OperationID(time: Self.now(), using: &random)
      try stack.command([
        "reserve", "acme/ann", "tokens=1000", "--id", hold.hex, "--attribute", "model=small",
      ])
      try stack.command(["settle", "acme/ann", hold.hex, "tokens=600", "--id", settle.hex])
      let connection = try Self.connect(stack)
      let wrong = try Self.refund("acme/ann", of: hold, [], &random)
      guard case .error(.nothingToRefund, let text)? = try connection.refund(wrong) else {
        Issue.record("a reservation was refunded")
        return
      }
      #expect(text.contains(settle.hex), "\(text)")
      let right = try Self.refund("acme/ann", of: settle, [("tokens", 400)], &random)
      let decision = try Self.decision(try connection.refund(right))
      #expect(decision.settlements.map(\.charged) == [-400, -60])
      try Self.balance(stack, ["acme tokens": 200, "acme spend": 30])
    }

    /// What a cap clamped: a third of the units is a third of the money, and the books stay sound.
    @Test func aClampedSettleComesBackInProportion() throws {
      var random = SeededRandom.fromEnvironment("refund of a clamped settle")
      let catalog = Self.rich.replacing("price: 150, per: 1000", with: "price: 15, per: 1")
        .replacing("spend_cap: 1000", with: "spend_cap: 1400")
      let stack = try Stack(.init(catalog: catalog, accounts: ["acme": "pro", "beta": "pro"]))
      let hold = OperationID(time: Self.now(), using: &random)
      let settle = OperationID(time: Self.now(), using: &random)
      try stack.command([
        "reserve", "acme/ann", "tokens=90", "--id", hold.hex, "--attribute", "model=small",
      ])
      try stack.command(["settle", "acme/ann", hold.hex, "tokens=200", "--id", settle.hex])
      try Self.balance(stack, ["acme tokens": 200, "acme spend": 1500])
      let connection = try Self.connect(stack)
      var back: [Decision.Settlement] = []
      var left: (tokens: Int64, spend: Int64) = (200, 1500)
      for units: Int64 in [67, 67, 66] {
        let record = try Self.refund("acme/ann", of: settle, [("tokens", units)], &random)
        let decision = try Self.decision(try connection.refund(record))
        var expected = decision
        expected.replayed = true
        #expect(try Self.decision(try connection.refund(record)) == expected)
        let money = try #require(decision.settlements.last)
        back.append(money)
        left = (left.tokens - units, left.spend + money.charged)
        try Self.balance(stack, ["acme tokens": left.tokens, "acme spend": left.spend])
      }
      #expect(back.map(\.charged) == [-502, -503, -495])
      #expect(back.map(\.actual) == [-1005, -1005, -990])
      #expect(try Audit.burnt(stack) == ["spend.included": 0])
    }

    /// A debt that a grant has paid: refunded in two parts, the units go back to that grant.
    @Test func whatWasOwedAndPaidSinceGoesBackToTheGrant() throws {
      var random = SeededRandom.fromEnvironment("refund of a debt that was paid")
      let catalog = Self.rich.replacing("price: 150, per: 1000", with: "price: 15, per: 1")
        .replacing("spend_cap: 1000", with: "spend_cap: 500")
        .replacing("amount: 100", with: "amount: 1000")
      let stack = try Stack(.init(catalog: catalog, accounts: ["acme": "pro", "beta": "pro"]))
      let hold = OperationID(time: Self.now(), using: &random)
      let settle = OperationID(time: Self.now(), using: &random)
      try stack.command([
        "reserve", "acme/ann", "tokens=100", "--id", hold.hex, "--attribute", "model=small",
        "--overrun", "overdraft=200",
      ])
      try stack.command(["settle", "acme/ann", hold.hex, "tokens=110", "--id", settle.hex])
      try stack.command([
        "grant", "add", "acme", "spend", "1000", "--grant", "late", "--reason", "x",
      ])
      let connection = try Self.connect(stack)
      let record = OperationRecord(
        id: OperationID(time: Self.now(), using: &random), subject: try Subject("acme/ann"),
        items: [Item(feature: try Name("tokens"), amount: 1)], attributes: ["model": "small"])
      _ = try connection.operate([record], deadline: 5000)
      // What was owed, and what was used now.
      #expect(try Audit.burnt(stack) == ["spend.included": 1000, "late": 165])
      // One that paid nothing of it, and is burnt last.
      try stack.command([
        "grant", "add", "acme", "spend", "1000", "--grant", "other", "--priority", "200",
        "--reason", "x",
      ])
      let more = OperationRecord(
        id: OperationID(time: Self.now(), using: &random), subject: try Subject("acme/ann"),
        items: [Item(feature: try Name("tokens"), amount: 60)], attributes: ["model": "small"])
      _ = try connection.operate([more], deadline: 5000)
      for units: Int64 in [4, 106] {
        let refund = try Self.refund("acme/ann", of: settle, [("tokens", units)], &random)
        let decision = try Self.decision(try connection.refund(refund))
        #expect(decision.settlements.map(\.charged) == [-units, -15 * units])
        var expected = decision
        expected.replayed = true
        #expect(try Self.decision(try connection.refund(refund)) == expected)
        let burnt: [String: Int64] =
          units == 4
          ? ["spend.included": 1000, "late": 940, "other": 65]
          : ["spend.included": 0, "late": 850, "other": 65]
        #expect(try Audit.burnt(stack) == burnt)
      }
      try Self.balance(stack, ["acme tokens": 61, "acme spend": 915])
    }

    // MARK: - The command line

    @Test func anAdjustmentMovesTheBillTheCountersAndTheAuditOnce() throws {
      var random = SeededRandom.fromEnvironment("adjustments")
      let stack = try Stack(.init(accounts: ["acme": "small", "beta": "big"]))
      let connection = try Self.connect(stack)
      let used = try Self.consume(connection, "acme/ann", [("calls", 490)], &random)
      let id = OperationID(time: Self.now(), using: &random).hex
      let words = ["adjust", "acme", "calls", "-90", "--reason", "goodwill"]
      #expect(try stack.command(words + ["--dry-run"]).contains("dry-run"))
      for _ in 0..<2 { try stack.command(words + ["--id", id]) }
      // 400 are billed now, and the month has room for 100; the day is as it was.
      _ = try Self.consume(connection, "acme/bob", [("calls", 100)], &random)
      let back = try stack.cli([
        "adjust", "acme", "calls", "-491", "--operation", used.id.hex, "--reason", "too much",
      ])
      #expect(back.status == .exited(4), "\(back.errors)")
      try stack.command([
        "adjust", "acme", "calls", "-10", "--operation", used.id.hex, "--reason", "part",
      ])
      let audit = try stack.command(["audit-log", "acme"])
      #expect(audit.contains("goodwill") && audit.contains("part"), "\(audit)")
      try Self.balance(stack, ["acme calls": 490])
    }

    @Test func historyTopAndTailShowWhatIsUsed() throws {
      var random = SeededRandom.fromEnvironment("history")
      let stack = try Stack(.init(accounts: ["acme": "small", "beta": "big"]))
      let connection = try Self.connect(stack)
      let tail = try stack.start(["tail", "--json", "--limit", "2", "--account", "acme"])
      try eventually(within: .seconds(20), every: .milliseconds(100), "tail shows decisions") {
        let used = try Self.consume(connection, "acme/ann", [("calls", 1)], &random)
        _ = try connection.refund(
          try Self.refund("acme/ann", of: used.id, [], &random), deadline: 5000)
        return !tail.isRunning
      }
      #expect(tail.standardOutput.contains("\"kind\":\"consume\""))
      #expect(tail.standardOutput.contains("\"subject\":\"acme/ann\""))
      _ = try Self.consume(connection, "acme/ann", [("calls", 40)], &random)
      let top = try stack.command(["top", "--once"])
      #expect(top.contains("acme") && top.contains("calls.month"), "\(top)")
      try Self.balance(stack, ["acme calls": 40])
      let history = try stack.command([
        "usage", "acme", "--history", "--by", "member,feature", "--json",
      ])
      #expect(history.contains("\"acme/ann\""), "\(history)")
      struct Reply: Decodable {
        struct Row: Decodable {
          var charged: Int64
          var refunded: Int64
        }
        var rows: [Row]
      }
      let rows = try JSONDecoder().decode(Reply.self, from: Data(history.utf8)).rows
      #expect(rows.map { $0.charged + $0.refunded } == [40])
      #expect((rows.first?.refunded ?? 0) < 0)
    }
  }
}

extension WireConnection {
  /// Sends one refund; answers its correlation id.
  func send(refund record: RefundRecord, deadline: UInt32) throws -> UInt64 {
    let id = nextCorrelation()
    var buffer = ByteBuffer()
    buffer.writeFrame(
      .refund, RefundBatch([record]), correlation: id, deadlineMilliseconds: deadline)
    try send(buffer)
    return id
  }

  /// The next answer, of whichever request.
  func answer(within milliseconds: Int) throws -> DecisionRecord? {
    try DecisionBatch.decode(try frame(.decisions, within: milliseconds)).records.first
  }

  func refund(_ record: RefundRecord, deadline: UInt32 = 5000) throws -> DecisionRecord? {
    _ = try send(refund: record, deadline: deadline)
    return try answer(within: Int(deadline) + 2000)
  }
}
