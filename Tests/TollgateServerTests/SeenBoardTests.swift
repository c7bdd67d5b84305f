// The board of what was seen of each bucket, and whoever rests there until somebody sees more.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateServer

@Suite(.timeLimit(.minutes(1))) struct SeenBoardTests {
  /// Long enough that only being roused ends it.
  private static let forever = Duration.seconds(3_600)

  private static func board(at sequence: Int64) -> SeenBoard {
    let board = SeenBoard(buckets: BucketMap(buckets: 2))
    board.saw(bucket: 0, epoch: 3, sequence: sequence)
    return board
  }

  private static func rest(
    _ board: SeenBoard, epoch: Int64 = 3, beyond sequence: Int64, for length: Duration = forever
  ) async {
    await board.rest(bucket: 0, epoch: epoch, beyond: sequence, until: .now + length)
  }

  @Test func aRestEndsWhenMoreIsSeen() async {
    let board = Self.board(at: 7)
    for (epoch, sequence) in [(3, 8), (3, 9), (4, 0)] as [(Int64, Int64)] {
      let known = board[0].position
      async let rested: Void = Self.rest(board, epoch: known.epoch, beyond: known.sequence)
      // Whether it lies down before this or after, it ends.
      await Task.yield()
      board.saw(bucket: 0, epoch: epoch, sequence: sequence)
      await rested
    }
  }

  @Test func whatWasSeenBeforeEndsItAtOnce() async {
    await Self.rest(Self.board(at: 7), beyond: 6)
  }

  @Test func whatIsNoNewsEndsNothing() async throws {
    let board = Self.board(at: 7)
    let clock = ContinuousClock()
    let start = clock.now
    async let rested: Void = Self.rest(board, beyond: 7, for: .milliseconds(200))
    while clock.now - start < .milliseconds(100) {
      board.saw(bucket: 0, epoch: 3, sequence: 7)
      board.saw(bucket: 0, epoch: 2, sequence: 99)
      board.saw(bucket: 1, epoch: 3, sequence: 99)
      try await Task.sleep(for: .milliseconds(5))
    }
    await rested
    #expect(clock.now - start >= .milliseconds(200))
  }

  @Test func restsOfOneLengthEndTogether() async throws {
    for length in [250, 1_000, 3_000] as [Int64] {
      let (first, start) = (Nap.end(after: length), ContinuousClock.now)
      #expect(first - start >= .milliseconds(length / 2 - 50))
      #expect(first - start <= .milliseconds(length / 2 * 3 + 50))
      try await Task.sleep(for: .milliseconds(3))
      let turns = (Nap.end(after: length) - first) / Duration.milliseconds(length)
      #expect(turns == turns.rounded(), "they are whole lengths apart")
    }
  }

  @Test func cancellingItsTaskEndsIt() async {
    let board = Self.board(at: 7)
    let task = Task { await Self.rest(board, beyond: 7) }
    await Task.yield()
    task.cancel()
    await task.value
  }
}
