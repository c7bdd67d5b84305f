// What a request of a reservation's life says beside subject, items and attributes. One struct for
// all of them, because they travel, wait and are fingerprinted alike; what a kind does not use
// keeps its default.

package import TollgateCore

/// The kinds of requests that have terms. Their numbers are part of stored fingerprints.
package enum HoldVerb: UInt8, Hashable, Sendable, CaseIterable {
  case reserve = 1
  case settle = 2
  case release = 3
  case extend = 4
  case refund = 5
}

package struct HoldTerms: Hashable, Sendable {
  /// The reservation; of a refund: the operation it corrects. nil for a reserve, whose own id is
  /// the reservation's.
  package var reservation: OperationID?
  /// Of a reserve and an extend: how long the hold lives from now on, 1 … `HoldBounds.ttlMax`.
  package var ttlMilliseconds: Int64?
  /// Of a reserve: what becomes of use beyond the hold.
  package var overrun: OverrunPolicy
  /// Of a settle: it ends the reservation.
  package var isFinal: Bool
  /// Of a settle: what is told is the least that is known to have been used.
  package var isFloor: Bool
  /// Of a refund, for people. Not part of what the id stands for.
  package var reason: String

  package init(
    reservation: OperationID? = nil, ttlMilliseconds: Int64? = nil,
    overrun: OverrunPolicy = .standard, isFinal: Bool = false, isFloor: Bool = false,
    reason: String = ""
  ) {
    self.reservation = reservation
    self.ttlMilliseconds = ttlMilliseconds
    self.overrun = overrun
    self.isFinal = isFinal
    self.isFloor = isFloor
    self.reason = reason
  }

  /// Everything but the reason: a retry may word that anew.
  func combine(verb: HoldVerb, into hash: inout StableHash) {
    hash.combine(Int64(verb.rawValue))
    hash.combine(reservation?.hex ?? "")
    hash.combine(ttlMilliseconds ?? 0)
    hash.combine(overrun.name)
    if case .overdraft(let bound) = overrun { hash.combine(bound) }
    hash.combine(Int64(isFinal ? 1 : 0) + Int64(isFloor ? 2 : 0))
  }
}
