// The newest configurations as the ledger has them, with what it knows of their latest changes:
// from these Redis is put back after a loss, ids included.

import TollgateCore
import TollgateWire

struct LedgerConfig: Hashable, Sendable {
  /// 0: the ledger has none.
  var version: Int64
  /// JSON; empty where there is none.
  var document: String
  var memory: ChangeMemory
}

extension LedgerLink {
  /// Accounts in one query.
  static let configsMax = 250
  static let configBytesMax = 64 << 20

  /// Of these accounts, in their order.
  func configs(of accounts: [Subject]) async throws(LedgerFailure) -> [LedgerConfig] {
    var found: [LedgerConfig] = []
    var rest = accounts[...]
    while !rest.isEmpty {
      let part = rest.prefix(Self.configsMax)
      rest = rest.dropFirst(part.count)
      let answers = try await currentConfigs(
        .fields(["accounts": .list(part.map { .string($0.path) })]))
      guard answers.count == part.count else { throw Self.unreadable }
      found += answers
    }
    return found
  }

  func globalConfig() async throws(LedgerFailure) -> LedgerConfig {
    guard let config = try await currentConfigs(.object([])).first else { throw Self.unreadable }
    return config
  }

  private static var unreadable: LedgerFailure {
    LedgerFailure(kind: .refused(.badFrame), description: "an unreadable configuration")
  }

  private func currentConfigs(_ query: Document) async throws(LedgerFailure) -> [LedgerConfig] {
    let pages = try await pages(
      QueryRequest(.configCurrent, body: query.jsonBytes()), as: QueryReply.self)
    if let status = pages.first?.status {
      throw LedgerFailure(
        kind: .refused(status),
        description: String(decoding: pages.first?.body ?? [], as: UTF8.self))
    }
    guard
      let answer = try? Document(json: pages.flatMap(\.body), bytesMax: Self.configBytesMax),
      let rows = answer["configs"]?.elements
    else { throw Self.unreadable }
    var configs: [LedgerConfig] = []
    for row in rows {
      guard let version = row["version"]?.whole, let document = row["document"]?.text,
        let memory = ChangeMemory(row)
      else { throw Self.unreadable }
      configs.append(LedgerConfig(version: version, document: document, memory: memory))
    }
    return configs
  }
}

extension ChangeMemory {
  fileprivate init?(_ row: Document) {
    var entries: [Entry] = []
    for change in row["changes"]?.elements ?? [] {
      guard let operation = change["operation"]?.text.flatMap({ OperationID(hex: $0) }),
        let fingerprint = change["fingerprint"]?.text.flatMap({ UInt64($0, radix: 16) }),
        let result = change["result"]?.whole, let time = change["time"]?.whole
      else { return nil }
      entries.append(
        Entry(
          operation: operation, fingerprint: fingerprint, result: result,
          time: WallTime(milliseconds: time)))
    }
    self.init(entries: entries)
    if let text = row["floor"]?.text {
      guard let floor = OperationID(hex: text) else { return nil }
      self.floor = floor
    }
  }
}
