// A reservation holds an estimate until what was really used is known (DESIGN 4):
//
//   HELD ──settle──▶ COMMITTED      HELD ──release──▶ RELEASED      HELD ──expiry──▶ EXPIRED
//
// exactly one of the three, once. This file names what the wire, Redis and the clients must agree
// on: how long a hold lives, and what becomes of use beyond it.

/// What happens where a settle says more than what its reservation still holds. Limits are asked
/// only for what goes beyond the hold; what cannot be charged is *absorbed*: used, not billed.
public enum OverrunPolicy: Hashable, Sendable {
  /// The settle is refused, and the hold stays as it is.
  case reject
  /// As much is charged as every hard limit still leaves; the rest is absorbed.
  case clamp
  /// Up to so many units of each feature are charged beyond that, and owed; the rest is absorbed.
  case overdraft(bound: Int64)

  public static let standard = OverrunPolicy.clamp

  /// The name used in documents and on the command line.
  public var name: String {
    switch self {
    case .reject: "reject"
    case .clamp: "clamp"
    case .overdraft: "overdraft"
    }
  }
}

/// How a reservation stands. Only `held` can change.
public enum HoldState: String, Hashable, Sendable, CaseIterable {
  case held = "HELD"
  case committed = "COMMITTED"
  case released = "RELEASED"
  case expired = "EXPIRED"
}

/// Times are milliseconds.
public enum HoldBounds {
  /// How long a hold lives where its caller does not say.
  public static let ttlDefault: Int64 = 60_000
  /// The longest that may be asked for at a time.
  public static let ttlMax: Int64 = 86_400_000
  /// After its expiry a hold is still whole for so long.
  public static let grace: Int64 = 5_000
  /// A settle that comes later than this after the expiry finds nothing any more.
  public static let lateHorizon: Int64 = 86_400_000
  /// Live reservations of one subject, unless configured otherwise.
  public static let perSubjectMax = 1_000
}
