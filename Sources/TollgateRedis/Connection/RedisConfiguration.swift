// Where Redis is, who we are to it, and every bound on a connection and its link.

package enum RedisEndpoint: Hashable, Sendable, CustomStringConvertible {
  case tcp(host: String, port: Int)
  case unix(path: String)

  package var description: String {
    switch self {
    case .tcp(let host, let port): return "\(host):\(port)"
    case .unix(let path): return "unix:\(path)"
    }
  }
}

/// A password, and the ACL user it belongs to (nil: the default user). Never printed.
package struct RedisCredentials: Hashable, Sendable, CustomStringConvertible,
  CustomDebugStringConvertible
{
  package var username: String?
  package var password: String

  package init(username: String? = nil, password: String) {
    self.username = username
    self.password = password
  }

  package var description: String { "credentials of \(username ?? "default")" }
  package var debugDescription: String { description }
}

/// Bounds of one connection. Durations are nanoseconds.
package struct RedisConnectionLimits: Hashable, Sendable {
  /// Commands awaiting a reply; the next one is `.notSent(.saturated)`.
  package var pendingCommandsMax = 65_536
  /// Bytes kept while the socket does not take them; beyond, commands are refused.
  package var outboundBytesMax = 16 << 20
  /// A tick's commands are flushed early when they reach this size, at most `outboundBytesMax`.
  package var flushBytesMax = 256 << 10
  /// AUTH and INFO together.
  package var handshakeMax: Int64 = 2_000_000_000
  /// The coarseness of deadlines: a timeout is reported at most this much late.
  package var sweepInterval: Int64 = 1_000_000
  /// How long the oldest command may stay unanswered before the connection is dropped. Longer
  /// than any command deadline: those report a slow Redis, this one a dead peer.
  package var stallMax: Int64 = 15_000_000_000
  /// How often INFO replication is polled: before the command that is next, or, where none is sent,
  /// a third as often.
  package var refreshInterval: Int64 = 1_000_000_000
  package var replies = RESPLimits()

  package init() {}
}

package struct RedisLinkConfiguration: Hashable, Sendable {
  package var endpoint: RedisEndpoint
  package var credentials: RedisCredentials?
  /// Nanoseconds for the transport to open.
  package var connectMax: Int64 = 1_000_000_000
  /// Nanoseconds a graceful close waits for replies owed.
  package var drainMax: Int64 = 2_000_000_000
  package var backoff = Backoff()
  package var limits = RedisConnectionLimits()

  package init(endpoint: RedisEndpoint, credentials: RedisCredentials? = nil) {
    self.endpoint = endpoint
    self.credentials = credentials
  }
}
