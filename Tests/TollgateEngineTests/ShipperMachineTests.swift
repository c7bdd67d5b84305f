// One bucket's delivery as transcripts: what was read, what the ledger said, what is done.

import Testing
import TollgateCore
import TollgateEngine
import TollgateTesting

@Suite(.blocking) struct ShipperMachineTests {
  private static let limits = ShipperMachine.Limits(
    entriesMax: 4, bytesMax: 1_000, entryBytes: 100, idleFirst: 5, idleLongest: 60)

  private func entry(_ sequence: Int64, body: Int = 0, kind: DeltaKind = .usage) -> OutboxEntry {
    OutboxEntry(
      sequence: sequence, kind: kind,
      id: DeltaID(operation: OperationID(high: 7, low: UInt64(sequence)), index: 0),
      time: WallTime(milliseconds: sequence), actual: 1, charged: 1, absorbed: 0,
      body: [UInt8](repeating: 0, count: body))
  }

  private func entries(_ range: ClosedRange<Int64>) -> [OutboxEntry] { range.map { entry($0) } }

  private func machine(epoch: Int64 = 1) -> ShipperMachine {
    var machine = ShipperMachine(limits: Self.limits)
    machine.entered(epoch: epoch)
    return machine
  }

  private func sent(_ step: ShipperMachine.Step) -> [Int64] {
    if case .send(_, let entries) = step { entries.map(\.sequence) } else { [] }
  }

