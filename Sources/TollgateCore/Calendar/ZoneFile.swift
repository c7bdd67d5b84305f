// Reads a compiled time zone (TZif, RFC 9636, versions 1 to 4) as the system has them in
// /usr/share/zoneinfo. The bytes come from outside: every length is checked before it is used.

public struct InvalidZone: Error, Hashable, CustomStringConvertible {
  public var description: String
}

public enum ZoneFile {
  /// More than any real zone has.
  static let transitionsMax = 4096
  static let typesMax = 256

  public static func read(name: String, _ bytes: [UInt8]) throws(InvalidZone) -> ZoneRules {
    var reader = Reader(bytes: bytes)
    let first = try reader.header()
    guard first.version > 0 else {
      return try reader.rules(name: name, first, timeBytes: 4, hasFooter: false)
    }
    // The 32-bit block is for old readers.
    try reader.skip(first.blockBytes(timeBytes: 4))
    return try reader.rules(name: name, try reader.header(), timeBytes: 8, hasFooter: true)
  }

  private struct Header {
    var version: Int
    var utcIndicators: Int
    var standardIndicators: Int
    var leapSeconds: Int
    var transitions: Int
    var types: Int
    var nameBytes: Int

    func blockBytes(timeBytes: Int) -> Int {
      transitions * (timeBytes + 1) + types * 6 + nameBytes + leapSeconds * (timeBytes + 4)
        + standardIndicators + utcIndicators
    }
  }

  private struct Reader {
    let bytes: [UInt8]
    var position = 0

    init(bytes: [UInt8]) { self.bytes = bytes }

    mutating func skip(_ count: Int) throws(InvalidZone) { _ = try take(count) }

    mutating func take(_ count: Int) throws(InvalidZone) -> ArraySlice<UInt8> {
      guard count <= bytes.count - position else {
        throw InvalidZone(description: "the zone file ends too early")
      }
      defer { position += count }
      return bytes[position..<position + count]
    }

    mutating func integer(_ count: Int) throws(InvalidZone) -> Int64 {
      let taken = try take(count)
      var value: Int64 = (taken.first ?? 0) & 0x80 == 0 ? 0 : -1
      for byte in taken { value = value << 8 | Int64(byte) }
      return value
    }

    mutating func header() throws(InvalidZone) -> Header {
      guard try take(4).elementsEqual("TZif".utf8) else {
        throw InvalidZone(description: "not a zone file")
      }
      let version = try take(1).first ?? 0
      try skip(15)
      var counts: [Int] = []
      for _ in 0..<6 {
        let count = try integer(4)
        guard count >= 0, count <= 1 << 16 else {
          throw InvalidZone(description: "a count of \(count) in the zone file")
        }
        counts.append(Int(count))
      }
      let header = Header(
        version: version == 0 ? 0 : Int(version) - 0x30, utcIndicators: counts[0],
        standardIndicators: counts[1], leapSeconds: counts[2], transitions: counts[3],
        types: counts[4], nameBytes: counts[5])
      guard (0...9).contains(header.version), header.transitions <= transitionsMax,
        (1...typesMax).contains(header.types)
      else { throw InvalidZone(description: "the zone file's header is out of range") }
      guard header.leapSeconds == 0 else {
        throw InvalidZone(description: "the zone file counts leap seconds; Redis does not")
      }
      return header
    }

    mutating func rules(
      name: String, _ header: Header, timeBytes: Int, hasFooter: Bool
    ) throws(InvalidZone) -> ZoneRules {
      var times: [Int64] = []
      for _ in 0..<header.transitions { times.append(try integer(timeBytes)) }
      let types = Array(try take(header.transitions))
      var offsets: [Int64] = []
      for _ in 0..<header.types {
        let offset = try integer(4)
        guard abs(offset) <= ZoneRules.offsetMax else {
          throw InvalidZone(description: "an offset of \(offset) seconds from UTC")
        }
        offsets.append(offset)
        try skip(2)
      }
      try skip(header.nameBytes + header.standardIndicators + header.utcIndicators)
      var transitions: [ZoneRules.Transition] = []
      for (time, type) in zip(times, types) {
        guard Int(type) < offsets.count, time > transitions.last?.at ?? .min else {
          throw InvalidZone(description: "the transitions of the zone file are not in order")
        }
        transitions.append(.init(at: time, offset: offsets[Int(type)]))
      }
      return ZoneRules(
        name: name, initialOffset: offsets[0], transitions: transitions,
        tail: hasFooter ? try footer() : nil)
    }

