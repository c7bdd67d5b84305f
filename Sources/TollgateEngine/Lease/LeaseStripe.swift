// One stripe of the lease table: the accounts of some buckets with all that belongs to them. A
// plain value machine: whoever holds the stripe's lock calls it, nothing in it calls out.
//
//   account ─▶ portions (what Redis holds for us, per counter or rate)
//      ▲          ▲
//   entry ─ items ┴ references      one hot shape: who asks for what, and what that touches
//      ▲
//   ring slots                      every operation let through, in order
//
// Files: +Spend (the hot path), +Register (entries come and go), +Collect and +Reply (exchanges),
// +Upkeep (demand, idleness, eviction), +Cancel, +Journal and +Recovery (what survives).

import TollgateCore

struct LeaseStripe: ~Copyable {
  let configuration: LeaseConfiguration
  /// How old usage may become before it is settled; at least what is configured.
  var settleNanoseconds: Int64
  let stripes: Int
  let lessee: UInt64

  var accounts: Slab<LeaseAccount>
  var portions: Slab<LeasePortion>
  var entries: Slab<LeaseEntry>
  var items: Slab<LeaseItem>
  var references: Slab<LeaseReference>
  var denials: Slab<LeaseDenial>
  var bytes: ByteStore
  var accountIndex = IndexTable()
  var portionIndex = IndexTable()
  var keyIndex = IndexTable()
  var ring: LeaseRing
  var log: LeaseLog
  /// By `bucket ÷ stripes + 1`.
  var lines: Slab<LeaseLine>
  let lineCount: Int

  /// Word of the configuration was heard so lately that until then nothing can have changed …
  var freshUntil: Int64 = .min
  /// … for what was confirmed since then.
  var unbrokenSince: Int64 = .max
  /// Of the configuration of all accounts, and when it last changed.
  var generation: UInt32 = 0
  var changedAt: Int64 = .min

  var exchanges: [UInt32: PendingExchange] = [:]
  var nextExchange: UInt32 = 1
  /// To be sent again, by line.
  var again: [[UInt32]]

  /// Something did not fit into the ring or the log, or beside what is unsettled: all of it is due.
  var isFull = false
  /// Nothing is spent any more.
  var isClosing = false

  /// Portions by when they are looked at next: lists, one for each `wheelNanoseconds`.
  var wheel: [UInt32]
  /// Portions in it: those that hold something, or asked for it.
  var inWheel = 0
  var wheelAt: Int64 = 0
  /// Of the slot `wheelAt`: those that are still to be looked at.
  var wheelRest: UInt32 = 0
  var looks: Int64 = 0
  var entryHand: UInt32 = 1
  var ghosts = 0
  /// Both are raised before an operation is answered, and lowered when Redis is known to have it.
  var unsettledUnits: Int64 = 0
  var unsettledOperations: Int64 = 0
  let unsettledUnitsMax: Int64
  let unsettledOperationsMax: Int64
  var creditUnits: Int64 = 0
  var unresolvedUnits: Int64 = 0
  /// By `LeaseMiss`.
  var misses: [Int64]
  let buckets: Int
  /// Which of the stripes it is.
  let number: Int

  static let wheelSlots = 64
  static let wheelNanoseconds: Int64 = 62_500_000

  /// - Parameters:
  ///   - lessee: of what is leased from now on.
  ///   - index, begun: for the ring; see there.
  init(
    _ configuration: LeaseConfiguration, region: StripeRegion, number: Int, stripes: Int,
    buckets: Int, lessee: UInt64, begun: Int64, index: UnsafeMutableRawPointer
  ) {
    self.configuration = configuration
    settleNanoseconds = configuration.settleNanoseconds
    self.stripes = stripes
    self.buckets = buckets
    self.number = number
    self.lessee = lessee
    unsettledUnitsMax = configuration.unsettledUnitsMax / Int64(stripes)
    unsettledOperationsMax = configuration.unsettledOperationsMax / Int64(stripes)
    accounts = Slab(max: max(64, configuration.accountsMax / stripes))
    portions = Slab(max: max(64, configuration.portionsMax / stripes))
    let entriesMax = min(
      Int(LeaseSlot.entryMax) - 1, max(64, configuration.entriesMax / stripes))
    entries = Slab(max: entriesMax)
    items = Slab(max: entriesMax * 4)
    references = Slab(max: entriesMax * 8)
    denials = Slab(max: entriesMax)
    bytes = ByteStore(bytesMax: max(1 << 20, configuration.bytesMax / stripes))
    unsafe ring = LeaseRing(region, index: index, begun: begun)
    log = LeaseLog(region)
    lineCount = (buckets + stripes - 1) / stripes
    lines = Slab(max: lineCount)
    again = Array(repeating: [], count: lineCount + 1)
    for _ in 0..<lineCount { _ = lines.allocate(LeaseLine()) }
    wheel = Array(repeating: 0, count: Self.wheelSlots)
    misses = Array(repeating: 0, count: LeaseMiss.allCases.count)
    recover()
  }

  @inline(__always)
  func line(of bucket: Int) -> UInt32 {
    UInt32(truncatingIfNeeded: bucket / stripes &+ 1)
  }

