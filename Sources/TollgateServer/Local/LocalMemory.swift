// The memory of a local loop: what it reads into, what it writes from, and what is kept of a
// connection between two turns. With LocalSystem.swift, all that is unsafe about the loop.
//
// Every buffer belongs to one loop and is used on its thread alone. A pointer is handed out only
// for the time of one call.

import Glibc
import NIOCore
import TollgateWire

// The answers of one turn to one connection.
// Safe: `base` is allocated with `capacity` bytes, of which `0..<end` are initialized; every
// access is checked against those, and the memory is freed once, when nobody refers to this.
@safe package final class OutBytes {
  private var base: UnsafeMutableRawPointer
  private var capacity: Int
  private var end = 0

  package init(capacity: Int) {
    self.capacity = max(64, capacity)
    unsafe base = .allocate(byteCount: self.capacity, alignment: 16)
  }

  deinit { unsafe base.deallocate() }

  package var count: Int { end }

  /// Room for so many more bytes behind what is there; `commit` says how many were written.
  package func reserve(_ bytes: Int) -> UnsafeMutableRawBufferPointer {
    precondition(bytes >= 0)
    if end + bytes > capacity { grow(bytes) }
    return unsafe UnsafeMutableRawBufferPointer(start: base + end, count: bytes)
  }

  /// The first `bytes` of what was reserved are written.
  package func commit(_ bytes: Int) {
    precondition(bytes >= 0 && end + bytes <= capacity)
    end += bytes
  }

  package func append(_ bytes: UnsafeRawBufferPointer) {
    unsafe reserve(bytes.count).copyMemory(from: bytes)
    end += bytes.count
  }

  func append(_ bytes: ByteBuffer) {
    unsafe bytes.withUnsafeReadableBytes { unsafe append($0) }
  }

  package func clear() { end = 0 }

  /// Writes a part of it. The outlet's answer.
  func write(_ range: Range<Int>, to outlet: inout Outlet) -> Int? {
    precondition(range.lowerBound >= 0 && range.upperBound <= end)
    return unsafe outlet.write(
      UnsafeRawBufferPointer(start: base + range.lowerBound, count: range.count))
  }

  private func grow(_ bytes: Int) {
    let needed = end + bytes
    var capacity = capacity
    while capacity < needed { capacity *= 2 }
    let wider = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 16)
    unsafe wider.copyMemory(from: base, byteCount: end)
    unsafe base.deallocate()
    unsafe base = wider
    self.capacity = capacity
  }
}

/// A socket's way out. Nothing is sent past what the peer has not taken, so frames stay whole and
/// in order, whoever writes.
struct Outlet: Sendable {
  /// Good while `isOpen`; who closes it says so first.
  private let descriptor: Int32
  private var isOpen = true
  private var unsent = ByteBuffer()

  init(descriptor: Int32) { self.descriptor = descriptor }

  var unsentBytes: Int { unsent.readableBytes }

  mutating func close() {
    isOpen = false
    unsent = ByteBuffer()
  }

  /// Sends what the peer takes and keeps the rest: how much is kept now; nil where the socket is
  /// broken.
  mutating func write(_ bytes: UnsafeRawBufferPointer) -> Int? {
    guard isOpen else { return 0 }
    var sent = 0
    if unsent.readableBytes == 0 {
      sent = unsafe LocalSystem.send(descriptor, bytes)
      if sent == bytes.count { return 0 }
      guard sent >= 0 || Self.isFull(sent) else { return nil }
    } else if unsent.readerIndex > 64 * 1024 {
      unsent.discardReadBytes()
    }
    unsafe unsent.writeBytes(UnsafeRawBufferPointer(rebasing: bytes.dropFirst(max(0, sent))))
    return unsent.readableBytes
  }

  mutating func write(_ bytes: ByteBuffer) -> Int? {
    unsafe bytes.withUnsafeReadableBytes { unsafe write($0) }
  }

  /// Sends what was kept.
  mutating func push() -> Int? {
    guard isOpen, unsent.readableBytes > 0 else { return 0 }
    let sent = unsafe unsent.withUnsafeReadableBytes { unsafe LocalSystem.send(descriptor, $0) }
    guard sent >= 0 || Self.isFull(sent) else { return nil }
    unsent.moveReaderIndex(forwardBy: max(0, sent))
    if unsent.readableBytes == 0 { unsent = ByteBuffer() }
    return unsent.readableBytes
  }

