// Demand, and what follows from its absence: how much a portion should hold, when more is asked
// for, when it is given back, when an entry is forgotten.

import TollgateCore

extension LeaseStripe {
  /// After so long without use a portion is given back: not before two settles would have been due,
  /// or what comes a little less often would be taken up and given back each time.
  var idleNanoseconds: Int64 { max(configuration.idleNanoseconds, 2 * settleNanoseconds) }

  /// What had no lease is taken up again where it was asked for twice within this.
  var demandNanoseconds: Int64 { max(configuration.idleNanoseconds, settleNanoseconds) }

  /// What is used in so long a portion shall hold: between two settles no more is spent than half
  /// of the ceiling.
  var coverMilliseconds: Int64 { max(configuration.coverMilliseconds, settleNanoseconds / 250_000) }

  /// An operation found too little, or no lease: more is asked for, or, where Redis had no more to
  /// give, what is left is given back, so that the atomic decision sees all of it.
  @inline(never)
  mutating func ask(_ entry: UInt32, _ request: borrowing LeaseRequest) {
    let e = entries[entry]
    let isEnded = request.now >= accounts[e.account].localEnd
    entries[entry].usedAt = max(e.usedAt, request.now)
    // Nobody asked for long: a lease for the first who does would be given back unused.
    if isEnded, request.now &- e.usedAt > demandNanoseconds { return }
    for place in 0..<UInt32(e.judgedCount) {
      let reference = references[e.references + place]
      let portion = reference.portion
      let amount = unsafe request.amounts[Int(reference.item)]
      portions[portion].used = min(1 << 50, portions[portion].used &+ max(0, min(amount, 1 << 50)))
      guard isEnded || amount > portions[portion].room,
        request.now >= portions[portion].restUntil
      else { continue }
      if portions[portion].has(LeasePortion.isTight), !isEnded,
        portions[portion].left > 0
      {
        portions[portion].set(LeasePortion.isRecalled, true)
        portions[portion].reckon()
        portions[portion].restUntil = request.now + configuration.restNanoseconds
      }
      want(portion)
    }
  }

  /// Some portion of the entry is low.
  @inline(never)
  mutating func refill(_ entry: UInt32, now: Int64) {
    let e = entries[entry]
    for place in 0..<UInt32(e.judgedCount) {
      let portion = references[e.references + place].portion
      guard portions[portion].room < portions[portion].low else { continue }
      portions[portion].low = .min
      want(portion)
    }
  }

  /// Units per second: up at once, down by a quarter.
  mutating func fold(_ portion: UInt32, now: Int64) {
    let elapsed = (now &- portions[portion].foldedAt) / 1_000_000
    guard elapsed >= 20 else { return }
    let used = portions[portion].used
    let rate = min(used, 1 << 50) * 1000 / elapsed
    let before = portions[portion].rate
    // What was seen for long says more than what was before.
    let less = elapsed < 2_000 ? (before - rate) / 4 : before - rate
    portions[portion].rate = min(configuration.targetMax, rate > before ? rate : before - less)
    if used > 0 { portions[portion].usedAt = now }
    portions[portion].used = 0
    portions[portion].foldedAt = now
  }

  /// What the lease shall hold after this exchange; −1: as it is.
  mutating func target(_ portion: UInt32, now: Int64) -> Int64 {
    let p = portions[portion]
    // What is spent and not in this exchange keeps its hold.
    let floor = p.isRate ? p.open : LeaseRules.needed(units: p.open)
    if accounts[p.account].has(LeaseAccount.isGhost) { return p.open == 0 ? 0 : -1 }
    fold(portion, now: now)
    if p.has(LeasePortion.isRecalled) || p.references == 0 { return floor }
    let after = max(0, p.left - p.inFlight)
    if p.used == 0, now &- portions[portion].usedAt >= idleNanoseconds {
      return floor
    }
    if now < p.restUntil { return -1 }
    let use = portions[portion].rate.multipliedReportingOverflow(
      by: coverMilliseconds)
    let wanted = max(
      floor,
      min(
        configuration.targetMax,
        max(configuration.targetMin, use.overflow ? .max : use.partialValue / 1000)))
    // A little too much is kept: it will be used, or given back as a whole.
    return wanted < after && after / 2 <= wanted ? -1 : wanted
  }

