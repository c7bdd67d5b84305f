// The zone files of this machine, each read once. Zones of accounts come from configuration that
// only operators write, so the number of names is small; it is bounded all the same, and a name
// that is not here is looked for again after a while, because zone files can be installed under a
// running process.

import Foundation
import NIOConcurrencyHelpers
import NIOCore
import TollgateCore

enum SystemZones {
  static let namesMax = 4096
  static let bytesMax = 1 << 20
  static let missingAgain = TimeAmount.seconds(10)

  private enum Found {
    case rules(ZoneRules)
    case missing(NIODeadline)
  }

  private static let known = NIOLockedValueBox<[String: Found]>([:])

  /// Where zone files lie: TZDIR where it is set, as for other programs.
  static let folder =
    ProcessInfo.processInfo.environment["TZDIR"].flatMap { $0.isEmpty ? nil : $0 }
    ?? "/usr/share/zoneinfo"

  /// Found wherever zone files are installed at all; one of each part of the world.
  static let wellKnown = [
    "Europe/Berlin", "America/New_York", "Asia/Tokyo", "Australia/Sydney", "Africa/Cairo",
  ]

  static let book = ZoneBook { rules(named: $0) }

  static func rules(named name: String, now: NIODeadline = .now()) -> ZoneRules? {
    guard CalendarSetting.isName(name) else { return nil }
    switch known.withLockedValue({ $0[name] }) {
    case .rules(let rules)?: return rules
    case .missing(let looked)? where now < looked + missingAgain: return nil
    default: break
    }
    let rules = read(name)
    known.withLockedValue { known in
      if known.count >= namesMax { known.removeAll() }
      known[name] = rules.map { .rules($0) } ?? .missing(now)
    }
    return rules
  }

  private static func read(_ name: String) -> ZoneRules? {
    let url = URL(fileURLWithPath: folder).appendingPathComponent(name)
    guard let values = try? url.resourceValues(forKeys: [.fileSizeKey, .isRegularFileKey]),
      values.isRegularFile == true, values.fileSize ?? .max <= bytesMax,
      let data = try? Data(contentsOf: url)
    else { return nil }
    return try? ZoneFile.read(name: name, [UInt8](data))
  }
}

extension SystemZones {
  static func calendar(of config: AccountConfig?) throws(AdminFailure) -> AccountCalendar {
    guard let config else { throw .unavailable("the account's configuration is not readable") }
    do throws(AccountCalendar.UnknownZone) {
      return try AccountCalendar(config.calendar, book)
    } catch {
      throw .unknownZone(error.name)
    }
  }
}

extension AdminFailure {
  static func unknownZone(_ name: String) -> Self {
    Self(
      .unavailable, "zone \(name) is not installed beside this sidecar",
      fix: "install the zone files (tzdata) there, or name their folder in TZDIR")
  }
}
