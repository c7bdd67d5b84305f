// Lines of PITFALLS that only show between processes, by number: a budget shared by several
// sidecars, stores that are slow, refuse or lose an answer, bytes that lie about their length.

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

/// One connection, and operations with ids of their own.
final class Caller {
  let connection: WireConnection
  private var random: SeededRandom

  init(_ stack: Stack, _ index: Int = 0, seed: UInt64 = .random(in: .min ... .max)) throws {
    connection = try WireConnection(stack.endpoint(index), token: Stack.checkToken)
    random = SeededRandom(seed: seed)
  }

  func record(_ subject: String, _ items: [(String, Int64)]) throws -> OperationRecord {
    let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
    return OperationRecord(
      id: OperationID(time: time, using: &random), subject: try Subject(subject),
      items: try items.map { Item(feature: try Name($0.0), amount: $0.1) })
  }

  func answer(
    _ record: OperationRecord, as opcode: Opcode = .consume, deadline: UInt32 = 5000
  ) throws -> DecisionRecord {
    let answers = try connection.operate([record], as: opcode, deadline: deadline)
    guard let answer = answers.first else { throw StackFailure(description: "no answer") }
    return answer
  }

  func consume(_ subject: String, _ items: (String, Int64)...) throws -> Decision {
    let answer = try answer(record(subject, items))
    guard case .decision(let decision) = answer else {
      throw StackFailure(description: "no decision: \(answer)")
    }
    return decision
  }
}

extension LiveTests {
  @Suite(.serialized) struct Pitfalls {
    private static let patient = LiveTests.ExactLimit.patient

    private static func catalog(_ limits: String, levels: String = "[account, member]") -> String {
      """
      levels: \(levels)
      features:
        calls: {metered: true, importance: money, unit: call}
        pings: {metered: false, importance: volume, unit: ping}
      plans:
        plan:
          calls: [\(limits)]
          pings: [{id: pings.rate, rate: 30, per: hour, burst: 30}]
      """
    }

    private static func tally(_ units: Int64, _ account: String = "acme") -> LoadTally {
      var tally = LoadTally()
      tally.admitted["\(account) calls"] = units
      return tally
    }

    // MARK: Overspend

    @Test func pitfall02_threeSidecarsShareOneBudget() throws {
      let stack = try Stack(
        .init(
          sidecars: 3, persistence: .none, extra: Self.patient,
          catalog: Self.catalog("{id: calls.month, quota: 60, per: month}"),
          accounts: ["acme": "plan"]))
      let callers = try (0..<3).map { try Caller(stack, $0) }
      var calls = 0
      var pings = 0
      for number in 0..<120 {
        let caller = callers[number % 3]
        if try caller.consume("acme/m", ("calls", 1)).isAllowed { calls += 1 }
        if try caller.consume("acme/m", ("pings", 1)).isAllowed { pings += 1 }
      }
      // Not 60 and 30 for each of them; the rate refills one in two minutes.
      #expect(calls == 60)
      #expect((30...31).contains(pings))
      try Audit.check(stack, Self.tally(60), subjects: ["acme/m"])
    }

    @Test func pitfall03_whatIsInFlightIsChargedBeforeItIsAnswered() throws {
      let stack = try Stack(
        .init(
          sidecars: 1, persistence: .none, extra: Self.patient,
          catalog: Self.catalog("{id: calls.month, quota: 50, per: month}"),
          accounts: ["acme": "plan"]))
      let caller = try Caller(stack)
      _ = try caller.consume("acme/m", ("calls", 0))
      let redis = try stack.redis.connect()
      // The delta is born in the step that counts, so the outbox is as long as what is counted.
      let outbox = try #require(try redis.command("KEYS", "*:a:acme").strings.first)
        .replacing("a:acme", with: "out")
      let before = try #require(try redis.command("XLEN", outbox).integer)
      // All 200 are on their way at once, before any of them can be answered.
      try stack.redis.pause()
      var buffer = ByteBuffer()
      for _ in 0..<200 {
        buffer.writeFrame(
          .consume, OperationBatch([try caller.record("acme/m", [("calls", 1)])]),
          correlation: caller.connection.nextCorrelation(), deadlineMilliseconds: 20_000)
      }
      try caller.connection.send(buffer)
      try eventually("all are in flight") {
        stack.metric("tollgate_in_flight", sidecar: 0) == 200
      }
      stack.redis.resume()
      var allowed: Int64 = 0
      for _ in 0..<200 {
        let frame = try caller.connection.frame(.decisions, within: 20_000)
        guard case .decision(let decision)? = try DecisionBatch.decode(frame).records.first,
          decision.isAllowed
        else { continue }
        allowed += 1
        let counted = try redis.command("XLEN", outbox).integer ?? 0
        #expect(counted - before >= allowed, "an answer was given before it was counted")
      }
      #expect(allowed == 50)
      try Audit.check(stack, Self.tally(50), subjects: ["acme/m"])
    }

