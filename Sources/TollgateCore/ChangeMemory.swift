// The changes that are remembered of one account, or of the global configuration, so that an
// operation id has one effect (promise 4): the last 32 of them, and below them a floor. An id that
// is remembered is answered as it was the first time; one that is not, and is at or below the
// highest id ever dropped, may be one that was forgotten, and is refused as too old.
//
// The bytes are those of the field `op` in Redis (proto/KEYS.md): 16 of the floor, then 40 for each
// change, newest first: id, fingerprint, result and time, the last two as big-endian doubles, which
// hold every quantity exactly and which Lua reads without help. Scripts decide by them; this type
// reads them for answers that need no write, and writes them where Redis is seeded from a ledger.

package struct ChangeMemory: Hashable, Sendable {
  package static let entriesMax = 32
  package static let floorBytes = 16
  package static let entryBytes = 40
  /// How far ahead of the server an id may have been minted, as for operations.
  package static let aheadMillisecondsMax: Int64 = 60_000

  package struct Entry: Hashable, Sendable {
    package var operation: OperationID
    package var fingerprint: UInt64
    /// The version that the change made; of a reset, the units it forgave.
    package var result: Int64
    package var time: WallTime

    package init(operation: OperationID, fingerprint: UInt64, result: Int64, time: WallTime) {
      self.operation = operation
      self.fingerprint = fingerprint
      self.result = result
      self.time = time
    }
  }

  /// What of a request differs from the one that had its id: the halves of a fingerprint.
  package enum Difference: Int, Hashable, Sendable {
    case action = 0
    case body = 1
  }

  package enum Verdict: Hashable, Sendable {
    case unknown
    case replayed(Entry)
    case mismatch(Difference)
    case tooOld
  }

  /// The highest id that was dropped; zero: none was.
  package var floor: OperationID
  /// Newest first.
  package var entries: [Entry]

  package init(
    floor: OperationID = OperationID(high: 0, low: 0), entries: [Entry] = []
  ) {
    self.floor = floor
    self.entries = Array(entries.prefix(Self.entriesMax))
    for gone in entries.dropFirst(Self.entriesMax) { self.floor = max(self.floor, gone.operation) }
  }

  package var isEmpty: Bool { entries.isEmpty && floor == OperationID(high: 0, low: 0) }

  package func verdict(on operation: OperationID, fingerprint: UInt64) -> Verdict {
    if let entry = entries.first(where: { $0.operation == operation }) {
      if entry.fingerprint == fingerprint { return .replayed(entry) }
      return .mismatch(entry.fingerprint >> 32 == fingerprint >> 32 ? .body : .action)
    }
    return !isEmpty && operation <= floor ? .tooOld : .unknown
  }

  /// nil where the bytes are no memory.
  package init?(bytes: [UInt8]) {
    self.init()
    if bytes.isEmpty { return }
    guard bytes.count >= Self.floorBytes,
      (bytes.count - Self.floorBytes).isMultiple(of: Self.entryBytes)
    else { return nil }
    floor = OperationID(
      high: UInt64(bigEndian: bytes[0..<8]), low: UInt64(bigEndian: bytes[8..<16]))
    for at in stride(from: Self.floorBytes, to: bytes.count, by: Self.entryBytes) {
      let words = stride(from: at, to: at + Self.entryBytes, by: 8).map {
        UInt64(bigEndian: bytes[$0..<$0 + 8])
      }
      guard let result = Int64(exactly: Double(bitPattern: words[3])),
        let time = Int64(exactly: Double(bitPattern: words[4]))
      else { return nil }
      entries.append(
        Entry(
          operation: OperationID(high: words[0], low: words[1]), fingerprint: words[2],
          result: result, time: WallTime(milliseconds: time)))
    }
  }

  package var bytes: [UInt8] {
    if isEmpty { return [] }
    var words = [floor.high, floor.low]
    for entry in entries {
      words += [
        entry.operation.high, entry.operation.low, entry.fingerprint,
        Double(entry.result).bitPattern, Double(entry.time.milliseconds).bitPattern,
      ]
    }
    return words.flatMap { word in
      stride(from: UInt64(56), through: 0, by: -8).map { UInt8(truncatingIfNeeded: word >> $0) }
    }
  }
}

extension UInt64 {
  fileprivate init(bigEndian bytes: ArraySlice<UInt8>) {
    self = bytes.reduce(0) { $0 << 8 | UInt64($1) }
  }
}
