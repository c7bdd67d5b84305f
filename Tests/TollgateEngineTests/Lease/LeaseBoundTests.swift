// What a sidecar may have let through and not settled is bounded at every instant, whatever it
// leases: also of counters that no limit judges, of which nothing is held in Redis.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct LeaseBoundTests {
  private let redis = ModelRedis()

  init() { redis.amounts = ["acme": 1_000_000] }

  private static let unlimited = Shape(
    account: "acme", key: "free", cells: [], counted: ["acme.all"])

  private func scene(
    units: Int64 = .max, operations: Int64 = .max, slots: Int = 256
  ) -> LeaseScene {
    var configuration = LeaseConfiguration()
    configuration.unsettledUnitsMax = units
    configuration.unsettledOperationsMax = operations
    return LeaseScene(
      LeaseMemory(LeaseScene.geometry(slots: slots)), configuration: configuration)
  }

  /// Units until something else than an allow comes, and what that was.
  private func drain(
    _ scene: LeaseScene, _ shape: Shape, _ amount: Int64
  ) -> (Int64, LeaseOutcome) {
    var units: Int64 = 0
    var outcome = scene.spend(shape, amount)
    while outcome.isAllowed {
      units += amount
      outcome = scene.spend(shape, amount)
    }
    return (units, outcome)
  }

  @Test func unitsOfACounterWithoutALimitAreBounded() {
    let scene = scene(units: 100)
    scene.begin(redis, Self.unlimited)
    let (units, outcome) = drain(scene, Self.unlimited, 7)
    #expect(units == 98 && outcome == .miss(.exposed))
    #expect(scene.table.gauges.unsettledUnits == 98)
    // What still fits is let through.
    #expect(scene.spend(Self.unlimited, 2).isAllowed)
    #expect(scene.spend(Self.unlimited, 1) == .miss(.exposed))
  }

  @Test func operationsAreBoundedWhateverTheyAskFor() {
    let scene = scene(operations: 10)
    scene.begin(redis, Self.unlimited)
    for _ in 0..<10 { #expect(scene.spend(Self.unlimited, 0).isAllowed) }
    #expect(scene.spend(Self.unlimited, 0) == .miss(.exposed))
  }

  @Test func aCheckIsBoundByNeither() {
    let scene = scene(units: 1, operations: 1)
    scene.begin(redis, Self.unlimited)
    #expect(scene.spend(Self.unlimited, 1).isAllowed)
    #expect(scene.spend(Self.unlimited, 1, kind: .check).isAllowed)
  }

  @Test func whatIsSettledMakesRoom() {
    let scene = scene(units: 10)
    scene.begin(redis, Self.unlimited)
    #expect(drain(scene, Self.unlimited, 1).0 == 10)
    scene.run(20, redis)
    #expect(redis.settled["acme.all"] == 10)
    #expect(drain(scene, Self.unlimited, 1).0 == 10)
  }

  @Test func whatIsUnderWayCountsUntilItIsKnownToBeThere() throws {
    let scene = scene(units: 10)
    scene.begin(redis, Self.unlimited)
    #expect(drain(scene, Self.unlimited, 1).0 == 10)
    scene.pass(20)
    let exchange = try #require(scene.collect())
    #expect(scene.spend(Self.unlimited, 1) == .miss(.exposed))
    scene.table.lost(exchange.token)
    #expect(scene.spend(Self.unlimited, 1) == .miss(.exposed))
    scene.exchange(with: redis)
    #expect(scene.spend(Self.unlimited, 1).isAllowed)
  }

  @Test func limitedAndUnlimitedShareTheBound() {
    let scene = scene(units: 30)
    scene.begin(redis, Self.unlimited).begin(redis)
    for _ in 0..<15 { #expect(scene.spend(.simple(), 1).isAllowed) }
    #expect(drain(scene, Self.unlimited, 1).0 == 15)
    #expect(scene.spend(.simple(), 1) == .miss(.exposed))
  }

  /// What is taken back after it was settled is lost with the process likewise.
  @Test func whatIsTakenBackIsBoundedToo() {
    let scene = scene(units: 10)
    scene.begin(redis, Self.unlimited)
    var ids: [OperationID] = []
    for _ in 0..<12 {
      let id = scene.mint()
      #expect(scene.spend(Self.unlimited, 1, id: id).isAllowed)
      ids.append(id)
      scene.run(20, redis)
    }
    for id in ids[..<10] { #expect(scene.cancel(Self.unlimited, 1, id: id) == .cancelled) }
    #expect(scene.cancel(Self.unlimited, 1, id: ids[10]) == .full)
    #expect(scene.table.gauges.creditUnits == 10)
    scene.run(1_100, redis)
    #expect(scene.cancel(Self.unlimited, 1, id: ids[10]) == .cancelled)
  }

  @Test func theBoundThatIsShownIsTheOneThatHolds() {
    var configuration = LeaseConfiguration()
    configuration.unsettledUnitsMax = 1_003
    configuration.unsettledOperationsMax = 1_000_000
    let memory = LeaseMemory(LeaseScene.geometry(stripes: 4, slots: 64))
    let scene = LeaseScene(memory, configuration: configuration, buckets: 4, bucket: 1)
    scene.begin(redis, Self.unlimited)
    #expect(drain(scene, Self.unlimited, 10).0 == 250)
    // Four stripes of a fourth each, and no more operations than the rings keep unsettled.
    #expect(scene.table.unsettledMax == (units: 1_000, operations: 224))
  }
}
