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
      decision.items.allSatisfy({ $0.settled.magnitude <= UInt64(LeaseConfiguration.settledMax) }),
      let key = OperationRecord(
        id: request.id, subject: request.subject, items: request.items,
        attributes: request.attributes
      ).shape
    else { return nil }
    guard let draws = burnt(request, resolution, decision) else { return nil }
    let all = LeasePortion.all(of: resolution, subject: request.subject)
    // Those of cells lie as the cells do, then those of rates as their limits do.
    let cells = counted(resolution, draws)
    var portions = cells.map { all[$0] }
    let places = Dictionary(uniqueKeysWithValues: zip(cells, portions.indices))
    var used = resolution.items.indices.map { item in
      cells.filter { resolution.cells[$0].item == item }.compactMap { places[$0] }
    }
    var portionOfLimit: [Int: Int] = [:]
    var rates = all[resolution.cells.count...]
    for (limit, applied) in resolution.limits.enumerated() {
      switch applied.rule {
      case .quota(let cell, _), .sliding(let cell, _, _): portionOfLimit[limit] = places[cell]
      case .rate:
        guard let rate = rates.popFirst() else { return nil }
        portionOfLimit[limit] = portions.count
        used[applied.item].append(portions.count)
        portions.append(rate)
      case .credit: portionOfLimit[limit] = draws[applied.item].flatMap { places[$0.cell] }
      case .deny, .concurrency, .spendCap, .unlimited: continue
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
          amount: shown.map { Self.amount(of: resolution.limits[$0], resolution) } ?? -1))
    }
    // What came back to a grant before the one that is burnt is burnt next: Redis is asked again.
    let isLater = draws.contains { item, draw in
      resolution.draws[item]?.first { !$0.isVoided }?.cell != draw.cell
    }
    var validUntil = resolution.validUntil
    if isLater, !decision.isOutOfCredit {
      validUntil = min(validUntil, decision.time + laterGrantMilliseconds)
    }
    return LeaseRegistration(
      bucket: bucket, account: Array(request.account.utf8), key: key,
      globalVersion: versions.global, accountVersion: versions.account, confirmedAt: confirmedAt,
      now: now, validUntil: validUntil.milliseconds,
      isStaleAllowed: !resolution.limits.isEmpty
        && resolution.limits.allSatisfy { $0.failurePolicy == .stale },
      items: items, portions: portions.map(Self.named),
      demand: request.items.map(\.amount).max() ?? 1,
      template: template(decision, resolution, versions),
      definition: LeaseDefinition(resolution, cells: cells, catalogVersion: versions.catalog)
        .bytes)
  }

  /// A shape is burnt from the same grant for no longer than this, where another comes before it.
  private static let laterGrantMilliseconds: Int64 = 10_000
  /// An item is not leased that is burnt from more grants than this.
  private static let grantsMax = 16

  /// By item, the grant that all of it was burnt from: the first that had anything, so a lease is
  /// taken of that one, in the order of burning. nil: it took more than one, or what is left of it
  /// goes over into its next instance, which must not miss what leases hold.
  ///
  /// Where it is only to be known how the like of it is settled or denied, any will do: nothing is
  /// leased of a grant that has nothing left, and what has is burnt by Redis first.
  private static func burnt(
    _ request: Request, _ resolution: Resolution, _ decision: Decision
  ) -> [Int: Draw]? {
    var found: [Int: Draw] = [:]
    for (item, all) in resolution.draws {
      let draws = all.filter { !$0.isVoided && $0.rollover == .none }
      guard all.count <= grantsMax else { return nil }
      let burns = decision.burns.filter { $0.item == item }
      var draw = draws.first { $0.grant == burns.first?.grant }
      if request.isForShape || !decision.isAllowed {
        draw = draw ?? draws.last
      } else if burns.count != 1 || burns[0].amount != request.items[item].amount {
        return nil
      }
      guard let draw else { return nil }
      found[item] = draw
    }
    return found
  }

  /// The cells that units are added to: not those of other grants, or of what is owed.
  private static func counted(_ resolution: Resolution, _ draws: [Int: Draw]) -> [Int] {
    resolution.cells.indices.filter { index in
      let cell = resolution.cells[index]
      return cell.window.tally == .units || draws[cell.item]?.cell == index
    }
  }

  private static func amount(of limit: AppliedLimit, _ resolution: Resolution) -> Int64 {
    switch limit.rule {
    case .quota(_, let amount), .sliding(_, let amount, _): amount
    case .rate(_, let tolerance, let interval): tolerance / interval
    case .credit:
      resolution.draws[limit.item]?.reduce(0) { sum, draw in
        draw.isVoided ? sum : Quantity.adding(sum, draw.amount) ?? Quantity.maximum
      } ?? -1
    case .deny, .concurrency, .spendCap, .unlimited: -1
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
  /// The counters and rates that judge a request: what a recall asks for. Those of the feature that
  /// is denied come first.
  static func wanted(
    _ request: Request, _ resolution: Resolution, _ decision: Decision
  ) -> [RecallCall.Wanted] {
    let denied = decision.bindingItem.map { resolution.items[$0].feature }
    let leased = LeasePortion.all(of: resolution, subject: request.subject).filter(\.isLeased)
    let first = leased.filter { $0.feature == denied } + leased.filter { $0.feature != denied }
    return first.prefix(RecallCall.wantedMax).map { .init(subject: $0.subject, field: $0.field) }
  }
}

extension Decision {
  /// No grant has anything left, and nobody holds any of it.
  var isOutOfCredit: Bool {
    guard reason == .creditExhausted, let bindingItem, items.indices.contains(bindingItem) else {
      return false
    }
    let state = items[bindingItem]
    return state.limit == binding && state.remaining == 0 && state.held == 0
  }
}
