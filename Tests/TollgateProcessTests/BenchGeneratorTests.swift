// The generator against a responder that misbehaves, and against a real Redis.

import Testing
import TollgateBench
import TollgateCore
import TollgateTesting

@Suite("Bench: generator", .serialized) struct BenchGeneratorTests {
  private func run(
    _ responder: BenchResponder, _ load: Load, threads: Int = 1, amount: Int64 = 3
  ) throws -> RunResult {
    let names = try SubjectNames(prefix: "t-", accounts: 5, members: 0)
    let workload = Workload(
      names: names, accounts: .uniform(5), amounts: [.constant(amount)], seed: 1)
    let dialect = try TollgateDialect(
      names: names, features: [try Name("f")], check: false, token: "", deadlineMilliseconds: 0)
    return try Run(
      load: load, targets: [try Target("unix:" + responder.path)], workload: workload, seed: 1,
      threads: threads
    ).start(dialect)
  }

  private func expectExact(_ result: RunResult, _ responder: BenchResponder) {
    #expect(result.tally.unresolved == 0)
    for subject in 0..<5 {
      #expect(result.tally.admitted[subject] == responder.settled("t-00000\(subject)"))
    }
  }

  @Test("A bounded run sends exactly what it was asked to, over threads")
  func bounded() throws {
    let responder = try BenchResponder()
    defer { responder.stop() }
    let result = try run(
      responder, Load(connections: 4, inFlight: 8, arrival: .closed, end: .requests(5_003)),
      threads: 3)
    #expect(result.tally.completed == 5_003)
    #expect(result.tally.measured == 5_003)
    #expect(result.tally.answersInHistogram == 5_003)
    #expect(responder.total == 3 * 5_003)
    expectExact(result, responder)
  }

  @Test("Records of one frame are answered, repeated and counted each for itself")
  func recordsPerFrame() throws {
    var behaviour = BenchResponder.Behaviour()
    behaviour.cutEvery = 97
    behaviour.unknownEvery = 50
    let responder = try BenchResponder(behaviour)
    defer { responder.stop() }
    let result = try run(
      responder,
      Load(connections: 3, inFlight: 4, records: 7, arrival: .closed, end: .requests(3_001)))
    #expect(result.tally.connectionsLost > 10)
    #expect(result.tally.resolved > 0)
    #expect(result.tally.completed == 3_001)
    #expect(responder.operations == 3_001)
    expectExact(result, responder)
  }

  @Test("Denials and OVERLOADED are counted by their code and admit nothing")
  func deniedAndOverloaded() throws {
    var behaviour = BenchResponder.Behaviour()
    behaviour.overloadEvery = 10
    behaviour.allowance = 300
    let responder = try BenchResponder(behaviour)
    defer { responder.stop() }
    let result = try run(
      responder, Load(connections: 2, inFlight: 4, arrival: .closed, end: .requests(2_000)))
    #expect(result.tally.errors[Int(ErrorCode.overloaded.rawValue)] == 200)
    #expect(result.tally.reasons[Int(Reason.quotaExceeded.rawValue)] == 1_300)
    #expect(result.tally.allowed == 500)
    expectExact(result, responder)
  }

  @Test("A connection cut after the request was applied is settled by the same ids")
  func cutConnections() throws {
    var behaviour = BenchResponder.Behaviour()
    behaviour.cutEvery = 97
    let responder = try BenchResponder(behaviour)
    defer { responder.stop() }
    let result = try run(
      responder, Load(connections: 3, inFlight: 16, arrival: .closed, end: .requests(3_000)))
    #expect(result.tally.connectionsLost > 10)
    #expect(result.tally.resolved > 0)
    #expect(result.tally.replayed > 0)
    #expect(result.tally.completed == 3_000)
    #expect(responder.operations == 3_000)
    expectExact(result, responder)
  }

  @Test("OUTCOME_UNKNOWN is asked again until it is known, and counted once")
  func unknownOutcome() throws {
    var behaviour = BenchResponder.Behaviour()
    behaviour.unknownEvery = 50
    let responder = try BenchResponder(behaviour)
    defer { responder.stop() }
    let result = try run(
      responder, Load(connections: 2, inFlight: 8, arrival: .closed, end: .requests(1_000)))
    #expect(result.tally.resolved > 0)
    #expect(responder.total == 3 * 1_000)
    expectExact(result, responder)
  }

  @Test("An open loop charges a stall to every operation that was due in it")
  func openLoopStall() throws {
    var behaviour = BenchResponder.Behaviour()
    behaviour.stallMilliseconds = 300
    let responder = try BenchResponder(behaviour)
    defer { responder.stop() }
    let result = try run(
      responder,
      Load(connections: 1, inFlight: 4, arrival: .rate(500), end: .requests(400)))
    #expect(result.tally.completed == 400)
    // 400 operations at 500/s take 0.8 s, however fast the answers are.
    #expect(result.seconds > 0.75)
    // 150 were due while nothing was answered; a closed loop would have seen four slow ones.
    #expect(result.percentile(80) > 100_000)
    #expect(result.percentile(50) < 300_000)
    expectExact(result, responder)
  }

  @Test("Nobody listening is an error that names the address")
  func nobody() throws {
    let directory = try TemporaryDirectory("tg-bench")
    let names = try SubjectNames(prefix: "t-", accounts: 5, members: 0)
    let dialect = try TollgateDialect(
      names: names, features: [try Name("f")], check: false, token: "", deadlineMilliseconds: 0)
    let run = Run(
      load: Load(
        connections: 1, inFlight: 1, arrival: .closed, end: .requests(1), connectWithin: 0.2),
      targets: [try Target(directory.file("none"))],
      workload: Workload(
        names: names, accounts: .uniform(5), amounts: [.constant(1)], seed: 1),
      seed: 1)
    #expect {
      _ = try run.start(dialect)
    } throws: { "\($0)".contains(directory.path) }
  }

  @Test("A bare Redis counts what the generator counts")
  func bareRedis() throws {
    let redis = try RedisServerProcess(.init(tcp: true))
    for address in [redis.unix, redis.endpoint] {
      try redis.connect().command("SET", "n", "0")
      let names = try SubjectNames(prefix: "t-", accounts: 5, members: 0)
      let target =
        switch address {
        case .unix(let path): try Target("unix:" + path)
        case .tcp(let host, let port): try Target("\(host):\(port)")
        }
      let result = try Run(
        load: Load(connections: 5, inFlight: 16, arrival: .closed, end: .requests(20_000)),
        targets: [target],
        workload: Workload(
          names: names, accounts: .uniform(5), amounts: [.constant(1)], seed: 1),
        seed: 1, serverPIDs: redis.pid.map { [$0] } ?? []
      ).start(RedisDialect(.constant(RESP.command(["INCR", "n"]))))
      #expect(result.tally.completed == 20_000)
      #expect(try redis.connect().command("GET", "n").string == "20000")
    }
  }
}
