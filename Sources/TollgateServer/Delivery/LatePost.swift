// A POST whose operation is older than the dedupe window, as it waits for the ledger's word. Two
// are the same only where everything that is counted is: a defect of a caller who uses an id twice
// is not given the answer to another body.

import TollgateCore
import TollgateWire

struct LatePost: Sendable, Hashable {
  var operation: FallbackOperation
  var source: Source
  var bucket: Int

  init(_ request: Request) {
    operation = FallbackOperation(request)
    source = request.source
    bucket = request.bucket
  }

  enum Deltas {
    case known([(entry: OutboxEntry, body: UsageBody)])
    /// The zone of the account is not known here, and so are its periods.
    case unknownZone
    /// What was burnt from which grant and what it cost hung on the counters of that moment: only
    /// what was written then tells.
    case rich
  }

  /// The deltas `decide` would have borne at that time: in its periods, one for each metered item.
  func deltas(
    global: GlobalConfig, account: AccountConfig, at time: WallTime
  ) -> Deltas {
    let (subject, items) = (operation.subject, operation.items)
    let resolution = Resolution.resolve(
      subject: subject, items: items, attributes: operation.attributes, global: global,
      account: account, now: time, zones: SystemZones.book)
    guard resolution.unknownZone == nil else { return .unknownZone }
    guard !resolution.isRich else { return .rich }
    let deltas = items.indices.filter { resolution.metered[$0] }.map { item in
      let cells = resolution.cells.filter { $0.item == item }
      let billing = cells.first { $0.level == 1 && $0.window == .month }
      let body = UsageBody(
        subject: subject, feature: items[item].feature,
        period: billing?.period ?? Window.month.period(containing: time),
        cells: cells.map {
          CellReference(level: $0.level, window: $0.window, period: $0.period)
        },
        catalogVersion: global.catalogVersion, source: source,
        attributes: operation.attributes, traceParent: operation.traceParent)
      let amount = items[item].amount
      return (
        entry: OutboxEntry(
          sequence: 0, kind: .usage,
          id: DeltaID(operation: operation.id, index: UInt16(item)), time: time, actual: amount,
          charged: amount, absorbed: 0, body: body.encode()),
        body: body
      )
    }
    return .known(deltas)
  }
}
