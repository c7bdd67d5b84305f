// Names that arrive from outside are validated once, at the edge; inside, a value of one of these
// types is known to be well-formed. The alphabets leave out every byte with a meaning in a Redis
// key (`:` `{` `}`), in a counter field (`|` `~`), in a subject path (`/`) or in a line of text.

public struct InvalidName: Error, Hashable, Sendable, CustomStringConvertible {
  public let value: String
  public let reason: String

  public var description: String { "\"\(value)\": \(reason)" }
}

enum NameRule {
  /// Letters, digits, `.`, `_`, `-`; first a letter or digit.
  static func check(_ text: String, bytesMax: Int) throws(InvalidName) {
    let bytes = text.utf8
    guard !bytes.isEmpty else { throw InvalidName(value: text, reason: "is empty") }
    guard bytes.count <= bytesMax else {
      throw InvalidName(value: text, reason: "is longer than \(bytesMax) bytes")
    }
    for byte in bytes where !isWord(byte) && byte != 0x2E && byte != 0x2D && byte != 0x5F {
      throw InvalidName(value: text, reason: "may hold only letters, digits, '.', '_' and '-'")
    }
    guard let first = bytes.first, isWord(first) else {
      throw InvalidName(value: text, reason: "must start with a letter or digit")
    }
  }

  /// A subject segment additionally allows `@` and `+`, so that an e-mail address is one.
  static func isSegmentByte(_ byte: UInt8) -> Bool {
    isWord(byte) || byte == 0x2E || byte == 0x2D || byte == 0x5F || byte == 0x40 || byte == 0x2B
  }

  static func isWord(_ byte: UInt8) -> Bool {
    (byte >= 0x30 && byte <= 0x39) || (byte >= 0x41 && byte <= 0x5A)
      || (byte >= 0x61 && byte <= 0x7A)
  }
}

/// A validated name: a feature, limit, plan or deployment id. At most 64 bytes.
public struct Name: Hashable, Comparable, Sendable, Codable, CustomStringConvertible {
  public static let bytesMax = 64
  public let text: String

  public init(_ text: String) throws(InvalidName) {
    try NameRule.check(text, bytesMax: Self.bytesMax)
    self.text = text
  }

  public init(from decoder: any Decoder) throws {
    try self.init(decoder.singleValueContainer().decode(String.self))
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(text)
  }

  public var description: String { text }
  public static func < (a: Self, b: Self) -> Bool { a.text < b.text }
}

/// `account[/member[/run…]]`: one to five segments, each 1…64 bytes of letters, digits and
/// `. _ - @ +`. The first segment is the paying account.
public struct Subject: Hashable, Comparable, Sendable, Codable, CustomStringConvertible {
  public static let levelsMax = 5
  public static let segmentBytesMax = 64
  public let path: String
  public let depth: Int

  public init(_ path: String) throws(InvalidName) {
    var depth = 1
    var run = 0
    for byte in path.utf8 {
      if byte == 0x2F {
        guard run > 0 else { throw InvalidName(value: path, reason: "has an empty segment") }
        depth += 1
        run = 0
      } else {
        guard NameRule.isSegmentByte(byte) else {
          throw InvalidName(
            value: path, reason: "segments may hold only letters, digits and '. _ - @ +'")
        }
        run += 1
        guard run <= Self.segmentBytesMax else {
          throw InvalidName(
            value: path, reason: "has a segment longer than \(Self.segmentBytesMax) bytes")
        }
      }
    }
    guard run > 0 else { throw InvalidName(value: path, reason: "has an empty segment") }
    guard depth <= Self.levelsMax else {
      throw InvalidName(value: path, reason: "has more than \(Self.levelsMax) segments")
    }
    self.path = path
    self.depth = depth
  }

  private init(unchecked path: String, depth: Int) {
    self.path = path
    self.depth = depth
  }

  public init(from decoder: any Decoder) throws {
    try self.init(decoder.singleValueContainer().decode(String.self))
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(path)
  }

  public var account: Subject { prefix(1) }

  /// The ancestor with `levels` segments; the subject itself where it has no more than that.
  public func prefix(_ levels: Int) -> Subject {
    precondition(levels >= 1)
    if levels >= depth { return self }
    var slashes = 0
    var end = path.utf8.startIndex
    for index in path.utf8.indices where path.utf8[index] == 0x2F {
      slashes += 1
      if slashes == levels {
        end = index
        break
      }
    }
    return Subject(unchecked: String(path[..<end]), depth: levels)
  }

  /// Whether this subject is `other` or an ancestor of it.
  public func contains(_ other: Subject) -> Bool {
    depth <= other.depth && other.prefix(depth) == self
  }

  public var description: String { path }
  public static func < (a: Self, b: Self) -> Bool { a.path < b.path }
}
