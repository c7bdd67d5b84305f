// What a caller believes about a bucket. Every mutating script compares it with the bucket's meta
// before its first write, because no single sign shows a flushed, rolled back, restarted or
// promoted Redis (DESIGN 5).

package import TollgateCore

package struct Fence: Hashable, Sendable {
  package var deployment: Name
  package var epoch: Int64
  package var runID: String
  package var replicationID: String
  /// The highest outbox sequence of this epoch that the caller has seen in any reply.
  package var seenSequence: Int64
  /// The latest Redis time of this epoch at which the caller knows that something was written.
  /// Denials are recorded without a delta: where only they are lost, nothing else tells.
  package var seenTime: WallTime

  package init(
    deployment: Name, epoch: Int64, runID: String, replicationID: String, seenSequence: Int64,
    seenTime: WallTime = WallTime(milliseconds: 0)
  ) {
    self.deployment = deployment
    self.epoch = epoch
    self.runID = runID
    self.replicationID = replicationID
    self.seenSequence = seenSequence
    self.seenTime = seenTime
  }

  /// The text that meta field `f` must equal. None of the parts holds a space.
  package var text: String { "\(deployment.text) \(epoch) \(runID) \(replicationID)" }

  /// As `meta.t` counts.
  var seenMicroseconds: Int64 { seenTime.milliseconds * 1000 }

  package enum Difference: String, Hashable, Sendable {
    case missing, deployment, epoch, runID, replicationID, sequence, time
  }
}

/// What a fenced call found in the bucket's meta.
package struct FenceState: Hashable, Sendable {
  /// nil: there is no meta, or not one of ours.
  package var deployment: String?
  package var epoch: Int64?
  package var runID: String?
  package var replicationID: String?
  package var sequence: Int64?
  /// As it was found, readable or not.
  package var text: String?

  package init(text: String?, sequence: Int64?) {
    self.sequence = sequence
    self.text = text
    guard let parts = text?.split(separator: " "), parts.count == 4 else { return }
    deployment = String(parts[0])
    epoch = Int64(parts[1])
    runID = String(parts[2])
    replicationID = String(parts[3])
  }

  /// The first difference from what the caller believed, for messages; the script's own equality
  /// test decides.
  package func difference(from fence: Fence) -> Fence.Difference {
    guard let deployment, let epoch, let runID, let replicationID else { return .missing }
    if deployment != fence.deployment.text { return .deployment }
    if epoch != fence.epoch { return .epoch }
    if runID != fence.runID { return .runID }
    if replicationID != fence.replicationID { return .replicationID }
    return (sequence ?? 0) < fence.seenSequence ? .sequence : .time
  }
}
