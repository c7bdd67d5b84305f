// Leases of a grant, beside what Redis burns of it.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsCreditLeaseTests {
  private static let feature = Catalog.name("tokens")

  /// `tokens` of `acme` are burnt from `first` (100 units), then from what the plan includes (60,
  /// up to 20 of which come over into the next month).
  private static func rig() throws -> StoreRig {
    var catalog = Catalog.example
    catalog.features[feature]?.idempotency = .sidecar
    catalog.features[feature]?.reservable = false
    let included = Credit.Included(
      amount: 60, every: .month, priority: 100, rollover: Rollover(min: 0, max: 20))
    catalog.plans[Catalog.name("pro")]?.entitlements[feature] = [
      Catalog.limit("plan", .credit(Credit(included: included, allowsOverage: false)))
    ]
    let rig = try StoreRig.ready(catalog: catalog)
    rig.account.grants = [
      Grant(
        id: Catalog.name("first"), feature: feature, amount: 100, priority: 10,
        effective: StoreRig.start + -1000, created: StoreRig.start + -1000)
    ]
    return rig
  }

  /// What is left of the leases of both, in the order of burning.
  private static func exchange(
    _ rig: StoreRig, _ lessee: inout TestLessee, settle: [Int64] = [0, 0],
    target: [Int64?] = [nil, nil]
  ) throws -> [LeaseAnswer.Portion] {
    let subject = try Subject("acme")
    let resolution = rig.resolve(subject, [Item(feature: feature, amount: 1)])
    let all = LeasePortion.all(of: resolution, subject: subject)
    var portions = try #require(resolution.draws[0]).map { all[$0.cell] }
    for at in portions.indices {
      portions[at].settle = settle[at]
      portions[at].target = target[at]
    }
    let outcome = try rig.run(lessee.call(rig, [lessee.account(rig, subject, portions, [])]))
    return try #require(outcome.answers?.first?.portions)
  }

  private static func ask(
    _ rig: StoreRig, _ amount: Int64, id: OperationID? = nil,
    _ mode: TransactCall.Mode = .consume
  ) throws -> Decision {
    let reply = try rig.run(rig.transact("acme", [("tokens", amount)], id: id, mode: mode))
    if case .replayed(let decided) = reply.answer { return decided.decision }
    return try #require(reply.answer.decided).decision
  }

  /// What leases say is left is what Redis says.
  private static func expectCredit(
    _ rig: StoreRig, _ lessee: inout TestLessee, location: SourceLocation = #_sourceLocation
  ) throws {
    let state = try #require(try ask(rig, 0, .check).items.first)
    let amounts = rig.account.grants[0].amount + 60
    for portion in try exchange(rig, &lessee) {
      #expect(
        amounts - portion.settled - portion.held == state.remaining, sourceLocation: location)
    }
  }

  @Test func aGrantIsLeasedLikeAQuotaAndShownWithTheOthers() throws {
    let rig = try Self.rig()
    var one = TestLessee(1)
    #expect(try Self.ask(rig, 4).burns.map(\.amount) == [4])
    let answer = try Self.exchange(rig, &one, target: [1000, nil])
    #expect(answer.map(\.left) == [48, 0])
    // Settled and held of both.
    #expect(answer.map(\.settled) == [4, 4] && answer.map(\.held) == [48, 48])
    try Self.expectCredit(rig, &one)
    // What is leased is not burnt: 48 are left of the first, then the second is burnt.
    let decision = try Self.ask(rig, 50)
    #expect(decision.burns.map { $0.grant?.text } == ["first", "plan"])
    #expect(decision.burns.map(\.amount) == [48, 2])
    #expect(try Self.exchange(rig, &one, settle: [8, 0], target: [0, nil]).map(\.left) == [0, 0])
    #expect(try rig.cell("acme", "tokens", .grant(Catalog.name("first")))?.settled == 60)
  }

  @Test func whatIsOwedIsNotLeased() throws {
    let rig = try Self.rig()
    var one = TestLessee(1)
    #expect(try Self.exchange(rig, &one, target: [nil, nil]).map(\.left) == [0, 0])
    // Posted beyond everything there is: 30 are owed.
    _ = try Self.ask(rig, 190, .post)
    rig.account.grants[0].amount = 140
    // Of the 40 that were added 30 are owed: 10 are free, and half of them are granted to one.
    #expect(try Self.exchange(rig, &one, target: [1000, nil])[0].left == 5)
    try Self.expectCredit(rig, &one)
  }

  @Test func aDenialThatRestsOnLeasesIsNotRecorded() throws {
    let rig = try Self.rig()
    var one = TestLessee(1)
    _ = try Self.exchange(rig, &one, target: [1000, nil])
    let id = rig.newID()
    let quiet = try Self.ask(rig, 120, id: id, .consumeBeforeRecall)
    #expect(quiet.reason == .creditExhausted && !quiet.replayed)
    _ = try Self.exchange(rig, &one, target: [0, nil])
    #expect(try Self.ask(rig, 120, id: id).reason == .allowed)
    // Nothing is held of the rest: this one is final, whoever asks.
    let other = rig.newID()
    #expect(try Self.ask(rig, 120, id: other, .consumeBeforeRecall).reason == .creditExhausted)
    #expect(try Self.ask(rig, 120, id: other).replayed)
  }

  @Test func whatCameOverIsNotForgivenByARefund() throws {
    let rig = try Self.rig()
    var one = TestLessee(1)
    _ = try Self.ask(rig, 110)
    // 50 are left in that month: 20 come over.
    try rig.setNow(Window.month.period(containing: StoreRig.start).end + 1)
    #expect(try Self.ask(rig, 5).burns.map(\.amount) == [5])
    let plan = Window.grant(Catalog.name("plan"))
    #expect(try rig.cell("acme", "tokens", plan)?.forgiven == 20)
    _ = try Self.exchange(rig, &one, settle: [0, -3])
    let cell = try #require(try rig.cell("acme", "tokens", plan))
    #expect(cell.settled == 2 && cell.forgiven == 20)
    try Self.expectCredit(rig, &one)
    // The first is given less than was burnt of it: it has nothing, and takes nothing of the other.
    rig.account.grants[0].amount = 30
    try Self.expectCredit(rig, &one)
  }
}
