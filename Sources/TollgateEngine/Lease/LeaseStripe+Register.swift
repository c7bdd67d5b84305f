// Entries come and go: what an atomic decision showed to be hot and leasable is registered, what
// nobody asks for any more is evicted, what the configuration changed is taken up again.

import TollgateCore

extension LeaseStripe {
  package static var itemsMax: Int { 12 }
  package static var referencesMax: Int { 12 }

  mutating func register(_ r: LeaseRegistration) -> LeaseRegistered {
    let references = r.items.enumerated().flatMap { item, of in
      of.portions.map { (item: item, portion: $0) }
    }
    guard (1...Self.itemsMax).contains(r.items.count), references.count <= Self.referencesMax,
      references.allSatisfy({ r.portions.indices.contains($0.portion) }),
      Set(references.map(\.portion)).count == references.count,
      r.items.allSatisfy({ $0.shown.map(r.portions.indices.contains) ?? true }),
      let template = TemplateBytes.pack(r.template),
      [r.account.count, r.key.count, template.count, r.definition.count].allSatisfy({
        $0 <= ByteStore.bytesMax
      }), definitionBytes(r) <= LeaseLog.payloadBytesMax
    else { return .unfit }
    guard r.confirmedAt >= changedAt else { return .outdated }
    // Before anything is found: what is found must not be evicted.
    if accounts.used >= max(64, configuration.accountsMax / stripes)
      || entries.used >= max(64, configuration.entriesMax / stripes)
    {
      evict(256, now: r.now, isCrowded: true)
    }
    let account = account(r)
    guard account != 0 else { return .full }
    guard r.confirmedAt >= accounts[account].changedAt,
      r.globalVersion >= accounts[account].globalVersion,
      r.accountVersion >= accounts[account].accountVersion
    else { return .outdated }
    if accounts[account].epochGeneration != generation
      || accounts[account].globalVersion != r.globalVersion
      || accounts[account].accountVersion != r.accountVersion
    {
      outdate(account)
      accounts[account].epochGeneration = generation
      accounts[account].globalVersion = r.globalVersion
      accounts[account].accountVersion = r.accountVersion
    }
    accounts[account].confirmedAt = max(accounts[account].confirmedAt, r.confirmedAt)

    var found: [UInt32] = []
    for key in r.portions {
      let portion = portion(key, of: account, r)
      guard portion != 0 else {
        for portion in found { releaseIfUnused(portion) }
        releaseIfUnused(account: account)
        return .full
      }
      found.append(portion)
    }
    // Those that judge first: only these are looked at before an operation is let through.
    let ordered =
      references.filter { r.portions[$0.portion].kind != .count }
      + references.filter { r.portions[$0.portion].kind == .count }
    let wanted = ordered.map {
      LeaseReference(portion: found[$0.portion], item: UInt32($0.item))
    }
    let entry = entry(r, account, wanted)
    for portion in found { releaseIfUnused(portion) }
    guard entry != 0 else {
      releaseIfUnused(account: account)
      return .full
    }
    bytes.release(entries[entry].template, isShared: true)
    entries[entry].template = bytes.share(template)
    guard entries[entry].template != 0 else {
      retire(entry)
      return .full
    }
    entries[entry].generation = accounts[account].generation
    entries[entry].validFrom = r.portions.map(\.start).max() ?? 0
    entries[entry].validUntil = min(r.validUntil, r.portions.map(\.end).min() ?? .max)
    entries[entry].usedAt = max(entries[entry].usedAt, r.now)
    entries[entry].set(LeaseEntry.isStaleAllowed, r.isStaleAllowed)
    dropDenial(entry)
    for (index, item) in r.items.enumerated() {
      let place = entries[entry].items + UInt32(index)
      items[place].shown = item.shown.map { found[$0] } ?? 0
      items[place].amount = item.amount
    }
    for (key, portion) in zip(r.portions, found) where key.kind != .count {
      if portions[portion].left == 0, portions[portion].targetInFlight <= 0,
        r.now >= portions[portion].restUntil
      {
        // There is nothing of it to give back, and its limits are those of now.
        if !portions[portion].has(LeasePortion.isReturning) {
          portions[portion].set(LeasePortion.isRecalled, false)
        }
        want(portion)
      }
    }
    return .ready
  }

  // MARK: - Parts

