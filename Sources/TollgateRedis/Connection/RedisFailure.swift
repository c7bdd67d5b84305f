// Why a command has no reply. Retry safety hangs on the difference between the two cases, so
// there are exactly two; a server's error answer is neither, it is a `RESPReply.error`.

/// A command that ended without a reply.
package enum RedisFailure: Error, Hashable, Sendable {
  /// No byte of the command was handed to the socket: it had no effect and may be sent again.
  case notSent(NotSentReason)
  /// The command may have run, or may still run. Only its operation id can tell.
  case outcomeUnknown(OutcomeUnknownReason)

  package enum NotSentReason: Hashable, Sendable {
    /// No ready connection.
    case disconnected
    /// The connection is closing and takes no new commands.
    case closing
    /// `RedisConnectionLimits.pendingCommandsMax` or `outboundBytesMax` was reached.
    case saturated
  }

  package enum OutcomeUnknownReason: Hashable, Sendable {
    /// The deadline passed. The reply may still come: see the `late` callback.
    case timedOut
    /// The connection ended with the command in flight.
    case connectionLost
  }

  /// Whether sending the same command again cannot apply it twice.
  package var isSafeToRetry: Bool {
    switch self {
    case .notSent: return true
    case .outcomeUnknown: return false
    }
  }
}

/// Why a connection ended, or could not be made.
package enum RedisCloseReason: Error, Hashable, Sendable {
  case requested
  case connectFailed(String)
  case peerClosed
  case inputOutputError(String)
  case protocolViolation(RESPViolation)
  /// A reply arrived that no command was waiting for: the stream is out of step.
  case unexpectedReply
  case authenticationRejected(String)
  case identificationRejected(String)
  case handshakeTimedOut
  /// The oldest command stayed unanswered for `RedisConnectionLimits.stallMax`.
  case stalled
}
