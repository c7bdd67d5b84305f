// The operation ring: which operations were let through, in which order. It is at once what makes
// a retry be answered as before, and the journal that is read after a crash.
//
// Its index is made of lines as long as a cache's: seven places and a mark, so that an id that was
// never seen, which is almost every one, costs one access to memory. A place names a position and
// some bits of the id; what is no longer in the ring is free, so nothing is ever taken out. Where a
// line is full the next one takes the place, and the mark says until which position that counts.

internal import CPrefetch
import TollgateCore

/// What a slot is. A position is written once, except that an operation may become cancelled.
package enum LeaseSlotKind: UInt32 {
  case none = 0
  case operation = 1
  /// More amounts of the operation before it.
  case continuation = 2
  /// An operation that was not decided here: a retry of it must not be either.
  case marker = 3
  /// Takes the amounts of an operation back.
  case correction = 4
  /// Denied by a cached denial.
  case denied = 5
  /// An operation that a correction took back.
  case cancelled = 6
}

package struct LeaseSlot: BitwiseCopyable {
  static let bytes = 32
  static let entryMax: UInt32 = 1 << 24 - 1
  /// Exclusive: 47 bits and a sign lie beside 16 bits of the key's hash.
  static let amountMax: Int64 = 1 << 47

  var a: UInt64 = 0
  var b: UInt64 = 0
  var c: UInt64 = 0
  /// entry 24 │ kind 4 │ items 4, and above them the check. A denial is of one item: there the last
  /// four say what it was for, as that many more than one.
  var d: UInt64 = 0

  @inline(__always)
  init(
    high: UInt64, low: UInt64, amount: Int64, tag: UInt16, entry: UInt32, kind: LeaseSlotKind,
    items: Int
  ) {
    a = high
    b = low
    c = UInt64(bitPattern: amount) << 16 | UInt64(tag)
    d = UInt64(entry | kind.rawValue << 24 | UInt32(truncatingIfNeeded: items) << 28)
  }

  /// Denied from memory, of one item.
  init(
    high: UInt64, low: UInt64, amount: Int64, tag: UInt16, entry: UInt32,
    denied reason: LeaseDenialReason
  ) {
    self.init(
      high: high, low: low, amount: amount, tag: tag, entry: entry, kind: .denied,
      items: 1 + Int(reason.rawValue))
  }

  init(more x: Int64, _ y: Int64, _ z: Int64, entry: UInt32) {
    a = UInt64(bitPattern: x)
    b = UInt64(bitPattern: y)
    c = UInt64(bitPattern: z)
    d = UInt64(entry | LeaseSlotKind.continuation.rawValue << 24)
  }

  @inline(__always) var amount: Int64 { Int64(bitPattern: c) >> 16 }
  @inline(__always) var tag: UInt16 { UInt16(truncatingIfNeeded: c) }
  @inline(__always) var entry: UInt32 { UInt32(truncatingIfNeeded: d) & Self.entryMax }
  @inline(__always) var kind: LeaseSlotKind {
    LeaseSlotKind(rawValue: UInt32(truncatingIfNeeded: d) >> 24 & 15) ?? .none
  }
  @inline(__always) private var last: UInt32 { UInt32(truncatingIfNeeded: d) >> 28 }
  @inline(__always) var items: Int { kind == .denied ? 1 : Int(last) }
  /// nil: it is no denial.
  var denial: LeaseDenialReason? {
    kind == .denied ? LeaseDenialReason(rawValue: last &- 1) ?? .quota : nil
  }
  /// Minting time of the id, in milliseconds.
  @inline(__always) var time: Int64 { Int64(a >> 16) }

  @inline(__always)
  private func check(_ position: UInt64, _ generation: UInt64) -> UInt64 {
    let word = d & 0xFFFF_FFFF
    let x = LeaseHash.mix(a ^ generation, b ^ 0xE703_7ED1_A0B4_28DB &+ position)
    return LeaseHash.mix(x ^ c, word ^ 0xA076_1D64_78BD_642F) & 0xFFFF_FFFF_0000_0000
  }

  @inline(__always)
  mutating func seal(_ position: UInt64, _ generation: UInt64) {
    d = d & 0xFFFF_FFFF | check(position, generation)
  }

  func isSealed(_ position: UInt64, _ generation: UInt64) -> Bool {
    d >> 32 == check(position, generation) >> 32 && kind != .none
  }
}

