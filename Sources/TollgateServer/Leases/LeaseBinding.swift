// From a request that was decided by Redis to the shape that the lease table answers from then on:
// which portions it takes of, what its answer looks like, and until when that holds.

import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

enum LeaseBinding {
  /// Whether what this resolves to is leased at all.
  static func isLeasable(_ resolution: Resolution) -> Bool {
    resolution.isLeasable && resolution.items.count <= RawRecord.itemsMax
  }

  /// nil: it is not leased.
  ///
  /// - Parameters:
  ///   - confirmedAt: when the call was sent that showed these versions to be current (boot time).
  ///   - decision: what Redis answered: it tells which limit leaves the least.
  static func registration(
    _ request: Request, _ resolution: Resolution, _ decision: Decision, bucket: Int,
    versions: (global: Int64, account: Int64, catalog: Int64), confirmedAt: Int64, now: Int64
  ) -> LeaseRegistration? {
    guard isLeasable(resolution), decision.items.count == resolution.items.count,
      let key = OperationRecord(
        id: request.id, subject: request.subject, items: request.items,
        attributes: request.attributes
      ).shape
    else { return nil }
    var portions: [LeasePortionKey] = []
    var portionOfLimit: [Int: Int] = [:]
    var items: [LeaseRegistration.Item] = []
    for item in resolution.items.indices {
      var used: [Int] = []
      for (cell, found) in resolution.cells.enumerated() where found.item == item {
        used.append(portions.count)
        for (limit, rule) in resolution.limits.enumerated() where Self.cell(of: rule) == cell {
          portionOfLimit[limit] = portions.count
        }
        portions.append(portion(of: cell, request, resolution))
      }
      for (limit, applied) in resolution.limits.enumerated() where applied.item == item {
        guard let rate = rate(applied, request, resolution) else { continue }
        portionOfLimit[limit] = portions.count
        used.append(portions.count)
        portions.append(rate)
      }
      let shown = resolution.limits.indices.first {
        resolution.limits[$0].item == item && resolution.limits[$0].id == decision.items[item].limit
      }
      items.append(
        LeaseRegistration.Item(
          portions: used, shown: shown.flatMap { portionOfLimit[$0] },
          amount: shown.map { Self.amount(of: resolution.limits[$0]) } ?? -1))
    }
    return LeaseRegistration(
      bucket: bucket, account: Array(request.account.utf8), key: key,
      globalVersion: versions.global, accountVersion: versions.account, confirmedAt: confirmedAt,
      now: now, validUntil: resolution.validUntil.milliseconds,
      isStaleAllowed: !resolution.limits.isEmpty
        && resolution.limits.allSatisfy { $0.failurePolicy == .stale },
      items: items, portions: portions, demand: request.items.map(\.amount).max() ?? 1,
      template: template(decision, resolution, versions),
      definition: LeaseDefinition(resolution, catalogVersion: versions.catalog).bytes)
  }

  private static func cell(of limit: AppliedLimit) -> Int? {
    switch limit.rule {
    case .quota(let cell, _), .sliding(let cell, _, _): cell
    case .deny, .rate, .concurrency, .credit, .spendCap, .unlimited: nil
    }
  }

  private static func amount(of limit: AppliedLimit) -> Int64 {
    switch limit.rule {
    case .quota(_, let amount), .sliding(_, let amount, _): amount
    case .rate(_, let tolerance, let interval): tolerance / interval
    case .deny, .concurrency, .credit, .spendCap, .unlimited: -1
    }
  }

  private static func portion(
    of index: Int, _ request: Request, _ resolution: Resolution
  ) -> LeasePortionKey {
    let cell = resolution.cells[index]
    let rules = resolution.limits.compactMap { limit -> LeaseRule? in
      switch limit.rule {
      case .quota(let found, let amount) where found == index: .quota(amount: amount)
      case .sliding(let found, let amount, let length) where found == index:
        .sliding(amount: amount, lengthMilliseconds: length)
      case .quota, .sliding, .deny, .rate, .concurrency, .credit, .spendCap, .unlimited: nil
      }
    }
    return LeasePortionKey(
      rules.isEmpty ? .count : .cell,
      name: LeaseCounter(
        subject: request.subject.prefix(cell.level), feature: resolution.items[cell.item].feature,
        place: .window(cell.window)
      ).bytes,
      limits: LeaseRule.bytes(rules), start: cell.period.start.milliseconds,
      end: cell.period.end.milliseconds)
  }

  private static func rate(
    _ limit: AppliedLimit, _ request: Request, _ resolution: Resolution
  ) -> LeasePortionKey? {
    guard case .rate(_, let tolerance, let interval) = limit.rule else { return nil }
    return LeasePortionKey(
      .rate,
      name: LeaseCounter(
        subject: request.subject.prefix(limit.level),
        feature: resolution.items[limit.item].feature, place: .rate(limit.id)
      ).bytes,
      limits: LeaseRule.bytes([.rate(interval: interval, tolerance: tolerance)]))
  }

  private static func template(
    _ decision: Decision, _ resolution: Resolution,
    _ versions: (global: Int64, account: Int64, catalog: Int64)
  ) -> LeaseTemplate {
    var answer = Decision(
      reason: .allowed, source: .lease, time: decision.time, globalVersion: versions.global,
      accountVersion: versions.account)
    answer.items = decision.items
    let template = AnswerTemplate(answer)
    var patches = [
      LeasePatch(.replayed, at: template.flagsOffset), LeasePatch(.time, at: template.timeOffset),
    ]
    for (item, state) in decision.items.enumerated() where state.remaining != nil {
      let offset = template.itemOffsets[item]
      patches.append(LeasePatch(.remaining, item: item, at: offset))
      patches.append(LeasePatch(.settled, item: item, at: offset + 8))
      patches.append(LeasePatch(.held, item: item, at: offset + 16))
    }
    return LeaseTemplate(bytes: template.bytes, patches: patches)
  }
}

extension LeaseBinding {
  /// The counters and rates that judge a request: what a recall asks for.
  static func wanted(_ request: Request, _ resolution: Resolution) -> [RecallCall.Wanted] {
    var wanted: [RecallCall.Wanted] = []
    for limit in resolution.limits {
      let feature = resolution.items[limit.item].feature
      let found: RecallCall.Wanted
      switch limit.rule {
      case .quota(let index, _), .sliding(let index, _, _):
        let cell = resolution.cells[index]
        found = .init(
          subject: request.subject.prefix(cell.level),
          field: KeySpace.field(feature: feature, window: cell.window))
      case .rate:
        found = .init(
          subject: request.subject.prefix(limit.level),
          field: KeySpace.field(feature: feature, rate: limit.id))
      case .deny, .concurrency, .credit, .spendCap, .unlimited: continue
      }
      if !wanted.contains(found), wanted.count < RecallCall.wantedMax { wanted.append(found) }
    }
    return wanted
  }
}
