// Deltas held until the ledger has them: what is let go, when, and that the store is bounded.

import Testing
import TollgateCore
import TollgateEngine
import TollgateTesting

struct RetainedDeltasTests {
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

  @Test func aCursorOfALaterEpochLetsOldOnesGo() {
    var retained = retained(5...9, epoch: 1)
    retained.add(entry(1), bucket: 3, epoch: 2)
    retained.add(entry(2), bucket: 3, epoch: 2)
    retained.acknowledged(bucket: 3, epoch: 2, through: 1)
    #expect(retained.count == 1)
    #expect(retained.present(bucket: 3, epoch: 2, after: 0).map(\.sequence) == [2])
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
    for _ in 0..<3_000 {
      let bucket = Int.random(in: 0...3, using: &random)
      let last = next[bucket, default: 0]
      if random.chance(0.9) {
        next[bucket] = last + 1
        retained.add(entry(last + 1), bucket: bucket, epoch: 1)
      } else {
        retained.acknowledged(
          bucket: bucket, epoch: 1, through: Int64.random(in: 0...last, using: &random))
      }
      let held = (0...3).reduce(0) { $0 + retained.present(bucket: $1, epoch: 1, after: 0).count }
      #expect(held == retained.count)
      #expect(retained.count <= 60)
    }
  }
}
