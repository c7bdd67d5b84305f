// A blocking RESP2 client of a few lines, for tests that look into Redis.
//
// It shares nothing with the product's hiredis path, so it can be a witness against it. One
// command at a time under a lock, a deadline on every wait, an error reply is thrown.

internal import Glibc
internal import NIOConcurrencyHelpers

/// One RESP2 reply.
package enum MiniReply: Sendable, Equatable {
  case simple(String)
  case error(String)
  case integer(Int64)
  case bulk([UInt8])
  case null
  case array([MiniReply])

  /// The text of a status or bulk reply, or an integer in decimal; nil for null and arrays.
  package var string: String? {
    switch self {
    case .simple(let text), .error(let text): text
    case .integer(let value): String(value)
    case .bulk(let bytes): String(decoding: bytes, as: UTF8.self)
    case .null, .array: nil
    }
  }

  /// An integer reply, or a bulk reply that is one.
  package var integer: Int64? {
    if case .integer(let value) = self { return value }
    return string.flatMap { Int64($0) }
  }

  package var bytes: [UInt8]? {
    switch self {
    case .bulk(let bytes): bytes
    case .simple(let text): Array(text.utf8)
    default: nil
    }
  }

  /// The elements of an array; empty for anything else.
  package var elements: [MiniReply] {
    if case .array(let elements) = self { elements } else { [] }
  }

  /// An array as text, null elements as empty strings.
  package var strings: [String] { elements.map { $0.string ?? "" } }

  /// A flat field, value, field, value … array as a dictionary (HGETALL, XINFO).
  package var dictionary: [String: String] {
    let flat = strings
    var result: [String: String] = [:]
    for index in stride(from: 0, to: flat.count - 1, by: 2) {
      result[flat[index]] = flat[index + 1]
    }
    return result
  }
}

package enum MiniRedisError: Error, Equatable, CustomStringConvertible {
  case closed
  case timedOut(milliseconds: Int)
  case malformed(String)
  case reply(String)

  package var description: String {
    switch self {
    case .closed: "Redis closed the connection"
    case .timedOut(let milliseconds): "Redis did not answer within \(milliseconds) ms"
    case .malformed(let what): "not RESP2: \(what)"
    case .reply(let text): "Redis answered: \(text)"
    }
  }
}

package final class MiniRedis: Sendable {
  private struct Connection {
    let fd: Int32
    var buffer: [UInt8] = []
    var start = 0
    var isBroken = false
  }

  private let connection: NIOLockedValueBox<Connection>
  private let timeout: Int

  /// Connects, and authenticates where a password is given (as `user`, or as the default user).
  package init(
    _ endpoint: TestEndpoint, user: String? = nil, password: String? = nil,
    timeout: Duration = .seconds(10)
  ) throws {
    self.timeout = timeout.inMilliseconds
    connection = NIOLockedValueBox(Connection(fd: try Socket.connect(endpoint)))
    if let password {
      try command(["AUTH"] + (user.map { [$0] } ?? []) + [password])
    }
  }

  deinit { connection.withLockedValue { Socket.close($0.fd) } }

  /// One command; an error reply is thrown as `MiniRedisError.reply`.
  @discardableResult
  package func command(_ arguments: [String]) throws -> MiniReply {
    let reply = try commandOrError(arguments)
    if case .error(let text) = reply { throw MiniRedisError.reply(text) }
    return reply
  }

  @discardableResult
  package func command(_ arguments: String...) throws -> MiniReply { try command(arguments) }

  /// One command; an error reply is returned as a value.
  @discardableResult
  package func commandOrError(_ arguments: [String]) throws -> MiniReply {
    guard let reply = try pipeline([arguments]).first else { throw MiniRedisError.closed }
    return reply
  }

  /// Several commands in one write; replies in order, errors as values.
  package func pipeline(_ commands: [[String]]) throws -> [MiniReply] {
    try pipeline(commands.map { $0.map { Array($0.utf8) } })
  }

  /// The same for arguments that are not text.
  package func pipeline(_ commands: [[[UInt8]]]) throws -> [MiniReply] {
    var request: [UInt8] = []
    for arguments in commands {
      request += "*\(arguments.count)\r\n".utf8
      for argument in arguments {
        request += "$\(argument.count)\r\n".utf8
        request += argument
        request += "\r\n".utf8
      }
    }
    return try connection.withLockedValue { connection in
      guard !connection.isBroken else { throw MiniRedisError.closed }
      do {
        try send(request, on: connection.fd)
        return try commands.map { _ in try parse(&connection) }
      } catch {
        // The stream position is unknown from here on.
        connection.isBroken = true
        throw error
      }
    }
  }

  /// What comes unasked on a connection that has subscribed.
  package func receive() throws -> MiniReply {
    try connection.withLockedValue { connection in
      guard !connection.isBroken else { throw MiniRedisError.closed }
      return try parse(&connection)
    }
  }

  private func send(_ bytes: [UInt8], on fd: Int32) throws {
    var rest = bytes[...]
    while !rest.isEmpty { rest = rest.dropFirst(try Socket.write(fd, rest)) }
  }

  private func fill(_ connection: inout Connection) throws {
    guard Socket.wait(connection.fd, for: POLLIN, milliseconds: timeout) else {
      throw MiniRedisError.timedOut(milliseconds: timeout)
    }
    guard let bytes = try Socket.read(connection.fd), !bytes.isEmpty else {
      throw MiniRedisError.closed
    }
    connection.buffer.removeFirst(connection.start)
    connection.start = 0
    connection.buffer += bytes
  }

  private func line(_ connection: inout Connection) throws -> String {
    while true {
      let unread = connection.buffer[connection.start...]
      if let end = unread.firstIndex(of: 13), end + 1 < unread.endIndex {
        connection.start = end + 2
        return String(decoding: unread[..<end], as: UTF8.self)
      }
      try fill(&connection)
    }
  }

  private func parse(_ connection: inout Connection) throws -> MiniReply {
    let line = try line(&connection)
    let rest = String(line.dropFirst())
    switch line.first {
    case "+": return .simple(rest)
    case "-": return .error(rest)
    case ":":
      guard let value = Int64(rest) else { throw MiniRedisError.malformed(line) }
      return .integer(value)
    case "$":
      guard let count = Int(rest), count >= -1 else { throw MiniRedisError.malformed(line) }
      if count == -1 { return .null }
      while connection.buffer.count - connection.start < count + 2 { try fill(&connection) }
      let start = connection.start
      connection.start += count + 2
      return .bulk(Array(connection.buffer[start..<start + count]))
    case "*":
      guard let count = Int(rest), count >= -1 else { throw MiniRedisError.malformed(line) }
      if count == -1 { return .null }
      return .array(try (0..<count).map { _ in try parse(&connection) })
    default: throw MiniRedisError.malformed(line)
    }
  }
}