  @Test func whatIsReadIsSentAndTheCursorFollowsTheLedger() {
    var machine = machine()
    #expect(machine.entriesRead(entries(1...3)) == .send(previous: 0, entries: entries(1...3)))
    #expect(
      machine.replied(.acknowledged(cursor: 3, duplicates: []))
        == .posted(delivered: 3, duplicates: []))
    #expect(machine.cursor == 3)
    #expect(machine.entriesRead(entries(4...5)) == .send(previous: 3, entries: entries(4...5)))
  }

  @Test func anEmptyOutboxIsReadLessAndLessOften() {
    var machine = machine()
    let rests = (0..<5).map { _ in machine.entriesRead([]) }
    #expect(rests == [10, 20, 40, 60, 60].map { .rest(milliseconds: $0) })
    _ = machine.entriesRead(entries(1...1))
    machine.sendFailed()
    #expect(machine.entriesRead([]) == .rest(milliseconds: 10))
  }

  @Test func aBatchIsCutByCountByBytesAndAtAHole() {
    var machine = machine()
    #expect(sent(machine.entriesRead(entries(1...9))) == [1, 2, 3, 4])
    #expect(
      sent(machine.entriesRead([entry(1, body: 500), entry(2, body: 299), entry(3)])) == [1, 2])
    #expect(sent(machine.entriesRead([entry(1), entry(2), entry(4)])) == [1, 2])
  }

  /// An entry larger than a batch may be must not stop the stream.
  @Test func anEntryIsNeverLeftBehindForItsSize() {
    var machine = machine()
    #expect(sent(machine.entriesRead([entry(1, body: 5_000), entry(2)])) == [1])
  }

  /// PITFALL 15 and 20: a lost answer forgets nothing and posts nothing twice.
  @Test func aBatchWithoutAnAnswerIsSentAgain() {
    var machine = machine()
    _ = machine.entriesRead(entries(1...3))
    machine.sendFailed()
    #expect(machine.cursor == 0)
    #expect(sent(machine.entriesRead(entries(1...3))) == [1, 2, 3])
    // The ledger had posted them; it says so by its cursor alone.
    #expect(
      machine.replied(.acknowledged(cursor: 3, duplicates: []))
        == .posted(delivered: 3, duplicates: []))
  }

  /// PITFALL 28: somebody else delivered these and more, and may have been killed before its
  /// duplicates were taken back: only the answer to their own batch names them.
  @Test func aLedgerAheadOfUsIsFollowedBatchByBatch() {
    var machine = machine()
    _ = machine.entriesRead(entries(1...3))
    #expect(
      machine.replied(.acknowledged(cursor: 9, duplicates: []))
        == .posted(delivered: 3, duplicates: []))
    #expect(machine.cursor == 3)
    _ = machine.entriesRead(entries(4...5))
    #expect(
      machine.replied(.acknowledged(cursor: 9, duplicates: [entry(4).id]))
        == .posted(delivered: 2, duplicates: [entry(4)]))
    let news = [machine.learned(cursor: 12), machine.learned(cursor: 12)]
    #expect(news == [true, false])
    #expect(machine.cursor == 12)
  }

  @Test func aShipperThatTakesABucketOverStartsAtTheNotedAcknowledgement() {
    var machine = machine()
    _ = machine.entriesRead(entries(1...4))
    _ = machine.replied(.acknowledged(cursor: 4, duplicates: []))
    machine.took(cursor: 2)
    #expect(machine.cursor == 2)
    #expect(machine.entriesRead(entries(3...4)) == .send(previous: 2, entries: entries(3...4)))
    #expect(
      machine.replied(.acknowledged(cursor: 40, duplicates: [entry(3).id]))
        == .posted(delivered: 2, duplicates: [entry(3)]))
  }

  @Test func anAnswerThatIsBehindDoesNotSetTheCursorBack() {
    var machine = machine()
    _ = machine.learned(cursor: 5)
    _ = machine.entriesRead(entries(6...7))
    #expect(
      machine.replied(.acknowledged(cursor: 4, duplicates: []))
        == .posted(delivered: 0, duplicates: []))
    #expect(machine.cursor == 5)
  }

  /// A shipper that has just taken a trimmed bucket does not know the cursor; the ledger tells it.
  @Test func aFirstGapIsAnsweredByReadingFromTheLedgersCursor() {
    var machine = machine()
    #expect(machine.entriesRead(entries(8...9)) == .send(previous: 7, entries: entries(8...9)))
    #expect(machine.replied(.gap(cursor: 5)) == .readAgain)
    #expect(machine.cursor == 5)
    #expect(sent(machine.entriesRead(entries(6...9))) == [6, 7, 8, 9])
    #expect(
      machine.replied(.acknowledged(cursor: 9, duplicates: []))
        == .posted(delivered: 4, duplicates: []))
  }

  @Test func aGapThatStaysIsNeverSkipped() {
    var machine = machine()
    for _ in 0..<2 {
      _ = machine.entriesRead(entries(8...9))
      #expect(machine.replied(.gap(cursor: 5)) == .readAgain)
      _ = machine.entriesRead(entries(8...9))
      #expect(machine.replied(.gap(cursor: 5)) == .rebuild(.gap(cursor: 5, first: 8)))
    }
  }

  @Test func gapsWithADeliveryBetweenThemAreEachAFirstOne() {
    var machine = machine()
    for sequence: Int64 in [3, 6, 9] {
      _ = machine.entriesRead([entry(sequence)])
      #expect(machine.replied(.gap(cursor: sequence - 2)) == .readAgain)
      _ = machine.entriesRead(entries(sequence - 1...sequence))
      _ = machine.replied(.acknowledged(cursor: sequence, duplicates: []))
    }
  }

  @Test func aFenceAndAForkAreRebuilt() {
    var machine = machine()
    _ = machine.entriesRead(entries(1...1))
    #expect(machine.replied(.fenced) == .rebuild(.fenced))
    _ = machine.entriesRead(entries(1...1))
    #expect(machine.replied(.forked(sequence: 1)) == .rebuild(.forked(sequence: 1)))
  }

  @Test func onlyDuplicatesThatMovedACounterAreTakenBack() {
    var machine = machine()
    let batch = [entry(1), entry(2, kind: .config), entry(3, kind: .reversal)]
    _ = machine.entriesRead(batch)
    let foreign = entry(99).id
    #expect(
      machine.replied(.acknowledged(cursor: 3, duplicates: batch.map(\.id) + [foreign]))
        == .posted(delivered: 3, duplicates: [batch[0], batch[2]]))
  }

  /// A delta that was appended twice and delivered in one batch: one of the two is posted.
  @Test func ofOneIdInOneBatchAsManyAreTakenBackAsTheAnswerNames() {
    var machine = machine()
    var batch = entries(1...4)
    batch[2] = OutboxEntry(
      sequence: 3, kind: .usage, id: batch[0].id, time: batch[0].time, actual: 1, charged: 1,
      absorbed: 0, body: [])
    batch[3] = OutboxEntry(
      sequence: 4, kind: .usage, id: batch[0].id, time: batch[0].time, actual: 1, charged: 1,
      absorbed: 0, body: [])
    for (named, taken) in [(1, [4]), (2, [3, 4]), (3, [1, 3, 4])] as [(Int, [Int64])] {
      machine.took(cursor: 0)
      _ = machine.entriesRead(batch)
      let verdict = machine.replied(
        .acknowledged(cursor: 4, duplicates: Array(repeating: batch[0].id, count: named)))
      guard case .posted(_, let duplicates) = verdict else {
        Issue.record("\(verdict)")
        return
      }
      #expect(duplicates.map(\.sequence) == taken)
    }
  }

  @Test func whatIsOfAnUnknownKindIsDeliveredAndNotTakenBack() {
    var machine = machine()
    let strange = entry(1, kind: DeltaKind(rawValue: 77))
    #expect(machine.entriesRead([strange]) == .send(previous: 0, entries: [strange]))
    #expect(
      machine.replied(.acknowledged(cursor: 1, duplicates: [strange.id]))
        == .posted(delivered: 1, duplicates: []))
  }

  @Test func aNewEpochBeginsAtItsFirstEntry() {
    var machine = machine()
    _ = machine.entriesRead(entries(1...3))
    _ = machine.replied(.acknowledged(cursor: 3, duplicates: []))
    machine.entered(epoch: 1)
    #expect(machine.cursor == 3)
    machine.entered(epoch: 2)
    #expect(machine.cursor == 0)
    #expect(machine.entriesRead(entries(1...1)) == .send(previous: 0, entries: entries(1...1)))
  }

  /// Shippers killed between an answer and the reversals: whoever comes next is told of the
  /// duplicates again, because it starts where the reversals were done.
  @Test func noDuplicateIsForgottenWhoeverIsKilledWhen() {
    var random = SeededRandom.fromEnvironment("noDuplicateIsForgotten")
    for _ in 0..<200 {
      let outbox = entries(1...40)
      let known = Set(outbox.filter { _ in random.chance(0.2) }.map(\.id))
      var cursor: Int64 = 0
      var noted: Int64 = 0
      var takenBack: Set<DeltaID> = []
      var machine = machine()
      var rounds = 0
      while noted < 40, rounds < 2_000 {
        rounds += 1
        let read = outbox.filter { $0.sequence > machine.cursor }.prefix(7)
        guard case .send(_, let batch) = machine.entriesRead(Array(read)) else { break }
        cursor = max(cursor, batch.last?.sequence ?? 0)
        let reply = ShipperMachine.Reply.acknowledged(
          cursor: cursor, duplicates: batch.map(\.id).filter { known.contains($0) })
        var isKilled = random.chance(0.4)
        if !isKilled, case .posted(_, let duplicates) = machine.replied(reply) {
          for duplicate in duplicates where !isKilled {
            isKilled = random.chance(0.3)
            if !isKilled { takenBack.insert(duplicate.id) }
          }
          if !isKilled { noted = max(noted, machine.cursor) }
        }
        guard isKilled else { continue }
        machine = self.machine()
        machine.took(cursor: noted)
      }
      #expect(takenBack == known, "seed \(random.seed)")
    }
  }

  /// Over any losses of answers, ledger positions and rival shippers, each delta is posted once and
  /// in order.
  @Test func everythingIsDeliveredOnceWhateverGoesWrong() {
    var random = SeededRandom.fromEnvironment("ShipperMachineTests")
    for _ in 0..<200 {
      var machines = [machine(), machine()]
      let outbox = entries(1...40)
      var trimmed: Int64 = 0
      var posted: [Int64] = []
      var rounds = 0
      while posted.count < outbox.count, rounds < 2_000 {
        rounds += 1
        let who = Int.random(in: 0...1, using: &random)
        let read = outbox.filter { $0.sequence > max(machines[who].cursor, trimmed) }.prefix(7)
        guard case .send(let previous, let batch) = machines[who].entriesRead(Array(read)) else {
          continue
        }
        let cursor = Int64(posted.count)
        let lost = random.chance(0.3)
        if lost, random.chance(0.5) {
          machines[who].sendFailed()
          continue
        }
        let reply: ShipperMachine.Reply
        if previous > cursor {
          reply = .gap(cursor: cursor)
        } else {
          posted += batch.map(\.sequence).filter { $0 > cursor }
          reply = .acknowledged(cursor: Int64(posted.count), duplicates: [])
        }
        if lost {
          machines[who].sendFailed()
          continue
        }
        switch machines[who].replied(reply) {
        case .posted: trimmed = max(trimmed, machines[who].cursor - 3)
        case .readAgain: break
        case .rebuild(let trouble): Issue.record("\(trouble), seed \(random.seed)")
        }
      }
      #expect(posted == outbox.map(\.sequence), "seed \(random.seed)")
    }
  }
}
