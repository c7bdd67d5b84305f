// What the event loop needs to know of a protocol. One value of it serves all connections of a
// thread, so it keeps nothing of any of them; the loop is generic over it and is compiled once per
// protocol.

/// What a server said to one request.
package enum Verdict: Hashable, Sendable {
  /// Reason numbers as in the registry; sources too.
  case allowed(reason: UInt16, source: UInt8, replayed: Bool)
  case denied(reason: UInt16, source: UInt8, replayed: Bool)
  /// Error numbers as in the registry; 0 for what a Redis refused.
  case error(UInt16)
}

package enum Incoming: Hashable, Sendable {
  /// `correlation` is 0 where replies come in the order of requests. `record` counts within the
  /// frame of that correlation; −1: the whole of it was answered at once.
  case reply(correlation: UInt64, record: Int, Verdict)
  /// The peer is about to close: nothing new may be sent here.
  case goAway
  /// The peer asks whether we live; the dialect's `pong` answers it.
  case ping(correlation: UInt64, nonce: UInt64)
  case nothing
}

/// Where the reading of an input stands: at the next message, or at the next record of one that is
/// there as a whole.
package struct Cursor: Hashable, Sendable {
  /// Of the next byte not taken.
  package var position = 0
  var end = 0
  /// Records of the message at hand: not taken yet, and taken.
  var left = 0
  var taken = 0
  var correlation: UInt64 = 0

  package init() {}
}

/// One operation to be sent.
package struct Asked {
  package var subject: Int
  package var high: UInt64
  package var low: UInt64

  package init(subject: Int, high: UInt64, low: UInt64) {
    self.subject = subject
    self.high = high
    self.low = low
  }
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
  func greeted(_ input: Bytes) throws -> Bool
  /// What stands in front of `records` operations that are sent together; they are rendered next.
  func begin(correlation: UInt64, records: Int, into out: Bytes)
  /// `amounts` points to one for each feature.
  @unsafe func render(_ asked: Asked, amounts: UnsafePointer<Int64>, into out: Bytes)
  func pong(correlation: UInt64, nonce: UInt64, into out: Bytes)
  /// Takes one answer off the input at the cursor; nil where none is complete. Throws where the
  /// bytes are not of this protocol: the connection is then closed.
  func next(_ input: Bytes, _ cursor: inout Cursor) throws -> Incoming?
  /// Called about once a second, so that what ages (a time in a template) is renewed.
  mutating func refresh(wallMilliseconds: Int64) throws
}
