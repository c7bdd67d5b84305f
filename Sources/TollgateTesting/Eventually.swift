// Waiting for a condition instead of for a while.
//
// A test never sleeps to let something happen: it polls the thing itself, and gives up at a
// deadline with a message that says what it waited for. It gives up only on a look that began
// after the deadline: on a busy machine the thread that looks may itself be late, and what it saw
// before it was held up says nothing of now.

internal import Foundation

/// The condition did not come true in time.
package struct EventuallyTimedOut: Error, CustomStringConvertible {
  package let what: String
  package let waited: Duration
  package let file: String
  package let line: Int

  package var description: String { "\(file):\(line): not within \(waited): \(what)" }
}

/// Polls `condition` until it is true; an error it throws ends the wait at once.
package func eventually(
  within limit: Duration = .seconds(10), every pause: Duration = .milliseconds(2),
  _ what: String = "the condition", file: String = #fileID, line: Int = #line,
  _ condition: () throws -> Bool
) throws {
  let clock = ContinuousClock()
  let end = clock.now.advanced(by: limit)
  while true {
    let began = clock.now
    if try condition() { return }
    if began >= end {
      throw EventuallyTimedOut(what: what, waited: limit, file: file, line: line)
    }
    Thread.sleep(forTimeInterval: pause.inSeconds)
  }
}

/// The same for a condition that awaits: suspends between polls instead of holding the thread.
/// Only time in which it could look counts: where other tests hold every thread of the pool, the
/// wait is not yet over. (A closure without `await` picks the blocking form above, in async code
/// too.)
package func eventually(
  within limit: Duration = .seconds(10), every pause: Duration = .milliseconds(2),
  _ what: String = "the condition", file: String = #fileID, line: Int = #line,
  _ condition: () async throws -> Bool
) async throws {
  let clock = ContinuousClock()
  let longest = max(pause * 10, .milliseconds(50))
  var waited = Duration.zero
  while true {
    let start = clock.now
    if try await condition() { return }
    if waited >= limit {
      throw EventuallyTimedOut(what: what, waited: limit, file: file, line: line)
    }
    try await Task.sleep(for: pause)
    waited += min(clock.now - start, longest)
  }
}

extension Duration {
  /// Seconds as a floating-point number, for C and Foundation calls.
  package var inSeconds: Double {
    Double(components.seconds) + Double(components.attoseconds) * 1e-18
  }

  /// Whole milliseconds, rounded up so that a short positive wait is never zero.
  package var inMilliseconds: Int {
    let (seconds, attoseconds) = components
    return Int(seconds) * 1000 + Int((attoseconds + 999_999_999_999_999) / 1_000_000_000_000_000)
  }
}
