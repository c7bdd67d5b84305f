// What an earlier incarnation left in the ring and the log, read when a table is made. What it let
// through and did not see settled becomes accounts that nobody finds ("ghosts"), under its lessee:
// the exchanges settle them like any other, and then they are gone. Nothing is rewritten for it, so
// a crash in the middle of a recovery is recovered in the same way.

import TollgateCore

extension LeaseStripe {
  struct Definition {
    var position: UInt64
    var entry: UInt32
    var items: Int
    var born: UInt64
    var through: UInt64
    var lessee: UInt64
    var ordinal: UInt64
    var bucket: Int
    var account: [UInt8]
    var key: [UInt8]
    var definition: [UInt8]
    var portions: [(item: UInt32, key: LeasePortionKey)]
    /// Up to where its slots are settled or in a batch that is in doubt.
    var taken: UInt64
    var sums: [Int64]
    var operations: UInt32 = 0
    var isInDoubt = false

    init?(_ record: LeaseLog.Record) {
      var reader = PayloadReader(record.payload)
      guard let first = reader.word(), let born = reader.word(), let through = reader.word(),
        let lessee = reader.word(), let ordinal = reader.word(), let bucket = reader.word(),
        let account = reader.text(), let key = reader.text(), let definition = reader.text()
      else { return nil }
      position = record.position
      entry = UInt32(truncatingIfNeeded: first)
      items = Int(first >> 32 & 0xFF)
      self.born = born
      self.through = through
      taken = through
      self.lessee = lessee
      self.ordinal = ordinal
      self.bucket = Int(truncatingIfNeeded: bucket)
      self.account = account
      self.key = key
      self.definition = definition
      portions = []
      sums = Array(repeating: 0, count: items)
      for _ in 0..<Int(first >> 40 & 0xFF) {
        guard let word = reader.word(), let start = reader.word(), let end = reader.word(),
          let name = reader.text(), let limits = reader.text(),
          let kind = LeasePortionKey.Kind(rawValue: UInt8(truncatingIfNeeded: word >> 32))
        else { return nil }
        portions.append(
          (
            UInt32(truncatingIfNeeded: word),
            LeasePortionKey(
              kind, name: name, limits: limits, start: Int64(bitPattern: start),
              end: Int64(bitPattern: end))
          ))
      }
      guard entry != 0, entry <= LeaseSlot.entryMax,
        (1...LeaseStripe.itemsMax).contains(items),
        portions.allSatisfy({ $0.item < items })
      else { return nil }
    }
  }

  struct Sent {
    var position: UInt64
    var id: OperationID
    var bucket: Int
    var entries: [(entry: UInt32, sent: UInt64, amounts: [Int64])] = []
  }

  /// What an earlier incarnation let through and did not see settled, taken up under its lessee:
  /// accounts that nobody finds, whose entries are settled and then gone.
  mutating func recover() {
    log.restore()
    var definitions: [UInt32: Definition] = [:]
    var doubts: [Sent] = []
    readLog(&definitions, &doubts)
    for position in ring.tail..<ring.head where ring.isValid(position) {
      add(position, to: &definitions)
    }
    let needed = definitions.values.filter { definition in
      definition.isInDoubt || definition.sums.contains { $0 != 0 }
    }.sorted { $0.entry < $1.entry }
    // The slots name entries by their index, so each comes back where it was.
    var spare: [UInt32] = []
    var ghosts: [GhostKey: UInt32] = [:]
    var named: [GhostPortion: UInt32] = [:]
    for definition in needed {
      while entries.indices.upperBound < definition.entry {
        let index = entries.allocate(LeaseEntry())
        guard index != 0 else { break }
        spare.append(index)
      }
      if entries.indices.upperBound == definition.entry, owns(bucket: definition.bucket),
        revive(definition, &ghosts, &named)
      {
        continue
      }
      // A table with less room than the one that wrote this, or without its bucket.
      for sum in definition.sums { unresolvedUnits += abs(sum) }
    }
    for index in spare { entries.release(index) }
    for doubt in doubts { revive(doubt) }
  }

