// A Redis reply as a Swift value.
//
// Why this shape: payloads are one or two words, so the enum is 16 bytes and an array of a few
// bulk strings and integers, the reply of nearly every script, costs one allocation for the array
// and one per string. A server's error is a reply like any other: whether it is a failure is for
// the caller to say, who knows what it asked.

/// One RESP2 reply. Depth is bounded by `RESPLimits.nestingMax`.
package enum RESPReply: Hashable, Sendable {
  case string([UInt8])
  case integer(Int64)
  case array([RESPReply])
  case null
  case status(String)
  case error(String)
}

extension RESPReply {
  /// The bytes of a bulk string, or nil for any other reply.
  package var bytes: [UInt8]? {
    if case .string(let bytes) = self { return bytes }
    return nil
  }

  /// A bulk string or status as text (invalid UTF-8 is repaired, never trapped on).
  package var text: String? {
    switch self {
    case .string(let bytes): return String(decoding: bytes, as: UTF8.self)
    case .status(let text): return text
    case .integer, .array, .null, .error: return nil
    }
  }

  package var integer: Int64? {
    if case .integer(let value) = self { return value }
    return nil
  }

  package var array: [RESPReply]? {
    if case .array(let elements) = self { return elements }
    return nil
  }

  /// The text of a server error, for example `NOSCRIPT No matching script`.
  package var error: String? {
    if case .error(let text) = self { return text }
    return nil
  }

  /// The first word of a server error, for example `NOSCRIPT`.
  package var errorCode: Substring? {
    error.map { text in text.prefix { $0 != " " } }
  }

  package var isNull: Bool {
    if case .null = self { return true }
    return false
  }
}
