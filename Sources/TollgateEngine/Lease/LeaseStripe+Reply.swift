// Exchanges come back: answered, unanswered, or not sent at all.

import TollgateCore

extension LeaseStripe {
  /// Redis did all of it, or had done it before. One reply for each account, in their order.
  mutating func replied(_ number: UInt32, _ replies: [LeaseReply], now: Int64) {
    guard let pending = take(number), replies.count == pending.accounts.count else { return }
    for (batch, place) in zip(pending.entries, pending.places)
    where batch.amounts.contains(where: { $0 < 0 }) {
      // What a cancel gave back is there only now.
      correct(pending.accounts[place].account, now: now)
    }
    done(pending)
    for (part, reply) in zip(pending.accounts, replies) {
      switch reply {
      case .held(let states, let isProlonged):
        guard states.count == part.portions.count else {
          // Not the reply to this exchange; what is held is not known then, so nothing is spent.
          lose(part)
          continue
        }
        let account = part.account
        accounts[account].confirmedAt = max(accounts[account].confirmedAt, part.sentAt)
        if isProlonged {
          accounts[account].localEnd =
            part.sentAt
            + (configuration.leaseMilliseconds - configuration.marginMilliseconds) * 1_000_000
        }
        for (own, state) in zip(part.portions, states) { hear(own, state, now: now) }
      case .stale:
        accounts[part.account].changedAt = max(accounts[part.account].changedAt, part.sentAt)
        for own in part.portions { forgetTarget(own) }
        // Redis has ended the lease with this answer; the next exchange may take it up again.
        accounts[part.account].localEnd = min(accounts[part.account].localEnd, now)
        outdate(part.account)
      }
      land(part.account, now: now)
    }
  }

  /// It was sent, and nobody knows whether it was done.
  mutating func lost(_ number: UInt32) {
    guard var pending = exchanges[number], !pending.isWaiting else { return }
    pending.mayBeDone = true
    pending.isWaiting = true
    exchanges[number] = pending
    again[Int(line(of: pending.bucket))].append(number)
  }

  /// It did not leave, or Redis refused the whole call before it did anything.
  mutating func notSent(_ number: UInt32) {
    guard var pending = exchanges[number], !pending.isWaiting else { return }
    pending.isWaiting = true
    exchanges[number] = pending
    again[Int(line(of: pending.bucket))].append(number)
  }

  /// Its id is older than what Redis remembers: nothing was done by this call.
  /// - Parameter wasDone: what the ledger says of an earlier one; nil: nobody can say.
  /// - Returns: whether an earlier one may have been done, so that the batch is over here and its
  ///   deltas are the caller's to bring to the ledger. False: it goes out again under a new id,
  ///   and whoever brought its deltas, too, would count them twice.
  mutating func tooOld(_ number: UInt32, wasDone: Bool?, now: Int64) -> Bool {
    guard var pending = exchanges[number], !pending.isWaiting else { return false }
    if !pending.mayBeDone || wasDone == false {
      pending.mayBeDone = false
      pending.isRenewed = true
      pending.isWaiting = true
      exchanges[number] = pending
      again[Int(line(of: pending.bucket))].append(number)
      return false
    }
    if wasDone == nil {
      for entry in pending.entries {
        for amount in entry.amounts { unresolvedUnits += abs(amount) }
      }
    }
    exchanges[number] = nil
    done(pending)
    for part in pending.accounts {
      lose(part)
      land(part.account, now: now)
    }
    return true
  }

  /// What an open exchange settles is not forgotten: the ring turns no further than to the first of
  /// it. True: half a turn was made since, or so many are open that the log has no room for more.
  mutating func standsInTheWay(_ number: UInt32) -> Bool {
    guard let pending = exchanges[number] else { return false }
    let sent = pending.entries.map { entries[$0.entry].sent }.min() ?? ring.head
    if ring.head &- sent > ring.slots / 2 { return true }
    // It moves so many records at most in one go.
    for _ in 0..<8 where makeLogRoom(LeaseLog.payloadBytesMax, keeping: doneReserve) {
      return false
    }
    return true
  }

  /// It cannot be put into words, so nobody can settle it.
  mutating func abandon(_ number: UInt32, now: Int64) {
    guard exchanges[number] != nil else { return }
    exchanges[number]?.mayBeDone = true
    _ = tooOld(number, wasDone: nil, now: now)
  }

  // MARK: - Parts

  private mutating func take(_ number: UInt32) -> PendingExchange? {
    guard let pending = exchanges[number], !pending.isWaiting else { return nil }
    exchanges[number] = nil
    return pending
  }

  /// The batch is settled: its operations may be forgotten.
  private mutating func done(_ pending: PendingExchange) {
    if pending.logged != 0 { logDone(pending) }
    for batch in pending.entries {
      let entry = batch.entry
      let first = entries[entry].items
      for (index, amount) in batch.amounts.enumerated() {
        items[first + UInt32(index)].inFlight = 0
        unsettledUnits -= max(0, amount)
        creditUnits -= max(0, -amount)
      }
      entries[entry].set(LeaseEntry.isInFlight, false)
      settled(entry)
    }
  }

