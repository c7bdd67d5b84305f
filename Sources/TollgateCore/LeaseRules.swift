// What sidecars and scripts agree on about leases. The scripts have the same numbers
// (part_lessee.lua, lease.lua), and a test holds the two together.

/// One incarnation of a sidecar, as Redis knows it: random, kept in its journal.
package struct LesseeID: Hashable, Comparable, Sendable, CustomStringConvertible {
  package let number: UInt64

  package init(_ number: UInt64) { self.number = number }

  package init?(bytes: some Collection<UInt8>) {
    guard bytes.count == 8 else { return nil }
    number = bytes.reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// Big-endian, as in the fields of an account's header.
  package var bytes: [UInt8] {
    stride(from: 56, through: 0, by: -8).map { UInt8(truncatingIfNeeded: number >> UInt64($0)) }
  }

  /// 16 digits, as in keys and channels.
  package var hex: String {
    let digits = String(number, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
  }

  package var description: String { hex }
  package static func < (a: Self, b: Self) -> Bool { a.number < b.number }
}

package enum LeaseRules {
  /// Up to this many units may be spent and unsettled whatever is left.
  @inlinable
  package static var doubtLeast: Int64 { 16 }
  /// After a lease's end, before what cannot have been spent of it is free.
  package static let graceMilliseconds: Int64 = 5_000
  /// After that, before the rest is free although its owner never came back.
  package static let horizonMilliseconds: Int64 = 86_400_000
  /// How long a call is known by its id; one that is older changes nothing.
  package static let callWindowMilliseconds: Int64 = 600_000
  /// Of these many latest calls of a lessee to a bucket.
  package static let callsKept = 32
  /// After units were asked for, nothing is granted of the account for so long.
  package static let recallMilliseconds: Int64 = 250
  /// After a later epoch's begin nothing is granted, and what could be leased is not decided.
  package static let youngMilliseconds: Int64 = 1_000

  /// Of `left` units, the most that may be spent and not settled; what stays held when a lease ends
  /// without a word. u(left) − s ≤ u(left − s): settling never breaks it.
  @inlinable
  package static func ceiling(left: Int64) -> Int64 {
    left <= 0 ? 0 : min(left, max(doubtLeast, left / 2 + left % 2))
  }

  /// The least `left` whose ceiling is `units`.
  @inlinable
  package static func needed(units: Int64) -> Int64 {
    units <= doubtLeast ? max(0, units) : 2 * units - 1
  }
}
