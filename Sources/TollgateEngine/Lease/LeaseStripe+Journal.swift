// What the log says of the ring's slots, and how both are read after a crash (+Recovery).
//
//   definition  entry, since when (`born`), what is settled (`through`), all that a batch needs
//   sent        batch id, the one it replaces, and per entry: amounts, and up to where
//   done        batch id, and per entry up to where: what a batch settled is known from this
//               record alone, as `sent` may have been dropped, or stand before a definition that
//               was moved while the batch was under way
//
// A slot counts as unsettled where its entry has a definition in the log and it lies at or behind
// what is settled or sent. So an entry with unsettled units keeps its definition: the log moves it.

import TollgateCore

extension LeaseStripe {
  /// Room for a done record of every exchange under way, and of the one that is put together:
  /// without it a recovery might take what it settled for unsettled.
  var doneReserve: UInt64 {
    16384 + UInt64(exchanges.count) * UInt64(LeaseLog.length(16 + 16 * configuration.deltasMax))
  }

  // MARK: - Writing

  /// The entry's definition is put into the log; false: there is no room for it.
  @inline(never)
  mutating func define(_ entry: UInt32) -> Bool {
    let payload = definition(entry)
    // A quarter stays for what brings the definitions out again.
    guard makeLogRoom(payload.count, keeping: log.bytes / 4) else { return false }
    entries[entry].logged = log.append(.definition, payload)
    return true
  }

  mutating func logSent(_ pending: PendingExchange, replacing old: OperationID?) -> UInt64 {
    var writer = PayloadWriter()
    writer.put(pending.id.high)
    writer.put(pending.id.low)
    writer.put(old?.high ?? 0)
    writer.put(old?.low ?? 0)
    writer.put(UInt64(pending.bucket))
    writer.put(UInt64(pending.entries.count))
    for batch in pending.entries {
      writer.put(UInt64(batch.entry) | UInt64(batch.amounts.count) << 32)
      writer.put(entries[batch.entry].sent)
      for amount in batch.amounts { writer.put(UInt64(bitPattern: amount)) }
    }
    return log.append(.sent, writer.bytes)
  }

  mutating func logDone(_ pending: PendingExchange) {
    var writer = PayloadWriter()
    writer.put(pending.id.high)
    writer.put(pending.id.low)
    for batch in pending.entries {
      writer.put(UInt64(batch.entry))
      writer.put(entries[batch.entry].sent)
    }
    guard makeLogRoom(writer.bytes.count, keeping: 0) else { return }
    _ = log.append(.done, writer.bytes)
  }

  /// Moves what is needed from the tail of the log to its head until so much fits.
  mutating func makeLogRoom(_ payload: Int, keeping reserve: UInt64) -> Bool {
    var moves = 0
    while !log.fits(payload, keeping: reserve) {
      guard log.tail < log.head, let record = log.record(at: log.tail) else { return false }
      switch record.kind {
      case .padding, .done: break
      case .definition:
        let entry = PayloadReader.first(record.payload)
        guard entries.contains(entry), entries[entry].has(LeaseEntry.isLive),
          entries[entry].logged == record.position
        else { break }
        if entries[entry].has(LeaseEntry.isDirty) || entries[entry].has(LeaseEntry.isInFlight) {
          let moved = definition(entry)
          guard moves < 32, log.fits(moved.count, keeping: 0) else { return false }
          entries[entry].logged = log.append(.definition, moved)
          moves += 1
        } else {
          entries[entry].logged = 0
        }
      case .sent:
        guard let number = exchanges.first(where: { $0.value.logged == record.position })?.key
        else { break }
        guard moves < 32, log.fits(record.payload.count, keeping: 0) else { return false }
        exchanges[number]?.logged = log.append(.sent, record.payload)
        moves += 1
      }
      log.drop(to: record.next)
    }
    return true
  }

  private func definition(_ entry: UInt32) -> [UInt8] {
    let e = entries[entry]
    var writer = PayloadWriter()
    writer.put(UInt64(entry) | UInt64(e.itemCount) << 32 | UInt64(e.referenceCount) << 40)
    writer.put(e.born)
    writer.put(e.through)
    writer.put(accounts[e.account].lessee)
    writer.put(accounts[e.account].ordinal)
    writer.put(UInt64(accounts[e.account].bucket))
    writer.put(bytes.array(accounts[e.account].name))
    writer.put(bytes.array(e.key))
    writer.put(bytes.array(e.definition))
    for place in 0..<UInt32(e.referenceCount) {
      let reference = references[e.references + place]
      let key = key(of: reference.portion)
      writer.put(UInt64(reference.item) | UInt64(key.kind.rawValue) << 32)
      writer.put(UInt64(bitPattern: key.start))
      writer.put(UInt64(bitPattern: key.end))
      writer.put(key.name)
      writer.put(key.limits)
    }
    return writer.bytes
  }

  /// At most what `definition` makes of it.
  func definitionBytes(_ r: LeaseRegistration) -> Int {
    func text(_ bytes: [UInt8]) -> Int { 8 + bytes.count + 8 }
    return r.portions.reduce(
      48 + text(r.account) + text(r.key) + text(r.definition)
    ) { $0 + 24 + text($1.name) + text($1.limits) }
  }
}

/// Words and texts of a record.
struct PayloadWriter {
  private(set) var bytes: [UInt8] = []

  mutating func put(_ word: UInt64) {
    for shift in stride(from: UInt64(0), to: 64, by: 8) {
      bytes.append(UInt8(truncatingIfNeeded: word >> shift))
    }
  }

  mutating func put(_ text: [UInt8]) {
    put(UInt64(text.count))
    bytes += text
  }
}

struct PayloadReader {
  private let bytes: [UInt8]
  private var at = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  mutating func word() -> UInt64? {
    guard bytes.count - at >= 8 else { return nil }
    var word: UInt64 = 0
    for index in 0..<8 { word |= UInt64(bytes[at + index]) << UInt64(index * 8) }
    at += 8
    return word
  }

  mutating func text() -> [UInt8]? {
    guard let count = word(), count <= UInt64(bytes.count - at) else { return nil }
    defer { at += Int(count) }
    return Array(bytes[at..<at + Int(count)])
  }

  /// The index of the entry that a definition is of.
  static func first(_ payload: [UInt8]) -> UInt32 {
    var reader = PayloadReader(payload)
    return UInt32(truncatingIfNeeded: reader.word() ?? 0)
  }
}