  private mutating func readLog(_ definitions: inout [UInt32: Definition], _ doubts: inout [Sent]) {
    var at = log.tail
    while at < log.head, let record = log.record(at: at) {
      at = record.next
      switch record.kind {
      case .padding: break
      case .definition:
        guard var definition = Definition(record) else { continue }
        // A batch that was sent before this was moved took what it took.
        if let old = definitions[definition.entry], old.born == definition.born {
          definition.taken = max(definition.taken, old.taken)
        }
        definitions[definition.entry] = definition
      case .sent:
        guard let (sent, replaced) = Self.sent(record) else { continue }
        doubts.removeAll { $0.id == replaced || $0.id == sent.id }
        doubts.append(sent)
        for batch in sent.entries {
          guard let taken = definitions[batch.entry]?.taken else { continue }
          definitions[batch.entry]?.taken = max(taken, batch.sent)
        }
      case .done:
        var reader = PayloadReader(record.payload)
        guard let high = reader.word(), let low = reader.word() else { continue }
        while let entry = reader.word(), let sent = reader.word() {
          let entry = UInt32(truncatingIfNeeded: entry)
          guard var definition = definitions[entry] else { continue }
          definition.through = max(definition.through, sent)
          definition.taken = max(definition.taken, sent)
          definitions[entry] = definition
        }
        doubts.removeAll { $0.id == OperationID(high: high, low: low) }
      }
    }
    // Of a bucket that is not here nobody can say what was done, nor do it.
    var known: [Sent] = []
    for sent in doubts {
      if owns(bucket: sent.bucket) {
        known.append(sent)
      } else {
        for batch in sent.entries {
          for amount in batch.amounts { unresolvedUnits += abs(amount) }
        }
      }
    }
    doubts = known
    // A batch may have been moved behind a definition that was moved behind it.
    for sent in doubts {
      for batch in sent.entries {
        guard let taken = definitions[batch.entry]?.taken else { continue }
        definitions[batch.entry]?.taken = max(taken, batch.sent)
        definitions[batch.entry]?.isInDoubt = true
      }
    }
  }

  private static func sent(_ record: LeaseLog.Record) -> (Sent, OperationID)? {
    var reader = PayloadReader(record.payload)
    guard let high = reader.word(), let low = reader.word(), let oldHigh = reader.word(),
      let oldLow = reader.word(), let bucket = reader.word(), let count = reader.word()
    else { return nil }
    var sent = Sent(
      position: record.position, id: OperationID(high: high, low: low),
      bucket: Int(truncatingIfNeeded: bucket))
    for _ in 0..<min(count, 1024) {
      guard let head = reader.word(), let through = reader.word() else { return nil }
      var amounts: [Int64] = []
      for _ in 0..<min(head >> 32, 16) {
        guard let amount = reader.word() else { return nil }
        amounts.append(Int64(bitPattern: amount))
      }
      sent.entries.append((UInt32(truncatingIfNeeded: head), through, amounts))
    }
    return (sent, OperationID(high: oldHigh, low: oldLow))
  }

  private func add(_ position: UInt64, to definitions: inout [UInt32: Definition]) {
    let slot = ring.slot(position)
    switch slot.kind {
    case .none, .continuation, .marker, .denied: return
    case .operation, .cancelled, .correction: break
    }
    guard let definition = definitions[slot.entry], definition.items == slot.items,
      position >= definition.born, position >= definition.taken
    else { return }
    let span = UInt64(LeaseRing.length(items: slot.items))
    guard position + span <= ring.head,
      (position..<position + span).allSatisfy({ ring.isValid($0) })
    else { return }
    for item in 0..<slot.items {
      definitions[slot.entry]?.sums[item] += amount(item, position, slot)
    }
    definitions[slot.entry]?.operations += 1
  }

  struct GhostKey: Hashable {
    var account: [UInt8]
    var lessee: UInt64
  }

  struct GhostPortion: Hashable {
    var account: UInt32
    var key: LeasePortionKey
  }

