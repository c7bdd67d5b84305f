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
    let portions = LeasePortion.all(of: resolution, subject: request.subject)
    // Those of cells lie as the cells do, then those of rates as their limits do.
    var used = resolution.items.indices.map { item in
      resolution.cells.indices.filter { resolution.cells[$0].item == item }
    }
    var portionOfLimit: [Int: Int] = [:]
    var rates = resolution.cells.count..<portions.count
    for (limit, applied) in resolution.limits.enumerated() {
      switch applied.rule {
      case .quota(let cell, _), .sliding(let cell, _, _): portionOfLimit[limit] = cell
      case .rate:
        guard let rate = rates.popFirst() else { return nil }
        portionOfLimit[limit] = rate
        used[applied.item].append(rate)
      case .deny, .concurrency, .credit, .spendCap, .unlimited: continue
      }
    }
    var items: [LeaseRegistration.Item] = []
    for item in resolution.items.indices {
      let shown = resolution.limits.indices.first {
        resolution.limits[$0].item == item && resolution.limits[$0].id == decision.items[item].limit
      }
      items.append(
        LeaseRegistration.Item(
          portions: used[item], shown: shown.flatMap { portionOfLimit[$0] },
          amount: shown.map { Self.amount(of: resolution.limits[$0]) } ?? -1))
    }
    return LeaseRegistration(
      bucket: bucket, account: Array(request.account.utf8), key: key,
      globalVersion: versions.global, accountVersion: versions.account, confirmedAt: confirmedAt,
      now: now, validUntil: resolution.validUntil.milliseconds,
      isStaleAllowed: !resolution.limits.isEmpty
        && resolution.limits.allSatisfy { $0.failurePolicy == .stale },
      items: items, portions: portions.map(Self.named),
      demand: request.items.map(\.amount).max() ?? 1,
      template: template(decision, resolution, versions),
      definition: LeaseDefinition(resolution, catalogVersion: versions.catalog).bytes)
  }

  private static func amount(of limit: AppliedLimit) -> Int64 {
    switch limit.rule {
    case .quota(_, let amount), .sliding(_, let amount, _): amount
    case .rate(_, let tolerance, let interval): tolerance / interval
    case .deny, .concurrency, .credit, .spendCap, .unlimited: -1
    }
  }

  /// What the table calls a portion by.
  private static func named(_ portion: LeasePortion) -> LeasePortionKey {
    func name(_ place: LeaseCounter.Place) -> [UInt8] {
      LeaseCounter(subject: portion.subject, feature: portion.feature, place: place).bytes
    }
    switch portion.source {
    case .cell(let window, let period):
      return LeasePortionKey(
        portion.isLeased ? .cell : .count, name: name(.window(window)),
        limits: LeaseRule.bytes(portion.bounds.map { LeaseRule($0) }),
        start: period.start.milliseconds, end: period.end.milliseconds)
    case .rate(let limit, let interval, let tolerance):
      return LeasePortionKey(
        .rate, name: name(.rate(limit)),
        limits: LeaseRule.bytes([.rate(interval: interval, tolerance: tolerance)]))
    }
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
    LeasePortion.all(of: resolution, subject: request.subject).filter(\.isLeased)
      .prefix(RecallCall.wantedMax).map { .init(subject: $0.subject, field: $0.field) }
  }
}
