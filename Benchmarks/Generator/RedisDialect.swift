// RESP to a bare Redis: PING, INCR, or the very EVALSHA a sidecar would send. The commands are
// given as encoded bytes; this file patches and counts, it knows no script.

import TollgateCore

package struct RedisDialect: Dialect {
  package static var isOrdered: Bool { true }

  package enum Command: Sendable {
    /// The same bytes each time.
    case constant([UInt8])
    /// One template per bucket, renewed as time passes.
    case decide(any DecideSource)
  }

  private let command: Command
  private let authentication: [UInt8]
  private var templates: [Template] = []
  private var bucketOf: [UInt16] = []
  private var identifierTime: Int64 = 0

  package init(_ command: Command, user: String? = nil, password: String? = nil) throws {
    self.command = command
    authentication =
      password.map { RESP.command(["AUTH"] + (user.map { [$0] } ?? []) + [$0]) } ?? []
    try refresh(wallMilliseconds: Clocks.wallMilliseconds())
  }

  /// The id's time stands in the command a second time, as a number, so all ids of one template
  /// share it; it is renewed each second.
  package func mintTime(wallMilliseconds: Int64) -> Int64 {
    identifierTime == 0 ? wallMilliseconds : identifierTime
  }

  package mutating func refresh(wallMilliseconds: Int64) throws {
    guard case .decide(let source) = command else { return }
    if bucketOf.isEmpty { bucketOf = source.bucketOfSubject }
    templates = try source.templates(wallMilliseconds: wallMilliseconds)
    identifierTime = wallMilliseconds
  }

  package func greet(into out: Bytes) { out.append(authentication) }

  package func greeted(_ input: Bytes) throws -> Bool {
    if authentication.isEmpty { return true }
    guard let length = try RESP.length(of: input) else { return false }
    let accepted = input[0] == UInt8(ascii: "+")
    input.consume(length)
    guard accepted else { throw BenchError("Redis refused the password") }
    return true
  }

  package func begin(correlation: UInt64, records: Int, into out: Bytes) {}

  @unsafe @inline(__always)
  package func render(_ asked: Asked, amounts: UnsafePointer<Int64>, into out: Bytes) {
    switch command {
    case .constant(let bytes): out.append(bytes)
    case .decide:
      unsafe templates[Int(bucketOf[asked.subject])].render(asked, amounts: amounts, into: out)
    }
  }

  package func pong(correlation: UInt64, nonce: UInt64, into out: Bytes) {}

  @inline(__always)
  package func next(_ input: Bytes, _ cursor: inout Cursor) throws -> Incoming? {
    let start = cursor.position
    // What PING and INCR answer is one line; anything else is measured as a whole.
    guard let end = try RESP.end(of: input, from: start) else { return nil }
    cursor.position = end
    return .reply(correlation: 0, record: 0, verdict(input, start, end))
  }

  /// `decide` answers the usual case of a call with one operation with an array of one bulk string:
  /// 16 bytes of fingerprint, then the reason as a one-byte integer. Anything else is one of its
  /// other outcomes (fenced, stale, …).
  @inline(__always)
  private func verdict(_ input: Bytes, _ start: Int, _ finish: Int) -> Verdict {
    let kind = input[start]
    if kind == UInt8(ascii: "-") { return .error(0) }
    guard case .decide = command else {
      return .allowed(reason: 0, source: 0, replayed: false)
    }
    guard kind == UInt8(ascii: "*"), finish - start > 4, input[start + 4] == UInt8(ascii: "$"),
      let end = input.firstIndex(of: 10, from: start + 4), end + 17 < finish
    else { return .error(0) }
    let reason = UInt16(input[end + 17])
    return reason < 16
      ? .allowed(reason: reason, source: 0, replayed: false)
      : .denied(reason: reason, source: 0, replayed: false)
  }
}

/// Encodes the `decide` commands of a run.
package protocol DecideSource: Sendable {
  /// Subject number → index of its template.
  var bucketOfSubject: [UInt16] { get }
  /// One template per bucket, good for some seconds after the given time, with ids of that time.
  func templates(wallMilliseconds: Int64) throws -> [Template]
}

/// Just enough of RESP2.
package enum RESP {
  package static func command(_ words: [String]) -> [UInt8] {
    var bytes = Array("*\(words.count)\r\n".utf8)
    for word in words { bytes += Array("$\(word.utf8.count)\r\n\(word)\r\n".utf8) }
    return bytes
  }

  /// The length of the whole reply at the front; nil where it is not all there.
  package static func length(of input: Bytes) throws -> Int? {
    try end(of: input, from: 0, depth: 0)
  }

  /// The end of the whole reply at `start`; nil where it is not all there. A line of a few bytes,
  /// which most replies are, is looked through here.
  @inline(__always)
  static func end(of input: Bytes, from start: Int) throws -> Int? {
    guard start < input.count else { return nil }
    let kind = input[start]
    if kind == UInt8(ascii: ":") || kind == UInt8(ascii: "+") {
      for at in start + 1..<min(start + 24, input.count) where input[at] == 10 { return at + 1 }
    }
    return try end(of: input, from: start, depth: 0)
  }

  private static func end(of input: Bytes, from start: Int, depth: Int) throws -> Int? {
    guard depth < 8 else { throw BenchError("a reply nested too deeply") }
    guard start < input.count, let line = input.firstIndex(of: 10, from: start) else { return nil }
    switch input[start] {
    case UInt8(ascii: "+"), UInt8(ascii: "-"), UInt8(ascii: ":"): return line + 1
    case UInt8(ascii: "$"):
      let n = try number(input, start + 1, line)
      if n < 0 { return line + 1 }
      let end = line + 1 + n + 2
      return end <= input.count ? end : nil
    case UInt8(ascii: "*"):
      var position = line + 1
      for _ in 0..<max(0, try number(input, start + 1, line)) {
        guard let next = try end(of: input, from: position, depth: depth + 1) else { return nil }
        position = next
      }
      return position
    default: throw BenchError("the peer does not speak RESP")
    }
  }

  static func number(_ input: Bytes, _ start: Int, _ line: Int) throws -> Int {
    var value = 0
    var negative = false
    for at in start..<max(start, line - 1) {
      let byte = input[at]
      if byte == UInt8(ascii: "-") && at == start {
        negative = true
      } else if byte >= 0x30 && byte <= 0x39 && value < 1 << 40 {
        value = value * 10 + Int(byte - 0x30)
      } else {
        throw BenchError("the peer does not speak RESP")
      }
    }
    return negative ? -value : value
  }
}
