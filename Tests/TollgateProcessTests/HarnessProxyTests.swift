// The fault proxy: what it breaks, it breaks exactly as asked.

import Testing
import TollgateTesting

@Suite struct HarnessProxyTests {
  let redis: RedisServerProcess
  let proxy: FaultProxy

  init() throws {
    redis = try RedisServerProcess()
    proxy = try FaultProxy(to: redis.unix)
  }

  private func client(timeout: Duration = .seconds(10)) throws -> MiniRedis {
    try MiniRedis(proxy.endpoint, timeout: timeout)
  }

  @Test func forwardsBothWays() throws {
    let client = try client()
    let big = String(repeating: "y", count: 3_000_000)
    try client.command("SET", "k", big)
    #expect(try client.command("GET", "k").string == big)
    #expect(proxy.counters.open == 1)
  }

  @Test func listensOnAUnixSocketToo() throws {
    let directory = try TemporaryDirectory()
    let proxy = try FaultProxy(to: redis.unix, listen: .unix(directory.file("p")))
    #expect(try MiniRedis(proxy.endpoint).command("PING") == .simple("PONG"))
  }

  @Test func aCutLosesTheReplyAndNotTheEffect() throws {
    proxy.cut(.afterClientBytes(0))
    for round in 1...5 {
      #expect(throws: (any Error).self) { try client().command("INCR", "n") }
      #expect(proxy.counters.cut == round)
    }
    proxy.cut(.never)
    #expect(try client().command("GET", "n").integer == 5)
  }

  @Test func aCutOnCommandTakesOpenConnectionsOnce() throws {
    let first = try client()
    try first.command("PING")
    proxy.cutNow()
    #expect(throws: (any Error).self) { try first.command("INCR", "n") }
    #expect(try client().command("GET", "n").integer == 1)
    #expect(proxy.counters.cut == 1)
  }

  @Test func aRandomCutRepeatsWithItsSeed() throws {
    func survived(_ seed: UInt64) throws -> [Int] {
      proxy.cut(.random(seed: seed, meanClientBytes: 200))
      return try (0..<6).map { _ in
        let client = try client()
        var count = 0
        while (try? client.command("PING")) != nil { count += 1 }
        return count
      }
    }
    let first = try survived(3)
    #expect(try survived(3) == first)
    #expect(Set(first).count > 1)
  }

  @Test func aDelayHoldsBytesBack() throws {
    let client = try client()
    try client.command("PING")
    proxy.delay(toServer: .milliseconds(20), toClient: .milliseconds(30))
    let time = try ContinuousClock().measure { try client.command("PING") }
    #expect(time >= .milliseconds(50))
  }

  @Test func aRefusedServerIsRefusedByTheKernelAndComesBack() throws {
    let open = try client()
    try open.command("PING")
    proxy.mode = .refuse
    #expect(throws: (any Error).self) { try open.command("PING") }
    #expect(throws: PosixError.self) { try client() }
    proxy.mode = .forward
    #expect(try client().command("PING") == .simple("PONG"))
  }

  @Test func aBlackholeAnswersNothingAndItsVictimsAreReset() throws {
    let open = try client(timeout: .milliseconds(50))
    try open.command("PING")
    proxy.mode = .blackhole
    #expect(throws: MiniRedisError.timedOut(milliseconds: 50)) { try open.command("INCR", "n") }
    proxy.mode = .forward
    #expect(proxy.counters.dropped == 1)
    #expect(try client().command("GET", "n") == .null)
  }

  @Test func aPauseLosesNothing() async throws {
    let client = try client()
    try client.command("PING")
    proxy.mode = .pause
    async let reply = Task.detached { try client.command("INCR", "n") }.value
    proxy.mode = .forward
    #expect(try await reply == .integer(1))
  }

  @Test func closingEndsItsConnections() throws {
    let client = try client()
    try client.command("PING")
    proxy.close()
    #expect(throws: (any Error).self) { try client.command("PING") }
  }
}
