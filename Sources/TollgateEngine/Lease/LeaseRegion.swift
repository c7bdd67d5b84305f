// The memory that a sidecar's leased operations are remembered in: anonymous, or a mapped file that
// survives the process. The shell gives it; this file says where what lies, and is one of the few
// that touch it.
//
//   header 4096 B │ per stripe: header 128 B │ operation ring, slots × 32 B │ log, logBytes
//
// Geometry stays with the region: it is read from there and not from the configuration, so that
// what a region of another size holds is recovered as it was written. So does whose accounts it is
// about: what one deployment let through is never settled in the books of another. Where an
// incarnation ended and left nothing behind, neither matters, and the region is begun anew.

package import TollgateCore

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
// that closes them, and, of its end, by the one that runs the sidecar.
@safe package struct LeaseRegion: @unchecked Sendable {
  package static let headerBytes = 4096
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
    /// Behind them, whose it is. Zeros, as what follows, where an older release wrote it.
    case buckets = 265
    case nameBytes
    /// Of the deployment's id: the first of `Name.bytesMax` bytes.
    case name
    case ownerCheck = 275
    /// The incarnation that left nothing behind.
    case ended
  }

  static let ownerOffset = Word.buckets.rawValue * 8
  static let ownerBytes = Word.ended.rawValue * 8 - ownerOffset

  /// Why it is not to be used.
  package enum Refusal: Error, Hashable {
    /// Too short, or of an impossible geometry.
    case unusable
    /// It is not known that everything in it is settled, and this is how its deployment differs.
    case anotherDeployment([Deployment.Difference])
  }

  /// What a header says that is one.
  private struct Header {
    let geometry: LeaseGeometry
    let host: UInt64
    /// nil: an older release wrote it.
    let owner: (id: Name, buckets: Int)?
    /// Its last incarnation left nothing behind, and there are none before that.
    let isEnded: Bool

    init?(_ base: UnsafeRawPointer) {
      func word(_ word: Word, _ place: Int = 0) -> UInt64 {
        unsafe base.load(fromByteOffset: (word.rawValue + place) * 8, as: UInt64.self)
      }
      let geometry = LeaseGeometry(
        stripes: Int(truncatingIfNeeded: word(.stripes)),
        slots: Int(truncatingIfNeeded: word(.slots)),
        logBytes: Int(truncatingIfNeeded: word(.logBytes)))
      guard word(.magic) == LeaseRegion.magic, word(.version) == LeaseRegion.version,
        geometry.isValid, word(.check) == (unsafe LeaseRegion.check(base))
      else { return nil }
      var owner: (id: Name, buckets: Int)?
      if word(.ownerCheck) != 0 {
        let count = Int(clamping: word(.nameBytes))
        guard word(.ownerCheck) == (unsafe LeaseRegion.ownerCheck(base)), count <= Name.bytesMax
        else { return nil }
        let text = unsafe String(
          decoding: UnsafeRawBufferPointer(start: base + Word.name.rawValue * 8, count: count),
          as: UTF8.self)
        guard let id = try? Name(text) else { return nil }
        owner = (id, Int(clamping: word(.buckets)))
      }
      self.geometry = geometry
      host = word(.host)
      self.owner = owner
      // Before it was opened there may be one that Redis was not told of, and that ended, too.
      isEnded = word(.lessee) != 0 && word(.ended) == word(.lessee)
    }

    /// What an older release wrote is ours: it was started anew where it stood.
    func differences(from deployment: Deployment) -> [Deployment.Difference] {
      guard let owner else { return [] }
      var recorded = deployment
      recorded.id = owner.id
      recorded.buckets = owner.buckets
      return deployment.differences(from: recorded)
    }
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
  ///   - deployment: whose accounts it is about from now on.
  ///   - lessee: new and random, not 0.
  ///   - host: names the start of the host; 0: not known. Pages that a host had not written when it
  ///     went down are lost in any order: the settles of what was spent may be missing where the
  ///     spending is there, and all of it would be billed again. So what another start wrote is not
  ///     read.
  package init(
    _ memory: UnsafeMutableRawBufferPointer, geometry wanted: LeaseGeometry,
    deployment: Deployment, lessee: UInt64, host: UInt64
  ) throws(Refusal) {
    guard let base = memory.baseAddress, memory.count >= Self.headerBytes, wanted.isValid else {
      throw Refusal.unusable
    }
    unsafe self.base = base
    func word(_ word: Word) -> UInt64 {
      unsafe base.load(fromByteOffset: word.rawValue * 8, as: UInt64.self)
    }
    let header = unsafe Header(base)
    let found: Header? = host != 0 && header?.host == host ? header : nil
    var taken: Header?
    if let found, found.geometry.bytes <= memory.count {
      let differences = found.differences(from: deployment)
      if differences.isEmpty && (found.geometry == wanted || !found.isEnded) {
        taken = found
      } else if !found.isEnded {
        throw Refusal.anotherDeployment(differences)
      }
    }
    let isEnded = found?.isEnded ?? false
    isNotRead = taken == nil && !isEnded && word(.magic) == Self.magic
    if let taken {
      geometry = taken.geometry
      self.lessee = lessee
      generation = word(.generation)
      isRecovered = true
      if taken.owner == nil { unsafe Self.own(base, deployment) }
      let last = word(.lessee)
      if last != 0, last != lessee, !predecessors.contains(last) {
        // The oldest gives way: Redis forgets it after the horizon.
        remember((predecessors + [last]).suffix(Self.predecessorsMax))
      }
      unsafe Self.put(base, .ended, 0)
      unsafe Self.put(base, .lessee, lessee)
      // Nothing has come to it: it may still turn out that it was started for another one.
      if isEnded { unsafe Self.put(base, .ended, lessee) }
      return
    }
    guard wanted.bytes <= memory.count else { throw Refusal.unusable }
    geometry = wanted
    self.lessee = lessee
    // Whatever lies there was written under another number, even a header that was torn.
    generation = LeaseHash.mix(word(.generation) ^ lessee | 1, 0x9E37_79B9_7F4A_7C15)
    isRecovered = false
    // Nothing of it counts before all of it stands there.
    unsafe Self.put(base, .check, 0)
    for stripe in 0..<wanted.stripes {
      unsafe (base + Self.headerBytes + stripe * wanted.stripeBytes).initializeMemory(
        as: UInt8.self, repeating: 0, count: Self.stripeHeaderBytes)
    }
    unsafe Self.put(base, .magic, Self.magic)
    unsafe Self.put(base, .version, Self.version)
    unsafe Self.put(base, .stripes, UInt64(wanted.stripes))
    unsafe Self.put(base, .slots, UInt64(wanted.slots))
    unsafe Self.put(base, .logBytes, UInt64(wanted.logBytes))
    unsafe Self.put(base, .generation, generation)
    unsafe Self.put(base, .host, host)
    unsafe Self.put(base, .lessee, lessee)
    for place in 0..<Self.predecessorsMax {
      unsafe base.storeBytes(
        of: 0, toByteOffset: (Word.predecessors.rawValue + place) * 8, as: UInt64.self)
    }
    unsafe Self.own(base, deployment)
    // There is nothing in it: whoever finds out that it was started for the wrong one starts again.
    unsafe Self.put(base, .ended, lessee)
    unsafe Self.put(base, .check, Self.check(base))
  }

  /// How long a file must stay that begins so: what it holds is taken up as it was written. nil: it
  /// holds nothing that would be read, and is begun anew, of any length.
  package static func heldBytes(
    _ start: UnsafeRawBufferPointer, of bytes: Int, host: UInt64
  ) -> Int? {
    guard let base = start.baseAddress, start.count >= headerBytes,
      let header = unsafe Header(base), host != 0, header.host == host, !header.isEnded,
      header.geometry.bytes <= bytes
    else { return nil }
    return header.geometry.bytes
  }

  private static func check(_ base: UnsafeRawPointer) -> UInt64 {
    unsafe LeaseHash.of(
      UnsafeRawBufferPointer(start: base, count: Word.check.rawValue * 8))
  }

  /// Never 0.
  private static func ownerCheck(_ base: UnsafeRawPointer) -> UInt64 {
    let count = (Word.ownerCheck.rawValue - Word.buckets.rawValue) * 8
    return unsafe LeaseHash.of(UnsafeRawBufferPointer(start: base + ownerOffset, count: count)) | 1
  }

  /// Not moved past what is written before and after it.
  @inline(never)
  private static func put(_ base: UnsafeMutableRawPointer, _ word: Word, _ value: UInt64) {
    unsafe base.storeBytes(of: value, toByteOffset: word.rawValue * 8, as: UInt64.self)
  }

  /// A crash in between leaves nobody's, as an older release does.
  private static func own(_ base: UnsafeMutableRawPointer, _ deployment: Deployment) {
    let name = Array(deployment.id.text.utf8)
    precondition(name.count <= Name.bytesMax)
    unsafe put(base, .ownerCheck, 0)
    unsafe put(base, .buckets, UInt64(deployment.buckets))
    unsafe put(base, .nameBytes, UInt64(name.count))
    for place in 0..<Name.bytesMax {
      let byte = place < name.count ? name[place] : 0
      unsafe base.storeBytes(
        of: byte, toByteOffset: Word.name.rawValue * 8 + place, as: UInt8.self)
    }
    unsafe put(base, .ownerCheck, ownerCheck(base))
  }

  /// From now on something may be held, or wait to be settled.
  package func opened() { unsafe Self.put(base, .ended, 0) }

  /// Nothing is held or waits to be settled, and nothing will be.
  package func ended() { unsafe Self.put(base, .ended, lessee) }

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
    /// Time of the last operation that was left to Redis without a slot, and of the last that was
    /// let through ahead of the clock and forgotten (ms); 0: none was.
    case left, early
    /// Redis time at which this memory came into use (ms); 0: Redis has not said yet.
    case begun
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
