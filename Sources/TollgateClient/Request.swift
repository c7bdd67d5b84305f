// What a caller asks, as a value: for batches, and for what a client hands over when it stops.

internal import TollgateWire

/// One question about one subject: several features with an amount each, allowed or denied as one.
public struct Request: Hashable, Sendable {
  /// What is asked.
  public enum Kind: Hashable, Sendable {
    /// Whether it would be allowed. Changes nothing.
    case check
    /// Whether it is allowed, and if so, count it at once.
    case consume
  }

  /// What is asked.
  public var kind: Kind
  /// Who asks.
  public var subject: Subject
  /// 1 … 16 items, each feature once, amounts 0 … 2^53 − 1.
  public var items: [Item]
  /// The identity of the operation; nil: the client mints one. A check has none.
  public var id: OperationID?
  /// Carried into the ledger: at most 16, keys as `Name`, values of at most 128 bytes.
  public var attributes: [String: String]
  /// W3C trace parent, at most 64 bytes, or empty.
  public var traceParent: String

  /// A request. To be able to retry it after a crash of the caller, mint its id beforehand with
  /// `TollgateClient.newOperationID()` and keep it.
  public init(
    _ kind: Kind, subject: Subject, items: [Item], id: OperationID? = nil,
    attributes: [String: String] = [:], traceParent: String = ""
  ) {
    self.kind = kind
    self.subject = subject
    self.items = items
    self.id = id
    self.attributes = attributes
    self.traceParent = traceParent
  }
}

/// What a client still owed to the sidecars when it stopped. Keep it and hand it to the next
/// client with `adopt(_:)`, or it is lost.
public struct UnfinishedWork: Hashable, Sendable {
  /// Let through by failure policy, not yet recorded by a sidecar.
  public var unposted: [Request]
  /// Answered "denied" after a send of unknown outcome, not yet taken back.
  public var uncancelled: [Request]
  /// Used of reservations, and not answered by a sidecar.
  public var unsettled: [UnsettledUse]

  /// Whether nothing is owed.
  public var isEmpty: Bool { unposted.isEmpty && uncancelled.isEmpty && unsettled.isEmpty }

  /// Work of an earlier client. Every request has its id.
  public init(
    unposted: [Request] = [], uncancelled: [Request] = [], unsettled: [UnsettledUse] = []
  ) {
    self.unposted = unposted
    self.uncancelled = uncancelled
    self.unsettled = unsettled
  }
}

/// What was used of a reservation and has to be told a sidecar: a settle, as a value.
public struct UnsettledUse: Hashable, Sendable {
  /// The settle's own identity.
  public var id: OperationID
  /// Whose reservation it is.
  public var subject: Subject
  /// The id of the reserve.
  public var reservation: OperationID
  /// 1 … 16 items: what was used since the settle before.
  public var items: [Item]
  /// Whether it ends the reservation.
  public var isFinal: Bool
  /// Whether it is the least that is known to have been used.
  public var isFloor: Bool
  /// Carried into the ledger: at most 16.
  public var attributes: [String: String]
  /// W3C trace parent, or empty.
  public var traceParent: String

  /// What was used of a reservation.
  public init(
    id: OperationID, subject: Subject, reservation: OperationID, items: [Item],
    isFinal: Bool = true, isFloor: Bool = false, attributes: [String: String] = [:],
    traceParent: String = ""
  ) {
    self.id = id
    self.subject = subject
    self.reservation = reservation
    self.items = items
    self.isFinal = isFinal
    self.isFloor = isFloor
    self.attributes = attributes
    self.traceParent = traceParent
  }

  init(_ record: SettleRecord) {
    self.init(
      id: record.id, subject: record.subject, reservation: record.reservation,
      items: record.items, isFinal: record.isFinal, isFloor: record.isFloor,
      attributes: record.attributes, traceParent: record.traceParent)
  }

  var record: SettleRecord {
    SettleRecord(
      id: id, subject: subject, reservation: reservation, isFinal: isFinal, isFloor: isFloor,
      items: items, attributes: attributes, traceParent: traceParent)
  }
}

extension Request {
  init(_ record: Record) {
    self.init(
      .consume, subject: record.subject, items: record.items, id: record.id,
      attributes: record.attributes, traceParent: record.traceParent)
  }

  func record(id: OperationID) -> Record {
    Record(
      id: id, subject: subject, items: items, attributes: attributes, traceParent: traceParent)
  }
}

extension TollgateWire.OperationRecord {
  /// What makes two operations the same under one id.
  func hasSameBody(as other: Record) -> Bool {
    subject == other.subject && items == other.items
  }

  /// Bytes in a frame, the record's length included; an upper bound.
  var frameBytes: Int {
    var bytes = 2 + 16 + 2 + subject.path.utf8.count + 1
    for item in items { bytes += 1 + item.feature.text.utf8.count + 8 }
    if !attributes.isEmpty { bytes += 5 }
    for (key, value) in attributes { bytes += 2 + key.utf8.count + value.utf8.count }
    if !traceParent.isEmpty { bytes += 8 + traceParent.utf8.count }
    return bytes
  }
}

/// The record as it travels. Named here because the core has a record of an operation too: what is
/// remembered of it, where this is what is asked.
typealias Record = TollgateWire.OperationRecord
