// An account's calendar as configuration has it: zones by name. The rules of a zone come from the
// edge (`ZoneBook`), so the same configuration means the same periods wherever the same zone files
// are installed, and nothing is guessed where a zone is not known.

/// Zone and billing anchor from one instant on.
public struct CalendarSetting: Hashable, Sendable {
  /// Bytes of a zone's name.
  public static let zoneBytesMax = 64

  /// An IANA name such as `Europe/Berlin`.
  public var zone: String
  /// Where anchored windows are laid out from; nil: they follow the calendar.
  public var anchor: WallTime?
  /// In force from then on; nil: always was.
  public var since: WallTime?
  /// Anchored windows began a new period at `since`.
  public var restarts: Bool

  public init(
    zone: String = "UTC", anchor: WallTime? = nil, since: WallTime? = nil, restarts: Bool = false
  ) {
    self.zone = zone
    self.anchor = anchor
    self.since = since
    self.restarts = restarts
  }

  /// Letters, digits and `_ + - /`, in segments that are not empty: never a path out of the
  /// folder of zones.
  public static func isName(_ text: String) -> Bool {
    let segments = text.split(separator: "/", omittingEmptySubsequences: false)
    return text.utf8.count <= zoneBytesMax
      && segments.allSatisfy { segment in
        !segment.isEmpty
          && segment.utf8.allSatisfy {
            (0x30...0x39).contains($0) || (0x41...0x5A).contains($0)
              || (0x61...0x7A).contains($0) || "_+-".utf8.contains($0)
          }
      }
  }
}

/// Where the rules of zones come from.
public struct ZoneBook: Sendable {
  private let find: @Sendable (String) -> ZoneRules?

  public init(_ find: @escaping @Sendable (String) -> ZoneRules?) { self.find = find }

  /// Knows UTC alone.
  public static let utcOnly = ZoneBook { _ in nil }

  /// nil: not known here.
  public func rules(named name: String) -> ZoneRules? { name == "UTC" ? .utc : find(name) }
}

extension AccountCalendar {
  public struct UnknownZone: Error, Hashable {
    public var name: String
  }

  public init(_ settings: [CalendarSetting], _ zones: ZoneBook) throws(UnknownZone) {
    // Before the first change an account was in UTC, like any that nobody set.
    var rules = settings.first?.since == nil ? [] : [CalendarRule()]
    for setting in settings {
      guard let zone = zones.rules(named: setting.zone) else {
        throw UnknownZone(name: setting.zone)
      }
      var rule = CalendarRule(zone: zone, anchor: setting.anchor, restarts: setting.restarts)
      if let since = setting.since { rule.since = since }
      rules.append(rule)
    }
    self.init(rules)
  }
}

extension CalendarSetting {
  init?(node: DocumentNode) {
    guard
      let fields = node.object(
        ["zone", "anchor_ms", "since_ms", "restarts"], required: ["zone"])
    else { return nil }
    guard let zone = fields["zone"]?.string(bytesMax: Self.zoneBytesMax) else { return nil }
    guard Self.isName(zone) else {
      fields["zone"]?.problem("must be the name of a zone such as Europe/Berlin")
      return nil
    }
    let instants = -Quantity.maximum...Quantity.maximum
    self.init(
      zone: zone,
      anchor: fields["anchor_ms"]?.integer(instants).map { WallTime(milliseconds: $0) },
      since: fields["since_ms"]?.integer(instants).map { WallTime(milliseconds: $0) },
      restarts: fields["restarts"]?.bool() ?? false)
  }

  var document: Document {
    .fields([
      "zone": .string(zone),
      "anchor_ms": anchor.map { .integer($0.milliseconds) },
      "since_ms": since.map { .integer($0.milliseconds) },
      "restarts": restarts ? true : nil,
    ])
  }
}
