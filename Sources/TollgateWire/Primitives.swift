// The few shapes every message is made of: little-endian integers, short and long texts, names,
// and field lists. All readers throw a refusal (never trap, never allocate on an announced length
// alone); all writers are total for values that their callers validated.

import NIOCore
import TollgateCore

extension ByteBuffer {
  // MARK: reading

  @inline(__always)
  mutating func take<T: FixedWidthInteger>(_ type: T.Type = T.self) throws(WireError) -> T {
    guard let value = readInteger(endianness: .little, as: type) else { throw .truncated }
    return value
  }

  mutating func takeReserved(_ bytes: Int) throws(WireError) {
    for _ in 0..<bytes {
      guard try take(UInt8.self) == 0 else {
        throw .refused(.badRequest, "reserved bytes are not zero")
      }
    }
  }

  mutating func takeBool() throws(WireError) -> Bool {
    switch try take(UInt8.self) {
    case 0: return false
    case 1: return true
    default: throw .refused(.badRequest, "a truth value is neither 0 nor 1")
    }
  }

  /// A count, refused when above `max` or when `max` such things of `each` bytes cannot be there.
  mutating func takeCount<T: FixedWidthInteger & UnsignedInteger>(
    _ type: T.Type, max: Int, each: Int, of what: String,
    error code: ErrorCode = .badRequest
  ) throws(WireError) -> Int {
    let count = Int(try take(type))
    guard count <= max else { throw .refused(code, "\(count) \(what); at most \(max) allowed") }
    guard count * each <= readableBytes else { throw .truncated }
    return count
  }

  /// An amount as a caller may send it: 0 … 2^53 − 1.
  mutating func takeAmount() throws(WireError) -> Int64 {
    let value = try take(Int64.self)
    guard value >= 0, value <= Quantity.maximum else {
      throw .refused(.amountOutOfRange, "amount \(value) is outside 0 … 2^53 − 1")
    }
    return value
  }

  /// A number that must fit a quantity, negative or not.
  mutating func takeQuantity() throws(WireError) -> Int64 {
    let value = try take(Int64.self)
    guard Quantity.isValid(value) else {
      throw .refused(.amountOutOfRange, "\(value) is outside ±(2^53 − 1)")
    }
    return value
  }

  /// A version, epoch, sequence or instant: 0 … 2^53 − 1.
  mutating func takeOrdinal() throws(WireError) -> Int64 {
    let value = try take(Int64.self)
    guard value >= 0, value <= Quantity.maximum else {
      throw .refused(.badRequest, "\(value) is not a legal version, position or time")
    }
    return value
  }

  mutating func takeTime() throws(WireError) -> WallTime {
    let value = try take(Int64.self)
    guard Quantity.isValid(value) else {
      throw .refused(.badRequest, "\(value) is not a legal time")
    }
    return WallTime(milliseconds: value)
  }

  mutating func takePeriod() throws(WireError) -> Period {
    let start = try takeTime()
    let end = try takeTime()
    guard start < end else { throw .refused(.badRequest, "a period ends before it starts") }
    return Period(start: start, end: end)
  }

  mutating func takeText<T: FixedWidthInteger & UnsignedInteger>(
    _ lengthType: T.Type, max: Int
  ) throws(WireError) -> String {
    let length = Int(try take(lengthType))
    guard length <= max else {
      throw .refused(.badRequest, "a text of \(length) bytes; at most \(max) allowed")
    }
    return try takeUTF8(length)
  }

  mutating func takeUTF8(_ length: Int) throws(WireError) -> String {
    guard length <= readableBytes else { throw .truncated }
    do {
      guard let text = try readUTF8ValidatedString(length: length) else {
        throw WireError.truncated
      }
      return text
    } catch let error as WireError {
      throw error
    } catch {
      throw .refused(.badRequest, "a text is not valid UTF-8")
    }
  }

  /// Bytes that are not valid UTF-8 become U+FFFD, which no name may hold.
  mutating func takeName() throws(WireError) -> Name {
    let length = Int(try take(UInt8.self))
    return try takeName(length)
  }

  mutating func takeOptionalName() throws(WireError) -> Name? {
    let length = Int(try take(UInt8.self))
    return length == 0 ? nil : try takeName(length)
  }

