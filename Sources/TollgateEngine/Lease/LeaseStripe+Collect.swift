// Exchanges go out: what is due of a bucket, as one batch under one id. An account is in at most
// one exchange at a time. Where the outcome of one is not known, the same batch goes out again
// under the same id; a batch is in the log before it is sent.

import TollgateCore

/// An exchange that is not answered yet.
struct PendingExchange {
  struct Account {
    var account: UInt32
    var portions: [Portion]
    var sentAt: Int64
  }

  struct Portion {
    var portion: UInt32
    var settle: Int64
    var target: Int64
  }

  struct Entry {
    var entry: UInt32
    var amounts: [Int64]
  }

  var id: OperationID
  var bucket: Int
  var accounts: [Account] = []
  var entries: [Entry] = []
  /// Where each entry's account stands in `accounts`.
  var places: [Int] = []
  var deltaCount = 0
  var portionCount = 0
  /// Of its record in the log; 0: it settles nothing.
  var logged: UInt64 = 0
  /// It was sent once, and nobody knows what became of it.
  var mayBeDone = false
  var isWaiting = false
  /// Its id is too old to be executed: a new one takes its place when it is sent again.
  var isRenewed = false
}

extension LeaseStripe {
  /// What is to be sent now for this bucket; nil: nothing is due. Asked again until nil.
  /// - Parameter isSpare: what is a tick old may go; else only what wants to be exchanged at once
  ///   and what has waited for `settle`. With either goes what would soon follow it.
  /// - Parameter settle: nanoseconds; see `LeaseTable.collect`.
  mutating func collect(
    bucket: Int, now: Int64, id: () -> OperationID, isSpare: Bool, settle: Int64
  ) -> LeaseExchange? {
    // A lease is prolonged by its settling, thrice before it ends.
    let third = (configuration.leaseMilliseconds - configuration.marginMilliseconds) * 333_333
    settleNanoseconds = max(configuration.settleNanoseconds, min(settle, third))
    upkeep(now: now)
    let line = line(of: bucket)
    if let number = again[Int(line)].popLast() { return sendAgain(number, now: now, id: id()) }
    guard lines[line].first != 0 || lines[line].urgentFirst != 0,
      makeLogRoom(LeaseLog.payloadBytesMax, keeping: doneReserve)
    else { return nil }
    // So much unsettled would soon leave no room for more, in the ring or in what may be lost.
    let isPressed =
      isFull || isClosing
      || unsettledOperations > min(unsettledOperationsMax, Int64(clamping: ring.slots / 2)) / 4 * 3
      || unsettledUnits > unsettledUnitsMax / 2
    let due =
      isSpare || isPressed
      ? now : now &- max(0, settleNanoseconds &- configuration.tickNanoseconds)
    let isDue = lines[line].first != 0 && accounts[lines[line].first].dueAt <= due
    guard isDue || lines[line].urgentFirst != 0 else {
      isFull = false
      return nil
    }
    // Accounts that are settled together are due together from then on: a call for many of them,
    // and each as seldom as may be. Who only wants units brings none of those that are young.
    let along = isDue ? now : now &- settleNanoseconds / 4 * 3
    var by = due
    var pending = PendingExchange(id: id(), bucket: bucket)
    // Whoever is passed over is looked at again when what keeps it is over.
    var looked = 0
    while looked < configuration.accountsPerExchangeMax,
      pending.deltaCount < configuration.deltasMax,
      pending.portionCount < configuration.portionsPerExchangeMax
    {
      let next = nextDue(line, by: by)
      guard next != 0 else { break }
      // A call is one lessee's: what an earlier incarnation left is settled in calls of its own.
      if let first = pending.accounts.first?.account,
        accounts[first].lessee != accounts[next].lessee
      {
        break
      }
      let (account, isUrgent) = popDue(line, by: by)
      looked += 1
      if !isUrgent, isYoung(account, by: by) { continue }
      take(account, isUrgent: isUrgent, into: &pending, now: now)
      guard !pending.accounts.isEmpty else { continue }
      by = pending.accounts.count < configuration.accountsAlongMax ? max(due, along) : due
    }
    guard !pending.accounts.isEmpty else { return nil }
    let number = nextExchange
    nextExchange &+= 1
    for account in pending.accounts { accounts[account.account].exchange = number }
    if !pending.entries.isEmpty { pending.logged = logSent(pending, replacing: nil) }
    let exchange = describe(pending, number, now: now, isRepeat: false)
    exchanges[number] = pending
    return exchange
  }

