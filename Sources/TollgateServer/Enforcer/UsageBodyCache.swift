// Delta bodies, encoded once per (subject, feature, periods, versions) and used again: between two
// boundaries every operation of a subject writes the same body, so encoding it is not paid for per
// request. Bounded; forgetting one costs an encoding. What asks for the same amounts as well finds
// its bodies with its plan, and here is looked for what does not.

import TollgateCore
import TollgateRedis
import TollgateWire

struct UsageBodyCache {
  private struct Key: Hashable {
    var subject: String
    var feature: Name
    var cells: [Cell]
    var catalogVersion: Int64
  }

  static let entriesMax = 4_096
  private var bodies: [Key: [UInt8]] = [:]

  /// One body for each metered item, in the plan's order; empty for a check.
  ///
  /// - Parameter prepared: that the plan is of, under the catalog of that version.
  mutating func bodies(
    of request: Request, _ plan: DecidePlan, _ prepared: PlanCache.Prepared,
    catalogVersion: Int64
  ) -> [[UInt8]] {
    guard request.mode != .check else { return [] }
    if let bodies = prepared.bodies, Self.isOfMany(request) { return bodies }
    let bodies = plan.meteredItems.map { item in
      body(of: request, item: item, plan.resolution, catalogVersion: catalogVersion)
    }
    if Self.isOfMany(request) { prepared.bodies = bodies }
    return bodies
  }

  /// Attributes and trace parents differ per request, and so do the rarer sources.
  private static func isOfMany(_ request: Request) -> Bool {
    request.attributes.isEmpty && request.traceParent.isEmpty && request.source == .redis
  }

  private mutating func body(
    of request: Request, item: Int, _ resolution: Resolution, catalogVersion: Int64
  ) -> [UInt8] {
    let cells = resolution.cells.filter { $0.item == item }
    let cacheable = Self.isOfMany(request)
    let key = Key(
      subject: request.subject.path, feature: request.items[item].feature,
      cells: cacheable ? cells : [], catalogVersion: catalogVersion)
    if cacheable, let body = bodies[key] { return body }
    let body = self.body(
      of: request, item: item,
      cells: cells.map { CellReference(level: $0.level, window: $0.window, period: $0.period) },
      catalogVersion: catalogVersion)
    if cacheable {
      if bodies.count >= Self.entriesMax { bodies.removeAll(keepingCapacity: true) }
      bodies[key] = body
    }
    return body
  }

  /// The body of what takes one item's delta back.
  func reversal(of request: Request, _ item: CountedItem, catalogVersion: Int64) -> [UInt8] {
    guard let billed = item.billed else {
      return body(of: request, item: item.item, cells: item.cells, catalogVersion: catalogVersion)
    }
    let billing = item.cells.first { $0.level == 1 && $0.window == .month }
    return UsageBody(
      subject: request.subject, feature: billed.feature,
      period: billing?.period ?? Window.month.period(containing: request.id.time),
      cells: item.cells, catalogVersion: catalogVersion, source: request.source,
      attributes: request.attributes, traceParent: request.traceParent,
      parts: billed.parts.map {
        CountedPart(level: $0.level, window: $0.window, period: $0.period, amount: -$0.amount)
      },
      charges: billed.charges.map {
        RateCharge(rate: $0.rate, from: $0.from, units: -$0.units, charge: -$0.charge)
      }
    ).encode()
  }

  /// The body of one item's delta that counts in these cells.
  func body(
    of request: Request, item: Int, cells: [CellReference], catalogVersion: Int64
  ) -> [UInt8] {
    let billing = cells.first { $0.level == 1 && $0.window == .month }
    return UsageBody(
      subject: request.subject, feature: request.items[item].feature,
      period: billing?.period ?? Window.month.period(containing: request.id.time), cells: cells,
      catalogVersion: catalogVersion, source: request.source, attributes: request.attributes,
      traceParent: request.traceParent
    ).encode()
  }
}