  private mutating func takeName(_ length: Int) throws(WireError) -> Name {
    guard let text = readString(length: length) else { throw .truncated }
    do throws(InvalidName) {
      return try Name(text)
    } catch {
      throw .refused(.invalidName, error.description)
    }
  }

  mutating func takeSubject() throws(WireError) -> Subject {
    let length = Int(try take(UInt16.self))
    return try takeSubject(length)
  }

  mutating func takeSubject(_ length: Int) throws(WireError) -> Subject {
    guard length <= Subject.levelsMax * (Subject.segmentBytesMax + 1) else {
      throw .refused(.invalidName, "a subject of \(length) bytes is too long")
    }
    guard let text = readString(length: length) else { throw .truncated }
    do throws(InvalidName) {
      return try Subject(text)
    } catch {
      throw .refused(.invalidName, error.description)
    }
  }

  /// Big-endian, so that ids sort as bytes the way they sort as numbers and as hex.
  mutating func takeOperationID() throws(WireError) -> OperationID {
    guard let (high, low) = readMultipleIntegers(endianness: .big, as: (UInt64, UInt64).self)
    else { throw .truncated }
    return OperationID(high: high, low: low)
  }

  mutating func takeDeltaID() throws(WireError) -> DeltaID {
    let operation = try takeOperationID()
    return DeltaID(operation: operation, index: try take())
  }

  /// A 32-bit length and that many bytes.
  mutating func takeBytes(max: Int, of what: String) throws(WireError) -> [UInt8] {
    let length = Int(try take(UInt32.self))
    guard length <= max else {
      throw .refused(.badRequest, "\(what) of \(length) bytes; at most \(max) allowed")
    }
    guard let bytes = readBytes(length: length) else { throw .truncated }
    return bytes
  }

  func requireEnd(of what: String) throws(WireError) {
    guard readableBytes == 0 else {
      throw .refused(.badRequest, "\(readableBytes) bytes too many in \(what)")
    }
  }

  // MARK: writing

  @inline(__always)
  mutating func put(_ value: some FixedWidthInteger) {
    writeInteger(value, endianness: .little)
  }

  mutating func put(_ name: Name?) {
    guard let name else { return put(UInt8(0)) }
    put(UInt8(truncatingIfNeeded: name.text.utf8.count))
    writeString(name.text)
  }

  mutating func put(_ subject: Subject) {
    put(UInt16(truncatingIfNeeded: subject.path.utf8.count))
    writeString(subject.path)
  }

  mutating func put(_ id: OperationID) {
    writeMultipleIntegers(id.high, id.low, endianness: .big)
  }

  mutating func put(_ id: DeltaID) {
    put(id.operation)
    put(id.index)
  }

  mutating func put(_ period: Period) {
    put(period.start.milliseconds)
    put(period.end.milliseconds)
  }

  /// A text of at most `max` bytes; what is longer is cut at a character's boundary.
  mutating func put<T: FixedWidthInteger & UnsignedInteger>(
    _ text: String, _ lengthType: T.Type, max: Int
  ) {
    let text = text.utf8.count <= max ? text : text.cut(toBytes: max)
    put(T(text.utf8.count))
    writeString(text)
  }

  mutating func put(bytes: [UInt8]) {
    put(UInt32(bytes.count))
    writeBytes(bytes)
  }

  /// Writes what `body` writes, with its length in front as a `T`.
  @inline(__always)
  mutating func putSized<T: FixedWidthInteger & UnsignedInteger>(
    _ lengthType: T.Type, _ body: (inout ByteBuffer) -> Void
  ) {
    let start = writerIndex
    put(T(0))
    body(&self)
    setInteger(
      T(writerIndex - start - MemoryLayout<T>.size), at: start, endianness: .little)
  }
}

extension String {
  func cut(toBytes max: Int) -> String {
    var end = utf8.index(startIndex, offsetBy: max)
    while end > startIndex, end.samePosition(in: unicodeScalars) == nil {
      end = utf8.index(before: end)
    }
    return String(self[..<end])
  }
}

extension WireError {
  static let truncated = WireError.refused(.badRequest, "the payload ends inside a value")
}
