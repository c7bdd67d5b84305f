// Leases in Redis: granted, settled, given back, repeated, ended, asked back.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsLeaseTests {
  // MARK: - Granting

  @Test func halfOfTheRoomIsGrantedToOne() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    let outcome = try rig.run(one.exchange(rig, "acme", "tokens", target: 5000))
    #expect(outcome.left == 500)
    #expect(outcome.answers?[0].expires == rig.now + one.ttl)
    let cell = try #require(try rig.cell("acme", "tokens", .month))
    #expect(cell.held == 500 && cell.settled == 0)
    #expect(
      try rig.leases() == [
        StoredLease(
          lessee: one.id, expires: rig.now + one.ttl, isInDoubt: false,
          portions: [
            .init(
              subject: try Subject("acme"), field: "tokens|M", left: 500,
              period: Window.month.period(containing: rig.now))
          ])
      ])
  }

  @Test func whatIsWantedIsGrantedWhereThereIsRoom() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    #expect(try rig.run(one.exchange(rig, "acme", "tokens", target: 100)).left == 100)
    #expect(try rig.run(one.exchange(rig, "acme", "tokens", target: 100)).left == 100)
    #expect(try rig.run(one.exchange(rig, "acme", "tokens")).left == 100)
    #expect(try rig.run(one.exchange(rig, "acme", "tokens", target: 40)).left == 40)
    #expect(try rig.cell("acme", "tokens", .month)?.held == 40)
  }

  @Test func moreLesseesGetLessAndNearTheEdgeNothing() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var lessees = (1...4).map { TestLessee($0) }
    var lefts: [Int64] = []
    for at in lessees.indices {
      let outcome = try rig.run(lessees[at].exchange(rig, "acme", "tokens", target: 5000))
      lefts.append(outcome.left ?? -1)
    }
    // 1000 ÷ 2, 500 ÷ 4, 375 ÷ 6, 313 ÷ 8.
    #expect(lefts == [500, 125, 62, 39])
    for _ in 0..<40 {
      for at in lessees.indices {
        _ = try rig.run(lessees[at].exchange(rig, "acme", "tokens", target: 5000))
      }
    }
    let held = try #require(try rig.cell("acme", "tokens", .month)?.held)
    #expect(held < 1000 && held > 980)
    #expect(try rig.leftOfAll("acme", "tokens|M") == held)
    // What is left is decided by Redis itself, to the last unit.
    #expect(try rig.consume("acme", ("tokens", 1000 - held)).reason == .allowed)
    #expect(try rig.consume("acme", ("tokens", 1)).reason == .quotaExceeded)
  }

  @Test func everyLevelAndRateHasItsPortion() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    let outcome = try rig.run(one.exchange(rig, "acme/ann", "chat", target: 100))
    #expect(outcome.answers?[0].portions.map(\.left) == [100, 100, 100])
    #expect(try rig.cell("acme", "chat", .month)?.held == 100)
    #expect(try rig.cell("acme/ann", "chat", .lifetime)?.held == 100)
    let rate = try #require(try rig.counters("acme/ann").rates["chat~chat.rate"])
    #expect(rate == rig.now.milliseconds * 1000 + 100 * 1000)
    #expect(
      try rig.leases()[0].portions.map { "\($0.subject) \($0.field)" } == [
        "acme chat|M", "acme/ann chat|L", "acme/ann chat~chat.rate",
      ])
    // Given back, a rate's tokens can be drawn again, and of all that nothing stays.
    _ = try rig.run(one.exchange(rig, "acme/ann", "chat", target: 0))
    #expect(
      try rig.counters("acme/ann").rates["chat~chat.rate"] == rig.now.milliseconds * 1000)
    #expect(try rig.leases() == [])
    #expect(try rig.redis.command("EXISTS", rig.keySpace.leasesDue(0)).integer == 0)
  }

  @Test func aPassedPeriodGrantsNothingAndIsFreeWithTheNext() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    let early = try one.exchange(rig, "acme", "tokens", target: 100)
    _ = try rig.run(early)
    let next = Window.month.period(containing: rig.now).end
    try rig.setNow(next + 1)
    var late = one.call(rig, early.accounts)
    late.accounts[0].ordinal = 10
    late.accounts[0].portions[0].settle = 30
    late.accounts[0].portions[0].target = 200
    late.accounts[0].deltas = [LeaseDelta(amount: 30, body: [1])]
    #expect(try rig.run(late).left == 70)
    one.ordinal = 11
    #expect(try rig.run(one.exchange(rig, "acme", "tokens", target: 100)).left == 100)
    let cell = try #require(try rig.cell("acme", "tokens", .month))
    #expect(cell.start == next && cell.held == 100 && cell.settled == 0)
    #expect(cell.previousSettled == 30 && cell.previousHeld == 0)
    #expect(try rig.leftOfAll("acme", "tokens|M") == 100)
    // A settle of the older period, later still, lands there and takes nothing from the new one.
    late = one.call(rig, late.accounts)
    late.accounts[0].ordinal = 12
    #expect(try rig.run(late).left == 0)
    #expect(try rig.cell("acme", "tokens", .month)?.previousSettled == 60)
    #expect(try rig.cell("acme", "tokens", .month)?.held == 100)
  }

  @Test func aYoungEpochGrantsNothingAndDecidesNothingThatCouldBeLeased() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", target: 100))
    try rig.open(epoch: 2, hadPredecessor: true)
    guard case .unseeded([0]) = try rig.run(one.exchange(rig, "acme", "tokens", target: 100)) else {
      Issue.record("answered without a seed")
      return
    }
    try rig.seed()
    // The lease is void with its epoch.
    #expect(try rig.leases() == [])
    let young = try rig.run(one.exchange(rig, "acme", "tokens", settle: 7, target: 100))
    #expect(young.left == 0 && young.answers?[0].flags == .young)
    #expect(try rig.settled("acme", "tokens", .month) == 7)
    #expect(try rig.consume("acme", ("tokens", 1)) == .young)
    #expect(try rig.consume("acme", ("tokens", 1), mode: .check).reason == .allowed)
    #expect(try rig.consume("acme", ("tokens", 1), mode: .post).reason == .allowedPosted)
    // What cannot be leased is decided as ever.
    #expect(try rig.consume("acme", ("free", 1)).reason == .allowed)
    try rig.advance(LeaseRules.youngMilliseconds)
    #expect(try rig.consume("acme", ("tokens", 1)).reason == .allowed)
    #expect(try rig.run(one.exchange(rig, "acme", "tokens", target: 100)).left == 100)
  }

  @Test func aCrowdedOutboxGrantsNothing() throws {
    let rig = try StoreRig.leased(amount: 1000)
    rig.limits.outboxEntriesMax = 4
    var one = TestLessee(1)
    for _ in 0..<4 { _ = try rig.run(one.exchange(rig, "acme", "tokens", settle: 1)) }
    let outcome = try rig.run(one.exchange(rig, "acme", "tokens", settle: 1, target: 100))
    #expect(outcome.left == 0 && outcome.answers?[0].flags == .crowded)
    #expect(try rig.settled("acme", "tokens", .month) == 5)
  }

  // MARK: - Settling

  @Test func whatWasUsedMovesFromHeldToSettledWithItsDelta() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme/ann", "chat", target: 100))
    let call = try one.exchange(rig, "acme/ann", "chat", settle: 30)
    let outcome = try rig.run(call)
    #expect(outcome.answers?[0].portions.map(\.left) == [70, 70, 70])
    #expect(outcome.answers?[0].portions[0].settled == 30)
    #expect(outcome.answers?[0].portions[0].held == 70)
    let cell = try #require(try rig.cell("acme/ann", "chat", .lifetime))
    #expect(cell.settled == 30 && cell.held == 70)
    let entries = try rig.outbox()
    #expect(entries.count == 1 && entries[0].charged == 30 && entries[0].kind == .usage)
    #expect(entries[0].id == DeltaID(operation: call.operation, index: 0))
    #expect(call.entries(bornAt: rig.now).map(\.id) == entries.map(\.id))
  }

  @Test func aCallHasOneEffectHoweverOftenItComes() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", target: 100))
    let call = try one.exchange(rig, "acme", "tokens", settle: 30, target: 100)
    #expect(try rig.run(call).isReplay == false)
    let before = try rig.dump()
    try rig.advance(1000)
    let again = try rig.run(call)
    #expect(again.isReplay && again.left == 100)
    #expect(try rig.dump() == before)
    // Sent once more as a later word, it may ask and is prolonged, and settles nothing.
    var repeated = call
    one.ordinal += 1
    repeated.accounts[0].ordinal = one.ordinal
    repeated.accounts[0].portions[0].target = 60
    let later = try rig.run(repeated)
    #expect(later.isReplay && later.left == 60)
    #expect(later.answers?[0].expires == rig.now + one.ttl)
    #expect(try rig.settled("acme", "tokens", .month) == 30)
    #expect(try rig.outbox().count == 1)
  }

  /// Redis kept its data and is another: the call is known, and where its deltas lay is not where
  /// this epoch has any. Taken for this one's, Redis would seem to have been put back.
  @Test func theSequenceOfACallOfAnEarlierEpochIsNotTold() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    for _ in 0..<3 { _ = try rig.run(one.exchange(rig, "acme", "tokens", settle: 1, target: 100)) }
    var call = try one.exchange(rig, "acme", "tokens", settle: 30, target: 100)
    #expect(try rig.first(of: call) == 4)
    #expect(try rig.first(of: call) == 4)
    try rig.open(epoch: 2, hadPredecessor: true)
    try rig.seed()
    call.fence = rig.fence
    #expect(try rig.run(call).isReplay)
    #expect(try rig.first(of: call) == 0)
  }

  /// A copy that was long on its way neither takes nor gives what was agreed on since.
  @Test func anOldCopyChangesNothing() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    let back = try one.exchange(rig, "acme", "tokens", target: 0)
    _ = try rig.run(back)
    let asks = try one.exchange(rig, "acme", "tokens", target: 100)
    _ = try rig.run(asks)
    #expect(try rig.run(back).left == 100)
    #expect(try rig.cell("acme", "tokens", .month)?.held == 100)
    // Under an id that is new the settle counts, and nothing else.
    var late = back
    late.operation = rig.newID()
    late.accounts[0].portions[0].settle = 5
    late.accounts[0].deltas = [LeaseDelta(amount: 5, body: [1])]
    #expect(try rig.run(late).left == 95)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", target: 0))
    #expect(try rig.run(asks).left == 0)
    #expect(try rig.leases() == [])
  }

  @Test func forgottenCallsAreTooOld() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    let first = try one.exchange(rig, "acme", "tokens", settle: 1)
    _ = try rig.run(first)
    for _ in 0..<LeaseRules.callsKept {
      #expect(try rig.run(first).isReplay)
      try rig.advance(1)
      _ = try rig.run(one.exchange(rig, "acme", "tokens", settle: 1))
    }
    #expect(try rig.run(first) == .tooOld)
    let last = try one.exchange(rig, "acme", "tokens", settle: 1)
    try rig.advance(LeaseRules.callWindowMilliseconds + 1)
    #expect(try rig.run(last) == .tooOld)
    var ahead = last
    ahead.operation = OperationID(time: rig.now + 60_001, using: &rig.random)
    #expect(try rig.run(ahead) == .fromFuture)
    #expect(try rig.settled("acme", "tokens", .month) == Int64(LeaseRules.callsKept) + 1)
  }

  @Test func whatIsTakenBackIsARefundAndLeavesTheLease() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", settle: 40, target: 100))
    #expect(try rig.run(one.exchange(rig, "acme", "tokens", settle: -15)).left == 100)
    let cell = try #require(try rig.cell("acme", "tokens", .month))
    #expect(cell.settled == 25 && cell.held == 100)
    #expect(try rig.outbox().map(\.kind) == [.usage, .refund])
    #expect(try rig.outbox().map(\.charged) == [40, -15])
  }

  @Test func countersWithoutALimitAreOnlyCounted() throws {
    let rig = try StoreRig.leased()
    var one = TestLessee(1)
    let outcome = try rig.run(one.exchange(rig, "acme", "free", settle: 9, target: 100))
    #expect(outcome.answers?[0].portions == [.init(left: 0, settled: 9, held: 0)])
    #expect(outcome.answers?[0].expires == nil)
    #expect(try rig.leases() == [])
  }

  @Test func manyAccountsTravelTogether() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    var accounts: [LeaseAccount] = []
    for number in 0..<LeaseCall.accountsMax {
      try rig.seed("a\(number)")
      accounts += try one.exchange(
        rig, "a\(number)/ann", "chat", settle: Int64(number), target: 10
      ).accounts
    }
    let outcome = try rig.run(one.call(rig, accounts))
    #expect(outcome.answers?.count == LeaseCall.accountsMax)
    #expect(outcome.answers?.allSatisfy { $0.portions.map(\.left) == [10, 10, 10] } == true)
    #expect(try rig.outbox().map(\.charged) == (1..<Int64(LeaseCall.accountsMax)).map { $0 })
    #expect(try rig.outbox().map(\.id.index) == (0..<UInt16(LeaseCall.accountsMax - 1)).map { $0 })
    #expect(try rig.cell("a63/ann", "chat", .lifetime)?.settled == 63)
  }

  // MARK: - Configuration

  @Test func anotherConfigurationEndsTheLeaseAndKeepsWhatMayBeSpent() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", target: 400))
    var call = try one.exchange(rig, "acme", "tokens", settle: 100, target: 400)
    call.accounts[0].accountVersion = 0
    let outcome = try rig.run(call)
    let answer = try #require(outcome.answers?.first)
    #expect(answer.stale?.accountVersion == 1 && answer.stale?.accountConfig == "{}")
    #expect(answer.expires == nil)
    // 300 were left, half of that may be spent already.
    #expect(answer.portions == [.init(left: 150, settled: 100, held: 150)])
    #expect(try rig.leases()[0].isInDoubt)
    // It settles on, and when that is all it lives again.
    #expect(try rig.run(one.exchange(rig, "acme", "tokens", settle: 50, target: 90)).left == 100)
    #expect(try rig.leases()[0].isInDoubt)
    let whole = try rig.run(
      one.exchange(rig, "acme", "tokens", settle: 20, target: 60, isWhole: true))
    #expect(whole.left == 60 && whole.answers?[0].expires == rig.now + one.ttl)
    #expect(try rig.leases()[0].isInDoubt == false)
    #expect(try rig.cell("acme", "tokens", .month)?.settled == 170)
  }

  @Test func aStaleWholeCallGivesEverythingBack() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", target: 400))
    var call = try one.exchange(rig, "acme", "tokens", settle: 100, target: 400, isWhole: true)
    call.accounts[0].globalVersion = 0
    let outcome = try rig.run(call)
    #expect(outcome.answers?.first?.stale?.globalVersion == 1)
    #expect(outcome.answers?.first?.stale?.accountConfig == nil)
    #expect(outcome.left == 0)
    #expect(try rig.leases() == [])
    #expect(try rig.cell("acme", "tokens", .month)?.held == 0)
  }

  /// Settled by another sidecar up to the lowered limit: nothing is granted beyond it.
  @Test func aLoweredLimitGrantsNothing() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.consume("acme", ("tokens", 500))
    var call = try one.exchange(rig, "acme", "tokens", target: 100)
    call.accounts[0].portions[0].bounds = [.quota(amount: 300)]
    #expect(try rig.run(call).left == 0)
    #expect(try rig.cell("acme", "tokens", .month)?.held == 0)
  }

  // MARK: - Ends

  @Test func aLeaseThatIsNotProlongedKeepsOnlyWhatMayBeSpent() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme/ann", "chat", target: 100))
    let due = rig.now + one.ttl + LeaseRules.graceMilliseconds
    func listed() throws -> [Subject] {
      try rig.read(
        Reads.accountsWithLeasesDue(rig.keySpace, bucket: 0, now: rig.now, count: 10))
    }
    try rig.setNow(due + -1)
    #expect(try listed() == [])
    #expect(try rig.endLeases().ended == 0)
    #expect(try rig.cell("acme", "chat", .month)?.held == 100)
    try rig.setNow(due)
    #expect(try listed() == [try Subject("acme")])
    #expect(try rig.endLeases() == .init(now: rig.now, ended: 1, released: 0, units: 100))
    #expect(try listed() == [])
    #expect(try rig.cell("acme", "chat", .month)?.held == 50)
    #expect(try rig.cell("acme/ann", "chat", .lifetime)?.held == 50)
    let lease = try rig.leases()[0]
    #expect(lease.isInDoubt && lease.portions.map(\.left) == [50, 50])
    // Again, it is in doubt already.
    #expect(try rig.endLeases().ended == 0)
    #expect(try rig.cell("acme", "chat", .month)?.held == 50)
    // Its owner was only slow.
    let whole = try rig.run(
      one.exchange(rig, "acme/ann", "chat", settle: 50, target: 0, isWhole: true))
    #expect(whole.answers?[0].portions.map(\.left) == [0, 0, 0])
    #expect(try rig.leases() == [])
    #expect(try rig.cell("acme", "chat", .month)?.settled == 50)
    #expect(try rig.cell("acme", "chat", .month)?.held == 0)
  }

  @Test func aDoubtIsOverAtItsHorizonOrByAnOperator() throws {
    for isOperator in [true, false] {
      let rig = try StoreRig.leased(amount: 1000)
      var one = TestLessee(1)
      var two = TestLessee(2)
      _ = try rig.run(one.exchange(rig, "acme/ann", "chat", target: 100))
      _ = try rig.run(two.exchange(rig, "acme/ann", "chat", target: 100))
      try rig.advance(one.ttl + LeaseRules.graceMilliseconds)
      #expect(try rig.endLeases().ended == 2)
      if isOperator {
        #expect(try rig.endLeases(releases: [one.id]).released == 1)
        #expect(try rig.leases().map(\.lessee) == [two.id])
        #expect(try rig.cell("acme/ann", "chat", .lifetime)?.held == 50)
      } else {
        try rig.advance(LeaseRules.horizonMilliseconds)
        #expect(try rig.endLeases().released == 2)
        #expect(try rig.leases() == [])
        // The subject held something and used nothing: nothing of it stays but its rate.
        #expect(try rig.cell("acme", "chat", .month)?.held == 0)
        #expect(try rig.redis.command("EXISTS", rig.keySpace.leasesDue(0)).integer == 0)
      }
    }
  }

  /// What a sidecar's successor says once everything is settled: nothing waits for the lease's end.
  @Test func nothingOfAClosedLesseeStays() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    var two = TestLessee(2)
    _ = try rig.run(two.exchange(rig, "acme/ann", "chat", target: 50))
    let sent = try one.exchange(rig, "acme/ann", "chat", settle: 3, target: 100)
    _ = try rig.run(sent)
    let late = try one.exchange(rig, "acme/bob", "chat", settle: 1, target: 100)
    try rig.close(one.id)
    #expect(
      try rig.endLeases(closed: [one.id]) == .init(now: rig.now, ended: 0, released: 1, units: 200))
    #expect(try rig.leases().map(\.lessee) == [two.id])
    #expect(try rig.cell("acme", "chat", .month)?.held == 50)
    #expect(try rig.cell("acme", "chat", .month)?.settled == 3)
    // A copy that was under way all the time, and the repeat of one that was done.
    #expect(try rig.run(late) == .tooOld)
    #expect(try rig.run(sent).isReplay)
    #expect(try rig.leases().map(\.lessee) == [two.id])
    try rig.advance(LeaseRules.callWindowMilliseconds + 1)
    #expect(try rig.run(late) == .tooOld)
  }

  /// An operator's word is about doubts: who may still be at work keeps what it has.
  @Test func anOperatorReleasesNoLiveLease() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", target: 100))
    #expect(
      try rig.endLeases(releases: [one.id]) == .init(now: rig.now, ended: 0, released: 0, units: 0))
    #expect(try rig.cell("acme", "tokens", .month)?.held == 100)
  }

  @Test func anExchangeProlongsAndALiveLeaseIsNoDoubt() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", target: 100))
    try rig.advance(one.ttl + LeaseRules.graceMilliseconds - 1)
    _ = try rig.run(one.exchange(rig, "acme", "tokens"))
    try rig.advance(1)
    // Listed by its first end, which has moved.
    #expect(
      try rig.endLeases(releases: [one.id])
        == .init(
          now: rig.now, ended: 0, released: 0, units: 0))
    #expect(
      try rig.redis.command("ZSCORE", rig.keySpace.leasesDue(0), "acme").string
        == "\(rig.now.milliseconds - 1 + one.ttl + LeaseRules.graceMilliseconds)")
    #expect(try rig.leases()[0].isInDoubt == false)
  }

  @Test func leasesBelowTheAccountThatTheCallerHadNotSeenAreNotEnded() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme/ann", "chat", target: 100))
    let seen = try rig.leases()
    _ = try rig.run(one.exchange(rig, "acme/bob", "chat", target: 100))
    try rig.advance(one.ttl + LeaseRules.graceMilliseconds)
    let before = try rig.dump()
    let call = LeaseEndCall(
      keySpace: rig.keySpace, fence: rig.fence, account: try Subject("acme"), leases: seen)
    #expect(try rig.run(call) == .done(.unseen))
    #expect(try rig.dump() == before)
    #expect(try rig.endLeases().ended == 1)
  }

  // MARK: - Asking back, and telling

  @Test func whatOthersHoldIsAskedForOnceAndNothingIsGrantedMeanwhile() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    var two = TestLessee(0xFE)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", target: 100))
    _ = try rig.run(two.exchange(rig, "acme", "tokens", target: 40))
    let listener = try rig.server.connect()
    try listener.command("SUBSCRIBE", rig.keySpace.recallChannel(one.id))
    let recall = RecallCall(
      keySpace: rig.keySpace, fence: rig.fence, account: try Subject("acme"), asker: two.id,
      wanted: [.init(subject: try Subject("acme"), field: "tokens|M")])
    let held = RecallCall.Held(byOthers: 100, byAsker: 40, inDoubt: 0)
    #expect(try rig.run(recall) == .done([held]))
    #expect(try rig.run(recall) == .done([held]))
    #expect(
      try listener.receive().strings == [
        "message", "tg1:test:r:0000000000000001", "acme",
      ])
    let asks = try rig.run(two.exchange(rig, "acme", "tokens", target: 300))
    #expect(asks.left == 40 && asks.answers?[0].flags == .recalled)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", target: 0))
    #expect(
      try rig.run(recall) == .done([.init(byOthers: 0, byAsker: 40, inDoubt: 0)]))
    try rig.advance(LeaseRules.recallMilliseconds)
    #expect(try rig.run(two.exchange(rig, "acme", "tokens", target: 300)).left == 300)
  }

  @Test func changesAndResetsAreTold() throws {
    let rig = try StoreRig.leased(amount: 1000)
    let listener = try rig.server.connect()
    try listener.command("SUBSCRIBE", rig.keySpace.changesChannel)
    _ = try rig.consume("acme/ann", ("chat", 3))
    _ = try rig.run(Scenario.reset(rig, "acme/ann", "chat", .lifetime))
    #expect(try listener.receive().strings.last == "acme")
    _ = try rig.redis.pipeline([try Scenario.accountChange(rig, "other", expected: 0)])
    #expect(try listener.receive().strings.last == "other")
    try Scenario.openControl(rig)
    _ = try rig.run(Scenario.globalChange(rig, version: 1))
    #expect(try listener.receive().strings.last == "*")
    _ = try rig.run(ScriptsCorrectTests.adjust(rig, 30))
    #expect(try listener.receive().strings.last == "acme")
  }

  /// Units in stock are not used: no threshold is reached by them.
  @Test func whatIsOnlyLeasedReachesNoThreshold() throws {
    let rig = try StoreRig.leased(amount: 1000)
    var one = TestLessee(1)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", target: 500))
    _ = try rig.run(one.exchange(rig, "acme", "tokens", settle: 100))
    _ = try rig.consume("acme", ("tokens", 100))
    guard case .done(let early) = try rig.run(rig.thresholds(amount: 1000)) else {
      Issue.record("not asked")
      return
    }
    #expect(early.entries.isEmpty)
    _ = try rig.run(one.exchange(rig, "acme", "tokens", settle: 400))
    guard case .done(let later) = try rig.run(rig.thresholds(amount: 1000)) else {
      Issue.record("not asked")
      return
    }
    #expect(later.entries.map(\.id.index) == [50])
  }

  // MARK: - Numbers in both languages

  @Test func theCeilingIsTheSameInBothLanguages() throws {
    let rig = try StoreRig.leased()
    let text = String(decoding: PackageResources.part_lessee_lua, as: UTF8.self)
    let lefts = Array(0...200) + [1000, 4095, 4096, 4097, Quantity.maximum - 1, Quantity.maximum]
    let script = """
      local floor = math.floor
      \(text)
      local r = {}
      for i = 1, #ARGV do r[i] = string.format('%.0f', ceiling(tonumber(ARGV[i]))) end
      return r
      """
    let answer = try rig.redis.command(["EVAL", script, "0"] + lefts.map { "\($0)" })
    #expect(answer.strings == lefts.map { "\(LeaseRules.ceiling(left: $0))" })
    for left in lefts {
      for settled in [0, 1, 2, 15, 16, 17, 100] where Int64(settled) <= left {
        let rest = LeaseRules.ceiling(left: left) - Int64(settled)
        #expect(rest <= LeaseRules.ceiling(left: left - Int64(settled)))
      }
    }
  }

  @Test func theNumbersAreTheSameInBothLanguages() {
    func has(_ bytes: [UInt8], _ text: String) -> Bool {
      String(decoding: bytes, as: UTF8.self).contains(text)
    }
    let rules = LeaseRules.self
    #expect(
      has(
        PackageResources.part_lessee_lua,
        "GRACE, LATE, DOUBT = \(rules.graceMilliseconds), \(rules.horizonMilliseconds), "
          + "\(rules.doubtLeast)\n"))
    #expect(
      has(
        PackageResources.lease_lua,
        "WINDOW, SKEW, CALLS = \(rules.callWindowMilliseconds), "
          + "\(OperationSlice.skewMilliseconds), \(rules.callsKept)\n"))
    #expect(
      has(
        PackageResources.lease_close_lua,
        "WINDOW, SKEW = \(rules.callWindowMilliseconds), \(OperationSlice.skewMilliseconds)\n"))
    #expect(has(PackageResources.recall_lua, "RECALL = \(rules.recallMilliseconds)\n"))
    for script in [PackageResources.lease_lua, PackageResources.decide_lua] {
      #expect(has(script, "now < M[6] + \(rules.youngMilliseconds * 1000)"))
    }
  }
}
