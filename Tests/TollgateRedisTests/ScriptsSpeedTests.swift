// How long Redis is busy with one decision. Printed, not gated: the figure depends on the machine.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsSpeedTests {
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
    let operations = 16_384
    let subjects = (0..<64).map { "acme/m\($0)" }
    // Ids are unique, so the calls are made beforehand: only Redis is on the clock.
    func cost(perCall size: Int) throws -> Double {
      try rig.useTime(WallTime(milliseconds: redisTime(rig)))
      let calls = try (0..<operations / size).map { number in
        let batch = DecideBatch(
          keySpace: rig.keySpace, bucket: 0, fence: rig.fence, limits: rig.limits,
          script: .decide,
          operations: try (0..<size).map {
            try rig.call(subjects[((number * size + $0) * 7) % subjects.count], [("chat", 1)]).asked
          })
        return StoreRig.command(batch, rig.library)
      }
      let before = try cpu(rig)
      for start in stride(from: 0, to: calls.count, by: 16) {
        for reply in try rig.redis.pipeline(Array(calls[start..<min(start + 16, calls.count)])) {
          let decided = RESPReply(reply).array ?? []
          #expect(decided.count == size)
          #expect(decided.allSatisfy { DecideReply($0).reason == .allowed })
        }
      }
      return (try cpu(rig) - before) * 1e6 / Double(operations)
    }
    _ = try cost(perCall: 1)
    let alone = try cost(perCall: 1)
    let eight = try cost(perCall: 8)
    let full = try cost(perCall: DecideBatch.operationsMax)
    print(
      "decide, 3 limits + delta, us of Redis per operation: alone \(alone), by eight \(eight), "
        + "by \(DecideBatch.operationsMax) \(full)")
    #expect(eight < alone * 0.9)
    #expect(full < alone * 0.9)
  }

  /// Seconds of processor time: a busy machine lengthens everything else.
  private func cpu(_ rig: StoreRig) throws -> Double {
    let text = try #require(try rig.redis.command("INFO", "cpu").string)
    return text.split(whereSeparator: \.isNewline)
      .filter { $0.hasPrefix("used_cpu_sys_main") || $0.hasPrefix("used_cpu_user_main") }
      .compactMap { Double($0.drop { $0 != ":" }.dropFirst()) }.reduce(0, +)
  }

  private func redisTime(_ rig: StoreRig) throws -> Int64 {
    let parts = try rig.redis.command("TIME").elements.compactMap(\.integer)
    return parts[0] * 1000 + parts[1] / 1000
  }
}
