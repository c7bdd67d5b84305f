// What the event loop needs to know of a protocol. One value of it serves one connection, so it
// may keep state; the loop is generic over it and is compiled once per protocol.

/// What a server said to one request.
package enum Verdict: Hashable, Sendable {
  /// Reason numbers as in the registry; sources too.
  case allowed(reason: UInt16, source: UInt8, replayed: Bool)
  case denied(reason: UInt16, source: UInt8, replayed: Bool)
  /// Error numbers as in the registry; 0 for what a Redis refused.
  case error(UInt16)
}

package enum Incoming: Hashable, Sendable {
  /// `correlation` is 0 where replies come in the order of requests.
  case reply(correlation: UInt64, Verdict)
  /// The peer is about to close: nothing new may be sent here.
  case goAway
  /// The peer asks whether we live; the dialect's `pong` answers it.
  case ping(correlation: UInt64, nonce: UInt64)
  case nothing
}

package protocol Dialect {
  /// True: replies come in the order of requests, and a request lost with its connection is not
  /// repeated (it has no id).
  static var isOrdered: Bool { get }
  /// The minting time of operation ids, from the wall clock.
  func mintTime(wallMilliseconds: Int64) -> Int64
  /// What is sent first on a new connection; nothing where there is no greeting.
  func greet(into out: Bytes)
  /// True once the peer has accepted the greeting. Throws where it refuses.
  mutating func greeted(_ input: Bytes) throws -> Bool
  func render(
    subject: Int, high: UInt64, low: UInt64, correlation: UInt64, amounts: ContiguousArray<Int64>,
    base: Int, into out: Bytes)
  func pong(correlation: UInt64, nonce: UInt64, into out: Bytes)
  /// Takes one whole message off the input; nil where none is complete. Throws where the bytes
  /// are not of this protocol: the connection is then closed.
  mutating func next(_ input: Bytes) throws -> Incoming?
  /// Called about once a second, so that what ages (a time in a template) is renewed.
  mutating func refresh(wallMilliseconds: Int64) throws
}
