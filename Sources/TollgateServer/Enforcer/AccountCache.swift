// Account configurations last heard of, bounded. Two generations: when the young one is full it
// becomes the old one and what was old is let go, so every entry survives at least `capacity / 2`
// newer ones and no bookkeeping happens per hit. A stale entry is harmless: every script call
// carries the version it was decided on.
//
// A configuration is wide, half of a table's places are empty, and most accounts that nobody set
// are alike: it lies beside the table, once for all caches that hold it, and for neighbours that
// are the same.

import TollgateCore

/// What it holds is never changed, only replaced.
final class KeptAccount: Sendable {
  let config: AccountConfig

  init(_ config: AccountConfig) { self.config = config }
}

struct AccountCache {
  private var young: [String: KeptAccount] = [:]
  private var old: [String: KeptAccount] = [:]
  private var last: KeptAccount?
  private let generation: Int

  init(capacity: Int) { generation = max(1, capacity / 2) }

  var count: Int { young.count + old.count }

  subscript(account: String) -> AccountConfig? {
    mutating get {
      if let kept = young[account] { return kept.config }
      guard let kept = old.removeValue(forKey: account) else { return nil }
      insert(account, kept)
      return kept.config
    }
    set { keep(newValue.map { box($0) }, of: account) }
  }

  /// nil: nothing is known of it.
  mutating func keep(_ kept: KeptAccount?, of account: String) {
    old.removeValue(forKey: account)
    if let kept { insert(account, kept) } else { young.removeValue(forKey: account) }
  }

  /// To be kept here and elsewhere: the last one, where that is the same.
  mutating func box(_ config: AccountConfig) -> KeptAccount {
    if let last, last.config == config { return last }
    let kept = KeptAccount(config)
    last = kept
    return kept
  }

  private mutating func insert(_ account: String, _ kept: KeptAccount) {
    if young.count >= generation, young[account] == nil {
      old = young
      young = [:]
    }
    young[account] = kept
  }
}
