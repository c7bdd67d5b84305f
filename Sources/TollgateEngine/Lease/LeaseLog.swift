// Beside the ring: what its slots mean (definitions of entries) and what became of them (batches
// that were sent, batches that were done). A circular log of checked records; whoever appends to a
// full one first moves what is still needed from its tail to its head.
//
// Records: position 8 │ payload bytes 4 │ kind 4 │ check 8 │ payload, padded to 8. A record never
// wraps.

enum LeaseRecordKind: UInt32 {
  /// Nothing until the end of the area.
  case padding = 0
  case definition = 1
  case sent = 2
  case done = 3
}

@safe package struct LeaseLog: ~Copyable {
  package static let recordBytesMax = 16384
  static let headerBytes = 24
  static let payloadBytesMax = recordBytesMax - headerBytes

  struct Record {
    var position: UInt64
    var kind: LeaseRecordKind
    var payload: [UInt8]
    var next: UInt64
  }

  private let region: StripeRegion
  private(set) var head: UInt64
  private(set) var tail: UInt64

  init(_ region: StripeRegion) {
    self.region = region
    head = max(8, region.word(.logHead))
    tail = max(8, region.word(.logTail))
    if head < tail || head - tail > UInt64(region.logBytes) { tail = head }
  }

  private var size: UInt64 { UInt64(region.logBytes) }
  var bytes: UInt64 { size }
  var free: UInt64 { size - (head - tail) }

  private func offset(_ position: UInt64) -> Int { Int(position % size) }

  private func check(
    _ position: UInt64, _ count: UInt32, _ kind: UInt32, _ payload: UnsafeRawBufferPointer
  ) -> UInt64 {
    let words = LeaseHash.mix(
      position ^ region.generation, UInt64(count) << 32 | UInt64(kind) | 1 << 63)
    return unsafe LeaseHash.mix(words ^ LeaseHash.of(payload), 0x9E37_79B9_7F4A_7C15)
  }

  static func length(_ payload: Int) -> Int { (headerBytes + payload + 7) & ~7 }

  /// What a record of so many bytes takes, padding before it included.
  private func need(_ payload: Int) -> UInt64 {
    let length = UInt64(Self.length(payload))
    let rest = size - head % size
    return rest < length ? rest + length : length
  }

  func fits(_ payload: Int, keeping reserve: UInt64) -> Bool {
    payload <= Self.payloadBytesMax && need(payload) + reserve <= free
  }

  /// Writes a record and answers its position; the caller saw that it fits.
  mutating func append(_ kind: LeaseRecordKind, _ payload: [UInt8]) -> UInt64 {
    let length = Self.length(payload.count)
    let rest = Int(size - head % size)
    if rest < length {
      // A rest that cannot hold a header is known to be padding.
      if rest >= Self.headerBytes { write(.padding, [], count: rest - Self.headerBytes) }
      head += UInt64(rest)
    }
    let position = head
    write(kind, payload, count: payload.count)
    head += UInt64(length)
    region.putInOrder(.logHead, head)
    return position
  }

  private func write(_ kind: LeaseRecordKind, _ payload: [UInt8], count: Int) {
    let area = unsafe region.log(offset(head), Self.headerBytes + payload.count)
    unsafe payload.withUnsafeBytes { payload in
      unsafe area.storeBytes(of: head, as: UInt64.self)
      unsafe area.storeBytes(of: UInt32(count), toByteOffset: 8, as: UInt32.self)
      unsafe area.storeBytes(of: kind.rawValue, toByteOffset: 12, as: UInt32.self)
      unsafe area.storeBytes(
        of: check(head, UInt32(count), kind.rawValue, payload), toByteOffset: 16, as: UInt64.self)
      unsafe UnsafeMutableRawBufferPointer(rebasing: area[Self.headerBytes...]).copyMemory(
        from: payload)
    }
  }

  /// The record at this position; nil where there is none.
  func record(at position: UInt64) -> Record? {
    let rest = Int(size - position % size)
    guard rest >= Self.headerBytes else {
      return Record(
        position: position, kind: .padding, payload: [], next: position + UInt64(rest))
    }
    let header = unsafe UnsafeRawBufferPointer(region.log(offset(position), Self.headerBytes))
    let count = unsafe Int(header.load(fromByteOffset: 8, as: UInt32.self))
    guard unsafe header.load(as: UInt64.self) == position, Self.length(count) <= rest,
      let kind = LeaseRecordKind(
        rawValue: unsafe header.load(fromByteOffset: 12, as: UInt32.self))
    else { return nil }
    let check = unsafe header.load(fromByteOffset: 16, as: UInt64.self)
    let payload = unsafe UnsafeRawBufferPointer(
      region.log(offset(position) + Self.headerBytes, kind == .padding ? 0 : count))
    guard unsafe self.check(position, UInt32(count), kind.rawValue, payload) == check else {
      return nil
    }
    return unsafe Record(
      position: position, kind: kind, payload: [UInt8](payload),
      next: position + UInt64(Self.length(count)))
  }

  /// Gives the space before `position` back.
  mutating func drop(to position: UInt64) {
    tail = position
    region.putInOrder(.logTail, tail)
  }

  /// After a crash: what is behind the written head may be there all the same.
  mutating func restore() {
    while head - tail < size, let record = record(at: head) {
      head = record.next
    }
    region.put(.logHead, head)
  }
}