    mutating func footer() throws(InvalidZone) -> RecurringRule? {
      guard try take(1).first == 0x0A, let end = bytes[position...].firstIndex(of: 0x0A) else {
        throw InvalidZone(description: "the zone file has no footer")
      }
      let text = bytes[position..<end]
      return text.isEmpty ? nil : try RecurringRule(posix: text)
    }
  }
}

extension RecurringRule {
  /// A TZ string such as `EST5EDT,M3.2.0,M11.1.0` or `<+0545>-5:45`.
  public init(posix text: some Sequence<UInt8>) throws(InvalidZone) {
    var parser = PosixParser(text: Array(text))
    try parser.name()
    // POSIX counts westwards.
    offset = -(try parser.time())
    guard !parser.isAtEnd else { return }
    try parser.name()
    let shifted = parser.next == PosixParser.comma ? offset + 3600 : -(try parser.time())
    try parser.expect(PosixParser.comma)
    let start = try parser.moment()
    try parser.expect(PosixParser.comma)
    daylight = Daylight(offset: shifted, start: start, end: try parser.moment())
    guard parser.isAtEnd, abs(shifted) <= ZoneRules.offsetMax else { throw parser.wrong }
  }
}

private struct PosixParser {
  static let comma = UInt8(ascii: ",")

  let text: [UInt8]
  var position = 0

  var isAtEnd: Bool { position == text.count }
  var next: UInt8? { isAtEnd ? nil : text[position] }

  var wrong: InvalidZone {
    InvalidZone(
      description: "the rule \"\(String(decoding: text, as: UTF8.self))\" is not understood at"
        + " byte \(position)")
  }

  init(text: [UInt8]) { self.text = text }

  mutating func expect(_ byte: UInt8) throws(InvalidZone) {
    guard accept(byte) else { throw wrong }
  }

  mutating func accept(_ byte: UInt8) -> Bool {
    guard next == byte else { return false }
    position += 1
    return true
  }

  mutating func name() throws(InvalidZone) {
    if accept(UInt8(ascii: "<")) {
      while let byte = next, byte != UInt8(ascii: ">") { position += 1 }
      return try expect(UInt8(ascii: ">"))
    }
    let start = position
    while let byte = next, (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte) {
      position += 1
    }
    if position - start < 3 { throw wrong }
  }

  mutating func number(_ range: ClosedRange<Int>) throws(InvalidZone) -> Int {
    var value = 0
    let start = position
    while let byte = next, (0x30...0x39).contains(byte), position - start < 4 {
      value = value * 10 + Int(byte - 0x30)
      position += 1
    }
    guard position > start, range.contains(value) else { throw wrong }
    return value
  }

  /// `[+-]h[h[h]][:mm[:ss]]`, in seconds.
  mutating func time() throws(InvalidZone) -> Int64 {
    let isNegative = accept(UInt8(ascii: "-"))
    if !isNegative { _ = accept(UInt8(ascii: "+")) }
    var seconds = try number(0...167) * 3600
    if accept(UInt8(ascii: ":")) {
      seconds += try number(0...59) * 60
      if accept(UInt8(ascii: ":")) { seconds += try number(0...59) }
    }
    return Int64(isNegative ? -seconds : seconds)
  }

  mutating func moment() throws(InvalidZone) -> RecurringRule.Moment {
    let day: RecurringRule.Moment.Day
    if accept(UInt8(ascii: "M")) {
      let month = try number(1...12)
      try expect(UInt8(ascii: "."))
      let week = try number(1...5)
      try expect(UInt8(ascii: "."))
      day = .weekday(month: month, week: week, weekday: try number(0...6))
    } else if accept(UInt8(ascii: "J")) {
      day = .julian(try number(1...365))
    } else {
      day = .ordinal(try number(0...365))
    }
    // Two in the morning unless it says otherwise.
    let seconds = accept(UInt8(ascii: "/")) ? try time() : 7200
    return .init(day: day, seconds: seconds)
  }
}