@safe struct LeaseRing: ~Copyable {
  let region: StripeRegion
  private let mask: UInt64
  /// Lines of eight words: id bits 32 │ low half of a position, seven times; the newest position
  /// that was put into a later line instead.
  private let lines: UnsafeMutablePointer<UInt64>
  private let linesMask: Int
  /// Where the next slot goes. From 1, so that 0 means none.
  private(set) var head: UInt64
  /// The oldest that is remembered.
  private(set) var tail: UInt64
  /// Of the last operation (ms). The horizon never passes it: one caller whose clock is ahead must
  /// not make everybody's ids too old when its own is forgotten.
  var wall: Int64 = 0
  /// Ids that were forgotten though their time is not behind the horizon.
  private var early: Set<OperationID> = []
  /// Ids minted until then may have been forgotten (ms).
  private(set) var horizon: Int64
  /// Where it was when room was last looked for among them.
  private var earlyLookedAt: Int64 = .min
  /// Those that are Redis's to answer.
  private var redis = LeaseFilter()
  /// Of ids minted until then more are Redis's than the filter could take, or than anybody knows
  /// after a restart (ms). What is not known and not behind the horizon was never let through
  /// here, so all of it goes there. So does everything before Redis has said what time it is.
  private var redisUntil: Int64
  /// Of ids minted until then nobody here ever knew.
  private var begun: Int64
  /// What was let through ahead of the clock and forgotten before a restart is among those of these
  /// times; the others never were here.
  private let lost: Range<Int64>

  /// Bytes of the index of so many slots: four of seven places are taken when the ring is full.
  static func indexBytes(slots: Int) -> Int { max(4, slots / 4) * lineBytes }

  /// - Parameters:
  ///   - index: `indexBytes` zeros, for as long as this lives.
  ///   - begun: what to take for the time at which the memory came into use until `begin`.
  init(_ region: StripeRegion, index: UnsafeMutableRawPointer, begun unsure: Int64) {
    self.region = region
    mask = UInt64(region.slots - 1)
    let count = Self.indexBytes(slots: region.slots) / Self.lineBytes
    linesMask = count - 1
    unsafe lines = index.bindMemory(to: UInt64.self, capacity: count * 8)
    head = max(1, region.word(.head))
    tail = max(1, region.word(.tail))
    // Older releases persisted a horizon from the start, and not when that was.
    if region.word(.begun) == 0, region.word(.horizon) != 0 { region.put(.begun, 1) }
    let known = Int64(truncatingIfNeeded: region.word(.begun))
    begun = known > 0 ? known : unsure
    // Those that were let through ahead of the clock, and forgotten, nobody knows any more.
    let kept = max(Int64(truncatingIfNeeded: region.word(.horizon)), begun)
    horizon = max(kept, Int64(truncatingIfNeeded: region.word(.early)))
    lost = kept + 1..<horizon + 1
    redisUntil = known > 0 ? Int64(truncatingIfNeeded: region.word(.left)) : .max
    restore()
  }

  /// Redis said what time it is. Where the memory is new, it is known now when that came into use:
  /// what was minted before, an earlier incarnation may have let through. What was minted since is
  /// Redis's, which alone may have decided it.
  ///
  /// - Parameters:
  ///   - start: when this process began.
  ///   - now: the present time.
  mutating func begin(at start: Int64, now: Int64) {
    guard region.word(.begun) == 0 else { return }
    // What was thought until now came from another clock.
    begun = max(1, start)
    horizon = begun
    raise(.left, to: now)
    redisUntil = Int64(truncatingIfNeeded: region.word(.left))
    region.put(.begun, UInt64(bitPattern: begun))
    region.put(.horizon, UInt64(bitPattern: horizon))
  }

  /// Whether it was minted when nobody who is remembered here could have let it through, but
  /// somebody may have who is not.
  func isOfUnknownPast(_ time: Int64) -> Bool { time <= begun || lost.contains(time) }