  private mutating func sendAgain(_ number: UInt32, now: Int64, id: OperationID) -> LeaseExchange? {
    guard var pending = exchanges[number] else { return nil }
    pending.isWaiting = false
    if pending.isRenewed {
      guard makeLogRoom(LeaseLog.payloadBytesMax, keeping: doneReserve) else {
        again[Int(line(of: pending.bucket))].append(number)
        return nil
      }
      let old = pending.id
      pending.id = id
      pending.isRenewed = false
      if !pending.entries.isEmpty { pending.logged = logSent(pending, replacing: old) }
    }
    for index in pending.accounts.indices { pending.accounts[index].sentAt = now }
    exchanges[number] = pending
    return describe(pending, number, now: now, isRepeat: pending.mayBeDone)
  }

  // MARK: - One account

  /// True: what stood in line was settled meanwhile, and what came since waits for its own time.
  private mutating func isYoung(_ account: UInt32, by: Int64) -> Bool {
    let entry = accounts[account].dirtyFirst
    guard entry != 0, accounts[account].exchange == 0 else { return false }
    let since = entries[entry].dirtySince
    guard since &+ configuration.tickNanoseconds > by else { return false }
    queue(account, since: since)
    return true
  }

  private mutating func take(
    _ account: UInt32, isUrgent: Bool, into pending: inout PendingExchange, now: Int64
  ) {
    guard accounts[account].exchange == 0 else {
      // What is dirty stands in line again when that exchange is answered.
      if isUrgent { accounts[account].set(LeaseAccount.isCalling, true) }
      return
    }
    var part = PendingExchange.Account(account: account, portions: [], sentAt: now)
    var later: [UInt32] = []
    while accounts[account].dirtyFirst != 0 {
      let entry = accounts[account].dirtyFirst
      let e = entries[entry]
      guard pending.deltaCount + Int(e.itemCount) <= configuration.deltasMax,
        pending.portionCount + part.portions.count + Int(e.referenceCount)
          <= configuration.portionsPerExchangeMax
      else { break }
      accounts[account].dirtyFirst = e.dirtyNext
      if e.dirtyNext == 0 { accounts[account].dirtyLast = 0 }
      entries[entry].set(LeaseEntry.isDirty, false)
      if settle(entry, into: &pending, &part, now: now) { later.append(entry) }
    }
    // Settled portions say what they want, too; the others come after them.
    while accounts[account].wantFirst != 0,
      pending.portionCount + part.portions.count < configuration.portionsPerExchangeMax
    {
      let portion = accounts[account].wantFirst
      accounts[account].wantFirst = portions[portion].wantNext
      portions[portion].set(LeasePortion.isWanting, false)
      _ = place(portion, in: &part)
    }
    for index in part.portions.indices {
      let portion = part.portions[index].portion
      portions[portion].place = 0
      portions[portion].set(LeasePortion.isOut, true)
      portions[portion].inFlight = max(0, part.portions[index].settle)
      guard portions[portion].isJudged else { continue }
      portions[portion].set(
        LeasePortion.isReturning, portions[portion].has(LeasePortion.isRecalled))
      let target = target(portion, now: now)
      part.portions[index].target = target
      portions[portion].targetInFlight = target
      portions[portion].reckon()
      portions[portion].low = .min
    }
    for entry in later {
      let since = entries[entry].dirtySince
      soil(entry, now: now)
      entries[entry].dirtySince = since
    }
    if accounts[account].dirtyFirst != 0 { queue(account, since: now) }
    if accounts[account].wantFirst != 0 { accounts[account].set(LeaseAccount.isCalling, true) }
    guard !part.portions.isEmpty || pending.places.contains(pending.accounts.count) else {
      return releaseIfUnused(account: account)
    }
    pending.portionCount += part.portions.count
    pending.accounts.append(part)
  }

  /// The place of a portion among those of the account's part.
  private mutating func place(
    _ portion: UInt32, in part: inout PendingExchange.Account
  ) -> Int {
    if portions[portion].place == 0 {
      part.portions.append(PendingExchange.Portion(portion: portion, settle: 0, target: -1))
      portions[portion].place = UInt32(part.portions.count)
    }
    return Int(portions[portion].place) - 1
  }

