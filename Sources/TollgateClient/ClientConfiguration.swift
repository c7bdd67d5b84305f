// Everything a caller may choose, with its default, its unit and its bound. Durations are rounded
// to nanoseconds. What is out of bounds is clamped, and the doc comment says to what.

/// How a `TollgateClient` behaves.
public struct ClientConfiguration: Sendable {
  /// The sidecars to use, in order of preference; at least one. The client stays with the first
  /// that answers for as long as it does.
  public var endpoints: [Endpoint]

  /// The credential sent in the hello, at most 512 bytes. Empty where the sidecar goes by the
  /// user id of the peer of its Unix socket. Never logged.
  public var credential: String

  /// What the sidecar's logs call this client: program and release. Cut to 64 bytes.
  public var clientName: String = "tollgate-swift"

  /// How long a call may take that names no deadline of its own. 1 ms … 10 min.
  public var defaultDeadline: Duration = .seconds(1)

  /// How long connecting and greeting may take together. 1 ms … 1 min.
  public var connectTimeout: Duration = .seconds(1)

  /// The pauses between rounds of connection attempts: they grow from the first to the second by
  /// doubling, each shortened by up to a half at random so that a fleet does not return at once.
  public var reconnectDelay: ClosedRange<Duration> = .milliseconds(20) ... .seconds(2)

  /// The pauses before a refused request (OVERLOADED, DRAINING, …) is sent again, growing alike.
  public var retryDelay: ClosedRange<Duration> = .milliseconds(2) ... .milliseconds(250)

  /// How often an idle connection is probed. The sidecar's idle timeout, which comes in its
  /// welcome, shortens it to a third of that. Two intervals of silence after a probe end
  /// the connection. 10 ms … 10 min.
  public var keepAlive: Duration = .seconds(10)

  /// Frames that may await their answer; the sidecar's own bound may lower it. At least 1.
  public var inFlightMax: Int = 1024

  /// Calls that may be outstanding, waiting to be sent included. One more is refused as
  /// `.notSent(.queueFull)`. At least 1.
  public var outstandingMax: Int = 8192

  /// Records in one frame: how many operations of one `decide` travel together. 1 … 256.
  public var recordsPerFrameMax: Int = 128

  /// Whether the failure policies of the sidecar's welcome are applied when no sidecar answers.
  /// Where not, or before any sidecar was reached, such a call ends in `.notSent` or
  /// `.outcomeUnknown`.
  public var appliesFailurePolicies: Bool = true

  /// Operations that were let through by policy and are not posted yet. When so many wait, nothing
  /// more is let through. They are kept in memory: a backend that is killed loses them.
  public var unpostedMax: Int = 10_000

  /// Operations of unknown outcome that were answered "denied" and are not taken back yet. When so
  /// many wait, such a call ends in `.outcomeUnknown` instead.
  public var uncancelledMax: Int = 10_000

  /// Settles that no sidecar answered while their call lasted. The client goes on sending them,
  /// under their ids, until they are answered. When so many wait, one more is not kept: its call
  /// ends as any other, and to repeat it is the caller's. They are kept in memory only.
  public var unsettledMax: Int = 10_000

  /// How long `withReservation` waits for the answer to its last settle; after that the client goes
  /// on sending it in the background. 1 ms … 10 min.
  public var settlePatience: Duration = .seconds(5)

  /// How long the sidecars keep the record of an operation, at least. An operation of unknown
  /// outcome whose id is older is not retried.
  public var dedupeWindow: Duration = .seconds(3600)

  /// Called when a sidecar finally refuses to record what the client let through (its id is too
  /// old, its feature is gone, …): the last chance to keep it. Called on the client's event loop;
  /// must not block.
  public var onRefusedPost: (@Sendable (_ refused: RefusedPost) -> Void)?

  /// Called when a sidecar finally refuses what was used of a reservation (another request has
  /// ended it, its overrun policy is `reject`, …) and no call is there to hear it: its call has
  /// ended, or it was the last settle of `withReservation`. The last chance to keep it. Called on
  /// the client's event loop or on the task of `withReservation`; must not block.
  public var onRefusedSettle: (@Sendable (_ refused: RefusedSettle) -> Void)?

  /// A configuration with defaults.
  public init(endpoints: [Endpoint], credential: String = "") {
    self.endpoints = endpoints
    self.credential = credential
  }
}

/// An operation that was let through by failure policy and that a sidecar refused to record.
public struct RefusedPost: Hashable, Sendable {
  /// The operation.
  public var operation: Request
  /// Why, for people.
  public var reason: String
}

/// What was used of a reservation and finally refused by a sidecar.
public struct RefusedSettle: Hashable, Sendable {
  /// What was used.
  public var use: UnsettledUse
  /// Why, for people.
  public var reason: String
}