  /// Whether it has a line here.
  func owns(bucket: Int) -> Bool {
    (0..<buckets).contains(bucket) && bucket % stripes == number
  }

  // MARK: - Lines

  /// What of the account is dirty since then is due `tick` later, with what comes until then.
  mutating func queue(_ account: UInt32, since: Int64) {
    guard !accounts[account].has(LeaseAccount.isQueued) else { return }
    let line = line(of: Int(accounts[account].bucket))
    accounts[account].set(LeaseAccount.isQueued, true)
    accounts[account].dueAt = since &+ configuration.tickNanoseconds
    accounts[account].dueNext = 0
    if lines[line].last == 0 {
      lines[line].first = account
    } else {
      accounts[lines[line].last].dueNext = account
    }
    lines[line].last = account
    lines[line].waiting += 1
  }

  /// It is exchanged with the next call of its bucket.
  mutating func hurry(_ account: UInt32) {
    guard accounts[account].exchange == 0 else {
      return accounts[account].set(LeaseAccount.isCalling, true)
    }
    guard !accounts[account].has(LeaseAccount.isUrgent) else { return }
    let line = line(of: Int(accounts[account].bucket))
    accounts[account].set(LeaseAccount.isUrgent, true)
    accounts[account].urgentNext = 0
    if lines[line].urgentLast == 0 {
      lines[line].urgentFirst = account
    } else {
      accounts[lines[line].urgentLast].urgentNext = account
    }
    lines[line].urgentLast = account
  }

  /// Which account `popDue` would take; 0: none.
  func nextDue(_ line: UInt32, by: Int64) -> UInt32 {
    let urgent = lines[line].urgentFirst
    if urgent != 0 { return urgent }
    let first = lines[line].first
    return first != 0 && accounts[first].dueAt <= by ? first : 0
  }

  /// The next account that wants to be exchanged at once, or else that was due by then; 0: none.
  mutating func popDue(_ line: UInt32, by: Int64) -> (account: UInt32, isUrgent: Bool) {
    let urgent = lines[line].urgentFirst
    if urgent != 0 {
      lines[line].urgentFirst = accounts[urgent].urgentNext
      if lines[line].urgentFirst == 0 { lines[line].urgentLast = 0 }
      accounts[urgent].set(LeaseAccount.isUrgent, false)
      return (urgent, true)
    }
    let first = lines[line].first
    guard first != 0, accounts[first].dueAt <= by else { return (0, false) }
    lines[line].first = accounts[first].dueNext
    if lines[line].first == 0 { lines[line].last = 0 }
    lines[line].waiting -= 1
    accounts[first].set(LeaseAccount.isQueued, false)
    return (first, false)
  }

  /// Something of the portion is to be changed in Redis, at once.
  mutating func want(_ portion: UInt32) {
    let account = portions[portion].account
    if !portions[portion].has(LeasePortion.isWanting) {
      portions[portion].set(LeasePortion.isWanting, true)
      portions[portion].wantNext = accounts[account].wantFirst
      accounts[account].wantFirst = portion
    }
    hurry(account)
  }

  /// The entry has units to settle.
  mutating func soil(_ entry: UInt32, now: Int64) {
    guard !entries[entry].has(LeaseEntry.isDirty) else { return }
    let account = entries[entry].account
    entries[entry].set(LeaseEntry.isDirty, true)
    entries[entry].dirtySince = now
    entries[entry].dirtyNext = 0
    if accounts[account].dirtyLast == 0 {
      accounts[account].dirtyFirst = entry
    } else {
      entries[accounts[account].dirtyLast].dirtyNext = entry
    }
    accounts[account].dirtyLast = entry
    queue(account, since: now)
  }

  // MARK: - Finding

  func findAccount(_ hash: UInt64, _ name: [UInt8]) -> UInt32 {
    unsafe name.withUnsafeBytes { name in
      var cursor = accountIndex.first(hash)
      while cursor.index != 0 {
        if unsafe bytes.equals(accounts[cursor.index].name, name) { return cursor.index }
        accountIndex.next(&cursor)
      }
      return 0
    }
  }

  @inline(__always)
  func findEntry(_ hash: UInt64, _ key: UnsafeRawBufferPointer) -> UInt32 {
    var cursor = keyIndex.first(hash)
    while cursor.index != 0 {
      if unsafe bytes.equals(entries[cursor.index].key, key) { return cursor.index }
      keyIndex.next(&cursor)
    }
    return 0
  }

  var gauges: LeaseGauges {
    var gauges = LeaseGauges()
    gauges.unsettledUnits = unsettledUnits
    gauges.unsettledOperations = unsettledOperations
    gauges.creditUnits = creditUnits
    gauges.accounts = accounts.used
    gauges.entries = entries.used
    gauges.portions = portions.used
    gauges.bytes = bytes.usedBytes
    gauges.exchanges = exchanges.count
    gauges.recovering = ghosts
    gauges.unresolvedUnits = unresolvedUnits
    gauges.looks = looks
    gauges.horizon = ring.horizon
    for miss in LeaseMiss.allCases { gauges.misses[miss] = misses[Int(miss.rawValue)] }
    return gauges
  }
}
