// The harness's Redis: a real server that can be stopped, killed, frozen and set back in time.

import Testing
import TollgateTesting

@Suite struct HarnessRedisTests {
  @Test func everyKindOfReplyIsRead() throws {
    let redis = try RedisServerProcess()
    let client = try redis.connect()
    #expect(try client.command("PING") == .simple("PONG"))
    #expect(try client.command("INCRBY", "n", "41") == .integer(41))
    #expect(try client.command("GET", "none") == .null)
    #expect(try client.command("HSET", "h", "a", "1", "b", "") == .integer(2))
    #expect(try client.command("HGETALL", "h").dictionary == ["a": "1", "b": ""])
    let big = String(repeating: "x", count: 300_000)
    try client.command("SET", "big", big)
    #expect(try client.command("GET", "big").string == big)
    #expect(throws: MiniRedisError.self) { try client.command("NONSENSE") }
    #expect(try client.pipeline([["PING"], ["LPUSH", "n", "x"], ["PING"]]).count == 3)
  }

  @Test func anAppendOnlyFileSurvivesKill() throws {
    let redis = try RedisServerProcess(.init(persistence: .appendAlways, tcp: true))
    try MiniRedis(redis.endpoint).command("SET", "k", "v")
    let port = redis.port
    redis.kill()
    #expect(throws: PosixError.self) { try redis.connect() }
    try redis.start()
    #expect(redis.port == port)
    #expect(try MiniRedis(redis.endpoint).command("GET", "k").string == "v")
  }

  @Test(arguments: [RedisServerProcess.Persistence.none, .appendEverySecond])
  func anOlderSnapshotCanBePutBack(_ persistence: RedisServerProcess.Persistence) throws {
    let redis = try RedisServerProcess(.init(persistence: persistence))
    try redis.connect().command("SET", "k", "old")
    let snapshot = try redis.snapshot()
    try redis.connect().command("SET", "k", "new")
    #expect(throws: RedisServerError.self) { try redis.restore(snapshot) }
    try redis.rollBack(to: snapshot)
    #expect(try redis.connect().command("GET", "k").string == "old")
  }

  @Test func aFrozenServerAnswersAfterItsThaw() throws {
    let redis = try RedisServerProcess()
    try redis.pause()
    let client = try redis.connect(timeout: .milliseconds(50))
    #expect(throws: MiniRedisError.timedOut(milliseconds: 50)) { try client.command("PING") }
    redis.resume()
    #expect(try redis.connect().command("PING") == .simple("PONG"))
  }

  @Test func passwordAndAclUserAreAsked() throws {
    let locked = try RedisServerProcess(.init(password: "secret"))
    #expect(throws: MiniRedisError.self) { try MiniRedis(locked.unix).command("PING") }
    #expect(try locked.connect().command("PING") == .simple("PONG"))
    let acl = ["user default off", "user t on >pw ~t:* +ping +get"]
    let named = try RedisServerProcess(.init(password: "pw", acl: acl, aclUser: "t"))
    #expect(try named.connect().command("GET", "t:1") == .null)
    #expect(throws: MiniRedisError.self) { try named.connect().command("GET", "other") }
  }

  @Test func aServerThatCannotStartShowsItsLog() {
    let error = #expect(throws: RedisServerError.self) {
      try RedisServerProcess(.init(extra: ["--no-such-option", "1"]))
    }
    #expect(error?.description.contains("no-such-option") == true)
  }

  @Test func itsProcessEndsWithItsOwner() throws {
    var redis: RedisServerProcess? = try RedisServerProcess()
    let endpoint = try #require(redis).unix
    redis = nil
    #expect(throws: PosixError.self) { try MiniRedis(endpoint) }
  }
}
