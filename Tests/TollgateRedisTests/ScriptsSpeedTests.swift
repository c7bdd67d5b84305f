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
      // By the clock of Redis, not the test's: of windows that hardly ever end.
      Catalog.limit("chat.member", .quota(amount: Quantity.maximum, window: .quarter), level: 2),
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

  /// One limit or eight, each with a delta: a ratio of one run, so the machine does not matter.
  @Test func eightLimitsCostAtMostTwiceAsMuchAsOne() throws {
    // Redis reads the clock: of windows that hardly ever end while this runs.
    let windows: [Window] = [
      .month, .day, .seconds(40_000_000), .week, .quarter, .year, .lifetime,
      .seconds(70_000_000),
    ]
    func quotas(_ count: Int) -> [Limit] {
      windows.prefix(count).enumerated().map {
        Catalog.limit(
          "l\(count).\($0.offset)", .quota(amount: Quantity.maximum, window: $0.element))
      }
    }
    var catalog = Catalog.example
    catalog.plans[Catalog.name("pro")]?.entitlements[Catalog.name("chat")] = quotas(1)
    catalog.plans[Catalog.name("pro")]?.entitlements[Catalog.name("tokens")] = quotas(8)
    let rig = try StoreRig.ready(catalog: catalog, transform: { $1 })
    rig.limits.volumeRecordBytesMax = 1 << 40
    func cost(_ feature: String) throws -> Double {
      try rig.useTime(WallTime(milliseconds: redisTime(rig)))
      let calls = try (0..<2000).map { number in
        StoreRig.command(try rig.call("acme/m\(number % 64)", [(feature, 1)]), rig.library)
      }
      return try busy(with: calls, rig)
    }
    _ = try (cost("chat"), cost("tokens"))
    // What runs beside only ever adds to a round: the least of each is what it costs.
    let rounds = try (0..<7).map { _ in (try cost("chat"), try cost("tokens")) }
    let ratios = rounds.map { $0.1 / $0.0 }.sorted()
    let least = (rounds.map(\.1).min() ?? .infinity) / (rounds.map(\.0).min() ?? 0)
    print("decide, 8 limits against 1: \(least), by rounds \(ratios)")
    #expect(least <= 2)
  }

  @Test func whatPricesGrantsAndHoldsCostIsMeasured() throws {
    let rig = try StoreRig.ready(transform: { $1 })
    rig.useRich()
    rig.global.catalog.plans = rig.global.catalog.plans.mapValues { plan in
      var plan = plan
      plan.entitlements[Catalog.name("tokens")] = []
      plan.entitlements[Catalog.name("spend")] = [
        Catalog.limit("spend.any", .credit(Credit(included: nil, allowsOverage: true))),
        Catalog.limit("spend.cap", .spendCap(amount: Quantity.maximum, window: .month)),
      ]
      return plan
    }
    rig.limits.volumeRecordBytesMax = 1 << 40
    try rig.useTime(WallTime(milliseconds: redisTime(rig)))
    let consumes = try (0..<2000).map { number in
      StoreRig.command(try rig.transact("acme/m\(number % 64)", [("tokens", 1)]), rig.library)
    }
    let consume = try busy(with: consumes, rig)
    var ids: [OperationID] = []
    let reserves = try (0..<900).map { number in
      ids.append(rig.newID())
      return StoreRig.command(
        try rig.transact(
          "acme/m\(number % 64)", [("tokens", 4)], id: ids[number],
          mode: .reserve(ReserveTerms())), rig.library)
    }
    let reserve = try busy(with: reserves, rig)
    let used = [Item(feature: Catalog.name("tokens"), amount: 2)]
    let created = rig.now
    let settles = try ids.enumerated().map { number, id in
      StoreRig.command(
        try rig.step(
          .settle(used, isFinal: true), "acme/m\(number % 64)", id, plan: created), rig.library)
    }
    let settle = try busy(with: settles, rig)
    print(
      "transact, us of Redis: a consume with a price and a cap \(consume), a reserve \(reserve), "
        + "a final settle \(settle)")
    for figure in [consume, reserve, settle] { #expect(figure > 0) }
  }

  /// An exchange at full load: a delta of each of 64 accounts, whose lease is topped up.
  @Test func anExchangeOfManyAccountsIsMeasured() throws {
    let rig = try StoreRig.leased(amount: Quantity.maximum, transform: { $1 })
    rig.limits.outboxEntriesMax = 1 << 40
    let now = redisTime
    try rig.useTime(WallTime(milliseconds: now(rig)))
    for number in 0..<64 { try rig.seed("a\(number)") }
    var one = TestLessee(7)
    func cost(_ feature: String, _ suffix: String) throws -> Double {
      try rig.useTime(WallTime(milliseconds: now(rig)))
      let calls = try (0..<128).map { number in
        rig.useTime(rig.now + (number % 4 == 0 ? 1 : 0))
        let accounts = try (0..<64).map {
          try one.exchange(rig, "a\($0)\(suffix)", feature, settle: 5, target: 100).accounts[0]
        }
        return StoreRig.command(one.call(rig, accounts), rig.library)
      }
      let before = try cpu(rig)
      for start in stride(from: 0, to: calls.count, by: 8) {
        for reply in try rig.redis.pipeline(Array(calls[start..<start + 8])) {
          #expect(RESPReply(reply).array?.count == 67, "\(reply)")
        }
      }
      return (try cpu(rig) - before) * 1e6 / Double(calls.count * 64)
    }
    for _ in 0..<2 { _ = try (cost("tokens", ""), cost("chat", "/ann")) }
    let figures = try (0..<5).map { _ in (try cost("tokens", ""), try cost("chat", "/ann")) }
    let single = figures.map(\.0).sorted()[2]
    let three = figures.map(\.1).sorted()[2]
    print(
      "lease, us of Redis per settled delta: one counter \(single), two counters and a rate "
        + "\(three)")
    #expect(single > 0 && three > 0)
  }

  /// Microseconds of Redis for each of these calls, none of which may be refused.
  private func busy(with calls: [[[UInt8]]], _ rig: StoreRig) throws -> Double {
    let before = try cpu(rig)
    for start in stride(from: 0, to: calls.count, by: 16) {
      for reply in try rig.redis.pipeline(Array(calls[start..<min(start + 16, calls.count)])) {
        let answer = RESPReply(reply)
        let reason = DecideReply(answer.array?.first ?? answer).reason ?? DecideReply(answer).reason
        #expect(reason?.isAllowed == true, "\(answer)")
      }
    }
    return (try cpu(rig) - before) * 1e6 / Double(calls.count)
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