  mutating func settled(_ entry: UInt32) {
    unsettledOperations -= Int64(entries[entry].operationsInFlight)
    entries[entry].operationsInFlight = 0
    entries[entry].through = max(entries[entry].through, entries[entry].sent)
    releaseIfDone(entry)
  }

  private mutating func hear(
    _ own: PendingExchange.Portion, _ state: LeaseReply.Portion, now: Int64
  ) {
    let portion = own.portion
    portions[portion].set(LeasePortion.isOut, false)
    let before = max(0, portions[portion].left - portions[portion].inFlight)
    portions[portion].inFlight = 0
    portions[portion].targetInFlight = -1
    // A counter that comes to the end of what can be counted would keep its whole batch from being
    // settled: Redis, which refuses what is too much, decides long before.
    if state.settled.magnitude > UInt64(LeaseConfiguration.settledMax) {
      outdate(portions[portion].account)
    }
    guard portions[portion].isJudged else { return releaseIfUnused(portion) }
    let left = max(0, state.left)
    portions[portion].left = left
    portions[portion].settled = state.settled
    portions[portion].held = max(0, state.held - left)
    if portions[portion].has(LeasePortion.isReturning) {
      portions[portion].set(LeasePortion.isRecalled | LeasePortion.isReturning, false)
    }
    // Less than was asked for: the edge is near.
    let isTight = own.target > 0 && left < own.target
    if own.target >= 0 { portions[portion].set(LeasePortion.isTight, isTight) }
    if isTight, left <= before {
      portions[portion].restUntil = now + configuration.restNanoseconds
    }
    portions[portion].reckon()
    portions[portion].low =
      portions[portion].has(LeasePortion.isTight) ? .min : LeaseRules.ceiling(left: left) / 4
    if left > 0 { enterWheel(portion, now: now) }
    releaseIfUnused(portion)
  }

  /// The settle was done; what the target did is not known.
  private mutating func forgetTarget(_ own: PendingExchange.Portion) {
    let portion = own.portion
    portions[portion].set(LeasePortion.isOut, false)
    var left = max(0, portions[portion].left - portions[portion].inFlight)
    if portions[portion].targetInFlight >= 0 {
      left = min(left, portions[portion].targetInFlight)
    }
    portions[portion].left = left
    portions[portion].inFlight = 0
    portions[portion].targetInFlight = -1
    portions[portion].reckon()
    releaseIfUnused(portion)
  }

  private mutating func lose(_ part: PendingExchange.Account) {
    for own in part.portions { forgetTarget(own) }
    accounts[part.account].localEnd = .min
  }

  /// The account may be exchanged again.
  private mutating func land(_ account: UInt32, now: Int64) {
    accounts[account].exchange = 0
    let isCalling = accounts[account].has(LeaseAccount.isCalling)
    accounts[account].set(LeaseAccount.isCalling, false)
    if isCalling || accounts[account].wantFirst != 0 {
      hurry(account)
    } else if accounts[account].dirtyFirst != 0 {
      queue(account, since: entries[accounts[account].dirtyFirst].dirtySince)
    } else {
      releaseIfUnused(account: account)
    }
  }

  // MARK: - What everybody is told

  /// Something about this account's configuration or counters was changed by somebody.
  mutating func configChanged(_ name: [UInt8], now: Int64) {
    let account = findAccount(LeaseHash.of(name), name)
    guard account != 0 else { return }
    accounts[account].changedAt = max(accounts[account].changedAt, now)
    outdate(account)
  }

  /// Something about everybody's; what each holds is given back when it is registered again.
  mutating func configChanged(now: Int64) {
    changedAt = max(changedAt, now)
    generation &+= 1
  }

  /// Somebody needs what this one may be holding idle.
  mutating func recall(_ name: [UInt8], now: Int64) {
    let account = findAccount(LeaseHash.of(name), name)
    guard account != 0 else { return }
    recall(account)
    var portion = accounts[account].portions
    while portion != 0 {
      portions[portion].restUntil = now + configuration.restNanoseconds
      portion = portions[portion].next
    }
  }

  /// What the next exchange of a stale account is to name.
  mutating func versions(_ name: [UInt8], globalVersion: Int64, accountVersion: Int64) {
    let account = findAccount(LeaseHash.of(name), name)
    guard account != 0,
      globalVersion > accounts[account].globalVersion
        || accountVersion > accounts[account].accountVersion
    else { return }
    // Exchanges that name them are not stale any more, so nothing older may be spent.
    outdate(account)
    accounts[account].globalVersion = max(accounts[account].globalVersion, globalVersion)
    accounts[account].accountVersion = max(accounts[account].accountVersion, accountVersion)
  }

  /// The bucket began anew: what was held there is gone. What is unsettled will be counted.
  mutating func epochChanged(bucket: Int) {
    for account in accounts.indices
    where accounts[account].has(LeaseAccount.isLive) && Int(accounts[account].bucket) == bucket {
      accounts[account].localEnd = .min
      // Before others are granted what it has used.
      if accounts[account].dirtyFirst != 0 { hurry(account) }
      var portion = accounts[account].portions
      while portion != 0 {
        portions[portion].left = 0
        portions[portion].restUntil = .min
        portions[portion].set(LeasePortion.isTight, false)
        portions[portion].reckon()
        portion = portions[portion].next
      }
    }
  }
}
