// The three ways in which a call ends without a decision. They are kept apart because what may be
// done next hangs on it: a caller who retries an operation of unknown outcome under a new id
// charges twice, and one who gives it up may have charged for nothing.

/// Why a call got no decision. A denial is not among these: it is a `Decision`.
public enum TollgateError: Error, Hashable, Sendable, CustomStringConvertible {
  /// A sidecar answered with an error, or the client found beforehand what a sidecar would have
  /// answered. This request was not applied. What was safe to retry has been retried until the
  /// deadline. The message is for people.
  case rejected(ErrorCode, message: String)

  /// No byte of the request was handed to a connection (or the request was a check, which changes
  /// nothing). It may be made again anywhere, under any id.
  case notSent(NotSentReason)

  /// The request was sent and may have been applied. It may be made again **only with this id and
  /// the same body**: if it was applied, the recorded answer comes back and nothing is counted
  /// twice. The record is kept for the sidecar's dedupe window. This client remembers that the
  /// outcome is unknown (of at most `uncancelledMax` operations): such a retry ends in a decision
  /// that holds for every attempt, or as unknown again. Of features of idempotency scope `sidecar`
  /// only the sidecar knows that was asked first: with several endpoints this client asks no other,
  /// and when that one does not come back, this is how the call ends.
  case outcomeUnknown(OperationID)

  /// The error in words.
  public var description: String {
    switch self {
    case .rejected(let code, let message): "rejected: \(code.name): \(message)"
    case .notSent(let reason): "not sent: \(reason)"
    case .outcomeUnknown(let id): "outcome unknown: operation \(id)"
    }
  }
}

/// Why a request was not sent.
public enum NotSentReason: Hashable, Sendable, CustomStringConvertible {
  /// As many calls are outstanding as the configuration allows.
  case queueFull
  /// The deadline passed, and no failure policy is known (no sidecar was ever reached) or policies
  /// are not applied. The text says what stood in the way last, where that is known.
  case deadlinePassed(String)
  /// The calling task was cancelled first.
  case cancelled
  /// The client was not started, or is shut down.
  case notRunning

  /// The reason in words.
  public var description: String {
    switch self {
    case .queueFull: "too many calls are outstanding"
    case .deadlinePassed(let text): text.isEmpty ? "the deadline passed" : text
    case .cancelled: "the calling task was cancelled"
    case .notRunning: "the client is not running"
    }
  }
}
