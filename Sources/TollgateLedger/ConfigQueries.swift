// What the ledger knows of configuration: its history, page by page, and the newest state of many
// accounts at once with the ids of their latest changes, from which Redis learns after a loss which
// ids had their effect already.

internal import Foundation
internal import GRDB
package import TollgateCore

/// One change that happened, as far as its id must be known.
package struct ChangeMark: Hashable, Sendable, Codable {
  package var operation: String
  /// 16 hex digits; all zero where it is not known.
  package var fingerprint: String
  /// The version that the change made; of a reset, the units it forgave.
  package var result: Int64
  package var time: Int64
}

/// The newest configuration of one account, or (no account) the global one.
package struct CurrentConfig: Hashable, Sendable, Codable {
  package var account: String?
  /// 0: there is none.
  package var version: Int64
  /// JSON; empty where there is none.
  package var document: String
  /// Newest first, at most `ChangeMemory.entriesMax`.
  package var changes: [ChangeMark]
  /// The highest operation id among the changes before these.
  package var floor: String?
}

extension LedgerStore {
  /// Where a page of recorded changes ended.
  package struct ChangePageKey: Hashable, Sendable {
    package var time: Int64
    package var id: DeltaID

    package init(time: Int64, id: DeltaID) {
      self.time = time
      self.id = id
    }
  }

  /// Which changes: of one scope, of one thing, or all that concern one account (its
  /// configuration, its counters and those of everything below it).
  package enum ChangeFilter: Hashable, Sendable {
    case all
    case scope(ConfigDelta.Scope)
    case thing(ConfigDelta.Scope?, key: String)
    case account(String)

    /// Each alternative is found by the primary key; OR over them would read the whole table.
    fileprivate var conditions: [(String, [String])] {
      switch self {
      case .all: [("1", [])]
      case .scope(let scope): [("scope = ?", [scope.rawValue])]
      case .thing(let scope?, let key): [("scope = ? AND key = ?", [scope.rawValue, key])]
      case .thing(nil, let key): [("key = ?", [key])]
      case .account(let account):
        [
          ("scope = 'account' AND key = ?", [account]),
          ("scope = 'counter' AND key = ?", [account]),
          // '0' follows '/': everything below the account.
          ("scope = 'counter' AND key > ? AND key < ?", [account + "/", account + "0"]),
        ]
      }
    }
  }

  /// Recorded changes, newest first, made before `before`.
  package func configHistory(
    _ filter: ChangeFilter = .all, before: Int64 = .max, after page: ChangePageKey? = nil,
    limit: Int = pageMax
  ) throws -> LedgerPage<ConfigRecord, ChangePageKey> {
    let limit = Self.bounded(limit)
    var arguments = StatementArguments()
    let parts = filter.conditions.map { condition, values in
      arguments += StatementArguments(values)
      arguments += [
        before, page?.time ?? Int64.max,
        page?.id.operation.blob ?? Data(repeating: 0xFF, count: 17),
        page.map { Int64($0.id.index) } ?? 0,
      ]
      return "SELECT * FROM config WHERE \(condition) AND time < ? AND (time, op, idx) < (?, ?, ?)"
    }
    arguments += [limit]
    let sql =
      parts.joined(separator: " UNION ALL ") + " ORDER BY time DESC, op DESC, idx DESC LIMIT ?"
    let rows = try read { try Row.fetchAll($0, sql: sql, arguments: arguments) }
    var next: ChangePageKey?
    if rows.count == limit, let last = rows.last, let op = OperationID(blob: last["op"]) {
      let index: Int64 = last["idx"]
      next = ChangePageKey(
        time: last["time"],
        id: DeltaID(operation: op, index: UInt16(truncatingIfNeeded: index)))
    }
    return LedgerPage(elements: rows.map(Self.configRecord), next: next)
  }

  /// The newest configuration of each of these accounts, and what is known of their latest
  /// changes; `accounts` nil: the global one. All of one moment.
  package func currentConfigs(accounts: [String]?) throws -> [CurrentConfig] {
    try read { db in
      guard let accounts else { return [try Self.current(db, account: nil, bodies: bodies)] }
      return try accounts.map { try Self.current(db, account: $0, bodies: bodies) }
    }
  }

