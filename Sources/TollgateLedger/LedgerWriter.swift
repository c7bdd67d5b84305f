// Group commit. One fsync costs as much as thousands of inserts, so the writer takes everything
// that is waiting, puts it into one transaction and answers each part by itself. While a
// transaction is being synchronised the next group gathers behind it, and a small group also
// waits until `pace` after the last one: the group size follows the load, and a batch that comes
// later than that waits for nobody.
//
// Threading: `submit` may be called from anywhere and never blocks; completions run on the
// writer's own queue and must not block it. Bounded: jobs and deltas that wait are counted, and
// above the limit a submission is answered `overloaded` at once, before anything is kept.

internal import Dispatch
package import Logging
internal import NIOConcurrencyHelpers
package import TollgateCore
package import TollgateWire

package final class LedgerWriter: Sendable {
  /// Deltas waiting for a transaction, over all links.
  package static let waitingDeltasMax = 100_000
  /// Jobs waiting for a transaction, over all links (a batch may be empty).
  package static let waitingJobsMax = 10_000
  /// Deltas in one transaction, so that no answer waits for an unbounded one.
  package static let transactionDeltasMax = 20_000
  /// Between the beginnings of two transactions, unless the later has much to do, or recovers a
  /// bucket: many sidecars with a few deltas each cost as many transactions as there is time for,
  /// otherwise. What comes while a small group waits goes with it.
  package static let paceNanoseconds: UInt64 = 20_000_000
  /// A group of so many deltas waits for no others.
  package static let fullDeltas = 1000

  package struct Figures: Hashable, Sendable {
    package var transactions = 0
    package var jobs = 0
    package var posted = 0
    package var duplicates = 0
    package var parked = 0
    package var lost: Int64 = 0
    package var failures = 0
  }

  private enum Job: Sendable {
    case batch(DeltaBatch, @Sendable (Result<BatchOutcome, LedgerError>) -> Void)
    case recovery(RecoveryRequest, @Sendable (Result<RecoveryOutcome, LedgerError>) -> Void)

    var isRecovery: Bool {
      if case .recovery = self { return true }
      return false
    }

    var weight: Int {
      switch self {
      case .batch(let batch, _): batch.entries.count
      case .recovery(let request, _): request.entries.count
      }
    }

    func fail(_ error: LedgerError) {
      switch self {
      case .batch(_, let done): done(.failure(error))
      case .recovery(_, let done): done(.failure(error))
      }
    }
  }

  private enum Done {
    case batch(BatchOutcome, @Sendable (Result<BatchOutcome, LedgerError>) -> Void)
    case recovery(RecoveryOutcome, @Sendable (Result<RecoveryOutcome, LedgerError>) -> Void)
  }

  private struct State {
    var waiting: [Job] = []
    var waitingDeltas = 0
    var waitingRecoveries = 0
    var isRunning = false
    var isClosed = false
    /// When the last group was taken (uptime).
    var tookAt: UInt64 = 0
    var figures = Figures()
    var idle: [CheckedContinuation<Void, Never>] = []
  }

  private let store: LedgerStore
  private let clock: @Sendable () -> WallTime
  private let logger: Logger
  private let queue = DispatchQueue(label: "tollgate.ledger.writer")
  private let state = NIOLockedValueBox(State())

  package init(store: LedgerStore, logger: Logger, clock: @escaping @Sendable () -> WallTime) {
    self.store = store
    self.logger = logger
    self.clock = clock
  }

  package var figures: Figures { state.withLockedValue { $0.figures } }
  package var waitingDeltas: Int { state.withLockedValue { $0.waitingDeltas } }

  package func submit(
    _ batch: DeltaBatch, completion: @escaping @Sendable (Result<BatchOutcome, LedgerError>) -> Void
  ) {
    submit(.batch(batch, completion))
  }

  /// Recoveries are let in beside the limit on waiting deltas: they are rare, bounded by their
  /// sender, and what waits may be waiting for them.
  package func submit(
    _ request: RecoveryRequest,
    completion: @escaping @Sendable (Result<RecoveryOutcome, LedgerError>) -> Void
  ) {
    submit(.recovery(request, completion))
  }

  package func apply(_ batch: DeltaBatch) async throws -> BatchOutcome {
    try await withCheckedThrowingContinuation { continuation in
      submit(batch) { continuation.resume(with: $0) }
    }
  }

  /// Refuses what comes from now on and returns when everything accepted before is answered.
  package func drain() async {
    await withCheckedContinuation { continuation in
      let isIdle = state.withLockedValue { state in
        state.isClosed = true
        if !state.isRunning { return true }
        state.idle.append(continuation)
        return false
      }
      if isIdle { continuation.resume() }
    }
  }

  private func submit(_ job: Job) {
    enum Step { case start, wait, refuse(LedgerError) }
    let step = state.withLockedValue { state -> Step in
      if state.isClosed { return .refuse(.draining) }
      let isFull =
        state.waiting.count >= Self.waitingJobsMax
        || (!job.isRecovery && state.waitingDeltas + job.weight > Self.waitingDeltasMax)
      if isFull { return .refuse(.overloaded) }
      state.waiting.append(job)
      state.waitingDeltas += job.weight
      if job.isRecovery { state.waitingRecoveries += 1 }
      if state.isRunning { return .wait }
      state.isRunning = true
      return .start
    }
    switch step {
    case .start: queue.async { self.run() }
    case .wait: break
    case .refuse(let error): job.fail(error)
    }
  }

  private enum Next {
    case group([Job])
    /// Nothing waits; these waited for that.
    case none([CheckedContinuation<Void, Never>])
    /// What waits may wait until then for more.
    case later(UInt64)
  }

  private func run() {
    while true {
      switch nextGroup() {
      case .group(let group): commit(group)
      case .none(let idle):
        for continuation in idle { continuation.resume() }
        return
      case .later(let time):
        return queue.asyncAfter(deadline: DispatchTime(uptimeNanoseconds: time)) { self.run() }
      }
    }
  }

  private func nextGroup() -> Next {
    state.withLockedValue { state in
      guard !state.waiting.isEmpty else {
        state.isRunning = false
        defer { state.idle = [] }
        return .none(state.idle)
      }
      let now = DispatchTime.now().uptimeNanoseconds
      let due = state.tookAt + Self.paceNanoseconds
      let isPatient =
        state.waitingDeltas < Self.fullDeltas && state.waitingRecoveries == 0 && !state.isClosed
      if now < due, isPatient { return .later(due) }
      state.tookAt = now
      var count = 0
      var weight = 0
      for job in state.waiting {
        if count > 0, weight + job.weight > Self.transactionDeltasMax { break }
        count += 1
        weight += job.weight
      }
      let group = Array(state.waiting[..<count])
      state.waiting.removeFirst(count)
      state.waitingDeltas -= weight
      for job in group where job.isRecovery { state.waitingRecoveries -= 1 }
      return .group(group)
    }
  }

  private func commit(_ group: [Job]) {
    do {
      let done = try store.transaction(now: clock()) { transaction in
        try group.map { job in
          switch job {
          case .batch(let batch, let completion):
            return Done.batch(try transaction.apply(batch), completion)
          case .recovery(let request, let completion):
            return Done.recovery(try transaction.recover(request), completion)
          }
        }
      }
      record(done)
      for one in done {
        switch one {
        case .batch(let outcome, let completion): completion(.success(outcome))
        case .recovery(let outcome, let completion): completion(.success(outcome))
        }
      }
    } catch {
      // Nothing of the group is in force. Apart, each job fails or stands for itself, so that one
      // that cannot be written does not hold up the others.
      let failure = error as? LedgerError ?? .storage("\(error)")
      state.withLockedValue { $0.figures.failures += 1 }
      guard group.count > 1 else {
        logger.error("a transaction failed", metadata: ["error": "\(failure)"])
        return group[0].fail(failure)
      }
      for job in group { commit([job]) }
    }
  }

  private func record(_ done: [Done]) {
    state.withLockedValue { state in
      state.figures.transactions += 1
      state.figures.jobs += done.count
      for one in done {
        switch one {
        case .batch(let outcome, _):
          state.figures.posted += outcome.posted
          state.figures.parked += outcome.parked
          state.figures.duplicates += outcome.duplicates.count
        case .recovery(let outcome, _):
          state.figures.posted += outcome.posted
          state.figures.parked += outcome.parked
          for range in outcome.losses { state.figures.lost += Int64(range.count) }
        }
      }
    }
  }
}
