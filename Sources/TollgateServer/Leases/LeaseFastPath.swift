// CHECK and CONSUME answered on the thread that read them: the frame's records are read where they
// lie, spent from the lease table, and their answers written where they will be sent from. Nothing
// is allocated, nobody is asked, nothing waits but for a stripe's lock.
//
// All records of a frame or none: a frame that leases do not answer whole goes to its conversation,
// which asks the table again record by record (`Enforcer+Leases`), so what was found here is found
// there. A frame of several records is therefore asked about first and spent then; where another
// thread comes in between, the records already spent are known there by their ids.

import Synchronization
import TollgateCore
import TollgateEngine
import TollgateWire

// Safe: the scratch memory is made by `init`, freed by `deinit`, used between by the one thread
// that has this object, and never beyond the length it was made with.
@safe final class LeaseFastPath: FastPath {
  private let hub: LeaseHub
  private let metrics: Metrics
  private let shape: UnsafeMutableRawPointer
  private let amounts: UnsafeMutableBufferPointer<Int64>
  /// Answers since the last turn.
  private var counts = Counts()

  private struct Counts {
    var allowed = 0
    var replayed = 0
    var denied = 0
  }

  /// Bytes of the longest answer that is given from memory: four items with the longest names.
  static let answerBytesMax = 512
  /// Frames of more records are answered by their conversation, so that no connection's buffer
  /// grows beyond `recordsMax` answers for it.
  static let recordsMax = 64

  init(_ hub: LeaseHub, metrics: Metrics) {
    self.hub = hub
    self.metrics = metrics
    unsafe shape = .allocate(byteCount: RawRecord.shapeBytesMax, alignment: 16)
    unsafe amounts = .allocate(capacity: RawRecord.itemsMax)
    unsafe amounts.initialize(repeating: 0)
  }

  deinit {
    unsafe shape.deallocate()
    unsafe amounts.deallocate()
  }

  package func answer(_ frame: borrowing FastFrame, into out: OutBytes) -> Bool {
    guard hub.isWatched.load(ordering: .relaxed) == 0,
      var records = unsafe RawRecords(frame.payload, max: Self.recordsMax)
    else { return false }
    let count = records.left
    let kind: LeaseKind = frame.opcode == .check ? .check : .consume
    let wall = hub.wall(at: frame.now)
    let head = FrameHeader.bytes + 4
    let room = unsafe out.reserve(head + count * Self.answerBytesMax)
    var counts = counts
    if count > 1, kind == .consume {
      var asked = records
      while let record = unsafe asked.next() {
        guard unsafe spend(record, .check, frame.now, wall, into: room, &counts) > 0 else {
          return false
        }
      }
      counts = self.counts
    }
    var written = head
    while let record = unsafe records.next() {
      let bytes = unsafe spend(
        record, kind, frame.now, wall,
        into: UnsafeMutableRawBufferPointer(rebasing: room[written...]), &counts)
      guard bytes > 0 else { return false }
      written += bytes
    }
    self.counts = counts
    unsafe FrameHeader(
      opcode: .decisions, payloadBytes: UInt32(truncatingIfNeeded: written - FrameHeader.bytes),
      correlation: frame.correlation
    ).write(to: room)
    unsafe room.storeBytes(
      of: UInt32(truncatingIfNeeded: count).littleEndian, toByteOffset: FrameHeader.bytes,
      as: UInt32.self)
    out.commit(written)
    return true
  }

  /// Bytes of the answer; 0: leases do not answer this record.
  @inline(__always)
  private func spend(
    _ record: UnsafeRawBufferPointer, _ kind: LeaseKind, _ now: Int64, _ wall: Int64,
    into room: UnsafeMutableRawBufferPointer, _ counts: inout Counts
  ) -> Int {
    let space = unsafe UnsafeMutableRawBufferPointer(start: shape, count: RawRecord.shapeBytesMax)
    guard let raw = unsafe RawRecord(record, shape: space) else { return 0 }
    let key = unsafe UnsafeRawBufferPointer(start: shape, count: raw.shapeBytes)
    let bucket = unsafe hub.bucket(ofShape: key)
    hub.table.expect(bucket: bucket, raw.id)
    for item in 0..<raw.items { unsafe amounts[item] = raw.amounts[item] }
    let outcome = unsafe hub.table.spend(
      LeaseRequest(
        bucket: bucket, kind: kind, id: raw.id, key: key,
        hash: LeaseHash.of(key),
        amounts: UnsafeBufferPointer(start: amounts.baseAddress, count: raw.items), now: now,
        wall: wall),
      into: room)
    switch outcome {
    case .allowed(let bytes):
      counts.allowed += 1
      return bytes
    case .replayed(let bytes):
      counts.replayed += 1
      return bytes
    case .denied(let bytes):
      counts.denied += 1
      return bytes
    case .known, .knownDenied, .mismatch, .tooOld, .cancelled, .miss: return 0
    }
  }

  package func turnEnded() {
    guard counts.allowed + counts.replayed + counts.denied > 0 else { return }
    if counts.allowed > 0 { hub.spent() }
    metrics.leased(allowed: counts.allowed, replayed: counts.replayed, denied: counts.denied)
    counts = Counts()
  }
}

extension LeaseHub {
  /// Of the account that a shape begins with: u16 length, then its path up to the first slash.
  @inline(__always)
  func bucket(ofShape shape: UnsafeRawBufferPointer) -> Int {
    let end = min(
      shape.count,
      2 + (unsafe Int(UInt16(littleEndian: shape.loadUnaligned(as: UInt16.self)))))
    var hash = StableHash()
    var offset = 2
    while offset < end {
      let byte = unsafe shape[offset]
      if byte == UInt8(ascii: "/") { break }
      hash.combine(byte)
      offset += 1
    }
    return Int(hash.value % UInt64(buckets.buckets))
  }
}
