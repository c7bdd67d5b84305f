// When a connection that says nothing is given up: a host that is gone, or a peer that never says
// hello, would otherwise hold a place among the connections for ever. A sidecar answers a PING, so
// only what does not live is closed.

internal import NIOCore

package struct LedgerSilence: Hashable, Sendable {
  /// A hello has come by then.
  package var helloMilliseconds: Int64 = 10_000
  /// After this long without a byte the other side is pinged …
  package var pingMilliseconds: Int64 = 20_000
  /// … and after this long the connection is closed.
  package var closeMilliseconds: Int64 = 45_000

  package init() {}

  enum Verdict: Hashable { case wait(TimeAmount), ping(TimeAmount), close }

  /// - Parameters:
  ///   - isGreeted: whether the hello came.
  ///   - since: the last byte, or, before the hello, the start of the connection.
  func verdict(isGreeted: Bool, silentFor silent: Int64) -> Verdict {
    guard isGreeted else {
      return silent >= helloMilliseconds
        ? .close : .wait(.milliseconds(helloMilliseconds - silent))
    }
    if silent >= closeMilliseconds { return .close }
    return silent >= pingMilliseconds
      ? .ping(.milliseconds(max(1, closeMilliseconds - silent)))
      : .wait(.milliseconds(pingMilliseconds - silent))
  }
}
