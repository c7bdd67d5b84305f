// How usage is grouped, in time and by what of it is counted. A window names the grouping; a
// period is one instance of it, [start, end). Which instants those are depends on the account's
// calendar (`AccountCalendar`): its zone, and for an anchored window its billing anchor. The code
// of a window is part of a counter's name, so it never changes its meaning.

public struct Window: Hashable, Sendable, Codable, CustomStringConvertible {
  public enum Span: Hashable, Sendable {
    case minute, hour, day, week, month, quarter, year
    case lifetime
    /// Whole seconds; 1 … 100 years.
    case seconds(Int64)
  }

  /// What of an operation a counter counts.
  public enum Tally: Hashable, Sendable {
    /// Every unit.
    case units
    /// The units that no grant covered.
    case overage
    /// The units burnt from one grant. Its periods are the instances of the grant.
    case grant(Name)
    /// The units charged by one rate, as it was from that instant on.
    case priced(Name, from: WallTime)
    /// What is held at this moment; nothing ever settles there.
    case inFlight
    /// Units that are owed: charged beyond everything there was.
    case deficit
  }

  public let span: Span
  public let alignment: Alignment
  public let tally: Tally

  /// Bytes of a code.
  public static let codeBytesMax = 80
  public static let secondsMax: Int64 = 100 * 366 * 86_400

  public static let minute = Window(.minute)
  public static let hour = Window(.hour)
  public static let day = Window(.day)
  public static let week = Window(.week)
  public static let month = Window(.month)
  public static let quarter = Window(.quarter)
  public static let year = Window(.year)
  public static let lifetime = Window(.lifetime)
  public static func seconds(_ count: Int64) -> Window { Window(.seconds(count)) }

  /// There is one lifetime, whatever the alignment.
  public init(_ span: Span, _ alignment: Alignment = .calendar) {
    self.init(span, alignment, .units)
  }

  private init(_ span: Span, _ alignment: Alignment, _ tally: Tally) {
    self.span = span
    self.alignment = span == .lifetime ? .calendar : alignment
    self.tally = tally
  }

  /// What goes beyond every grant, in the periods of `window`.
  public static func overage(_ window: Window) -> Window {
    Window(window.span, window.alignment, .overage)
  }
  public static func grant(_ id: Name) -> Window { Window(.lifetime, .calendar, .grant(id)) }
  /// Counted by the account's month, like the bill.
  public static func priced(by rate: Name, from: WallTime) -> Window {
    Window(.lifetime, .calendar, .priced(rate, from: from))
  }
  public static let inFlight = Window(.lifetime, .calendar, .inFlight)
  public static let deficit = Window(.lifetime, .calendar, .deficit)

  private static let anchoredMark: Character = "@"
  private static let anchoredWord = "anchored "

  /// The short code used in counter fields and deltas: `m h d w M Q Y L` or `<n>s`, followed by
  /// `@` where the window is anchored. Before it `o` for the overage alone. `$<grant>`,
  /// `r<rate>,<ms>` for units burnt from a grant or priced by a rate, `c` for what is in flight,
  /// `-` for what is owed.
  public var code: String {
    switch tally {
    case .units: timeCode
    case .overage: "o" + timeCode
    case .grant(let id): "$" + id.text
    case .priced(let rate, let from): "r\(rate.text),\(from.milliseconds)"
    case .inFlight: "c"
    case .deficit: "-"
    }
  }

  private var timeCode: String {
    let code =
      switch span {
      case .minute: "m"
      case .hour: "h"
      case .day: "d"
      case .week: "w"
      case .month: "M"
      case .quarter: "Q"
      case .year: "Y"
      case .lifetime: "L"
      case .seconds(let n): "\(n)s"
      }
    return alignment == .anchored ? code + String(Self.anchoredMark) : code
  }

  public init?(code: some StringProtocol) {
    let rest = code.dropFirst()
    switch code.first {
    case "o":
      guard let window = Window(timeCode: rest) else { return nil }
      self = .overage(window)
    case "$":
      guard let id = try? Name(String(rest)) else { return nil }
      self = .grant(id)
    case "r":
      // One spelling per window: digits, no sign, no zeros in front.
      let parts = rest.split(separator: ",", omittingEmptySubsequences: false)
      guard parts.count == 2, let rate = try? Name(String(parts[0])),
        let from = Int64(parts[1]), from >= 0, from <= Quantity.maximum,
        String(from) == parts[1]
      else { return nil }
      self = .priced(by: rate, from: WallTime(milliseconds: from))
    case "c" where rest.isEmpty: self = .inFlight
    case "-" where rest.isEmpty: self = .deficit
    default:
      guard let window = Window(timeCode: code) else { return nil }
      self = window
    }
  }

