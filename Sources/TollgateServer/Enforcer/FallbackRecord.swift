// One line of the fallback journal: `checksum json`. The state of the queue is what its lines say,
// read in order; a line that is read twice, or after a later one of its id was lost, does no harm,
// because posting and cancelling are idempotent by operation id.

import TollgateCore

enum FallbackRecord: Sendable, Hashable {
  /// Let through; to be posted.
  case admitted(FallbackOperation)
  /// Taken back by its caller; to be cancelled in Redis instead.
  case cancelled(OperationID)
  /// Posted, or cancelled in Redis: done with.
  case settled(OperationID)
  /// Refused for good and parked.
  case refused(FallbackRefusal)

  var line: [UInt8] { Self.line(document) }

  static func line(_ document: Document) -> [UInt8] {
    let json = document.json()
    return Array("\(StableHash.of(json)) \(json)\n".utf8)
  }

  /// What a line says whose checksum fits. `line` without its newline.
  static func document(line: ArraySlice<UInt8>) -> Document? {
    guard let space = line.firstIndex(of: 0x20) else { return nil }
    let json = String(decoding: line[line.index(after: space)...], as: UTF8.self)
    guard String(decoding: line[..<space], as: UTF8.self) == "\(StableHash.of(json))" else {
      return nil
    }
    return try? Document(json: json)
  }

  /// `line` without its newline.
  init?(line: ArraySlice<UInt8>) {
    guard let document = Self.document(line: line) else { return nil }
    if let id = Self.id(document["settled"]) {
      self = .settled(id)
    } else if let id = Self.id(document["cancelled"]) {
      self = .cancelled(id)
    } else if let operation = Self.operation(document) {
      if case .string(let reason)? = document["refused"], case .integer(let at)? = document["at"] {
        self = .refused(
          .init(operation: operation, reason: reason, time: WallTime(milliseconds: at)))
      } else {
        self = .admitted(operation)
      }
    } else {
      return nil
    }
  }

  private var document: Document {
    switch self {
    case .cancelled(let id): .fields(["cancelled": .string(id.hex)])
    case .settled(let id): .fields(["settled": .string(id.hex)])
    case .admitted(let operation): Self.document(of: operation)
    case .refused(let refusal): Self.document(of: refusal.operation, refused: refusal)
    }
  }

  private static func document(
    of operation: FallbackOperation, refused: FallbackRefusal? = nil
  ) -> Document {
    var members: [Document.Member] = [
      .init("id", .string(operation.id.hex)), .init("subject", .string(operation.subject.path)),
      .init(
        "items",
        .list(operation.items.map { .list([.string($0.feature.text), .integer($0.amount)]) })),
      .init(
        "attributes",
        .object(
          operation.attributes.sorted { $0.key < $1.key }
            .map { .init($0.key, .string($0.value)) })),
      .init("trace", .string(operation.traceParent)),
    ]
    if let refused {
      members.append(.init("refused", .string(refused.reason)))
      members.append(.init("at", .integer(refused.time.milliseconds)))
    }
    return .object(members)
  }

  private static func id(_ document: Document?) -> OperationID? {
    guard case .string(let hex)? = document else { return nil }
    return OperationID(hex: hex)
  }

  private static func operation(_ document: Document) -> FallbackOperation? {
    guard let id = id(document["id"]), case .string(let path)? = document["subject"],
      let subject = try? Subject(path), case .list(let entries)? = document["items"]
    else { return nil }
    var items: [Item] = []
    for entry in entries {
      guard case .list(let pair) = entry, pair.count == 2, case .string(let text) = pair[0],
        case .integer(let amount) = pair[1], let feature = try? Name(text)
      else { return nil }
      items.append(Item(feature: feature, amount: amount))
    }
    var attributes: [String: String] = [:]
    if case .object(let members)? = document["attributes"] {
      for member in members {
        if case .string(let value) = member.value { attributes[member.key] = value }
      }
    }
    var trace = ""
    if case .string(let text)? = document["trace"] { trace = text }
    return FallbackOperation(
      id: id, subject: subject, items: items, attributes: attributes, traceParent: trace)
  }
}
