// The records of a frame of requests, whatever their kind, read one by one as their turn comes.
// Here the kinds of the wire end: behind it a request is a mode, a subject, items and terms.

import TollgateCore
import TollgateRedis
import TollgateWire

/// What one record asks.
struct AskedRecord {
  var id: OperationID
  var subject: Subject
  var items: [Item]
  var attributes: [String: String]
  var traceParent: String
  var terms: HoldTerms?

  init(_ record: TollgateWire.OperationRecord, terms: HoldTerms? = nil) {
    id = record.id
    subject = record.subject
    items = record.items
    attributes = record.attributes
    traceParent = record.traceParent
    self.terms = terms
  }

  /// A ttl that is not named is settled here, so that a retry that names it is the same request.
  init(_ record: ReserveRecord) {
    self.init(
      record.operation,
      terms: HoldTerms(
        ttlMilliseconds: record.ttlMilliseconds.map(Int64.init) ?? HoldBounds.ttlDefault,
        overrun: record.overrun ?? .standard))
  }

  init(_ record: SettleRecord) {
    id = record.id
    subject = record.subject
    items = record.items
    attributes = record.attributes
    traceParent = record.traceParent
    terms = HoldTerms(
      reservation: record.reservation, isFinal: record.isFinal, isFloor: record.isFloor)
  }

  init(_ record: ReleaseRecord) {
    id = record.id
    subject = record.subject
    items = []
    attributes = [:]
    traceParent = record.traceParent
    terms = HoldTerms(reservation: record.reservation)
  }

  init(_ record: ExtendRecord) {
    id = record.id
    subject = record.subject
    items = []
    attributes = [:]
    traceParent = record.traceParent
    terms = HoldTerms(
      reservation: record.reservation, ttlMilliseconds: Int64(record.ttlMilliseconds))
  }

  init(_ record: RefundRecord) {
    id = record.id
    subject = record.subject
    items = record.items
    attributes = record.attributes
    traceParent = record.traceParent
    terms = HoldTerms(reservation: record.corrects, reason: record.reason)
  }
}

/// Every record of a frame is of one kind.
enum AskedRecords {
  case operations(RequestMode, OperationReader)
  case reserves(RecordReader<ReserveRecord>)
  case settles(RecordReader<SettleRecord>)
  case releases(RecordReader<ReleaseRecord>)
  case extends(RecordReader<ExtendRecord>)
  case refunds(RecordReader<RefundRecord>)

  var mode: RequestMode {
    switch self {
    case .operations(let mode, _): mode
    case .reserves: .reserve
    case .settles: .settle
    case .releases: .release
    case .extends: .extend
    case .refunds: .refund
    }
  }

  /// Records not asked for yet.
  var left: Int {
    switch self {
    case .operations(_, let reader): reader.left
    case .reserves(let reader): reader.left
    case .settles(let reader): reader.left
    case .releases(let reader): reader.left
    case .extends(let reader): reader.left
    case .refunds(let reader): reader.left
    }
  }

  /// The next record, or what is wrong with it; nil after the last.
  mutating func next() -> Result<AskedRecord, WireError>? {
    switch self {
    case .operations(let mode, var reader):
      defer { self = .operations(mode, reader) }
      return reader.next().map { $0.map { AskedRecord($0) } }
    case .reserves(var reader):
      defer { self = .reserves(reader) }
      return reader.next().map { $0.map(AskedRecord.init) }
    case .settles(var reader):
      defer { self = .settles(reader) }
      return reader.next().map { $0.map(AskedRecord.init) }
    case .releases(var reader):
      defer { self = .releases(reader) }
      return reader.next().map { $0.map(AskedRecord.init) }
    case .extends(var reader):
      defer { self = .extends(reader) }
      return reader.next().map { $0.map(AskedRecord.init) }
    case .refunds(var reader):
      defer { self = .refunds(reader) }
      return reader.next().map { $0.map(AskedRecord.init) }
    }
  }
}
