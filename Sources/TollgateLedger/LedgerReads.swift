// Answers to BALANCES, CONFIG and QUERY: from a question to the frames of its answer. Runs on the
// readers' queue, on a snapshot; the documents are those of proto/LEDGER.md.

internal import Foundation
internal import NIOCore
internal import TollgateCore
internal import TollgateWire

struct LedgerReads: Sendable {
  /// Balances in one frame: with the longest names and an account's configuration it stays below
  /// the largest frame.
  static let balancesPageMax = 1000

  let store: LedgerStore

  /// The whole answer, ready to be written; failures are an answer too.
  func answer(_ read: LedgerSessionMachine.Read, correlation: UInt64) -> ByteBuffer {
    var frames = ByteBuffer()
    do {
      switch read {
      case .balances(let request, let features):
        try balances(request, features, correlation, into: &frames)
      case .config(let request): try config(request, correlation, into: &frames)
      case .query(let request): try query(request, correlation, into: &frames)
      }
    } catch {
      frames.clear()
      frames.writeFrame(Self.reply(to: error), correlation: correlation)
    }
    return frames
  }

  static func reply(to error: any Error) -> ErrorReply {
    switch error {
    case let error as WireError: return ErrorReply(error)
    case let error as InvalidName: return ErrorReply(code: .invalidName, message: "\(error)")
    case let error as DecodingError:
      return ErrorReply(code: .invalidDocument, message: "\(error)")
    case let error as LedgerError:
      let code: ErrorCode =
        switch error {
        case .deploymentMismatch: .deploymentMismatch
        case .noDeployment, .unusable: .badRequest
        case .overloaded: .overloaded
        case .draining: .draining
        case .storage: .unavailable
        }
      return ErrorReply(code: code, message: error.description)
    default: return ErrorReply(code: .internalError, message: "\(error)")
    }
  }

  private func balances(
    _ request: BalancesRequest, _ features: ProtocolFeatures, _ correlation: UInt64,
    into frames: inout ByteBuffer
  ) throws {
    try store.seed(
      account: request.account.path, since: request.since, pageSize: Self.balancesPageMax,
      plainOnly: !features.contains(.reservations)
    ) { config, cells, isLast in
      let reply = BalancesReply(
        account: request.account, version: config?.version ?? 0,
        config: Array((config?.after ?? "").utf8),
        balances: try cells.map { cell in
          guard let window = Window(code: cell.window) else {
            throw LedgerError.storage("a counter of window \(cell.window)")
          }
          return BalancesReply.Balance(
            subject: try Subject(cell.subject), feature: try Name(cell.feature), window: window,
            period: Period(
              start: WallTime(milliseconds: cell.start), end: WallTime(milliseconds: cell.end)),
            settled: cell.settled, forgiven: cell.forgiven)
        })
      frames.writeFrame(reply, correlation: correlation, flags: isLast ? [] : .more)
    }
  }

  private func config(
    _ request: ConfigRequest, _ correlation: UInt64, into frames: inout ByteBuffer
  ) throws {
    let record =
      if let account = request.account { try store.accountConfig(account.path) } else {
        try store.globalConfig()
      }
    frames.writeFrame(
      ConfigReply(
        account: request.account, version: record?.version ?? 0,
        document: Array((record?.after ?? "").utf8)),
      correlation: correlation)
  }

  // MARK: QUERY

  private struct TotalsQuery: Decodable {
    var account: String?
    var feature: String?
    var from: Int64?
    var to: Int64?
    var cursor: String?
    var count: Int?
    var partsSince: Int64?
    var accounts: [String]?
  }
  private struct TotalsAnswer: Encodable {
    var totals: [UsageTotal]
    var accounts: [LedgerStore.AccountTotals]?
    var parts: [CellBalance]?
    var position: BucketPosition?
    var lost: Int64?
    var next: String?
  }
  private struct StatementQuery: Decodable {
    var account: String
    var from: Int64
    var now: Int64?
  }
  private struct OperationQuery: Decodable {
    var bucket: Int
    var operation: String
    var cursor: String?
    var count: Int?
  }
  private struct OperationPage: Encodable {
    var deltas: [OperationDelta]
    var corrections: [OperationDelta]
    var left: [OperationLeft]
    var payers: [OperationPayer]?
    var next: String?
  }
  private struct HistoryQuery: Decodable {
    var scope: String?
    var key: String?
    var account: String?
    var before: Int64?
    var cursor: String?
    var count: Int?
  }
  private struct HistoryAnswer: Encodable {
    var changes: [ConfigRecord]
    var next: String?
  }
  private struct CurrentQuery: Decodable {
    var accounts: [String]?
  }
  private struct CurrentAnswer: Encodable {
    var configs: [CurrentConfig]
  }
  private struct DeltasQuery: Decodable {
    var bucket: Int?
    var ids: [String]?
    var account: String?
    var feature: String?
    var from: Int64?
    var window: String?
    var cursor: String?
    var count: Int?
    var newestFirst: Bool?
  }
  private struct DeltasAnswer: Encodable {
    var deltas: [DeltaRecord]
    var next: String?
  }
  private struct KnownAnswer: Encodable {
    var posted: [String]
    var parked: [String]
  }
  private struct UsageQuery: Decodable {
    var account: String
    var subject: String?
    var by: [String]?
    var from: Int64
    var to: Int64
    var days: [Int64]?
    var feature: String?
    var cursor: String?
    var count: Int?
  }
  private struct UsageAnswer: Encodable {
    var rows: [UsageGroup]
    var next: String?
  }
  private struct StatusAnswer: Encodable {
    var status: LedgerStatus
    var losses: [LossRecord]
    var parked: [ParkedRecord]
  }

