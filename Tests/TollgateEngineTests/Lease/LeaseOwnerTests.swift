// Whose a journal is, and of which size: what is not settled stays with its own, and what holds
// nothing is anybody's.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct LeaseOwnerTests {
  private let redis = ModelRedis()
  private let memory = LeaseMemory(LeaseScene.geometry())

  init() { redis.amounts = ["acme": 1_000] }

  private func other() throws -> Deployment {
    Deployment(id: try Name("other"), buckets: 1, mode: .dev)
  }

  private func isRefused(_ deployment: Deployment) -> Bool {
    (try? memory.region(lessee: 99, deployment: deployment)) == nil
  }

  private func spent(_ memory: LeaseMemory) -> LeaseScene {
    let scene = LeaseScene(memory).begin(redis)
    scene.spend(.simple(), 3)
    return scene
  }

  private func again(_ scene: LeaseScene, lessee: UInt64 = 2) -> LeaseScene {
    LeaseScene(memory, lessee: lessee, now: scene.now + 1_000_000, minted: 1_000)
  }

  /// All of it is settled and given back.
  private func close(_ scene: LeaseScene) {
    scene.pass(10)
    scene.table.close(now: scene.monotonic)
    scene.run(100, redis)
    #expect(scene.table.isReturned && redis.ledger["acme"] == 3)
  }

  // MARK: - Deployments

  @Test(arguments: [("other", 1), ("here", 4), ("other", 4)])
  func whatAnotherDeploymentHoldsIsNotTouched(id: String, buckets: Int) throws {
    let scene = spent(memory)
    let deployment = Deployment(id: try Name(id), buckets: buckets, mode: .dev)
    let refusal = #expect(throws: LeaseRegion.Refusal.self) {
      _ = try memory.region(lessee: 99, deployment: deployment)
    }
    let differences = deployment.differences(from: LeaseMemory.deployment)
    #expect(refusal == LeaseRegion.Refusal.anotherDeployment(differences))
    #expect(!differences.isEmpty)
    let next = again(scene)
    #expect(next.table.gauges.unsettledUnits == 3 && next.table.region.predecessors == [1])
  }

  @Test func whereNothingIsLeftAnotherDeploymentBeginsAnew() throws {
    let scene = spent(memory)
    close(scene)
    scene.table.end()
    let region = try memory.region(lessee: 2, deployment: try other())
    #expect(!region.isRecovered && !region.isNotRead && region.predecessors.isEmpty)
    let table = LeaseTable(LeaseConfiguration(), region: region, buckets: 1, begun: 0)
    #expect(table.gauges.unsettledUnits == 0 && table.gauges.recovering == 0)
  }

  /// Its own goes on with it: retries are known.
  @Test func whereNothingIsLeftItsOwnFindsWhatItAnswered() {
    let scene = LeaseScene(memory).begin(redis)
    let id = scene.mint()
    scene.spend(.simple(), 3, id: id)
    close(scene)
    scene.table.end()
    let next = again(scene)
    #expect(next.table.region.isRecovered && next.table.region.predecessors == [1])
    #expect(next.spend(.simple(), 3, id: id) == .known)
  }

  @Test(arguments: [false, true])
  func whereSomethingIsLeftItDoesNotEnd(isSpent: Bool) throws {
    let scene = LeaseScene(memory).begin(redis)
    if isSpent {
      scene.spend(.simple(), 3)
      scene.table.close(now: scene.monotonic)
    }
    scene.table.end()
    #expect(isRefused(try other()))
  }

  /// Redis was not told of the end of an earlier one, so what that held is still held.
  @Test func whereAPredecessorIsOpenItDoesNotEnd() throws {
    let scene = again(spent(memory))
    close(scene)
    scene.table.end()
    #expect(isRefused(try other()))
    scene.table.region.closed(1)
    scene.table.end()
    #expect(!isRefused(try other()))
  }

  @Test func whatIsUsedAgainIsNotEnded() throws {
    let scene = spent(memory)
    close(scene)
    scene.table.end()
    let next = again(scene)
    next.table.region.closed(1)
    #expect(isRefused(try other()))
  }

  /// Started for the wrong one by mistake, which Redis refused: the right one is not kept out.
  @Test func whoNeverOpenedItKeepsNobodyOut() throws {
    let wrong = try memory.region(lessee: 1, deployment: try other())
    let right = try memory.region(lessee: 2, deployment: LeaseMemory.deployment)
    #expect(!wrong.isRecovered && !right.isRecovered && !right.isNotRead)
    right.opened()
    #expect(isRefused(try other()))
  }

  /// Nor where it had ended before: the start failed, and left nothing.
  @Test(arguments: [false, true])
  func whatHadEndedAndWasNotOpenedAgainKeepsNobodyOut(isOpened: Bool) throws {
    let first = memory.region(lessee: 1)
    first.opened()
    first.ended()
    let second = memory.region(lessee: 2)
    #expect(second.isRecovered && second.predecessors == [1])
    if isOpened { second.opened() }
    #expect(isRefused(try other()) == isOpened)
  }

  @Test func whatAnOlderReleaseWroteIsOurs() throws {
    let scene = spent(memory)
    for offset in 0..<LeaseRegion.ownerBytes + 8 {
      memory.tear(at: LeaseRegion.ownerOffset + offset, 0)
    }
    let next = again(scene)
    #expect(next.table.gauges.unsettledUnits == 3 && next.table.region.predecessors == [1])
    #expect(isRefused(try other()), "it says whose it is from now on")
    #expect(again(next, lessee: 3).table.gauges.unsettledUnits == 3)
  }

  /// A bucket, the length of the id, the id, the check.
  @Test(arguments: [0, 8, 16, 80]) func aTornOwnerIsNotTakenForOne(offset: Int) {
    let scene = spent(memory)
    let at = LeaseRegion.ownerOffset + offset
    memory.tear(at: at, ~memory.byte(at: at))
    let region = memory.region(lessee: 2)
    #expect(!region.isRecovered && region.isNotRead)
    #expect(again(scene).table.gauges.unsettledUnits == 0)
  }

  /// The longest id that there may be.
  @Test func everyDeploymentHasRoom() throws {
    let long = Deployment(
      id: try Name(String(repeating: "d", count: Name.bytesMax)),
      buckets: Deployment.bucketsMax, mode: .prod)
    try memory.region(lessee: 1, deployment: long).opened()
    let again = try memory.region(lessee: 2, deployment: long)
    #expect(again.isRecovered && again.predecessors == [1])
    #expect(isRefused(LeaseMemory.deployment))
  }

  // MARK: - Sizes

  @Test func whatIsHeldInAnotherSizeIsReadAsItWasWritten() throws {
    let big = LeaseMemory(LeaseScene.geometry(slots: 1024))
    let scene = spent(big)
    let region = try big.region(
      lessee: 2, geometry: LeaseScene.geometry(), deployment: LeaseMemory.deployment)
    #expect(region.isRecovered && region.geometry.slots == 1024)
    let table = LeaseTable(LeaseConfiguration(), region: region, buckets: 1, begun: 0)
    #expect(table.gauges.unsettledUnits == 3 && scene.isUnsettled)
  }

  @Test func whereNothingIsLeftAnotherSizeIsBegunAnew() throws {
    let big = LeaseMemory(LeaseScene.geometry(slots: 1024))
    let scene = spent(big)
    close(scene)
    scene.table.end()
    let region = try big.region(
      lessee: 2, geometry: LeaseScene.geometry(), deployment: LeaseMemory.deployment)
    #expect(!region.isRecovered && !region.isNotRead && region.geometry.slots == 256)
  }

  // MARK: - Buckets

  /// Of an older release, which did not say how many there are.
  @Test func whatIsOfABucketThatIsNotHereIsNotSettledElsewhere() throws {
    let scene = LeaseScene(memory, buckets: 2, bucket: 1).begin(redis)
    scene.spend(.simple(), 3)
    scene.pass(10)
    let sent = try #require(scene.collect())
    #expect(sent.deltas.map(\.amount) == [3])
    scene.spend(.simple(), 4)
    let next = again(scene)
    #expect(next.table.gauges.unresolvedUnits == 7)
    #expect(next.table.gauges.unsettledUnits == 0 && next.table.gauges.recovering == 0)
    #expect(next.exchange(with: redis) == 0)
    next.begin(redis)
    #expect(next.spend(.simple(), 1).isAllowed)
  }
}
