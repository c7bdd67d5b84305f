// What an outbox still holds of whom.

import Testing
import TollgateEngine
import TollgateTesting

@Suite(.blocking) struct UndeliveredIndexTests {
  @Test func theLastUndeliveredEntryOfAnAccountIsKnown() {
    var index = UndeliveredIndex()
    index.stands(epoch: 3, acknowledged: 10)
    #expect(index.read == 10)
    index.found(11, of: "a", movesCounters: true)
    index.found(12, of: "b", movesCounters: true)
    index.found(13, of: "a", movesCounters: true)
    index.found(14, of: "a", movesCounters: false)
    index.found(15, of: nil, movesCounters: true)
    #expect(index.read == 15)
    #expect(index.lastCounted("a") == 13 && index.lastCounted("b") == 12)
    #expect(index.lastCounted("c") == nil)
    #expect(index.lastChanged("a") == 14 && index.lastChanged("b") == nil)
    index.stands(epoch: 3, acknowledged: 13)
    #expect(index.lastCounted("a") == nil && index.lastCounted("b") == nil)
    #expect(index.lastChanged("a") == 14)
  }

  @Test func repeatedAndLatePagesChangeNothing() {
    var index = UndeliveredIndex()
    index.stands(epoch: 3, acknowledged: 0)
    for _ in 0..<2 {
      for sequence: Int64 in [3, 1, 2] {
        index.found(sequence, of: "a", movesCounters: true)
      }
    }
    #expect(index.lastCounted("a") == 3 && index.read == 3)
    index.stands(epoch: 3, acknowledged: 5)
    index.found(4, of: "a", movesCounters: true)
    index.stands(epoch: 3, acknowledged: 2)
    #expect(index.lastCounted("a") == nil && index.read == 5)
  }

  @Test func aNewEpochStartsWithNothing() {
    var index = UndeliveredIndex()
    index.stands(epoch: 3, acknowledged: 0)
    index.found(9, of: "a", movesCounters: true)
    index.stands(epoch: 4, acknowledged: 0)
    #expect(index.lastCounted("a") == nil && index.read == 0)
  }

  @Test func whatIsDeliveredIsForgotten() {
    var index = UndeliveredIndex()
    index.stands(epoch: 1, acknowledged: 0)
    for sequence in 1...5000 as ClosedRange<Int64> {
      index.found(sequence, of: "a\(sequence)", movesCounters: true)
    }
    index.stands(epoch: 1, acknowledged: 4_990)
    #expect(index.lastCounted("a4990") == nil && index.lastCounted("a4991") == 4991)
  }
}
