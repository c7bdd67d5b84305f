// Deltas held until the ledger has them: what is let go, when, and that the store is bounded.

import Testing
import TollgateCore
import TollgateEngine
import TollgateTesting

@Suite(.blocking) struct RetainedDeltasTests {
  private func entry(_ sequence: Int64) -> OutboxEntry {
    OutboxEntry(
      sequence: sequence, kind: .usage,
      id: DeltaID(operation: OperationID(high: 0, low: UInt64(sequence)), index: 0),
      time: WallTime(milliseconds: 1_000 + sequence), actual: 1, charged: 1, absorbed: 0, body: [])
  }

  private func retained(_ range: ClosedRange<Int64>, epoch: Int64 = 1) -> RetainedDeltas {
    var retained = RetainedDeltas(entriesMax: 100)
    for sequence in range { retained.add(entry(sequence), bucket: 3, epoch: epoch) }
    return retained
  }

  @Test func whatIsAcknowledgedIsLetGo() {
    var retained = retained(1...10)
    retained.acknowledged(bucket: 3, epoch: 1, through: 4)
    #expect(retained.count == 6)
    #expect(retained.present(bucket: 3, epoch: 1, after: 0).map(\.sequence) == Array(5...10))
    retained.acknowledged(bucket: 3, epoch: 1, through: 10)
    #expect(retained.count == 0)
    #expect(retained.oldestTime == nil)
  }

  @Test func anAcknowledgementOfAnotherBucketLetsNothingGo() {
    var retained = retained(1...3)
    retained.acknowledged(bucket: 4, epoch: 1, through: 3)
    #expect(retained.count == 3)
  }

  /// PITFALL 25: a cursor of one epoch says nothing of the next one's numbers.
  @Test func aCursorOfAnOldEpochDoesNotReachALaterOne() {
    var retained = retained(1...3, epoch: 2)
    retained.acknowledged(bucket: 3, epoch: 1, through: 9)
    #expect(retained.count == 3)
  }

  /// A sidecar that was cut off from the ledger did not present these when their epoch was closed.
  @Test func whatIsHeldOfAnEpochThatIsOverIsLateAndNotLetGo() {
    var retained = retained(5...9, epoch: 1)
    retained.add(entry(1), bucket: 3, epoch: 2)
    retained.add(entry(2), bucket: 3, epoch: 2)
    retained.acknowledged(bucket: 3, epoch: 2, through: 1)
    #expect(retained.present(bucket: 3, epoch: 2, after: 0).map(\.sequence) == [2])
    #expect(retained.late(bucket: 3, limit: 10).map(\.sequence) == Array(5...9))
    #expect(retained.late(bucket: 3, limit: 2).map(\.sequence) == [5, 6])
    #expect(retained.lateBuckets == [3])
    #expect(retained.count == 6 && retained.lateCount == 5)
  }

  @Test(arguments: [true, false]) func aLaterEpochIsLearnedOfByOpeningItOrByItsCursor(opened: Bool)
  {
    var retained = retained(1...3)
    if opened {
      retained.opened(bucket: 3, epoch: 2)
    } else {
      retained.acknowledged(bucket: 3, epoch: 2, through: 7)
    }
    #expect(retained.lateCount == 3)
    // Nothing is late of an epoch that goes on.
    retained.opened(bucket: 3, epoch: 2)
    retained.opened(bucket: 4, epoch: 2)
    #expect(retained.lateCount == 3)
  }

  /// The cursor of an epoch that is over stands above what was closed as lost.
  @Test func aCursorOfTheClosedEpochLetsNoLateEntryGo() {
    var retained = retained(1...3)
    retained.opened(bucket: 3, epoch: 2)
    retained.acknowledged(bucket: 3, epoch: 1, through: 3)
    #expect(retained.lateCount == 3)
  }

  @Test func anAnswerThatComesAfterItsEpochWasClosedIsLateAtOnce() {
    var retained = retained(1...1, epoch: 2)
    retained.add(entry(9), bucket: 3, epoch: 1)
    #expect(retained.late(bucket: 3, limit: 9).map(\.sequence) == [9])
    #expect(retained.present(bucket: 3, epoch: 2, after: 0).map(\.sequence) == [1])
    #expect(retained.present(bucket: 3, epoch: 1, after: 0).map(\.sequence) == [9])
  }

  /// The shipper may be faster than the reply on its way to whoever holds the delta.
  @Test func whatIsAcknowledgedBeforeItIsAddedIsNotHeld() {
    var retained = RetainedDeltas(entriesMax: 10)
    retained.acknowledged(bucket: 3, epoch: 1, through: 5)
    retained.add(entry(5), bucket: 3, epoch: 1)
    #expect(retained.count == 0)
    retained.add(entry(6), bucket: 3, epoch: 1)
    retained.add(entry(5), bucket: 3, epoch: 2)
    #expect(retained.present(bucket: 3, epoch: 2, after: 0).map(\.sequence) == [5])
    #expect(retained.late(bucket: 3, limit: 9).map(\.sequence) == [6])
  }

