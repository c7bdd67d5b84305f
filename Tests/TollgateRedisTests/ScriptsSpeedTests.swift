// How long Redis is busy with one decision. Printed, not gated: the figure depends on the machine.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite struct ScriptsSpeedTests {
  @Test func aConsumeOfThreeLimitsAndADeltaIsMeasured() throws {
    var catalog = Catalog.example
    catalog.plans[Catalog.name("pro")]?.entitlements[Catalog.name("chat")] = [
      Catalog.limit("chat.month", .quota(amount: Quantity.maximum, window: .month)),
      Catalog.limit("chat.member", .quota(amount: Quantity.maximum, window: .hour), level: 2),
      Catalog.limit(
        "chat.rate", .rate(amount: 1_000_000, periodMilliseconds: 1000, burst: 1_000_000),
        level: 2),
    ]
    let rig = try StoreRig.ready(catalog: catalog, transform: { $1 })
    rig.limits.volumeRecordBytesMax = 1 << 40
    rig.limits.outboxEntriesMax = 1 << 40
    let depth = 16
    let rounds = 1500
    let subjects = (0..<64).map { "acme/m\($0)" }
    func now() throws -> WallTime {
      let parts = try redisTime(rig)
      return WallTime(milliseconds: parts)
    }
    try rig.useTime(now())
    func batch(_ mode: DecideCall.Mode = .consume) throws -> [[[UInt8]]] {
      try (0..<depth).map { index in
        let call = try rig.call(
          subjects[(index * 7) % subjects.count], [("chat", 1)], mode: mode)
        return StoreRig.command(call, rig.library)
      }
    }
    // Ids are unique, so batches are made beforehand: only Redis is on the clock.
    let batches = try (0..<rounds).map { _ in try batch() }
    _ = try rig.redis.pipeline(try batch())
    try rig.redis.command("CONFIG", "RESETSTAT")
    let begun = ContinuousClock.now
    for batch in batches {
      let replies = try rig.redis.pipeline(batch)
      #expect(DecideReply(RESPReply(replies[0])).reason == .allowed)
    }
    let took = ContinuousClock.now - begun
    let perSecond =
      Double(rounds * depth)
      / (Double(took.components.attoseconds) / 1e18
        + Double(took.components.seconds))
    let stats = try #require(try rig.redis.command("INFO", "commandstats").string)
    let line = stats.split(whereSeparator: \.isNewline).first { $0.contains("cmdstat_evalsha:") }
    print("decide, 3 limits + delta, depth \(depth): \(Int(perSecond)) ops/s; \(line ?? "")")
    #expect(line != nil)
  }

  private func redisTime(_ rig: StoreRig) throws -> Int64 {
    let parts = try rig.redis.command("TIME").elements.compactMap(\.integer)
    return parts[0] * 1000 + parts[1] / 1000
  }
}
