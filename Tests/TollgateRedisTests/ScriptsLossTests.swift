// Records of operations that were lost with an epoch: an id from before gets ID_TOO_OLD, never another
// answer and never a second effect, and one from after is served as ever (promise 4).

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsLossTests {
  /// An operation of each class, and what Redis held of the bucket then.
  private struct Before {
    var money: OperationID
    var volume: OperationID
    var meta: BucketMeta
  }

  private func used(_ rig: StoreRig) throws -> Before {
    let (money, volume) = (rig.newID(), rig.newID())
    #expect(try rig.consume("acme", ("spend", 1), id: money).reason == .allowed)
    #expect(try rig.consume("acme", ("tokens", 1), id: volume).reason == .allowed)
    return Before(
      money: money, volume: volume,
      meta: try #require(try rig.read(Reads.meta(rig.keySpace, bucket: 0))))
  }

  private func again(_ rig: StoreRig, _ before: Before) throws -> [DecideReply] {
    [
      try rig.consume("acme", ("spend", 1), id: before.money),
      try rig.consume("acme", ("tokens", 1), id: before.volume),
    ]
  }

  private func reopen(_ rig: StoreRig, _ records: OpenCall.Records) throws {
    #expect(try rig.open(epoch: 2, hadPredecessor: true, records: records) == .opened)
    try rig.seed()
  }

  private func loseAll(_ rig: StoreRig) throws {
    let now = rig.now
    try rig.redis.command("FLUSHALL")
    try rig.setNow(now)
  }

  @Test func afterAllWasLostEarlierIdsAreTooOldAndLaterOnesServed() throws {
    let rig = try StoreRig.ready()
    let before = try used(rig)
    try rig.advance(1)
    try loseAll(rig)
    try reopen(rig, .init(known: nil, found: nil, milliseconds: 0))
    #expect(try again(rig, before) == [.idTooOld, .idTooOld])
    #expect(try rig.consume("acme", ("tokens", 1)).reason == .allowed)
    #expect(try rig.consume("acme", ("spend", 1)).reason == .allowed)
  }

  @Test func theFirstEpochOfAllRefusesNoId() throws {
    let rig = try StoreRig()
    let id = rig.newID()
    try rig.advance(1000)
    #expect(try rig.open(records: .init(known: nil, found: nil, milliseconds: 0)) == .opened)
    try rig.seed()
    #expect(try rig.consume("acme", ("tokens", 1), id: id).reason == .allowed)
  }

  @Test func recordsThatAreWholeGiveTheirAnswersInTheNextEpoch() throws {
    let rig = try StoreRig.ready()
    let before = try used(rig)
    try rig.advance(1)
    try reopen(
      rig,
      .init(
        known: before.meta.position, knownTime: rig.now + -1, found: before.meta.fence,
        milliseconds: 0))
    for reply in try again(rig, before) { #expect(reply.replayed?.decision.reason == .allowed) }
  }

  @Test(arguments: [
    ("sequence", StreamPosition(epoch: 1, sequence: 3), Int64(0)),
    ("epoch", StreamPosition(epoch: 3, sequence: 0), 0), ("unknown", nil, 0),
    ("time", StreamPosition(epoch: 1, sequence: 2), 60_000),
  ])
  func recordsThatWentBackAreTooOld(
    what: String, known: StreamPosition?, later: Int64
  ) throws {
    let rig = try StoreRig.ready()
    let before = try used(rig)
    #expect(before.meta.position == StreamPosition(epoch: 1, sequence: 2))
    try rig.advance(1)
    try reopen(
      rig,
      .init(
        known: known, knownTime: rig.now + later, found: before.meta.fence, milliseconds: 0))
    #expect(try again(rig, before) == [.idTooOld, .idTooOld], "\(what)")
    #expect(try rig.consume("acme", ("tokens", 1)).reason == .allowed)
  }

  @Test func idsMintedSinceTheLossWasSeenAreServed() throws {
    let rig = try StoreRig.ready()
    let before = try used(rig)
    try rig.advance(1)
    try loseAll(rig)
    let waiting = rig.newID()
    try rig.advance(3000)
    try reopen(rig, .init(known: nil, found: nil, milliseconds: 3000))
    #expect(try again(rig, before) == [.idTooOld, .idTooOld])
    #expect(try rig.consume("acme", ("tokens", 1), id: waiting).reason == .allowed)
  }

  @Test func whatIsFoundOtherwiseThanItWasSeenCountsFromNow() throws {
    let rig = try StoreRig.ready()
    let before = try used(rig)
    try rig.advance(1)
    try loseAll(rig)
    let waiting = rig.newID()
    try rig.advance(3000)
    // Seen whole for three seconds; it is gone when it is opened.
    try reopen(
      rig,
      .init(known: before.meta.position, found: before.meta.fence, milliseconds: 3000))
    #expect(try rig.consume("acme", ("tokens", 1), id: waiting) == .idTooOld)
  }

  @Test func aHorizonNeverMovesBack() throws {
    let rig = try StoreRig.ready()
    let before = try used(rig)
    try rig.advance(1000)
    try loseAll(rig)
    try reopen(rig, .init(known: nil, found: nil, milliseconds: 0))
    let meta = try #require(try rig.read(Reads.meta(rig.keySpace, bucket: 0)))
    try rig.advance(1000)
    #expect(
      try rig.open(
        epoch: 3, hadPredecessor: true,
        records: .init(known: nil, found: meta.fence, milliseconds: 100_000)) == .opened)
    try rig.seed()
    #expect(try again(rig, before) == [.idTooOld, .idTooOld])
  }
}
