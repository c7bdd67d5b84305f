// What can be wrong with bytes from a peer. The code goes back to the peer; `isFatal` tells the
// session whether the stream of frames can still be trusted.

package import TollgateCore

package struct WireError: Error, Hashable, Sendable, CustomStringConvertible {
  package let code: ErrorCode
  /// True: the position in the byte stream is lost or the peer speaks another protocol; answer
  /// (correlation id 0) and close. False: only this request, or this record, is refused.
  package let isFatal: Bool
  package let text: String

  package init(_ code: ErrorCode, isFatal: Bool, _ text: String) {
    self.code = code
    self.isFatal = isFatal
    self.text = text
  }

  package static func fatal(_ code: ErrorCode, _ text: String) -> WireError {
    WireError(code, isFatal: true, text)
  }

  package static func refused(_ code: ErrorCode, _ text: String) -> WireError {
    WireError(code, isFatal: false, text)
  }

  package var description: String { "\(code.name): \(text)" }
}