  private static func isFull(_ result: Int) -> Bool {
    result == -Int(EAGAIN) || result == -Int(EINTR)
  }
}

/// What is known of a frame whose header was read.
struct FrontFrame {
  var opcode: UInt8
  var correlation: UInt64
  var deadlineMilliseconds: UInt32
  /// Header and payload.
  var bytes: Int
}

/// What all connections of a loop are read into, one after another: behind what a connection had
/// kept of an incomplete frame comes what `recv` gives.
// Safe: `base` has `capacity` bytes for as long as this lives, zeroed at first; every access is
// checked against `end`, up to which they were read.
@safe final class InBytes {
  private let base: UnsafeMutableRawPointer
  private let capacity: Int
  private(set) var end = 0

  init(capacity: Int) {
    self.capacity = capacity
    unsafe base = .allocate(byteCount: capacity, alignment: 16)
    unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: capacity)
  }

  deinit { unsafe base.deallocate() }

  /// Begins with what was kept, or empty.
  func begin(_ kept: [UInt8]) {
    precondition(kept.count <= capacity)
    end = kept.count
    guard end > 0 else { return }
    unsafe kept.withUnsafeBytes {
      unsafe UnsafeMutableRawBufferPointer(start: base, count: capacity).copyMemory(from: $0)
    }
  }

  /// One `recv` of at most so many bytes; its result, or the negative error number.
  func receive(from descriptor: Int32, max: Int) -> Int {
    let room = min(max, capacity - end)
    precondition(room > 0)
    let received = unsafe LocalSystem.receive(
      descriptor, UnsafeMutableRawBufferPointer(start: base + end, count: room))
    if received > 0 { end += received }
    return received
  }

  func bytes(_ range: Range<Int>) -> UnsafeRawBufferPointer {
    precondition(range.lowerBound >= 0 && range.upperBound <= end)
    return unsafe UnsafeRawBufferPointer(start: base + range.lowerBound, count: range.count)
  }

  func array(_ range: Range<Int>) -> [UInt8] { unsafe Array(bytes(range)) }

  /// Reads and checks the header at `index`, where 24 bytes are; nil where anything is wrong with
  /// it. It is the check of `FrameHeader.read`, which then tells what is wrong.
  @inline(__always)
  func frame(at index: Int, frameBytesMax: Int) -> FrontFrame? {
    precondition(index >= 0 && index + FrameHeader.bytes <= end)
    let at = unsafe UnsafeRawPointer(base + index)
    let first = unsafe UInt64(littleEndian: at.loadUnaligned(as: UInt64.self))
    let payload = unsafe UInt32(littleEndian: at.loadUnaligned(fromByteOffset: 8, as: UInt32.self))
    let deadline = unsafe UInt32(
      littleEndian: at.loadUnaligned(fromByteOffset: 12, as: UInt32.self))
    let correlation = unsafe UInt64(
      littleEndian: at.loadUnaligned(fromByteOffset: 16, as: UInt64.self))
    // Magic, version, and reserved bytes that are zero; the opcode and the flags lie between.
    guard first & 0xFFFF_0000_00FF_FFFF == Self.front, payload <= Int32.max,
      Int(payload) + FrameHeader.bytes <= frameBytesMax
    else { return nil }
    let opcode = UInt8(truncatingIfNeeded: first >> 24)
    let flags = UInt16(truncatingIfNeeded: first >> 32)
    let isPlain =
      (opcode == Opcode.consume.rawValue || opcode == Opcode.check.rawValue) && flags == 0
      && correlation != 0 && deadline <= WireLimits.deadlineMillisecondsMax
    if !isPlain {
      var header = FrameHeader(
        opcode: .ping, flags: FrameFlags(rawValue: flags), payloadBytes: payload,
        deadlineMilliseconds: deadline, correlation: correlation)
      header.rawOpcode = opcode
      guard header.fitsOpcode else { return nil }
    }
    return FrontFrame(
      opcode: opcode, correlation: correlation, deadlineMilliseconds: deadline,
      bytes: Int(payload) + FrameHeader.bytes)
  }

  private static let front = UInt64(FrameHeader.magic) | UInt64(FrameHeader.version) << 16
}
