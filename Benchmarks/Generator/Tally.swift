// What the replies said, counted by the client alone. This is one side of the audit, so it is
// exact: one admitted operation is counted once, however often it had to be sent.

package import Histogram

package struct Tally: Sendable {
  /// Room for the numbers of both registries; a power of two.
  static let codes = 64

  package let features: Int
  /// Units admitted, at subject × features + feature.
  package var admitted: [Int64]
  /// Of these, units that a failure policy let through, by feature.
  package var failOpen: [Int64]
  /// Decisions by reason number, by source number, errors by number (0: refused by Redis).
  package var reasons = [Int](repeating: 0, count: codes)
  package var sources = [Int](repeating: 0, count: 4)
  package var errors = [Int](repeating: 0, count: codes)
  /// Operations answered for good, and those of them inside the measured time.
  package var completed = 0
  package var measured = 0
  package var replayed = 0
  /// Requests sent again under the same id, and operations that were of unknown outcome and then
  /// settled by such a retry.
  package var retries = 0
  package var resolved = 0
  /// Operations whose outcome is not known at the end: the audit cannot be exact.
  package var unresolved = 0
  package var connectionsLost = 0
  /// Requests without an id (RESP) that went down with their connection.
  package var dropped = 0
  /// Nanoseconds from the intended moment of sending to the reply.
  package var latency: Histogram<UInt64>

  package init(subjects: Int, features: Int) {
    self.features = features
    admitted = [Int64](repeating: 0, count: subjects * features)
    failOpen = [Int64](repeating: 0, count: features)
    // One minute in nanoseconds at three digits: the table is allocated once and never grows.
    latency = Histogram(
      highestTrackableValue: 60_000_000_000, numberOfSignificantValueDigits: .three)
  }

  package mutating func add(_ other: Tally) {
    precondition(features == other.features && admitted.count == other.admitted.count)
    for index in admitted.indices { admitted[index] += other.admitted[index] }
    for index in failOpen.indices { failOpen[index] += other.failOpen[index] }
    for index in reasons.indices { reasons[index] += other.reasons[index] }
    for index in sources.indices { sources[index] += other.sources[index] }
    for index in errors.indices { errors[index] += other.errors[index] }
    completed += other.completed
    measured += other.measured
    replayed += other.replayed
    retries += other.retries
    resolved += other.resolved
    unresolved += other.unresolved
    connectionsLost += other.connectionsLost
    dropped += other.dropped
    latency.add(other.latency)
  }

  package var allowed: Int { reasons[..<16].reduce(0, +) }
  package var denied: Int { reasons[16...].reduce(0, +) }
  package var failed: Int { errors.reduce(0, +) }
  /// Everything in the histogram: what was answered since the measured time started.
  package var answersInHistogram: Int { Int(latency.totalCount) }
}
