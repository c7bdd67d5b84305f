// The coordination of a recovery, as transcripts.

import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct RecoveryMachineTests {
  typealias Action = RecoveryMachine.Action

  let at = MonotonicTime(nanoseconds: 1_000)
  let one: Name
  let two: Name
  var machine = RecoveryMachine()

  init() throws {
    one = try Name("one")
    two = try Name("two")
    _ = machine.linked(1, sidecar: one)
    _ = machine.linked(2, sidecar: two)
  }

  private func recover(
    _ bucket: UInt32 = 0, epoch: Int64 = 3, meta: (Int64, Int64) = (0, 0)
  ) -> Recover {
    Recover(bucket: bucket, epoch: epoch, metaEpoch: meta.0, metaSequence: meta.1)
  }
  private func position(_ bucket: Int = 0, epoch: Int64 = 3, cursor: Int64 = 10) -> BucketPosition {
    BucketPosition(bucket: bucket, epoch: epoch, cursor: cursor)
  }
  private func present(
    _ bucket: UInt32 = 0, epoch: Int64 = 3, _ entries: [OutboxEntry] = []
  ) -> Present {
    Present(bucket: bucket, epoch: epoch, entries: entries)
  }
  private func request(
    _ entries: [OutboxEntry] = [], bucket: Int = 0, epoch: Int64 = 3, seen: Int64 = 0,
    by name: String = "one"
  ) -> Action {
    .close(
      RecoveryRequest(
        bucket: bucket, epoch: epoch, highestSeen: seen, entries: entries, requester: name))
  }
  private func ask(_ links: [Int], _ bucket: UInt32 = 0, cursor: Int64 = 10) -> Action {
    .ask(links, PresentRequest(bucket: bucket, epoch: 3, cursor: cursor))
  }
  private func notice(_ bucket: UInt32 = 0, epoch: Int64 = 4, opener: Name, last: Int64 = 12)
    -> EpochNotice
  {
    EpochNotice(
      bucket: bucket, epoch: epoch, opener: opener, previousEpoch: 3, previousLast: last)
  }

  @Test mutating func everybodyAnswers() throws {
    let (a, b) = (try usage(11, op: 1), try usage(12, op: 2))
    #expect(machine.requested(by: 1, recover(), position: position(), now: at) == [ask([1, 2])])
    #expect(machine.deadline == at + RecoveryMachine.windowNanoseconds)
    #expect(machine.presented(by: 2, present(0, [a]), isLast: false) == [])
    #expect(machine.presented(by: 1, present(0, [b]), isLast: true) == [])
    #expect(machine.presented(by: 2, present(0, []), isLast: true) == [request([a, b])])
    #expect(machine.deadline == nil)
    let outcome = RecoveryOutcome(epoch: 4, isNew: true, lastSequence: 12, posted: 2)
    #expect(
      machine.closed(bucket: 0, outcome, now: at) == [.tell([1, 2], notice(opener: one))])
    #expect(machine.gatheringBuckets == 0)
  }

  /// After a start the sidecars come back one by one, and each may hold what nobody else does.
  @Test mutating func afterAStartAGatheringWaitsForThoseThatAreNotLinkedYet() throws {
    machine = RecoveryMachine(startedAt: at)
    _ = machine.linked(1, sidecar: one)
    let (a, b) = (try usage(11, op: 1), try usage(12, op: 2))
    let quiet = at + RecoveryMachine.windowNanoseconds
    _ = machine.requested(by: 1, recover(), position: position(), now: at + 1_000_000)
    #expect(machine.presented(by: 1, present(0, [a]), isLast: true) == [])
    #expect(machine.deadline == quiet)
    #expect(machine.timePassed(now: at + 2_000_000) == [])
    #expect(machine.linked(2, sidecar: two) == [ask([2])])
    #expect(machine.presented(by: 2, present(0, [b]), isLast: true) == [])
    #expect(machine.timePassed(now: quiet) == [request([a, b])])
  }

  /// Once that time has passed, who is asked has its own window, and nobody else is waited for.
  @Test mutating func afterTheQuietTimeTheLastAnswerEndsTheGathering() throws {
    machine = RecoveryMachine(startedAt: at)
    _ = machine.linked(1, sidecar: one)
    let quiet = at + RecoveryMachine.windowNanoseconds
    _ = machine.requested(by: 1, recover(), position: position(), now: at + 1_000_000)
    #expect(machine.timePassed(now: quiet) == [])
    #expect(machine.deadline == at + 1_000_000 + RecoveryMachine.windowNanoseconds)
    #expect(machine.presented(by: 1, present(), isLast: true) == [request()])
    let later = quiet + 1
    _ = machine.closed(
      bucket: 0, RecoveryOutcome(epoch: 4, isNew: true, lastSequence: 10), now: later)
    _ = machine.requested(
      by: 1, recover(1, epoch: 3), position: position(1), now: later)
    #expect(machine.presented(by: 1, present(1), isLast: true) == [request(bucket: 1)])
  }

  @Test mutating func bucketNeverOpenedNeedsNoPresenting() {
    let actions = machine.requested(
      by: 2, recover(epoch: 0), position: position(epoch: 0, cursor: 0), now: at)
    #expect(actions == [request(epoch: 0, by: "two")])
  }

  @Test mutating func whatRedisNamesCountsAsSeen() throws {
    _ = machine.requested(
      by: 1, recover(meta: (3, 40)), position: position(), now: at)
    _ = machine.requested(
      by: 2, recover(meta: (3, 44)), position: position(), now: at)
    _ = machine.presented(by: 1, present(), isLast: true)
    #expect(machine.presented(by: 2, present(), isLast: true) == [request(seen: 44)])
  }

  @Test mutating func sequencesOfAnotherEpochAreNotSeen() {
    _ = machine.requested(by: 1, recover(meta: (2, 40)), position: position(), now: at)
    _ = machine.presented(by: 1, present(), isLast: true)
    #expect(machine.presented(by: 2, present(), isLast: true) == [request(seen: 0)])
  }

  @Test mutating func twoRequestersAtOnceShareOneRecovery() {
    #expect(machine.requested(by: 1, recover(), position: position(), now: at) == [ask([1, 2])])
    #expect(machine.requested(by: 2, recover(), position: position(), now: at) == [])
    _ = machine.presented(by: 2, present(), isLast: true)
    #expect(machine.presented(by: 1, present(), isLast: true) == [request()])
    // Asking while it is written does not start another one either.
    #expect(machine.requested(by: 2, recover(), position: position(), now: at) == [])
    let told = machine.closed(
      bucket: 0, RecoveryOutcome(epoch: 4, isNew: true, lastSequence: 12), now: at)
    #expect(told == [.tell([1, 2], notice(opener: one))])
  }

  @Test mutating func requesterThatComesJustAfterIsToldOfTheFreshEpoch() {
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    _ = machine.presented(by: 1, present(), isLast: true)
    _ = machine.presented(by: 2, present(), isLast: true)
    _ = machine.closed(
      bucket: 0, RecoveryOutcome(epoch: 4, isNew: true, lastSequence: 12), now: at)
    let late = machine.requested(
      by: 2, recover(), position: position(epoch: 4, cursor: 0), now: at + 1)
    #expect(late == [.tell([2], notice(opener: one))])
  }

  @Test mutating func redisThatLostTheNewEpochTooGetsAnother() {
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    _ = machine.presented(by: 1, present(), isLast: true)
    _ = machine.presented(by: 2, present(), isLast: true)
    _ = machine.closed(
      bucket: 0, RecoveryOutcome(epoch: 4, isNew: true, lastSequence: 12), now: at)
    // Later than the opener needs: a sidecar that knows nothing finds Redis empty.
    let late = machine.requested(
      by: 2, recover(epoch: 0), position: position(epoch: 4, cursor: 5),
      now: at + RecoveryMachine.openingNanoseconds)
    #expect(late == [.ask([1, 2], PresentRequest(bucket: 0, epoch: 4, cursor: 5))])
  }

  @Test mutating func openerThatDiesBeforeItOpenedIsReplaced() {
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    _ = machine.presented(by: 1, present(), isLast: true)
    _ = machine.presented(by: 2, present(), isLast: true)
    _ = machine.closed(
      bucket: 0, RecoveryOutcome(epoch: 4, isNew: true, lastSequence: 12), now: at)
    _ = machine.unlinked(1)
    let again = machine.requested(
      by: 2, recover(), position: position(epoch: 4, cursor: 0), now: at + 1)
    #expect(again == [.ask([2], PresentRequest(bucket: 0, epoch: 4, cursor: 0))])
  }

  @Test mutating func linkThatDiesMidRecoveryIsNotAwaitedButWhatItGaveStays() throws {
    let entry = try usage(11, op: 1)
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    _ = machine.presented(by: 2, present(0, [entry]), isLast: false)
    _ = machine.presented(by: 1, present(), isLast: true)
    #expect(machine.unlinked(2) == [request([entry])])
  }

  @Test mutating func requesterThatDiesIsReplacedByOneThatAnswered() {
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    _ = machine.presented(by: 2, present(), isLast: true)
    #expect(machine.unlinked(1) == [request(by: "two")])
    let told = machine.closed(
      bucket: 0, RecoveryOutcome(epoch: 4, isNew: true, lastSequence: 12), now: at)
    #expect(told == [.tell([2], notice(opener: two))])
  }

  @Test mutating func openerThatDiesWhileItIsWrittenIsReplaced() {
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    _ = machine.presented(by: 1, present(), isLast: true)
    _ = machine.presented(by: 2, present(), isLast: true)
    #expect(machine.unlinked(1) == [])
    let told = machine.closed(
      bucket: 0, RecoveryOutcome(epoch: 4, isNew: true, lastSequence: 12), now: at)
    #expect(told == [.tell([2], notice(opener: two))])
  }

  @Test mutating func windowEndsForThoseWhoDoNotAnswer() {
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    _ = machine.presented(by: 1, present(), isLast: true)
    #expect(machine.timePassed(now: at + (RecoveryMachine.windowNanoseconds - 1)) == [])
    #expect(machine.timePassed(now: at + RecoveryMachine.windowNanoseconds) == [request()])
  }

  @Test mutating func latePresenterIsIgnored() throws {
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    _ = machine.presented(by: 1, present(), isLast: true)
    _ = machine.timePassed(now: at + RecoveryMachine.windowNanoseconds)
    let late = present(0, [try usage(11, op: 1)])
    #expect(machine.presented(by: 2, late, isLast: true) == [])
    _ = machine.closed(
      bucket: 0, RecoveryOutcome(epoch: 4, isNew: true, lastSequence: 12), now: at)
    #expect(machine.presented(by: 2, late, isLast: true) == [])
    #expect(machine.gatheringBuckets == 0)
  }

  @Test mutating func nobodyAnsweredMeansNobodyReadTheOutbox() {
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    #expect(machine.timePassed(now: at + RecoveryMachine.windowNanoseconds) == [])
    #expect(machine.gatheringBuckets == 0)
    // The requester asks again, and that starts anew.
    #expect(machine.requested(by: 1, recover(), position: position(), now: at) == [ask([1, 2])])
  }

  @Test mutating func linkThatComesMidRecoveryIsAskedToo() throws {
    let entry = try usage(11, op: 1)
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    _ = machine.presented(by: 1, present(), isLast: true)
    #expect(machine.linked(3, sidecar: try Name("three")) == [ask([3])])
    _ = machine.presented(by: 2, present(), isLast: true)
    #expect(machine.presented(by: 3, present(0, [entry]), isLast: true) == [request([entry])])
  }

  @Test mutating func bucketsRecoverApart() throws {
    let entry = try usage(11, op: 1)
    _ = machine.requested(by: 1, recover(0), position: position(0), now: at)
    #expect(
      machine.requested(by: 2, recover(1), position: position(1), now: at + 5)
        == [ask([1, 2], 1)])
    _ = machine.presented(by: 1, present(1, [entry]), isLast: true)
    #expect(
      machine.presented(by: 2, present(1), isLast: true) == [request([entry], bucket: 1, by: "two")]
    )
    #expect(machine.deadline == at + RecoveryMachine.windowNanoseconds)
    _ = machine.presented(by: 1, present(0), isLast: true)
    #expect(machine.presented(by: 2, present(0), isLast: true) == [request()])
  }

  @Test mutating func presentOfAnotherEpochIsIgnored() throws {
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    #expect(
      machine.presented(by: 1, present(epoch: 2, [try usage(1, op: 1)]), isLast: true) == [])
    _ = machine.presented(by: 2, present(), isLast: true)
    #expect(machine.presented(by: 1, present(), isLast: true) == [request()])
  }

  @Test mutating func failedTransactionLetsThemAskAgain() {
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    _ = machine.presented(by: 1, present(), isLast: true)
    _ = machine.presented(by: 2, present(), isLast: true)
    machine.closeFailed(bucket: 0)
    #expect(machine.requested(by: 1, recover(), position: position(), now: at) == [ask([1, 2])])
  }

  @Test mutating func epochThatTheLedgerNeverIssuedIsClosedToo() {
    // An older copy of the books was put back.
    let actions = machine.requested(
      by: 1, recover(epoch: 9, meta: (9, 5)), position: position(), now: at)
    #expect(actions == [.ask([1, 2], PresentRequest(bucket: 0, epoch: 9, cursor: 0))])
  }

  @Test mutating func presentingBeyondTheBoundDropsTheLink() throws {
    _ = machine.requested(by: 1, recover(), position: position(), now: at)
    let chunk = [OutboxEntry](repeating: try usage(11, op: 1), count: WireLimits.entriesMax)
    var dropped = false
    for _ in 0...(RecoveryMachine.heldEntriesMax / chunk.count) where !dropped {
      dropped = machine.presented(by: 2, present(0, chunk), isLast: false) == [.drop(2)]
    }
    #expect(dropped)
    // The others go on.
    _ = machine.presented(by: 1, present(), isLast: true)
    guard case .close(let request)? = machine.unlinked(2).first else {
      Issue.record("the recovery did not finish")
      return
    }
    #expect(request.entries.count <= RecoveryMachine.heldEntriesMax)
    machine.closeFailed(bucket: 0)
  }

  @Test mutating func strangerIsNotHeard() {
    #expect(machine.requested(by: 7, recover(), position: position(), now: at) == [])
    #expect(machine.presented(by: 7, present(), isLast: true) == [])
    #expect(machine.unlinked(7) == [])
  }
}