  private static func current(
    _ db: Database, account: String?, bodies: DeltaBodies
  ) throws -> CurrentConfig {
    let scope = account == nil ? "global" : "account"
    let latest = try Row.fetchOne(
      try db.cachedStatement(
        sql: """
          SELECT version, after FROM config WHERE scope = ? AND key = ?
          ORDER BY version DESC, time DESC, op DESC LIMIT 1
          """), arguments: [scope, account ?? ""])
    var known = try Known(db, "scope = ? AND key = ?", [scope, account ?? ""])
    if let account {
      known.add(try Known(db, "scope = ? AND key = ?", ["counter", account]))
      // '0' follows '/': everything below the account. Sorting costs a temporary table, and most
      // accounts have nothing there.
      let below: [String] = ["counter", account + "/", account + "0"]
      let any = try db.cachedStatement(
        sql: "SELECT 1 FROM config WHERE scope = ? AND key > ? AND key < ? LIMIT 1")
      if try Row.fetchOne(any, arguments: StatementArguments(below)) != nil {
        known.add(
          try Known(db, "scope = ? AND key > ? AND key < ?", below, order: "time DESC, op DESC"))
      }
    }
    let body = try db.cachedStatement(
      sql: "SELECT actual, body FROM deltas WHERE op = ? AND kind = 3")
    let changes = try known.cut().compactMap { row -> ChangeMark? in
      guard let operation = OperationID(blob: row.op) else { return nil }
      // Of an id that two accounts used, the one that is about this.
      let delta = try Row.fetchAll(body, arguments: [row.op]).first { delta in
        guard let account else { return true }
        let key = (try? bodies.config([UInt8](delta["body"] as Data)))?.key ?? ""
        return key == account || key.hasPrefix(account + "/")
      }
      let bytes: Data = delta?["body"] ?? Data()
      let actual: Int64 = delta?["actual"] ?? 0
      return ChangeMark(
        operation: operation.hex,
        fingerprint: hex((try? bodies.config([UInt8](bytes)))?.fingerprint ?? 0),
        result: row.isCounter ? -actual : row.version, time: row.time)
    }
    return CurrentConfig(
      account: account, version: latest?[0] ?? 0, document: latest?[1] ?? "", changes: changes,
      floor: known.floor.flatMap { OperationID(blob: $0)?.hex })
  }

  /// The latest changes of a thing, and the highest id of those before them.
  private struct Known {
    struct Change {
      var op: Data
      var version: Int64
      var time: Int64
      var isCounter: Bool
    }
    var changes: [Change]
    var floor: Data?

    /// The default order is that of the primary key: no sorting.
    init(
      _ db: Database, _ condition: String, _ values: [String],
      order: String = "version DESC, time DESC, op DESC"
    ) throws {
      let max = ChangeMemory.entriesMax
      let columns = "SELECT op, version, time, scope FROM config WHERE \(condition)"
      let rows = try Row.fetchAll(
        try db.cachedStatement(sql: "\(columns) ORDER BY \(order) LIMIT \(max)"),
        arguments: StatementArguments(values))
      changes = rows.map {
        let scope: String = $0[3]
        return Change(op: $0[0], version: $0[1], time: $0[2], isCounter: scope == "counter")
      }
      guard rows.count == max else { return }
      let dropped = "\(columns) ORDER BY \(order) LIMIT -1 OFFSET \(max)"
      floor = try Data.fetchOne(
        try db.cachedStatement(sql: "SELECT max(op) FROM (\(dropped))"),
        arguments: StatementArguments(values))
    }

    mutating func add(_ other: Known) {
      changes += other.changes
      raise(other.floor)
    }

    private mutating func raise(_ id: Data?) {
      guard let id else { return }
      if floor.map({ $0.lexicographicallyPrecedes(id) }) ?? true { floor = id }
    }

    /// The newest of all; the others only raise the floor.
    mutating func cut() -> [Change] {
      changes.sort {
        $0.time != $1.time ? $0.time > $1.time : $1.op.lexicographicallyPrecedes($0.op)
      }
      for gone in changes.dropFirst(ChangeMemory.entriesMax) { raise(gone.op) }
      changes = Array(changes.prefix(ChangeMemory.entriesMax))
      return changes
    }
  }

  private static func hex(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.utf8.count) + digits
  }
}
