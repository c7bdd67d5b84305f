// Messages as the `fields` of the vectors: one function per message, so that a field read into
// the wrong place shows.

import NIOCore
import TollgateCore

@testable import TollgateWire

enum Describe {
  /// The payload of `frame` described, and encoded again; a refused record has no bytes of its
  /// own, so a batch that holds one is not encoded again.
  static func payload(_ frame: Frame) throws(WireError) -> (JSONValue, ByteBuffer?) {
    guard let opcode = frame.header.opcode else {
      throw .refused(.unknownOpcode, "unknown opcode")
    }
    switch opcode {
    case .hello: return try one(frame, hello)
    case .welcome: return try one(frame, welcome)
    case .ping: return try one(frame) { (m: Ping) in .object(["nonce": .init(m.nonce)]) }
    case .pong: return try one(frame) { (m: Pong) in .object(["nonce": .init(m.nonce)]) }
    case .goAway: return try one(frame, goAway)
    case .error: return try one(frame, error)
    case .check, .consume, .post, .cancel: return try records(frame, operation)
    case .reserve: return try records(frame, DescribeReservations.reserve)
    case .settle: return try records(frame, DescribeReservations.settle)
    case .release: return try records(frame, DescribeReservations.release)
    case .extend: return try records(frame, DescribeReservations.extend)
    case .refund: return try records(frame, DescribeReservations.refund)
    case .decisions: return try one(frame, decisions)
    case .admin:
      return try one(frame) { (m: AdminRequest) in document("method", .init(m.rawMethod), m.body) }
    case .adminReply:
      return try one(frame) { (m: AdminReply) in document("status", status(m.status), m.body) }
    case .query:
      return try one(frame) { (m: QueryRequest) in document("method", .init(m.rawMethod), m.body) }
    case .queryReply:
      return try one(frame) { (m: QueryReply) in document("status", status(m.status), m.body) }
    case .link: return try one(frame, DescribeLedger.link)
    case .linked: return try one(frame, DescribeLedger.linked)
    case .batch: return try one(frame, DescribeLedger.batch)
    case .batchReply: return try one(frame, DescribeLedger.batchReply)
    case .recover: return try one(frame, DescribeLedger.recover)
    case .presentRequest: return try one(frame, DescribeLedger.presentRequest)
    case .present: return try one(frame, DescribeLedger.present)
    case .epoch: return try one(frame, DescribeLedger.epoch)
    case .balances: return try one(frame, DescribeLedger.balances)
    case .balancesReply: return try one(frame, DescribeLedger.balancesReply)
    case .config: return try one(frame, DescribeLedger.config)
    case .configReply: return try one(frame, DescribeLedger.configReply)
    }
  }

  private static func one<M: WireMessage>(
    _ frame: Frame, _ describe: (M) -> JSONValue
  ) throws(WireError) -> (JSONValue, ByteBuffer?) {
    let message = try M.decode(frame)
    var buffer = ByteBuffer()
    message.encode(into: &buffer)
    return (describe(message), buffer)
  }

  static func header(_ header: FrameHeader) -> JSONValue {
    .object([
      "opcode": .init(header.opcode?.name), "flags": .init(header.flags.rawValue),
      "deadline": .init(header.deadlineMilliseconds), "correlation": .init(header.correlation),
    ])
  }

  static func error(_ error: WireError) -> JSONValue {
    .object(["code": .text(error.code.name), "fatal": .bool(error.isFatal)])
  }

  private static func hello(_ m: Hello) -> JSONValue {
    .object([
      "versionMin": .init(m.versionMin), "versionMax": .init(m.versionMax),
      "role": .text(m.role.name), "features": .init(m.features.rawValue), "client": .text(m.client),
      "token": .text(m.token),
    ])
  }