  private mutating func account(_ r: LeaseRegistration) -> UInt32 {
    let hash = LeaseHash.of(r.account)
    let found = findAccount(hash, r.account)
    if found != 0 { return found }
    let account = newAccount(r.account, bucket: r.bucket, lessee: lessee)
    guard account != 0 else { return 0 }
    accountIndex.insert(hash, account)
    accounts[account].epochGeneration = generation
    accounts[account].globalVersion = r.globalVersion
    accounts[account].accountVersion = r.accountVersion
    return account
  }

  mutating func newAccount(_ name: [UInt8], bucket: Int, lessee: UInt64) -> UInt32 {
    var account = LeaseAccount()
    account.name = bytes.insert(name)
    guard account.name != 0 else { return 0 }
    account.flags = LeaseAccount.isLive
    account.lessee = lessee
    account.bucket = UInt16(truncatingIfNeeded: bucket)
    let index = accounts.allocate(account)
    if index == 0 { bytes.release(account.name) }
    return index
  }

  private mutating func portion(
    _ key: LeasePortionKey, of account: UInt32, _ r: LeaseRegistration
  ) -> UInt32 {
    let hash = LeaseHash.mix(
      LeaseHash.of(key.name) ^ UInt64(bitPattern: key.start), UInt64(account) << 32 | 0x9E37_79B9)
    var cursor = portionIndex.first(hash)
    while cursor.index != 0 {
      let portion = cursor.index
      if portions[portion].hash == hash, portions[portion].account == account,
        portions[portion].start == key.start, portions[portion].kind == key.kind.rawValue,
        unsafe key.name.withUnsafeBytes({ unsafe bytes.equals(portions[portion].name, $0) })
      {
        portions[portion].end = key.end
        let limits = bytes.share(key.limits)
        guard limits != 0 else { return 0 }
        bytes.release(portions[portion].limits, isShared: true)
        portions[portion].limits = limits
        return portion
      }
      portionIndex.next(&cursor)
    }
    let portion = newPortion(key, hash, of: account)
    guard portion != 0 else { return 0 }
    // A guess, that holds as much whatever it shall cover.
    let guess = min(configuration.targetMax, max(0, r.demand) &* 8)
    portions[portion].rate = guess * configuration.coverMilliseconds / coverMilliseconds
    portions[portion].foldedAt = r.now
    portions[portion].usedAt = r.now
    portionIndex.insert(hash, portion)
    return portion
  }

  mutating func newPortion(
    _ key: LeasePortionKey, _ hash: UInt64, of account: UInt32
  ) -> UInt32 {
    var portion = LeasePortion()
    portion.name = bytes.insert(key.name)
    portion.limits = bytes.share(key.limits)
    portion.flags = LeasePortion.isLive
    portion.kind = key.kind.rawValue
    portion.account = account
    portion.hash = hash
    portion.start = key.start
    portion.end = key.end
    portion.low = .min
    let index = portion.name == 0 || portion.limits == 0 ? 0 : portions.allocate(portion)
    guard index != 0 else {
      bytes.release(portion.name)
      bytes.release(portion.limits, isShared: true)
      return 0
    }
    let first = accounts[account].portions
    portions[index].next = first
    if first != 0 { portions[first].previous = index }
    accounts[account].portions = index
    accounts[account].portionCount += 1
    return index
  }

  /// The entry of this key that means the same as before, or a new one.
  private mutating func entry(
    _ r: LeaseRegistration, _ account: UInt32, _ wanted: [LeaseReference]
  ) -> UInt32 {
    let hash = LeaseHash.of(r.key)
    let old = unsafe r.key.withUnsafeBytes { unsafe findEntry(hash, $0) }
    if old != 0, isSame(old, r, account, wanted) { return old }
    // The old one goes after the new one stands: it may be the last to refer to what they share.
    let entry = newEntry(r.key, hash, r.definition, of: account, wanted, items: r.items.count)
    if old != 0 {
      entries[old].set(LeaseEntry.isReplaced, true)
      retire(old)
    }
    if entry != 0 { keyIndex.insert(hash, entry) }
    return entry
  }

