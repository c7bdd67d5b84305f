// Random legal reservations and refunds, and what decisions and delta bodies say of them.

import TollgateCore
import TollgateTesting

@testable import TollgateWire

extension RandomMessages {
  mutating func items(_ least: Int) -> [Item] {
    var items: [Item] = []
    for _ in 0..<edge(least...WireLimits.itemsMax) {
      let item = Item(feature: name(), amount: ordinal())
      if !items.contains(where: { $0.feature == item.feature }) { items.append(item) }
    }
    return items
  }

  mutating func trace() -> String {
    random.chance(0.5) ? "" : text(WireLimits.traceParentBytesMax)
  }

  mutating func ttl() -> UInt32 { UInt32(edge(1...Int(WireLimits.ttlMillisecondsMax))) }

  mutating func reserve() -> ReserveRecord {
    let overrun: OverrunPolicy? = pick([nil, .reject, .clamp, .overdraft(bound: ordinal())])
    return ReserveRecord(
      operation(), ttlMilliseconds: random.chance(0.5) ? nil : ttl(), overrun: overrun)
  }

  mutating func settle() -> SettleRecord {
    let isFinal = random.chance(0.5)
    return SettleRecord(
      id: id(), subject: subject(), reservation: id(), isFinal: isFinal,
      isFloor: isFinal && random.chance(0.5), items: items(1), attributes: attributes(),
      traceParent: trace())
  }

  mutating func release() -> ReleaseRecord {
    ReleaseRecord(id: id(), subject: subject(), reservation: id(), traceParent: trace())
  }

  mutating func extend() -> ExtendRecord {
    ExtendRecord(
      id: id(), subject: subject(), reservation: id(), ttlMilliseconds: ttl(),
      traceParent: trace())
  }

  mutating func refund() -> RefundRecord {
    RefundRecord(
      id: id(), subject: subject(), corrects: id(), items: items(0), attributes: attributes(),
      traceParent: trace(), reason: text(WireLimits.refundReasonBytesMax))
  }

  mutating func settlements() -> [Decision.Settlement] {
    guard random.chance(0.5) else { return [] }
    return list(0...WireLimits.itemsMax) {
      let actual = $0.quantity()
      return .init(actual: actual, charged: $0.random.chance(0.5) ? actual : actual / 2)
    }
  }

  mutating func burns() -> [Decision.Burn] {
    guard random.chance(0.5) else { return [] }
    return list(0...WireLimits.burnsMax) {
      .init(
        item: $0.edge(0...WireLimits.itemsMax - 1), grant: $0.optionalName(), amount: $0.quantity())
    }
  }

  mutating func parts() -> [CountedPart] {
    guard random.chance(0.5) else { return [] }
    return list(0...WireLimits.partsMax) {
      CountedPart(
        level: $0.edge(1...Subject.levelsMax), window: $0.window(), period: $0.period(),
        amount: $0.quantity())
    }
  }

  mutating func charges() -> [RateCharge] {
    guard random.chance(0.5) else { return [] }
    return list(0...WireLimits.chargesMax) {
      RateCharge(
        rate: $0.name(), from: $0.time(), units: $0.quantity(), charge: $0.quantity())
    }
  }

  /// Any that can be written: a code has at most 80 bytes.
  mutating func window() -> Window {
    let span: Window.Span = pick([
      .minute, .hour, .day, .week, .month, .quarter, .year, .lifetime,
      .seconds(Int64(edge(1...Int(Window.secondsMax)))),
    ])
    let time = Window(span, random.chance(0.5) ? .calendar : .anchored)
    let priced = Window.priced(
      by: name(), from: WallTime(milliseconds: Int64(edge(0...9_999_999_999_999))))
    return pick([time, time, .overage(time), .grant(name()), priced, .inFlight, .deficit])
  }
}