  private mutating func revive(
    _ definition: Definition, _ ghosts: inout [GhostKey: UInt32],
    _ named: inout [GhostPortion: UInt32]
  ) -> Bool {
    let key = GhostKey(account: definition.account, lessee: definition.lessee)
    var account = ghosts[key] ?? 0
    if account == 0 {
      account = newAccount(
        definition.account, bucket: definition.bucket, lessee: definition.lessee)
      guard account != 0 else { return false }
      accounts[account].set(LeaseAccount.isGhost, true)
      ghosts[key] = account
      self.ghosts += 1
    }
    // Sends since the definition was written raised it further: far more than there can be of them.
    accounts[account].ordinal = max(
      accounts[account].ordinal, definition.ordinal + Self.ordinalsPerIncarnation)
    var wanted: [LeaseReference] = []
    for portion in definition.portions {
      // What its limits were does not matter any more: nothing is asked for.
      var name = GhostPortion(account: account, key: portion.key)
      name.key.limits = []
      name.key.end = 0
      if named[name] == nil {
        named[name] = newPortion(portion.key, 0, of: account)
      }
      guard let index = named[name], index != 0 else { return false }
      wanted.append(LeaseReference(portion: index, item: portion.item))
    }
    let entry = newEntry(
      definition.key, LeaseHash.of(definition.key), definition.definition, of: account, wanted,
      items: definition.items)
    guard entry != 0 else { return false }
    precondition(entry == definition.entry, "a fresh slab gives its indexes in their order")
    entries[entry].set(LeaseEntry.isRetired, true)
    entries[entry].born = definition.born
    entries[entry].through = definition.through
    entries[entry].sent = definition.taken
    entries[entry].logged = definition.position
    for (index, sum) in definition.sums.enumerated() {
      let item = entries[entry].items + UInt32(index)
      items[item].open = max(0, sum)
      items[item].credit = max(0, -sum)
      creditUnits += max(0, -sum)
      unsettledUnits += max(0, sum)
      for reference in wanted where Int(reference.item) == index {
        portions[reference.portion].open += max(0, sum)
      }
    }
    if definition.sums.contains(where: { $0 != 0 }) {
      entries[entry].operations = definition.operations
      unsettledOperations += Int64(definition.operations)
      soil(entry, now: .min / 2)
    }
    return true
  }

  /// A batch of which nobody knows whether it was done goes out again as it was.
  private mutating func revive(_ doubt: Sent) {
    var pending = PendingExchange(id: doubt.id, bucket: doubt.bucket)
    pending.logged = doubt.position
    pending.mayBeDone = true
    pending.isWaiting = true
    let number = nextExchange
    nextExchange &+= 1
    for batch in doubt.entries {
      guard entries.contains(batch.entry), entries[batch.entry].has(LeaseEntry.isLive),
        Int(entries[batch.entry].itemCount) == batch.amounts.count
      else {
        for amount in batch.amounts { unresolvedUnits += abs(amount) }
        continue
      }
      let e = entries[batch.entry]
      var place = pending.accounts.firstIndex { $0.account == e.account } ?? -1
      if place < 0 {
        place = pending.accounts.count
        pending.accounts.append(.init(account: e.account, portions: [], sentAt: .min))
        accounts[e.account].exchange = number
      }
      for (index, amount) in batch.amounts.enumerated() {
        items[e.items + UInt32(index)].inFlight = amount
        unsettledUnits += max(0, amount)
        creditUnits += max(0, -amount)
        for reference in e.references..<e.references + UInt32(e.referenceCount)
        where references[reference].item == UInt32(index) && amount != 0 {
          let portion = references[reference].portion
          if let at = pending.accounts[place].portions.firstIndex(where: {
            $0.portion == portion
          }) {
            pending.accounts[place].portions[at].settle += amount
          } else {
            pending.accounts[place].portions.append(
              .init(portion: portion, settle: amount, target: -1))
          }
          portions[portion].inFlight += max(0, amount)
          portions[portion].set(LeasePortion.isOut, true)
        }
      }
      entries[batch.entry].set(LeaseEntry.isInFlight, true)
      pending.entries.append(.init(entry: batch.entry, amounts: batch.amounts))
      pending.places.append(place)
    }
    guard !pending.accounts.isEmpty else { return }
    exchanges[number] = pending
    again[Int(line(of: doubt.bucket))].append(number)
  }

  static let ordinalsPerIncarnation: UInt64 = 1 << 32
}
