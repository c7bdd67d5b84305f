// What a running ledger does by itself now and then: it closes months, where it is told to, and
// drops sums of short windows that no seed can need any more. Counters of minutes and hours would
// otherwise be most of the file. Deltas, books and ids stay for good (proto/LEDGER.md).
//
// In small transactions with pauses between, on a queue of its own: a batch that waits for the file
// waits for one of them. A failure ends one round, never the task.

internal import Dispatch
internal import Logging
internal import TollgateCore

struct LedgerUpkeep: Sendable {
  let store: LedgerStore
  let intervalMilliseconds: Int64
  /// Months are closed so many days after their end; nil: by hand.
  let closeAfterDays: Int?
  let clock: @Sendable () -> WallTime
  let logger: Logger
  private let queue = DispatchQueue(label: "tollgate.ledger.upkeep", qos: .utility)

  /// Between two transactions of one round.
  static let pauseMilliseconds: Int64 = 20

  init(
    store: LedgerStore, intervalMilliseconds: Int64, closeAfterDays: Int? = nil, logger: Logger,
    clock: @escaping @Sendable () -> WallTime
  ) {
    self.store = store
    self.intervalMilliseconds = intervalMilliseconds
    self.closeAfterDays = closeAfterDays
    self.logger = logger
    self.clock = clock
  }

  /// A round at once, and then at each interval, until the task is cancelled.
  func run() async {
    let prunes = intervalMilliseconds > 0
    guard prunes || closeAfterDays != nil else { return }
    while !Task.isCancelled {
      await closeMonths()
      if prunes { await round() }
      // A clock of its own: nothing else depends on when it comes.
      try? await Task.sleep(
        for: .milliseconds(
          prunes ? intervalMilliseconds : LedgerConfiguration.pruneDefaultMilliseconds))
    }
  }

  /// Everything that may go now, one transaction after the other.
  func round(limit: Int = LedgerStore.pruneRowsMax) async {
    var dropped = 0
    while !Task.isCancelled {
      do {
        let count = try await prune(limit)
        dropped += count
        if count < limit { break }
      } catch {
        logger.warning("counters were not pruned", metadata: ["error": "\(error)"])
        break
      }
      // Deltas are written in between.
      try? await Task.sleep(for: .milliseconds(Self.pauseMilliseconds))
    }
    guard dropped > 0 else { return }
    logger.notice("counters of past short periods dropped", metadata: ["count": "\(dropped)"])
  }

  func closeMonths() async {
    guard let days = closeAfterDays else { return }
    do {
      let month = try await withCheckedThrowingContinuation { continuation in
        queue.async {
          continuation.resume(with: Result { try store.closeEnded(daysAgo: days, now: clock()) })
        }
      }
      guard let month else { return }
      logger.notice(
        "months closed", metadata: ["through": "\(CivilDate.text(month.start).prefix(7))"])
    } catch {
      logger.warning("months were not closed", metadata: ["error": "\(error)"])
    }
  }

  private func prune(_ limit: Int) async throws -> Int {
    try await withCheckedThrowingContinuation { continuation in
      queue.async {
        continuation.resume(with: Result { try store.prune(now: clock(), limit: limit) })
      }
    }
  }
}