  // MARK: - The wheel

  mutating func enterWheel(_ portion: UInt32, now: Int64) {
    guard !portions[portion].has(LeasePortion.isInWheel) else { return }
    // When it will be idle, if it stays unused; one that is idle is given back already.
    let rest = portions[portion].usedAt &+ idleNanoseconds &- now
    let wait = rest > 0 ? rest &+ Self.wheelNanoseconds : idleNanoseconds
    let turn = min(Int64(Self.wheelSlots - 1), max(1, wait / Self.wheelNanoseconds))
    let slot = Int((now / Self.wheelNanoseconds + turn) & Int64(Self.wheelSlots - 1))
    portions[portion].set(LeasePortion.isInWheel, true)
    inWheel += 1
    portions[portion].wheelNext = wheel[slot]
    wheel[slot] = portion
  }

  /// Looks at the portions whose time has come, at most so many in one go.
  mutating func upkeep(now: Int64) {
    evict(16, now: now)
    let at = now / Self.wheelNanoseconds
    // After a long sleep every slot is due once.
    if at - wheelAt > Int64(Self.wheelSlots) { wheelAt = at - Int64(Self.wheelSlots) }
    var left = 256
    while true {
      while wheelRest != 0 {
        guard left > 0 else { return }
        left -= 1
        let portion = wheelRest
        wheelRest = portions[portion].wheelNext
        portions[portion].set(LeasePortion.isInWheel, false)
        inWheel -= 1
        look(portion, now: now)
      }
      guard wheelAt < at else { return }
      wheelAt += 1
      // Taken out as a whole: what is put back there is looked at in the next turn of the wheel.
      let slot = Int(wheelAt & Int64(Self.wheelSlots - 1))
      wheelRest = wheel[slot]
      wheel[slot] = 0
    }
  }

  private mutating func look(_ portion: UInt32, now: Int64) {
    looks += 1
    let p = portions[portion]
    guard p.left > 0 || p.targetInFlight > 0 else { return releaseIfUnused(portion) }
    fold(portion, now: now)
    let isIdle =
      p.references == 0 || now &- portions[portion].usedAt >= idleNanoseconds
    let rest = accounts[p.account].localEnd &- now
    if isIdle || rest < configuration.leaseMilliseconds * 500_000 { want(portion) }
    enterWheel(portion, now: now)
  }

  // MARK: - Eviction

  /// So long an entry that another replaced is kept for cancels, if the ring remembers as long.
  static var replacedNanoseconds: Int64 { 120_000_000_000 }

  /// Takes the next few entries that nobody has used for long.
  /// - Parameter isCrowded: there is no room, so those that are kept for cancels go first.
  mutating func evict(_ steps: Int, now: Int64, isCrowded: Bool = false) {
    let end = entries.indices.upperBound
    for _ in 0..<steps {
      entryHand = entryHand + 1 < end ? entryHand + 1 : 1
      guard entryHand < end else { return }
      let e = entries[entryHand]
      guard e.has(LeaseEntry.isLive), !e.has(LeaseEntry.isDirty), !e.has(LeaseEntry.isInFlight)
      else { continue }
      if e.has(LeaseEntry.isRetired) {
        if isCrowded || now &- e.usedAt >= Self.replacedNanoseconds {
          entries[entryHand].set(LeaseEntry.isReplaced, false)
        }
        releaseIfDone(entryHand)
      } else if now &- e.usedAt >= configuration.evictNanoseconds {
        retire(entryHand)
      }
    }
  }
}
