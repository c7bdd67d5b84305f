// What is asked for again and again, told from what is not.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct HotShapesTests {
  private static let second: Int64 = 1_000_000_000
  /// Two of one place.
  private static let one: UInt64 = 7 << 32 | 5
  private static let other: UInt64 = 8 << 32 | 5

  private func ask(_ hashes: [UInt64], pause: Int64 = 1) -> [Bool] {
    var shapes = HotShapes()
    return hashes.enumerated().map {
      shapes.note($1, at: 10 * Self.second + Int64($0) * pause * 1_000_000, within: Self.second)
    }
  }

  @Test(arguments: [(0, true), (1_000, true), (1_001, false), (60_000, false)] as [(Int64, Bool)])
  func theThirdTimeInARowIsHot(_ pause: Int64, _ isHot: Bool) {
    let asked = ask([Self.one, Self.one, Self.one, Self.one], pause: pause)
    #expect(asked == [false, false, isHot, isHot])
  }

  @Test func aLongPauseBeginsANewRow() {
    var shapes = HotShapes()
    let asked = [0, 1, 3, 4, 5, 7].map { (second: Int64) in
      shapes.note(Self.one, at: (10 + second) * Self.second, within: Self.second)
    }
    #expect(asked == [false, false, false, false, true, false])
  }

  @Test func anotherShapeOfTheSamePlaceIsNotTakenForIt() {
    let asked = ask([Self.one, Self.one, Self.other, Self.one, Self.one, Self.one])
    #expect(asked == [false, false, false, false, false, true])
  }

  /// Its clock of milliseconds begins anew every twelve days.
  @Test func itsClockMayTurnOver() {
    var shapes = HotShapes()
    let turn = Int64(1 << 30) * 1_000_000
    let asked = [-2, -1, 1, 2].map { (millisecond: Int64) in
      shapes.note(Self.one, at: turn + millisecond * 1_000_000, within: Self.second)
    }
    #expect(asked == [false, false, true, true])
  }

  /// Half as many as there are places, in turn: most are known when they come again, and nothing
  /// else is taken for one of them.
  @Test func manyAreKnownAgain() {
    var shapes = HotShapes()
    var random = SeededRandom(seed: 1)
    let hashes = (0..<HotShapes.places / 2).map { _ in random.next() }
    var known = 0
    for _ in 0..<HotShapes.timesMin {
      known = hashes.count { shapes.note($0, at: 10 * Self.second, within: Self.second) }
    }
    #expect(known > hashes.count / 2)
    let others = (0..<HotShapes.places).count { _ in
      shapes.note(random.next(), at: 10 * Self.second, within: Self.second)
    }
    #expect(others == 0)
  }
}
