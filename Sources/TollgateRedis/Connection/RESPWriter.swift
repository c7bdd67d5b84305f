// Writes commands in RESP: an array of bulk strings, straight into the caller's buffer.
//
// Why this shape: the bytes of a whole event-loop tick share one `ByteBuffer`, so the writer owns
// nothing and every method takes the buffer. Each element reserves its worst case once and is
// written in one go: no intermediate strings, no allocation beyond the buffer's own growth.
//
// Promise: what it writes is byte for byte what hiredis would format (a test compares them), and
// a command whose element count does not match its header is a programming error that traps.

package import NIOCore

/// One command element for the cold paths, where convenience is worth an allocation.
package enum RESPArgument: Hashable, Sendable, ExpressibleByStringLiteral,
  ExpressibleByIntegerLiteral
{
  case string(String)
  case bytes([UInt8])
  case integer(Int64)

  package init(stringLiteral value: String) { self = .string(value) }
  package init(integerLiteral value: Int64) { self = .integer(value) }
}

/// Appends commands to a buffer. `begin` states how many elements follow; exactly that many
/// `append` calls must come before the next `begin`.
package struct RESPWriter {
  /// Elements still owed to the command that was begun; zero between commands.
  package private(set) var remaining = 0

  package init() {}

  /// Starts a command of `count` elements.
  package mutating func begin(_ buffer: inout ByteBuffer, count: Int) {
    precondition(remaining == 0, "the command before this one lacks elements")
    precondition(count > 0, "a command has at least its name")
    remaining = count
    unsafe buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: Self.headerBytesMax) { out in
      unsafe Self.header(Self.star, UInt64(count), out, 0)
    }
  }

  package mutating func append(_ string: String, to buffer: inout ByteBuffer) {
    var string = string
    string.withUTF8 { unsafe append(UnsafeRawBufferPointer($0), to: &buffer) }
  }

  package mutating func append(literal: StaticString, to buffer: inout ByteBuffer) {
    literal.withUTF8Buffer { unsafe append(UnsafeRawBufferPointer($0), to: &buffer) }
  }

  package mutating func append(_ bytes: [UInt8], to buffer: inout ByteBuffer) {
    unsafe bytes.withUnsafeBytes { unsafe append($0, to: &buffer) }
  }

  package mutating func append(_ bytes: ArraySlice<UInt8>, to buffer: inout ByteBuffer) {
    unsafe bytes.withUnsafeBytes { unsafe append($0, to: &buffer) }
  }

  package mutating func append(_ view: ByteBufferView, to buffer: inout ByteBuffer) {
    unsafe view.withUnsafeBytes { unsafe append($0, to: &buffer) }
  }

  /// Appends the number in decimal, as a bulk string.
  package mutating func append(integer value: Int64, to buffer: inout ByteBuffer) {
    spend()
    let magnitude = value.magnitude
    let digits = Self.digitCount(magnitude)
    let sign = value < 0 ? 1 : 0
    unsafe buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: Self.headerBytesMax * 2) {
      out in
      var at = unsafe Self.header(Self.dollar, UInt64(digits + sign), out, 0)
      if sign == 1 {
        unsafe out[at] = Self.minus
        at += 1
      }
      unsafe Self.decimal(magnitude, digits, out, at)
      at += digits
      unsafe out[at] = Self.carriageReturn
      unsafe out[at + 1] = Self.lineFeed
      return at + 2
    }
  }

  package mutating func append(_ argument: RESPArgument, to buffer: inout ByteBuffer) {
    switch argument {
    case .string(let string): append(string, to: &buffer)
    case .bytes(let bytes): append(bytes, to: &buffer)
    case .integer(let value): append(integer: value, to: &buffer)
    }
  }

  /// Appends raw memory, which is copied before the call returns.
  @unsafe package mutating func append(
    _ bytes: UnsafeRawBufferPointer, to buffer: inout ByteBuffer
  ) {
    spend()
    let count = bytes.count
    unsafe buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: count + Self.headerBytesMax + 2)
    {
      out in
      var at = unsafe Self.header(Self.dollar, UInt64(count), out, 0)
      if count > 0 {
        unsafe UnsafeMutableRawBufferPointer(rebasing: out[at..<(at + count)]).copyMemory(
          from: bytes)
      }
      at += count
      unsafe out[at] = Self.carriageReturn
      unsafe out[at + 1] = Self.lineFeed
      return at + 2
    }
  }

  /// Writes a whole command of mixed arguments; for cold paths and handshakes.
  package static func write(_ arguments: [RESPArgument], to buffer: inout ByteBuffer) {
    var writer = RESPWriter()
    writer.begin(&buffer, count: arguments.count)
    for argument in arguments { writer.append(argument, to: &buffer) }
  }

  private mutating func spend() {
    precondition(remaining > 0, "more elements than the command announced")
    remaining -= 1
  }

  /// A type byte, at most 20 digits, CR and LF, rounded up.
  private static let headerBytesMax = 24
  private static let star: UInt8 = 0x2A
  private static let dollar: UInt8 = 0x24
  private static let minus: UInt8 = 0x2D
  private static let carriageReturn: UInt8 = 0x0D
  private static let lineFeed: UInt8 = 0x0A

  @inline(__always)
  private static func digitCount(_ value: UInt64) -> Int {
    var digits = 1
    var rest = value
    while rest >= 10 {
      rest /= 10
      digits += 1
    }
    return digits
  }

  @inline(__always)
  private static func decimal(
    _ value: UInt64, _ digits: Int, _ out: UnsafeMutableRawBufferPointer, _ start: Int
  ) {
    var rest = value
    var at = start + digits
    while at > start {
      at -= 1
      unsafe out[at] = 0x30 + UInt8(truncatingIfNeeded: rest % 10)
      rest /= 10
    }
  }

  /// Writes `<type><number>CRLF` at `start` and answers the offset after it.
  @inline(__always)
  private static func header(
    _ type: UInt8, _ value: UInt64, _ out: UnsafeMutableRawBufferPointer, _ start: Int
  ) -> Int {
    let digits = digitCount(value)
    unsafe out[start] = type
    unsafe decimal(value, digits, out, start + 1)
    let end = start + 1 + digits
    unsafe out[end] = carriageReturn
    unsafe out[end + 1] = lineFeed
    return end + 2
  }
}
