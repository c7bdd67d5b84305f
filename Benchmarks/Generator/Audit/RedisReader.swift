// The auditor's own reader of Redis: RESP2 and the stored form of a counter, read from KEYS.md
// and shared with nobody, so that a mistake of the sidecar's is not repeated here.

package enum RESPValue: Sendable, Hashable {
  case bytes([UInt8])
  case integer(Int64)
  case list([RESPValue])
  case error(String)
  case none

  package var text: String? {
    switch self {
    case .bytes(let bytes): String(decoding: bytes, as: UTF8.self)
    case .integer(let value): "\(value)"
    default: nil
    }
  }
}

package final class RedisReader {
  private let line: StandingLine
  private let user: String?
  private let password: String?

  package init(_ target: Target, user: String? = nil, password: String? = nil) throws {
    line = StandingLine([target], timeoutSeconds: 30)
    self.user = user
    self.password = password
    try line.use(greeting: greet) { _ in }
  }

  private func greet(_ socket: BlockingSocket) throws {
    guard let password else { return }
    try socket.send(RESP.command(["AUTH"] + (user.map { [$0] } ?? []) + [password]))
    try require(Self.read(socket))
  }

  @discardableResult
  package func command(_ words: [String]) throws -> RESPValue {
    try command(words.map { Array($0.utf8) })
  }

  package func command(_ words: [[UInt8]]) throws -> RESPValue {
    var bytes = Array("*\(words.count)\r\n".utf8)
    for word in words { bytes += Array("$\(word.count)\r\n".utf8) + word + [13, 10] }
    return try line.use(greeting: greet) { socket in
      try socket.send(bytes)
      return try Self.read(socket)
    }
  }

  /// Many commands at once, answered in order.
  package func pipeline(_ commands: [[String]]) throws -> [RESPValue] {
    var values: [RESPValue] = []
    values.reserveCapacity(commands.count)
    var at = 0
    while at < commands.count {
      let piece = commands[at..<min(at + 256, commands.count)]
      values += try line.use(greeting: greet) { socket in
        try socket.send(piece.flatMap { RESP.command($0) })
        return try piece.map { _ in try Self.read(socket) }
      }
      at += piece.count
    }
    return values
  }

  package func require(_ value: RESPValue) throws {
    if case .error(let text) = value { throw BenchError("Redis: \(text)") }
  }

  private static func read(_ socket: BlockingSocket) throws -> RESPValue {
    try socket.receive { input in
      guard let length = try RESP.length(of: input) else { return nil }
      defer { input.consume(length) }
      var position = 0
      return try value(input, &position)
    }
  }

  private static func value(_ input: Bytes, _ position: inout Int) throws -> RESPValue {
    guard let line = input.firstIndex(of: 10, from: position) else {
      throw BenchError("a reply without an end")
    }
    let start = position + 1
    let kind = input[position]
    position = line + 1
    switch kind {
    case UInt8(ascii: "+"): return .bytes(input.array(start..<line - 1))
    case UInt8(ascii: "-"):
      return .error(String(decoding: input.array(start..<line - 1), as: UTF8.self))
    case UInt8(ascii: ":"): return .integer(Int64(try RESP.number(input, start, line)))
    case UInt8(ascii: "$"):
      let n = try RESP.number(input, start, line)
      if n < 0 { return .none }
      position = line + 1 + n + 2
      return .bytes(input.array(line + 1..<line + 1 + n))
    default:
      let n = try RESP.number(input, start, line)
      if n < 0 { return .none }
      var values: [RESPValue] = []
      for _ in 0..<n { values.append(try value(input, &position)) }
      return .list(values)
    }
  }
}

/// A stored counter: the units settled in its current and in its previous period.
package struct CounterReading: Sendable, Hashable {
  package var start: Int64
  package var settled: Int64
  package var previousStart: Int64
  package var previousSettled: Int64

  package init(start: Int64, settled: Int64, previousStart: Int64, previousSettled: Int64) {
    self.start = start
    self.settled = settled
    self.previousStart = previousStart
    self.previousSettled = previousSettled
  }

  /// Seven MessagePack integers: start, settled, held, forgiven, and start, settled, held of the
  /// previous period.
  package init?(_ bytes: [UInt8]) {
    var numbers: [Int64] = []
    var at = 0
    while at < bytes.count {
      let tag = bytes[at]
      at += 1
      let width: Int
      switch tag {
      case 0...0x7F:
        numbers.append(Int64(tag))
        continue
      case 0xE0...0xFF:
        numbers.append(Int64(Int8(bitPattern: tag)))
        continue
      case 0xCC, 0xD0: width = 1
      case 0xCD, 0xD1: width = 2
      case 0xCE, 0xD2: width = 4
      case 0xCF, 0xD3: width = 8
      // Lua's packer writes a whole number beyond its integer range as a double.
      case 0xCB: width = 8
      default: return nil
      }
      guard at + width <= bytes.count else { return nil }
      let raw = bytes[at..<at + width].reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      at += width
      if tag == 0xCB {
        guard let whole = Int64(exactly: Double(bitPattern: raw)) else { return nil }
        numbers.append(whole)
      } else if tag >= 0xD0 {
        let shift = UInt64(64 - 8 * width)
        numbers.append(Int64(bitPattern: raw << shift) >> Int64(shift))
      } else {
        guard let number = Int64(exactly: raw) else { return nil }
        numbers.append(number)
      }
    }
    guard numbers.count >= 7 else { return nil }
    self.init(
      start: numbers[0], settled: numbers[1], previousStart: numbers[4],
      previousSettled: numbers[5])
  }

  /// Units added between `before` and this reading; nil where more than one period boundary lies
  /// between them, so that units may have been forgotten in the middle.
  ///
  /// - Parameter since: the wall time of the first reading, in milliseconds.
  package func added(since before: CounterReading?, at since: Int64) -> Int64? {
    let held = settled + previousSettled
    guard let before else {
      // A new counter: all of it is ours, as long as its first period is still held.
      return previousSettled == 0 || previousStart <= since || start <= since ? held : nil
    }
    if start == before.start { return settled - before.settled }
    if previousStart == before.start { return held - before.settled }
    return nil
  }
}
