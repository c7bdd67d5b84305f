// The hot path: one operation against memory. No allocation, no reference counting, no closure;
// everything is checked before the first write, so that an operation is taken by all its portions
// or by none.

import TollgateCore

extension LeaseStripe {
  @inline(__always)
  mutating func spend(
    _ request: borrowing LeaseRequest, into out: UnsafeMutableRawBufferPointer
  ) -> LeaseOutcome {
    let isConsume = request.kind == .consume
    // First what needs no line of the ring's index: that is still on its way (`LeaseTable.expect`).
    let entry = unsafe findEntry(request.hash, request.key)
    if isConsume {
      let seen = ring.find(request.high, request.low)
      if seen != 0 { return unsafe recall(seen, request, into: out) }
      let time = Int64(request.high >> 16)
      if time <= ring.horizon { return .tooOld }
      if ring.isForgotten(request.high, request.low) { return .tooOld }
      ring.wall = request.wall
      let isAhead = time > request.wall &+ configuration.skewMilliseconds
      let isRedis = ring.isLeftToRedis(request.high, request.low)
      if isAhead || isRedis {
        // When it is asked again its time may have come: it is Redis's all the same. Of what Redis
        // refuses by its time nothing need be remembered.
        if time <= request.wall &+ LeaseRing.aheadMax { mark(request.high, request.low) }
        return missed(.future)
      }
    }
    guard entry != 0 else { return missed(.unknownKey) }
    let outcome = unsafe decide(entry, request, into: out)
    if case .miss(let reason) = outcome {
      // It goes to Redis: whatever becomes of it there, a retry goes there, too.
      if isConsume { mark(request.high, request.low) }
      heed(reason, entry, now: request.now)
      return missed(reason)
    }
    return outcome
  }

  /// What an exchange would mend does not wait for its time.
  private mutating func heed(_ reason: LeaseMiss, _ entry: UInt32, now: Int64) {
    switch reason {
    case .ringFull, .logFull, .exposed: isFull = true
    case .notFresh:
      // Its answer confirms the configuration.
      let e = entries[entry]
      guard accounts[e.account].exchange == 0, now < accounts[e.account].localEnd else { return }
      for place in 0..<UInt32(e.judgedCount) { want(references[e.references + place].portion) }
    default: break
    }
  }

  private mutating func missed(_ reason: LeaseMiss) -> LeaseOutcome {
    misses[Int(reason.rawValue)] &+= 1
    return .miss(reason)
  }

  @inline(__always)
  private mutating func decide(
    _ entry: UInt32, _ request: borrowing LeaseRequest,
    into out: UnsafeMutableRawBufferPointer
  ) -> LeaseOutcome {
    let e = unsafe entries.at(entry).pointee
    let now = request.now
    if let miss = unusable(e, request, out.count) { return .miss(miss) }
    if e.denial != 0, isDenied(e, request, out.count) {
      if request.kind == .consume, !noteDenied(entry, e, request) { return .miss(.ringFull) }
      return .denied(
        bytes: unsafe write(denials[e.denial], request, into: out, replayed: false))
    }
    let itemCount = Int(e.itemCount)
    let judged = Int(e.judgedCount)
    if judged > 0, now >= accounts[e.account].localEnd {
      // Prolonged, acquired, or taken up again; the first one to find it so asks.
      ask(entry, request)
      return .miss(.ended)
    }
    guard hasRoom(e, request, beside: 0) else {
      ask(entry, request)
      return .miss(.noRoom)
    }
    guard request.kind == .consume else {
      return .allowed(bytes: unsafe answer(e, request, into: out, replayed: false))
    }
    var sum: Int64 = 0
    for index in 0..<itemCount {
      let amount = unsafe request.amounts[index]
      guard amount >= 0, amount < LeaseSlot.amountMax else { return .miss(.shape) }
      sum &+= amount
    }
    guard unsettledOperations < unsettledOperationsMax, sum <= unsettledUnitsMax &- unsettledUnits
    else { return .miss(.exposed) }
    let span = LeaseRing.length(items: itemCount)
    guard makeRoom(span, keeping: ring.slots / 8) else { return .miss(.ringFull) }
    if !e.has(LeaseEntry.isLogged), !define(entry) { return .miss(.logFull) }

    // Nothing fails from here on.
    let first = LeaseSlot(
      high: request.high, low: request.low, amount: unsafe request.amounts[0],
      tag: UInt16(truncatingIfNeeded: request.hash), entry: entry, kind: .operation,
      items: itemCount)
    if span > 1 { unsafe putMore(request.amounts, entry: entry, sign: 1) }
    ring.append(first, span: span, linked: true)
    for index in 0..<itemCount {
      let item = unsafe items.at(e.items &+ UInt32(truncatingIfNeeded: index))
      unsafe item.pointee.open &+= request.amounts[index]
    }
    var isLow = false
    for index in 0..<judged {
      let reference = reference(index, of: e)
      let amount = unsafe request.amounts[Int(reference.item)]
      let portion = unsafe portions.at(reference.portion)
      let room = unsafe portion.pointee.room &- amount
      unsafe portion.pointee.room = room
      unsafe portion.pointee.open &+= amount
      unsafe portion.pointee.used &+= amount
      if unsafe room < portion.pointee.low { isLow = true }
    }
    for index in judged..<Int(e.referenceCount) {
      let reference = reference(index, of: e)
      unsafe portions.at(reference.portion).pointee.open &+= request.amounts[Int(reference.item)]
    }
    unsafe entries.at(entry).pointee.operations &+= 1
    unsafe entries.at(entry).pointee.usedAt = now
    unsettledUnits &+= sum
    unsettledOperations &+= 1
    if !e.has(LeaseEntry.isDirty) { soil(entry, now: now) }
    if isLow { refill(entry, now: now) }
    return .allowed(bytes: unsafe answer(e, request, into: out, replayed: false))
  }

