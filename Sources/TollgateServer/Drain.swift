// How a stop stays within its grace time. `drain_ms` counts from SIGTERM to the exit, so work (what
// is in flight, fallback to be posted, outboxes to be delivered) gets all of it but a small part
// that is kept for closing. Awaiting a task is not enough of a bound: a task that waits for a
// frozen Redis or ledger ends when its call does. So every wait of the way down has an end of its
// own, and the process leaves behind what has not ended: nothing that was promised is in it,
// because Redis, the outbox and the fallback journal hold it.

import NIOCore

struct DrainPlan: Sendable {
  /// What is kept for closing: a quarter of a short grace time, this much of a long one.
  static let closeMillisecondsMax: Int64 = 250

  /// Work ends here.
  let workEnd: NIODeadline
  /// Everything does.
  let end: NIODeadline

  init(from start: NIODeadline, graceMilliseconds: Int64) {
    end = start + .milliseconds(graceMilliseconds)
    workEnd = start + .milliseconds(Self.workMilliseconds(ofGrace: graceMilliseconds))
  }

  /// What connections are told, in GOAWAY, that they have.
  static func workMilliseconds(ofGrace milliseconds: Int64) -> Int64 {
    milliseconds - min(closeMillisecondsMax, milliseconds / 4)
  }
}

enum Bounded {
  /// Waits for `work` to end, but not beyond `deadline`; true where it ended. Work that has not
  /// goes on by itself: who calls this has no more use for it.
  static func ended(
    by deadline: NIODeadline, _ work: @escaping @Sendable () async -> Void
  ) async -> Bool {
    let (ends, end) = AsyncStream.makeStream(of: Bool.self, bufferingPolicy: .bufferingOldest(1))
    Task {
      await work()
      end.yield(true)
    }
    let timer = Task {
      let left = (deadline - .now()).nanoseconds
      if left > 0 { try? await Task.sleep(for: .nanoseconds(left)) }
      end.yield(false)
    }
    defer { timer.cancel() }
    for await isDone in ends { return isDone }
    return false
  }
}
