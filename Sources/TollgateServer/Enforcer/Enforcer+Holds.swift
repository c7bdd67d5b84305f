// The requests of a reservation's life on their way to the store: RESERVE, SETTLE, RELEASE, EXTEND
// and REFUND. What they do there is several scripts' work, so none of them shares a call with
// others.

import TollgateCore

extension Enforcer {
  /// Takes a request of these kinds whose bucket is open and whose store is reached.
  func sendHold(_ request: Request) {
    finish(request, .error(.unavailable, "reservations are not served here yet"))
  }
}
