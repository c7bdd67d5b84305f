// The memory that a sidecar's leased operations are remembered in: anonymous, or a mapped file that
// survives the process. The shell gives it; this file says where what lies, and is one of the few
// that touch it.
//
//   header 4096 B │ per stripe: header 128 B │ operation ring, slots × 32 B │ log, logBytes
//
// Geometry stays with the region: it is read from there and not from the configuration, so that a
// file of another size is recovered as it was written.

/// What the region is made of. All powers of two but `logBytes`, a multiple of 8.
package struct LeaseGeometry: Hashable, Sendable {
  package var stripes: Int
  /// Of each stripe.
  package var slots: Int
  package var logBytes: Int

  package static let slotsMax = 1 << 24
  package static let logBytesMin = 16 * LeaseLog.recordBytesMax
  package static let logBytesMax = 1 << 30

  package init(stripes: Int, slots: Int, logBytes: Int) {
    self.stripes = stripes
    self.slots = slots
    self.logBytes = logBytes
  }

  package var isValid: Bool {
    (1...1024).contains(stripes) && stripes & (stripes - 1) == 0
      && (64...Self.slotsMax).contains(slots) && slots & (slots - 1) == 0
      && (Self.logBytesMin...Self.logBytesMax).contains(logBytes) && logBytes % 8 == 0
  }

  var stripeBytes: Int { LeaseRegion.stripeHeaderBytes + slots * LeaseSlot.bytes + logBytes }

  /// How long the region must be.
  package var bytes: Int { LeaseRegion.headerBytes + stripes * stripeBytes }
}

// Safe: the region is written by whoever holds the lock of the stripe that a part of it belongs to,
// and its header by `init`, before any stripe exists, and then, of predecessors, by the one task
// that closes them.
@safe package struct LeaseRegion: @unchecked Sendable {
  static let headerBytes = 4096
  static let stripeHeaderBytes = 128
  private static let magic: UInt64 = 0x3145_5341_454C_4754  // "TGLEASE1"
  private static let version: UInt64 = 2
  /// Incarnations that ended one after another without a Redis that could be told of their end.
  static let predecessorsMax = 256

  private enum Word: Int {
    case magic, version, stripes, slots, logBytes, generation, host, check
    /// Of the incarnation that works now; written as one word, so that it is never torn.
    case lessee
    /// The first of `predecessorsMax`.
    case predecessors
  }

  let base: UnsafeMutableRawPointer
  package let geometry: LeaseGeometry
  /// Who takes leases from now on.
  package let lessee: UInt64
  /// Of this format of the region: what an earlier one wrote is not valid in it.
  package let generation: UInt64
  /// It was found as it is, so there may be something in it.
  package let isRecovered: Bool
  /// What was found was written before this start of the host, on another one, or in another
  /// format, and was not read.
  package let isNotRead: Bool

  /// - Parameters:
  ///   - memory: outlives every use of the region; aligned to 8 bytes; locked against other
  ///     processes by the shell.
  ///   - geometry: of a region that is begun anew; `memory` holds it.
  ///   - lessee: new and random, not 0.
  ///   - host: names the start of the host; 0: not known. Pages that a host had not written when it
  ///     went down are lost in any order: the settles of what was spent may be missing where the
  ///     spending is there, and all of it would be billed again. So what another start wrote is not
  ///     read.
  package init?(
    _ memory: UnsafeMutableRawBufferPointer, geometry wanted: LeaseGeometry, lessee: UInt64,
    host: UInt64
  ) {
    guard let base = memory.baseAddress, memory.count >= Self.headerBytes, wanted.isValid else {
      return nil
    }
    unsafe self.base = base
    func word(_ word: Word) -> UInt64 {
      unsafe base.load(fromByteOffset: word.rawValue * 8, as: UInt64.self)
    }
    let found = LeaseGeometry(
      stripes: Int(truncatingIfNeeded: word(.stripes)),
      slots: Int(truncatingIfNeeded: word(.slots)),
      logBytes: Int(truncatingIfNeeded: word(.logBytes)))
    let isFound =
      word(.magic) == Self.magic && word(.version) == Self.version && found.isValid
      && found.bytes <= memory.count && word(.check) == (unsafe Self.check(base))
    let isRead = isFound && host != 0 && word(.host) == host
    isNotRead = !isRead && word(.magic) == Self.magic
    if isRead {
      geometry = found
      self.lessee = lessee
      generation = word(.generation)
      isRecovered = true
      let last = word(.lessee)
      if last != 0, last != lessee, !predecessors.contains(last) {
        // The oldest gives way: Redis forgets it after the horizon.
        remember((predecessors + [last]).suffix(Self.predecessorsMax))
      }
      unsafe base.storeBytes(
        of: lessee, toByteOffset: Word.lessee.rawValue * 8, as: UInt64.self)
      return
    }
    guard wanted.bytes <= memory.count else { return nil }
    geometry = wanted
    self.lessee = lessee
    // Whatever lies there was written under another number, even a header that was torn.
    generation = LeaseHash.mix(word(.generation) ^ lessee | 1, 0x9E37_79B9_7F4A_7C15)
    isRecovered = false
    for stripe in 0..<wanted.stripes {
      unsafe (base + Self.headerBytes + stripe * wanted.stripeBytes).initializeMemory(
        as: UInt8.self, repeating: 0, count: Self.stripeHeaderBytes)
    }
    func put(_ word: Word, _ value: UInt64) {
      unsafe base.storeBytes(of: value, toByteOffset: word.rawValue * 8, as: UInt64.self)
    }
    put(.magic, Self.magic)
    put(.version, Self.version)
    put(.stripes, UInt64(wanted.stripes))
    put(.slots, UInt64(wanted.slots))
    put(.logBytes, UInt64(wanted.logBytes))
    put(.generation, generation)
    put(.host, host)
    put(.lessee, lessee)
    for place in 0..<Self.predecessorsMax {
      unsafe base.storeBytes(
        of: 0, toByteOffset: (Word.predecessors.rawValue + place) * 8, as: UInt64.self)
    }
    put(.check, unsafe Self.check(base))
  }

  private static func check(_ base: UnsafeMutableRawPointer) -> UInt64 {
    unsafe LeaseHash.of(
      UnsafeRawBufferPointer(start: base, count: Word.check.rawValue * 8))
  }

  /// A crash in between leaves some of them twice, or the last one out, whose place `lessee` holds
  /// until this is done.
  private func remember(_ predecessors: [UInt64]) {
    for (place, lessee) in predecessors.enumerated() {
      unsafe base.storeBytes(
        of: lessee, toByteOffset: (Word.predecessors.rawValue + place) * 8, as: UInt64.self)
    }
    for place in predecessors.count..<Self.predecessorsMax {
      unsafe base.storeBytes(
        of: 0, toByteOffset: (Word.predecessors.rawValue + place) * 8, as: UInt64.self)
    }
  }

  private func predecessor(_ place: Int) -> UInt64 {
    unsafe base.load(
      fromByteOffset: (Word.predecessors.rawValue + place) * 8, as: UInt64.self)
  }

  /// Incarnations before this one that Redis may still hold something for.
  package var predecessors: [UInt64] {
    (0..<Self.predecessorsMax).map(predecessor).filter { $0 != 0 }
  }

  /// Redis was told that this one has nothing left to settle.
  package func closed(_ lessee: UInt64) {
    for place in 0..<Self.predecessorsMax where predecessor(place) == lessee {
      unsafe base.storeBytes(
        of: 0, toByteOffset: (Word.predecessors.rawValue + place) * 8, as: UInt64.self)
    }
  }

  func stripe(_ index: Int) -> StripeRegion {
    precondition(index >= 0 && index < geometry.stripes)
    return unsafe StripeRegion(
      base: base + Self.headerBytes + index * geometry.stripeBytes, slots: geometry.slots,
      logBytes: geometry.logBytes, generation: generation)
  }
}

