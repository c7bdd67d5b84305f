// What is answered, when the store is away, of an account of which nothing was heard; and in which
// order accounts are seeded.

import NIOCore
import Testing
import TollgateCore
import TollgateEngine
import TollgateTesting

@testable import TollgateServer

@Suite("Policy for accounts that were not heard of", .blocking)
struct UnknownAccountPolicyTests {
  private static func global(_ plans: String) throws -> GlobalConfig {
    let text = """
      levels: [account, member]
      unknown_account: {plan: free}
      features:
        calls: {metered: true, importance: money, unit: call}
        pings: {metered: false, importance: volume, unit: ping}
      plans:
      \(plans)
      """
    guard case .success(let catalog) = CatalogReader.read(try YAMLDocument(yaml: text).document)
    else { throw UnsoundCatalog() }
    return GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: [])
  }

  private struct UnsoundCatalog: Error {}

  private static func verdict(
    _ plans: String, _ items: [(String, Int64)] = [("calls", 1)], subject: String = "acme/ann",
    account: AccountConfig? = nil
  ) throws -> PolicyAnswer.Verdict {
    var random = SystemRandomNumberGenerator()
    let request = Request(
      mode: .consume, id: OperationID(time: WallTime(milliseconds: 1), using: &random),
      subject: try Subject(subject),
      items: try items.map { Item(feature: try Name($0.0), amount: $0.1) }, bucket: 0,
      arrived: .now(), deadline: .now() + .seconds(1)
    ) { _ in }
    var unknown = UnknownAccountPolicy()
    let global = try global(plans)
    // Asked twice: what was worked out once must be the same.
    _ = PolicyAnswer.verdict(
      for: request, global: global, account: account, now: WallTime(milliseconds: 1),
      unknown: &unknown)
    return PolicyAnswer.verdict(
      for: request, global: global, account: account, now: WallTime(milliseconds: 1),
      unknown: &unknown)
  }

  private static func claims(_ verdict: PolicyAnswer.Verdict) -> [String]? {
    guard case .allow(_, let claims) = verdict else { return nil }
    return claims.map { "\($0.subject) \($0.limit) \($0.amount)/\($0.allowance)" }
  }

  private static let both = """
      free: {calls: [{id: f, quota: 10, per: month, on_failure: {open: 50}}]}
      pro: {calls: [{id: p, quota: 90, per: month, on_failure: {open: 7}}]}
    """

  @Test func whereEveryPlanIsOpenTheSmallestAllowanceApplies() throws {
    #expect(Self.claims(try Self.verdict(Self.both)) == ["acme p 1/7"])
  }

  @Test func eachLevelHasAnAllowanceOfItsOwn() throws {
    let plans = """
        free:
          calls:
            - {id: f, quota: 10, per: month, on_failure: {open: 50}}
            - {id: m, quota: 5, per: month, level: member, on_failure: {open: 3}}
      """
    #expect(Self.claims(try Self.verdict(plans)) == ["acme f 1/50", "acme/ann m 1/3"])
  }

  @Test(arguments: [
    "{id: p, quota: 90, per: month}",
    "{id: p, quota: 90, per: month, on_failure: closed}",
    "{id: p, gate: false, on_failure: {open: 5}}",
    "{id: p, quota: 90, per: month, enforcement: soft, on_failure: {open: 5}}",
    "{id: p, quota: 90, per: month, level: member, on_failure: {open: 5}}",
    "{id: p, rate: 60, per: minute, burst: 1, on_failure: {open: 5}}",
  ])
  func onePlanThatWouldNotLetItThroughClosesIt(_ limit: String) throws {
    let plans = """
        free: {calls: [{id: f, quota: 10, per: month, on_failure: {open: 50}}]}
        pro: {calls: [\(limit)]}
      """
    let verdict = try Self.verdict(plans, [("calls", 2)], subject: "acme")
    guard case .deny(.storeUnavailable, _, _) = verdict else {
      Issue.record("\(verdict)")
      return
    }
  }

  @Test func aFeatureThatOnePlanLacksIsClosed() throws {
    let plans = """
        free: {pings: [{id: g, quota: 10, per: month, on_failure: {open: 50}}]}
        pro:
          calls: [{id: p, quota: 90, per: month, on_failure: {open: 7}}]
          pings: [{id: g, quota: 10, per: month, on_failure: {open: 50}}]
      """
    #expect(Self.claims(try Self.verdict(plans)) == nil)
    #expect(Self.claims(try Self.verdict(plans, [("pings", 1)])) == ["acme g 1/50"])
    #expect(Self.claims(try Self.verdict(plans, [("pings", 1), ("calls", 1)])) == nil)
  }

  /// What was heard of an account is heeded, however open the plans are.
  @Test func aFrozenAccountThatWasHeardOfStaysFrozen() throws {
    let frozen = AccountConfig(version: 3, plan: try Name("pro"), frozen: true)
    let verdict = try Self.verdict(Self.both, account: frozen)
    guard case .deny(.accountFrozen, _, _) = verdict else {
      Issue.record("\(verdict)")
      return
    }
  }
}

@Suite("Seed queue", .blocking) struct SeedQueueTests {
  private static func errand(_ account: String, bucket: Int, epoch: Int64 = 1) throws -> SeedErrand
  {
    SeedErrand(
      account: try Subject(account), bucket: bucket, epoch: epoch, purpose: .write, done: { _ in })
  }

  @Test func aGroupIsOfOneBucketAndEpochAndBucketsTakeTurns() throws {
    var queue = SeedQueue()
    for index in 0..<100 { #expect(queue.add(try Self.errand("a\(index)", bucket: 1))) }
    #expect(queue.add(try Self.errand("b", bucket: 2)))
    #expect(queue.add(try Self.errand("c", bucket: 2, epoch: 2)))
    #expect(queue.next()?.map(\.account.path) == (0..<64).map { "a\($0)" })
    #expect(queue.next()?.map(\.account.path) == ["b"])
    #expect(queue.next()?.map(\.account.path) == (64..<100).map { "a\($0)" })
    #expect(queue.next()?.map(\.account.path) == ["c"])
    #expect(queue.next() == nil)
    #expect(queue.count == 0)
  }

  @Test func itIsBounded() throws {
    var queue = SeedQueue()
    for index in 0..<SeedQueue.waitingMax {
      #expect(queue.add(try Self.errand("a", bucket: index % 7)))
    }
    #expect(!queue.add(try Self.errand("a", bucket: 0)))
    _ = queue.next()
    #expect(queue.add(try Self.errand("a", bucket: 0)))
  }
}
