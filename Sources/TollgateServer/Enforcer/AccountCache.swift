// Account configurations last heard of, bounded. Two generations: when the young one is full it
// becomes the old one and what was old is let go, so every entry survives at least `capacity / 2`
// newer ones and no bookkeeping happens per hit. A stale entry is harmless: every script call
// carries the version it was decided on.

import TollgateCore

struct AccountCache {
  private var young: [String: AccountConfig] = [:]
  private var old: [String: AccountConfig] = [:]
  private let generation: Int

  init(capacity: Int) { generation = max(1, capacity / 2) }

  var count: Int { young.count + old.count }

  subscript(account: String) -> AccountConfig? {
    mutating get {
      if let config = young[account] { return config }
      guard let config = old.removeValue(forKey: account) else { return nil }
      insert(account, config)
      return config
    }
    set {
      old.removeValue(forKey: account)
      guard let newValue else {
        young.removeValue(forKey: account)
        return
      }
      insert(account, newValue)
    }
  }

  private mutating func insert(_ account: String, _ config: AccountConfig) {
    if young.count >= generation, young[account] == nil {
      old = young
      young = [:]
    }
    young[account] = config
  }
}