  private func query(
    _ request: QueryRequest, _ correlation: UInt64, into frames: inout ByteBuffer
  ) throws {
    guard let method = request.method else {
      throw WireError.refused(.notFound, "query \(request.rawMethod)")
    }
    let body = request.body.isEmpty ? Data("{}".utf8) : Data(request.body)
    let document =
      switch method {
      case .totals: try encode(totals(decode(TotalsQuery.self, body)))
      case .statement: try encode(statement(decode(StatementQuery.self, body)))
      case .configHistory: try encode(history(decode(HistoryQuery.self, body)))
      case .deltaIDs: try deltas(decode(DeltasQuery.self, body))
      case .status: try encode(status())
      case .configCurrent: try encode(current(decode(CurrentQuery.self, body)))
      case .operation: try encode(operation(decode(OperationQuery.self, body)))
      case .usage: try encode(usage(decode(UsageQuery.self, body)))
      }
    // One frame holds almost a mebibyte; a longer document goes on in the next.
    var rest = document[...]
    repeat {
      let piece = rest.prefix(WireLimits.documentBytesMax)
      rest = rest.dropFirst(piece.count)
      frames.writeFrame(
        QueryReply(body: Array(piece)), correlation: correlation, flags: rest.isEmpty ? [] : .more)
    } while !rest.isEmpty
  }

  private func totals(_ query: TotalsQuery) throws -> TotalsAnswer {
    if let accounts = query.accounts {
      guard (1...LedgerStore.accountsMax).contains(accounts.count), let since = query.partsSince,
        let (found, position) = try store.totals(
          ofAccounts: accounts, partsSince: WallTime(milliseconds: since))
      else {
        throw WireError.refused(
          .invalidDocument,
          "accounts: 1 to \(LedgerStore.accountsMax) of one bucket, with partsSince")
      }
      return TotalsAnswer(totals: [], accounts: found, position: position)
    }
    let key = try query.cursor.map { text in
      let parts = text.split(separator: "|", omittingEmptySubsequences: false)
      guard parts.count == 4, let start = Int64(parts[2]) else { throw Self.badCursor(text) }
      return LedgerStore.TotalPageKey(
        account: String(parts[0]), feature: String(parts[1]), start: start,
        adjustment: parts[3] == "1")
    }
    let (page, position, parts) = try store.totals(
      .init(
        account: query.account, feature: query.feature, from: query.from ?? .min,
        to: query.to ?? .max),
      after: key, limit: query.count ?? LedgerStore.pageMax,
      partsSince: query.partsSince.map { WallTime(milliseconds: $0) })
    return TotalsAnswer(
      totals: page.elements, parts: parts, position: position,
      lost: try query.account.map { try store.lost(account: $0) },
      next: page.next.map { "\($0.account)|\($0.feature)|\($0.start)|\($0.adjustment ? 1 : 0)" })
  }

  private func statement(_ query: StatementQuery) throws -> Statement {
    try store.statement(
      account: query.account, start: query.from,
      now: query.now.map { WallTime(milliseconds: $0) })
  }

  private func operation(_ query: OperationQuery) throws -> OperationPage {
    guard let operation = OperationID(hex: query.operation) else {
      throw WireError.refused(.invalidDocument, "operation \"\(query.operation)\"")
    }
    let key = try query.cursor.map { text in
      let parts = text.split(separator: "|")
      guard parts.count == 2, ["0", "1"].contains(parts[0]), let id = Self.deltaID(parts[1]) else {
        throw Self.badCursor(text)
      }
      return LedgerStore.OperationPageKey(isCorrection: parts[0] == "1", id: id)
    }
    let (answer, next) = try store.operation(
      operation, bucket: query.bucket, after: key,
      limit: query.count ?? LedgerStore.operationPageMax)
    return OperationPage(
      deltas: answer.deltas, corrections: answer.corrections, left: answer.left,
      payers: answer.payers.isEmpty ? nil : answer.payers,
      next: next.map { "\($0.isCorrection ? 1 : 0)|\($0.id)" })
  }

