// A place for tests: `@Suite(.blocking)`, which every suite says.
//
// Tests run on the threads of Swift's concurrency pool, one for each core, and so does what they
// judge. A test that waits for a process, a socket or a disk holds such a thread, and two of them
// at once on a machine of two cores stop every task of the product for as long: its deadlines
// then pass without a line of it having run. So a test takes threads of its own, and the pool
// belongs to the product, as it does in a sidecar.

internal import Foundation
internal import NIOConcurrencyHelpers
package import Testing

package struct BlockingTrait: SuiteTrait, TestTrait, TestScoping {
  package var isRecursive: Bool { true }

  package func provideScope(
    for test: Test, testCase: Test.Case?,
    performing function: @Sendable @concurrent () async throws -> Void
  ) async throws {
    guard testCase != nil else { return try await function() }
    await TestSlots.shared.take()
    defer { TestSlots.shared.give() }
    try await withTaskExecutorPreference(BlockingThreads.shared) { try await function() }
  }
}

extension Trait where Self == BlockingTrait {
  /// Each test of the suite runs on threads that it may block.
  package static var blocking: Self { Self() }
}

/// How many tests run at once, three for each core because most of them wait: the rest stand in a
/// queue, first come first served.
private final class TestSlots: Sendable {
  static let shared = TestSlots(count: 3 * ProcessInfo.processInfo.activeProcessorCount)

  private struct State {
    var free: Int
    var waiting: [CheckedContinuation<Void, Never>] = []
  }

  private let state: NIOLockedValueBox<State>

  private init(count: Int) { state = NIOLockedValueBox(State(free: count)) }

  func take() async {
    await withCheckedContinuation { continuation in
      let isFree = state.withLockedValue { state in
        if state.free > 0 {
          state.free -= 1
          return true
        }
        state.waiting.append(continuation)
        return false
      }
      if isFree { continuation.resume() }
    }
  }

  func give() {
    let next = state.withLockedValue { state in
      if state.waiting.isEmpty { state.free += 1 }
      return state.waiting.isEmpty ? nil : state.waiting.removeFirst()
    }
    next?.resume()
  }
}

/// A thread for every job that is to run: as many as there are jobs at once, kept for the next.
private final class BlockingThreads: TaskExecutor {
  static let shared = BlockingThreads()

  private struct State {
    var jobs: [UnownedJob] = []
    /// Threads that have no job, or are only being started.
    var idle = 0
    var started = 0
  }

  /// Wakes a thread; what it guards is `state`, whose own lock is never held for long.
  private let condition = NSCondition()
  private let state = NIOLockedValueBox(State())

  private init() {}

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    condition.lock()
    defer { condition.unlock() }
    let number: Int? = state.withLockedValue { state in
      state.jobs.append(job)
      guard state.idle < state.jobs.count else { return nil }
      state.idle += 1
      state.started += 1
      return state.started
    }
    guard let number else { return condition.signal() }
    let thread = Thread { [self] in
      while true {
        unsafe next().runSynchronously(on: asUnownedTaskExecutor())
        state.withLockedValue { $0.idle += 1 }
      }
    }
    thread.name = "blocking-test-\(number)"
    thread.start()
  }

  /// The job that has waited longest.
  private func next() -> UnownedJob {
    condition.lock()
    defer { condition.unlock() }
    while true {
      let job = state.withLockedValue { state -> UnownedJob? in
        guard !state.jobs.isEmpty else { return nil }
        state.idle -= 1
        return state.jobs.removeFirst()
      }
      if let job { return job }
      condition.wait()
    }
  }
}
