// Keys, names, templates and definitions of the lease table: byte strings of at most `bytesMax`, in
// chunks that never move, each found by a 32-bit address. Strings that many entries have in common
// (templates, limits) are kept once and counted.
//
// Why it is safe although it is made of pointers: an address is only made by `insert`, and whoever
// holds it holds one count of it; a string lies wholly in its chunk, its length stands before it,
// and chunks are freed by `deinit` only. The one who owns the stripe's lock owns the store.

@safe package struct ByteStore: ~Copyable {
  package static let bytesMax = 4096 - headerBytes
  private static let headerBytes = 8
  private static let grain = 16
  private static let classes = 4096 / grain
  private static let chunkBytes = 1 << 16
  private static let chunkGrains = chunkBytes / grain

  private struct Header: BitwiseCopyable {
    var length: UInt16
    var grains: UInt16
    var references: UInt32
  }

  private let chunks: UnsafeMutablePointer<UnsafeMutableRawPointer>
  private let chunksMax: Int
  private var chunkCount = 0
  private var nextGrain = 1
  private let free: UnsafeMutablePointer<UInt32>
  private var shared = IndexTable()
  package private(set) var usedBytes = 0

  package init(bytesMax: Int) {
    chunksMax = bytesMax / Self.chunkBytes + 2
    unsafe chunks = .allocate(capacity: chunksMax)
    unsafe free = .allocate(capacity: Self.classes + 1)
    unsafe free.initialize(repeating: 0, count: Self.classes + 1)
  }

  deinit {
    for index in 0..<chunkCount { unsafe chunks[index].deallocate() }
    unsafe chunks.deallocate()
    unsafe free.deallocate()
  }

  @inline(__always)
  private func base(_ address: UInt32) -> UnsafeMutableRawPointer {
    let grain = Int(address)
    precondition(grain > 0 && grain / Self.chunkGrains < chunkCount)
    return unsafe chunks[grain / Self.chunkGrains] + grain % Self.chunkGrains * Self.grain
  }

  /// Valid until the string is released.
  @inline(__always)
  package func bytes(_ address: UInt32) -> UnsafeRawBufferPointer {
    let base = unsafe base(address)
    let length = Int(unsafe base.load(as: UInt16.self))
    return unsafe UnsafeRawBufferPointer(start: base + Self.headerBytes, count: length)
  }

  package func array(_ address: UInt32) -> [UInt8] {
    address == 0 ? [] : unsafe [UInt8](bytes(address))
  }

  @inline(__always)
  package func equals(_ address: UInt32, _ other: UnsafeRawBufferPointer) -> Bool {
    let own = unsafe bytes(address)
    let count = own.count
    guard count == other.count, count > 0 else { return count == other.count }
    guard let a = own.baseAddress, let b = other.baseAddress else { return false }
    var at = 0
    while at + 8 <= count {
      let x = unsafe a.loadUnaligned(fromByteOffset: at, as: UInt64.self)
      let y = unsafe b.loadUnaligned(fromByteOffset: at, as: UInt64.self)
      if x != y { return false }
      at += 8
    }
    while at < count {
      if unsafe a.load(fromByteOffset: at, as: UInt8.self)
        != (unsafe b.load(fromByteOffset: at, as: UInt8.self))
      {
        return false
      }
      at += 1
    }
    return true
  }

  /// 0 where it is too long or there is no room.
  package mutating func insert(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
    guard bytes.count <= Self.bytesMax else { return 0 }
    let grains = (bytes.count + Self.headerBytes + Self.grain - 1) / Self.grain
    var address = unsafe free[grains]
    if address != 0 {
      unsafe free[grains] = base(address).load(
        fromByteOffset: Self.headerBytes, as: UInt32.self)
    } else {
      if nextGrain + grains > chunkCount * Self.chunkGrains {
        guard chunkCount < chunksMax else { return 0 }
        nextGrain = max(1, chunkCount * Self.chunkGrains)
        unsafe chunks[chunkCount] = .allocate(byteCount: Self.chunkBytes, alignment: Self.grain)
        chunkCount += 1
      }
      address = UInt32(nextGrain)
      nextGrain += grains
    }
    let base = unsafe base(address)
    unsafe base.storeBytes(
      of: Header(length: UInt16(bytes.count), grains: UInt16(grains), references: 1),
      as: Header.self)
    if let source = bytes.baseAddress {
      unsafe (base + Self.headerBytes).copyMemory(from: source, byteCount: bytes.count)
    }
    usedBytes += grains * Self.grain
    return address
  }

  package mutating func insert(_ bytes: [UInt8]) -> UInt32 {
    unsafe bytes.withUnsafeBytes { unsafe insert($0) }
  }

  /// One string for all who have the same.
  package mutating func share(_ bytes: [UInt8]) -> UInt32 {
    unsafe bytes.withUnsafeBytes { bytes in
      let hash = unsafe LeaseHash.of(bytes)
      var cursor = shared.first(hash)
      while cursor.index != 0 {
        if unsafe equals(cursor.index, bytes) {
          let base = unsafe base(cursor.index)
          var header = unsafe base.load(as: Header.self)
          guard header.references < UInt32.max else { break }
          header.references += 1
          unsafe base.storeBytes(of: header, as: Header.self)
          return cursor.index
        }
        shared.next(&cursor)
      }
      let address = unsafe insert(bytes)
      if address != 0 { shared.insert(hash, address) }
      return address
    }
  }

  /// Gives one count back. `isShared`: it came from `share`.
  package mutating func release(_ address: UInt32, isShared: Bool = false) {
    guard address != 0 else { return }
    let base = unsafe base(address)
    var header = unsafe base.load(as: Header.self)
    precondition(header.references > 0)
    header.references -= 1
    unsafe base.storeBytes(of: header, as: Header.self)
    guard header.references == 0 else { return }
    if isShared { unsafe shared.remove(LeaseHash.of(bytes(address)), address) }
    let grains = Int(header.grains)
    unsafe base.storeBytes(of: free[grains], toByteOffset: Self.headerBytes, as: UInt32.self)
    unsafe free[grains] = address
    usedBytes -= grains * Self.grain
  }
}

/// A fast 64-bit hash of bytes, for tables in memory and for checks against torn writes. Not kept
/// anywhere that another release reads, and never trusted alone: equal hashes are compared.
package enum LeaseHash {
  @inline(__always)
  package static func mix(_ a: UInt64, _ b: UInt64) -> UInt64 {
    let product = a.multipliedFullWidth(by: b)
    return product.high ^ product.low
  }

  @inline(__always)
  package static func of(_ bytes: UnsafeRawBufferPointer) -> UInt64 {
    guard let base = bytes.baseAddress else { return 0x9E37_79B9_7F4A_7C15 }
    var hash = UInt64(truncatingIfNeeded: bytes.count) ^ 0xA076_1D64_78BD_642F
    var at = 0
    while at + 8 <= bytes.count {
      let word = unsafe base.loadUnaligned(fromByteOffset: at, as: UInt64.self)
      hash = mix(hash ^ word, 0xE703_7ED1_A0B4_28DB)
      at += 8
    }
    var word: UInt64 = 0
    while at < bytes.count {
      word = word << 8 | UInt64(unsafe base.load(fromByteOffset: at, as: UInt8.self))
      at += 1
    }
    return mix(hash ^ word, 0x8EBC_6AF0_9C88_C6E3) ^ hash &>> 7
  }

  package static func of(_ bytes: [UInt8]) -> UInt64 {
    unsafe bytes.withUnsafeBytes { unsafe of($0) }
  }
}