  /// Moves what the entry has to settle into the batch. True: a correction stays and waits.
  private mutating func settle(
    _ entry: UInt32, into pending: inout PendingExchange, _ part: inout PendingExchange.Account,
    now: Int64
  ) -> Bool {
    let e = entries[entry]
    let range = e.items..<e.items + UInt32(e.itemCount)
    // All of it or nothing: what is before `sent` is in the batch, for a recovery, too.
    if now &- e.dirtySince < configuration.correctionNanoseconds,
      range.contains(where: { items[$0].credit > items[$0].open })
    {
      return true
    }
    // What absorbs a correction wholly is in no batch: the log says by a definition that both are
    // done with, or a recovery that finds only the later one would settle it.
    if range.allSatisfy({ items[$0].credit == items[$0].open }) {
      let before = e.through
      entries[entry].through = ring.head
      guard define(entry) else {
        entries[entry].through = before
        return true
      }
    }
    var amounts: [Int64] = []
    for item in range {
      let state = items[item]
      let amount = state.open - state.credit
      unsettledUnits -= min(state.open, state.credit)
      creditUnits -= min(state.open, state.credit)
      items[item].open = 0
      items[item].credit = 0
      items[item].inFlight = amount
      amounts.append(amount)
      for index in 0..<UInt32(e.referenceCount) {
        let reference = references[e.references + index]
        guard e.items + reference.item == item, state.open != 0 || amount != 0 else { continue }
        portions[reference.portion].open -= state.open
        part.portions[place(reference.portion, in: &part)].settle += amount
      }
    }
    entries[entry].sent = ring.head
    entries[entry].operationsInFlight = e.operations
    entries[entry].operations = 0
    guard amounts.contains(where: { $0 != 0 }) else {
      settled(entry)
      return false
    }
    entries[entry].set(LeaseEntry.isInFlight, true)
    pending.entries.append(PendingExchange.Entry(entry: entry, amounts: amounts))
    pending.places.append(pending.accounts.count)
    pending.deltaCount += amounts.count { $0 != 0 }
    return false
  }

  // MARK: - In words

  /// What is sent: ordinals rise with every send, so that an old copy changes nothing any more.
  private mutating func describe(
    _ pending: PendingExchange, _ number: UInt32, now: Int64, isRepeat: Bool
  ) -> LeaseExchange {
    var exchange = LeaseExchange(
      token: .init(bucket: pending.bucket, number: number), id: pending.id, isRepeat: isRepeat,
      accounts: [], deltas: [])
    for part in pending.accounts {
      let account = part.account
      accounts[account].ordinal += 1
      let a = accounts[account]
      exchange.accounts.append(
        .init(
          name: bytes.array(a.name), lessee: a.lessee, ordinal: a.ordinal,
          isWhole: now >= a.localEnd && !hasJudgedUnits(account),
          globalVersion: a.globalVersion, accountVersion: a.accountVersion,
          portions: part.portions.map {
            .init(key: key(of: $0.portion), settle: $0.settle, target: $0.target)
          }))
    }
    for (entry, place) in zip(pending.entries, pending.places) {
      let e = entries[entry.entry]
      let key = bytes.array(e.key)
      let definition = bytes.array(e.definition)
      for (item, amount) in entry.amounts.enumerated() where amount != 0 {
        exchange.deltas.append(
          .init(account: place, key: key, definition: definition, item: item, amount: amount))
      }
    }
    return exchange
  }

  func key(of portion: UInt32) -> LeasePortionKey {
    let p = portions[portion]
    return LeasePortionKey(
      LeasePortionKey.Kind(rawValue: p.kind) ?? .count, name: bytes.array(p.name),
      limits: bytes.array(p.limits), start: p.start, end: p.end)
  }

  /// Something of it is spent from what is held, and in no batch.
  private func hasJudgedUnits(_ account: UInt32) -> Bool {
    var entry = accounts[account].dirtyFirst
    while entry != 0 {
      let e = entries[entry]
      if e.judgedCount > 0,
        (e.items..<e.items + UInt32(e.itemCount)).contains(where: { items[$0].open > 0 })
      {
        return true
      }
      entry = e.dirtyNext
    }
    return false
  }
}
