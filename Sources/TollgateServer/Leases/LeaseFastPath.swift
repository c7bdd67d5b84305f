// CHECK and CONSUME answered on the thread that read them: the frame's records are read where they
// lie, spent from the lease table, and their answers written where they will be sent from. Nothing
// is allocated, nobody is asked, nothing waits but for a stripe's lock.
//
// All records of a frame or none: a frame that leases do not answer whole goes to its conversation,
// which asks the table again record by record (`Enforcer+Leases`), so what was found here is found
// there. A frame of several records is therefore asked about first, each beside what those before
// it take, and spent then; where another thread comes in between, or a bound is reached, what was
// spent already is known there by its ids.
//
// What an operation touches is seldom in a cache, so it is named early: all records of a frame are
// read before the first is looked for, and the next frame before this one is answered.

import Synchronization
package import TollgateCore
package import TollgateEngine
import TollgateWire

// Safe: the scratch memory is made by `init`, freed by `deinit`, used between by the one thread
// that has this object, and never beyond the length it was made with.
@safe package final class LeaseFastPath: FastPath {
  private let hub: LeaseHub
  private let metrics: Metrics
  /// Of each record that is being looked at, where its shape does not lie in the frame.
  private let shapes: UnsafeMutableRawPointer
  private let records: UnsafeMutablePointer<ReadRecord>
  /// Where the record of this frame lies; that of the next may lie in the other of the first two.
  private var place = 0
  private var isAhead = false
  /// Answers since the last turn.
  private var counts = Counts()

  // Safe: `key` lies in the frame or in `shapes`, and is used before the frame is gone.
  @safe private struct ReadRecord {
    var raw: RawRecord
    var key: UnsafeRawBufferPointer
    var hash: UInt64
    var bucket: Int
  }

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
    unsafe shapes = .allocate(
      byteCount: RawRecord.shapeBytesMax * Self.recordsMax, alignment: 16)
    unsafe records = .allocate(capacity: Self.recordsMax)
  }

  /// For measurements: with a table of its own and no sidecar around it, so that nothing is settled
  /// but by whoever does so here.
  package convenience init(alone configuration: ServerConfiguration, at time: WallTime) throws {
    let buckets = BucketMap(buckets: configuration.deployment.buckets)
    let hub = try LeaseHub(configuration, buckets: buckets, startedAt: time)
    hub.heard(time, at: LeaseHub.bootNanoseconds())
    self.init(hub, metrics: Metrics())
  }

  package var table: LeaseTable { hub.table }

  deinit {
    unsafe shapes.deallocate()
    unsafe records.deallocate()
  }

  package func answer(_ frame: borrowing FastFrame, into out: OutBytes) -> Bool {
    let wasRead = frame.wasNext && isAhead
    isAhead = false
    var count = 1
    if wasRead {
      place ^= 1
    } else {
      guard var each = unsafe RawRecords(frame.payload, max: Self.recordsMax) else { return false }
      count = each.left
      if count > 1 { place = 0 }
      var index = place
      while let record = unsafe each.next() {
        guard unsafe read(record, into: index) else { return false }
        index += 1
      }
    }
    if count == 1, let next = unsafe frame.next, let record = unsafe RawRecords.only(next) {
      isAhead = unsafe read(record, into: place ^ 1)
    }
    guard hub.isWatched.load(ordering: .relaxed) == 0 else { return false }
    let kind: LeaseKind = frame.opcode == .check ? .check : .consume
    let wall = hub.wall(at: frame.now)
    if count > 1, kind == .consume {
      for index in 0..<count {
        let before = units(before: index)
        let would = with(index, kind, frame.now, wall) {
          hub.table.wouldAnswer($0, space: Self.answerBytesMax, after: before)
        }
        guard would else { return false }
      }
    }
    let head = FrameHeader.bytes + 4
    let room = unsafe out.reserve(head + count * Self.answerBytesMax)
    var counts = counts
    var written = head
    for index in place..<place + count {
      let bytes = unsafe spend(
        index, kind, frame.now, wall,
        into: UnsafeMutableRawBufferPointer(rebasing: room[written...]), frame.features, &counts)
      guard bytes > 0 else {
        // What was spent is known by its id where the frame goes now.
        if index > place { hub.spent() }
        return false
      }
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

  /// What the records before it take, of its bucket: of its own account at least.
  @inline(__always)
  private func units(before index: Int) -> Int64 {
    let bucket = unsafe records[index].bucket
    var sum: Int64 = 0
    for other in 0..<index where unsafe records[other].bucket == bucket {
      for item in 0..<(unsafe records[other].raw.items) {
        unsafe sum &+= records[other].raw.amounts[item]
      }
    }
    return sum
  }

  /// False: it is for the other path.
  @inline(__always)
  private func read(_ record: UnsafeRawBufferPointer, into place: Int) -> Bool {
    let shape = unsafe UnsafeMutableRawBufferPointer(
      start: shapes + place &* RawRecord.shapeBytesMax, count: RawRecord.shapeBytesMax)
    guard let raw = unsafe RawRecord(record, shape: shape) else { return false }
    let key = unsafe raw.shape(record, shape)
    let bucket = unsafe hub.bucket(ofShape: key)
    hub.table.expect(bucket: bucket, raw.id)
    unsafe (records + place).initialize(
      to: ReadRecord(raw: raw, key: key, hash: LeaseHash.of(key), bucket: bucket))
    return true
  }

  @inline(__always)
  private func with<T>(
    _ index: Int, _ kind: LeaseKind, _ now: Int64, _ wall: Int64,
    _ body: (borrowing LeaseRequest) -> T
  ) -> T {
    let record = unsafe records + index
    let id = unsafe record.pointee.raw.id
    let count = unsafe record.pointee.raw.items
    return unsafe withUnsafeBytes(of: &record.pointee.raw.amounts) { amounts in
      unsafe body(
        LeaseRequest(
          bucket: record.pointee.bucket, kind: kind, id: id, key: record.pointee.key,
          hash: record.pointee.hash,
          amounts: UnsafeBufferPointer(
            start: amounts.baseAddress?.assumingMemoryBound(to: Int64.self), count: count),
          now: now, wall: wall))
    }
  }

  /// Bytes of the answer; 0: leases do not answer this record.
  @inline(__always)
  private func spend(
    _ index: Int, _ kind: LeaseKind, _ now: Int64, _ wall: Int64,
    into room: UnsafeMutableRawBufferPointer, _ features: ProtocolFeatures,
    _ counts: inout Counts
  ) -> Int {
    let outcome = with(index, kind, now, wall) { unsafe hub.table.spend($0, into: room) }
    switch outcome {
    case .allowed(let bytes):
      counts.allowed += 1
      return bytes
    case .replayed(let bytes):
      counts.replayed += 1
      return bytes
    case .denied(let bytes):
      counts.denied += 1
      if !features.contains(.reservations) { unsafe Self.tellInOlderWords(room) }
      return bytes
    case .known, .knownDenied, .mismatch, .tooOld, .cancelled, .miss: return 0
    }
  }

  /// A reason that the peer does not know becomes the one that it is told instead.
  private static func tellInOlderWords(_ answer: UnsafeMutableRawBufferPointer) {
    let number = unsafe UInt16(
      littleEndian: answer.loadUnaligned(
        fromByteOffset: AnswerTemplate.reasonOffset, as: UInt16.self))
    guard let reason = Reason(rawValue: number) else { return }
    unsafe answer.storeBytes(
      of: reason.knownWithoutReservations.rawValue.littleEndian,
      toByteOffset: AnswerTemplate.reasonOffset, as: UInt16.self)
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
