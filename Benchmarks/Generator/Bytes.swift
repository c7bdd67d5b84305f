// A growable run of bytes with a read end and a write end: what a connection has received and not
// yet parsed, or rendered and not yet sent. It owns its memory, never gives a pointer away, and
// checks every offset, so the unsafe part of the generator is this file.
//
// Invariant: 0 ≤ head ≤ tail ≤ capacity. Offsets in the interface count from `head`.

internal import Glibc

/// Owned by one thread at a time.
@safe package final class Bytes {
  /// A buffer never grows beyond this; a peer that needs more is broken.
  package static let capacityMax = 16 << 20

  private var base: UnsafeMutableRawPointer
  private var capacity: Int
  private var head = 0
  private var tail = 0

  package init(capacity: Int = 512) {
    unsafe base = .allocate(byteCount: capacity, alignment: 16)
    self.capacity = capacity
  }

  package convenience init(_ bytes: some Sequence<UInt8>) {
    self.init(capacity: 4096)
    append(Array(bytes))
  }

  deinit { unsafe base.deallocate() }

  @inline(__always) package var count: Int { tail - head }
  @inline(__always) package var isEmpty: Bool { tail == head }

  package func clear() {
    head = 0
    tail = 0
  }

  /// Drops the first `n` bytes.
  package func consume(_ n: Int) {
    precondition(n >= 0 && n <= count)
    head += n
    if head == tail { clear() }
  }

  @inline(__always) package subscript(offset: Int) -> UInt8 {
    precondition(offset >= 0 && offset < count)
    return unsafe base.load(fromByteOffset: head + offset, as: UInt8.self)
  }

  /// The little-endian integer at `offset`.
  @inline(__always)
  package func integer<T: FixedWidthInteger>(at offset: Int, as type: T.Type) -> T {
    precondition(offset >= 0 && offset + MemoryLayout<T>.size <= count)
    return T(littleEndian: unsafe base.loadUnaligned(fromByteOffset: head + offset, as: type))
  }

  package func array(_ range: Range<Int>) -> [UInt8] {
    precondition(range.lowerBound >= 0 && range.upperBound <= count)
    return unsafe Array(
      UnsafeRawBufferPointer(start: base + head + range.lowerBound, count: range.count))
  }

  /// The offset of the first `byte` at or after `start`.
  package func firstIndex(of byte: UInt8, from start: Int) -> Int? {
    precondition(start >= 0 && start <= count)
    let from = unsafe base + head + start
    guard let found = unsafe memchr(from, Int32(byte), count - start) else { return nil }
    return unsafe start + (found - from)
  }

  package func append(_ bytes: [UInt8]) {
    unsafe bytes.withUnsafeBytes { source in
      if let start = source.baseAddress {
        unsafe claim(source.count).copyMemory(from: start, byteCount: source.count)
      }
    }
  }

  /// `n` more bytes at the end, for the caller to write before anything else is done here.
  @unsafe @inline(__always) func claim(_ n: Int) -> UnsafeMutableRawPointer {
    if capacity - tail < n { reserve(n) }
    let start = unsafe base + tail
    tail += n
    return unsafe start
  }

  /// Moves what is left of `other` behind what is here.
  func take(_ other: Bytes) {
    let n = other.count
    unsafe claim(n).copyMemory(from: other.base + other.head, byteCount: n)
    other.clear()
  }

  /// One read from the socket: bytes received, 0 at its end, −errno on failure.
  package func receive(from descriptor: Int32, room: Int = 1 << 16) -> Int {
    if capacity - tail < room { reserve(room) }
    let n = unsafe recv(descriptor, base + tail, capacity - tail, 0)
    if n < 0 { return Int(-errno) }
    tail += n
    return n
  }

  /// One write to the socket, dropping what was taken: bytes sent, or −errno.
  package func send(to descriptor: Int32) -> Int {
    let n = unsafe Glibc.send(descriptor, base + head, count, Int32(MSG_NOSIGNAL))
    if n < 0 { return Int(-errno) }
    consume(n)
    return n
  }

  /// Makes room for `n` more bytes: first by moving the rest to the front, then by growing.
  @inline(never) private func reserve(_ n: Int) {
    if capacity - tail >= n { return }
    let kept = count
    if capacity - kept >= n, head >= kept {
      unsafe base.copyMemory(from: base + head, byteCount: kept)
    } else {
      var wider = capacity
      while wider - kept < n { wider *= 2 }
      precondition(wider <= Self.capacityMax, "the peer sends faster than frames end")
      let moved = UnsafeMutableRawPointer.allocate(byteCount: wider, alignment: 16)
      unsafe moved.copyMemory(from: base + head, byteCount: kept)
      unsafe base.deallocate()
      unsafe base = moved
      capacity = wider
    }
    head = 0
    tail = kept
  }
}