  /// Why nothing can be said from memory, whatever is held.
  @inline(__always)
  private func unusable(
    _ e: LeaseEntry, _ request: borrowing LeaseRequest, _ space: Int
  ) -> LeaseMiss? {
    let account = unsafe accounts.at(e.account)
    guard unsafe e.generation == account.pointee.generation,
      unsafe account.pointee.epochGeneration == generation,
      request.wall < e.validUntil, request.wall >= e.validFrom
    else { return .outdated }
    let confirmed = unsafe account.pointee.confirmedAt
    let now = request.now
    guard
      now &- confirmed <= configuration.freshNanoseconds
        || (now <= freshUntil && confirmed >= unbrokenSince)
        || e.has(LeaseEntry.isStaleAllowed)
    else { return .notFresh }
    guard unsafe request.amounts.count == Int(e.itemCount),
      unsafe bytes.bytes(e.template).count <= space
    else { return .shape }
    return nil
  }

  @inline(__always)
  private func hasRoom(
    _ e: LeaseEntry, _ request: borrowing LeaseRequest, beside others: Int64
  ) -> Bool {
    for index in 0..<Int(e.judgedCount) {
      let reference = reference(index, of: e)
      let amount = unsafe request.amounts[Int(reference.item)] &+ others
      if unsafe amount > portions.at(reference.portion).pointee.room { return false }
    }
    return true
  }

  /// Whether an operation of a new id would be answered now, for all that can be told without
  /// counting, after so many units were taken of the same. Nothing changes.
  func wouldAnswer(
    _ request: borrowing LeaseRequest, space: Int, after others: Int64
  ) -> Bool {
    let entry = unsafe findEntry(request.hash, request.key)
    guard entry != 0 else { return false }
    let e = unsafe entries.at(entry).pointee
    guard unusable(e, request, space) == nil else { return false }
    if e.denial != 0, isDenied(e, request, space) { return true }
    let time = Int64(request.high >> 16)
    let now = request.now
    let wall = request.wall
    guard e.judgedCount == 0 || now < accounts[e.account].localEnd,
      hasRoom(e, request, beside: others), ring.find(request.high, request.low) == 0
    else { return false }
    guard !ring.isLeftToRedis(request.high, request.low) else { return false }
    return time > ring.horizon && time <= wall &+ configuration.skewMilliseconds
  }

  @inline(__always)
  private func reference(_ index: Int, of e: LeaseEntry) -> LeaseReference {
    e.portion != 0
      ? LeaseReference(portion: e.portion, item: 0)
      : references[e.references &+ UInt32(truncatingIfNeeded: index)]
  }