  var slots: UInt64 { mask + 1 }

  /// Slots in use.
  var count: UInt64 { head - tail }

  // MARK: - Finding

  private static var lineBytes: Int { 64 }
  private static var places: Int { 7 }

  @inline(__always)
  private static func hash(_ high: UInt64, _ low: UInt64) -> UInt64 {
    LeaseHash.mix(low ^ 0x8EBC_6AF0_9C88_C6E3, high | 1)
  }

  /// Low halves are of positions less than one lap of 2^32 back, or of none that is remembered.
  @inline(__always)
  private func position(_ low: UInt32) -> UInt64 {
    head &- UInt64(UInt32(truncatingIfNeeded: head) &- low)
  }

  @inline(__always)
  private func isRemembered(_ place: UInt64) -> Bool {
    let position = position(UInt32(truncatingIfNeeded: place))
    return position >= tail && position < head
  }

  /// Where the index lies, for whoever may only say that it will be read. It does not change.
  // Safe: nothing is read or written through it, and a hint about memory that is gone does nothing.
  @safe struct Reach: BitwiseCopyable {
    fileprivate let lines: UnsafeMutablePointer<UInt64>
    fileprivate let mask: Int

    /// The line of an id will be looked at soon.
    @inline(__always)
    func prefetch(_ high: UInt64, _ low: UInt64) {
      let line = Int(truncatingIfNeeded: LeaseRing.hash(high, low)) & mask
      unsafe tollgate_prefetch(lines + line &* 8)
    }
  }

  var reach: Reach { unsafe Reach(lines: lines, mask: linesMask) }

  /// The operation or marker of this id; 0 where none is remembered.
  @inline(__always)
  func find(_ high: UInt64, _ low: UInt64) -> UInt64 {
    let hash = Self.hash(high, low)
    var line = Int(truncatingIfNeeded: hash) & linesMask
    while true {
      for place in 0..<Self.places {
        let word = unsafe lines[line &* 8 &+ place]
        guard (word ^ hash) >> 32 == 0, isRemembered(word) else { continue }
        let position = position(UInt32(truncatingIfNeeded: word))
        let slot = region.slot(position)
        if slot.a == high, slot.b == low { return position }
      }
      guard unsafe lines[line &* 8 &+ Self.places] >= tail else { return 0 }
      line = (line + 1) & linesMask
    }
  }

  @inline(__always)
  func slot(_ position: UInt64) -> LeaseSlot { region.slot(position) }

  // MARK: - Writing

  /// There are more places than slots, so one is free.
  @inline(__always)
  private func link(_ at: UInt64, _ slot: LeaseSlot) {
    let hash = Self.hash(slot.a, slot.b)
    var line = Int(truncatingIfNeeded: hash) & linesMask
    while true {
      for place in 0..<Self.places {
        let index = line &* 8 &+ place
        guard unsafe !isRemembered(lines[index]) else { continue }
        unsafe lines[index] =
          hash & 0xFFFF_FFFF_0000_0000 | UInt64(UInt32(truncatingIfNeeded: at))
        return
      }
      unsafe lines[line &* 8 &+ Self.places] = at
      line = (line + 1) & linesMask
    }
  }

  // The caller made room.

  /// Slots of an operation behind its first, which is appended after them and so comes to stand
  /// before them: it is valid only when all are there.
  func put(more slot: LeaseSlot, at index: Int) {
    var slot = slot
    let position = head &+ 1 &+ UInt64(truncatingIfNeeded: index)
    slot.seal(position, region.generation)
    region.put(slot, at: position)
  }

  @inline(__always)
  mutating func append(_ first: LeaseSlot, span: Int, linked: Bool) {
    var slot = first
    slot.seal(head, region.generation)
    region.put(slot, at: head)
    if linked { link(head, slot) }
    head &+= UInt64(truncatingIfNeeded: span)
    region.put(.head, head)
  }

  mutating func cancel(_ position: UInt64) {
    let old = region.slot(position)
    var slot = LeaseSlot(
      high: old.a, low: old.b, amount: old.amount, tag: old.tag, entry: old.entry,
      kind: .cancelled, items: old.items)
    slot.seal(position, region.generation)
    region.put(slot, at: position)
  }

