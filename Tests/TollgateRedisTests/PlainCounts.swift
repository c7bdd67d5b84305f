// Deltas of which every counter got the whole amount, as most tests make them.

import TollgateCore

@testable import TollgateRedis

extension [CellReference] {
  func counts(_ amount: Int64) -> [CountedPart] {
    map {
      CountedPart(level: $0.level, window: $0.window, period: $0.period, amount: amount)
    }
  }
}

extension ReverseCall {
  init(
    keySpace: KeySpace, fence: Fence, position: StreamPosition, subject: Subject, feature: Name,
    cells: [CellReference], amount: Int64
  ) {
    self.init(
      keySpace: keySpace, fence: fence, position: position, subject: subject, feature: feature,
      counts: cells.counts(amount))
  }
}

extension RepostCall {
  init(
    keySpace: KeySpace, fence: Fence, entry: OutboxEntry, subject: Subject, feature: Name,
    cells: [CellReference]
  ) {
    self.init(
      keySpace: keySpace, fence: fence, entry: entry, subject: subject, feature: feature,
      counts: cells.counts(entry.charged))
  }
}
