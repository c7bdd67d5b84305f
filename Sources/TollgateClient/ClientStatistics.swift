// Counters, as one value: a consistent snapshot that costs the hot path one copy per turn.

/// What a client has done since it was made. Counts only grow; the last five are levels.
public struct ClientStatistics: Hashable, Sendable {
  /// Requests accepted. Each ends as exactly one of the next seven counts.
  public var requests: Int64 = 0
  /// Allowed by a sidecar.
  public var allowed: Int64 = 0
  /// Denied by a sidecar.
  public var denied: Int64 = 0
  /// Allowed by failure policy, in the client.
  public var fallbackAllowed: Int64 = 0
  /// Denied by failure policy, in the client.
  public var fallbackDenied: Int64 = 0
  /// Ended as `TollgateError.rejected`.
  public var rejected: Int64 = 0
  /// Ended as `TollgateError.notSent`.
  public var notSent: Int64 = 0
  /// Ended as `TollgateError.outcomeUnknown`.
  public var outcomeUnknown: Int64 = 0
  /// Records handed to a connection, posts and cancellations included.
  public var recordsSent: Int64 = 0
  /// Those of them that had been sent before under the same id.
  public var retries: Int64 = 0
  /// Answers that came after their call had ended, and were dropped.
  public var lateAnswers: Int64 = 0
  /// Connections that a sidecar welcomed.
  public var connections: Int64 = 0
  /// Connection attempts that failed.
  public var connectFailures: Int64 = 0
  /// Operations let through by policy that a sidecar has recorded.
  public var posted: Int64 = 0
  /// Operations let through by policy that a sidecar finally refused to record.
  public var postsRefused: Int64 = 0
  /// Operations answered "denied" whose possible effect a sidecar has taken back.
  public var cancelled: Int64 = 0
  /// Settles that outlived their call and that a sidecar has answered.
  public var settled: Int64 = 0
  /// Settles that outlived their call and that a sidecar finally refused.
  public var settlesRefused: Int64 = 0
  /// Requests outstanding now.
  public var outstanding: Int = 0
  /// Operations let through by policy and not recorded by a sidecar yet.
  public var unposted: Int = 0
  /// Operations to take back and not taken back yet.
  public var uncancelled: Int = 0
  /// Settles that outlived their call and are not answered yet.
  public var unsettled: Int = 0
  /// Whether a sidecar is connected and has welcomed the client.
  public var isConnected = false

  /// All zero.
  public init() {}
}
