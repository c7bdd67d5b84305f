// What a connection may do.

public enum Role: UInt8, Sendable, Hashable, CaseIterable {
  /// The data path: check, consume, post, cancel.
  case check = 1
  /// The data path and administration.
  case admin = 2
  /// The ledger stream.
  case ledger = 3

  public var name: String {
    switch self {
    case .check: "check"
    case .admin: "admin"
    case .ledger: "ledger"
    }
  }

  /// Whether a holder of this role may do what `needed` is for.
  public func covers(_ needed: Role) -> Bool {
    self == needed || (self == .admin && needed == .check)
  }
}