  @Test func whatIsOnRecordIsLateNoMore() {
    var retained = retained(1...4)
    retained.opened(bucket: 3, epoch: 2)
    retained.settledLate(bucket: 3, [entry(1).id, entry(3).id, entry(77).id])
    #expect(retained.late(bucket: 3, limit: 9).map(\.sequence) == [2, 4])
    #expect(retained.count == 2)
    retained.settledLate(bucket: 3, [entry(2).id, entry(4).id])
    #expect(retained.lateBuckets.isEmpty && retained.count == 0)
  }

  @Test func atTheBoundLateEntriesAreTheLastToGo() {
    var retained = retained(1...50)
    retained.opened(bucket: 3, epoch: 2)
    for sequence in 1...90 { retained.add(entry(Int64(sequence)), bucket: 4, epoch: 1) }
    #expect(retained.count <= 100)
    #expect(retained.lateCount == 50)
    #expect(retained.dropped == 140 - Int64(retained.count))
    retained.opened(bucket: 4, epoch: 2)
    let before = retained.dropped
    for sequence in 1...200 { retained.add(entry(Int64(sequence)), bucket: 5, epoch: 1) }
    #expect(retained.count <= 100)
    #expect(retained.dropped == before + 200 + 50 + (140 - 50 - before) - Int64(retained.count))
    retained.opened(bucket: 5, epoch: 2)
    for epoch: Int64 in 3...6 {
      for sequence in 1...60 { retained.add(entry(Int64(sequence)), bucket: 5, epoch: epoch) }
    }
    #expect(retained.count <= 100, "late entries alone are bounded too")
  }

  @Test func onlyTheAskedEpochAfterTheCursorIsPresented() {
    var retained = retained(1...5)
    retained.add(entry(1), bucket: 3, epoch: 2)
    retained.add(entry(9), bucket: 4, epoch: 1)
    #expect(retained.present(bucket: 3, epoch: 1, after: 3).map(\.sequence) == [4, 5])
    #expect(retained.present(bucket: 3, epoch: 3, after: 0).isEmpty)
    #expect(retained.present(bucket: 9, epoch: 1, after: 0).isEmpty)
    #expect(retained.count == 7, "presenting lets nothing go: the ledger has not confirmed it")
  }

  @Test func atTheBoundTheOldestOfTheLongestBucketGo() {
    var retained = RetainedDeltas(entriesMax: 80)
    retained.add(entry(1), bucket: 1, epoch: 1)
    for sequence in 1...200 { retained.add(entry(Int64(sequence)), bucket: 2, epoch: 1) }
    #expect(retained.count <= 80)
    #expect(retained.dropped == 201 - Int64(retained.count))
    #expect(retained.present(bucket: 1, epoch: 1, after: 0).count == 1)
    let left = retained.present(bucket: 2, epoch: 1, after: 0).map(\.sequence)
    #expect(left == Array((201 - Int64(left.count))...200))
  }

  @Test func theOldestTimeIsThatOfTheOldestEntry() {
    var retained = retained(7...9)
    retained.add(entry(2), bucket: 1, epoch: 1)
    #expect(retained.oldestTime == WallTime(milliseconds: 1_002))
    retained.acknowledged(bucket: 1, epoch: 1, through: 2)
    #expect(retained.oldestTime == WallTime(milliseconds: 1_007))
  }

  @Test func theCountIsAlwaysThatOfTheEntries() {
    var random = SeededRandom.fromEnvironment("RetainedDeltasTests")
    var retained = RetainedDeltas(entriesMax: 60)
    var next: [Int: Int64] = [:]
    var epochs: [Int: Int64] = [:]
    for _ in 0..<3_000 {
      let bucket = Int.random(in: 0...3, using: &random)
      let last = next[bucket, default: 0]
      let epoch = epochs[bucket, default: 1]
      if random.chance(0.9) {
        next[bucket] = last + 1
        retained.add(entry(last + 1), bucket: bucket, epoch: epoch)
      } else if random.chance(0.2) {
        epochs[bucket] = epoch + 1
        retained.opened(bucket: bucket, epoch: epoch + 1)
      } else if random.chance(0.3) {
        let late = retained.late(bucket: bucket, limit: 7)
        retained.settledLate(bucket: bucket, Set(late.map(\.id)))
      } else {
        retained.acknowledged(
          bucket: bucket, epoch: epoch, through: Int64.random(in: 0...last, using: &random))
      }
      let held = (0...3).reduce(0) { sum, bucket in
        sum
          + retained.present(bucket: bucket, epoch: epochs[bucket, default: 1], after: 0).count
      }
      let late = (0...3).reduce(0) { $0 + retained.late(bucket: $1, limit: .max).count }
      #expect(held + late == retained.count && late == retained.lateCount)
      #expect(retained.count <= 60)
    }
  }
}
