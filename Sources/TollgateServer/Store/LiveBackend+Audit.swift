// The audit log: what Redis holds of recent changes and the ledger's whole history, as one list.
// Both know a change by the same instant and the same operation id, so a page of either is cut at
// the same place and nothing is listed twice.

import TollgateCore
import TollgateRedis
import TollgateWire

extension LiveBackend {
  /// Configuration documents may be large, so the ledger answers with at most this many.
  private static let historyPage = 100
  private static let recentPage = 500

  func audit(
    account: String?, before place: AuditPlace?, limit: Int
  ) async throws(AdminFailure) -> AuditPage {
    var history = AuditPage.History.none
    var entries: [AuditEntry] = []
    if hasLedger {
      // The ledger first: what is delivered in between is then found in Redis still.
      do throws(AdminFailure) {
        entries = try await delivered(account: account, before: place, limit: limit)
        history = .read
      } catch {
        history = .unreachable(error.message)
      }
    }
    let delivered = Set(entries.map { Known(place: $0.place, key: $0.change.key) })
    for bucket in try buckets(of: account) {
      entries += try await recent(bucket, account: account, before: place, limit: limit)
        .filter { !delivered.contains(Known(place: $0.place, key: $0.change.key)) }
      entries.sort { $0.place > $1.place }
      entries = Array(entries.prefix(limit))
    }
    return AuditPage(
      entries: entries, history: history,
      next: entries.count == limit ? entries.last?.place : nil)
  }

  private struct Known: Hashable {
    var place: AuditPlace
    var key: String
  }

  private func buckets(of account: String?) throws(AdminFailure) -> [Int] {
    guard let account else { return Array(0...keys.map.control) }
    if account.isEmpty { return [keys.map.control] }
    guard let subject = try? Subject(account) else { throw .badRequest("account", "no subject") }
    return [keys.bucket(of: subject)]
  }

  private func recent(
    _ bucket: Int, account: String?, before place: AuditPlace?, limit: Int
  ) async throws(AdminFailure) -> [AuditEntry] {
    // An entry's stream id is never later than its time.
    var end = place.map { "\($0.time.milliseconds)" } ?? "+"
    var entries: [AuditEntry] = []
    while true {
      let from = end
      let page = try await reading { () async throws(StoreFailure) in
        try await store.read(
          Reads.audit(keys, bucket: bucket, count: Self.recentPage, from: from))
      }
      for found in page {
        guard let change = try? ConfigDelta.decode(found.body) else { continue }
        let entry = AuditEntry(
          time: found.time, operation: found.operation, change: change, delivered: false)
        guard place.map({ entry.place < $0 }) ?? true,
          account.map({ $0.isEmpty || change.key.split(separator: "/").first ?? "" == $0 })
            ?? true
        else { continue }
        entries.append(entry)
      }
      guard entries.count < limit, page.count == Self.recentPage, let last = page.last else {
        return entries
      }
      end = "(" + last.streamID
    }
  }

  private func delivered(
    account: String?, before place: AuditPlace?, limit: Int
  ) async throws(AdminFailure) -> [AuditEntry] {
    var entries: [AuditEntry] = []
    var cursor = place.map { place in
      "\(place.time.milliseconds)|\(place.operation ?? OperationID(high: 0, low: 0)).0"
    }
    repeat {
      let wanted = min(limit - entries.count, Self.historyPage)
      let answer = try await query(
        .configHistory,
        Document.fields([
          "cursor": cursor.map { .string($0) }, "count": .integer(Int64(wanted)),
          "scope": account == "" ? "global" : nil,
          "account": account.flatMap { $0.isEmpty ? nil : .string($0) },
        ]))
      for row in answer["changes"]?.elements ?? [] {
        guard let entry = AuditEntry(recorded: row) else {
          throw .unavailable("ledger: an unreadable change")
        }
        entries.append(entry)
      }
      cursor = answer["next"]?.text
    } while cursor != nil && entries.count < limit
    return entries
  }
}

extension AuditEntry {
  /// A row of `config.history`.
  fileprivate init?(recorded row: Document) {
    func text(_ key: String) -> String { row[key]?.text ?? "" }
    guard let scope = ConfigDelta.Scope(rawValue: text("scope")), let time = row["time"]?.whole,
      let operation = OperationID(hex: text("operation"))
    else { return nil }
    self.init(
      time: WallTime(milliseconds: time), operation: operation,
      change: ConfigDelta(
        scope: scope, key: text("key"), version: row["version"]?.whole ?? 0,
        action: text("action"), actor: text("actor"), reason: text("reason"),
        before: text("before"), after: text("after")), delivered: true)
  }
}