  private static func welcome(_ m: Welcome) -> JSONValue {
    var members: [String: JSONValue] = [
      "version": .init(m.version), "role": .text(m.role.name),
      "features": .init(m.features.rawValue),
      "deployment": .text(m.deployment.text), "server": .text(m.sidecar.text),
      "frameBytesMax": .init(m.frameBytesMax), "inFlightMax": .init(m.inFlightMax),
      "recordsMax": .init(m.recordsMax), "defaultDeadline": .init(m.defaultDeadlineMilliseconds),
      "maxDeadline": .init(m.maxDeadlineMilliseconds),
      "idleTimeout": .init(m.idleTimeoutMilliseconds), "time": .init(m.time.milliseconds),
      "globalVersion": .init(m.globalVersion),
      "policies": .array(
        m.policies.map { policy in
          var allowance: Int64 = 0
          if case .open(let units) = policy.policy { allowance = units }
          return .object([
            "feature": .text(policy.feature.text), "policy": .text(policy.policy.name),
            "allowance": .init(allowance),
          ])
        }),
    ]
    if !m.sidecarFeatures.isEmpty {
      members["sidecarFeatures"] = .array(m.sidecarFeatures.map { .text($0.text) })
    }
    return .object(members)
  }

  private static func goAway(_ m: GoAway) -> JSONValue {
    .object([
      "code": .text(m.code.name), "grace": .init(m.graceMilliseconds), "message": .text(m.message),
    ])
  }

  private static func error(_ m: ErrorReply) -> JSONValue {
    .object([
      "code": .text(m.code.name), "message": .text(m.message), "field": .text(m.field ?? ""),
    ])
  }

  private static func records<Record: BatchRecord>(
    _ frame: Frame, _ describe: (Record) -> JSONValue
  ) throws(WireError) -> (JSONValue, ByteBuffer?) {
    var payload = frame.payload
    let results = try RecordBatch<Record>.decodeEach(from: &payload)
    var records: [Record] = []
    var described: [JSONValue] = []
    for result in results {
      switch result {
      case .success(let record):
        records.append(record)
        described.append(describe(record))
      case .failure(let error): described.append(.object(["error": .text(error.code.name)]))
      }
    }
    let fields = JSONValue.object(["records": .array(described)])
    guard records.count == results.count else { return (fields, nil) }
    var buffer = ByteBuffer()
    RecordBatch(records).encode(into: &buffer)
    return (fields, buffer)
  }

  private static func operation(_ record: OperationRecord) -> JSONValue {
    .object(DescribeReservations.operation(record))
  }

  private static func decisions(_ m: DecisionBatch) -> JSONValue {
    .object(["records": .array(m.records.map(decision))])
  }

  private static func decision(_ record: DecisionRecord) -> JSONValue {
    switch record {
    case .error(let code, let message):
      return .object(["error": .text(code.name), "message": .text(message)])
    case .decision(let d):
      var fields: [String: JSONValue] = [
        "reason": .text(d.reason.name), "source": .text(d.source.name),
        "replayed": .bool(d.replayed), "time": .init(d.time.milliseconds),
        "globalVersion": .init(d.globalVersion), "accountVersion": .init(d.accountVersion),
        "retryAfter": .init(d.retryAfter), "bindingItem": .init(d.bindingItem),
        "binding": .init(d.binding?.text),
        "items": .array(
          d.items.map { item in
            .object([
              "remaining": .init(item.remaining), "settled": .init(item.settled),
              "held": .init(item.held), "reset": .init(item.reset?.milliseconds),
              "limit": .init(item.limit?.text),
            ])
          }),
      ]
      fields.merge(DescribeReservations.extras(of: d)) { $1 }
      return .object(fields)
    }
  }

  private static func document(_ key: String, _ value: JSONValue, _ body: [UInt8]) -> JSONValue {
    .object([key: value, "document": .text(String(decoding: body, as: UTF8.self))])
  }

  private static func status(_ code: ErrorCode?) -> JSONValue { .text(code?.name ?? "OK") }
}
