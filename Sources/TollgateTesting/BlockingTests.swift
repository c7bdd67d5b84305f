// A place for tests that block: `@Suite(.blocking)`.
//
// Tests run on the threads of Swift's concurrency pool, one for each core. A test that waits for a
// process, a socket or a disk holds such a thread, and two of them at once on a machine of two
// cores stop every async test of the run for as long: their deadlines then pass without a
// condition having been looked at. So suites of blocking tests take threads of their own, a few
// more than the pool has because most of them wait, and the pool stays free for what suspends.

internal import Foundation
internal import NIOConcurrencyHelpers
package import Testing

package struct BlockingTrait: SuiteTrait, TestTrait, TestScoping {
  package var isRecursive: Bool { true }

  package func provideScope(
    for test: Test, testCase: Test.Case?,
    performing function: @Sendable @concurrent () async throws -> Void
  ) async throws {
    try await withTaskExecutorPreference(BlockingThreads.shared) { try await function() }
  }
}

extension Trait where Self == BlockingTrait {
  /// Each test of the suite runs on a thread that it may block.
  package static var blocking: Self { Self() }
}

/// Two threads for each core, first come first served.
final class BlockingThreads: TaskExecutor {
  static let shared = BlockingThreads(count: 2 * ProcessInfo.processInfo.activeProcessorCount)

  /// Wakes a thread; what it guards is `jobs`, whose own lock is never held for long.
  private let condition = NSCondition()
  private let jobs = NIOLockedValueBox<[UnownedJob]>([])

  private init(count: Int) {
    for number in 0..<count {
      let thread = Thread { [self] in
        while true { unsafe next().runSynchronously(on: asUnownedTaskExecutor()) }
      }
      thread.name = "blocking-test-\(number)"
      thread.start()
    }
  }

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    condition.lock()
    jobs.withLockedValue { $0.append(job) }
    condition.signal()
    condition.unlock()
  }

  private func next() -> UnownedJob {
    condition.lock()
    defer { condition.unlock() }
    while true {
      if let job = jobs.withLockedValue({ $0.isEmpty ? nil : $0.removeFirst() }) { return job }
      condition.wait()
    }
  }
}