  private init?(timeCode code: some StringProtocol) {
    let isAnchored = code.last == Self.anchoredMark
    guard let span = Span(code: isAnchored ? String(code.dropLast()) : String(code)),
      !isAnchored || span != .lifetime
    else { return nil }
    self.init(span, isAnchored ? .anchored : .calendar)
  }

  /// The word used in catalogs and on the command line: `minute` … `lifetime`, or `90s`;
  /// `anchored month` where the window is anchored.
  public init?(word: String) {
    let isAnchored = word.hasPrefix(Self.anchoredWord)
    let plain = isAnchored ? String(word.dropFirst(Self.anchoredWord.count)) : word
    guard let span = Span(word: plain), !isAnchored || span != .lifetime else { return nil }
    self.init(span, isAnchored ? .anchored : .calendar)
  }

  /// For windows that are not of time alone, words for people.
  public var word: String {
    let time = (alignment == .anchored ? Self.anchoredWord : "") + span.word
    return switch tally {
    case .units: time
    case .overage: "overage per \(time)"
    case .grant(let id): "grant \(id)"
    case .priced(let rate, _): "priced by \(rate)"
    case .inFlight: "in flight"
    case .deficit: "deficit"
    }
  }

  public init(from decoder: any Decoder) throws {
    let word = try decoder.singleValueContainer().decode(String.self)
    guard let window = Window(word: word) ?? Window(code: word) else {
      throw DecodingError.dataCorrupted(
        .init(codingPath: decoder.codingPath, debugDescription: "unknown window \"\(word)\""))
    }
    self = window
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(tally == .units ? word : code)
  }

  public var description: String { word }

  /// What a rate is counted over: a length of time, with no place in a calendar. nil for spans
  /// that have none, and for anchored windows.
  public var fixedMilliseconds: Int64? {
    guard alignment == .calendar, tally == .units else { return nil }
    return switch span {
    case .minute: 60_000
    case .hour: 3_600_000
    case .day: 86_400_000
    case .week: 604_800_000
    case .seconds(let n): n * 1000
    case .month, .quarter, .year, .lifetime: nil
    }
  }

  /// The window that is exactly this long: a word where there is one, seconds otherwise.
  public init(fixedMilliseconds: Int64) {
    switch fixedMilliseconds {
    case 60_000: self = .minute
    case 3_600_000: self = .hour
    case 86_400_000: self = .day
    case 604_800_000: self = .week
    default: self = .seconds(fixedMilliseconds / 1000)
    }
  }
}

extension Window.Span {
  fileprivate init?(code: String) {
    switch code {
    case "m": self = .minute
    case "h": self = .hour
    case "d": self = .day
    case "w": self = .week
    case "M": self = .month
    case "Q": self = .quarter
    case "Y": self = .year
    case "L": self = .lifetime
    default:
      // One spelling per window, since the code is part of a counter's name: no sign, no zeros
      // in front.
      guard code.hasSuffix("s"), let first = code.utf8.first, first >= 0x31, first <= 0x39,
        let n = Int64(code.dropLast()), n <= Window.secondsMax
      else { return nil }
      self = .seconds(n)
    }
  }

  fileprivate init?(word: String) {
    switch word {
    case "minute": self = .minute
    case "hour": self = .hour
    case "day": self = .day
    case "week": self = .week
    case "month": self = .month
    case "quarter": self = .quarter
    case "year": self = .year
    case "lifetime": self = .lifetime
    default:
      guard case .seconds(let n)? = Self(code: word) else { return nil }
      self = .seconds(n)
    }
  }

  fileprivate var word: String {
    switch self {
    case .minute: "minute"
    case .hour: "hour"
    case .day: "day"
    case .week: "week"
    case .month: "month"
    case .quarter: "quarter"
    case .year: "year"
    case .lifetime: "lifetime"
    case .seconds(let n): "\(n)s"
    }
  }
}

/// [start, end).
public struct Period: Hashable, Sendable, Codable {
  public var start: WallTime
  public var end: WallTime

  public init(start: WallTime, end: WallTime) {
    self.start = start
    self.end = end
  }

  public func contains(_ instant: WallTime) -> Bool { start <= instant && instant < end }
}