  mutating func newEntry(
    _ key: [UInt8], _ hash: UInt64, _ definition: [UInt8], of account: UInt32,
    _ wanted: [LeaseReference], items count: Int
  ) -> UInt32 {
    var entry = LeaseEntry()
    entry.account = account
    entry.hash = hash
    entry.flags = LeaseEntry.isLive
    entry.itemCount = UInt8(count)
    entry.referenceCount = UInt8(wanted.count)
    entry.judgedCount = UInt8(wanted.count { portions[$0.portion].isJudged })
    if wanted.count == 1, count == 1 { entry.portion = wanted[0].portion }
    entry.born = ring.head
    entry.through = ring.head
    entry.sent = ring.head
    entry.key = bytes.insert(key)
    entry.definition = bytes.share(definition)
    entry.items = items.allocate(LeaseItem(), run: count)
    if !wanted.isEmpty {
      entry.references = references.allocate(LeaseReference(), run: wanted.count)
    }
    let isWhole =
      entry.key != 0 && entry.definition != 0 && entry.items != 0
      && (wanted.isEmpty || entry.references != 0)
    let index = isWhole ? entries.allocate(entry) : 0
    guard index != 0 else {
      bytes.release(entry.key)
      bytes.release(entry.definition, isShared: true)
      if entry.items != 0 { items.release(entry.items, run: count) }
      if entry.references != 0 { references.release(entry.references, run: wanted.count) }
      return 0
    }
    for (place, reference) in wanted.enumerated() {
      references[entry.references + UInt32(place)] = reference
      portions[reference.portion].references += 1
    }
    accounts[account].entryCount += 1
    return index
  }

  private func isSame(
    _ entry: UInt32, _ r: LeaseRegistration, _ account: UInt32, _ wanted: [LeaseReference]
  ) -> Bool {
    let e = entries[entry]
    guard e.account == account, Int(e.itemCount) == r.items.count,
      Int(e.referenceCount) == wanted.count,
      unsafe r.definition.withUnsafeBytes({ unsafe bytes.equals(e.definition, $0) })
    else { return false }
    return wanted.enumerated().allSatisfy { place, reference in
      let own = references[e.references + UInt32(place)]
      return own.portion == reference.portion && own.item == reference.item
    }
  }

  // MARK: - Going

  /// Not found any more; gone as soon as all of it is settled and nothing of it can be cancelled.
  mutating func retire(_ entry: UInt32) {
    guard !entries[entry].has(LeaseEntry.isRetired) else { return }
    keyIndex.remove(entries[entry].hash, entry)
    entries[entry].set(LeaseEntry.isRetired, true)
    dropDenial(entry)
    releaseIfDone(entry)
  }

  mutating func releaseIfDone(_ entry: UInt32) {
    let e = entries[entry]
    guard e.has(LeaseEntry.isRetired), !e.has(LeaseEntry.isDirty), !e.has(LeaseEntry.isInFlight),
      !e.has(LeaseEntry.isReplaced) || e.sent <= ring.tail
    else { return }
    for place in 0..<UInt32(e.referenceCount) {
      let portion = references[e.references + place].portion
      portions[portion].references -= 1
      releaseIfUnused(portion)
    }
    dropDenial(entry)
    bytes.release(e.key)
    bytes.release(e.definition, isShared: true)
    bytes.release(e.template, isShared: true)
    items.release(e.items, run: Int(e.itemCount))
    if e.referenceCount > 0 { references.release(e.references, run: Int(e.referenceCount)) }
    entries[entry].flags = 0
    entries.release(entry)
    accounts[e.account].entryCount -= 1
    releaseIfUnused(account: e.account)
  }

  mutating func releaseIfUnused(_ portion: UInt32) {
    let p = portions[portion]
    let kept = LeasePortion.isWanting | LeasePortion.isInWheel | LeasePortion.isOut
    guard p.references == 0, p.has(LeasePortion.isLive), p.flags & kept == 0, p.left <= 0,
      p.inFlight == 0, p.targetInFlight < 0, p.open == 0, p.place == 0
    else { return }
    portionIndex.remove(p.hash, portion)
    if p.previous != 0 { portions[p.previous].next = p.next }
    if p.next != 0 { portions[p.next].previous = p.previous }
    if accounts[p.account].portions == portion { accounts[p.account].portions = p.next }
    accounts[p.account].portionCount -= 1
    bytes.release(p.name)
    bytes.release(p.limits, isShared: true)
    portions[portion].flags = 0
    portions.release(portion)
    releaseIfUnused(account: p.account)
  }

