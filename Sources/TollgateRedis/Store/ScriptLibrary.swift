// The Lua scripts, embedded, each put together from its flags, its body and the parts it names.
//
// Why this shape: Lua runs every statement of a script on every call, so each function of a common
// prelude would be made anew for each operation. A body therefore says in a line
// `-- include: base, journal` which parts (part_*.lua) belong there, and inside a branch that is
// seldom taken they cost nothing. The first line is the shebang: Redis 7 takes a script's flags
// from there. `check` is `decide` under the flag `no-writes`: Redis itself then guarantees that
// asking changes nothing, and answers it when memory is full.

package enum ScriptName: String, Sendable, Hashable, CaseIterable {
  case decide, check, cancel, correct, reverse, repost, seed, open, trim, own, sweep, deployment
  case threshold
  case configAccount = "config_account"
  case configGlobal = "config_global"
  case pushVersion = "push_version"
  case counterReset = "counter_reset"
  case repostConfig = "repost_config"
  case restoreGlobal = "restore_global"
  case readAccount = "read_account"
  case moveLate = "move_late"
  case transact
  case transactCheck = "transact_check"
  case settle, expire, represent, bury
  case lease
  case leaseEnd = "lease_end"
  case leaseClose = "lease_close"
  case recall
}

/// What scripts share.
private enum ScriptPart: String {
  case base, journal, append, hashes, header, changes, fence, announce, sliding
  case rows, measure, price, bodies, record, hold, begin, ending
  case whole, reach, fresh, lessee, tell

  static let mark = "-- include: "

  var text: [UInt8] {
    switch self {
    case .base: PackageResources.part_base_lua
    case .journal: PackageResources.part_journal_lua
    case .append: PackageResources.part_append_lua
    case .hashes: PackageResources.part_hashes_lua
    case .header: PackageResources.part_header_lua
    case .changes: PackageResources.part_changes_lua
    case .fence: PackageResources.part_fence_lua
    case .announce: PackageResources.part_announce_lua
    case .sliding: PackageResources.part_sliding_lua
    case .rows: PackageResources.part_rows_lua
    case .measure: PackageResources.part_measure_lua
    case .price: PackageResources.part_price_lua
    case .bodies: PackageResources.part_bodies_lua
    case .record: PackageResources.part_record_lua
    case .hold: PackageResources.part_hold_lua
    case .begin: PackageResources.part_begin_lua
    case .ending: PackageResources.part_ending_lua
    case .whole: PackageResources.part_whole_lua
    case .reach: PackageResources.part_reach_lua
    case .fresh: PackageResources.part_fresh_lua
    case .lessee: PackageResources.part_lessee_lua
    case .tell: PackageResources.part_tell_lua
    }
  }
}

package struct ScriptLibrary: Sendable {
  package struct Script: Sendable, Hashable {
    package let name: ScriptName
    package let source: [UInt8]
    /// 40 hex digits, as Redis names it.
    package let sha: String
  }

  /// In the order of `ScriptName.allCases`: what SCRIPT LOAD is given.
  package let scripts: [Script]
  private let shas: [ScriptName: String]

  package static let shared = ScriptLibrary()

  /// `transform` lets tests replace the clock or force errors; production text is the identity.
  package init(transform: (ScriptName, String) -> String = { $1 }) {
    var scripts: [Script] = []
    for name in ScriptName.allCases {
      let source = Array(transform(name, Self.assemble(name)).utf8)
      scripts.append(Script(name: name, source: source, sha: SHA1.hex(source)))
    }
    self.scripts = scripts
    shas = Dictionary(uniqueKeysWithValues: scripts.map { ($0.name, $0.sha) })
  }

  package func sha(_ name: ScriptName) -> String { shas[name] ?? "" }
  package func source(_ name: ScriptName) -> [UInt8] {
    scripts.first { $0.name == name }?.source ?? []
  }

  private static func assemble(_ name: ScriptName) -> String {
    let text = String(decoding: body(name), as: UTF8.self)
    let end = text.firstIndex(of: "\n") ?? text.endIndex
    let asksOnly = name == .check || name == .transactCheck
    let shebang = asksOnly ? "#!lua flags=no-writes" : String(text[..<end])
    return shebang + "\n" + expand(String(text[end...]))
  }

  /// The text with its parts in the places of the lines that name them.
  private static func expand(_ source: String) -> String {
    var result = ""
    for line in source.split(separator: "\n") {
      let text = line.drop { $0 == " " }
      guard text.hasPrefix(ScriptPart.mark) else {
        result += strip(line)
        continue
      }
      for name in text.dropFirst(ScriptPart.mark.count).split(separator: ", ") {
        guard let part = ScriptPart(rawValue: String(name)) else {
          preconditionFailure("no script part is called \(name)")
        }
        for line in String(decoding: part.text, as: UTF8.self).split(separator: "\n") {
          result += strip(line)
        }
      }
    }
    return result
  }

  /// Comments and indentation stay in the repository: Redis keeps a copy of what it is sent.
  private static func strip(_ line: Substring) -> String {
    let text = line.drop { $0 == " " }
    return text.isEmpty || text.hasPrefix("--") ? "" : text + "\n"
  }

  private static func body(_ name: ScriptName) -> [UInt8] {
    switch name {
    case .decide, .check: PackageResources.decide_lua
    case .cancel: PackageResources.cancel_lua
    case .correct: PackageResources.correct_lua
    case .reverse: PackageResources.reverse_lua
    case .repost: PackageResources.repost_lua
    case .seed: PackageResources.seed_lua
    case .open: PackageResources.open_lua
    case .trim: PackageResources.trim_lua
    case .own: PackageResources.own_lua
    case .sweep: PackageResources.sweep_lua
    case .deployment: PackageResources.deployment_lua
    case .configAccount: PackageResources.config_account_lua
    case .configGlobal: PackageResources.config_global_lua
    case .pushVersion: PackageResources.push_version_lua
    case .counterReset: PackageResources.counter_reset_lua
    case .repostConfig: PackageResources.repost_config_lua
    case .restoreGlobal: PackageResources.restore_global_lua
    case .readAccount: PackageResources.read_account_lua
    case .moveLate: PackageResources.move_late_lua
    case .transact, .transactCheck: PackageResources.transact_lua
    case .settle: PackageResources.settle_lua
    case .expire: PackageResources.expire_lua
    case .represent: PackageResources.represent_lua
    case .bury: PackageResources.bury_lua
    case .threshold: PackageResources.threshold_lua
    case .lease: PackageResources.lease_lua
    case .leaseEnd: PackageResources.lease_end_lua
    case .leaseClose: PackageResources.lease_close_lua
    case .recall: PackageResources.recall_lua
    }
  }
}