  /// It was forgotten before its time had come: by its time it looks like a new one.
  @inline(__always)
  func isForgotten(_ high: UInt64, _ low: UInt64) -> Bool {
    !early.isEmpty && early.contains(OperationID(high: high, low: low))
  }

  /// So many ids that were ahead of the clock are known by themselves when they are forgotten.
  static let earlyMax = 4_096
  /// An id further ahead than this is refused by Redis (ms), and so counted nowhere.
  static let aheadMax: Int64 = 61_000

  /// Whether it is known by itself from now on: others of its time are not refused for it.
  @inline(never)
  private mutating func forgetEarly(_ high: UInt64, _ low: UInt64) -> Bool {
    if early.count >= Self.earlyMax {
      guard horizon > earlyLookedAt else { return false }
      earlyLookedAt = horizon
      early = early.filter { Int64($0.high >> 16) > horizon }
    }
    guard early.count < Self.earlyMax else { return false }
    early.insert(OperationID(high: high, low: low))
    raise(.early, to: Int64(high >> 16))
    return true
  }

  /// Forgets the oldest slot; false: it cannot be done before its time has come.
  @inline(__always)
  mutating func forget(_ slot: LeaseSlot) -> Bool {
    switch slot.kind {
    case .continuation, .correction, .none: break
    case .operation, .marker, .denied, .cancelled:
      if slot.time >= wall, wall > 0 {
        if slot.kind == .marker {
          leaveToRedis(slot.a, slot.b)
        } else if !forgetEarly(slot.a, slot.b) {
          return false
        }
      } else {
        forgotten(until: slot.time)
      }
    }
    tail &+= 1
    region.put(.tail, tail)
    return true
  }

  /// It is Redis's to answer, and there is no slot for it.
  @inline(never)
  mutating func leaveToRedis(_ high: UInt64, _ low: UInt64) {
    let time = Int64(high >> 16)
    raise(.left, to: time)
    if !redis.insert(Self.hash(high, low), time: time, horizon: horizon) {
      redisUntil = max(redisUntil, time)
    }
  }

  /// A time that outlives this process.
  private func raise(_ word: StripeRegion.Word, to time: Int64) {
    guard time > Int64(truncatingIfNeeded: region.word(word)) else { return }
    region.put(word, UInt64(bitPattern: time))
  }

  /// Whether Redis is to answer this one, which is not known here.
  @inline(__always)
  func isLeftToRedis(_ high: UInt64, _ low: UInt64) -> Bool {
    if Int64(high >> 16) <= redisUntil { return true }
    return redis.isInUse(horizon) && redis.mayContain(Self.hash(high, low), horizon: horizon)
  }

  /// An id of that time can no longer be known here.
  @inline(__always)
  mutating func forgotten(until minted: Int64) {
    let time = wall > 0 ? min(minted, wall &- 1) : minted
    guard time > horizon else { return }
    horizon = time
    // Before that it is by another clock, and of what Redis has to answer.
    if region.word(.begun) != 0 { region.put(.horizon, UInt64(bitPattern: time)) }
  }

  // MARK: - Recovery

  func isValid(_ position: UInt64) -> Bool {
    region.slot(position).isSealed(position, region.generation)
  }

  /// Slots of the operation whose first is at `position`.
  static func length(items: Int) -> Int { 1 + (max(items, 1) + 1) / 3 }

  /// Brings the index back from what lies in the region. The last operation may have been torn;
  /// it was never answered.
  private mutating func restore() {
    if head < tail || head - tail > slots { tail = head > slots ? head - slots : 1 }
    while head - tail < slots, isValid(head) { head += 1 }
    for position in tail..<head where isValid(position) {
      let slot = region.slot(position)
      switch slot.kind {
      case .operation, .marker, .denied, .cancelled: link(position, slot)
      case .correction:
        let of = find(slot.a, slot.b)
        if of != 0, region.slot(of).kind == .operation { cancel(of) }
      case .continuation, .none: break
      }
    }
    region.put(.head, head)
    region.put(.tail, tail)
  }
}