    // MARK: Lost usage

    @Test func pitfall14_aFullQueueDeniesAndAKilledProcessLosesNothing() throws {
      let stack = try Stack(
        .init(
          sidecars: 1, buckets: 1, extra: "outbox: {entries: 40, tail: 0}\n" + Self.patient,
          accounts: ["acme": "big"]))
      var caller = try Caller(stack)
      _ = try caller.consume("acme/m", ("calls", 0))
      stack.ledger?.kill()
      var admitted: Int64 = 0
      var refused = 0
      while refused < 20, admitted < 1000 {
        let decision = try caller.consume("acme/m", ("calls", 1))
        if decision.isAllowed {
          admitted += 1
          #expect(refused == 0)
        } else {
          #expect(decision.reason == .outboxFull)
          refused += 1
        }
      }
      #expect((1...40).contains(admitted))
      // What waits is in Redis, not in the process.
      stack.sidecar(0)?.kill()
      try stack.startLedger()
      try stack.startSidecar(0)
      try stack.waitReady(0)
      caller = try Caller(stack)
      try eventually(within: .seconds(20), "there is room again") {
        try caller.consume("acme/m", ("calls", 1)).isAllowed
      }
      try Audit.check(stack, Self.tally(admitted + 1), subjects: ["acme/m"])
    }

    /// Runs SQL on the ledger's file behind its back.
    private static func tamper(_ stack: Stack, _ sql: String) throws {
      let child = try ChildProcess(
        "python3",
        [
          "-c",
          "import sqlite3,sys; c=sqlite3.connect(sys.argv[1],timeout=20); "
            + "c.executescript(sys.argv[2]); c.close()", stack.database, sql,
        ])
      guard try child.wait(within: .seconds(30)) == .exited(0) else {
        throw StackFailure(description: child.standardError)
      }
    }

