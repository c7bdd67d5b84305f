// Zones and anchors through everything: a real sidecar, ledger and Redis. What `usage` and
// `explain` say, what the ledger bills and what Redis counts follow one calendar (promises 5, 7).

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Calendars {
    static let catalog = """
      levels: [account, member]
      features:
        calls: {metered: true, importance: money, unit: call}
      plans:
        zoned:
          calls:
            - {id: calls.month, quota: 500, per: month}
            - {id: calls.cycle, quota: 450, per: anchored month}
            - {id: calls.member, quota: 400, per: week, level: member}
        turns:
          calls:
            - {id: calls.turn, quota: 3, per: anchored 5s}
      """
    static let hour: Int64 = 3_600_000

    private static var now: WallTime {
      WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
    }

    /// The month of a place whose clock is always so many hours ahead, by counting days.
    private static func month(_ now: WallTime, ahead hours: Int64) -> (name: String, Period) {
      let local = CivilDate.text(now + hours * hour)
      let year = Int64(local.prefix(4)) ?? 0
      let month = Int(local.dropFirst(5).prefix(2)) ?? 0
      func first(_ year: Int64, _ month: Int) -> WallTime {
        WallTime(
          milliseconds: CivilDate.days(year: year, month: month, day: 1) * 24 * hour
            - hours * hour)
      }
      let end = month == 12 ? first(year + 1, 1) : first(year, month + 1)
      return (String(local.prefix(7)), Period(start: first(year, month), end: end))
    }

    private func stack(_ sidecars: Int = 2) throws -> Stack {
      try Stack(
        .init(
          sidecars: sidecars, persistence: .none, extra: ExactLimit.patient, catalog: Self.catalog))
    }

    private func ask(
      _ stack: Stack, _ opcode: Opcode, _ subject: String, _ amount: Int64,
      _ random: inout SeededRandom
    ) throws -> Decision {
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      let record = OperationRecord(
        id: OperationID(time: Self.now, using: &random), subject: try Subject(subject),
        items: [Item(feature: try Name("calls"), amount: amount)])
      guard
        case .decision(let decision)? = try connection.operate(
          [record], as: opcode, deadline: 5000
        ).first
      else { throw StackFailure(description: "no decision") }
      return decision
    }

    /// What an operator is shown of one limit: by `usage` and by `explain`, which must agree.
    private struct Shown: Equatable {
      var start: Int64?
      var reset: Int64?
      var settled: Int64?
    }

    private func shown(_ stack: Stack, _ subject: String, _ limit: String) throws -> Shown {
      func rows(_ arguments: [String], _ key: String) throws -> Shown {
        // `explain` ends with 1 where it would be denied.
        let answer = try stack.cli(
          arguments + ["--json"], sidecar: stack.options.sidecars - 1
        ).output
        let document = try Document(json: Array(answer.utf8))
        guard case .list(let rows)? = document[key],
          let row = rows.first(where: { $0["limit"] == .string(limit) })
        else { throw StackFailure(description: "\(limit) is not shown by \(arguments)") }
        func number(_ document: Document?) -> Int64? {
          if case .integer(let number)? = document { number } else { nil }
        }
        return Shown(
          start: number(row["period"]?["start_ms"]), reset: number(row["reset_ms"]),
          settled: number(row["settled"]))
      }
      var usage = Shown()
      // A period may end between the two.
      try eventually(within: .seconds(5), "usage and explain agree about \(limit)") {
        usage = try rows(["usage", subject], "usage")
        return try rows(["explain", subject, "calls=1"], "steps") == usage
      }
      return usage
    }

    private struct Statement: Decodable {
      struct Line: Decodable { var charged: Int64 }
      var start: Int64
      var end: Int64
      var lines: [Line]
    }

    private func statement(_ stack: Stack, _ account: String, _ month: String?) throws -> Statement
    {
      let result = try stack.books("statement", [account] + (month.map { ["--month", $0] } ?? []))
      return try JSONDecoder().decode(Statement.self, from: Data(result.output.utf8))
    }

    private func agree(_ stack: Stack, _ admitted: [String: Int64], _ subject: String) throws {
      var tally = LoadTally()
      tally.admitted = admitted
      try Audit.check(stack, tally, subjects: [subject])
    }

    @Test func anAccountLivesInTheMonthOfItsZoneThroughLossAndMove() throws {
      var random = SeededRandom.fromEnvironment("calendar")
      let stack = try stack()
      // Fourteen hours ahead, with a cycle that began a little before the hour an age ago.
      try stack.command([
        "account", "set", "kiri", "--plan", "zoned", "--zone", "Pacific/Kiritimati", "--anchor",
        "2024-01-31T09:59:00Z",
      ])
      let (name, month) = Self.month(Self.now, ahead: 14)
      let decision = try ask(stack, .consume, "kiri/ann", 30, &random)
      #expect(decision.isAllowed)
      let first = try shown(stack, "kiri/ann", "calls.month")
      #expect(
        first
          == Shown(
            start: month.start.milliseconds, reset: month.end.milliseconds, settled: 30))
      // In Kiritimati the anchor is the 31st, one minute before midnight.
      let cycle = try shown(stack, "kiri/ann", "calls.cycle")
      let end = try #require(cycle.reset).advanced(by: Int(14 * Self.hour))
      #expect(CivilDate.text(WallTime(milliseconds: end)).hasSuffix("T23:59:00Z"))
      #expect(try #require(cycle.reset) <= month.end.milliseconds)
      try agree(stack, ["kiri calls": 30], "kiri/ann")
      for named in [name, nil] {
        let bill = try statement(stack, "kiri", named)
        #expect(bill.lines.map(\.charged) == [30])
        #expect(bill.start == month.start.milliseconds && bill.end == month.end.milliseconds)
      }

      try stack.redis.connect().command("FLUSHALL")
      for index in 0..<2 { try stack.waitReady(index) }
      try Audit.touch(stack, ["kiri/ann"])
      try eventually(within: .seconds(20), every: .milliseconds(50), "both sidecars show it") {
        try stack.cli(["usage", "kiri"], sidecar: 1).status == .exited(0)
      }
      #expect(try shown(stack, "kiri/ann", "calls.month") == first)
      #expect(try shown(stack, "kiri/ann", "calls.cycle") == cycle)
      #expect(try shown(stack, "kiri/ann", "calls.member").settled == 30)

      // A move to the other side of the date line forgives nothing and moves no reset.
      let moved = Self.now
      try stack.command(["account", "set", "kiri", "--zone", "America/Los_Angeles"])
      try eventually(within: .seconds(10), "the move is in force") { Self.now > moved + 3100 }
      #expect(try ask(stack, .consume, "kiri/ann", 5, &random).isAllowed)
      for limit in ["calls.month", "calls.cycle", "calls.member"] {
        #expect(try shown(stack, "kiri/ann", limit).settled == 35, "\(limit)")
      }
      #expect(try shown(stack, "kiri/ann", "calls.month").reset == month.end.milliseconds)
      try agree(stack, ["kiri calls": 35], "kiri/ann")
      #expect(try statement(stack, "kiri", name).lines.map(\.charged) == [35])
    }

    @Test func anAnchoredWindowOpensAgainAtItsBoundary() throws {
      var random = SeededRandom.fromEnvironment("anchored window")
      let stack = try stack(1)
      let anchor = WallTime(milliseconds: 1_700_000_001_000)
      try stack.command([
        "account", "set", "turn", "--plan", "turns", "--anchor", "2023-11-14T22:13:21Z",
      ])
      try Audit.touch(stack, ["turn"])
      // A turn may end between two calls; then the next one is looked at.
      var denied: Decision?
      try eventually(within: .seconds(30), "a turn is used up") {
        let decision = try ask(stack, .consume, "turn", 1, &random)
        if !decision.isAllowed { denied = decision }
        return denied != nil
      }
      let decision = try #require(denied)
      let reset = try #require(decision.items.first?.reset)
      #expect((reset - anchor) % 5000 == 0)
      #expect(reset > decision.time && reset <= decision.time + 5000)
      #expect(decision.retryAfter == reset - decision.time)
      #expect(try ask(stack, .check, "turn", 1, &random).items.first?.reset == reset)
      var opened: Decision?
      try eventually(within: .seconds(20), every: .milliseconds(5), "the turn is over") {
        let decision = try ask(stack, .check, "turn", 1, &random)
        if decision.isAllowed { opened = decision }
        return opened != nil
      }
      let time = try #require(opened).time
      #expect(time >= reset)
      #expect(time < reset + 1000)
    }

    @Test func aRestartBeginsAnAnchoredPeriodAndLeavesTheBill() throws {
      var random = SeededRandom.fromEnvironment("restart")
      let stack = try stack(1)
      try stack.command(["account", "set", "fresh", "--plan", "zoned"])
      #expect(try ask(stack, .consume, "fresh/ann", 440, &random).isAllowed == false)
      #expect(try ask(stack, .consume, "fresh/ann", 390, &random).isAllowed)
      let month = try shown(stack, "fresh", "calls.month")
      let restarted = Self.now
      try stack.command(["account", "set", "fresh", "--restart"])
      try eventually(within: .seconds(10), every: .milliseconds(20), "a new cycle") {
        try shown(stack, "fresh", "calls.cycle").settled == 0
      }
      let cycle = try shown(stack, "fresh", "calls.cycle")
      #expect(try #require(cycle.start) >= restarted.milliseconds + 2000)
      #expect(try shown(stack, "fresh", "calls.month") == month)
      // The cycle has room again, the month has not.
      #expect(try ask(stack, .consume, "fresh", 111, &random).isAllowed == false)
      #expect(try ask(stack, .consume, "fresh", 110, &random).isAllowed)
      #expect(try shown(stack, "fresh", "calls.cycle").settled == 110)
      try agree(stack, ["fresh calls": 500], "fresh/ann")
    }
  }
}