  /// The slots behind an operation's first.
  func putMore(_ amounts: UnsafeBufferPointer<Int64>, entry: UInt32, sign: Int64) {
    func at(_ index: Int) -> Int64 {
      index < amounts.count ? unsafe amounts[index] &* sign : 0
    }
    for slot in 0..<LeaseRing.length(items: amounts.count) - 1 {
      let index = 1 + slot * 3
      ring.put(
        more: LeaseSlot(more: at(index), at(index + 1), at(index + 2), entry: entry), at: slot)
    }
  }

  // MARK: - Answers

  /// Writes the entry's answer with the numbers of now.
  @inline(__always)
  func answer(
    _ e: LeaseEntry, _ request: borrowing LeaseRequest,
    into out: UnsafeMutableRawBufferPointer, replayed: Bool
  ) -> Int {
    let writer = unsafe TemplateWriter(bytes.bytes(e.template), into: out)
    for index in 0..<writer.patches {
      let patch = writer.patch(index)
      switch patch.field {
      case .time: writer.put(request.wall, patch)
      case .replayed: if replayed { writer.flag(patch) }
      case .retryAfter: break
      case .remaining, .settled, .held:
        guard patch.item < e.itemCount else { break }
        let state = items[e.items &+ UInt32(patch.item)]
        guard state.shown != 0 else { break }
        let portion = unsafe portions.at(state.shown)
        let settled =
          unsafe portion.pointee.settled &+ portion.pointee.inFlight &+ portion.pointee.open
        let held = unsafe portion.pointee.held
        switch patch.field {
        case .settled: writer.put(settled, patch)
        case .held: writer.put(held, patch)
        default:
          writer.put(min(max(0, state.amount &- settled &- held), Quantity.maximum), patch)
        }
      }
    }
    return writer.count
  }

  /// The entry's denial still holds, and for this amount.
  private func isDenied(
    _ e: LeaseEntry, _ request: borrowing LeaseRequest, _ space: Int
  ) -> Bool {
    let denial = denials[e.denial]
    guard denial.generation == accounts[e.account].generation,
      denial.corrections == accounts[e.account].corrections, request.now < denial.until,
      request.wall < denial.reset, unsafe request.amounts.count == 1,
      unsafe (denial.amount...denial.amountMax).contains(request.amounts[0])
    else { return false }
    return unsafe bytes.bytes(denial.template).count <= space
  }

  /// A retry of it is denied, too, even where what was asked for is there by then. False: that
  /// cannot be remembered, so that Redis is to answer.
  private mutating func noteDenied(
    _ entry: UInt32, _ e: LeaseEntry, _ request: borrowing LeaseRequest
  ) -> Bool {
    let amount = unsafe request.amounts[0]
    guard amount < LeaseSlot.amountMax, makeRoom(1, keeping: 0) else { return false }
    ring.append(
      LeaseSlot(
        high: request.high, low: request.low, amount: amount,
        tag: UInt16(truncatingIfNeeded: request.hash), entry: entry,
        denied: denials[e.denial].reason),
      span: 1, linked: true)
    return true
  }

  func write(
    _ denial: LeaseDenial, _ request: borrowing LeaseRequest,
    into out: UnsafeMutableRawBufferPointer, replayed: Bool
  ) -> Int {
    let writer = unsafe TemplateWriter(bytes.bytes(denial.template), into: out)
    for index in 0..<writer.patches {
      let patch = writer.patch(index)
      switch patch.field {
      case .time: writer.put(request.wall, patch)
      case .replayed: if replayed { writer.flag(patch) }
      case .retryAfter: writer.put(max(1, denial.reset &- request.wall), patch)
      case .remaining, .settled, .held: break
      }
    }
    return writer.count
  }

  // MARK: - Known ids