    @Test func pitfall15_aSyncThatFailedKeepsItsDeltas() throws {
      let stack = try Stack(
        .init(sidecars: 1, buckets: 1, extra: Self.patient, accounts: ["acme": "big"]))
      let caller = try Caller(stack)
      _ = try caller.consume("acme/m", ("calls", 1))
      // The last write of the ledger's transaction fails: the answer is a typed error.
      try Self.tamper(
        stack,
        "CREATE TRIGGER refuse BEFORE INSERT ON cursors BEGIN SELECT raise(ABORT, 'full'); END;")
      for _ in 0..<30 { #expect(try caller.consume("acme/m", ("calls", 2)).isAllowed) }
      let log = stack.directory.file("ledger.log")
      try eventually(within: .seconds(20), "the ledger has refused more than once") {
        let text = try String(contentsOfFile: log, encoding: .utf8)
        return text.split(separator: "\n").count { $0.contains("a transaction failed") } >= 3
      }
      // So does a disk that is full. Who looks is told that nothing is written, and what to do.
      try eventually(within: .seconds(20), every: .milliseconds(100), "status says so") {
        let status = try stack.cli(["status"])
        return status.status == .exited(1) && status.output.contains("refuses to write: ")
      }
      let doctor = try stack.cli(["doctor"])
      #expect(doctor.status == .exited(1))
      #expect(doctor.output.contains("refuses to write: "))
      #expect(doctor.output.contains("→ see its log and its disk"))
      let redis = try stack.redis.connect()
      let waiting = try redis.command("KEYS", "*:out").strings.map {
        try redis.command("XLEN", $0).integer ?? 0
      }
      #expect((waiting.max() ?? 0) >= 30)
      try stack.restartSidecar(0)
      try Self.tamper(stack, "DROP TRIGGER refuse;")
      try eventually(within: .seconds(20), every: .milliseconds(100), "all is well again") {
        try stack.cli(["status"]).status == .exited(0)
      }
      try Audit.check(stack, Self.tally(61), subjects: ["acme/m"])
    }

    @Test func pitfall17_aLedgerThatIsAwayIsSeenAndDropsNothing() throws {
      let stack = try Stack(
        .init(sidecars: 1, buckets: 1, extra: Self.patient, accounts: ["acme": "big"]))
      let caller = try Caller(stack)
      _ = try caller.consume("acme/m", ("calls", 1))
      stack.ledger?.kill()
      for _ in 0..<25 { #expect(try caller.consume("acme/m", ("calls", 2)).isAllowed) }
      // What waits is looked up when it is asked for.
      #expect((stack.metric("tollgate_retained_deltas", sidecar: 0) ?? 0) >= 25)
      try eventually("the outage and its age are seen") {
        stack.metric("tollgate_ledger_up", sidecar: 0) == 0
          && (stack.metric("tollgate_metering_lag_milliseconds", sidecar: 0) ?? 0) > 0
      }
      // A ledger's outage unreadies nobody: the sidecar answers, and says that it is degraded.
      let ready = try #require(stack.http("/readyz", sidecar: 0))
      #expect(ready.contains(" 200 ") && ready.contains("degraded"))
      try stack.startLedger()
      try Audit.check(stack, Self.tally(51), subjects: ["acme/m"])
      try eventually("nothing waits") {
        stack.metric("tollgate_retained_deltas", sidecar: 0) == 0
      }
    }

    // MARK: One truth

    private struct Shown: Decodable {
      struct Row: Decodable {
        var feature: String
        var limit: String?
        var settled: Int64
      }
      var usage: [Row]
    }

    private struct Billed: Decodable {
      struct Line: Decodable {
        var feature: String
        var charged: Int64
      }
      var lines: [Line]
    }

    @Test func pitfall40_whatIsShownIsWhatIsBilled() throws {
      let limits = """
        {id: calls.month, quota: 40, per: month}, \
        {id: calls.soft, quota: 10, per: day, enforcement: soft}, \
        {id: calls.shadow, quota: 20, per: hour, enforcement: shadow}, \
        {id: calls.member, quota: 30, per: month, level: member}
        """
      let stack = try Stack(
        .init(
          sidecars: 2, persistence: .none, extra: Self.patient, catalog: Self.catalog(limits),
          accounts: ["acme": "plan"]))
      let callers = try (0..<2).map { try Caller(stack, $0) }
      var admitted: Int64 = 0
      var reasons: Set<Reason> = []
      for number in 0..<40 {
        let record = try callers[number % 2].record("acme/m\(number % 3)", [("calls", 3)])
        // Each of them twice, under one id.
        let answers = try callers.map { try $0.answer(record) }
        guard case .decision(let decision) = answers[number % 2] else { continue }
        reasons.insert(decision.reason)
        if decision.isAllowed { admitted += 3 }
      }
      try stack.command(["reset", "acme", "calls.month", "--reason", "goodwill"])
      for caller in callers where try caller.consume("acme/m0", ("calls", 3)).isAllowed {
        admitted += 3
      }
      #expect(reasons == [.allowedShadow, .allowedSoft, .allowed, .quotaExceeded])
      try Audit.check(stack, Self.tally(admitted), subjects: ["acme/m0"])
      let shown = try JSONDecoder().decode(
        Shown.self, from: Data(try stack.command(["usage", "acme", "--json"]).utf8))
      let billed = try JSONDecoder().decode(
        Billed.self, from: Data(try stack.books("statement", ["acme"]).output.utf8))
      // The limit over the billing month is held against the very counter that is billed.
      #expect(shown.usage.filter { $0.limit == "calls.month" }.map(\.settled) == [admitted])
      #expect(billed.lines.filter { $0.feature == "calls" }.map(\.charged) == [admitted])
    }

    // MARK: Operations

    @Test func pitfall41_aSlowRedisHoldsNobodyOnceItIsKnownToBeSlow() throws {
      let stack = try Stack(.init(sidecars: 1, accounts: ["acme": "big"]))
      let caller = try Caller(stack)
      _ = try caller.consume("acme/m", ("calls", 1))
      var doubtful: [OperationRecord] = []
      func ask() throws -> Bool {
        let record = try caller.record("acme/m", [("calls", 1)])
        switch try caller.answer(record, deadline: 1000) {
        case .decision(let decision):
          #expect(decision.source == .policy && !decision.isAllowed)
          return true
        case .error(let code, _):
          #expect(code == .outcomeUnknown)
          doubtful.append(record)
          return false
        }
      }
      // Not down: connected, and silent.
      try stack.redis.pause()
      while try !ask() { #expect(doubtful.count < 5) }
      #expect(stack.metric("tollgate_breaker_open", sidecar: 0) == 1)
      let began = ContinuousClock.now
      var atOnce = 0
      for _ in 0..<60 where try ask() { atOnce += 1 }
      print("redis slow: \(atOnce) of 60 answered at once, in \(ContinuousClock.now - began)")
      // The others probed whether it is back, one at a time.
      #expect(atOnce >= 50)
      #expect(stack.metric("tollgate_redis_up", sidecar: 0) == 1)
      stack.redis.resume()
      var admitted: Int64 = 1
      for record in doubtful {
        try eventually(within: .seconds(20), "it is believed again") {
          guard case .decision(let decision) = try caller.answer(record, deadline: 1000),
            decision.source == .redis
          else { return false }
          admitted += decision.isAllowed ? 1 : 0
          return true
        }
      }
      try eventually("the breaker is closed") {
        stack.metric("tollgate_breaker_open", sidecar: 0) == 0
      }
      try Audit.check(stack, Self.tally(admitted), subjects: ["acme/m"])
    }

    @Test func pitfall43_aReloadLeaksNothingAndHalfAFileChangesNothing() throws {
      let stack = try Stack(
        .init(
          sidecars: 1, persistence: .none, extra: Self.patient,
          catalog: Self.catalog("{id: calls.month, quota: 100, per: month}"),
          accounts: ["acme": "plan"]))
      let caller = try Caller(stack)
      _ = try caller.consume("acme/m", ("calls", 1))
      let pid = try #require(stack.sidecar(0)?.pid)
      let redis = try stack.redis.connect()
      func open() throws -> (files: Int, connections: Int) {
        (
          try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd").count,
          try redis.command("CLIENT", "LIST").string?.split(separator: "\n").count ?? 0
        )
      }
      let before = try open()
      for amount in 101...130 {
        let file = try stack.directory.write(
          "next.yaml", Self.catalog("{id: calls.month, quota: \(amount), per: month}"))
        try stack.command(["catalog", "apply", file, "--reason", "test"])
      }
      try eventually("no connection is left behind") {
        let now = try open()
        return now.files <= before.files && now.connections <= before.connections
      }
      // The first half is a good catalog with another amount; the rest of it was cut off, or is
      // wrong in two places.
      let shown = try stack.command(["catalog", "show", "--json"])
      let good = Self.catalog("{id: calls.month, quota: 7, per: month}")
      let torn = String(good.prefix(good.count - 20))
      let wrong = good + "\n    nonsense:\n      - {id: x, quota: -1, per: fortnight}"
      for text in [torn, wrong] {
        let file = try stack.directory.write("bad.yaml", text)
        let result = try stack.cli(["catalog", "apply", file, "--reason", "test"])
        #expect(result.status != .exited(0))
      }
      #expect(try stack.command(["catalog", "show", "--json"]) == shown)
      let decision = try caller.consume("acme/m", ("calls", 1))
      #expect(decision.items[0].remaining == 128)
    }

    @Test func pitfall46_aStoreErrorThatIsNotTransientDoesNotEndDelivery() throws {
      let stack = try Stack(
        .init(sidecars: 1, buckets: 1, extra: Self.patient, accounts: ["acme": "big"]))
      let caller = try Caller(stack)
      _ = try caller.consume("acme/m", ("calls", 1))
      stack.ledger?.kill()
      for _ in 0..<20 { #expect(try caller.consume("acme/m", ("calls", 1)).isAllowed) }
      let redis = try stack.redis.connect()
      let bucket = try #require(
        try redis.command("KEYS", "*:a:acme").strings.first?.replacing("a:acme", with: ""))
      // The outbox is of another type for as long as somebody's mistake lasts: every read of the
      // shipper is refused, and not as "try again".
      try redis.command("RENAME", "\(bucket)out", "\(bucket)aside")
      try redis.command("SET", "\(bucket)out", "mistake")
      try redis.command("CONFIG", "RESETSTAT")
      try stack.startLedger()
      try eventually(within: .seconds(20), "the shipper was refused again and again") {
        let text = try redis.command("INFO", "errorstats").string ?? ""
        guard
          let line = text.split(whereSeparator: \.isNewline)
            .first(where: { $0.hasPrefix("errorstat_WRONGTYPE:count=") })
        else { return false }
        return Int(line.split(separator: "=")[1]) ?? 0 >= 5
      }
      try redis.command("DEL", "\(bucket)out")
      try redis.command("RENAME", "\(bucket)aside", "\(bucket)out")
      try Audit.check(stack, Self.tally(21), subjects: ["acme/m"])
    }

    @Test func pitfall47_oneCounterIsExplainedAndResetAndNoOther() throws {
      let stack = try Stack(
        .init(
          sidecars: 1, persistence: .none, extra: Self.patient,
          accounts: ["acme": "small", "beta": "small"]))
      let caller = try Caller(stack)
      for account in ["acme", "beta"] {
        #expect(try caller.consume("\(account)/m", ("calls", 500)).isAllowed)
        #expect(try !caller.consume("\(account)/m", ("calls", 1)).isAllowed)
      }
      let denied = try stack.cli(["explain", "acme/m", "calls=1"])
      #expect(denied.status == .exited(1))
      #expect(denied.output.contains("calls.month") && denied.output.contains("QUOTA_EXCEEDED"))
      try stack.command(["reset", "acme", "calls.month", "--reason", "pitfall 47"])
      #expect(try stack.cli(["explain", "acme/m", "calls=1"]).status == .exited(0))
      #expect(try stack.cli(["explain", "beta/m", "calls=1"]).status == .exited(1))
      #expect(try caller.consume("acme/m", ("calls", 50)).isAllowed)
      #expect(try !caller.consume("beta/m", ("calls", 1)).isAllowed)
      #expect(try stack.command(["audit-log"]).contains("pitfall 47"))
      var tally = Self.tally(550)
      tally.admitted["beta calls"] = 500
      try Audit.check(stack, tally, subjects: ["acme/m", "beta/m"])
    }

    // MARK: Protocol

    @Test func pitfall49_aRequestDrippedByteByByteIsAnswered() throws {
      let stack = try Stack(
        .init(sidecars: 1, persistence: .none, extra: Self.patient, accounts: ["acme": "big"]))
      let ids = try Caller(stack)
      let slow = try WireConnection(stack.endpoint(0))
      var buffer = ByteBuffer()
      buffer.writeFrame(
        Hello(role: .check, client: "drip", token: Stack.checkToken), correlation: 1)
      buffer.writeFrame(
        .consume, OperationBatch([try ids.record("acme/m", [("calls", 5)])]), correlation: 2,
        deadlineMilliseconds: 5000)
      for byte in buffer.readableBytesView { try slow.send(bytes: [byte]) }
      _ = try slow.frame(.welcome, within: 5000)
      let answer = try DecisionBatch.decode(try slow.frame(.decisions, within: 5000)).records
      guard case .decision(let decision)? = answer.first else {
        throw StackFailure(description: "no decision: \(answer)")
      }
      #expect(decision.isAllowed && decision.items[0].settled == 5)
    }

    @Test func pitfall49_anAnnouncedLengthTakesNoMemory() throws {
      let stack = try Stack(
        .init(sidecars: 1, persistence: .none, extra: Self.patient, accounts: ["acme": "big"]))
      let before = try #require(stack.sidecar(0)?.residentBytes)
      var held: [WireConnection] = []
      for _ in 0..<200 {
        let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
        // A header that announces the largest frame there may be, and nothing after it.
        var header = ByteBuffer()
        header.writeInteger(UInt16(0x4754), endianness: .little)
        header.writeBytes([1, 0x11, 0, 0, 0, 0])
        header.writeInteger(UInt32((1 << 20) - 24), endianness: .little)
        header.writeInteger(UInt32(0), endianness: .little)
        header.writeInteger(UInt64(9), endianness: .little)
        try connection.send(header)
        held.append(connection)
      }
      #expect(try Caller(stack).consume("acme/m", ("calls", 1)).isAllowed)
      let grown = try #require(stack.sidecar(0)?.residentBytes) - before
      print("announced: 200 MiB on 200 connections, memory grew by \(grown >> 10) KiB")
      #expect(grown < 50 << 20)
    }

    @Test func pitfall51_anAnswerThatCameTooLateIsNobodyElses() throws {
      let stack = try Stack(
        .init(
          sidecars: 1, extra: Self.patient,
          catalog: Self.catalog("{id: calls.member, quota: 1000000, per: month, level: member}"),
          accounts: ["acme": "plan"]))
      let caller = try Caller(stack)
      let members = 40
      for member in 0..<members {
        let decision = try caller.consume("acme/m\(member)", ("calls", Int64(member) + 1))
        #expect(decision.items[0].settled == Int64(member) + 1)
      }
      try stack.redis.pause()
      let late = try (0..<members).map { try caller.record("acme/m\($0)", [("calls", 1000)]) }
      let unanswered = try caller.connection.operate(late, deadline: 60)
      for answer in unanswered {
        switch answer {
        // Its call was written, or it still waited for one: neither is an answer of the store.
        case .error(.outcomeUnknown, _): break
        case .decision(let decision) where decision.source == .policy && !decision.isAllowed: break
        default: Issue.record("\(answer)")
        }
      }
      stack.redis.resume()
      // The same connections to Redis go on: each answer is of its own operation.
      var admitted: Int64 = (1...Int64(members)).reduce(0, +)
      for (member, record) in late.enumerated() {
        guard case .decision(let decision) = try caller.answer(record) else {
          Issue.record("member \(member) was not decided")
          continue
        }
        #expect(decision.isAllowed && decision.items[0].settled == Int64(member) + 1001)
        admitted += 1000
      }
      #expect(stack.metric("tollgate_redis_reconnects_total", sidecar: 0) ?? 0 <= 4)
      try Audit.check(stack, Self.tally(admitted), subjects: ["acme/m0"])
    }

    @Test func pitfall52_aPathLongerThanAByteCanSayIsNotCut() throws {
      let stack = try Stack(
        .init(
          sidecars: 1, persistence: .none, extra: Self.patient,
          catalog: Self.catalog(
            "{id: calls.leaf, quota: 10, per: month, level: e}", levels: "[a, b, c, d, e]"),
          accounts: ["acme": "plan"]))
      let caller = try Caller(stack)
      let long = String(repeating: "x", count: 64)
      let path = "acme/\(long)/\(long)/\(long)/\(String(long.dropLast()))"
      #expect(path.utf8.count > 255)
      // They differ in their last byte only.
      #expect(try caller.consume(path + "1", ("calls", 10)).isAllowed)
      let other = try caller.consume(path + "2", ("calls", 3))
      #expect(other.isAllowed && other.items[0].settled == 3)
      #expect(try !caller.consume(path + "1", ("calls", 1)).isAllowed)
      try Audit.check(stack, Self.tally(13), subjects: [path + "1"])
      let billed = try stack.books("export").output
      #expect(billed.contains("\(path)1\"") && billed.contains("\(path)2\""))
    }
  }
}
