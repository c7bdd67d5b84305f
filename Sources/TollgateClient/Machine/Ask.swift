// What one call asks, and what a frame carries: the records of PROTOCOL 5, one case for each kind.
// The rules that differ between the kinds are three questions here, so that the life of a call
// (ClientMachine+Calls) need not know the kinds.

internal import NIOCore
internal import TollgateWire

enum Ask: Hashable, Sendable {
  case check(Record)
  case consume(Record)
  /// What a settle becomes whose reservation nobody knows any more.
  case post(Record, settles: SettleRecord)
  case reserve(ReserveRecord)
  case settle(SettleRecord)
  case release(ReleaseRecord)
  case extend(ExtendRecord)
  case refund(RefundRecord)

  /// Its effect is more than its answer: an attempt that was sent may have been applied.
  var changes: Bool {
    switch self {
    case .check: false
    case .consume, .post, .reserve, .settle, .release, .extend, .refund: true
    }
  }

  /// A failure policy can answer it. The others tell what has happened.
  var isDecision: Bool {
    switch self {
    case .check, .consume, .reserve: true
    case .post, .settle, .release, .extend, .refund: false
    }
  }

  /// It tells what was used: it is sent until it is answered, longer than its call lasts.
  var tellsUse: Bool {
    switch self {
    case .post, .settle: true
    case .check, .consume, .reserve, .release, .extend, .refund: false
    }
  }

  var id: OperationID {
    switch self {
    case .check(let record), .consume(let record), .post(let record, _): record.id
    case .reserve(let record): record.id
    case .settle(let record): record.id
    case .release(let record): record.id
    case .extend(let record): record.id
    case .refund(let record): record.id
    }
  }

  var opcode: Opcode {
    switch self {
    case .check: .check
    case .consume: .consume
    case .post: .post
    case .reserve: .reserve
    case .settle: .settle
    case .release: .release
    case .extend: .extend
    case .refund: .refund
    }
  }

  /// Bytes in a frame, the record's length included; an upper bound.
  var frameBytes: Int {
    switch self {
    case .check(let record), .consume(let record), .post(let record, _): record.frameBytes
    case .reserve(let record): record.operation.frameBytes + 8 + 20
    case .settle(let record): record.frameBytes
    case .release(let record): 2 + 16 + 2 + record.subject.path.utf8.count + 16 + 72
    case .extend(let record): 2 + 16 + 2 + record.subject.path.utf8.count + 16 + 4 + 72
    case .refund(let record):
      Record(
        id: record.id, subject: record.subject, items: record.items, attributes: record.attributes,
        traceParent: record.traceParent
      ).frameBytes + 16 + 4 + record.reason.utf8.count
    }
  }

  /// Throws what a sidecar would answer.
  func validate() throws(WireError) {
    switch self {
    case .check(let record), .consume(let record), .post(let record, _): try record.validate()
    case .reserve(let record): try record.validate()
    case .settle(let record): try record.validate()
    case .release(let record): try record.validate()
    case .extend(let record): try record.validate()
    case .refund(let record): try record.validate()
    }
  }
}

/// The records of one frame.
enum FrameRecords: Hashable, Sendable {
  case operations([Record])
  case settles([SettleRecord])
  /// These travel alone.
  case reserve(ReserveRecord)
  case release(ReleaseRecord)
  case extend(ExtendRecord)
  case refund(RefundRecord)

  /// The records of asks of one kind; only checks, consumes and posts come in several.
  init(_ asks: [Ask]) {
    var operations: [Record] = []
    operations.reserveCapacity(asks.count)
    var other: FrameRecords?
    for ask in asks {
      switch ask {
      case .check(let record), .consume(let record), .post(let record, _):
        operations.append(record)
      case .reserve(let record): other = .reserve(record)
      case .settle(let record): other = .settles([record])
      case .release(let record): other = .release(record)
      case .extend(let record): other = .extend(record)
      case .refund(let record): other = .refund(record)
      }
    }
    self = other ?? .operations(operations)
  }

  func write(
    into buffer: inout ByteBuffer, _ opcode: Opcode, correlation: UInt64,
    deadlineMilliseconds: UInt32, flags: FrameFlags
  ) {
    func write(_ message: some WireMessage) {
      buffer.writeFrame(
        opcode, message, correlation: correlation, deadlineMilliseconds: deadlineMilliseconds,
        flags: flags)
    }
    switch self {
    case .operations(let records): write(OperationBatch(records))
    case .settles(let records): write(SettleBatch(records))
    case .reserve(let record): write(ReserveBatch([record]))
    case .release(let record): write(ReleaseBatch([record]))
    case .extend(let record): write(ExtendBatch([record]))
    case .refund(let record): write(RefundBatch([record]))
    }
  }
}

/// A record that is owed to the sidecars.
protocol OwedRecord: Hashable, Sendable {
  var id: OperationID { get }
  var frameBytes: Int { get }
}

extension TollgateWire.OperationRecord: OwedRecord {}

extension SettleRecord: OwedRecord {
  var frameBytes: Int { asPost.frameBytes + 16 + 1 }

  /// What it says was used, told without its reservation and under its own id: where an attempt of
  /// the settle was applied after all, the id keeps it from counting twice.
  var asPost: Record {
    Record(
      id: id, subject: subject, items: items, attributes: attributes, traceParent: traceParent)
  }

  var usesNothing: Bool { items.allSatisfy { $0.amount == 0 } }
}