  private func usage(_ query: UsageQuery) throws -> UsageAnswer {
    let by = try (query.by ?? []).map { text in
      guard let grouping = UsageGrouping(text: text) else {
        throw WireError.refused(.invalidDocument, "usage by \"\(text)\"")
      }
      return grouping
    }
    guard by.count <= LedgerStore.usageGroupingsMax,
      (query.days?.count ?? 0) <= LedgerStore.usageDaysMax
    else { throw WireError.refused(.invalidDocument, "usage by more than is summed at once") }
    let key = try query.cursor.map { text in
      let parts = text.split(separator: "|")
      guard parts.count == 2, let series = Int64(parts[0]), let id = Self.deltaID(parts[1]) else {
        throw Self.badCursor(text)
      }
      return LedgerStore.UsagePageKey(series: series, id: id)
    }
    let page = try store.usage(
      .init(
        account: query.account, subject: query.subject ?? query.account, by: by, from: query.from,
        to: query.to, days: query.days ?? [], feature: query.feature),
      after: key, limit: query.count ?? LedgerStore.usageDeltasMax)
    return UsageAnswer(rows: page.rows, next: page.next.map { "\($0.series)|\($0.id)" })
  }

  private func history(_ query: HistoryQuery) throws -> HistoryAnswer {
    let scope = try query.scope.map { text in
      guard let scope = ConfigDelta.Scope(rawValue: text) else {
        throw WireError.refused(.invalidDocument, "scope \"\(text)\"")
      }
      return scope
    }
    let key = try query.cursor.map { text in
      let parts = text.split(separator: "|")
      guard parts.count == 2, let time = Int64(parts[0]), let id = Self.deltaID(parts[1]) else {
        throw Self.badCursor(text)
      }
      return LedgerStore.ChangePageKey(time: time, id: id)
    }
    // Documents may be large, so a page of them is small.
    let filter: LedgerStore.ChangeFilter
    switch (query.account, query.key, scope) {
    case (let account?, nil, nil): filter = .account(account)
    case (_?, _, _):
      throw WireError.refused(.invalidDocument, "account excludes scope and key")
    case (nil, let key?, let scope): filter = .thing(scope, key: key)
    case (nil, nil, let scope?): filter = .scope(scope)
    case (nil, nil, nil): filter = .all
    }
    let page = try store.configHistory(
      filter, before: query.before ?? .max, after: key, limit: min(query.count ?? 20, 100))
    return HistoryAnswer(
      changes: page.elements, next: page.next.map { "\($0.time)|\($0.id)" })
  }

  private func current(_ query: CurrentQuery) throws -> CurrentAnswer {
    guard (query.accounts?.count ?? 0) <= LedgerStore.pageMax else {
      throw WireError.refused(.invalidDocument, "more than \(LedgerStore.pageMax) accounts")
    }
    return CurrentAnswer(configs: try store.currentConfigs(accounts: query.accounts))
  }

  private func deltas(_ query: DeltasQuery) throws -> Data {
    if let texts = query.ids {
      let ids = try texts.map { text in
        guard let id = Self.deltaID(text) else {
          throw WireError.refused(.invalidDocument, "delta id \"\(text)\"")
        }
        return id
      }
      guard ids.count <= LedgerStore.pageMax else {
        throw WireError.refused(
          .invalidDocument, "\(ids.count) ids; at most \(LedgerStore.pageMax)")
      }
      guard let bucket = query.bucket else {
        throw WireError.refused(.invalidDocument, "ids need their bucket")
      }
      let known = try store.known(ids, bucket: bucket)
      return try encode(
        KnownAnswer(
          posted: known.posted.map(\.description), parked: known.parked.map(\.description)))
    }
    guard let account = query.account, let feature = query.feature, let from = query.from else {
      throw WireError.refused(.invalidDocument, "needs ids, or account, feature and from")
    }
    let key = try query.cursor.map { text in
      guard let id = Self.deltaID(text) else { throw Self.badCursor(text) }
      return id
    }
    let limit = query.count ?? LedgerStore.pageMax
    let page: LedgerPage<DeltaRecord, DeltaID>
    if let code = query.window {
      guard let window = Window(code: code), query.newestFirst ?? true else {
        throw WireError.refused(.invalidDocument, "window \"\(code)\", newest first")
      }
      page = try store.deltas(
        account: account, feature: feature, window: window, start: from, after: key, limit: limit)
    } else {
      page = try store.deltas(
        account: account, feature: feature, start: from, newestFirst: query.newestFirst ?? false,
        after: key, limit: limit)
    }
    return try encode(DeltasAnswer(deltas: page.elements, next: page.next?.description))
  }

  private func status() throws -> StatusAnswer {
    StatusAnswer(
      status: try store.status(), losses: try store.losses(limit: 100),
      parked: try store.parked(limit: 100))
  }

  private static func badCursor(_ text: String) -> WireError {
    .refused(.invalidDocument, "cursor \"\(text)\"")
  }

  static func deltaID(_ text: some StringProtocol) -> DeltaID? {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard parts.count == 2, let operation = OperationID(hex: parts[0]),
      let index = UInt16(parts[1])
    else { return nil }
    return DeltaID(operation: operation, index: index)
  }

  private func decode<Query: Decodable>(_ type: Query.Type, _ body: Data) throws -> Query {
    try JSONDecoder().decode(type, from: body)
  }

  private func encode(_ answer: some Encodable) throws -> Data {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    return try encoder.encode(answer)
  }
}
