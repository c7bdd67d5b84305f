// How a run is shaped, and what its threads share.

internal import Synchronization

package struct Load: Sendable {
  package enum End: Sendable, Hashable {
    case seconds(Double)
    /// Operations over all threads.
    case requests(Int)
    /// When the trace has no more rows.
    case trace
  }

  package var connections: Int
  /// Frames in flight on each connection.
  package var inFlight: Int
  /// Operations sent together in one frame, where the protocol has frames.
  package var records: Int
  package var arrival: Arrival
  package var end: End
  /// Seconds that are not measured (but audited), before the measured time.
  package var warmup: Double
  /// Seconds in which operations of unknown outcome must be settled after the end.
  package var resolveWithin: Double
  /// Seconds in which all connections must be open at the start.
  package var connectWithin: Double

  package init(
    connections: Int, inFlight: Int, records: Int = 1, arrival: Arrival, end: End,
    warmup: Double = 0, resolveWithin: Double = 30, connectWithin: Double = 10
  ) {
    self.connections = connections
    self.inFlight = inFlight
    self.records = records
    self.arrival = arrival
    self.end = end
    self.warmup = warmup
    self.resolveWithin = resolveWithin
    self.connectWithin = connectWithin
  }
}

/// Seen by all threads of a run: counts for the progress line, and the wish to end early.
package final class RunProgress: Sendable {
  let completed = Atomic<Int>(0)
  let denied = Atomic<Int>(0)
  let failed = Atomic<Int>(0)
  let lost = Atomic<Int>(0)
  let stop = Atomic<Bool>(false)

  package init() {}

  package func endEarly() { stop.store(true, ordering: .relaxed) }
}

/// What one thread measured.
package struct Measurement: Sendable {
  package var tally: Tally
  /// Monotonic nanoseconds: the measured time.
  package var started: Int64
  package var ended: Int64
}

extension RunProgress {
  /// Each thread adds what it did since it last did so: the sums are of all threads.
  func publish(_ counts: Counts, since last: inout (Int, Int, Int, Int)) {
    let n = counts.n
    let current = (n.completed, n.denied, n.failed, n.connectionsLost)
    completed.add(current.0 - last.0, ordering: .relaxed)
    denied.add(current.1 - last.1, ordering: .relaxed)
    failed.add(current.2 - last.2, ordering: .relaxed)
    lost.add(current.3 - last.3, ordering: .relaxed)
    last = current
  }
}
