// Bodies of deltas are encoded once for many operations of the like: which ones those are, and that
// what belongs to one operation alone never stands in another's.

import NIOCore
import Testing
import TollgateCore
import TollgateRedis
import TollgateTesting
import TollgateWire

@testable import TollgateServer

@Suite(.blocking) struct UsageBodyCacheTests {
  private static let now = WallTime(milliseconds: 1_767_225_600_000)

  /// One loop's plans and bodies, and what they are made from.
  private struct Loop {
    var plans = PlanCache()
    var bodies = UsageBodyCache()
    var global: GlobalConfig
    let keys: KeySpace

    init() throws {
      let yaml = """
        levels: [account, member]
        features:
          chat: {metered: true, importance: volume, unit: request}
        plans:
          plan:
            chat: [{id: chat.day, quota: 100, per: day}]
        """
      guard
        case .success(let catalog) = CatalogReader.read(try YAMLDocument(yaml: yaml).document)
      else { throw CancellationError() }
      global = GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: [])
      keys = KeySpace(deployment: try Name("d"), map: BucketMap(buckets: 1))
    }

    mutating func body(
      _ subject: String = "acme/ann", amount: Int64 = 1, attributes: [String: String] = [:],
      traceParent: String = "", source: Source = .redis, at now: WallTime = now
    ) throws -> UsageBody {
      let request = Request(
        mode: source == .redis ? .consume : .post,
        id: OperationID(high: UInt64(now.milliseconds) << 16, low: 1),
        subject: try Subject(subject), items: [Item(feature: try Name("chat"), amount: amount)],
        attributes: attributes, traceParent: traceParent, source: source, bucket: 0,
        arrived: .now(), deadline: .now() + .seconds(1)
      ) { _ in }
      let account = AccountConfig(version: 1, plan: try Name("plan"))
      let prepared = plans.plan(
        for: request, global: global, account: account, now: now, keys: keys)
      guard case .plain(let plan, _) = prepared.plan else { throw CancellationError() }
      let found = bodies.bodies(
        of: request, plan, prepared, catalogVersion: global.catalogVersion)
      try #require(found.count == 1)
      return try UsageBody.decode(found[0])
    }
  }

  @Test func theLikeHaveTheSame() throws {
    var loop = try Loop()
    let first = try loop.body()
    #expect(first.subject == (try Subject("acme/ann")) && first.catalogVersion == 1)
    #expect(try loop.body() == first)
    #expect(try loop.body(amount: 7) == first)
    #expect(try loop.body("acme/bob").subject == (try Subject("acme/bob")))
    #expect(try loop.body() == first)
  }

  @Test func whatIsOfOneOperationAloneIsInNoOther() throws {
    var loop = try Loop()
    let plain = try loop.body()
    for _ in 0..<2 {
      #expect(try loop.body(attributes: ["model": "x"]).attributes == ["model": "x"])
      #expect(try loop.body(attributes: ["model": "y"]).attributes == ["model": "y"])
      let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
      #expect(try loop.body(traceParent: trace).traceParent == trace)
      #expect(try loop.body(source: .clientFallback).source == .clientFallback)
      #expect(try loop.body() == plain)
    }
    // Also where what is special comes first.
    var other = try Loop()
    _ = try other.body(attributes: ["model": "x"])
    #expect(try other.body() == plain)
  }

  @Test func anotherPeriodAndAnotherCatalogHaveOthers() throws {
    var loop = try Loop()
    let first = try loop.body()
    let day = Int64(86_400_000)
    let tomorrow = try loop.body(at: Self.now + day)
    #expect(tomorrow.period == first.period && tomorrow.cells != first.cells)
    let nextMonth = try loop.body(at: Self.now + 40 * day)
    #expect(nextMonth.period == Window.month.period(containing: Self.now + 40 * day))
    #expect(try loop.body() == first)
    loop.global.version = 2
    loop.global.catalogVersion = 2
    #expect(try loop.body().catalogVersion == 2)
  }
}