/// One stripe's part of the region.
@safe struct StripeRegion {
  enum Word: Int {
    case head, tail, logHead, logTail, horizon
  }

  private let base: UnsafeMutableRawPointer
  let slots: Int
  let logBytes: Int
  let generation: UInt64

  init(base: UnsafeMutableRawPointer, slots: Int, logBytes: Int, generation: UInt64) {
    unsafe self.base = base
    self.slots = slots
    self.logBytes = logBytes
    self.generation = generation
  }

  @inline(__always)
  func word(_ word: Word) -> UInt64 {
    unsafe base.load(fromByteOffset: word.rawValue * 8, as: UInt64.self)
  }

  @inline(__always)
  func put(_ word: Word, _ value: UInt64) {
    unsafe base.storeBytes(of: value, toByteOffset: word.rawValue * 8, as: UInt64.self)
  }

  /// As `put`, and not moved behind what is written after it: the end of what is valid must stand
  /// before what lay there is overwritten, or a recovery would begin at rubble.
  @inline(never)
  func putInOrder(_ word: Word, _ value: UInt64) { put(word, value) }

  @inline(__always)
  func slot(_ position: UInt64) -> LeaseSlot {
    let index = Int(truncatingIfNeeded: position) & (slots - 1)
    return unsafe base.load(
      fromByteOffset: LeaseRegion.stripeHeaderBytes + index * LeaseSlot.bytes, as: LeaseSlot.self)
  }

  @inline(__always)
  func put(_ slot: LeaseSlot, at position: UInt64) {
    let index = Int(truncatingIfNeeded: position) & (slots - 1)
    unsafe base.storeBytes(
      of: slot, toByteOffset: LeaseRegion.stripeHeaderBytes + index * LeaseSlot.bytes,
      as: LeaseSlot.self)
  }

  /// Of the log, which the caller keeps inside of its bounds.
  func log(_ offset: Int, _ count: Int) -> UnsafeMutableRawBufferPointer {
    precondition(offset >= 0 && count >= 0 && offset + count <= logBytes)
    return unsafe UnsafeMutableRawBufferPointer(
      start: base + LeaseRegion.stripeHeaderBytes + slots * LeaseSlot.bytes + offset, count: count)
  }
}
