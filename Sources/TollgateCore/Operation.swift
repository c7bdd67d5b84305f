// An operation is one mutating request. Its id is minted by the caller before the first send and
// kept through every retry: the id, not the connection, is what makes an effect happen once.

/// 128 bits, time-ordered: the first 48 bits are the minting time in milliseconds since 1970
/// (big-endian), the rest is random. The text form is 32 lower-case hex digits.
public struct OperationID: Hashable, Comparable, Sendable, Codable, CustomStringConvertible {
  public let high: UInt64
  public let low: UInt64

  public init(high: UInt64, low: UInt64) {
    self.high = high
    self.low = low
  }

  public init(time: WallTime, using generator: inout some RandomNumberGenerator) {
    let milliseconds = UInt64(max(0, time.milliseconds)) & 0xFFFF_FFFF_FFFF
    high = milliseconds << 16 | UInt64.random(in: 0...0xFFFF, using: &generator)
    low = UInt64.random(in: .min ... .max, using: &generator)
  }

  /// 32 hex digits of either case, nothing else.
  public init?(hex: some StringProtocol) {
    let digits = hex.utf8
    guard digits.count == 32 else { return nil }
    var words: (UInt64, UInt64) = (0, 0)
    for (position, digit) in digits.enumerated() {
      let value: UInt64
      switch digit {
      case 0x30...0x39: value = UInt64(digit - 0x30)
      case 0x41...0x46: value = UInt64(digit - 0x41 + 10)
      case 0x61...0x66: value = UInt64(digit - 0x61 + 10)
      default: return nil
      }
      if position < 16 { words.0 = words.0 << 4 | value } else { words.1 = words.1 << 4 | value }
    }
    self.init(high: words.0, low: words.1)
  }

  public init(from decoder: any Decoder) throws {
    let text = try decoder.singleValueContainer().decode(String.self)
    guard let id = OperationID(hex: text) else {
      throw DecodingError.dataCorrupted(
        .init(codingPath: decoder.codingPath, debugDescription: "not 32 hex digits"))
    }
    self = id
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(hex)
  }

  public var time: WallTime { WallTime(milliseconds: Int64(high >> 16)) }

  public var hex: String {
    let digits: [UInt8] = Array("0123456789abcdef".utf8)
    return unsafe String(unsafeUninitializedCapacity: 32) { buffer in
      for position in 0..<32 {
        let word = position < 16 ? high : low
        unsafe buffer[position] = digits[Int(word >> UInt64(60 - 4 * (position & 15)) & 15)]
      }
      return 32
    }
  }

  public var description: String { hex }
  public static func < (a: Self, b: Self) -> Bool {
    a.high != b.high ? a.high < b.high : a.low < b.low
  }
}

/// The identity of one delta: which operation bore it, and the how-manieth it was.
/// Index 0…63 is the operation's item; a reversal of item i has index 64 + i; 128 is a change of
/// configuration.
public struct DeltaID: Hashable, Comparable, Sendable, Codable, CustomStringConvertible {
  public static let reversalOffset: UInt16 = 64
  /// A change of configuration: never that of an item, so that an id that somebody uses for both
  /// is two deltas.
  public static let changeIndex: UInt16 = 128
  public let operation: OperationID
  public let index: UInt16

  public init(operation: OperationID, index: UInt16) {
    self.operation = operation
    self.index = index
  }

  /// Of the change of configuration that an operation makes.
  public init(change operation: OperationID) {
    self.init(operation: operation, index: Self.changeIndex)
  }

  public var description: String { "\(operation.hex).\(index)" }
  public static func < (a: Self, b: Self) -> Bool {
    a.operation != b.operation ? a.operation < b.operation : a.index < b.index
  }
}

/// A stable 64-bit hash (FNV-1a, then a murmur finalizer): account → bucket, and the fingerprint
/// of an operation's body. Its name is in the deployment record because changing it would move
/// every account. Not for anything an attacker gains from colliding.
public struct StableHash: Sendable {
  public static let name = "fnv1a64m"
  private var state: UInt64 = 0xCBF2_9CE4_8422_2325

  public init() {}

  public mutating func combine(_ byte: UInt8) {
    state = (state ^ UInt64(byte)) &* 0x0000_0100_0000_01B3
  }

  public mutating func combine(_ text: String) {
    for byte in text.utf8 { combine(byte) }
    combine(UInt8(0))
  }

  public mutating func combine(_ value: Int64) {
    var bits = UInt64(bitPattern: value)
    for _ in 0..<8 {
      combine(UInt8(truncatingIfNeeded: bits))
      bits >>= 8
    }
  }

  public var value: UInt64 {
    var h = state
    h = (h ^ h >> 33) &* 0xFF51_AFD7_ED55_8CCD
    h = (h ^ h >> 33) &* 0xC4CE_B9FE_1A85_EC53
    return h ^ h >> 33
  }

  public static func of(_ text: String) -> UInt64 {
    var hash = StableHash()
    for byte in text.utf8 { hash.combine(byte) }
    return hash.value
  }
}
