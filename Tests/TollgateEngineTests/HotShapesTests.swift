// What is asked for twice within a time, told from what is not.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct HotShapesTests {
  private static let second: Int64 = 1_000_000_000
  /// Two of one place.
  private static let one: UInt64 = 7 << 32 | 5
  private static let other: UInt64 = 8 << 32 | 5

  @Test func aSecondTimeWithinTheSpanIsHot() {
    for (pause, isHot) in [(0, true), (1_000, true), (1_001, false), (60_000, false)] {
      var shapes = HotShapes()
      let first = shapes.note(Self.one, at: 10 * Self.second, within: Self.second)
      let again = shapes.note(
        Self.one, at: 10 * Self.second + Int64(pause) * 1_000_000, within: Self.second)
      #expect(!first && again == isHot)
    }
  }

  @Test func anotherShapeOfTheSamePlaceIsNotTakenForIt() {
    var shapes = HotShapes()
    let asked = [Self.one, Self.other, Self.one, Self.one].map {
      shapes.note($0, at: 10 * Self.second, within: Self.second)
    }
    #expect(asked == [false, false, false, true])
  }

  /// Its clock of milliseconds begins anew every 49 days.
  @Test func itsClockMayTurnOver() {
    var shapes = HotShapes()
    let turn = Int64(1 << 32) * 1_000_000
    _ = shapes.note(Self.one, at: turn - 1_000_000, within: Self.second)
    let again = shapes.note(Self.one, at: turn + 1_000_000, within: Self.second)
    #expect(again)
  }

  /// As many as there are places, in turn: most are known when they come again.
  @Test func manyAreKnownAgain() {
    var shapes = HotShapes()
    var random = SeededRandom(seed: 1)
    let hashes = (0..<HotShapes.places / 2).map { _ in random.next() }
    for hash in hashes { _ = shapes.note(hash, at: 10 * Self.second, within: Self.second) }
    let known = hashes.count { shapes.note($0, at: 10 * Self.second, within: Self.second) }
    #expect(known > hashes.count / 2)
    let others = (0..<HotShapes.places).count { _ in
      shapes.note(random.next(), at: 10 * Self.second, within: Self.second)
    }
    #expect(others == 0)
  }
}