  mutating func releaseIfUnused(account: UInt32) {
    let a = accounts[account]
    guard a.has(LeaseAccount.isLive), a.entryCount == 0, a.portionCount == 0, a.exchange == 0,
      !a.has(LeaseAccount.isQueued), !a.has(LeaseAccount.isUrgent)
    else { return }
    if a.has(LeaseAccount.isGhost) {
      ghosts -= 1
    } else {
      accountIndex.remove(unsafe LeaseHash.of(bytes.bytes(a.name)), account)
    }
    bytes.release(a.name)
    accounts[account].flags = 0
    accounts.release(account)
  }

  // MARK: - Changes

  /// Nothing of the account is spent until it is registered anew; what it holds is given back.
  mutating func outdate(_ account: UInt32) {
    accounts[account].generation &+= 1
    recall(account)
  }

  /// What nobody has used is given back, and nothing of it is spent before that is answered.
  mutating func recall(_ account: UInt32) {
    var portion = accounts[account].portions
    while portion != 0 {
      let next = portions[portion].next
      // Nor is anything acquired any more that was wanted under what was in force before.
      if portions[portion].isJudged,
        portions[portion].left > 0 || portions[portion].targetInFlight > 0
          || portions[portion].has(LeasePortion.isWanting)
      {
        portions[portion].set(LeasePortion.isRecalled, true)
        portions[portion].reckon()
        want(portion)
      }
      portion = next
    }
  }

  mutating func dropDenial(_ entry: UInt32) {
    let denial = entries[entry].denial
    guard denial != 0 else { return }
    bytes.release(denials[denial].template, isShared: true)
    denials.release(denial)
    entries[entry].denial = 0
  }

  /// Redis denied an operation of this key. False: the key is not known, or no longer as it is now.
  mutating func noteDenial(_ note: LeaseDenialNote) -> Bool {
    let hash = LeaseHash.of(note.key)
    let entry = unsafe note.key.withUnsafeBytes { unsafe findEntry(hash, $0) }
    guard entry != 0,
      entries[entry].generation == accounts[entries[entry].account].generation
    else { return false }
    guard entries[entry].itemCount == 1,
      note.confirmedAt >= accounts[entries[entry].account].changedAt,
      note.confirmedAt >= accounts[entries[entry].account].correctedAt,
      note.confirmedAt >= changedAt, let packed = TemplateBytes.pack(note.template)
    else { return true }
    dropDenial(entry)
    var denial = LeaseDenial()
    denial.template = bytes.share(packed)
    guard denial.template != 0 else { return true }
    denial.reason = note.reason
    denial.reset = note.reset
    // Where others hold some of it, that may come back at any moment. What is settled comes back
    // when some of it is refunded, of which all are told, or cancelled, of which other sidecars do
    // not tell.
    denial.until =
      note.confirmedAt
      + (note.isSettledAlone
        ? LeaseDenialNote.settledNanoseconds : LeaseDenialNote.heldNanoseconds)
    denial.amount = note.isSettledAlone ? 1 : note.amount
    denial.amountMax = max(denial.amount, note.amountMax)
    denial.generation = entries[entry].generation
    denial.corrections = accounts[entries[entry].account].corrections
    entries[entry].denial = denials.allocate(denial)
    if entries[entry].denial == 0 { bytes.release(denial.template, isShared: true) }
    return true
  }
}

/// A denial by Redis that may be answered from memory for a while.
package struct LeaseDenialNote: Sendable {
  package static let heldNanoseconds: Int64 = 10_000_000
  package static let settledNanoseconds: Int64 = 1_000_000_000

  package var key: [UInt8]
  package var reason: LeaseDenialReason
  /// Of the one item that was denied.
  package var amount: Int64
  /// Of greater ones the same would not be true.
  package var amountMax: Int64
  /// Settled alone is the amount of the limit or more; else others' holds are among it.
  package var isSettledAlone: Bool
  /// Wall ms.
  package var reset: Int64
  /// When the decision was sent.
  package var confirmedAt: Int64
  package var template: LeaseTemplate

  package init(
    key: [UInt8], reason: LeaseDenialReason, amount: Int64, amountMax: Int64,
    isSettledAlone: Bool, reset: Int64, confirmedAt: Int64,
    template: LeaseTemplate
  ) {
    self.key = key
    self.reason = reason
    self.amount = amount
    self.amountMax = amountMax
    self.isSettledAlone = isSettledAlone
    self.reset = reset
    self.confirmedAt = confirmedAt
    self.template = template
  }
}
