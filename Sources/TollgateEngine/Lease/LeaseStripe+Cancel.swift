// CANCEL of an operation that was let through here. What is not in a batch yet is un-spent; what is
// becomes a credit of its entry, which later spends absorb, and which is settled as a refund where
// none come. Either way a correction lies in the ring, so that a recovery comes to the same sum.

import TollgateCore

extension LeaseStripe {
  mutating func known(_ request: borrowing LeaseRequest) -> LeaseKnown { find(request).known }

  /// What became of it, and where it lies. An unknown id is marked.
  private mutating func find(
    _ request: borrowing LeaseRequest
  ) -> (known: LeaseKnown, position: UInt64) {
    // Also of one that is known: to make room for its correction others are forgotten.
    ring.wall = request.wall
    let position = ring.find(request.high, request.low)
    guard position != 0 else {
      if Int64(request.high >> 16) <= ring.horizon { return (.tooOld, 0) }
      if ring.isForgotten(request.high, request.low) { return (.tooOld, 0) }
      // What Redis refuses by its time is counted nowhere.
      if Int64(request.high >> 16) <= request.wall &+ LeaseRing.aheadMax {
        mark(request.high, request.low)
      }
      return (.unknown, 0)
    }
    let slot = ring.slot(position)
    let known: LeaseKnown
    switch slot.kind {
    case .none, .continuation, .correction, .marker: return (.unknown, position)
    case .operation: known = .allowed
    case .cancelled: known = .cancelled
    case .denied: known = .denied(slot.denial ?? .quota)
    }
    if case .mismatch(let item, let keyOffset)? = unsafe mismatch(
      position, slot, request.key, request.hash, request.amounts)
    {
      return (.mismatch(item: item, keyOffset: keyOffset), position)
    }
    return (known, position)
  }

  mutating func cancel(_ request: borrowing LeaseRequest) -> LeaseCancel {
    let (known, position) = find(request)
    switch known {
    case .allowed: break
    case .cancelled: return .already
    case .denied(let reason): return .denied(reason)
    case .mismatch(let item, let keyOffset): return .mismatch(item: item, keyOffset: keyOffset)
    case .tooOld: return .tooOld
    case .unknown: return .unknown
    }
    let slot = ring.slot(position)

    let isOwn =
      entries.contains(slot.entry) && entries[slot.entry].has(LeaseEntry.isLive)
      && entries[slot.entry].born <= position
    let entry = unsafe isOwn ? slot.entry : findEntry(request.hash, request.key)
    guard entry != 0, Int(entries[entry].itemCount) == slot.items else { return .unregistered }
    let span = LeaseRing.length(items: slot.items)
    let isUnsettled = isOwn && position >= entries[entry].sent
    // What was settled and is taken back is lost with this process, too, until Redis knows of it.
    var sum: Int64 = 0
    for index in 0..<slot.items { sum += unsafe request.amounts[index] }
    guard isUnsettled || creditUnits == 0 || sum <= unsettledUnitsMax - creditUnits else {
      return .full
    }
    guard makeRoom(span, keeping: 0), entries[entry].logged != 0 || define(entry) else {
      return .full
    }
    unsafe putMore(request.amounts, entry: entry, sign: -1)
    ring.append(
      LeaseSlot(
        high: request.high, low: request.low, amount: -slot.amount, tag: slot.tag, entry: entry,
        kind: .correction, items: slot.items), span: span, linked: false)
    // Room was made by forgetting old ones, and this may have been among them.
    if position >= ring.tail { ring.cancel(position) }

    let e = entries[entry]
    for index in 0..<slot.items {
      let amount = unsafe request.amounts[index]
      let item = e.items + UInt32(index)
      guard isUnsettled else {
        items[item].credit += amount
        creditUnits += amount
        continue
      }
      items[item].open -= amount
      unsettledUnits -= amount
      for place in 0..<UInt32(e.referenceCount) {
        let reference = references[e.references + place]
        guard reference.item == UInt32(index) else { continue }
        portions[reference.portion].open -= amount
        portions[reference.portion].reckon()
      }
    }
    soil(entry, now: request.now)
    correct(entries[entry].account, now: request.now)
    return .cancelled
  }

  /// Something of the account was taken back: what was denied may be there now.
  mutating func correct(_ account: UInt32, now: Int64) {
    accounts[account].corrections &+= 1
    accounts[account].correctedAt = max(accounts[account].correctedAt, now)
  }

  /// The same, by Redis.
  mutating func corrected(_ name: [UInt8], now: Int64) {
    let account = findAccount(LeaseHash.of(name), name)
    if account != 0 { correct(account, now: now) }
  }
}