  /// What became of the operation at this position of the ring, if this is the same one.
  @inline(never)
  private mutating func recall(
    _ position: UInt64, _ request: borrowing LeaseRequest,
    into out: UnsafeMutableRawBufferPointer
  ) -> LeaseOutcome {
    let slot = ring.slot(position)
    switch slot.kind {
    case .marker: return missed(.marked)
    case .none, .continuation, .correction: return missed(.marked)
    case .operation, .cancelled, .denied: break
    }
    if let difference = unsafe mismatch(position, slot, request.key, request.hash, request.amounts)
    {
      return difference
    }
    if slot.kind == .cancelled { return .cancelled }
    let entry = unsafe findEntry(request.hash, request.key)
    if let reason = slot.denial {
      // It may be another limit's by now.
      guard entry != 0, entries[entry].denial != 0,
        denials[entries[entry].denial].reason == reason,
        unsafe bytes.bytes(denials[entries[entry].denial].template).count <= out.count
      else { return .knownDenied(reason) }
      let denial = denials[entries[entry].denial]
      return .denied(bytes: unsafe write(denial, request, into: out, replayed: true))
    }
    guard entry != 0, unsafe bytes.bytes(entries[entry].template).count <= out.count else {
      return .known
    }
    let e = entries[entry]
    return .replayed(bytes: unsafe answer(e, request, into: out, replayed: true))
  }

  /// nil: the same body, as far as can be told here.
  func mismatch(
    _ position: UInt64, _ slot: LeaseSlot, _ key: UnsafeRawBufferPointer, _ hash: UInt64,
    _ amounts: UnsafeBufferPointer<Int64>
  ) -> LeaseOutcome? {
    let isKnown =
      entries.contains(slot.entry) && entries[slot.entry].has(LeaseEntry.isLive)
      && entries[slot.entry].born <= position
    if slot.tag != UInt16(truncatingIfNeeded: hash)
      || (isKnown && entries[slot.entry].hash != hash)
    {
      guard isKnown else { return .mismatch(item: nil, keyOffset: -1) }
      let own = unsafe bytes.bytes(entries[slot.entry].key)
      var offset = 0
      while offset < min(own.count, key.count), unsafe own[offset] == key[offset] { offset += 1 }
      return .mismatch(item: nil, keyOffset: offset)
    }
    guard slot.items == amounts.count else { return .mismatch(item: nil, keyOffset: -1) }
    for index in 0..<amounts.count where unsafe amounts[index] != amount(index, position, slot) {
      return .mismatch(item: index, keyOffset: 0)
    }
    return nil
  }

  /// Of one item of the operation whose first slot is at `position`.
  func amount(_ item: Int, _ position: UInt64, _ slot: LeaseSlot) -> Int64 {
    guard item > 0 else { return slot.amount }
    let more = ring.slot(position + 1 + UInt64((item - 1) / 3))
    switch (item - 1) % 3 {
    case 0: return Int64(bitPattern: more.a)
    case 1: return Int64(bitPattern: more.b)
    default: return Int64(bitPattern: more.c)
    }
  }

  // MARK: - Room

  /// Forgets the oldest operations until so many more fit, as far as they are settled.
  @inline(__always)
  mutating func makeRoom(_ count: Int, keeping reserve: UInt64) -> Bool {
    let most = ring.slots &- reserve &- UInt64(truncatingIfNeeded: count)
    guard ring.count > most else { return true }
    return forget(most)
  }

  /// Some more than needed where the ring is long, so that the next ones need not look.
  @inline(never)
  private mutating func forget(_ most: UInt64) -> Bool {
    let ahead = min(32, ring.slots / 1024)
    while ring.count &+ ahead > most {
      let slot = ring.slot(ring.tail)
      if isUnsettled(slot, at: ring.tail) || !ring.forget(slot) { return ring.count <= most }
    }
    return true
  }

  @inline(__always)
  private func isUnsettled(_ slot: LeaseSlot, at position: UInt64) -> Bool {
    switch slot.kind {
    case .none, .marker, .denied: return false
    // Of an operation that stands before it, and is looked at first.
    case .continuation: return false
    case .operation, .correction, .cancelled:
      guard entries.contains(slot.entry), entries[slot.entry].has(LeaseEntry.isLive) else {
        return false
      }
      return entries[slot.entry].born <= position && position >= entries[slot.entry].through
    }
  }

  /// Leaves a marker: the operation is decided in Redis. Where none can be left, the ring
  /// knows it otherwise.
  @inline(never)
  mutating func mark(_ high: UInt64, _ low: UInt64) {
    guard makeRoom(1, keeping: 0) else {
      isFull = true
      return ring.leaveToRedis(high, low)
    }
    ring.append(
      LeaseSlot(high: high, low: low, amount: 0, tag: 0, entry: 0, kind: .marker, items: 0),
      span: 1, linked: true)
  }
}
