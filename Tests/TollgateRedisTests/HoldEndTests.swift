// A reservation that ended before Redis lost it, or went back to an older state: whoever brings it
// and whoever tells of its end come in any order, and it is over all the same, once.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct HoldEndTests {
  let rig: StoreRig
  let id: OperationID
  /// As the sidecar that made it remembers it.
  let hold: StoredHold

  init() throws { try self.init(try StoreRig.ready()) }

  private init(_ rig: StoreRig) throws {
    self.rig = rig
    rig.useRich()
    id = try rig.reserve("acme/ann", ("tokens", 3), ("runs", 1))
    hold = try #require(try rig.read(Reads.holds(rig.keySpace, account: try Subject("acme"))).first)
  }

  private func lose() throws {
    try rig.redis.command("FLUSHALL")
    try rig.setNow(rig.now)
    try rig.open(epoch: 2, hadPredecessor: true)
    try rig.seed()
  }

  private func end(_ state: HoldEnd.State = .released) throws -> HoldEnd {
    HoldEnd(reservation: id, subject: try Subject("acme/ann"), state: state)
  }

  /// Those that are held.
  private func tell(_ ends: HoldEnd...) throws -> [HoldEnd]? {
    try rig.run(BuryCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, ends: ends)).value
  }

  private func bring(_ bytes: [UInt8]) throws -> RepresentCall.Effect? {
    try rig.run(
      RepresentCall(
        keySpace: rig.keySpace, fence: rig.fence, subject: try Subject("acme/ann"),
        reservation: id, bytes: bytes)
    ).value
  }

  /// Of the epoch that is open.
  private func held() throws -> Int64 {
    try ["acme", "acme/ann"].reduce(0) { sum, path in
      let counters = try rig.counters(path)
      guard counters.epoch == rig.fence.epoch else { return sum }
      return counters.cells.values.reduce(sum) { $0 + $1.held + $1.previousHeld }
    }
  }

  private func settle() throws -> DecideReply {
    let used = [Item(feature: Catalog.name("tokens"), amount: 1)]
    return try rig.run(rig.step(.settle(used, isFinal: true), "acme/ann", id)).answer
  }

  @Test func aHoldIsNotBroughtAfterItsEndWasTold() throws {
    try lose()
    #expect(try tell(try end()) == [])
    #expect(try bring(hold.bytes) == .nothing)
    #expect(try held() == 0)
    #expect(try settle() == .notHeld(.released))
  }

  @Test func aHoldThatWasBroughtIsFreeWhenItsEndIsTold() throws {
    try lose()
    #expect(try bring(hold.bytes) == .brought)
    #expect(try held() > 0)
    let end = try end(.committed)
    #expect(try tell(end) == [end])
    #expect(try bring([]) == .nothing)
    #expect(try held() == 0)
    #expect(try rig.read(Reads.holds(rig.keySpace, account: try Subject("acme"))).isEmpty)
    #expect(try settle() == .notHeld(.committed))
    #expect(try rig.redis.command("EXISTS", rig.keySpace.holdsDue(0)).integer == 0)
  }

  /// An older snapshot: the hold lies there as if nothing had happened.
  @Test func whatLiesThereOfAnOlderEpochGoesToo() throws {
    try rig.open(epoch: 2, hadPredecessor: true)
    try rig.seed()
    let end = try end()
    #expect(try tell(end) == [end])
    // Somebody who does not know of the end comes first.
    #expect(try bring(hold.bytes) == .nothing)
    #expect(try held() == 0)
    #expect(try settle() == .notHeld(.released))
    #expect(try tell(end) == [])
  }

  @Test func whatExpiredOnlyBecauseItWasBroughtBackIsNotSettledLate() throws {
    try lose()
    #expect(try bring(hold.bytes) == .brought)
    try rig.advance(66_000)
    #expect(try rig.run(rig.expire("acme/ann", [id])).value == 1)
    #expect(try tell(try end(.committed)) == [])
    #expect(try settle() == .notHeld(.committed))
  }

  private func now() throws -> StoredHold {
    try #require(try rig.read(Reads.holds(rig.keySpace, account: try Subject("acme"))).first)
  }

  /// An older snapshot, or a sidecar that knows less: the hold that was settled more often stands,
  /// whichever comes first.
  @Test(arguments: [false, true], [false, true])
  func ofTwoTheOneThatWasSettledMoreOftenStands(lostAll: Bool, olderFirst: Bool) throws {
    let used = [Item(feature: Catalog.name("tokens"), amount: 2)]
    _ = try rig.run(rig.step(.settle(used, isFinal: false), "acme/ann", id, plan: rig.now))
    let later = try now()
    #expect(later.isLater(than: hold) && !hold.isLater(than: later))
    try lose()
    if !lostAll {
      // As Redis had it before the settle.
      #expect(try bring(hold.bytes) == .brought)
      try rig.open(epoch: 3, hadPredecessor: true)
      try rig.seed()
    }
    for bytes in olderFirst ? [hold.bytes, later.bytes] : [later.bytes, hold.bytes] {
      _ = try bring(bytes)
    }
    #expect(try now().settles == 1)
    // One of tokens and one run, in every counter that the hold names, and nothing twice.
    let tokens = try rig.counters("acme/ann").cell(
      feature: Catalog.name("tokens"), window: .hour)
    #expect(tokens?.held == 1)
    _ = try rig.run(rig.step(.release, "acme/ann", id))
    #expect(try held() == 0)
  }

  /// It was extended elsewhere, and who made it brought it first: it expired, but was not over.
  @Test func whatWasExtendedIsHeldAgainWhereAnOlderWordLetItExpire() throws {
    _ = try rig.run(rig.step(.extend(ttlMilliseconds: 600_000), "acme/ann", id))
    let later = try now()
    try lose()
    #expect(try bring(hold.bytes) == .brought)
    try rig.advance(66_000)
    #expect(try rig.run(rig.expire("acme/ann", [id])).value == 1)
    #expect(try bring(hold.bytes) == .nothing)
    #expect(try bring(later.bytes) == .brought)
    #expect(try held() > 0)
    guard case .decided(let decided) = try settle() else {
      Issue.record("not settled")
      return
    }
    #expect(decided.decision.reason == .settled)
    #expect(try held() == 0)
  }

  @Test func anEndThatStandsStaysAsItIs() throws {
    _ = try rig.run(rig.step(.release, "acme/ann", id))
    let before = try rig.dump()
    #expect(try tell(try end(.committed)) == [])
    #expect(try rig.dump() == before)
    #expect(try settle() == .notHeld(.released))
  }

  @Test func endsOfManyAccountsAreToldAtOnce() throws {
    let ends = try (0..<BuryCall.endsMax).map {
      HoldEnd(
        reservation: rig.newID(), subject: try Subject("acme/m\($0)"),
        state: $0 % 2 == 0 ? .committed : .released)
    }
    let call = BuryCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, ends: ends)
    #expect(try rig.run(call).value == [])
    for end in ends {
      let answer = try rig.run(rig.step(.release, end.subject.path, end.reservation)).answer
      #expect(answer == .notHeld(end.state == .committed ? .committed : .released))
    }
  }

  /// What the tests above are worth: where an end is not looked for, the hold is back.
  @Test func withoutItsMechanismTheHoldComesBack() throws {
    let tests = try Self(
      try StoreRig.ready { name, text in
        let text = StoreRig.testClock(text)
        return name == .represent
          ? text.replacing("state == 1 or state == 2", with: "false")
            .replacing("if not was and ended and not revived then", with: "if false then") : text
      })
    try tests.lose()
    _ = try tests.tell(try tests.end())
    #expect(try tests.bring(tests.hold.bytes) == .brought)
    #expect(try tests.held() > 0)
  }
}
