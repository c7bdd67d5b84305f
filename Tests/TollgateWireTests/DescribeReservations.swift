// Reservations, refunds, and what decisions say of them as the `fields` of the vectors. A part of a
// decision or a body that is not there has no key.

import NIOCore
import TollgateCore

@testable import TollgateWire

enum DescribeReservations {
  private static func items(_ items: [Item]) -> JSONValue {
    .array(
      items.map { .object(["feature": .text($0.feature.text), "amount": .init($0.amount)]) })
  }

  private static func attributes(_ attributes: [String: String]) -> JSONValue {
    .object(attributes.mapValues { .text($0) })
  }

  static func operation(_ record: OperationRecord) -> [String: JSONValue] {
    [
      "id": .text(record.id.hex), "subject": .text(record.subject.path),
      "items": items(record.items), "attributes": attributes(record.attributes),
      "traceParent": .text(record.traceParent),
    ]
  }

  static func reserve(_ record: ReserveRecord) -> JSONValue {
    var fields = operation(record.operation)
    fields["ttl"] = .init(record.ttlMilliseconds.map { Int64($0) })
    fields["overrun"] =
      switch record.overrun {
      case nil: .null
      case .overdraft(let bound)?:
        .object(["policy": .text("overdraft"), "bound": .init(bound)])
      case .reject?: .object(["policy": .text("reject"), "bound": .init(Int64(0))])
      case .clamp?: .object(["policy": .text("clamp"), "bound": .init(Int64(0))])
      }
    return .object(fields)
  }

  static func settle(_ record: SettleRecord) -> JSONValue {
    .object([
      "id": .text(record.id.hex), "subject": .text(record.subject.path),
      "reservation": .text(record.reservation.hex), "final": .bool(record.isFinal),
      "floor": .bool(record.isFloor), "items": items(record.items),
      "attributes": attributes(record.attributes), "traceParent": .text(record.traceParent),
    ])
  }

  static func release(_ record: ReleaseRecord) -> JSONValue {
    .object([
      "id": .text(record.id.hex), "subject": .text(record.subject.path),
      "reservation": .text(record.reservation.hex), "traceParent": .text(record.traceParent),
    ])
  }

  static func extend(_ record: ExtendRecord) -> JSONValue {
    .object([
      "id": .text(record.id.hex), "subject": .text(record.subject.path),
      "reservation": .text(record.reservation.hex), "ttl": .init(record.ttlMilliseconds),
      "traceParent": .text(record.traceParent),
    ])
  }

  static func refund(_ record: RefundRecord) -> JSONValue {
    .object([
      "id": .text(record.id.hex), "subject": .text(record.subject.path),
      "corrects": .text(record.corrects.hex), "items": items(record.items),
      "attributes": attributes(record.attributes), "traceParent": .text(record.traceParent),
      "reason": .text(record.reason),
    ])
  }

  static func extras(of decision: Decision) -> [String: JSONValue] {
    var extras: [String: JSONValue] = [:]
    if let expires = decision.expires { extras["expires"] = .init(expires.milliseconds) }
    if !decision.settlements.isEmpty {
      extras["settlements"] = .array(
        decision.settlements.map {
          .object([
            "actual": .init($0.actual), "charged": .init($0.charged),
            "absorbed": .init($0.absorbed),
          ])
        })
    }
    if !decision.burns.isEmpty {
      extras["burns"] = .array(
        decision.burns.map {
          .object([
            "item": .init($0.item), "grant": .init($0.grant?.text), "amount": .init($0.amount),
          ])
        })
    }
    if !decision.derived.isEmpty {
      extras["derived"] = .array(decision.derived.map { .text($0.text) })
    }
    return extras
  }

  static func extras(of body: UsageBody) -> [String: JSONValue] {
    var extras: [String: JSONValue] = [:]
    if !body.parts.isEmpty {
      extras["parts"] = .array(
        body.parts.map {
          .object([
            "level": .init($0.level), "window": .text($0.window.code),
            "period": DescribeLedger.period($0.period), "amount": .init($0.amount),
          ])
        })
    }
    if !body.charges.isEmpty {
      extras["charges"] = .array(
        body.charges.map {
          .object([
            "rate": .text($0.rate.text), "from": .init($0.from.milliseconds),
            "units": .init($0.units), "charge": .init($0.charge),
          ])
        })
    }
    if let corrects = body.corrects { extras["corrects"] = .text(corrects.hex) }
    return extras
  }
}
